"""Turn quarantined rows back into the reveals that they were, exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from headrace.core.errors import DataError
from headrace.core.expressions import Column
from headrace.sources.content import content_of
from headrace.sources.definition import SourceDefinition
from headrace.sources.record import Reveal, RevealBatch
from headrace.sources.run import batch_of
from headrace.sources.values import typed_value
from headrace.validation.record import stated_text


def released(definition: SourceDefinition, rows: Sequence[Mapping[str, Any]]) -> RevealBatch:
    """Return quarantined rows as reveals with their own arrival.

    Raises:
        DataError: a row's payload is not what was quarantined.
    """
    return batch_of(definition, [_reveal(definition, row) for row in rows])


def _reveal(definition: SourceDefinition, row: Mapping[str, Any]) -> Reveal:
    payload = orjson.loads(row["payload"])
    places = tuple(place for place, column in enumerate(definition.columns) if column.name in payload)
    try:
        values = tuple([_value(definition.columns[p], payload[definition.columns[p].name]) for p in places])
    except ValueError as error:
        raise _changed(definition, row, str(error)) from error
    content = content_of(places, values)
    if stated_text(places) == row["stated"] and content != row["content"]:
        raise _changed(definition, row, "another content")
    return Reveal(row["arrival"], row["row_id"], places, values, content)


def _value(column: Column[Any], raw: Any) -> Any:
    """Return what `sources.values.plain` was given."""
    if raw is None:
        return None
    if column.dtype == "float" and isinstance(raw, str):
        return float(raw)
    if column.dtype in ("instant", "date") and isinstance(raw, int):
        return raw
    return typed_value(column, raw, None)


def _changed(definition: SourceDefinition, row: Mapping[str, Any], what: str) -> DataError:
    return DataError(
        f"{definition.name}: a quarantined row is not what was quarantined",
        where=f"quarantined row {row['id']}",
        got=what,
        expected="the values that were stated, of the declared types",
        next_step="if the source's columns changed, deliver the row again and drop it here",
    )
