"""Aggregate windows, online from a key-value store and offline from arrays, with one kernel (`kernel.c`) and the same bits.

Arithmetic is exact: sums are integers and every result is rounded once. An event is visible at t if its moment is before
t (`state` lanes: at or before t), in a window of length w if it stands not before t - w (`state`: after t - w). It stands
at its moment, in `placed` lanes elsewhere.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from headrace.core.errors import ConfigurationError, InternalError
from headrace.features.lanes import (
    REBUILD,
    SEAL,
    Chunks,
    Get,
    Lane,
    LiveEvent,
    Order,
    Store,
    ValueType,
    block_key,
    damaged,
)
from headrace.features.outputs import LISTED, CompiledOutput, Output, compiled

__all__ = [
    "KERNEL_VERSION",
    "STATUS_EXPIRED",
    "STATUS_NULL",
    "STATUS_OK",
    "STATUS_OVERFLOW",
    "STATUS_REBUILD",
    "Bytes",
    "Ints",
    "Lane",
    "LaneEvents",
    "LiveEvent",
    "OnlineLane",
    "Output",
    "Store",
    "ValueType",
]

KERNEL_VERSION = 3  # part of every group's hash: raise it when a result or the stored layout changes
STATUS_OK, STATUS_NULL, STATUS_EXPIRED, STATUS_OVERFLOW, STATUS_REBUILD = 0, 1, 2, 3, 6
NO_MEMORY = -2
NO_ENTRIES = bytes(4)

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]
View: TypeAlias = tuple[int, int, list[int]]  # an offset and a hop, and the places of the outputs that share them


@dataclass(frozen=True)
class LaneEvents:
    """Hold event versions of many keys, one place each, in any order; instants are microseconds UTC.

    A version holds from its `arrival` until just before `until` (2**63 - 1: for ever). `key` is a small non-negative
    number, `row` the hash of the row id, `words` (n, m) float64 bits or int64, `nulls` (n, m).
    """

    key: Ints
    moment: Ints
    arrival: Ints
    until: Ints
    row: Ints
    words: Ints
    nulls: NDArray[np.bool_]


class _Frames(ctypes.Structure):
    _fields_ = (
        ("shift", ctypes.c_int64),
        ("hop", ctypes.c_int64),
        ("state", ctypes.c_int32),
        ("known", ctypes.c_int32),
    )


class _Kernel:
    """Load the compiled kernel. Short calls keep the interpreter's lock, long ones release it."""

    def __init__(self, path: Path) -> None:
        try:
            short, long = ctypes.PyDLL(str(path)), ctypes.CDLL(str(path))
        except OSError as error:
            raise ConfigurationError(
                "the feature kernel is missing or was not built for this machine",
                where=path.name,
                got=error,
                expected="the library that the build compiles from kernel.c",
                next_step="pip install -e . (in a clone), or pip install --force-reinstall headrace",
            ) from error
        word, pointer, data, small = ctypes.c_int64, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32
        self.new = _function(short.lane_new, pointer, small, pointer, pointer, small, pointer, small, pointer)
        self.free = _function(short.lane_free, None, pointer)
        self.read_head = _function(short.read_head, word, pointer, data, word, word, word, pointer, pointer)
        rows = pointer, word, data, pointer, word, pointer, word, pointer, pointer, pointer
        self.read_rows = _function(short.read_rows, word, *rows)
        self.read_row = _function(short.read_row, word, pointer, data, word, pointer)
        self.read_block = _function(short.read_block, word, pointer, data, word, word)
        self.since = _function(short.lane_since, None, pointer, word)
        self.summarize = _function(short.summarize, word, pointer, data, word, word, pointer)
        self.scan = _function(long.scan, word, pointer, pointer, pointer, word, small, word, pointer, pointer)
        self.pool = _function(short.lane_pool, pointer, pointer, pointer)
        self.hash_texts = _function(long.hash_texts, None, pointer, pointer, word, pointer)
        self.text_falls = _function(long.text_falls, word, pointer, pointer, word, word, pointer)
        self.hash_ids = _function(long.hash_ids, None, data, word, pointer, pointer, word, pointer)
        self.spell_texts = _function(long.spell_texts, None, pointer, pointer, word, pointer)
        self.unspell_texts = _function(short.unspell_texts, word, pointer, pointer, word, pointer, pointer)
        self.hash_rows = _function(long.hash_rows, None, pointer, pointer, pointer, word, pointer)
        self.any_equal = _function(long.any_equal, word, pointer, word, small, word)
        self.number_values = _function(long.number_values, word, pointer, word, pointer, pointer)


