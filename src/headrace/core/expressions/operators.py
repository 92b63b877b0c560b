"""List the operators of expressions: how each is written, which types it takes, what type it gives.

Types are names: str, int, float, bool, instant, date; "null" is the type of a literal None, "" that of a column whose
class is still being written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from headrace.core.errors import DefinitionError
from headrace.core.expressions.constants import kind_of

ORDERED = ("str", "int", "float", "bool", "instant", "date")
NUMBERS = ("int", "float")
CALENDARS = ("year", "month", "day", "weekday")


class Signature(NamedTuple):
    """Say to which types an operator's operands are converted, and which type it gives."""

    operands: tuple[str, ...]
    result: str


Rule = Callable[[tuple[str, ...]], Signature | None]


@dataclass(frozen=True)
class Operator:
    """Describe an operator: `written` is how users write it, `expects` its operands in an error message."""

    name: str
    written: str
    meaning: str
    expects: str
    rule: Rule


def common(types: tuple[str, ...]) -> str | None:
    """Return the type that values of all the types have together: a float if one is; None if there is none."""
    known = {t for t in types if t != "null"}
    if known == {"int", "float"}:
        return "float"
    return known.pop() if len(known) == 1 else None


def _same(*allowed: str, result: str = "") -> Rule:
    """Demand operands of one of the types; integers beside floats become floats."""

    def rule(types: tuple[str, ...]) -> Signature | None:
        shared = common(types)
        if shared not in allowed or "null" in types:
            return None
        return Signature((shared,) * len(types), result or shared)

    return rule


def _either(types: tuple[str, ...]) -> Signature | None:
    """Demand operands of one type, among which may be None."""
    shared = common(types)
    return None if shared is None else Signature((shared,) * len(types), shared)


def _any(types: tuple[str, ...]) -> Signature | None:
    return None if "null" in types else Signature(types, "bool")


def _compare(types: tuple[str, ...]) -> Signature | None:
    """Demand values that can be compared; an integer and a float are compared as they are, exactly."""
    return None if common(types) is None or "null" in types else Signature(types, "bool")


def _minus(types: tuple[str, ...]) -> Signature | None:
    if types[0] == types[1] and types[0] in ("instant", "date"):
        return Signature(types, "int")
    return _same(*NUMBERS)(types)


def _divide(types: tuple[str, ...]) -> Signature | None:
    return Signature(("float", "float"), "float") if set(types) <= set(NUMBERS) else None


def _choose(types: tuple[str, ...]) -> Signature | None:
    branches = _either(types[1:])
    if types[0] != "bool" or branches is None:
        return None
    return Signature(("bool", *branches.operands), branches.result)


COMPARABLE = "two numbers, or two values of one type; for null use .is_null()"
NUMERIC = "int or float; .as_int() makes a number of a bool or text"
CONDITION = "conditions: comparisons and bool columns"
CALENDAR = "an instant, or a date without a zone"
TEXT = "str; .as_str() makes a text of an int or bool"
ALIKE = "values of one type, or int beside float"
_INTEGER = _same("instant", "date", result="int")

