"""Fill a source with the rows of a query over other sources' tables: SQL that reads nothing else and repeats itself.

The query runs in a DuckDB of its own that holds the named tables alone, without files, network or settings, in one thread:
the same tables give the same bits. Texts that read a clock or draw numbers are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from itertools import chain

import pyarrow as pa

from headrace.core.errors import ConfigurationError, DataError, DefinitionError, InternalError
from headrace.core.settings import LimitSettings, SourceSettings
from headrace.core.time import DAY
from headrace.sources.connections import over_tables
from headrace.sources.definition import Query, SourceDefinition
from headrace.sources.plan import expand
from headrace.sources.queries import only_reads, without_extensions, without_quotes
from headrace.sources.readers import Conformer, numbered
from headrace.sources.record import RevealBatch
from headrace.sources.run import place
from headrace.sources.values import arrow_type

SETTINGS = SourceSettings(zone="UTC")  # local times are UTC's, as in the query's own connection
CLOCKS = {"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"}  # need no parentheses
SAMPLES = re.compile(r"\b(tablesample|using\s+sample)\b", re.IGNORECASE)
SHOWN = {"instant": pa.timestamp("us", "UTC"), "date": pa.date32()}


def query_of(definition: SourceDefinition) -> Query:
    """Return the query that fills a source.

    Raises:
        InternalError: none does.
    """
    if definition.query is None:
        raise InternalError("a source with rows of its own has no query", got=definition.name)
    return definition.query


def query_reveals(definition: SourceDefinition, tables: Mapping[str, pa.Table]) -> RevealBatch:
    """Return the reveals of the rows that a source's query gives for its feeds' rows; each arrives at its moment.

    `tables` holds by source name the columns that its class declares, as `sources.values.arrow_type` has them.

    Raises:
        DataError: the query fails on these rows, or a row of it has no id, no moment or a value of another type.
        SchemaChanged: a declared column is missing, of another type or there twice.
    """
    query, found, refused = query_of(definition), [], []
    where, numbers = f"the query at {query.location}", numbered()
    shown = {feed.name: _readable(feed, tables[feed.name]) for feed in definition.feeds}
    with _asking(definition, query), over_tables(shown, repeatable=True) as connection:
        conformer = Conformer(definition, SETTINGS, connection.header(query.text), where)
        types = pa.RecordBatch.from_pylist([], connection.schema(query.text))  # told even if no row comes
        for batch in chain([types], connection.batches(query.text, (), LimitSettings().read_rows)):
            table = pa.Table.from_batches([without_extensions(batch)])
            rows, bad = place(definition, conformer.table(table, numbers(table.num_rows)), where)
            found.append(rows)
            refused += bad.to_pylist()
        conformer.finish()
    if refused:
        raise DataError(
            f"{definition.name}: its query gives {len(refused)} rows that cannot be placed",
            where=refused[0]["position"],
            got=refused[0]["reason"],
            expected=f"an id ({', '.join(c.name for c in definition.id_columns)}), its moment and values of their types",
            next_step="leave such rows out in the query: WHERE … IS NOT NULL",
        )
    empty = pa.table({c.name: pa.nulls(0, arrow_type(c.dtype)) for c in definition.columns})
    return expand(definition, pa.concat_tables(found) if found else empty)


def refuse_wrong_query(definition: SourceDefinition) -> None:
    """Refuse, before any data is read, a query that fails on empty tables or does not fill the declared columns.

    Raises:
        DefinitionError: it is no single SELECT, reads a clock or draws numbers, names what no table has, or gives
            columns that are not as declared.
    """
    query = query_of(definition)
    text = query.text
    if not only_reads(text):
        raise _wrong(definition, query, "does more than read", text[:80], "one SELECT, without a semicolon")
    told = without_quotes(text).lower()
    called = {name for name in re.findall(r"([a-z_]\w*)\s*\(", told) if name in _unsteady()}
    called |= CLOCKS & {*re.findall(r"\w+", told)} | {found.lower() for found in SAMPLES.findall(told)}
    if called:
        raise _wrong(definition, query, "would not give the same rows again", sorted(called), "columns of the tables")
    nothing = {
        feed.name: pa.table({c.name: pa.nulls(0, arrow_type(c.dtype)) for c in feed.columns})
        for feed in definition.feeds
    }
    try:
        query_reveals(definition, nothing)
    except (DataError, ConfigurationError) as error:
        raise _wrong(definition, query, error.what, error.got, error.expected) from error


@cache
def _unsteady() -> frozenset[str]:
    """Return the functions of DuckDB that may give something else the next time."""
    with over_tables({}) as connection:
        text = "SELECT DISTINCT function_name FROM duckdb_functions() WHERE stability <> 'CONSISTENT'"
        return frozenset(name for batch in connection.batches(text, (), 1_000) for name in batch[0].to_pylist())


def _readable(feed: SourceDefinition, table: pa.Table) -> pa.Table:
    """Return rows as SQL reads them: instants as timestamps of UTC, days as dates."""
    found = {}
    for c in feed.columns:
        values = table[c.name]
        if c.dtype == "date":
            values = pa.chunked_array([_days(chunk) for chunk in values.chunks], pa.date32())
        found[c.name] = values.cast(SHOWN[c.dtype]) if c.dtype == "instant" else values
    return pa.table(found)


def _days(instants: pa.Array) -> pa.Array:
    import pyarrow.compute as pc

    return pc.divide(instants, DAY).cast(pa.int32()).cast(pa.date32())


@contextmanager
def _asking(definition: SourceDefinition, query: Query) -> Iterator[None]:
    """Turn what DuckDB raises into an error of the data that says where the query stands."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        lines = [line for line in str(error).splitlines() if line.strip() and not set(line) <= {" ", "^"}]
        raise DataError(
            f"{definition.name}: its query failed",
            where=f"the query at {query.location}",
            got=" ".join(lines[:3]).replace("DESCRIBE ", "", 1),
            expected="columns of " + ", ".join(feed.name for feed in definition.feeds),
            next_step="correct the query, or the rows that it stumbles over",
        ) from error


def _wrong(definition: SourceDefinition, query: Query, what: str, got: object, expected: object) -> DefinitionError:
    told = what if what.startswith(definition.name) else f"{definition.name}: its query {what}"
    return DefinitionError(
        told, where=query.location, got=got, expected=expected, next_step="correct the text of hr.sql(…)"
    )
