"""Read and change windowed state, and scan history, through the one kernel (`kernel.c`, loaded by ctypes).

A *lane* holds events (moment, arrival, row hash, values) under keys. Online each key has one value in a key-value store;
offline the events of all keys are arrays. Both answer the same outputs with the same bits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from struct import Struct
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.core.errors import ConfigurationError, Corrupt, DefinitionError, InternalError

KERNEL_VERSION = 1
MAX_COLUMNS, MAX_WINDOWS, MAX_OUTPUTS = 64, 32, 256
SPARE = 8  # newest events of a lane with `latest` that outlive its retention
HEAD_BYTES, FIXED_WORDS = 32, 4
CORRUPT, NO_MEMORY = -1, -2
Ints = NDArray[np.int64]


class ValueType(IntEnum):
    """Say how a value's 8 bytes are read; REF is the id of a text."""

    FLOAT = 0
    INT = 1
    BOOL = 2
    REF = 3


KINDS = {"count": 0, "sum": 1, "mean": 2, "min": 3, "max": 4, "stddev": 5, "latest": 6, "quantile": 7}
ROWS = 8


@dataclass(frozen=True)
class Output:
    """Ask for an aggregate of a value column (None: of rows) over a window in microseconds (None: of all events).

    `parameter` is the largest age of `latest` in microseconds, or the quantile.
    """

    column: int | None
    aggregate: str
    window: int | None
    parameter: float | None


@dataclass(frozen=True)
class Lane:
    """Describe a lane: its value types, its windows (microseconds, ascending), and how long events are kept online.

    `state` values are visible at their own moment and a null may be the latest; `latest` lanes keep their newest events
    whatever their age.
    """

    values: tuple[ValueType, ...]
    windows: tuple[int, ...]
    state: bool = False
    keep: int = 0
    latest: bool = False

    def __post_init__(self) -> None:
        if len(self.values) > MAX_COLUMNS or len(self.windows) > MAX_WINDOWS:
            raise DefinitionError(
                "too many values or windows at one moment",
                got=f"{len(self.values)} values, {len(self.windows)} windows",
                expected=f"at most {MAX_COLUMNS} and {MAX_WINDOWS}",
                next_step="split the group in two",
            )

    @cached_property
    def layout(self) -> Struct:
        """Return the layout of an event's null mask and values."""
        return Struct("<q" + "".join("d" if v is ValueType.FLOAT else "q" for v in self.values))

    def pack(self, values: Sequence[Any]) -> bytes:
        """Return values as an event holds them: a null mask, then 8 bytes each."""
        if None not in values:
            return self.layout.pack(0, *values)
        mask = sum(1 << i for i, value in enumerate(values) if value is None)
        return self.layout.pack(mask, *(0 if value is None else value for value in values))


@dataclass(frozen=True)
class LaneEvents:
    """Hold versions of events, one row each; an event held from its arrival until before `until`."""

    key: Ints
    moment: Ints
    arrival: Ints
    until: Ints
    row: Ints
    words: Ints
    nulls: NDArray[np.bool_]


class Store(Protocol):
    """Offer one database of a transaction."""

    @property
    def get(self) -> Callable[[bytes], bytes | None]:
        """Return the function that reads a value."""
        ...

    @property
    def put(self) -> Callable[[bytes, bytes], object]:
        """Return the function that writes a value."""
        ...


class _Output(ctypes.Structure):
    _fields_ = (
        ("column", ctypes.c_int32),
        ("kind", ctypes.c_int32),
        ("window", ctypes.c_int32),
        ("pad", ctypes.c_int32),
        ("parameter", ctypes.c_double),
    )


