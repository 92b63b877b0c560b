"""Lower an expression to DuckDB's SQL."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import reduce
from itertools import pairwise
from typing import Any, NamedTuple

from headrace.core.errors import DefinitionError
from headrace.core.expressions.algebra import Expr, Literal, Operation
from headrace.core.expressions.columns import Column, columns_of
from headrace.core.expressions.constants import kind_of, members, stored
from headrace.core.expressions.scalars import BLANK, CAPITALS, COMPARE, DECIMAL, INTEGER, SMALL
from headrace.core.expressions.zones import CYCLE, EARLIEST, LATEST, rules_of
from headrace.core.location import user_location
from headrace.core.time import DAY, HOUR, MINUTE, SECOND

SQL_TYPES = {"str": "VARCHAR", "float": "DOUBLE", "bool": "BOOLEAN", "null": "INTEGER"}
NAN = "CAST('nan' AS DOUBLE)"
YEAR = 365 * DAY
L, L_PLACE = '"$"', '"$place"'  # variables; no column has such a name


class Sql(NamedTuple):
    """Hold SQL; what is `atomic` (a column, a constant, a variable) may be written several times."""

    text: str
    atomic: bool = False


Template = Callable[..., str]


def to_sql(expr: Expr[Any]) -> str:
    """Return an expression in DuckDB's SQL, over a table that has the columns under their own names and as Headrace
    keeps them: instants and dates are BIGINT microseconds since 1970-01-01 UTC.

    Names and texts are quoted: no value can become SQL.

    >>> from headrace.core.expressions import lift
    >>> to_sql(lift("it's") == "x")
    "(CAST('it''s' AS VARCHAR) = CAST('x' AS VARCHAR))"

    Raises:
        DefinitionError: two columns have one name in SQL, which knows no upper and lower case.
    """
    names: dict[str, Column[Any]] = {}
    for column in columns_of(expr):
        if names.setdefault(column.name.casefold(), column) is not column:
            raise DefinitionError(
                "two columns of one name in SQL",
                where=user_location(),
                got=f"{names[column.name.casefold()]} and {column}",
                expected="names that differ in more than upper and lower case, of one source",
            )
    return _Writer().write(expr).text


class _Writer:
    """Write one expression; values that are needed several times get variables, so that SQL does not grow with depth."""

    def __init__(self) -> None:
        self.variables = 0

    def write(self, expr: Expr[Any]) -> Sql:
        if isinstance(expr, Column):
            return Sql(quoted(expr.name), True)
        if isinstance(expr, Literal):
            return Sql(constant(expr.value), True)
        assert isinstance(expr, Operation)
        operands = [
            Sql(f"CAST({inner.text} AS DOUBLE)", inner.atomic) if (arg.kind(), kind) == ("int", "float") else inner
            for arg, kind in zip(expr.args, expr.signature.operands, strict=True)
            for inner in [self.write(arg)]
        ]
        return Sql(self.apply(expr, operands))

    def apply(self, expr: Operation[Any], operands: list[Sql]) -> str:
        kinds = expr.signature.operands
        if expr.op in COMPARE:
            return self._compare(expr.op, kinds, operands)
        if expr.op in ("least", "greatest"):
            return reduce(lambda a, b: Sql(self._order(expr.op, kinds[0], a, b)), operands).text
        if expr.op == "isin":
            listed = ", ".join(constant(member) for member in members(expr.options[0], kinds[0]))
            return f"({operands[0].text} IN ({listed}))" if listed else f"({operands[0].text} IS NULL AND NULL)"
        found = SIMPLE.get(expr.op, {})
        simple = found.get(kinds[0]) or found.get("")
        if simple is not None:
            return simple(*(operand.text for operand in operands), *expr.options)
        repeated = REPEATING[expr.op].get(kinds[0]) or REPEATING[expr.op][""]
        return self.let(operands, lambda *names: repeated(*names, *expr.options))

    def let(self, operands: list[Sql], body: Template) -> str:
        """Write a body that repeats its operands, each of which is computed once."""
        names, bound = [], []
        for operand in operands:
            if operand.atomic:
                names.append(operand.text)
                continue
            self.variables += 1
            names.append(f'"${self.variables}"')
            bound.append((names[-1], operand.text))
        text = body(*names)
        for name, value in reversed(bound):
            text = f"list_transform([{value}], lambda {name}: {text})[1]"
        return text

    def _compare(self, op: str, kinds: tuple[str, ...], operands: list[Sql]) -> str:
        symbol = {"==": "=", "!=": "<>"}.get(op, op)
        if "float" not in kinds:
            return f"({operands[0].text} {symbol} {operands[1].text})"
        floats = [i for i, kind in enumerate(kinds) if kind == "float"]

        def body(*names: str) -> str:
            nulls = " OR ".join(f"{name} IS NULL" for name in names)
            nans = " OR ".join(f"isnan({names[i]})" for i in floats)
            text = f"CASE WHEN {nulls} THEN NULL WHEN {nans} THEN {'TRUE' if op == '!=' else 'FALSE'} "
            if len(floats) == 2:
                return f"{text}ELSE {names[0]} {symbol} {names[1]} END"
            near = [name if i in floats else f"CAST({name} AS DOUBLE)" for i, name in enumerate(names)]
            exact = [f"CAST({name} AS HUGEINT)" for name in names]
            return (
                f"{text}WHEN {near[0]} <> {near[1]} THEN {near[0]} {symbol} {near[1]} "
                f"ELSE {exact[0]} {symbol} {exact[1]} END"
            )

        return self.let(operands, body)

    def _order(self, op: str, kind: str, left: Sql, right: Sql) -> str:
        symbol = "<" if op == "least" else ">"
        first, other = ("{0}", "{1}") if op == "least" else ("{1}", "{0}")

        def body(a: str, b: str) -> str:
            if kind != "float":
                return f"CASE WHEN {a} {symbol}= {b} THEN {a} WHEN {b} {symbol} {a} THEN {b} END"
            zero = f"CASE WHEN signbit({a}) THEN {first} ELSE {other} END".format(a, b)
            return (
                f"CASE WHEN {a} IS NULL OR {b} IS NULL THEN NULL WHEN isnan({a}) OR isnan({b}) THEN {NAN} "
                f"WHEN {a} = {b} THEN {zero} WHEN {a} {symbol} {b} THEN {a} ELSE {b} END"
            )

        return self.let([left, right], body)


def quoted(name: str) -> str:
    """Return an identifier in quotes."""
    return '"' + name.replace('"', '""') + '"'


def text_of(value: str) -> str:
    """Return a text constant; a zero byte, at which SQL would end, is made by `chr`."""
    return " || chr(0) || ".join("'" + part.replace("'", "''") + "'" for part in value.split("\0"))


def constant(value: Any) -> str:
    """Return a constant with its type."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    sql_type = SQL_TYPES.get(kind_of(value), "BIGINT")
    return f"CAST({text_of(str(stored(value)))} AS {sql_type})"


