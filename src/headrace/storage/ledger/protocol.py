"""Say what a ledger promises: append-only typed records in a hash chain, and named pointers that move with them.

Promises, each checked by `headrace.testing.ledger.LedgerContract`:

- One `append` is one transaction: all its records, series points and pointer moves are durable when it returns, or
  none exists. A record is never changed or removed.
- Records are numbered 1, 2, 3 … without gaps. Each carries the hash of the one before.
- Pointers are compared and set in that transaction, so of racing moves exactly one wins. Every move is written into
  the record that made it, so the pointers can be computed again from the records.
- Many processes may append at once. A ledger that is locked, gone or read-only fails as `Unavailable` within five
  seconds; bytes that are no ledger fail as `Corrupt`.
- `verify` finds a changed, removed, inserted or reordered record, a changed pointer and changed series points. A chain
  that was cut at its end or hashed anew from some record on is found by signed checkpoints, or against a head that
  was kept elsewhere; without either it cannot be found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

Points = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Entry:
    """Describe a record to append.

    Attributes:
        kind: what happened, as `run.finished`.
        subject: what it happened to, as a run or a version.
        body: plain JSON; no NaN, no infinity.
        actor: who did it.
        series: metric points by name, (step, value) each; they are kept beside the record, which holds their digest.
    """

    kind: str
    subject: str
    body: Mapping[str, Any] = field(default_factory=dict)
    actor: str = "headrace"
    series: Mapping[str, Points] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """Hold one record as it was written.

    Attributes:
        seq: its number, from 1.
        at: the ledger clock's instant when it was appended, microseconds UTC.
        pointers: the pointers that it moved; None removes one.
        series: the digest of its metric points as `{"digest": …, "points": n}`, or None.
        prev_hash: the hash of the record before it; 64 zeros for the first.
        hash: SHA-256 of everything above, 64 hex digits.
    """

    seq: int
    kind: str
    subject: str
    at: int
    actor: str
    body: Mapping[str, Any]
    pointers: Mapping[str, str | None]
    series: Mapping[str, Any] | None
    prev_hash: str
    hash: str


@dataclass(frozen=True)
class Head:
    """Name the end of a chain: keep one somewhere else, and `verify` can show that nothing was cut off."""

    seq: int
    hash: str


@dataclass(frozen=True)
class Problem:
    """Say what is wrong at which record; `seq` is None for pointers and for points without a record."""

    seq: int | None
    what: str


@dataclass(frozen=True)
class Verification:
    """Hold the result of checking a ledger.

    Attributes:
        records: how many records were read.
        head: the last record's number and hash, as stored.
        problems: what differs, the first bad record first; at most 20.
        checkpoints: how many signed checkpoints were checked.
        signed_through: the newest record that a checkpoint with a good signature covers; 0 if none does.
    """

    records: int
    head: Head
    problems: tuple[Problem, ...]
    checkpoints: int
    signed_through: int

    @property
    def ok(self) -> bool:
        """Tell whether nothing was found."""
        return not self.problems

    @property
    def first_bad(self) -> int | None:
        """Return the number of the first bad record, or None."""
        return min((problem.seq for problem in self.problems if problem.seq is not None), default=None)


class Signer(Protocol):
    """Sign checkpoints with a key that the ledger's folder does not hold."""

    @property
    def key_id(self) -> str:
        """Return the name of the key."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Return the signature of a message."""
        ...

    def verify(self, key_id: str, message: bytes, signature: bytes) -> bool:
        """Tell whether a signature is good and its key trusted."""
        ...


@dataclass(frozen=True)
class Capabilities:
    """Say what a ledger can do beyond the contract: whether writers on several hosts may share it."""

    several_hosts: bool


class Ledger(Protocol):
    """Append records and read them back; six operations and `close`."""

    @property
    def capabilities(self) -> Capabilities:
        """Return what this backend can do."""
        ...

    def append(
        self,
        entries: Sequence[Entry],
        *,
        pointers: Mapping[str, str | None] | None = None,
        expect: Mapping[str, str | None] | None = None,
    ) -> list[Record]:
        """Write records in one transaction, and move pointers with the last of them.

        `expect` names what pointers must hold now (None: they must not exist).

        Raises:
            Conflict: a pointer holds something else; nothing was written.
            DataError: an entry is not plain JSON or too large, or pointers are to move without a record.
            Unavailable: the ledger is locked, gone, full or read-only; nothing was acknowledged.
        """
        ...

    def read(
        self,
        *,
        kinds: Sequence[str] | None = None,
        subject: str | None = None,
        after: int = 0,
        limit: int = 1_000,
        newest_first: bool = False,
    ) -> list[Record]:
        """Return records numbered above `after`, oldest first unless asked otherwise, at most `limit`."""
        ...

    def pointers(self, prefix: str = "") -> dict[str, str]:
        """Return the pointers whose name begins with `prefix`."""
        ...

    def series(self, subject: str) -> dict[str, list[tuple[int, float]]]:
        """Return the metric points of all records about a subject, by name, in the order they were appended."""
        ...

    def head(self) -> Head:
        """Return the number and hash of the last record; 0 and 64 zeros if there is none."""
        ...

    def verify(self, against: Sequence[Head] = ()) -> Verification:
        """Check every hash, pointer, point and checkpoint, and that the heads in `against` are part of the chain."""
        ...

    def close(self) -> None:
        """Release connections; later calls raise Unavailable."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
