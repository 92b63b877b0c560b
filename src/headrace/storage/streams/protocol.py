"""Say what a stream store promises: named, append-only, durable sequences of byte records, stamped on arrival.

Promises, each checked by `headrace.testing.streams.StreamsContract`:

- A batch is durable when `append` returns. After a crash at any moment it is there whole or not at all, and nothing
  that was acknowledged before it is missing.
- Records have positions 0, 1, 2 … in the order they were appended; a position never changes or comes back.
- Arrival is stamped once, by the writer, from its clock, one instant for a batch. It never goes backwards along the
  stream, also when the clock does or another process takes over.
- One writer at a time, any number of readers. A second writer fails as `Unavailable`.
- Bytes that changed after they were acknowledged fail as `Corrupt`. An unfinished batch at the end is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self


@dataclass(frozen=True, slots=True)
class Message:
    """Hold one record of a stream: its position, when it arrived (microseconds UTC), its bytes."""

    position: int
    arrival: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Appended:
    """Say where a batch landed: positions `start` up to and without `end`, and its arrival in microseconds UTC."""

    start: int
    end: int
    arrival: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """Say what a stream holds: positions `start` up to and without `end`; equal when it is empty."""

    start: int
    end: int


@dataclass(frozen=True)
class Capabilities:
    """Say what a store can do: whether several hosts may share it."""

    several_hosts: bool


class Streams(Protocol):
    """Keep durable sequences of byte records."""

    @property
    def capabilities(self) -> Capabilities:
        """Return what this backend can do."""
        ...

    def append(self, stream: str, records: Sequence[bytes]) -> Appended:
        """Write a batch, creating the stream where there is none.

        Raises:
            DataError: a record is over 16 MiB or the batch over 64 MiB.
            Unavailable: another writer holds the stream, or it cannot be written; nothing was acknowledged.
        """
        ...

    def read(self, stream: str, position: int, limit: int = 1_000) -> list[Message]:
        """Return the records from `position` on, at most `limit`; none at or beyond the end.

        Raises:
            DataError: the position was dropped by `drop`, or is negative.
            Corrupt: stored bytes are not what was written.
        """
        ...

    def bounds(self, streams: Sequence[str]) -> dict[str, Bounds]:
        """Return what each stream holds; one that does not exist holds nothing."""
        ...

    def streams(self) -> list[str]:
        """Return the names of all streams."""
        ...

    def drop(self, stream: str, before: int) -> Bounds:
        """Remove old records where that frees whole segments; all positions from `before` on stay."""
        ...

    def close(self) -> None:
        """Give writers' locks back; later calls raise Unavailable."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
