"""Queries are put in order and keys are numbered as plainly sorting and looking them up would."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from headrace.features.keys import dense_keys
from headrace.features.scan import _order


@pytest.mark.parametrize("n", [0, 1, 2, 5_000])
@pytest.mark.parametrize(("least", "greatest"), [(-5, 5), (0, 2**52), (-(2**62), 2**62), (-(2**63), 2**63 - 1)])
def test_queries_stand_by_key_moment_and_place(n: int, least: int, greatest: int) -> None:
    r = np.random.default_rng(n)
    key, t = r.integers(-1, 40, n), r.integers(least, greatest, n, endpoint=True)
    earlier = t - r.integers(0, 2, n) if least > -(2**63) else t.copy()
    for at in (t, earlier):
        order = _order(key, t, at)
        assert np.array_equal(np.sort(order), np.arange(n))
        rows = [column[order].tolist() for column in (key, t, at)]
        assert list(zip(*rows, strict=True)) == sorted(zip(key.tolist(), t.tolist(), at.tolist(), strict=True))


@pytest.mark.parametrize("kind", [pa.int64(), pa.string()])
def test_keys_are_numbered_across_chunks_in_the_order_in_which_they_come(kind: pa.DataType) -> None:
    parts: list[list[int | None]] = [[7, None, 3], [], [3, 9, None, 7], [None], [1]]
    cells = [[None if cell is None else str(cell) if kind == pa.string() else cell for cell in part] for part in parts]
    several = pa.chunked_array([pa.array(part, kind) for part in cells], kind)
    whole = pa.chunked_array([pa.array([cell for part in cells for cell in part], kind)])
    keys, place = dense_keys([several])
    assert keys.equals(dense_keys([whole])[0])
    assert place.tolist() == [0, -1, 1, 1, 2, -1, 0, -1, 3] == dense_keys([whole])[1].tolist()
    assert dense_keys([pa.chunked_array([], kind)])[1].tolist() == []