def _function(function: Any, result: Any, *arguments: Any) -> Callable[..., Any]:
    function.restype, function.argtypes = result, arguments
    found: Callable[..., Any] = function
    return found


@cache
def loaded_kernel() -> _Kernel:
    """Return the compiled kernel, loaded once."""
    return _Kernel(Path(__file__).with_name("_kernel.so"))


def views_of(outputs: Sequence[Output]) -> list[View]:
    """Group outputs by offset and hop, the places of each: nested windows are read in one go."""
    found: dict[tuple[int, int], list[int]] = {}
    for place, output in enumerate(outputs):
        found.setdefault((output.offset, output.hop), []).append(place)
    return [(offset, hop, places) for (offset, hop), places in found.items()]


class Buffers:
    """Own the kernel's side of one view of a lane; made without outputs, it summarizes blocks."""

    def __init__(self, lane: Lane, outputs: Sequence[Output], view: View | None = None) -> None:
        offset, hop, self.places = view or (0, 0, [])
        mine = [outputs[place] for place in self.places]
        types = np.array([int(v) for v in lane.values], np.int32)
        nested = sorted({o.window for o in mine if o.window is not None})
        windows = np.array(nested, np.int64)
        asked = (CompiledOutput * len(mine))(
            *[compiled(lane, o, nested, p) for o, p in zip(mine, self.places, strict=True)]
        )
        known = len(lane.values) - 1 if lane.placed and mine else -1
        frames = _Frames(offset, hop, int(lane.state), known)
        kernel = loaded_kernel()
        sizes = len(types), types.ctypes.data, ctypes.addressof(frames), len(windows), windows.ctypes.data
        self.handle: int = kernel.new(*sizes, len(mine), ctypes.addressof(asked))
        if not self.handle:
            raise MemoryError("no memory for a lane's buffers")
        weakref.finalize(self, kernel.free, self.handle)
        self.folds = [p for p in self.places if outputs[p].aggregate == "fold"]

    def folded(self) -> Ints:
        """Return the values that folds take: where a fold's word points stands their number, then they, oldest first."""
        size = ctypes.c_int64()
        at = loaded_kernel().pool(self.handle, ctypes.byref(size))
        if not size.value:
            return np.zeros(0, np.int64)
        found: Ints = np.ctypeslib.as_array((ctypes.c_int64 * size.value).from_address(at)).copy()
        return found


