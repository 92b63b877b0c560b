"""Rows that have one reveal each are told from those with several, and ties are found without sorting."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from headrace.features.equal import certainly_distinct, equal_rows


def texts(*parts: list[bytes]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(part, pa.binary()) for part in parts], pa.binary())


MANY = [b"row %d" % i for i in range(50_000)]


@pytest.mark.parametrize(
    ("ids", "distinct"),
    [
        (texts(), True),
        (texts([b""]), True),
        (texts([b"", b"\0", b"\0\0"], [b"12345678", b"123456789"]), True),
        (texts([b"", b"a"], [b""]), False),
        (texts([b"12345678a", b"12345678b"], [b"12345678b"]), False),
        (texts(MANY), True),
        (texts(MANY, MANY[40_000:40_001]), False),
    ],
)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_equal_texts_are_never_taken_for_distinct(ids: pa.ChunkedArray, distinct: bool, threads: int) -> None:
    assert certainly_distinct(ids, threads) is distinct


def test_a_slice_is_hashed_as_the_whole() -> None:
    assert certainly_distinct(pa.chunked_array([pa.array([b"a", b"a", b"b"]).slice(1)]))
    assert not certainly_distinct(pa.chunked_array([pa.array([b"x", b"a", b"b", b"a"]).slice(1, 3)]))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("n", [0, 1, 2, 300, 40_000])
def test_tied_rows_are_those_that_sorting_finds(n: int, threads: int) -> None:
    r = np.random.default_rng(n)
    first, second, third = (r.integers(-2, 40, n) for _ in range(3))
    rows = list(zip(first.tolist(), second.tolist(), third.tolist(), strict=True))
    counts = Counter(rows)
    assert equal_rows(first, second, third, threads).tolist() == [i for i, row in enumerate(rows) if counts[row] > 1]
