"""Compute the hashes that chain a ledger's records, and judge what was read back; no I/O."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.core.errors import DataError
from headrace.core.identity import canonical
from headrace.storage.ledger.protocol import Entry, Head, Points, Problem

GENESIS = Head(0, "0" * 64)
FORMAT = 1
MAX_BODY_BYTES = 4 << 20
MAX_PROBLEMS = 20


@dataclass(frozen=True)
class Row:
    """Hold a record as the database does: JSON columns as the exact text that was hashed."""

    seq: int
    kind: str
    subject: str
    at: int
    actor: str
    body: str
    pointers: str | None
    series: str | None
    prev_hash: str
    hash: str


@dataclass(frozen=True)
class Checkpoint:
    """Hold a signed statement that record `seq` has `hash`, made at an instant."""

    seq: int
    hash: str
    at: int
    key_id: str
    signature: bytes


def record_hash(row: Row) -> str:
    """Return the SHA-256 of a record: of the canonical JSON list of its columns, format first, `prev_hash` last.

    The JSON columns enter as text, so that reading them back can never change the hash.
    """
    columns = [FORMAT, row.seq, row.kind, row.subject, row.at, row.actor, row.body, row.pointers, row.series]
    return hashlib.sha256(canonical([*columns, row.prev_hash])).hexdigest()


def checkpoint_message(seq: int, digest: str, at: int) -> bytes:
    """Return the bytes that a checkpoint signs; the number of records is `seq`, since records have no gaps."""
    return canonical(["headrace ledger checkpoint", FORMAT, seq, digest, at])


def chained(
    head: Head, entries: Sequence[Entry], series: Sequence[str | None], pointers: Mapping[str, str | None], at: int
) -> list[Row]:
    """Return the rows that follow `head`; the pointer moves go into the last of them.

    Raises:
        DataError: an entry's body is not plain JSON or too large.
    """
    rows: list[Row] = []
    for entry, series_text in zip(entries, series, strict=True):
        moves = plain_json(dict(pointers), entry) if pointers and len(rows) == len(entries) - 1 else None
        body = plain_json(dict(entry.body), entry)
        row = Row(
            head.seq + 1, entry.kind, entry.subject, at, entry.actor, body, moves, series_text, head.hash, hash=""
        )
        row = Row(**{**vars(row), "hash": record_hash(row)})
        head = Head(row.seq, row.hash)
        rows.append(row)
    return rows


def plain_json(value: Any, entry: Entry) -> str:
    """Return canonical JSON text.

    Raises:
        DataError: the value is not plain JSON, or its text is over 4 MiB.
    """
    where = f"ledger entry {entry.kind} of {entry.subject}"
    try:
        text = canonical(value).decode()
    except (TypeError, ValueError) as error:
        raise DataError(
            "a ledger entry that is not plain JSON",
            where=where,
            got=str(error),
            expected="objects with text keys, lists, text, finite numbers, booleans, null",
            next_step="write NaN and infinity as null, instants as microseconds",
        ) from error
    if len(text) > MAX_BODY_BYTES:
        raise DataError(
            "a ledger entry that is too large",
            where=where,
            got=f"{len(text)} characters",
            expected=f"at most {MAX_BODY_BYTES}",
            next_step="put the bytes into a blob and its digest into the entry",
        )
    return text


def normal_points(entry: Entry) -> dict[str, list[tuple[int, float]]]:
    """Return an entry's metric points as int and float, -0.0 as 0.0 since SQLite does not keep its sign.

    Raises:
        DataError: a step is no 64-bit integer or a value no number.
    """
    try:
        points = {
            name: [(int(step), float(value) + 0.0) for step, value in line] for name, line in entry.series.items()
        }
        for line in points.values():
            struct.pack(f"<{len(line)}q", *(step for step, _ in line))
        return points
    except (TypeError, ValueError, OverflowError, struct.error) as error:
        raise DataError(
            "metric points that are no numbers",
            where=f"ledger entry {entry.kind} of {entry.subject}",
            got=str(error),
            expected="(step, value) pairs: a 64-bit integer and a float",
        ) from error


def series_digest(series: Mapping[str, Points]) -> str:
    """Return the SHA-256 of metric points: by sorted name, the name, the count, all steps, all values."""
    digest = hashlib.sha256()
    for name in sorted(series):
        points = series[name]
        label = name.encode()
        digest.update(struct.pack("<QQ", len(label), len(points)) + label)
        digest.update(struct.pack(f"<{len(points)}q", *(step for step, _ in points)))
        # Every NaN counts as the same one: databases do not keep its payload.
        values = (math.nan if value != value else value for _, value in points)
        digest.update(struct.pack(f"<{len(points)}d", *values))
    return digest.hexdigest()


@dataclass
class Audit:
    """Collect what is wrong with a chain while its rows pass by in order."""

    head: Head = GENESIS
    records: int = 0
    points: int = 0
    problems: list[Problem] = field(default_factory=list)
    pointers: dict[str, str] = field(default_factory=dict)

    def report(self, seq: int | None, what: str) -> None:
        """Add a problem; after the twentieth the rest is not kept."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(seq, what))

    def check(self, row: Row) -> None:
        """Judge the next row by its number, its link to the row before and its own hash."""
        if row.seq != self.head.seq + 1:
            self.report(self.head.seq + 1, f"the next record is {row.seq}: some are missing")
        elif row.prev_hash != self.head.hash:
            self.report(row.seq, "it does not follow the record before it")
        if record_hash(row) != row.hash:
            self.report(row.seq, "its content does not have its hash")
        self.head = Head(row.seq, row.hash)
        self.records += 1

    def apply(self, moves: Mapping[str, str | None]) -> None:
        """Move the recomputed pointers as a record says."""
        for name, value in moves.items():
            if value is None:
                self.pointers.pop(name, None)
            else:
                self.pointers[name] = value

    def compare_pointers(self, stored: Mapping[str, str]) -> None:
        """Judge the stored pointers against those that the records give."""
        for name in sorted({*stored, *self.pointers}):
            if stored.get(name) != self.pointers.get(name):
                self.report(None, f"pointer {name} is {stored.get(name)}, the records say {self.pointers.get(name)}")
