"""Let a day be run again after a crash without writing anything to the ledger twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from headrace.core.errors import InternalError
from headrace.storage.ledger import Capabilities, Entry, Head, Ledger, Record, Verification

# What a repeated run may tell differently: real clocks, and where it ran.
EXCLUDED = ("measured", "hardware", "environment", "code")


class OnceLedger:
    """Show a ledger as it was at a checkpoint, and match what is appended against the records that stand after it.

    While such records remain, an append must make the same ones again (but for the keys of `EXCLUDED`); they become
    visible one by one, as they did the first time. Then it is the ledger itself.
    """

    def __init__(self, ledger: Ledger, checkpoint: Head) -> None:
        self.ledger, self.seen = ledger, checkpoint.seq
        self.newest = ledger.head().seq

    @property
    def capabilities(self) -> Capabilities:
        """Return what the ledger can do."""
        return self.ledger.capabilities

    @property
    def repeating(self) -> bool:
        """Tell whether records of the interrupted run are still to be matched."""
        return self.seen < self.newest

    def append(
        self,
        entries: Sequence[Entry],
        *,
        pointers: Mapping[str, str | None] | None = None,
        expect: Mapping[str, str | None] | None = None,
    ) -> list[Record]:
        """Append entries in one transaction, or return the equal records that are there already.

        Raises:
            InternalError: the repeated run makes other records: it is not deterministic.
            Conflict, DataError, Unavailable: as `Ledger.append`.
        """
        if not self.repeating:
            return self.ledger.append(entries, pointers=pointers, expect=expect)
        found = self.ledger.read(after=self.seen, limit=len(entries))
        for entry, record in zip(entries, found, strict=False):
            if len(found) < len(entries) or _essence(entry) != _essence(record):
                raise InternalError(
                    "the run after a crash went another way than the one before",
                    where=f"ledger record {record.seq}",
                    got=f"{entry.kind} {entry.subject}",
                    expected=f"{record.kind} {record.subject}",
                    next_step="report it with the seed; start afresh with another --state",
                )
        self.seen += len(found)
        return found

    def read(
        self,
        *,
        kinds: Sequence[str] | None = None,
        subject: str | None = None,
        after: int = 0,
        limit: int = 1_000,
        newest_first: bool = False,
    ) -> list[Record]:
        """Return visible records, as `Ledger.read`."""
        if not self.repeating:
            return self.ledger.read(kinds=kinds, subject=subject, after=after, limit=limit, newest_first=newest_first)
        hidden = self.newest - self.seen
        found = self.ledger.read(
            kinds=kinds, subject=subject, after=after, limit=limit + hidden, newest_first=newest_first
        )
        return [record for record in found if record.seq <= self.seen][:limit]

    def pointers(self, prefix: str = "") -> dict[str, str]:
        """Return the pointers as of the newest visible record."""
        if not self.repeating:
            return self.ledger.pointers(prefix)
        found: dict[str, str | None] = {}
        after = 0
        while page := self.read(after=after):
            for record in page:
                found.update(record.pointers)
            after = page[-1].seq
        return {name: value for name, value in found.items() if value is not None and name.startswith(prefix)}

    def series(self, subject: str) -> dict[str, list[tuple[int, float]]]:
        """Return metric points, as `Ledger.series`."""
        return self.ledger.series(subject)

    def head(self) -> Head:
        """Return the newest visible record's number and hash."""
        if not self.repeating:
            return self.ledger.head()
        found = self.ledger.read(after=self.seen - 1, limit=1)
        return Head(self.seen, found[0].hash if self.seen else "0" * 64)

    def verify(self, against: Sequence[Head] = ()) -> Verification:
        """Check the whole chain."""
        return self.ledger.verify(against)

    def close(self) -> None:
        """Close the ledger."""
        self.ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _essence(item: Entry | Record) -> tuple[Any, ...]:
    return item.kind, item.subject, item.actor, without_measured(item.body)


def without_measured(body: Any) -> Any:
    """Return plain JSON without the keys of `EXCLUDED`."""
    if isinstance(body, Mapping):
        return {k: without_measured(v) for k, v in body.items() if k not in EXCLUDED}
    if isinstance(body, (list, tuple)):
        return [without_measured(v) for v in body]
    return body