_TABLE: tuple[tuple[str, str, str, str, Rule], ...] = (
    ("<", "a < b", "less; texts by code point, False before True", COMPARABLE, _compare),
    ("<=", "a <= b", "less or equal", COMPARABLE, _compare),
    (">", "a > b", "greater", COMPARABLE, _compare),
    (">=", "a >= b", "greater or equal", COMPARABLE, _compare),
    ("==", "a == b", "equal", COMPARABLE, _compare),
    ("!=", "a != b", "not equal; true where one side is NaN", COMPARABLE, _compare),
    ("+", "a + b", "sum; texts are joined", "two numbers or two texts", _same("int", "float", "str")),
    ("-", "a - b", "difference; of two instants or dates in microseconds", "two numbers, instants or dates", _minus),
    ("*", "a * b", "product", NUMERIC, _same(*NUMBERS)),
    ("/", "a / b", "quotient of the operands as floats; null if b is 0", NUMERIC, _divide),
    ("//", "a // b", "quotient rounded down, as in Python; null if b is 0", NUMERIC, _same(*NUMBERS)),
    ("%", "a % b", "remainder with the sign of b, as in Python; null if b is 0", NUMERIC, _same(*NUMBERS)),
    ("negate", "-a", "the number with the other sign", NUMERIC, _same(*NUMBERS)),
    ("&", "a & b", "both hold; false if one is false, whatever the other", CONDITION, _same("bool")),
    ("|", "a | b", "at least one holds; true if one is true, whatever the other", CONDITION, _same("bool")),
    ("^", "a ^ b", "exactly one holds", CONDITION, _same("bool")),
    ("not", "~a", "the opposite", CONDITION, _same("bool")),
    ("is_null", "a.is_null()", "whether the value is null; never null", "a value", _any),
    ("if_else", "hr.if_else(c, a, b)", "a where c is true, b where it is false, null where it is null",
     f"a condition and two {ALIKE}", _choose),
    ("coalesce", "hr.coalesce(a, b, ...)", "the first value that is not null", ALIKE, _either),
    ("least", "hr.least(a, b, ...)", "the smallest; NaN if one is NaN; -0.0 is less than 0.0", ALIKE, _same(*ORDERED)),
    ("greatest", "hr.greatest(a, b, ...)", "the largest; NaN if one is NaN; 0.0 is greater than -0.0", ALIKE,
     _same(*ORDERED)),
    ("isin", "a.isin([...])", "whether it equals one of the constants; NaN equals none", "a value",
     _same(*ORDERED, result="bool")),
    ("abs", "a.abs()", "the number without its sign", NUMERIC, _same(*NUMBERS)),
    ("sign", "a.sign()", "-1, 0 or 1, an int; null for NaN", NUMERIC, _same(*NUMBERS, result="int")),
    ("floor", "a.floor()", "the number rounded down; a float stays a float", NUMERIC, _same(*NUMBERS)),
    ("ceil", "a.ceil()", "the number rounded up; a float stays a float", NUMERIC, _same(*NUMBERS)),
    ("round", "a.round()", "the nearest whole number, the even one of two; a float stays a float", NUMERIC,
     _same(*NUMBERS)),
    ("sqrt", "a.sqrt()", "the square root, a float; null below 0", NUMERIC,
     lambda types: Signature(("float",), "float") if types[0] in NUMBERS else None),
    ("is_nan", "a.is_nan()", "whether a float is NaN", "float", _same("float", result="bool")),
    ("is_finite", "a.is_finite()", "whether a float is neither NaN nor infinite", "float",
     _same("float", result="bool")),
    ("as_int", "a.as_int()", "float: cut towards 0; str: [+-]digits; instant: microseconds since 1970 UTC; bool: 0 or 1; "
     "else null", "float, str, bool, int or instant", _same("int", "float", "bool", "str", "instant", result="int")),
    ("as_float", "a.as_float()", "int: the nearest float; str: a decimal number; bool: 0.0 or 1.0; else null",
     "int, str, bool or float", _same("int", "float", "bool", "str", result="float")),
    ("as_str", "a.as_str()", "int: its digits; bool: true or false", "int, bool or str; floats have no text",
     _same("int", "bool", "str", result="str")),
    ("as_bool", "a.as_bool()", "number: whether it is not 0 (NaN is not); str: of true and false, else null",
     "int, float, str or bool", _same("int", "float", "bool", "str", result="bool")),
    ("lower", "a.lower()", "A to Z become a to z; all else stays", TEXT, _same("str")),
    ("upper", "a.upper()", "a to z become A to Z; all else stays", TEXT, _same("str")),
    ("strip", "a.strip()", "without space, tab, newline, return, form feed and vertical tab at both ends", TEXT,
     _same("str")),
    ("length", "a.length()", "the number of code points", TEXT, _same("str", result="int")),
    ("startswith", 'a.startswith("x")', "whether the text begins with a constant", TEXT, _same("str", result="bool")),
    ("endswith", 'a.endswith("x")', "whether the text ends with a constant", TEXT, _same("str", result="bool")),
    ("contains", 'a.contains("x")', "whether the constant is in the text", TEXT, _same("str", result="bool")),
    ("replace", 'a.replace("x", "y")', "every x, from the left, becomes y", TEXT, _same("str")),
    ("substring", "a.substring(start, length)", "code points from the place start, counted from 0", TEXT, _same("str")),
    ("shift", 'a + "1h"', "an instant later, or with - earlier, by a constant duration", "an instant or a date",
     _same("instant", "date", result="instant")),
    ("truncate", 'a.truncate("15m")', "rounded down to a multiple of the duration since 1970-01-01 00:00 UTC",
     "an instant", _same("instant")),
    ("year", 'a.year("Europe/Paris")', "the year on the zone's calendar", CALENDAR, _INTEGER),
    ("month", 'a.month("Europe/Paris")', "the month, 1 to 12", CALENDAR, _INTEGER),
    ("day", 'a.day("Europe/Paris")', "the day of the month, 1 to 31", CALENDAR, _INTEGER),
    ("weekday", 'a.weekday("Europe/Paris")', "the day of the week, Monday is 0", CALENDAR, _INTEGER),
    ("date", 'a.date("Europe/Paris")', "the zone's date", "an instant", _same("instant", result="date")),
    ("hour", 'a.hour("Europe/Paris")', "the hour on the zone's clock, 0 to 23", "an instant",
     _same("instant", result="int")),
    ("minute", 'a.minute("Europe/Paris")', "the minute on the zone's clock, 0 to 59", "an instant",
     _same("instant", result="int")),
    ("second_of_day", 'a.second_of_day("Europe/Paris")', "whole seconds on the zone's clock since its 00:00",
     "an instant", _same("instant", result="int")),
)  # fmt: skip
OPERATORS = {row[0]: Operator(*row) for row in _TABLE}


def signature_of(op: str, operands: Sequence[tuple[str, str]], options: tuple[Any, ...], where: str) -> Signature:
    """Return an operator's signature for operands, each a text and a type.

    Raises:
        DefinitionError: the operator cannot take them.
    """
    operator, types = OPERATORS[op], tuple(kind for _, kind in operands)
    found = operator.rule(types)
    listed = [(repr(member), kind_of(member)) for member in options[0]] if op == "isin" else []
    strangers = [member for member in listed if common((types[0], member[1])) is None]
    zoned_date = types[0] == "date" and op in CALENDARS and options[0] is not None
    if found is None or strangers or zoned_date:
        raise DefinitionError(
            f"{operator.written} cannot take these types",
            where=where,
            got=[f"{text}: {kind or '?'}" for text, kind in [*operands, *strangers]],
            expected=operator.expects,
        )
    return found