class OnlineLane:
    """Read and change one lane's keys in any store of bytes; an instance reuses its buffers and serves one thread.

    `read` leaves its results in `words` (int64), in `values` (the same memory as float64) and in `status`.

    >>> lane = Lane((ValueType.FLOAT,), (10,), keep=100)
    >>> online = OnlineLane(lane, [Output(0, "sum", 10, None), Output(0, "count", 10, None)])
    >>> class Memory(dict):
    ...     put, delete = dict.__setitem__, dict.__delitem__
    >>> store = Memory()
    >>> online.change(store, b"key", (3, 4, 1, lane.pack([0.5])), None)
    >>> online.change(store, b"key", (5, 5, 2, lane.pack([2.0])), None)
    >>> online.read(store.get, b"key", 9)
    >>> float(online.values[0]), int(online.words[1])
    (2.5, 2)

    Args:
        lane: the lane.
        outputs: what reads answer, in this order; none for an instance that only writes.
        seal: events sealed into a block at a time.
    """

    def __init__(self, lane: Lane, outputs: Sequence[Output], *, seal: int = SEAL) -> None:
        self.lane, self.outputs = lane, tuple(outputs)
        self.words = np.zeros(len(outputs), np.int64)
        self.values = self.words.view(np.float64)
        self.status = np.zeros(len(outputs), np.uint8)
        self.chunks = Chunks(lane, self._summarize, seal)
        kernel = loaded_kernel()
        self._head, self._block, self._summary = kernel.read_head, kernel.read_block, kernel.summarize
        self._since = kernel.since
        self._views = [Buffers(lane, self.outputs, view) for view in views_of(self.outputs)]
        self.readers = tuple(view.handle for view in self._views)
        self._summaries = Buffers(lane, ())
        self._writer = self._summaries.handle
        self._entry = ctypes.create_string_buffer(self.chunks.entry)
        self._into: tuple[Ints, Bytes] = self.words, self.status
        self._words_at, self._status_at, self._place = self.words.ctypes.data, self.status.ctypes.data, 0

    def change(self, store: Store, key: bytes, add: tuple[int, int, int, bytes] | None, remove: Order | None) -> bool:
        """Take an event out and put one in, with one write of the key's head; an absent one is no error.

        `add` is (moment, arrival, row hash, `lane.pack(values)`), `remove` the first three of an earlier one. The caller
        knows from its row store which event a row had; at most one may live for each row.

        Returns whether so many newest values have been removed that only history knows which one is the latest: until
        `clear` and all its events again, reads of `latest` then answer REBUILD where no newer value has come.

        Raises:
            Corrupt: the stored bytes are damaged.
        """
        return self.chunks.change(store, key, add, remove)

    def fill(self, store: Store, key: bytes, events: bytes, newest: int | None = None) -> None:
        """Give a key that has nothing its events, as they are stored and in their order: quicker than one by one.

        `newest` is the newest of their arrivals, if the caller knows it.

        Raises:
            InternalError: the bytes are no events of this lane.
        """
        if len(events) % self.chunks.event:
            raise InternalError("events of another lane", where=f"key {key!r}", got=f"{len(events)} bytes")
        self.chunks.fill(store, key, events, newest)

    def clear(self, store: Store, key: bytes) -> None:
        """Drop everything that is kept under a key.

        Raises:
            Corrupt: the stored bytes are damaged.
        """
        self.chunks.clear(store, key)

    def read(self, get: Get, key: bytes, t: int, at: int | None = None) -> None:
        """Compute all outputs of a key at `t` (microseconds UTC), not before the newest applied arrival.

        Windows reach back from `at` where events stand in another time than UTC, from `t` unless said.

        Where `status` is not 0 (1 null, 2 expired, 3 an integer sum beyond int64, 6 only history knows), the word is NaN
        for a float output and 0 for others. The count of nothing is 0, everything else of nothing null.

        Raises:
            Corrupt: the stored bytes are damaged.
        """
        self.read_into(get, key, t, self.words, self.status, 0, at)

    def hold_from(self, since: int) -> None:
        """From now on let latest values hold only where their moment is not before an instant; others are null."""
        for reader in self.readers:
            self._since(reader, since)

    def read_into(
        self, get: Get, key: bytes, t: int, words: Ints, status: Bytes, place: int, at: int | None = None
    ) -> bool:
        """Do as `read`, but write into `words` and `status` from `place` on; return whether the key is known.

        Pass the same arrays again and again: only a change of arrays costs.

        Raises:
            Corrupt: the stored bytes are damaged.
        """
        self.bind(words, status, place)
        head = get(key)
        size, words_at, status_at = (
            0 if head is None else len(head),
            self._words_at + 8 * place,
            self._status_at + place,
        )
        for reader in self.readers:
            found = self._head(reader, head, size, t, t if at is None else at, words_at, status_at)
            if found:
                self.read_blocks(reader, get, key, found, head)
        return head is not None

    def folds(self) -> dict[int, Ints]:
        """Return, of the last read, the words that each fold takes, oldest first, by the fold's place among outputs."""
        found = {}
        for view in self._views:
            pool = view.folded()
            for place in view.folds:
                at = int(self._into[0][self._place + place])
                there = self._into[1][self._place + place] == STATUS_OK
                found[place] = pool[at + 1 : at + 1 + pool[at]] if there else pool[:0]
        return found

    def missing(self, held: Mapping[bytes, bytes | None], key: bytes, t: int, at: int) -> list[bytes]:
        """Return keys of blocks that a read at `t`, and from `at` back, needs and `held` lacks; none if it has all.

        Raises:
            Corrupt: the held bytes are damaged.
        """
        head = held[key]
        if head is None or head[4:8] == NO_ENTRIES:
            return []
        self.chunks.load(key, head)  # raises where the head is damaged
        try:
            self.read(held.__getitem__, key, t, at)
        except KeyError as error:
            # Telling all blocks from the head takes longer than a read, so it is done only where one is missing.
            lacking = [block for block in self.blocks(held, key, at) if block not in held]
            return lacking or [error.args[0]]  # a block below another one, or one whose sums are too wide for its entry
        return []

    def blocks(self, held: Mapping[bytes, bytes | None], key: bytes, at: int) -> list[bytes]:
        """Return the keys of the head's blocks in which a window from `at` back begins or ends, or whose values are listed."""
        head = held[key] or b""
        spans = [(at - o.offset - o.window - o.hop, at - o.offset, o.aggregate) for o in self.outputs if o.window]
        edges = {at, *(edge for begin, end, _ in spans for edge in (begin, end))}
        listed = {(begin, end) for begin, end, aggregate in spans if aggregate in LISTED}
        return [
            block_key(key, reference)
            for first, last, reference in self.chunks.entries(head)
            if any(first - 1 <= edge <= last + 1 for edge in edges)
            or any(last >= begin and first <= end for begin, end in listed)
        ]

    def bind(self, words: Ints, status: Bytes, place: int) -> None:
        """Say where results go."""
        if words is not self._into[0] or status is not self._into[1]:
            right = words.dtype == np.int64 and status.dtype == np.uint8 and len(words) == len(status)
            if not right or not words.flags.c_contiguous or not status.flags.c_contiguous:
                got = f"{words.dtype}, {status.dtype}"
                raise InternalError("not a row of results", got=got, expected="int64, uint8")
            self._into = words, status
            self._words_at, self._status_at = words.ctypes.data, status.ctypes.data
        if place < 0 or place + len(self.outputs) > len(words):
            raise InternalError("outputs beyond the end of the row", got=place, expected=f"0 to {len(words)}")
        self._place = place

    def read_blocks(self, reader: int, get: Get, key: bytes, reference: int, head: bytes | None) -> None:
        """Go on with a read of which the kernel asked for a block; `head` is what it reads from.

        Raises:
            Corrupt: the stored bytes are damaged.
        """
        held = [head]  # the kernel goes on in these bytes
        while reference > 0:
            block = get(block_key(key, reference))
            if block is None:
                raise damaged(key, f"block {reference >> 8} is absent")
            held.append(block)
            reference = self._block(reader, block, len(block), reference)
        if reference < 0:
            raise _failure(key, reference)

    def _summarize(self, key: bytes, block: bytes, reference: int) -> bytes:
        code = self._summary(self._writer, block, len(block), reference, self._entry)
        if code < 0:
            raise _failure(key, code)
        return self._entry.raw

    def events(self, get: Get, key: bytes) -> list[LiveEvent]:
        """Return a key's kept events in the order (moment, arrival, row hash).

        Raises:
            Corrupt: the stored bytes are damaged.
        """
        return list(self.chunks.events(get, key))

    def version(self, get: Get, key: bytes) -> int:
        """Return how often a key has been changed, 0 if it is unknown: for compare-and-set."""
        return self.chunks.load(key, get(key)).version

    def needs_rebuild(self, get: Get, key: bytes) -> bool:
        """Return whether removals may have taken all kept newest values of a column, so that history must be asked."""
        return bool(self.chunks.load(key, get(key)).flags & REBUILD)


def _failure(key: bytes, code: int) -> Exception:
    if code == NO_MEMORY:
        return MemoryError("no memory for a read of windows")
    return damaged(key, "inconsistent sizes, references or sums")
