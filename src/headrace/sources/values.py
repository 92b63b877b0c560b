"""Read values from outside as the declared types, strictly: what does not fit is refused with a reason, never bent."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from headrace.core.errors import HeadraceError
from headrace.core.expressions import Column
from headrace.core.time import DAY, Instant
from headrace.sources.definition import SourceDefinition
from headrace.sources.zones import EARLIEST, LATEST

if TYPE_CHECKING:
    import pyarrow as pa

EXACT_FLOAT = 2**53  # every integer up to here is a float64
POSITION, REASON, PAYLOAD = "position", "reason", "payload"


class EventReader:
    """Read events of one source: plain JSON values in, typed values and problems out.

    `zone` is the zone of timestamps without one; `columns` names declared columns in the data where settings do.
    """

    def __init__(
        self, definition: SourceDefinition, *, zone: str | None = None, columns: Mapping[str, str] | None = None
    ) -> None:
        self.zone = zone
        self.by_name = {name: column for column, name in data_names(definition, columns or {}).items()}
        self.placing = placing_columns(definition)

    def read(self, event: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Return the declared columns' typed values, under their own names, and one problem for each that is none.

        Columns that the event lacks are absent from the result; undeclared ones are passed over.
        """
        values: dict[str, Any] = {}
        problems = []
        for name, raw in event.items():
            column = self.by_name.get(name)
            if column is None:
                continue
            try:
                values[column.name] = None if raw is None else typed_value(column, raw, self.zone)
            except ValueError as error:
                problems.append(f"{column.name}: {error}")
        return values, problems + unplaced(self.placing, values)


def arrow_type(dtype: str) -> pa.DataType:
    """Return the Arrow type in which a column's values travel; instants and dates are int64 microseconds UTC."""
    import pyarrow as pa

    types = {"str": pa.string(), "float": pa.float64(), "bool": pa.bool_()}
    return types.get(dtype, pa.int64())


def data_names(definition: SourceDefinition, columns: Mapping[str, str]) -> dict[Column[Any], str]:
    """Return each column's name in the data: by settings, else `hr.column(name=…)`, else its own."""
    return {c: columns.get(c.name) or c.renamed or c.name for c in definition.columns}


def placing_columns(definition: SourceDefinition) -> tuple[tuple[str, bool], ...]:
    """Return the columns that place a row, by id or in time, and may not be null; True for parts of the row id.

    Where one is null nothing could be revealed that a later check would see, so it is found before.
    """
    telling = {c for moment in definition.moments.values() for c, _ in moment.terms if not c.nullable}
    ids = set(definition.id_columns)
    return tuple((c.name, c in ids) for c in definition.columns if c in ids or c in telling)


def unplaced(placing: tuple[tuple[str, bool], ...], values: Mapping[str, Any]) -> list[str]:
    """Return why a row cannot be placed: [] if it can. An absent part of the row id is as bad as a null one."""
    found = []
    for name, is_id in placing:
        if values.get(name) is None and (is_id or name in values):
            found.append(f"{name}: null, but it {'names' if is_id else 'places'} the row")
    return found


def typed_value(column: Column[Any], raw: Any, zone: str | None) -> Any:
    """Return a JSON value as the column's type.

    An integer is a float where that is exact; an instant is ISO 8601 text or microseconds UTC; nothing else is
    converted.

    Raises:
        ValueError: it is none; the text names what was got (not its value if the column is `pii`).
    """
    value = _READERS[column.dtype](raw, zone)
    if value is None:
        shown = type(raw).__name__ if column.pii else f"{type(raw).__name__} {raw!r:.80}"
        raise ValueError(f"expected {column.dtype}, got {shown}")
    return value


def _text(raw: Any, zone: str | None) -> str | None:
    # A lone surrogate is no text: it has no UTF-8.
    return raw if isinstance(raw, str) and raw.encode("utf-8", "ignore").decode() == raw else None


def _integer(raw: Any, zone: str | None) -> int | None:
    return raw if isinstance(raw, int) and not isinstance(raw, bool) and -(2**63) <= raw < 2**63 else None


def _float(raw: Any, zone: str | None) -> float | None:
    if isinstance(raw, float):
        return raw
    return float(raw) if isinstance(raw, int) and not isinstance(raw, bool) and abs(raw) <= EXACT_FLOAT else None


def _bool(raw: Any, zone: str | None) -> bool | None:
    return raw if isinstance(raw, bool) else None


def _instant(raw: Any, zone: str | None) -> int | None:
    if isinstance(raw, int) and not isinstance(raw, bool):
        return int(raw) if EARLIEST <= raw <= LATEST else None
    if not isinstance(raw, str):
        return None
    try:
        return int(Instant.parse(raw, zone=zone))
    except (HeadraceError, OverflowError):
        return None


def _date(raw: Any, zone: str | None) -> int | None:
    if isinstance(raw, int) and not isinstance(raw, bool):
        return int(raw) if EARLIEST <= raw <= LATEST and raw % DAY == 0 else None
    if not isinstance(raw, str):
        return None
    try:
        return (date.fromisoformat(raw) - date(1970, 1, 1)) // timedelta(microseconds=1)
    except ValueError:
        return None


_READERS = {"str": _text, "int": _integer, "float": _float, "bool": _bool, "instant": _instant, "date": _date}


def plain(column: Column[Any], value: Any) -> Any:
    """Return a typed value as JSON shows it: instants and dates as ISO 8601, NaN and infinities as text."""
    if value is None:
        return None
    if column.dtype in ("instant", "date") and EARLIEST <= value <= LATEST:
        text = Instant(value).isoformat()
        return text[:10] if column.dtype == "date" else text
    if column.dtype == "float" and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value


def refusal_schema() -> pa.Schema:
    """Return the Arrow schema of rows refused before they could become reveals.

    `position` says where the row stood, `payload` shows it as JSON, `raw` is what was received, in the `format` of a
    stream's codec ("cells": a file's row as JSON). `partition`, `offset` (a number as text), `row` (in a payload of many)
    and `arrival` (microseconds UTC) are null for files.
    """
    import pyarrow as pa

    texts = [(name, pa.string()) for name in (POSITION, REASON, PAYLOAD)]
    where = [("partition", pa.int64()), ("offset", pa.string()), ("row", pa.int64()), ("arrival", pa.int64())]
    return pa.schema([*texts, ("raw", pa.binary()), ("format", pa.string()), *where])
