"""Run checks that are written in SQL or as functions: read only, over what a delivery holds and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from headrace.core.errors import DefinitionError, UserCodeError
from headrace.sources.connections import over_tables
from headrace.sources.definition import SourceDefinition
from headrace.validation.definition import RowCheck

if TYPE_CHECKING:
    import pyarrow as pa

DATA = "data"  # the name of the table that queries read


def refuse_unreadable(by: str | Callable[[Any], Any], where: str) -> None:
    """Refuse an SQL text that is anything but one query.

    Raises:
        DefinitionError: it does not parse, or would change something.
    """
    import duckdb

    if not isinstance(by, str):
        return
    try:
        found = duckdb.extract_statements(by)
        kinds = [statement.type for statement in found]
    except duckdb.Error as error:
        raise DefinitionError("a check's SQL does not parse", where=where, got=str(error).splitlines()[0]) from error
    if kinds != [duckdb.StatementType.SELECT]:
        raise DefinitionError(
            "a check's SQL reads, and does nothing else",
            where=where,
            got=by,
            expected=f"one SELECT over the table {DATA}",
        )


def condition_of(check: RowCheck, definition: SourceDefinition) -> Callable[[pa.Table], pa.ChunkedArray]:
    """Return what says of each row of a table whether it meets a check.

    Raises:
        DefinitionError: the check's SQL is no condition.
    """
    held = check.holds
    if isinstance(held, str):
        query = f"select cast(({held}) as boolean) as holds from {DATA}"
        refuse_unreadable(query, check.location)
        return lambda table: _asked(query, table, definition, str(check), check.location)["holds"]
    return lambda table: _called(held, table, definition, check)


def measured_by(by: str | Callable[[Any], Any], table: pa.Table, definition: SourceDefinition, where: str) -> float:
    """Return the one number by which a query or a function measures a delivery; NaN where it says null.

    Raises:
        UserCodeError: it failed, or returned something else than one number.
    """
    if isinstance(by, str):
        rows = _asked(by, table, definition, by, where)
        one = rows.num_rows == 1 and rows.num_columns == 1
        value = rows.column(0)[0].as_py() if one else f"{rows.num_rows} rows of {rows.num_columns} columns"
    else:
        value = _guarded(by, shown(table, definition), definition, by.__name__, where)
    if value is None:
        return math.nan
    try:
        return value if isinstance(value, int) else float(value)
    except (TypeError, ValueError) as error:
        raise UserCodeError(
            f"{definition.name}: a measure that is no number", where=where, got=value, expected="one number"
        ) from error


def shown(table: pa.Table, definition: SourceDefinition) -> pa.Table:
    """Return the declared columns as people expect them: instants and dates as timestamps in UTC."""
    import pyarrow as pa

    columns = {}
    for column in definition.columns:
        if column.name in table.column_names:
            values = table[column.name]
            columns[column.name] = values.cast(pa.timestamp("us")) if column.dtype in ("instant", "date") else values
    return pa.table(columns)


def _asked(query: str, table: pa.Table, definition: SourceDefinition, name: str, where: str) -> pa.Table:
    """Run a query in a database of its own, which can reach neither files nor the network."""
    import duckdb

    try:
        with over_tables({DATA: shown(table, definition)}, repeatable=True) as database:
            return database.connection.sql(query).to_arrow_table()
    except duckdb.Error as error:
        raise UserCodeError(
            f"{definition.name}: a check's SQL failed",
            where=where,
            got=str(error).splitlines()[0],
            expected=name,
        ) from error


def _called(
    function: Callable[[Any], Any], table: pa.Table, definition: SourceDefinition, check: RowCheck
) -> pa.ChunkedArray:
    import pyarrow as pa

    said = _guarded(function, shown(table, definition), definition, str(check), check.location)
    answers = said if isinstance(said, (pa.Array, pa.ChunkedArray)) else pa.array(said)
    if not pa.types.is_boolean(answers.type) or len(answers) != table.num_rows:
        raise UserCodeError(
            f"{definition.name}: a check's function did not answer for each row",
            where=check.location,
            got=f"{len(answers)} of {answers.type}",
            expected=f"{table.num_rows} truth values",
        )
    return answers if isinstance(answers, pa.ChunkedArray) else pa.chunked_array([answers])


def _guarded(
    function: Callable[[Any], Any], table: pa.Table, definition: SourceDefinition, name: str, where: str
) -> Any:
    try:
        return function(table)
    except Exception as error:
        raise UserCodeError(
            f"{definition.name}: a check's function raised {type(error).__name__}",
            where=where,
            got=error,
            expected=name,
        ) from error
