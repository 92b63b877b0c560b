"""Tell which columns of its tables a query reads, from the plan that DuckDB makes of it over empty tables.

Of the optimizer only those steps run that drop columns which nothing above a scan asks for, and that put common table
expressions in their place; none that looks at rows or statistics. So what a scan keeps follows from the text alone, and
a column that it does not keep cannot change a value. Where the plan does not say what a scan keeps, all of it counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.core.expressions import Column
from headrace.core.settings import Settings
from headrace.sources.connections import DuckDbConnection, over_tables
from headrace.sources.definition import SourceDefinition
from headrace.sources.parts import named_tables
from headrace.sources.sql import SHOWN, query_of
from headrace.sources.values import arrow_type, data_names

if TYPE_CHECKING:
    import pyarrow as pa

_KEPT = {"unused_columns", "cte_inlining"}
_WITHOUT_TABLE = {"CTE_SCAN", "REC_CTE_SCAN", "DELIM_SCAN", "DUMMY_SCAN", "COLUMN_DATA_SCAN"}


def columns_queried(definition: SourceDefinition, columns: Iterable[Column[Any]]) -> list[Column[Any]]:
    """Return the columns of its tables that some columns of a source follow from, through the query that fills it.

    With a column goes what says when it is known. The row ids of every table that is read count too: they say which rows
    there are, and in which order the query meets them.
    """
    import pyarrow as pa

    feeds = {feed.name: feed for feed in definition.feeds}
    fields = {n: [(c.name, SHOWN.get(c.dtype, arrow_type(c.dtype))) for c in f.columns] for n, f in feeds.items()}
    wanted = frozenset(c.name for c in (*columns, *definition.id_columns))
    text = query_of(definition).text
    scanned = columns_scanned(text, wanted, tuple((name, pa.schema(one)) for name, one in fields.items()))
    found: dict[Column[Any], None] = {}
    for name, kept in scanned.items():
        feed, ids = feeds[name], set(feeds[name].id_columns)
        read = [c for c in feed.columns if c.name in kept or c in ids]
        found |= dict.fromkeys([*read, *(inner for c in read for inner, _ in feed.moments[c].terms)])
    return list(found)


def columns_of_text(definition: SourceDefinition, settings: Settings, folder: Path) -> dict[str, list[str]]:
    """Return by declared column those of other sources that it follows from, `Raw.amount`, where settings fill it by SQL.

    Reads the schemas of the files that `[sources.NAME] sql` names and no row. A query that a database answers tells
    nothing here.

    Raises:
        ConfigurationError: a source that the text names has no files.
        DataError: there are no such files, or they cannot be read.
    """
    where = settings.sources.get(definition.name)
    if where is None or where.sql is None or where.database is not None:
        return {}
    tables = tuple((n, table.schema) for n, table in named_tables(definition, where, settings, folder).items())
    found = {}
    for column, name in data_names(definition, where.columns).items():
        scanned = columns_scanned(where.sql.strip().rstrip(";"), frozenset({name}), tables)
        found[str(column)] = sorted(f"{table}.{one}" for table, kept in scanned.items() for one in kept)
    return found


@lru_cache(maxsize=256)
def columns_scanned(
    text: str, wanted: frozenset[str], tables: tuple[tuple[str, pa.Schema], ...]
) -> Mapping[str, frozenset[str]]:
    """Return, by table, the columns that `wanted` columns of a query's rows depend on, and those that decide which rows come.

    Tables that the query does not read are absent; one of which it counts only rows is there with every column.
    """
    import duckdb

    whole = {name: frozenset(schema.names) for name, schema in tables}
    empty = {f"empty {name}": schema.empty_table() for name, schema in tables}
    with over_tables(empty, without=_optimizers() - _KEPT) as connection:
        try:
            leaves = list(_leaves(_plan(connection, text, wanted, whole)))
        except duckdb.Error:  # no plan, as of a text in another database's SQL
            return whole
    found: dict[str, frozenset[str]] = {}
    for _, scan in leaves:
        name = scan.get("Table", "").removeprefix("memory.main.")
        if name in whole:
            kept = scan.get("Projections") or whole[name]  # older ones say nothing where they keep all
            kept = frozenset([kept] if isinstance(kept, str) else kept)
            certain = kept <= whole[name] and not scan.get("Filters")
            found[name] = found.get(name, frozenset()) | (kept if certain else whole[name])
    certain = all("Table" in scan or name in _WITHOUT_TABLE for name, scan in leaves)
    return {name: found.get(name, whole[name]) for name in whole if name in found or not certain}


def _plan(connection: DuckDbConnection, text: str, wanted: Iterable[str], tables: Iterable[str]) -> Any:
    """Return the plan of a query over tables without rows; those that were given empty are made tables, which plans name."""
    for name in tables:
        empty = connection.quoted(f"empty {name}")
        connection.connection.execute(f"CREATE TABLE {connection.quoted(name)} AS FROM {empty}")
    columns = ", ".join(map(connection.quoted, sorted(wanted)))
    asked = f"EXPLAIN (FORMAT JSON) SELECT {columns} FROM ({text}\n) headrace_rows"
    ((_, told),) = connection.connection.execute(asked).fetchall()
    return json.loads(told)


def _leaves(nodes: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the operators that read nothing of others, by name, with what the plan says of them."""
    for node in nodes:
        yield from _leaves(node["children"])
        if not node["children"]:
            yield node["name"].strip(), node["extra_info"]


@cache
def _optimizers() -> frozenset[str]:
    """Return the names of all steps of this DuckDB's optimizer."""
    with over_tables({}) as connection:
        found = connection.connection.execute("SELECT name FROM duckdb_optimizers()").fetchall()
        return frozenset(name for (name,) in found)
