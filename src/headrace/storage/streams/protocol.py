"""Say what a stream store promises: named, append-only, durable sequences of byte records, stamped on arrival.

A stream has one or more partitions, numbered from 0; each is a sequence of its own. Promises, each checked by
`headrace.testing.streams.StreamsContract`:

- A batch is durable when `append` returns, as durable as the backend is set up to be, and nothing that was acknowledged
  before it is missing. Where `whole_batches`, it is there whole or not at all after a crash at any moment.
- Positions ascend in the order in which records were appended to a partition; a position never changes or comes back.
  Where `counted` they are 0, 1, 2 …; elsewhere there may be gaps.
- Arrival never goes backwards along a partition, also when a clock does or another writer takes over, and is the same
  however often a record is read: it is the record's stamp or, where that is older, the arrival of the record before it.
  A reader hands on the arrival that it has come to, in its `Cursor`.
- Where `one_writer`, a second writer fails as `Unavailable`. There may be any number of readers.
- Bytes that changed after they were acknowledged fail as `Corrupt`.
- No reader's position is kept here: whoever applies records keeps the cursor beside what it made of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from headrace.core.errors import DataError

EARLIEST = -(2**63)
MAX_RECORD_BYTES = 16 << 20
MAX_BATCH_BYTES = 64 << 20
READ_BYTES = 8 << 20
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,248}")


@dataclass(frozen=True, slots=True)
class Cursor:
    """Say where a reader stands in a partition: the next position, and the newest arrival before it (µs UTC)."""

    position: int = 0
    arrival: int = EARLIEST


@dataclass(frozen=True, slots=True)
class Message:
    """Hold one record of a stream.

    Attributes:
        position: its place in its partition.
        arrival: when it arrived, microseconds UTC.
        data: its bytes.
        partition: the partition's number.
        problem: why the record is none that a source could have sent, or its stamp cannot be believed; else None.
        floor: the arrival before which no later record of the partition arrives, where it is not this one's.
    """

    position: int
    arrival: int
    data: bytes
    partition: int = 0
    problem: str | None = None
    floor: int | None = None

    @property
    def after(self) -> Cursor:
        """Return where a reader of its partition goes on."""
        return Cursor(self.position + 1, self.arrival if self.floor is None else self.floor)


@dataclass(frozen=True, slots=True)
class Appended:
    """Say where a batch landed: positions `start` up to and without `end`, and its arrival in microseconds UTC."""

    start: int
    end: int
    arrival: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """Say what a partition holds: positions `start` up to and without `end`; equal when it is empty."""

    start: int
    end: int


@dataclass(frozen=True)
class Capabilities:
    """Say what a store can do.

    Attributes:
        several_hosts: several hosts may share it.
        one_writer: a stream has one writer at a time.
        whole_batches: a batch is appended as a whole or not at all.
        counted: positions have no gaps, they are 0, 1, 2 ….
        distances: a difference of positions is a number of records, or a little more where there are gaps.
        drops: `drop` frees room; elsewhere retention is set in the backend.
        redacts: `redact` takes single records away; elsewhere they stay as long as the backend keeps them.
    """

    several_hosts: bool
    one_writer: bool
    whole_batches: bool
    counted: bool
    distances: bool
    drops: bool
    redacts: bool


class Membership(Protocol):
    """Share the partitions of some streams with the other members of a group."""

    def assigned(self) -> Mapping[str, frozenset[int]]:
        """Return the partitions that this member should read now, by stream; call it at least every few seconds.

        Two members may read one partition for a moment while partitions move: only who commits first goes on.

        Raises:
            Unavailable: the backend cannot be reached.
        """
        ...

    def close(self) -> None:
        """Leave the group, so that others take over at once."""
        ...


class Streams(Protocol):
    """Keep durable sequences of byte records."""

    @property
    def capabilities(self) -> Capabilities:
        """Return what this backend can do."""
        ...

    def append(
        self, stream: str, records: Sequence[bytes], *, keys: Sequence[bytes] | None = None
    ) -> dict[int, Appended]:
        """Write a batch, creating the stream where there is none; return where it landed, by partition.

        Records with equal keys land in one partition; without keys, all in one.

        Raises:
            DataError: a record is over 16 MiB or the batch over 64 MiB.
            Unavailable: another writer holds the stream, or it cannot be written; nothing was acknowledged.
        """
        ...

    def read(
        self, stream: str, cursors: Mapping[int, Cursor], limit: int = 1_000, size: int = READ_BYTES
    ) -> list[Message]:
        """Return records from the cursors on, at most `limit`, and no more once they are `size` bytes.

        Records of one partition are in order. None are returned at or beyond the end.

        Raises:
            DataError: a position was dropped, or is negative.
            Unavailable: the backend cannot be reached.
            Corrupt: stored bytes are not what was written.
        """
        ...

    def bounds(self, streams: Sequence[str]) -> dict[str, dict[int, Bounds]]:
        """Return what each partition of each stream holds; a stream that does not exist has none."""
        ...

    def streams(self) -> list[str]:
        """Return the names of all streams."""
        ...

    def drop(self, stream: str, before: Mapping[int, int]) -> None:
        """Remove old records where that frees room; all positions of a partition from `before` on stay.

        Raises:
            ConfigurationError: retention is set in the backend.
        """
        ...

    def redact(self, stream: str, chosen: Callable[[bytes], bool]) -> int:
        """Take the chosen records away, or empty them (`{}`) under their positions; return how many there were.

        All other positions and arrivals stay, and who reads on from one before or behind them loses nothing. Killed in
        between, the same call goes on.

        Raises:
            ConfigurationError: the backend keeps records as they are.
        """
        ...

    def join(self, streams: Sequence[str]) -> Membership:
        """Share these streams' partitions with the group that the store's URL names; without one, get them all."""
        ...

    def close(self) -> None:
        """Give everything back; later calls raise Unavailable."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Everything:
    """Read all partitions alone: the membership where there is no group."""

    def __init__(self, store: Streams, streams: Sequence[str]) -> None:
        self._store, self._streams = store, tuple(streams)

    def assigned(self) -> Mapping[str, frozenset[int]]:
        """Return every partition that there is."""
        return {name: frozenset(held) for name, held in self._store.bounds(self._streams).items()}

    def close(self) -> None:
        """Leave nothing."""


