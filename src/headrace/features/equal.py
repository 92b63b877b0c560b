"""Hash many records at once: to number them, or to find out quickly whether any two are equal.

Mostly none are, and then there is nothing to sort: where no two hashes of 64 bits are equal, no two records are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.core.threads import in_threads, parted
from headrace.features.windows import loaded_kernel

SHARED = 20_000  # hashes from which on threads share them
RUNS = 10_000  # of ascending values, up to which they are compared with each other
TEXT_RUNS = 1_000  # of ascending texts
Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]


class _Chunk(ctypes.Structure):
    _fields_ = (
        ("value", ctypes.c_void_p),
        ("valid", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("bit", ctypes.c_int64),
    )


def numbered(values: pa.ChunkedArray) -> tuple[Ints, Ints]:
    """Return the different ones of some int64 values in the order in which they come, and each one's number, -1 for null.

    >>> numbered(pa.chunked_array([[7, None], [5, 7]]))
    (array([7, 5]), array([ 0, -1,  1,  0]))
    """
    number, different = np.empty(len(values), np.int64), np.empty(len(values), np.int64)
    chunks = (_Chunk * values.num_chunks)()
    for at, chunk in enumerate(values.chunks):
        valid, data = chunk.buffers()
        there = None if valid is None or not chunk.null_count else valid.address
        chunks[at] = _Chunk(0 if data is None else data.address + 8 * chunk.offset, there, len(chunk), chunk.offset)
    count = loaded_kernel().number_values(chunks, len(chunks), number.ctypes.data, different.ctypes.data)
    if count < 0:
        raise MemoryError("no memory to number values")
    return different[:count].copy(), number


def certainly_distinct(texts: pa.ChunkedArray, threads: int = 1) -> bool:
    """Return True if no two of some byte strings (no nulls) are equal; False may be wrong, once in 2^64 n^-2 times."""
    if _ascending_runs(texts):
        return True
    hashes = np.empty(len(texts), np.uint64)

    def fill(span: slice) -> None:
        at = span.start
        for chunk in texts.slice(span.start, span.stop - span.start).chunks:
            _, offsets, data = chunk.buffers()
            if len(chunk):
                first = offsets.address + 4 * chunk.offset
                place = hashes[at:].ctypes.data
                loaded_kernel().hash_texts(0 if data is None else data.address, first, len(chunk), place)
            at += len(chunk)

    in_threads(fill, parted(len(texts), threads), threads)
    return not _any_equal(hashes, threads)


def _ascending_runs(texts: pa.ChunkedArray) -> bool:
    """Return whether texts stand in a few ascending runs of which none reaches into another: so come numbered rows."""
    runs: list[tuple[bytes, bytes]] = []
    falls = np.empty(TEXT_RUNS, np.int64)
    for chunk in texts.chunks:
        if not len(chunk):
            continue
        _, offsets, data = chunk.buffers()
        first = offsets.address + 4 * chunk.offset
        data_at = 0 if data is None else data.address
        count = loaded_kernel().text_falls(data_at, first, len(chunk), TEXT_RUNS, falls.ctypes.data)
        bounds = [0, *falls[:count].tolist(), len(chunk)]
        runs += [(chunk[begin].as_py(), chunk[end - 1].as_py()) for begin, end in pairwise(bounds)]
        if len(runs) >= TEXT_RUNS:
            return False
    runs.sort()
    return all(before[1] < after[0] for before, after in pairwise(runs))


def hashed_ids(prefix: bytes, texts: pa.Array | pa.ChunkedArray) -> Ints:
    """Return `core.identity.row_hash` of each of some texts or byte strings (no nulls) behind a prefix."""
    hashes = np.empty(len(texts), np.int64)
    at = 0
    for chunk in texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]:
        texts_here = chunk.cast(pa.binary())
        _, offsets, data = texts_here.buffers()
        if len(chunk):
            first, place = offsets.address + 4 * texts_here.offset, hashes[at:].ctypes.data
            data_at = 0 if data is None else data.address
            loaded_kernel().hash_ids(prefix, len(prefix), data_at, first, len(chunk), place)
        at += len(chunk)
    return hashes


def equal_rows(key: Ints, moment: Ints, arrival: Ints, threads: int = 1) -> Ints:
    """Return the places of rows of three columns that some other row equals, ascending."""
    suspects = _suspects(arrival)
    if suspects is None or len(suspects) == len(key):
        return _equal_rows([np.ascontiguousarray(column, np.int64) for column in (key, moment, arrival)], threads)
    found: Ints = suspects[_equal_rows([column[suspects] for column in (key, moment, arrival)], threads)]
    return found


def _suspects(values: Ints) -> Ints | None:
    """Return the places of values that another one may equal, ascending; None where they are not in a few ascending runs.

    So come what a table's files hold, each in the order of arrival: there equal values lie side by side.
    """
    falls = values[1:] < values[:-1]
    if np.count_nonzero(falls) >= RUNS or not len(values):
        return None
    starts = np.concatenate([[0], np.flatnonzero(falls) + 1])
    order = np.argsort(values[starts], kind="stable")
    lasts = values[np.append(starts[1:], len(values)) - 1]
    if (lasts[order[:-1]] >= values[starts[order[1:]]]).any():
        return None
    same = values[1:] == values[:-1]
    found = np.zeros(len(values), bool)
    found[1:] |= same
    found[:-1] |= same
    return np.flatnonzero(found)


def _equal_rows(columns: Sequence[Ints], threads: int) -> Ints:
    """Return the places of rows of three contiguous columns that some other row equals, ascending."""
    key = columns[0]
    hashes = np.empty(len(key), np.uint64)

    def fill(span: slice) -> None:
        parts = [column[span].ctypes.data for column in columns]
        loaded_kernel().hash_rows(*parts, span.stop - span.start, hashes[span].ctypes.data)

    in_threads(fill, parted(len(key), threads), threads)
    if not _any_equal(hashes, threads):
        return np.zeros(0, np.int64)
    ordered = np.sort(hashes)
    places = np.flatnonzero(np.isin(hashes, ordered[1:][ordered[1:] == ordered[:-1]]))
    order = places[np.lexsort([column[places] for column in columns[::-1]])]
    same = np.ones(len(order) - 1, bool)
    for column in columns:
        same &= column[order[1:]] == column[order[:-1]]
    tied = np.zeros(len(key), bool)
    tied[order[1:][same]] = True
    tied[order[:-1][same]] = True
    return np.flatnonzero(tied)


def _any_equal(hashes: Hashes, threads: int) -> bool:
    """Return whether any two are equal; threads share them by their upper bits."""
    bits = (threads - 1).bit_length() if len(hashes) >= SHARED else 0

    def look(share: int) -> int:
        return int(loaded_kernel().any_equal(hashes.ctypes.data, len(hashes), bits, share))

    found = in_threads(look, range(1 << bits), threads)
    if min(found) < 0:
        raise MemoryError("no memory for a copy of hashes")
    return any(found)
