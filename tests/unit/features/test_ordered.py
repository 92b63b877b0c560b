"""Queries are put in order and keys are numbered as plainly sorting and looking them up would."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.identity import encode_key
from headrace.features.equal import numbered
from headrace.features.keys import ascending, dense_keys
from headrace.features.scan import _order

INTEGERS = st.integers(-3, 3) | st.sampled_from([2**63 - 1, -(2**63), 2**53 + 1]) | st.integers(-(2**63), 2**63 - 1)


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


@given(st.lists(st.lists(st.none() | INTEGERS, max_size=30), max_size=4), st.integers(0, 3))
def test_integers_are_numbered_in_the_order_in_which_they_come(parts: list[list[int | None]], cut: int) -> None:
    """Also in chunks that are parts of others, whose bits for null begin inside of a byte."""
    chunks = [pa.array(part, pa.int64()).slice(cut) for part in parts]
    different, number = numbered(pa.chunked_array(chunks, pa.int64()))
    cells = [cell for part in parts for cell in part[cut:]]
    expected = list(dict.fromkeys(cell for cell in cells if cell is not None))
    assert different.tolist() == expected
    assert number.tolist() == [-1 if cell is None else expected.index(cell) for cell in cells]


def test_more_integers_than_the_first_table_holds_are_numbered() -> None:
    values = np.random.default_rng(3).integers(0, 2**40, 300_000)
    values[100_000:200_000] = values[:100_000]
    different, number = numbered(pa.chunked_array([values[:7], values[7:]]))
    assert np.array_equal(different[number], values)
    assert len(different) == len(np.unique(values)) > 199_000
    firsts = np.unique(number, return_index=True)[1]
    assert (np.diff(firsts) > 0).all()


KEYS = [
    st.tuples(INTEGERS),
    st.tuples(st.sampled_from(["a", "bb", "a\0", ""])),
    st.tuples(INTEGERS, st.sampled_from(["x", "yy"])),
    st.tuples(st.sampled_from([1, 2]), INTEGERS),
    st.tuples(INTEGERS | st.booleans()),
]


@given(st.one_of([st.lists(kind, max_size=20, unique_by=repr) for kind in KEYS]), st.integers(0, 2))
def test_keys_are_put_in_the_order_of_their_bytes(parts: list[tuple[object, ...]], cut: int) -> None:
    keys = [encode_key(part) for part in parts]
    for array in (pa.array(keys, pa.binary()).slice(cut), pa.chunked_array([keys[:3], keys[3:]], pa.binary())):
        found = ascending(array)
        assert array.take(pa.array(found)).to_pylist() == sorted(array.to_pylist())
        assert found.dtype == np.int64
