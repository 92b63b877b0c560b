"""Keep a ledger in a SQL database through SQLAlchemy Core; a technology adds how to connect and to name its errors."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Connection, Engine, Table, delete, func, insert, select
from sqlalchemy.exc import DBAPIError

from headrace.core.errors import BackendError, Conflict, DataError, Unavailable
from headrace.core.failpoints import reach
from headrace.core.identity import canonical
from headrace.core.time import SECOND, Clock
from headrace.storage.ledger import schema
from headrace.storage.ledger.chain import (
    GENESIS,
    Audit,
    Checkpoint,
    Row,
    chained,
    checkpoint_message,
    normal_points,
    series_digest,
)
from headrace.storage.ledger.protocol import Capabilities, Entry, Head, Record, Signer, Verification

CHECKPOINT_RECORDS = 1_000
CHECKPOINT_PERIOD = 60 * SECOND
PointRow = tuple[int, int, str, int, float]


class RelationalLedger(ABC):
    """Implement the ledger over any SQL database; see `protocol.py` for the promises."""

    def __init__(self, *, clock: Clock, signer: Signer | None, read_only: bool) -> None:
        self._clock = clock
        self._signer = signer
        self._read_only = read_only

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """Return what this backend can do."""

    @property
    @abstractmethod
    def _engine(self) -> Engine:
        """Return the engine for reads, which see one snapshot each."""

    @property
    @abstractmethod
    def _writer(self) -> Engine:
        """Return the engine whose transactions exclude every other writer from their first statement on."""

    @property
    @abstractmethod
    def _where(self) -> str:
        """Return the place to name in errors; never a secret."""

    @abstractmethod
    def _translate(self, error: DBAPIError) -> BackendError:
        """Return the typed error for a database error."""

    @abstractmethod
    def _insert_points(self, connection: Connection, rows: Sequence[PointRow]) -> None:
        """Insert rows of `schema.series` by the driver's fastest way: Core spends 3 µs a row on binding names."""

    @abstractmethod
    def _ensure_present(self) -> None:
        """Raise Unavailable if the store has vanished beneath its open connections."""

    def append(
        self,
        entries: Sequence[Entry],
        *,
        pointers: Mapping[str, str | None] | None = None,
        expect: Mapping[str, str | None] | None = None,
    ) -> list[Record]:
        """Write records in one transaction, and move pointers with the last of them."""
        moves = dict(pointers or {})
        self._ensure_writable(entries, moves)
        if not entries:
            return []
        points = [normal_points(entry) for entry in entries]
        summaries = [_summary(line) for line in points]
        with self._transaction(self._writer) as connection:
            _compare(connection, expect or {})
            rows = chained(_head(connection), entries, summaries, moves, int(self._clock.now()))
            connection.execute(insert(schema.records), [vars(row) for row in rows])
            for row, line in zip(rows, points, strict=True):
                self._insert_points(connection, _flat(row.seq, line))
            _move(connection, moves)
            self._checkpoint(connection, rows[-1], forced=bool(moves))
            reach("ledger.before_commit")
        reach("ledger.after_commit")
        return [_record(row) for row in rows]

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
        seq = schema.records.c.seq
        query = select(schema.records).where(seq > after).limit(limit)
        if kinds is not None:
            query = query.where(schema.records.c.kind.in_(kinds))
        if subject is not None:
            query = query.where(schema.records.c.subject == subject)
        with self._transaction(self._engine) as connection:
            found = connection.execute(query.order_by(seq.desc() if newest_first else seq)).all()
        return [_record(Row(*row)) for row in found]

    def pointers(self, prefix: str = "") -> dict[str, str]:
        """Return the pointers whose name begins with `prefix`."""
        with self._transaction(self._engine) as connection:
            return _pointers(connection, prefix)

    def series(self, subject: str) -> dict[str, list[tuple[int, float]]]:
        """Return the metric points of all records about a subject, by name, in the order they were appended."""
        table, owner = schema.series, schema.records
        query = (
            select(table.c.name, table.c.step, table.c.value)
            .join(owner, owner.c.seq == table.c.seq)
            .where(owner.c.subject == subject)
            .order_by(table.c.seq, table.c.position)
        )
        with self._transaction(self._engine) as connection:
            return _by_name(connection.execute(query))

    def head(self) -> Head:
        """Return the number and hash of the last record; 0 and 64 zeros if there is none."""
        with self._transaction(self._engine) as connection:
            return _head(connection)

    def verify(self, against: Sequence[Head] = ()) -> Verification:
        """Check every hash, pointer, point and checkpoint, and that the heads in `against` are part of the chain."""
        audit = Audit()
        with self._transaction(self._engine) as connection:
            marks = [Checkpoint(*row) for row in connection.execute(select(schema.checkpoints)).all()]
            hashes = _audit_records(connection, audit, {*(head.seq for head in against), *(mark.seq for mark in marks)})
            audit.compare_pointers(_pointers(connection))
            stored = connection.execute(select(func.count()).select_from(schema.series)).scalar_one()
        if stored != audit.points:
            audit.report(None, f"{stored} metric points are stored, the records count {audit.points}")
        for head in against:
            if hashes.get(head.seq) != head.hash:
                audit.report(head.seq, "it is not the record that was seen before: the chain was cut or written anew")
        signed_through = self._audit_checkpoints(audit, marks, hashes)
        problems = sorted(audit.problems, key=lambda problem: problem.seq or math.inf)
        return Verification(audit.records, audit.head, tuple(problems), len(marks), signed_through)

    def close(self) -> None:
        """Release connections; later calls raise Unavailable."""
        self._closed = True
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    _closed = False

    def _ensure_writable(self, entries: Sequence[Entry], moves: Mapping[str, str | None]) -> None:
        if self._read_only:
            raise Unavailable(
                "the ledger was opened for reading only", where=self._where, next_step="open it without read_only"
            )
        if moves and not entries:
            raise DataError(
                "pointers move only with a record that says why",
                where=self._where,
                got=list(moves),
                expected="at least one entry",
            )

    @contextmanager
    def _transaction(self, engine: Engine) -> Iterator[Connection]:
        if self._closed:
            raise Unavailable("the ledger is closed", where=self._where, next_step="open it again")
        self._ensure_present()
        try:
            with engine.begin() as connection:
                yield connection
        except DBAPIError as error:
            raise self._translate(error) from error
        except OSError as error:
            raise Unavailable(
                "the ledger could not be written", where=self._where, got=error, next_step="headrace doctor"
            ) from error

    def _checkpoint(self, connection: Connection, row: Row, *, forced: bool) -> None:
        """Sign the head after a promotion, 1,000 records or 60 seconds, whichever is first."""
        if self._signer is None:
            return
        table = schema.checkpoints
        last = connection.execute(select(table.c.seq, table.c.at).order_by(table.c.seq.desc()).limit(1)).first()
        due = last is None or row.seq - last.seq >= CHECKPOINT_RECORDS or row.at - last.at >= CHECKPOINT_PERIOD
        if forced or due:
            signature = self._signer.sign(checkpoint_message(row.seq, row.hash, row.at))
            mark = Checkpoint(row.seq, row.hash, row.at, self._signer.key_id, signature)
            connection.execute(insert(table), [vars(mark)])

    def _audit_checkpoints(self, audit: Audit, marks: Sequence[Checkpoint], hashes: Mapping[int, str]) -> int:
        signed_through = 0
        for mark in marks:
            message = checkpoint_message(mark.seq, mark.hash, mark.at)
            if hashes.get(mark.seq) != mark.hash:
                audit.report(mark.seq, "a checkpoint names another hash: the chain was cut or written anew")
            elif self._signer is not None and not self._signer.verify(mark.key_id, message, mark.signature):
                audit.report(mark.seq, f"its checkpoint's signature is not good for key {mark.key_id}")
            elif self._signer is not None:
                signed_through = max(signed_through, mark.seq)
        return signed_through