def _fitting(symbol: str) -> Template:
    return lambda a, b: f"TRY_CAST(CAST({a} AS HUGEINT) {symbol} CAST({b} AS HUGEINT) AS BIGINT)"


def _operator(symbol: str) -> Template:
    return lambda a, b: f"({a} {symbol} {b})"


def _function(name: str, kind: str = "") -> Template:
    """Return a call of a function of one value and of text constants."""
    return lambda a, *texts: (
        f"CAST({name}({a}) AS {kind})" if kind else f"{name}({', '.join([a, *map(text_of, texts)])})"
    )


def _remainder(a: str, b: str) -> str:
    wide, divisor = f"CAST({a} AS HUGEINT)", f"NULLIF(CAST({b} AS HUGEINT), 0)"
    return f"CAST((({wide} % {divisor}) + {b}) % {divisor} AS BIGINT)"


def _quotient(a: str, b: str) -> str:
    wide = f"CAST({a} AS HUGEINT)"
    return f"TRY_CAST(({wide} - {_remainder(a, b)}) // NULLIF(CAST({b} AS HUGEINT), 0) AS BIGINT)"


def _float_remainder(a: str, b: str) -> str:
    zero = f"CASE WHEN {b} < 0 THEN CAST('-0.0' AS DOUBLE) ELSE CAST('0.0' AS DOUBLE) END"
    return (
        f"CASE WHEN {a} IS NULL OR {b} IS NULL OR {b} = 0 THEN NULL WHEN {a} % {b} = 0 THEN {zero} "
        f"WHEN ({b} < 0) <> ({a} % {b} < 0) THEN {a} % {b} + {b} ELSE {a} % {b} END"
    )