def ensure_name(stream: str, where: str, also: str = "") -> str:
    """Return a stream's name if every backend can hold it; characters of `also` are allowed too.

    Raises:
        DataError: it cannot.
    """
    if _NAME.fullmatch(stream.translate(dict.fromkeys(map(ord, also), "_"))) is None:
        raise DataError(
            "a name that no stream can have",
            where=where,
            got=repr(stream),
            expected="1 to 249 letters, digits, _, - and ., not beginning with .",
        )
    return stream


def ensure_small(stream: str, records: Sequence[bytes]) -> None:
    """Refuse a batch before anything of it is written.

    Raises:
        DataError: a record is over 16 MiB or the batch over 64 MiB.
    """
    largest, total = max(map(len, records), default=0), sum(map(len, records))
    if largest > MAX_RECORD_BYTES or total > MAX_BATCH_BYTES:
        raise DataError(
            "records that are too large for a stream",
            where=f"stream {stream}",
            got=f"a record of {largest} bytes, {total} in the batch",
            expected=f"at most {MAX_RECORD_BYTES} and {MAX_BATCH_BYTES}",
            next_step="send smaller batches",
        )


def not_kept(stream: str, partition: int, got: int, start: int) -> DataError:
    """Return the error for a position before what a partition still holds."""
    return DataError(
        "records that are no longer kept",
        where=f"stream {stream}, partition {partition}",
        got=f"position {got}",
        expected=f"{start} or later",
        next_step="begin at the stream's start, or backfill from the source",
    )