def _head(connection: Connection) -> Head:
    table = schema.records
    row = connection.execute(select(table.c.seq, table.c.hash).order_by(table.c.seq.desc()).limit(1)).first()
    return GENESIS if row is None else Head(row.seq, row.hash)


def _pointers(connection: Connection, prefix: str = "") -> dict[str, str]:
    name = schema.pointers.c.name
    # substr and not LIKE: LIKE ignores case in SQLite.
    query = select(schema.pointers).where(func.substr(name, 1, len(prefix)) == prefix).order_by(name)
    return {row.name: row.value for row in connection.execute(query)}


def _compare(connection: Connection, expect: Mapping[str, str | None]) -> None:
    """Raise Conflict unless every named pointer holds what the caller expects."""
    table = schema.pointers
    found = connection.execute(select(table).where(table.c.name.in_(list(expect)))).all() if expect else []
    stored = {row.name: row.value for row in found}
    for name, value in expect.items():
        if stored.get(name) != value:
            raise Conflict(
                f"somebody else moved {name} first; nothing was written",
                where=f"ledger pointer {name}",
                got=stored.get(name) or "no value",
                expected=value or "no value",
                next_step="read the pointer again and decide anew",
            )


def _move(connection: Connection, moves: Mapping[str, str | None]) -> None:
    if not moves:
        return
    connection.execute(delete(schema.pointers).where(schema.pointers.c.name.in_(list(moves))))
    rows = [{"name": name, "value": value} for name, value in moves.items() if value is not None]
    if rows:
        connection.execute(insert(schema.pointers), rows)


def _summary(points: Mapping[str, Sequence[tuple[int, float]]]) -> str | None:
    count = sum(len(line) for line in points.values())
    return canonical({"digest": series_digest(points), "points": count}).decode() if points else None


def _flat(seq: int, points: Mapping[str, Sequence[tuple[int, float]]]) -> list[PointRow]:
    named = ((name, step, value) for name, line in points.items() for step, value in line)
    return [(seq, position, name, step, value) for position, (name, step, value) in enumerate(named)]


def _by_name(rows: Any) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for name, step, value in rows:
        found.setdefault(name, []).append((step, math.nan if value is None else value))
    return found


def _audit_records(connection: Connection, audit: Audit, wanted: set[int]) -> dict[int, str]:
    """Pass all records through the audit, in order; return the hashes of the wanted ones."""
    hashes = {}
    result = connection.execution_options(yield_per=1_000).execute(_in_order(schema.records))
    for found in result:
        row = Row(*found)
        audit.check(row)
        audit.apply(json.loads(row.pointers) if row.pointers else {})
        if row.series is not None:
            _audit_points(connection, audit, row)
        if row.seq in wanted:
            hashes[row.seq] = row.hash
    return hashes


def _in_order(table: Table) -> Any:
    return select(table).order_by(table.c.seq)


def _audit_points(connection: Connection, audit: Audit, row: Row) -> None:
    table = schema.series
    query = select(table.c.name, table.c.step, table.c.value).where(table.c.seq == row.seq).order_by(table.c.position)
    points = _by_name(connection.execute(query))
    said = json.loads(row.series or "{}")
    audit.points += said.get("points", 0)
    if series_digest(points) != said.get("digest"):
        audit.report(row.seq, "its metric points do not have its digest")


def _record(row: Row) -> Record:
    texts = {"body": row.body, "pointers": row.pointers or "{}", "series": row.series or "null"}
    return Record(**{**vars(row), **{name: json.loads(text) for name, text in texts.items()}})