def _float_quotient(a: str, b: str) -> str:
    """Divide as Python does: an exact remainder first, then the nearest whole number."""
    zero = f"CASE WHEN signbit({a} / {b}) THEN CAST('-0.0' AS DOUBLE) ELSE CAST('0.0' AS DOUBLE) END"
    step = f"CASE WHEN {a} % {b} <> 0 AND ({b} < 0) <> ({a} % {b} < 0) THEN 1 ELSE 0 END"
    near = f"(({a} - {a} % {b}) / {b} - {step})"
    return (
        f"CASE WHEN {a} IS NULL OR {b} IS NULL OR {b} = 0 THEN NULL WHEN {near} = 0 THEN {zero} "
        f"WHEN {near} - floor({near}) > 0.5 THEN floor({near}) + 1 ELSE floor({near}) END"
    )


def _read(pattern: str, kind: str) -> Template:
    return lambda a: f"CASE WHEN regexp_full_match({a}, '{pattern}') THEN TRY_CAST({a} AS {kind}) END"


def _substring(a: str, start: int, length: int | None) -> str:
    return f"substring({a}, {start + 1}{'' if length is None else f', {length}'})"


def _shift(a: str, offset: int) -> str:
    return f"TRY_CAST(CAST({a} AS HUGEINT) + {offset} AS BIGINT)"


def _truncate(a: str, step: int) -> str:
    return f"TRY_CAST(CAST({a} AS HUGEINT) - {_within(a, step)} AS BIGINT)"


def _within(shown: str, period: int) -> str:
    """Return how far a number lies above the multiple of a period below it."""
    return f"((({shown} % {period}) + {period}) % {period})"


def _local(instant: str, zone: str | None) -> str:
    """Return what a zone's clock shows, null beyond the years 1 to 9999."""
    shown = instant if zone is None else f"({instant} + {_ahead(instant, zone)})"
    inside = f"CASE WHEN {instant} BETWEEN {EARLIEST} AND {LATEST} THEN {shown} END"
    return f"list_transform([{inside}], lambda {L}: CASE WHEN {L} BETWEEN {EARLIEST} AND {LATEST} THEN {L} END)[1]"


def _ahead(instant: str, zone: str) -> str:
    """Return what a zone's clock is ahead of UTC: changes are counted, from those before the instant's year on."""
    rules = rules_of(zone)
    if not rules.changes:
        return str(rules.offsets[0])
    first, last = rules.changes[0], rules.changes[-1]
    before = [bisect_right(rules.changes, start) for start in range(first, last + 1, YEAR)]
    most = max(b - a for a, b in pairwise([*before, len(rules.changes)]))
    changes = _seconds([*rules.changes, *[LATEST] * most])
    year = f"CASE WHEN {L} < {first} THEN 1 ELSE least(({L} - {first}) // {YEAR}, {len(before) - 1}) + 2 END"
    later = [f"CAST({L} >= {changes}[{L_PLACE} + {i + 1}] * {SECOND} AS BIGINT)" for i in range(most)]
    repeated = (
        f"CASE WHEN {instant} < {rules.repeats} THEN {instant} "
        f"ELSE {rules.repeats} + ({instant} - {rules.repeats}) % {CYCLE} END"
    )
    ahead = f"{_seconds(rules.offsets)}[{' + '.join(['1', L_PLACE, *later])}] * {SECOND}"
    place = f"list_transform([{_list([0, *before])}[{year}]], lambda {L_PLACE}: {ahead})[1]"
    return f"list_transform([{repeated}], lambda {L}: {place})[1]"


def _list(values: Sequence[int]) -> str:
    """Return a list of integers as one constant, which DuckDB reads much faster than as many."""
    return f"CAST('[{','.join(map(str, values))}]' AS BIGINT[])"


