"""Encode the keys of many rows: each once, with a number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.core.identity import encode_key
from headrace.features.equal import numbered
from headrace.features.events import marked

Ints = NDArray[np.int64]
LARGEST = 2**62
LARGEST_ARRAY, NUMBER = 2**31, 8  # bytes of texts that one array holds; of a number


class Keys(NamedTuple):
    """Hold the distinct encoded keys of rows, and for each row the place of its own, -1 where a part is null."""

    distinct: pa.Array
    place: Ints

    @classmethod
    def of(cls, columns: Sequence[pa.ChunkedArray]) -> Keys:
        """Encode the keys that stand in some columns."""
        return cls(*dense_keys(columns))

    def among(self, known: pa.Array) -> Ints:
        """Return, for each row, the place of its key among known ones, -1 where it is none of them."""
        places = pc.fill_null(pc.index_in(self.distinct, value_set=known), -1).to_numpy(zero_copy_only=False)
        return np.append(places.astype(np.int64), -1)[self.place]


def dense_keys(columns: Sequence[pa.ChunkedArray]) -> tuple[pa.Array, Ints]:
    """Return the distinct encoded keys, and for each row the place of its key; -1 where a part is null."""
    if len(columns) == 1:
        if columns[0].type == pa.int64():
            integers, place = numbered(columns[0])
            return integer_keys(integers), place
        different, place = _numbered(columns[0])
        return pa.array([encode_key([part]) or b"" for part in different.to_pylist()], pa.binary()), place
    codes, size = np.zeros(len(columns[0]), np.int64), 1
    null = np.zeros(len(codes), bool)
    for column in columns:
        encoded = column.combine_chunks().dictionary_encode()
        null |= column.is_null().to_numpy()
        part = pc.fill_null(encoded.indices, 0).to_numpy(zero_copy_only=False).astype(np.int64)
        if size * len(encoded.dictionary) > LARGEST:
            different, codes = np.unique(codes, return_inverse=True)
            size = len(different)
        codes = codes * max(len(encoded.dictionary), 1) + part
        size *= max(len(encoded.dictionary), 1)
    rows = np.flatnonzero(~null)
    _, first, known = np.unique(codes[rows], return_index=True, return_inverse=True)
    place = np.full(len(codes), -1, np.int64)
    place[rows] = known
    parts = zip(*(column.take(pa.array(rows[first])).to_pylist() for column in columns), strict=True)
    return pa.array([encode_key(part) or b"" for part in parts], pa.binary()), place


def _numbered(column: pa.ChunkedArray) -> tuple[pa.Array, Ints]:
    """Return the different values of a column in the order in which they come, and for each row the place of its own, -1 for null."""
    encoded = column.dictionary_encode()  # all chunks share the values of all
    place, at = np.empty(len(column), np.int64), 0
    for chunk in encoded.chunks:
        place[at : at + len(chunk)] = pc.fill_null(chunk.indices, -1).to_numpy()
        at += len(chunk)
    return encoded.chunk(0).dictionary if encoded.num_chunks else pa.array([], column.type), place


def ascending(keys: pa.Array | pa.ChunkedArray) -> Ints:
    """Return the places that put encoded keys or row ids (no nulls) in the order of their bytes.

    Those of one integer differ in their last 8 bytes alone: one number each, which is sorted four times sooner than texts.
    """
    numbers = _numbers(keys) if isinstance(keys, pa.Array) or keys.nbytes < LARGEST_ARRAY else None
    found: Ints = pc.sort_indices(keys).to_numpy() if numbers is None else np.argsort(numbers, kind="stable")
    return found.astype(np.int64, copy=False)


def _numbers(keys: pa.Array | pa.ChunkedArray) -> NDArray[np.uint64] | None:
    """Return the last 8 bytes of texts as numbers in their order; None where texts differ in more than these."""
    whole = keys if isinstance(keys, pa.Array) else pa.concat_arrays([pa.array([], keys.type), *keys.chunks])
    _, offsets, data = whole.buffers()
    ends = np.frombuffer(offsets, np.int32)[whole.offset : whole.offset + len(whole) + 1]
    length = int(ends[1] - ends[0]) if len(whole) else 0
    if length < NUMBER or (np.diff(ends) != length).any():
        return None
    coded = np.frombuffer(data, np.uint8)[ends[0] : ends[-1]].reshape(-1, length)
    if (coded[:, :-NUMBER] != coded[0, :-NUMBER]).any():
        return None
    return np.ascontiguousarray(coded[:, -NUMBER:]).view(">u8").reshape(-1).astype(np.uint64)


def integer_keys(values: Ints) -> pa.Array:
    """Return `encode_key` of many integers."""
    coded = marked("i", values)
    ends = np.arange(0, coded.size + 1, coded.shape[1], dtype=np.int32)
    return pa.Array.from_buffers(pa.binary(), len(values), [None, pa.py_buffer(ends), pa.py_buffer(coded)])
