"""Describe lanes, and keep each key's events in a key-value store: a head, and blocks of older events.

A *lane* is the value columns of one feature group that share moment and condition. Under a lane's key stands a head; a
block has the key, `c` and its number (4 bytes, big endian). All is little-endian 8-byte words, for m columns:

    head    marks (format, m, flags, removals: a byte each; number of entries: 4 bytes), version, newest applied
            arrival, floor (older events may be gone), next block number; then entries, then open events
    event   moment, arrival, row hash, null mask, m values; in the order (moment, arrival, row hash)
    entry   first moment, last (moment, arrival, row hash), block number << 8 | level, rows; then for each column 14
            words: count, least, greatest, latest value, its moment, marks, exact sum (3), exact sum of squares (5)
    block   level 0: events; level 1 and up: entries of the level below

The newest events are open. When there are enough, the oldest of them are sealed into a block and an entry stands for
them; entries fold into blocks of their own, so a head stays small whatever the number of events. Late and corrected
events change the block that they belong to. `kernel.c` reads the same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from struct import Struct
from typing import Any, NamedTuple, Protocol

from headrace.core.errors import Corrupt, DataError, DefinitionError, InternalError

FORMAT = 1
REBUILD = 1  # a flag: of a column without values above the floor only history knows the latest one
MAX_COLUMNS = 64  # bits of a null mask
# 96 events of one column are 3,840 bytes, one page; 16 stay open, so that slightly late events stay cheap.
SEAL, SLACK, FAN, MOST_ENTRIES = 96, 16, 8, 28
# Newest values of each column that a lane with `latest` keeps whatever their age. Until as many have been removed, the
# newest kept value is the newest there is: a late one below the floor is older than any of them.
DEPTH = 8
NEVER, END = -(2**63), 2**63 - 1
WHOLE = bytes(8)  # the null mask of an event without nulls
HEAD, ORDER, ENTRY = Struct("<Q4q"), Struct("<3q"), Struct("<6q")
ENTRY_BYTES, PART_BYTES = 48, 112

Get = Callable[[bytes], bytes | None]
Order = tuple[int, int, int]


class ValueType(IntEnum):
    """Say how a value's 8 bytes are read; REF stands for a text: it spells it, or is the id under which it is stored."""

    FLOAT = 0
    INT = 1
    BOOL = 2
    REF = 3


@dataclass(frozen=True)
class Lane:
    """Describe a lane: value types, windows (microseconds, ascending), and how long events are kept online.

    `state` values are visible at their own moment, events only after it; of state the newest null wins. `keep`
    (microseconds, counted back from the newest applied arrival) is the longest window or age, and some grace for what
    comes late; with `latest` the newest values of each column are kept whatever their age. With `placed` events stand
    elsewhere than at their moment, in the future perhaps: their last value column holds the moment.

    >>> Lane((ValueType.FLOAT,), (3_600_000_000,)).pack([2.0]).hex(" ", 8)
    '0000000000000000 0000000000000040'
    """

    values: tuple[ValueType, ...]
    windows: tuple[int, ...]
    state: bool = False
    keep: int = 0
    latest: bool = False
    placed: bool = False

    def __post_init__(self) -> None:
        if len(self.values) > MAX_COLUMNS:
            raise DefinitionError(
                "too many values at one moment",
                got=len(self.values),
                expected=f"at most {MAX_COLUMNS}",
                next_step="split the group in two",
            )
        if list(self.windows) != sorted(set(self.windows)) or any(w <= 0 for w in self.windows):
            raise DefinitionError("windows must be positive, each once, ascending", got=self.windows)

    @cached_property
    def layout(self) -> Struct:
        """Return the layout of an event's null mask and values."""
        return Struct("<Q" + "".join("d" if v is ValueType.FLOAT else "q" for v in self.values))

    def pack(self, values: Sequence[Any]) -> bytes:
        """Return values as an event holds them: a null mask, then 8 bytes each; None is null.

        Raises:
            DataError: an integer outside int64, or no number.
        """
        mask = 0
        if None in values:
            mask = sum([1 << i for i, value in enumerate(values) if value is None])
            values = [0 if value is None else value for value in values]
        try:
            return self.layout.pack(mask, *values)
        except (struct.error, OverflowError) as error:
            raise DataError(
                "a value that does not fit its column",
                got=values,
                expected=[v.name.lower() for v in self.values],
                next_step="declare the column as float, or quarantine the row",
            ) from error

    def unpack(self, packed: bytes) -> tuple[Any, ...]:
        """Return the values that `pack` was given; bools as 0 or 1."""
        mask, *values = self.layout.unpack(packed)
        return tuple(None if mask >> i & 1 else value for i, value in enumerate(values))


