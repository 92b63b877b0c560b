"""Read rows by SQL: text that only reads, in batches, from a cursor's position on where there is one."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from functools import cached_property
from typing import Any
from uuid import UUID

import pyarrow as pa

from headrace.core.errors import ConfigurationError, DataError, HeadraceError, did_you_mean
from headrace.core.expressions import Column
from headrace.core.settings import LimitSettings, SourceSettings
from headrace.core.time import Instant
from headrace.sources.connections import Connection
from headrace.sources.cursors import earlier, position_of, value_of
from headrace.sources.definition import SourceDefinition
from headrace.sources.readers import Conformer, Extract, Raw, RawRows, naive_timestamps, numbered, wanted_names
from headrace.sources.values import data_names

_QUIET = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|/\*.*?\*/", re.DOTALL)
_READS = re.compile(r"\s*\(*\s*(select|with|from|values|table)\b", re.IGNORECASE)
CELL_BYTES = 64  # about, of a plain value in memory
_PASSWORD = re.compile(r"://[^/@\s]*@")


@dataclass(frozen=True)
class QueryPart:
    """Read what a table or a query of a database gives; `since` is the position that an earlier reading reached.

    Every method raises DataError where the query fails, SchemaChanged where a declared column is missing or of another
    type, and ConfigurationError where the text does more than read.
    """

    definition: SourceDefinition
    settings: SourceSettings
    limits: LimitSettings
    connect: Callable[[], AbstractContextManager[Connection]]
    since: str | None = None
    name: str = "query"
    mark: str = ""

    @property
    def where(self) -> str:
        """Return what messages name."""
        return f"[sources.{self.definition.name}] {'sql' if self.settings.sql else 'table'}"

    @cached_property
    def header(self) -> list[str]:
        """Return the names of the query's columns."""
        with self._asking() as connection:
            return connection.header(self._text(connection))

    def extracts(self, absent_ok: Collection[str] = ()) -> Iterator[Extract]:
        """Yield the query's rows, in the order of the cursor where there is one."""
        conformer = Conformer(self.definition, self.settings, self.header, self.where, absent_ok=absent_ok)
        numbers, reached = numbered(), self.since
        with self._asking() as connection:
            query, since = self._query(connection)
            for batch in connection.batches(query, since, self.limits.read_rows):
                found = self._extract(conformer, batch, numbers)
                reached = self._reached(batch) or reached
                yield Extract(**(vars(found) | {"reached": reached}))
        conformer.finish()

    def raw(self) -> RawRows:
        """Yield the query's rows as they stand, in the database's own order."""
        with self._asking() as connection:
            for batch in connection.batches(self._text(connection), (), self.limits.read_rows):
                if isinstance(batch, pa.RecordBatch):
                    yield Raw(pa.Table.from_batches([without_extensions(batch)]), batch.nbytes)
                else:
                    yield Raw(batch, CELL_BYTES * sum(map(len, batch)))

    def _extract(self, conformer: Conformer, batch: Any, numbers: Any) -> Extract:
        if isinstance(batch, pa.RecordBatch):
            return conformer.table(pa.Table.from_batches([without_extensions(batch)]), numbers(batch.num_rows))
        columns = {name: column for column, name in data_names(self.definition, self.settings.columns).items()}
        rows = [{name: self._told(columns.get(name), value) for name, value in row.items()} for row in batch]
        return conformer.rows(rows, numbers(len(rows)), {})

    def _text(self, connection: Connection) -> str:
        if self.settings.table is not None:
            return "SELECT * FROM " + ".".join(connection.quoted(part) for part in self.settings.table.split("."))
        text = str(self.settings.sql).strip().rstrip(";")
        if not only_reads(text):
            raise ConfigurationError(
                f"{self.definition.name}: the query does more than read",
                where=self.where,
                got=text[:80],
                expected="one SELECT",
            )
        return text

    def _query(self, connection: Connection) -> tuple[str, tuple[Any, ...]]:
        """Return the query for the wanted columns from the cursor's position on, and that position."""
        wanted = wanted_names(self.definition, self.settings)
        columns = ", ".join(connection.quoted(name) for name in self.header if name in wanted)
        query = f"SELECT {columns} FROM ({self._text(connection)}\n) headrace_rows"
        if self.settings.cursor is None:
            return query, ()
        if self.settings.cursor not in self.header:
            raise ConfigurationError(
                f"{self.definition.name}: no such column for the cursor",
                where=f"[sources.{self.definition.name}] cursor",
                got=self.settings.cursor,
                next_step=did_you_mean(self.settings.cursor, self.header),
            )
        cursor = connection.quoted(self.settings.cursor)
        if self.since is None:
            return f"{query} ORDER BY {cursor}", ()
        since = earlier(value_of(self.since), self.settings.cursor_overlap)
        # Rows without a position are read every time: no comparison would ever find them.
        return f"{query} WHERE {cursor} >= {connection.placeholder} OR {cursor} IS NULL ORDER BY {cursor}", (since,)

    def _reached(self, batch: Any) -> str | None:
        name = self.settings.cursor
        if name is None:
            return None
        arrow = isinstance(batch, pa.RecordBatch)
        values = (
            batch.column(name).drop_null().slice(max(0, batch.num_rows - batch.column(name).null_count - 1)).to_pylist()
            if arrow
            else [row[name] for row in batch if row[name] is not None]
        )
        return position_of(values[-1], self.where) if values else None

    def _told(self, column: Column[Any] | None, raw: Any) -> Any:
        """Return a driver's value as JSON has it, so that one rule reads both."""
        if isinstance(raw, datetime):
            return self._instant(raw)
        if isinstance(raw, (date, UUID)):
            return str(raw)
        if isinstance(raw, Decimal) and raw.is_finite():
            whole = raw == raw.to_integral_value() and (column is None or column.dtype == "int" or not _fraction(raw))
            return int(raw) if whole else float(raw)
        if column is not None and column.dtype == "bool" and raw in (0, 1):
            return bool(raw)  # SQLite has no others
        if column is not None and column.dtype == "instant" and isinstance(raw, str) and self.settings.zone is None:
            self._refuse_naive(raw)
        return raw

    def _instant(self, raw: datetime) -> Any:
        if raw.tzinfo is not None:
            return int(Instant.of(raw))
        if self.settings.zone is None:
            raise naive_timestamps(self.definition, self.where, str(raw))
        return raw.isoformat()

    def _refuse_naive(self, text: str) -> None:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            return
        if moment.tzinfo is None and len(text) > 10:
            raise naive_timestamps(self.definition, self.where, text)

    @contextmanager
    def _asking(self) -> Iterator[Connection]:
        """Connect, and turn what goes wrong into an error that shows no secret."""
        try:
            with self.connect() as connection:
                yield connection
        except HeadraceError:
            raise
        except Exception as error:  # every driver has exceptions of its own
            if not _of_a_driver(error):
                raise
            raise DataError(
                f"{self.definition.name}: the query failed",
                where=self.where,
                got=self._masked(str(error).splitlines()[0] if str(error) else type(error).__name__),
                expected="rows",
                next_step=f"check [sources.{self.definition.name}] database and {'sql' if self.settings.sql else 'table'}",
            ) from None  # the cause may hold the URL and its password

    def _masked(self, text: str) -> str:
        for secret in _secrets(self.settings.database or ""):
            text = text.replace(secret, "…")
        return _PASSWORD.sub("://…@", text)


def without_quotes(text: str) -> str:
    """Return SQL without quoted texts and names, and without comments."""
    return _QUIET.sub("", text)


def only_reads(text: str) -> bool:
    """Tell whether a text is one statement that only reads."""
    told = without_quotes(text)
    return ";" not in told and _READS.match(told) is not None


def without_extensions(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return extension types as what they are stored as, numbers told as text as decimals."""
    arrays = []
    for values in batch.columns:
        if isinstance(values.type, pa.BaseExtensionType):
            numeric = "numeric" in str(values.type)
            values = values.storage.cast(pa.float64()) if numeric else values.storage
        arrays.append(values)
    return pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


def _secrets(url: str) -> list[str]:
    found = re.search(r"://[^:/@\s]*:([^@\s]+)@", url)
    return [url, found[1]] if found else ([url] if "://" in url else [])


def _of_a_driver(error: Exception) -> bool:
    """Tell whether an exception comes from a database's driver rather than from our own mistake."""
    ours = (TypeError, KeyError, IndexError, AttributeError, AssertionError, NameError)
    return not isinstance(error, ours)


def _fraction(value: Decimal) -> bool:
    exponent = value.as_tuple().exponent
    return isinstance(exponent, int) and exponent < 0