class _Lane(ctypes.Structure):
    _fields_ = (
        ("columns", ctypes.c_int32),
        ("windows", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
        ("state", ctypes.c_int32),
        ("types", ctypes.c_int32 * MAX_COLUMNS),
        ("sums", ctypes.c_int32 * MAX_COLUMNS),
        ("ranges", ctypes.c_int32 * MAX_COLUMNS),
        ("lists", ctypes.c_int32 * MAX_COLUMNS),
        ("newest", ctypes.c_int32 * MAX_COLUMNS),
        ("window", ctypes.c_int64 * MAX_WINDOWS),
        ("output", _Output * MAX_OUTPUTS),
    )


def _load() -> ctypes.CDLL:
    path = Path(__file__).with_name("_kernel.so")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise ConfigurationError(
            "the feature kernel is missing or is not for this machine",
            where=path.name,
            got=error,
            next_step="pip install --force-reinstall headrace (from a clone: pip install -e .)",
        ) from error
    word, pointer, text = ctypes.c_int64, ctypes.c_void_p, ctypes.c_char_p
    library.lane_bytes.restype = word
    library.reader_new.restype, library.reader_new.argtypes = pointer, [pointer]
    library.reader_free.argtypes = [pointer]
    library.read_head.argtypes = [pointer, text, word, word, pointer, pointer]
    library.change_head.argtypes = [text, word, word, word, word, text, text, pointer]
    library.change_head.restype = word
    library.scan_sorted.argtypes = [pointer, *[pointer] * 3, word, *[pointer] * 2, word, *[pointer] * 2]
    if library.lane_bytes() != ctypes.sizeof(_Lane):
        raise ConfigurationError(
            "the feature kernel is of another version", where=path.name, next_step="pip install -e ."
        )
    return library


KERNEL = _load()


class _Reader:
    """Own a reader of the kernel: buffers for one thread."""

    def __init__(self, lane: Lane, outputs: Sequence[Output]) -> None:
        self.plan = _compiled(lane, outputs)
        self.handle = KERNEL.reader_new(ctypes.byref(self.plan))
        if not self.handle:
            raise MemoryError("no memory for a window reader")

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            KERNEL.reader_free(self.handle)


def _compiled(lane: Lane, outputs: Sequence[Output]) -> _Lane:
    if len(outputs) > MAX_OUTPUTS:
        raise DefinitionError("too many features at one moment", got=len(outputs), expected=f"at most {MAX_OUTPUTS}")
    plan = _Lane(len(lane.values), len(lane.windows), len(outputs), int(lane.state))
    plan.types[: len(lane.values)] = [int(v) for v in lane.values]
    plan.window[: len(lane.windows)] = list(lane.windows)
    for place, output in enumerate(outputs):
        window = -1 if output.window is None else lane.windows.index(output.window)
        kind = ROWS if output.column is None else KINDS[output.aggregate]
        parameter = -1.0 if output.parameter is None else float(output.parameter)
        column = -1 if output.column is None else output.column
        plan.output[place] = _Output(column, kind, window, 0, parameter)
        if column >= 0:
            needed = {"sum": 1, "mean": 1, "stddev": 2}.get(output.aggregate, 0)
            plan.sums[column] = max(plan.sums[column], needed)
            plan.ranges[column] |= output.aggregate in ("min", "max")
            plan.lists[column] |= output.aggregate == "quantile"
            plan.newest[column] |= output.aggregate == "latest"
    return plan


class OnlineLane:
    """Read and change one lane's keys in a key-value store; an instance serves one thread."""

    def __init__(self, lane: Lane, outputs: Sequence[Output]) -> None:
        self.lane, self.outputs = lane, tuple(outputs)
        self._reader = _Reader(lane, outputs)
        self._handle, self._read, self._change = self._reader.handle, KERNEL.read_head, KERNEL.change_head
        self._columns, self._stride = len(lane.values), (FIXED_WORDS + len(lane.values)) * 8
        self._spare = SPARE if lane.latest else 0
        self._order = Struct("<3q")
        self._room = ctypes.create_string_buffer(1 << 16)
        self._targets: dict[tuple[int, int, int], tuple[int, int]] = {}

    def read_into(
        self, get: Callable[[bytes], bytes | None], key: bytes, t: int, words: Ints, status: NDArray[np.uint8], at: int
    ) -> bool:
        """Write the outputs for a key at `t` into `words` and `status` from place `at` on; tell if the key is known.

        Raises:
            Corrupt: the stored bytes are damaged.
        """
        head = get(key)
        found = self._read(
            self._handle, head, 0 if head is None else len(head), t, words.ctypes.data + 8 * at, status.ctypes.data + at
        )
        if found < 0:
            raise _broken(found, key)
        return bool(found)

    def change(
        self, store: Store, key: bytes, add: tuple[int, int, int, bytes] | None, remove: tuple[int, int, int] | None
    ) -> None:
        """Take an event out and put one in, with one write of the key; an absent or evicted one is no error.

        `add` is (moment, arrival, row hash, `lane.pack(values)`), `remove` the first three of an earlier one.

        Raises:
            Corrupt: the stored bytes are damaged.
        """
        head = store.get(key)
        size = 0 if head is None else len(head)
        if size + self._stride + HEAD_BYTES > len(self._room):
            self._room = ctypes.create_string_buffer(2 * (size + self._stride) + HEAD_BYTES)
        added = None if add is None else self._order.pack(*add[:3]) + add[3]
        dropped = None if remove is None else self._order.pack(*remove)
        written = self._change(head, size, self._columns, self.lane.keep, self._spare, added, dropped, self._room)
        if written < 0:
            raise _broken(written, key)
        store.put(key, ctypes.string_at(self._room, written))

    def events(self, get: Callable[[bytes], bytes | None], key: bytes) -> list[tuple[int, ...]]:
        """Return a key's events as words: moment, arrival, row hash, null mask, values."""
        head = get(key) or b"\0" * HEAD_BYTES
        rows = np.frombuffer(head, np.int64)[HEAD_BYTES // 8 :].reshape(-1, self._stride // 8)
        return [tuple(row) for row in rows.tolist()]


def _broken(code: int, key: bytes) -> Exception:
    if code == NO_MEMORY:
        return MemoryError("no memory for a window read")
    return Corrupt("stored windows are damaged", where=f"key {key!r}", next_step="headrace online rebuild")


def scan(
    lane: Lane, outputs: Sequence[Output], events: LaneEvents, query_key: Ints, query_t: Ints
) -> tuple[Ints, NDArray[np.uint8]]:
    """Return every query's outputs, shape (queries, outputs): words and statuses, in the order of the queries.

    `query_key` are numbers as in `events.key` (others are unknown keys), `query_t` microseconds UTC.
    """
    newest = [i for i, output in enumerate(outputs) if output.aggregate == "latest"]
    if newest and lane.windows:  # what slides and what does not go apart: each then has its own fast way
        return _scan_apart(lane, outputs, events, query_key, query_t, newest)
    order = np.lexsort((events.row, events.arrival, events.moment, events.key))
    masks = np.zeros(len(order), np.int64)
    for column in range(len(lane.values)):
        masks |= events.nulls[:, column].astype(np.int64) << column
    fixed = np.column_stack([events.moment, events.arrival, events.row, masks])
    rows = np.ascontiguousarray(np.concatenate([fixed, events.words], axis=1, dtype=np.int64)[order])
    asked = np.lexsort((query_t, query_key))
    words = np.zeros((len(asked), len(outputs)), np.int64)
    status = np.zeros((len(asked), len(outputs)), np.uint8)
    parts = [
        np.ascontiguousarray(a, np.int64)
        for a in (events.key[order], events.until[order], query_key[asked], query_t[asked])
    ]
    key, until, of, t = parts
    reader = _Reader(lane, outputs)
    pointers = [a.ctypes.data for a in (key, rows, until)]
    code = KERNEL.scan_sorted(
        reader.handle,
        *pointers,
        len(order),
        of.ctypes.data,
        t.ctypes.data,
        len(asked),
        words.ctypes.data,
        status.ctypes.data,
    )
    if code < 0:
        raise InternalError("the feature kernel ran out of memory", got=f"{len(order)} events, {len(asked)} queries")
    found, state = np.empty_like(words), np.empty_like(status)
    found[asked], state[asked] = words, status
    return found, state


def _scan_apart(
    lane: Lane, outputs: Sequence[Output], events: LaneEvents, query_key: Ints, query_t: Ints, newest: Sequence[int]
) -> tuple[Ints, NDArray[np.uint8]]:
    words = np.zeros((len(query_key), len(outputs)), np.int64)
    status = np.zeros((len(query_key), len(outputs)), np.uint8)
    for places, part in (
        ([i for i in range(len(outputs)) if i not in newest], lane),
        (list(newest), replace(lane, windows=())),
    ):
        found, state = scan(part, [outputs[i] for i in places], events, query_key, query_t)
        words[:, places], status[:, places] = found, state
    return words, status