def _seconds(values: Sequence[int]) -> str:
    return _list([value // SECOND for value in values])


def _calendar(part: str) -> dict[str, Template]:
    """Return the template of a part of the local time, which is `L`."""
    return {"": lambda a, zone: f"list_transform([{_local(a, zone)}], lambda {L}: CAST({part} AS BIGINT))[1]"}


_TIME = _within(L, DAY)
# By operator, then by the type of its first operand; "" is any other type. SIMPLE ones name each operand once.
SIMPLE: dict[str, dict[str, Template]] = {
    "+": {"int": _fitting("+"), "float": _operator("+"), "str": _operator("||")},
    "-": {"float": _operator("-"), "": _fitting("-")},
    "*": {"int": _fitting("*"), "float": _operator("*")},
    "/": {"": lambda a, b: f"({a} / NULLIF({b}, 0))"},
    "negate": {"int": lambda a: f"TRY_CAST(-CAST({a} AS HUGEINT) AS BIGINT)", "": lambda a: f"(-{a})"},
    "&": {"": _operator("AND")},
    "|": {"": _operator("OR")},
    "^": {"": _operator("<>")},
    "not": {"": lambda a: f"(NOT {a})"},
    "is_null": {"": lambda a: f"({a} IS NULL)"},
    "coalesce": {"": lambda *values: f"COALESCE({', '.join(values)})"},
    "abs": {"int": lambda a: f"TRY_CAST(abs(CAST({a} AS HUGEINT)) AS BIGINT)", "": _function("abs")},
    "sign": {"int": _function("sign", "BIGINT")},
    "floor": {"int": lambda a: a, "": _function("floor")},
    "ceil": {"int": lambda a: a, "": _function("ceil")},
    "round": {"int": lambda a: a, "": lambda a: f"round_even({a}, 0)"},
    "is_nan": {"": _function("isnan")},
    "is_finite": {"": _function("isfinite")},
    "as_int": {"float": lambda a: f"TRY_CAST(trunc({a}) AS BIGINT)", "int": lambda a: a, "instant": lambda a: a,
               "bool": lambda a: f"CAST({a} AS BIGINT)"},
    "as_float": {"int": lambda a: f"CAST({a} AS DOUBLE)", "bool": lambda a: f"CAST({a} AS DOUBLE)", "float": lambda a: a},
    "as_str": {"": lambda a: f"CAST({a} AS VARCHAR)"},
    "as_bool": {"bool": lambda a: a, "int": lambda a: f"({a} <> 0)", "float": lambda a: f"({a} <> 0)"},
    "lower": {"": lambda a: f"translate({a}, '{CAPITALS}', '{SMALL}')"},
    "upper": {"": lambda a: f"translate({a}, '{SMALL}', '{CAPITALS}')"},
    "strip": {"": lambda a: f"trim({a}, {text_of(BLANK)})"},
    "length": {"": _function("length", "BIGINT")},
    "startswith": {"": _function("starts_with")},
    "endswith": {"": _function("ends_with")},
    "contains": {"": _function("contains")},
    "replace": {"": _function("replace")},
    "substring": {"": _substring},
    "shift": {"": _shift},
}  # fmt: skip
REPEATING: dict[str, dict[str, Template]] = {
    "//": {"int": _quotient, "float": _float_quotient},
    "%": {"int": _remainder, "float": _float_remainder},
    "if_else": {"": lambda c, a, b: f"CASE WHEN {c} IS NULL THEN NULL WHEN {c} THEN {a} ELSE {b} END"},
    "sign": {"float": lambda a: f"CASE WHEN isnan({a}) THEN NULL ELSE CAST(sign({a}) AS BIGINT) END"},
    "sqrt": {"": lambda a: f"CASE WHEN {a} >= 0 THEN sqrt({a}) END"},
    "as_int": {"str": _read(INTEGER, "BIGINT")},
    "as_float": {"str": _read(DECIMAL, "DOUBLE")},
    "as_bool": {"str": lambda a: f"CASE {a} WHEN 'true' THEN TRUE WHEN 'false' THEN FALSE END"},
    "truncate": {"": _truncate},
    "year": _calendar(f"year(make_timestamp({L}))"),
    "month": _calendar(f"month(make_timestamp({L}))"),
    "day": _calendar(f"day(make_timestamp({L}))"),
    "weekday": _calendar(f"isodow(make_timestamp({L})) - 1"),
    "date": _calendar(f"{L} - {_TIME}"),
    "hour": _calendar(f"{_TIME} // {HOUR}"),
    "minute": _calendar(f"{_TIME} // {MINUTE} % 60"),
    "second_of_day": _calendar(f"{_TIME} // {SECOND}"),
}
