"""Read request rows: typed, complete, in range; each mistake names its column and costs only its own row."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from headrace.core.errors import DataError, DefinitionError
from headrace.core.expressions import Column
from headrace.core.time import Instant
from headrace.features.plan import DatasetPlan
from headrace.sources.definition import describe

INT64 = 2**63
TEXT_LIMIT = 10_000


class Signature:
    """Turn JSON rows into rows of the rows' source; `needed` must be there, other columns known by then may be."""

    def __init__(self, plan: DatasetPlan, needed: Sequence[Column[Any]]) -> None:
        self.columns = plan.rows.columns
        self.index = plan.rows.index
        self.needed = tuple(dict.fromkeys([*plan.rows.id_columns, *needed]))
        self.known = {c.name: c for c in plan.request}
        self.patterns = {c.name: re.compile(c.matches) for c in plan.request if c.matches is not None}

    def schema(self) -> list[dict[str, Any]]:
        """Return the columns that a request brings, as plain JSON."""
        return [describe(c) | {"required": c in set(self.needed) and not c.nullable} for c in self.known.values()]

    def decode(self, row: Any) -> tuple[Any, ...]:
        """Return a row's values in the order of the source's columns; None where nothing was given.

        Raises:
            DataError: a column is missing, unknown, of another type or out of its range.
        """
        if not isinstance(row, Mapping):
            raise DataError("a row must be an object", got=type(row).__name__, expected='{"column": value, …}')
        for name in row:
            if name not in self.known:
                close = difflib.get_close_matches(str(name), self.known, n=1)
                hint = f"did you mean {close[0]}?" if close else "leave it out"
                raise DataError(
                    f"unknown column {name!s:.80}", got=str(name)[:80], expected=sorted(self.known), next_step=hint
                )
        values: list[Any] = [None] * len(self.columns)
        for name, column in self.known.items():
            given = row.get(name)
            if given is None:
                if column in set(self.needed) and not column.nullable:
                    raise DataError(f"{name} is missing", got="nothing", expected=column.dtype)
                continue
            values[self.index[column]] = self._value(column, given)
        return tuple(values)

    def _value(self, column: Column[Any], given: Any) -> Any:
        value = _typed(column, given)
        pattern = self.patterns.get(column.name)
        outside = (column.ge is not None and value < column.ge) or (column.le is not None and value > column.le)
        foreign = column.isin is not None and value not in column.isin
        if outside or foreign or (pattern is not None and not pattern.fullmatch(value)):
            allowed = {k: v for k, v in describe(column).items() if k in ("ge", "le", "matches", "isin")}
            raise DataError(f"{column.name} is out of its range", got=f"{value!r:.80}", expected=str(allowed))
        return value


def _typed(column: Column[Any], given: Any) -> Any:
    """Return a JSON value as the column's type.

    Raises:
        DataError: it is of another type, not finite, or an instant without a zone.
    """
    number = isinstance(given, (int, float)) and not isinstance(given, bool)
    if column.dtype == "str" and isinstance(given, str) and len(given) <= TEXT_LIMIT:
        return given
    if column.dtype == "bool" and isinstance(given, bool):
        return given
    if column.dtype == "float" and number and math.isfinite(given):
        return float(given)
    if column.dtype == "int" and number and given == int(given) and -INT64 <= given < INT64:
        return int(given)
    if column.dtype in ("instant", "date"):
        if isinstance(given, int) and number and -INT64 <= given < INT64:
            return given
        if isinstance(given, str) and len(given) <= 40:
            try:
                return int(Instant.parse(given))
            except DefinitionError as error:
                raise DataError(f"{column.name}: {error.what}", got=given, expected=error.expected) from error
    expected = "ISO 8601 with a zone, or microseconds" if column.dtype == "instant" else column.dtype
    raise DataError(f"{column.name} is of another type", got=f"{type(given).__name__} {given!r:.60}", expected=expected)
