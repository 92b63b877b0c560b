"""Take the constants that users write into expressions, and refuse what no lowering could hold."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import date, datetime
from typing import Any

from headrace.core.errors import DefinitionError
from headrace.core.expressions.zones import EARLIEST, LATEST
from headrace.core.location import user_location
from headrace.core.time import DAY, EPOCH, Instant

LEAST, MOST = -(2**63), 2**63 - 1
MAX_PLACE = 2**31 - 1  # of a code point in a text: no text is longer
_KINDS: tuple[tuple[type, str], ...] = (
    (type(None), "null"),
    (bool, "bool"),
    (Instant, "instant"),
    (int, "int"),
    (float, "float"),
    (str, "str"),
    (date, "date"),
)


def plain(value: object) -> Any:
    """Return a constant as one of the types that expressions know; an aware datetime is an instant.

    Raises:
        DefinitionError: it is of another type, or nothing that a column could hold.
    """
    if isinstance(value, datetime):
        return Instant.of(value)
    if isinstance(value, str):
        return text(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Instant):
        return _within(value, EARLIEST, LATEST, "an instant of the years 1 to 9999")
    if isinstance(value, int) and not isinstance(value, bool):
        return _within(int(value), LEAST, MOST, "an integer of 64 bits")
    if value is None or isinstance(value, (bool, date)):
        return value
    raise DefinitionError(
        "not an expression or a constant", where=user_location(), got=f"{type(value).__name__} {value}"
    )


def _within(value: int, low: int, high: int, expected: str) -> int:
    if low <= value <= high:
        return value
    raise DefinitionError("a constant that no column holds", where=user_location(), got=int(value), expected=expected)


def text(value: str) -> str:
    """Return a text constant.

    Raises:
        DefinitionError: it is no text, or has lone surrogates and so no UTF-8.
    """
    if not isinstance(value, str) or value.encode("utf-8", "ignore").decode() != value:
        raise DefinitionError("not a text", where=user_location(), got=ascii(value), expected="a constant str")
    return str(value)


def place_in_text(value: int) -> int:
    """Return a number of code points.

    Raises:
        DefinitionError: it is negative, or larger than any text.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_PLACE:
        raise DefinitionError(
            "not a place in a text", where=user_location(), got=repr(value), expected=f"an int from 0 to {MAX_PLACE}"
        )
    return value


def listed(values: Iterable[Any]) -> tuple[Any, ...]:
    """Return the constants of a list, each once.

    Raises:
        DefinitionError: there is none, one is None or no constant, or a text was given for the list.
    """
    found = [] if isinstance(values, str) else [plain(value) for value in values]
    if not found or any(value is None for value in found):
        raise DefinitionError(
            "isin takes a list of constants", where=user_location(), got=repr(values), expected='["a", "b"]'
        )
    return tuple({repr(value): value for value in found}.values())


def kind_of(value: object) -> str:
    """Return the type of a constant by its name in expressions."""
    return next(name for kind, name in _KINDS if isinstance(value, kind))


def stored(value: Any) -> Any:
    """Return a constant as columns hold it: instants and dates are microseconds."""
    if isinstance(value, date):
        return (value.toordinal() - EPOCH.toordinal()) * DAY
    return int(value) if isinstance(value, Instant) else value


def members(values: tuple[Any, ...], kind: str) -> list[Any]:
    """Return the constants that values of a type can equal, as that type and sorted: 1.5 and NaN equal no integer."""
    found = [stored(value) for value in values]
    if kind == "int":
        found = [int(v) for v in found if isinstance(v, int) or v.is_integer()]
        found = [v for v in found if LEAST <= v <= MOST]
    if kind == "float":
        found = [float(v) for v in found if not math.isnan(v) and float(v) == v]
    return sorted(set(found))
