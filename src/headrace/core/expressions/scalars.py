"""Define every operator on single values that are not null: the meaning that all lowerings share."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from datetime import date
from typing import Any

from headrace.core.expressions.constants import LEAST, MOST
from headrace.core.expressions.zones import EARLIEST, LATEST, rules_of
from headrace.core.time import DAY, EPOCH, HOUR, MINUTE, SECOND

WHOLE = 2.0**52  # from here on every float is a whole number
BLANK = " \t\n\r\v\f"
CAPITALS, SMALL = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz"
INTEGER, DECIMAL = r"[+-]?[0-9]+", r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?"
EPOCH_DAY = EPOCH.toordinal()
COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_LOWER, _UPPER = str.maketrans(CAPITALS, SMALL), str.maketrans(SMALL, CAPITALS)
_INTEGER, _DECIMAL = re.compile(INTEGER), re.compile(DECIMAL)


def fitting(value: int) -> int | None:
    """Return an integer that int64 holds, else null."""
    return value if LEAST <= value <= MOST else None


def rounded(how: Callable[[float], int], value: float) -> float:
    """Round to a whole number; the sign of zero stays."""
    return math.copysign(float(how(value)), value) if -WHOLE < value < WHOLE else value


def least(a: float, b: float) -> float:
    """Return the smaller of two floats: NaN before all, -0.0 before 0.0."""
    if a != a or b != b:
        return math.nan
    if a == b:
        return a if math.copysign(1.0, a) < 0 else b
    return a if a < b else b


def greatest(a: float, b: float) -> float:
    """Return the larger of two floats: NaN before all, 0.0 before -0.0."""
    return -least(-a, -b)


def integer_of(value: float) -> int | None:
    """Cut a float's fraction off; null for NaN, infinities and what int64 does not hold."""
    return fitting(int(value)) if math.isfinite(value) else None


def integer_in(text: str) -> int | None:
    """Read an integer; null if the text is none, or none that int64 holds."""
    if _INTEGER.fullmatch(text) is None:
        return None
    digits = text.lstrip("+-").lstrip("0")
    return None if len(digits) > 19 else fitting(int(text[0] + digits if text[0] == "-" and digits else digits or "0"))


def float_in(text: str) -> float | None:
    """Read a decimal number, rounded to the nearest float; null if the text is none."""
    return float(text) if _DECIMAL.fullmatch(text) else None


def local(instant: int, zone: str | None) -> int | None:
    """Return what a zone's clock shows, as microseconds since its 1970-01-01 00:00; null beyond the years 1 to 9999.

    Without a zone it is UTC's; a date is its midnight.
    """
    if not EARLIEST <= instant <= LATEST:
        return None
    shown = instant if zone is None else instant + rules_of(zone).ahead(instant)
    return shown if EARLIEST <= shown <= LATEST else None


def _calendar(part: Callable[[int], int]) -> Callable[[int, str | None], int | None]:
    """Return a function of an instant and a zone from a function of local microseconds."""
    return lambda instant, zone: None if (shown := local(instant, zone)) is None else part(shown)


def _day_of(shown: int) -> date:
    return date.fromordinal(shown // DAY + EPOCH_DAY)


def _plain_order(how: Callable[[Any, Any], Any]) -> dict[str, Callable[..., Any]]:
    return dict.fromkeys(("str", "int", "bool", "instant", "date"), how)


def _identity(value: Any) -> Any:
    return value


# By operator, then by the type of its first operand; "" is any other type.
SCALARS: dict[str, dict[str, Callable[..., Any]]] = {
    **{name: {"": compare} for name, compare in COMPARE.items()},
    "+": {"int": lambda a, b: fitting(a + b), "": operator.add},
    "-": {"float": operator.sub, "": lambda a, b: fitting(a - b)},
    "*": {"int": lambda a, b: fitting(a * b), "": operator.mul},
    "/": {"": lambda a, b: a / b if b else None},
    "//": {"int": lambda a, b: fitting(a // b) if b else None, "": lambda a, b: a // b if b else None},
    "%": {"": lambda a, b: a % b if b else None},
    "negate": {"int": lambda a: fitting(-a), "": operator.neg},
    "^": {"": operator.ne},
    "not": {"": operator.not_},
    "least": {"float": least, "": min},
    "greatest": {"float": greatest, "": max},
    "isin": {"": lambda a, members: a in members},
    "abs": {"int": lambda a: fitting(abs(a)), "": abs},
    "sign": {"": lambda a: (a > 0) - (a < 0) if a == a else None},
    "floor": {"int": _identity, "": lambda a: rounded(math.floor, a)},
    "ceil": {"int": _identity, "": lambda a: rounded(math.ceil, a)},
    "round": {"int": _identity, "": lambda a: rounded(round, a)},
    "sqrt": {"": lambda a: None if a < 0 else math.sqrt(a)},
    "is_nan": {"": math.isnan},
    "is_finite": {"": math.isfinite},
    "as_int": {"float": integer_of, "str": integer_in, "": int},
    "as_float": {"str": float_in, "": float},
    "as_str": {"bool": lambda a: "true" if a else "false", "": str},
    "as_bool": {"str": {"true": True, "false": False}.get, "": bool},
    "lower": {"": lambda a: a.lower() if a.isascii() else a.translate(_LOWER)},
    "upper": {"": lambda a: a.upper() if a.isascii() else a.translate(_UPPER)},
    "strip": {"": lambda a: a.strip(BLANK)},
    "length": {"": len},
    "startswith": {"": str.startswith},
    "endswith": {"": str.endswith},
    "contains": {"": operator.contains},
    "replace": {"": str.replace},
    "substring": {"": lambda a, start, length: a[start:] if length is None else a[start : start + length]},
    "shift": {"": lambda a, offset: fitting(a + offset)},
    "truncate": {"": lambda a, step: fitting(a // step * step)},
    "year": {"": _calendar(lambda shown: _day_of(shown).year)},
    "month": {"": _calendar(lambda shown: _day_of(shown).month)},
    "day": {"": _calendar(lambda shown: _day_of(shown).day)},
    "weekday": {"": _calendar(lambda shown: (shown // DAY + 3) % 7)},
    "date": {"": _calendar(lambda shown: shown // DAY * DAY)},
    "hour": {"": _calendar(lambda shown: shown // HOUR % 24)},
    "minute": {"": _calendar(lambda shown: shown // MINUTE % 60)},
    "second_of_day": {"": _calendar(lambda shown: shown // SECOND % (DAY // SECOND))},
}


def scalar(op: str, kind: str) -> Callable[..., Any]:
    """Return an operator's function for operands of a type."""
    found = SCALARS[op]
    return found.get(kind) or found[""]
