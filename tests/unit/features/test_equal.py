"""Rows that have one reveal each are told from those with several, and ties are found without sorting."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.features.equal import RUNS, TEXT_RUNS, _suspects, certainly_distinct, equal_rows


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


@given(
    st.lists(st.lists(st.binary(max_size=3), max_size=6).map(lambda part: sorted(part)), max_size=5), st.integers(0, 1)
)
def test_texts_in_ascending_runs_are_distinct_where_no_two_are_equal(parts: list[list[bytes]], cut: int) -> None:
    """Runs that overlap, touch or lie apart, in any order, with equal texts inside of a run or in two of them."""
    ids = pa.chunked_array([pa.array(part, pa.binary()).slice(cut) for part in parts], pa.binary())
    assert certainly_distinct(ids) is (len({*ids.to_pylist()}) == len(ids))


@pytest.mark.parametrize("falls", [TEXT_RUNS - 2, TEXT_RUNS - 1, TEXT_RUNS, 3 * TEXT_RUNS])
@pytest.mark.parametrize("equal", [False, True])
def test_texts_in_many_runs_are_told_apart_too(falls: int, equal: bool) -> None:
    ids = [b"%08d" % number for i in range(falls, -1, -1) for number in (10 * i, 10 * i + 1)]
    ids += [b"%08d" % 10] if equal else []
    assert certainly_distinct(texts(ids[:777], ids[777:])) is not equal


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


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("apart", [0, 1, 5_000])
@pytest.mark.parametrize("n", [1, 2, 300, 20_000])
def test_ties_in_ascending_runs_are_those_that_sorting_finds(n: int, apart: int, threads: int) -> None:
    """Runs that overlap, that touch and that lie apart, newest first or in any order, as files of a table are read."""
    r = np.random.default_rng(n + apart)
    runs = [
        np.sort(r.integers(0, 5_000, len(part))) + 5_000 * i for i, part in enumerate(np.array_split(np.arange(n), 7))
    ]
    runs = [run - (5_000 - apart) * i for i, run in enumerate(runs)]
    arrival = np.concatenate([runs[i] for i in r.permutation(7)])
    key, moment = r.integers(0, 3, n), arrival - r.integers(0, 2, n)
    rows = list(zip(key.tolist(), moment.tolist(), arrival.tolist(), strict=True))
    counts = Counter(rows)
    expected = [i for i, row in enumerate(rows) if counts[row] > 1]
    assert equal_rows(key, moment, arrival, threads).tolist() == expected
    assert n < 20_000 or expected


def test_only_what_lies_side_by_side_in_apart_runs_is_compared() -> None:
    runs = [np.array(run, np.int64) for run in ([70, 71, 71], [10, 20, 30, 30, 30, 40], [50])]
    found = _suspects(np.concatenate(runs))
    assert found is not None and found.tolist() == [1, 2, 5, 6, 7]
    assert _suspects(np.concatenate([*runs, np.array([40])])) is None  # another run has it too
    assert _suspects(np.concatenate([*runs, np.array([15])])) is None
    assert _suspects(np.arange(RUNS)[::-1]) is not None and _suspects(np.arange(RUNS + 1)[::-1]) is None
