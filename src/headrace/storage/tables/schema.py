"""Decide whether rows fit a table, and bring them into the types that it stores; no I/O."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as types

from headrace.core.errors import DefinitionError, SchemaConflict, UnknownColumn, did_you_mean
from headrace.storage.tables.protocol import Filter

OPERATORS = ("=", "!=", "<", "<=", ">", ">=", "in", "not in")
PLAIN = (
    types.is_boolean,
    types.is_signed_integer,
    types.is_float32,
    types.is_float64,
    types.is_string,
    types.is_binary,
    types.is_date32,
    types.is_decimal128,
)


def stored_rows(rows: pa.Table | pa.RecordBatch, where: str) -> pa.Table:
    """Return rows with dictionaries as their values and large types as plain ones.

    Raises:
        SchemaConflict: a column's type has no exact counterpart in a table, or two columns share a name.
    """
    table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
    if len(set(table.column_names)) != table.num_columns:
        raise SchemaConflict("two columns of one name", where=where, got=table.column_names)
    fields = [pa.field(field.name, stored_type(field, field.type, where), field.nullable) for field in table.schema]
    return table.cast(pa.schema(fields))


def stored_type(field: pa.Field, kind: pa.DataType, where: str) -> pa.DataType:
    """Return the type in which a column's values are stored without loss.

    Raises:
        SchemaConflict: there is none.
    """
    if types.is_dictionary(kind):
        return stored_type(field, kind.value_type, where)
    if types.is_large_string(kind) or types.is_string_view(kind):
        return pa.string()
    if types.is_large_binary(kind) or types.is_binary_view(kind) or types.is_fixed_size_binary(kind):
        return pa.binary()
    if types.is_list(kind) or types.is_large_list(kind):
        return pa.list_(pa.field("element", stored_type(field, kind.value_type, where)))
    if types.is_struct(kind):
        return pa.struct([pa.field(part.name, stored_type(field, part.type, where), part.nullable) for part in kind])
    if any(check(kind) for check in PLAIN) or (types.is_timestamp(kind) and kind.unit == "us" and kind.tz == "UTC"):
        return kind
    raise SchemaConflict(
        "a type that a table cannot hold",
        where=f"{where}, column {field.name}",
        got=kind,
        expected="bool, int8 to int64, float32, float64, string, binary, date32, decimal128, timestamp[us, UTC], "
        "and lists and structs of them",
        next_step="cast the column before it is written",
    )


def ensure_fits(stored: pa.Schema, rows: pa.Schema, where: str) -> None:
    """Raise SchemaConflict if a stored column is missing or has another type, or a new one is not nullable."""
    missing = [name for name in stored.names if name not in rows.names]
    retyped = [
        f"{name}: {rows.field(name).type}, stored as {stored.field(name).type}"
        for name in stored.names
        if name in rows.names and not rows.field(name).type.equals(stored.field(name).type)
    ]
    required = [name for name in rows.names if name not in stored.names and not rows.field(name).nullable]
    causes = (
        ("missing columns", missing),
        ("retyped columns", retyped),
        ("new columns that are not nullable", required),
    )
    for what, names in causes:
        if names:
            raise SchemaConflict(
                f"rows that do not fit the table: {what}",
                where=where,
                got=names,
                expected=f"the stored columns {', '.join(stored.names)}, and new ones nullable",
                next_step="write a new version of the table beside the old one",
            )


def ensure_columns(known: Sequence[str], names: Sequence[str], where: str) -> None:
    """Raise UnknownColumn unless all names are known."""
    for name in names:
        if name not in known:
            raise UnknownColumn("unknown column", where=where, got=name, next_step=did_you_mean(name, known))


def expression(filters: Sequence[Filter], schema: pa.Schema, where: str) -> pc.Expression | None:
    """Return filters as one Arrow expression, None for no filter.

    Raises:
        UnknownColumn: a filter names no column.
        DefinitionError: a comparison is unknown or a value does not fit its column.
    """
    combined = None
    for item in filters:
        part = _comparison(item, schema, where)
        combined = part if combined is None else combined & part
    return combined


def sql(filters: Sequence[Filter], schema: pa.Schema, where: str) -> str:
    """Return filters as a SQL condition, with every name and value quoted.

    Raises:
        UnknownColumn, DefinitionError: as for `expression`.
    """
    parts = []
    for column, operator, value in filters:
        scalar = _scalars((column, operator, value), schema, where)
        kind = schema.field(column).type
        literals = [_literal(item, kind) for item in scalar.to_pylist()]
        right = f"({', '.join(literals)})" if operator in ("in", "not in") else literals[0]
        parts.append(f"{_quoted(column)} {operator} {right}")
    return " AND ".join(parts)


def _comparison(item: Filter, schema: pa.Schema, where: str) -> pc.Expression:
    column, operator, _ = item
    values = _scalars(item, schema, where)
    field = pc.field(column)
    if operator == "in":
        return field.isin(values)
    if operator == "not in":
        return field.is_valid() & ~field.isin(values)
    value = values[0]
    comparisons = {
        "=": field == value,
        "!=": field != value,
        "<": field < value,
        "<=": field <= value,
        ">": field > value,
        ">=": field >= value,
    }
    return comparisons[operator]


def _scalars(item: Filter, schema: pa.Schema, where: str) -> pa.Array:
    """Return a filter's values in the type of its column."""
    column, operator, value = item
    ensure_columns(schema.names, [column], where)
    values = list(value) if operator in ("in", "not in") and not isinstance(value, str) else [value]
    try:
        endless = any(isinstance(item, float) and not math.isfinite(item) for item in values)
        if operator not in OPERATORS or not values or None in values or endless:
            raise pa.ArrowInvalid(f"{column} {operator} {value!r}")
        return pa.array(values, schema.field(column).type)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise DefinitionError(
            "a filter that does not fit its column",
            where=f"{where}, column {column}",
            got=f"{column} {operator} {value!r}",
            expected=f"one of {' '.join(OPERATORS)} and finite values of type {schema.field(column).type}",
        ) from error


def _literal(value: object, kind: pa.DataType) -> str:
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, bytes):
        return f"X'{value.hex()}'"
    text = value.isoformat() if hasattr(value, "isoformat") else str(value)
    quoted = "'" + text.replace("'", "''") + "'"
    if types.is_string(kind):
        return quoted
    if types.is_timestamp(kind):
        return f"arrow_cast({quoted}, 'Timestamp(Microsecond, Some(\"UTC\"))')"
    if types.is_date32(kind):
        return f"arrow_cast({quoted}, 'Date32')"
    return text


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
