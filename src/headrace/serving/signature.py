"""Read request rows: typed, complete, in range; each mistake names its column and costs only its own row."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from headrace.core.errors import DataError, DefinitionError
from headrace.core.expressions import Column
from headrace.core.time import DAY, Instant
from headrace.features.plan import DatasetPlan
from headrace.sources.definition import describe
from headrace.sources.values import EXACT_FLOAT
from headrace.sources.zones import EARLIEST, LATEST

INT64 = 2**63
TEXT_LIMIT = 10_000
NAME_LIMIT = 80  # an unknown name is compared and shown no further: comparing is quadratic
EXPECTED = {
    "instant": "ISO 8601 with a zone, or microseconds since 1970",
    "date": "ISO 8601, as 2013-07-01",
    "str": f"text of at most {TEXT_LIMIT} characters",
    "int": "an integer of 64 bits",
    "float": "a finite number",
    "bool": "true or false",
}


class Signature:
    """Turn JSON rows into rows of the rows' source; `needed` must be there, other columns known by then may be."""

    def __init__(self, plan: DatasetPlan, needed: Sequence[Column[Any]]) -> None:
        self.columns = plan.rows.columns
        self.index = plan.rows.index
        self.needed = tuple(dict.fromkeys([*plan.rows.id_columns, *needed]))
        self.required = frozenset(c for c in self.needed if not c.nullable)
        self.known = {c.name: c for c in plan.request}
        self.patterns = {c.name: re.compile(c.matches) for c in plan.request if c.matches is not None}

    def schema(self) -> list[dict[str, Any]]:
        """Return the columns that a request brings, as plain JSON."""
        return [describe(c) | _range(c) | {"required": c in self.required} for c in self.known.values()]

    def decode(self, row: Any) -> tuple[Any, ...]:
        """Return a row's values in the order of the source's columns; None where nothing was given.

        Raises:
            DataError: a column is missing, unknown, of another type or out of its range.
        """
        if not isinstance(row, Mapping):
            raise DataError("a row must be an object", got=type(row).__name__, expected='{"column": value, …}')
        for name in row:
            if name not in self.known:
                short = str(name)[:NAME_LIMIT]
                close = difflib.get_close_matches(short, self.known, n=1)
                hint = f"did you mean {close[0]}?" if close else "leave it out"
                raise DataError(f"unknown column {short}", got=short, expected=sorted(self.known), next_step=hint)
        values: list[Any] = [None] * len(self.columns)
        for name, column in self.known.items():
            given = row.get(name)
            if given is None:
                if column in self.required:
                    raise DataError(f"{name} is missing", got="nothing", expected=column.dtype)
                continue
            values[self.index[column]] = self._value(column, given)
        return tuple(values)

    def _value(self, column: Column[Any], given: Any) -> Any:
        value = _typed(column, given)
        pattern = self.patterns.get(column.name)
        outside = (column.ge is not None and value < column.ge) or (column.le is not None and value > column.le)
        foreign = column.allowed is not None and value not in column.allowed
        if outside or foreign or (pattern is not None and not pattern.fullmatch(value)):
            shown = "a value that is not shown" if column.pii else f"{value!r:.80}"
            raise DataError(f"{column.name} is out of its range", got=shown, expected=str(_range(column)))
        return value


def _range(column: Column[Any]) -> dict[str, Any]:
    """Return the bounds that a column declares, by name; a bound of 0 is one."""
    isin = None if column.allowed is None else list(column.allowed)
    bounds = {"ge": column.ge, "le": column.le, "matches": column.matches, "isin": isin}
    return {name: bound for name, bound in bounds.items() if bound is not None}


def _typed(column: Column[Any], given: Any) -> Any:
    """Return a JSON value as the column's type.

    Raises:
        DataError: it is of another type, not finite, too large, or an instant without a zone.
    """
    value = _READERS[column.dtype](column, given)
    if value is None:
        shown = type(given).__name__ if column.pii else f"{type(given).__name__} {given!r:.60}"
        raise DataError(f"{column.name} is of another type", got=shown, expected=EXPECTED[column.dtype])
    return value


def _text(column: Column[Any], given: Any) -> str | None:
    return given if isinstance(given, str) and len(given) <= TEXT_LIMIT else None


def _bool(column: Column[Any], given: Any) -> bool | None:
    return given if isinstance(given, bool) else None


def _float(column: Column[Any], given: Any) -> float | None:
    if isinstance(given, float):
        return given if math.isfinite(given) else None
    return float(given) if _whole(given, -INT64, 2 * INT64) else None


def _int(column: Column[Any], given: Any) -> int | None:
    # 3.0 is 3: JavaScript and pandas write integers so; past 2^53 a float no longer says which integer was meant.
    if isinstance(given, float):
        return int(given) if abs(given) <= EXACT_FLOAT and given.is_integer() else None
    return int(given) if _whole(given, -INT64, INT64) else None


def _instant(column: Column[Any], given: Any) -> int | None:
    try:
        return _moment(given)
    except DefinitionError as error:
        got = None if column.pii else given
        raise DataError(f"{column.name}: {error.what}", got=got, expected=EXPECTED["instant"]) from error


def _moment(given: Any) -> int | None:
    """Return an instant's microseconds; None if it is of another type or out of range.

    Raises:
        DefinitionError: it is text that says no instant, or one without a zone.
    """
    if not isinstance(given, str):
        return int(given) if _whole(given, EARLIEST, LATEST + 1) else None
    if len(given) > 40:
        return None
    found = int(Instant.parse(given))
    return found if EARLIEST <= found <= LATEST else None


def stated(given: Any) -> int | None:
    """Return the moment that a request states, in microseconds UTC; None where it states none.

    Raises:
        DataError: what it states is no instant.
    """
    if given is None:
        return None
    try:
        found = _moment(given)
    except DefinitionError as error:
        raise DataError(f"t: {error.what}", expected=EXPECTED["instant"], next_step="leave t out") from error
    if found is None:
        raise DataError("t is no instant", expected=EXPECTED["instant"], next_step="leave t out")
    return found


def _date(column: Column[Any], given: Any) -> int | None:
    found = _instant(column, given)
    return found if found is not None and found % DAY == 0 else None


def _whole(given: Any, low: int, high: int) -> bool:
    """Tell whether a value is an integer, not a bool, from `low` to below `high`."""
    return isinstance(given, int) and not isinstance(given, bool) and low <= given < high


_READERS = {"str": _text, "int": _int, "float": _float, "bool": _bool, "instant": _instant, "date": _date}