class LiveEvent(NamedTuple):
    """Show one event that counts in a key's state; instants are microseconds UTC."""

    moment: int
    arrival: int
    row: int
    values: tuple[Any, ...]


class Store(Protocol):
    """Offer one database of a transaction."""

    @property
    def get(self) -> Get:
        """Return the function that reads a value."""
        ...

    @property
    def put(self) -> Callable[[bytes, bytes], object]:
        """Return the function that writes a value."""
        ...

    @property
    def delete(self) -> Callable[[bytes], object]:
        """Return the function that deletes a value."""
        ...


def block_key(key: bytes, reference: int) -> bytes:
    """Return the key of the block that an entry of `key` refers to."""
    return key + b"c" + (reference >> 8 & 0xFFFFFFFF).to_bytes(4, "big")


def damaged(key: bytes, what: str) -> Corrupt:
    """Return the error for stored bytes that no writer wrote."""
    return Corrupt(
        "stored windows are damaged", where=f"key {key[:80]!r}", got=what, next_step="headrace online rebuild"
    )


@dataclass(slots=True)
class _Head:
    flags: int
    removals: int
    version: int
    newest: int
    floor: int
    number: int
    sealed: bytes
    open: bytes


class Chunks:
    """Change one lane's keys; `summarize(key, block, reference)` returns the entry of a block."""

    def __init__(self, lane: Lane, summarize: Callable[[bytes, bytes, int], bytes], seal: int = SEAL) -> None:
        columns = len(lane.values)
        self.lane, self.columns, self.seal, self.summarize = lane, columns, seal, summarize
        self.event, self.entry = 32 + 8 * columns, ENTRY_BYTES + PART_BYTES * columns
        self.most = max(seal, seal * 4 // 3 - 1)
        self.limit = (seal + SLACK) * self.event
        self.marks = FORMAT | columns << 8

    def change(self, store: Store, key: bytes, add: tuple[int, int, int, bytes] | None, remove: Order | None) -> bool:
        """Take an event out and put one in, with one write of the head; an absent one is no error.

        Returns whether the key now has to be rebuilt from history, and had not before.

        Raises:
            Corrupt: the stored bytes are damaged.
        """
        blob = store.get(key)
        if add is not None and 24 + len(add[3]) != self.event:
            raise InternalError("an event of another lane", where=f"key {key!r}", got=add)
        if add is not None and remove is None and blob is not None and self._append(store, key, blob, add):
            return False
        return (blob is not None or add is not None) and self._change(store, key, blob, add, remove)

    def _append(self, store: Store, key: bytes, blob: bytes, add: tuple[int, int, int, bytes]) -> bool:
        """Put a newest event behind the open ones, if that is all there is to do."""
        size, event = len(blob), self.event
        if size < HEAD.size:
            return False
        marks, version, newest, floor, number = HEAD.unpack_from(blob)
        start = HEAD.size + (marks >> 32) * self.entry
        fits = start < size < start + self.limit - event and (size - start) % event == 0 and version < END
        moment, arrival, row, packed = add
        if not fits or marks & 0xFFFF != self.marks or ORDER.unpack_from(blob, size - event) >= (moment, arrival, row):
            return False
        head = HEAD.pack(marks, version + 1, max(newest, arrival), floor, number)
        store.put(key, b"".join((head, blob[HEAD.size :], ORDER.pack(moment, arrival, row), packed)))
        return True

    def _change(
        self,
        store: Store,
        key: bytes,
        blob: bytes | None,
        add: tuple[int, int, int, bytes] | None,
        remove: Order | None,
    ) -> bool:
        head = self.load(key, blob)
        # Of what fell below the floor no admissible read can see anything, unless it may be the latest value.
        floor = NEVER if self.lane.latest else head.floor
        edits: list[tuple[Order, bytes]] = []
        if add is not None:
            head.newest = max(head.newest, add[1])
            edits.append((add[:3], ORDER.pack(*add[:3]) + add[3]))
        if remove is not None and (add is None or remove != add[:3]):
            edits.append((remove, b""))
        edits = [edit for edit in edits if edit[0][0] >= floor]
        self._apply(store, key, head, edits)
        lost = False
        if remove is not None and self.lane.latest and head.floor > NEVER and not self._follows(add, remove):
            lost = head.removals == DEPTH - 1
            head.removals = min(head.removals + 1, DEPTH)
            head.flags |= REBUILD * lost
        if len(head.open) >= self.limit:
            self._seal(store, key, head)
        head.version += 1
        marks = self.marks | head.flags << 16 | head.removals << 24 | len(head.sealed) // self.entry << 32
        store.put(key, HEAD.pack(marks, head.version, head.newest, head.floor, head.number) + head.sealed + head.open)
        return lost

    def _follows(self, add: tuple[int, int, int, bytes] | None, remove: Order) -> bool:
        """Tell whether a newer event with all values takes a removed one's place: no newest value is lost by that."""
        return add is not None and add[:3] > remove and (self.lane.state or add[3][:8] == WHOLE)

    def load(self, key: bytes, blob: bytes | None) -> _Head:
        """Return a key's head, an empty one for None.

        Raises:
            Corrupt: the bytes are no head of this lane.
        """
        if blob is None:
            return _Head(0, 0, 0, NEVER, NEVER, 1, b"", b"")
        if len(blob) < HEAD.size:
            raise damaged(key, f"{len(blob)} bytes")
        marks, version, newest, floor, number = HEAD.unpack_from(blob)
        end = HEAD.size + (marks >> 32) * self.entry
        if marks & 0xFFFF != self.marks:
            raise damaged(key, f"format {marks & 255}, {marks >> 8 & 255} columns")
        if end > len(blob) or (len(blob) - end) % self.event:
            raise damaged(key, f"{len(blob)} bytes for {marks >> 32} entries")
        if not (0 <= version < END and 0 < number < 1 << 32 and floor < END):
            raise damaged(key, f"version {version}, block {number}, floor {floor}")
        return _Head(
            marks >> 16 & 255, marks >> 24 & 255, version, newest, floor, number, blob[HEAD.size : end], blob[end:]
        )

    def entries(self, head: bytes) -> Iterator[tuple[int, int, int]]:
        """Yield first moment, last moment and reference of each of a head's entries."""
        for at in range(HEAD.size, HEAD.size + int.from_bytes(head[4:8], "little") * self.entry, self.entry):
            first, last, _, _, reference, _ = ENTRY.unpack_from(head, at)
            yield first, last, reference

    def _apply(self, store: Store, key: bytes, head: _Head, edits: list[tuple[Order, bytes]]) -> None:
        deep = []
        for order, event in edits:
            if head.sealed and self._last(head.sealed, len(head.sealed) - self.entry) >= order:
                deep.append((order, event))
            else:
                head.open = self._edited(head.open, order, event)
        if deep:
            head.sealed = self._edit(store, key, head, head.sealed, deep)

    def _last(self, entries: bytes, at: int) -> Order:
        return ORDER.unpack_from(entries, at + 8)

    def _reference(self, entries: bytes, at: int) -> int:
        reference: int = ENTRY.unpack_from(entries, at)[4]
        return reference

    def _block(self, get: Get, key: bytes, reference: int, above: int = 256) -> bytes:
        block = get(block_key(key, reference))
        size = self.entry if reference & 255 else self.event
        # Levels must go down one by one, or damaged references could lead in a circle.
        if block is None or len(block) % size or not block or (above < 256 and reference & 255 != above - 1):
            raise damaged(key, f"block {reference >> 8} is {'absent' if block is None else 'damaged'}")
        return block

    def _edited(self, events: bytes, order: Order, event: bytes) -> bytes:
        """Return events with the one at `order` replaced by `event`, which may be empty."""
        at = self._place(events, order, self.event, 0)
        same = at < len(events) and ORDER.unpack_from(events, at) == order
        return events[:at] + event + events[at + self.event * same :]

    def _place(self, records: bytes, order: Order, size: int, offset: int) -> int:
        """Return the byte offset of the first record whose order is not below `order`."""
        low, high = 0, len(records) // size
        while low < high:
            middle = (low + high) >> 1
            if ORDER.unpack_from(records, middle * size + offset) < order:
                low = middle + 1
            else:
                high = middle
        return low * size

    def _edit(self, store: Store, key: bytes, head: _Head, entries: bytes, edits: list[tuple[Order, bytes]]) -> bytes:
        """Change events below `entries` and every entry above them; return the entries."""
        at = self._place(entries, edits[0][0], self.entry, 8)
        if len(edits) > 1 and self._place(entries, edits[1][0], self.entry, 8) != at:
            # The insertion goes first, so that no level is empty in between.
            entries = self._edit(store, key, head, entries, edits[:1])
            return self._edit(store, key, head, entries, edits[1:])
        reference = self._reference(entries, at)
        level = reference & 255
        block = self._block(store.get, key, reference)
        if level:
            if self._reference(block, 0) & 255 != level - 1:
                raise damaged(key, f"block {reference >> 8} holds another level")
            block = self._edit(store, key, head, block, edits)
        else:
            for order, event in edits:
                block = self._edited(block, order, event)
        return entries[:at] + self._replaced(store, key, head, block, reference) + entries[at + self.entry :]

    def _replaced(self, store: Store, key: bytes, head: _Head, block: bytes, reference: int) -> bytes:
        """Store a changed block, in two if it has grown too long, not at all if it is empty; return its entries."""
        size, most = (self.entry, MOST_ENTRIES) if reference & 255 else (self.event, self.most)
        if not block:
            store.delete(block_key(key, reference))
            return b""
        if len(block) <= most * size:
            return self._stored(store, key, block, reference)
        cut = len(block) // size // 2 * size
        upper = self._new(head, reference & 255)
        return self._stored(store, key, block[:cut], reference) + self._stored(store, key, block[cut:], upper)

    def _new(self, head: _Head, level: int) -> int:
        head.number += 1
        return (head.number - 1) << 8 | level

    def _stored(self, store: Store, key: bytes, block: bytes, reference: int) -> bytes:
        store.put(block_key(key, reference), block)
        return self.summarize(key, block, reference)

    def _seal(self, store: Store, key: bytes, head: _Head) -> None:
        cut = self.seal * self.event
        head.sealed += self._stored(store, key, head.open[:cut], self._new(head, 0))
        head.open = head.open[cut:]
        self._evict(store, key, head)
        self._fold(store, key, head)

    def _fold(self, store: Store, key: bytes, head: _Head) -> None:
        """Move the oldest entries of a level one level up when there are twice as many as move."""
        size, end = self.entry, len(head.sealed)
        while end:
            level = self._reference(head.sealed, end - size) & 255
            start = end - size
            while start and self._reference(head.sealed, start - size) & 255 == level:
                start -= size
            if end - start < 2 * FAN * size:
                return
            moved = start + FAN * size
            entry = self._stored(store, key, head.sealed[start:moved], self._new(head, level + 1))
            head.sealed = head.sealed[:start] + entry + head.sealed[moved:]
            end = start + size

    def _evict(self, store: Store, key: bytes, head: _Head) -> None:
        """Drop whole entries that end before all that is kept; housekeeping, since admissible reads start later."""
        below, end = head.newest - self.lane.keep, 0
        while end < len(head.sealed) and self._last(head.sealed, end)[0] < below:
            end += self.entry
        if end == 0:
            return
        if not head.flags & REBUILD and all(n >= DEPTH for n in self._values_above(head)):
            head.removals = 0
        old, head.sealed = head.sealed[:end], head.sealed[end:]
        rest = b"".join(reversed(self._survivors(store.get, key, old, self._values(head)))) if self.lane.latest else b""
        # What came late may be dropped last though it is older than what was dropped before.
        head.floor = max(head.floor, min(self._last(old, end - self.entry)[0], END - 2) + 1)
        for at in range(0, end, self.entry):
            self._drop(store, key, self._reference(old, at))
        if rest:
            head.sealed = self._stored(store, key, rest, self._new(head, 0)) + head.sealed

    def _values(self, head: _Head) -> list[int]:
        """Count what may be the latest value of each column: its values, for state all rows."""
        counts = [0] * self.columns
        for at in range(0, len(head.sealed), self.entry):
            counts = [a + b for a, b in zip(counts, self._entry_values(head.sealed, at), strict=True)]
        for at in range(0, len(head.open), self.event):
            counts = [a + b for a, b in zip(counts, self._event_values(head.open, at), strict=True)]
        return counts

    def _values_above(self, head: _Head) -> list[int]:
        """Count at least some, and where blocks begin above the floor all, of each column's values above it."""
        counts = [0] * self.columns
        for at in range(0, len(head.sealed), self.entry):
            if ORDER.unpack_from(head.sealed, at)[0] >= head.floor:
                counts = [a + b for a, b in zip(counts, self._entry_values(head.sealed, at), strict=True)]
        return counts

    def _entry_values(self, entries: bytes, at: int) -> list[int]:
        if self.lane.state:
            return [ENTRY.unpack_from(entries, at)[5]] * self.columns
        counts = range(at + ENTRY_BYTES, at + self.entry, PART_BYTES)
        return [int.from_bytes(entries[i : i + 8], "little") for i in counts]

    def _event_values(self, events: bytes, at: int) -> list[int]:
        mask = 0 if self.lane.state else int.from_bytes(events[at + 24 : at + 32], "little")
        return [1 - (mask >> i & 1) for i in range(self.columns)]

    def _survivors(self, get: Get, key: bytes, entries: bytes, kept: list[int]) -> list[bytes]:
        """Return, newest first, the events below `entries` that are still among the newest values of some column."""
        found: list[bytes] = []
        for at in range(len(entries) - self.entry, -1, -self.entry):
            values = self._entry_values(entries, at)
            if not any(n and have < DEPTH for n, have in zip(values, kept, strict=True)):
                continue
            reference = self._reference(entries, at)
            block = self._block(get, key, reference)
            if reference & 255:
                found += self._survivors(get, key, block, kept)
                continue
            for i in range(len(block) - self.event, -1, -self.event):
                values = self._event_values(block, i)
                if any(n and have < DEPTH for n, have in zip(values, kept, strict=True)):
                    found.append(block[i : i + self.event])
                    kept[:] = [a + b for a, b in zip(kept, values, strict=True)]
        return found

    def fill(self, store: Store, key: bytes, events: bytes, newest: int | None = None) -> None:
        """Give a key that has nothing its events, in their order; the bytes are those of one `change` after the other.

        `newest` is the newest of their arrivals, if the caller knows it.
        """
        n = len(events) // self.event
        if 0 < len(events) < self.limit:
            if newest is None:
                newest = max([ORDER.unpack_from(events, at)[1] for at in range(0, len(events), self.event)])
            store.put(key, HEAD.pack(self.marks, n, newest, NEVER, 1) + events)
            return
        for at in range(0, len(events), self.event):
            moment, arrival, row = ORDER.unpack_from(events, at)
            self.change(store, key, (moment, arrival, row, events[at + 24 : at + self.event]), None)

    def clear(self, store: Store, key: bytes) -> None:
        """Drop a key's head and blocks.

        Raises:
            Corrupt: the stored bytes are damaged.
        """
        blob = store.get(key)
        if blob is None:
            return
        head = self.load(key, blob)
        for at in range(0, len(head.sealed), self.entry):
            self._drop(store, key, self._reference(head.sealed, at))
        store.delete(key)

    def _drop(self, store: Store, key: bytes, reference: int) -> None:
        if reference & 255:
            block = self._block(store.get, key, reference)
            for at in range(0, len(block), self.entry):
                below = self._reference(block, at)
                if below & 255 != (reference & 255) - 1:
                    raise damaged(key, f"block {reference >> 8} holds another level")
                self._drop(store, key, below)
        store.delete(block_key(key, reference))

    def events(self, get: Get, key: bytes) -> Iterator[LiveEvent]:
        """Yield a key's kept events in order."""
        blob = get(key)
        if blob is None:
            return
        head = self.load(key, blob)
        for block in (*self._blocks(get, key, head.sealed, 256), head.open):
            for at in range(0, len(block), self.event):
                moment, arrival, row = ORDER.unpack_from(block, at)
                yield LiveEvent(moment, arrival, row, self.lane.unpack(block[at + 24 : at + self.event]))

    def _blocks(self, get: Get, key: bytes, entries: bytes, level: int) -> Iterator[bytes]:
        for at in range(0, len(entries), self.entry):
            reference = self._reference(entries, at)
            block = self._block(get, key, reference, level)
            if reference & 255:
                yield from self._blocks(get, key, block, reference & 255)
            else:
                yield block
