"""Answer many queries from events in arrays, with the kernel and the bits of online reads."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.core.errors import InternalError
from headrace.core.threads import in_threads, usable_cores
from headrace.features.lanes import Lane
from headrace.features.outputs import Output
from headrace.features.windows import STATUS_OK, Buffers, Bytes, Ints, LaneEvents, View, loaded_kernel, views_of

METHODS = {"auto": 0, "plain": 1, "sweep": 2}
SHARED = 10_000  # queries from which on threads share them
LARGEST = 2**63


class _Events(ctypes.Structure):
    _fields_ = (
        ("n", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("key", "moment", "arrival", "until", "row", "words", "null")),
    )


class _Labels(ctypes.Structure):
    _fields_ = (("n", ctypes.c_int64), *((name, ctypes.c_void_p) for name in ("key", "t", "at", "place", "since")))


class Scanned(NamedTuple):
    """Hold answers: words (int64, or float64 bits) and statuses, each (queries, outputs), and what folds take.

    `folds` has for each output that is one the words of each query in turn, oldest first, and where each query's end.
    """

    words: Ints
    status: Bytes
    folds: Mapping[int, tuple[Ints, Ints]]


def scan(
    lane: Lane,
    outputs: Sequence[Output],
    events: LaneEvents,
    query_key: Ints,
    query_t: Ints,
    *,
    query_at: Ints | None = None,
    query_since: Ints | None = None,
    method: Literal["auto", "plain", "sweep"] = "auto",
    threads: int = 0,
) -> Scanned:
    """Return every query's outputs, in their order.

    A version counts at t if it was visible and `arrival <= t < until`: the bits are those of an online read after all
    that had arrived. Keys that no event has are unknown; their counts are 0.

    Args:
        lane: the lane.
        outputs: what to compute.
        events: all versions of all events; they are not changed.
        query_key: numbers as in `events.key`.
        query_t: moments in microseconds UTC.
        query_at: where windows reach back from, where events stand in another time than UTC; `query_t` unless said.
        query_since: before which moments latest values hold no longer; none does unless said.
        method: how keys are gone through; the results are the same. `plain` scans each query's window, `sweep` slides over
            all of a key's events once, `auto` takes for each key what costs less.
        threads: how many may share many queries, by key; 0 for one on each core. The results are the same.

    Raises:
        MemoryError: there is no room for a sorted copy of the events.
    """
    key, moment, arrival, until, row, words = (
        np.ascontiguousarray(a, np.int64)
        for a in (events.key, events.moment, events.arrival, events.until, events.row, events.words)
    )
    nulls = np.ascontiguousarray(events.nulls, np.bool_)
    columns = (key, moment, arrival, until, row, words, nulls)
    expected = [(len(key),)] * 5 + [(len(key), len(lane.values))] * 2
    if [c.shape for c in columns] != expected:
        raise InternalError("columns of events differ in length", got=[c.shape for c in columns], expected=expected)
    at = query_t if query_at is None else query_at
    order = _order(query_key, query_t, at)
    asked = [np.ascontiguousarray(a, np.int64) for a in (query_key[order], query_t[order], at[order], order)]
    since = None if query_since is None else np.ascontiguousarray(query_since[order], np.int64)
    found, status = np.zeros((len(order), len(outputs)), np.int64), np.zeros((len(order), len(outputs)), np.uint8)
    versions, keys = _Events(len(key), *map(_address, columns)), int(key.max(initial=-1)) + 1
    threads = threads or usable_cores()
    spans, folds = _spans(asked[0], threads), {}

    def answer(view: View, span: slice) -> Buffers:
        buffers, mine = Buffers(lane, outputs, view), [_address(column[span]) for column in asked]
        labels = _Labels(span.stop - span.start, *mine, None if since is None else _address(since[span]))
        results = len(outputs), found.ctypes.data, status.ctypes.data
        pointers = ctypes.byref(versions), ctypes.byref(labels)
        if loaded_kernel().scan(buffers.handle, *pointers, keys, METHODS[method], *results) < 0:
            raise MemoryError("no memory for a sorted copy of the events")
        return buffers

    for view in views_of(outputs):
        folding = any(outputs[place].aggregate == "fold" for place in view[2])
        told = in_threads(partial(answer, view), [slice(0, len(order))] if folding else spans, threads)
        for place in told[0].folds:
            folds[place] = _taken(told[0].folded(), found[:, place], status[:, place])
    return Scanned(found, status, folds)


def _order(key: Ints, t: Ints, at: Ints) -> Ints:
    """Return places that put queries in the order of (key, t, at): by one number where that holds all, which is sorted sooner."""
    if at is t and len(t):
        first, length = int(t.min()), int(t.max()) - int(t.min()) + 1
        if (int(key.max()) + 2) * length < LARGEST:
            found: Ints = np.argsort((key + 1) * length + (t - first))
            return found
    return np.lexsort((at, t, key))


def _spans(key: Ints, threads: int) -> list[slice]:
    """Part sorted queries for threads, two parts each, where keys change."""
    if threads < 2 or len(key) < SHARED:
        return [slice(0, len(key))]
    ends = np.unique(np.searchsorted(key, key[np.arange(1, 2 * threads) * len(key) // (2 * threads)]))
    return [slice(int(a), int(b)) for a, b in zip([0, *ends], [*ends, len(key)], strict=True) if a < b]


def _taken(pool: Ints, words: Ints, status: Bytes) -> tuple[Ints, Ints]:
    """Return the words that a fold takes for each query, one query's after the other's, and where each query's end."""
    counts = np.where(status == STATUS_OK, pool[words], 0) if len(pool) else np.zeros(len(words), np.int64)
    ends = np.cumsum(counts)
    inside = np.arange(int(counts.sum())) - np.repeat(ends - counts, counts)
    return pool[np.repeat(words + 1, counts) + inside] if len(pool) else pool, ends


def _address(array: NDArray[Any]) -> int:
    return array.ctypes.data
