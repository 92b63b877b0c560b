"""Per row, on Arrow tables and in DuckDB, every expression has the same values, bit for bit."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import date
from itertools import pairwise, product
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import headrace as hr
from headrace.core.errors import DefinitionError
from headrace.core.expressions import (
    OPERATORS,
    Binary,
    Call,
    Column,
    Expr,
    Shift,
    Unary,
    columns_of,
    lift,
    on_table,
    per_row,
)
from headrace.core.expressions.sql import to_sql
from headrace.core.expressions.zones import EARLIEST, LATEST

BIG = 2**53
ZONES = ["America/New_York", "Europe/Dublin", "Australia/Lord_Howe", "Asia/Kathmandu", "Africa/Casablanca", "UTC", None]
FLOATS = [math.nan, math.inf, -math.inf, 0.0, -0.0, 0.1, -0.1, 0.5, 1.5, 2.5, -2.5, 1.0, -1.0, 3.0, 5e-324, 1e16, -1e16]
FLOATS += [
    float(BIG),
    float(BIG + 2),
    -float(BIG),
    2.0**63,
    -(2.0**63),
    9223372036854774784.0,
    1.7e308,
    0.49999999999999994,
]
INTS = [0, 1, -1, 2, -3, 7, 10, BIG, BIG + 1, -BIG - 1, 2**62, 2**63 - 1, 2**63 - 513, -(2**63), -(2**63) + 1, 10**16]
TEXTS = [
    "",
    "a",
    "A",
    "aB c",
    " a\t\n",
    "ÄßﬁİΣς",
    "e\u0301",
    "👩‍👧 x",
    "'",
    '"; DROP TABLE t; --',
    "a\0b",
    "\u2003x ",
    "aaa",
    "z\uffff",
    "\U0001f600",
]
TEXTS += ["12", "-7", "+0", "007", "9223372036854775807", "9223372036854775808", "-9223372036854775808", "0" * 30 + "5"]
TEXTS += [
    "1.5",
    ".5",
    "5.",
    "-0",
    "-0.0",
    "1e999",
    "1e-999",
    "0x10",
    "1_0",
    "٣",
    " 1",
    "inf",
    "nan",
    "true",
    "false",
    "True",
]
DST = ["2024-03-10T06:59:59.999999Z", "2024-03-10T07:00:00Z", "2024-11-03T05:59:59Z", "2024-11-03T06:00:00Z"]
DST += ["2024-02-29T12:00:00Z", "1970-01-01T00:00:00Z", "1969-12-31T23:59:59.999999Z", "1883-11-18T17:00:00Z"]
DST += [
    "2024-10-05T15:30:00Z",
    "2100-03-01T00:00:00Z",
    "2399-07-01T12:34:56Z",
    "5001-07-01T12:34:56Z",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999999Z",
]
INSTANTS = [int(hr.Instant.parse(text)) for text in DST] + [2**63 - 1, -(2**63), -62135596800000001, 253402300800000000]
DAYS = [day * 86_400_000_000 for day in (0, -1, 19782, 19783, 47540, -719162, 2932896)]
SPECIAL: dict[str, list[Any]] = {
    "float": FLOATS,
    "int": INTS,
    "bool": [True, False],
    "str": TEXTS,
    "instant": INSTANTS,
    "date": DAYS,
}
ARROW = {"float": pa.float64(), "str": pa.string(), "bool": pa.bool_()}


class T(hr.Source):
    key: hr.Column[str] = hr.row_id()
    time: hr.Column[hr.Instant] = hr.event_time()
    x: hr.Column[float | None] = hr.column()
    y: hr.Column[float | None] = hr.column()
    n: hr.Column[int | None] = hr.column()
    m: hr.Column[int | None] = hr.column()
    b: hr.Column[bool | None] = hr.column()
    c: hr.Column[bool | None] = hr.column()
    f: hr.Column[bool | None] = hr.column()
    s: hr.Column[str | None] = hr.column()
    l: hr.Column[str | None] = hr.column()  # noqa: E741
    i: hr.Column[hr.Instant | None] = hr.column()
    j: hr.Column[hr.Instant | None] = hr.column()
    d: hr.Column[hr.Date | None] = hr.column()
    e: hr.Column[hr.Date | None] = hr.column()


COLUMNS: tuple[Column[Any], ...] = (T.x, T.y, T.n, T.m, T.b, T.c, T.f, T.s, T.l, T.i, T.j, T.d, T.e)
BY_KIND = {kind: [c for c in COLUMNS if c.dtype == kind] for kind in SPECIAL}


def bits(value: Any) -> Any:
    """Return a value so that equal means the same type and the same bits; NaN is one value."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else struct.pack("<d", value)
    return (type(value).__name__, value)


def table_of(columns: Sequence[Column[Any]], rows: Sequence[Sequence[Any]], cuts: Sequence[int] = ()) -> pa.Table:
    cells = zip(*rows, strict=True) if rows else [()] * len(columns)
    arrays = [pa.array(list(v), ARROW.get(c.dtype, pa.int64())) for c, v in zip(columns, cells, strict=True)]
    table = pa.table(dict(zip([c.name for c in columns], arrays, strict=True)))
    edges = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    return pa.concat_tables([table.slice(a, b - a) for a, b in pairwise(edges)])


def disagreements(
    exprs: Sequence[Expr[Any]], columns: Sequence[Column[Any]], rows: Sequence[Any], cuts: Sequence[int] = ()
) -> list[str]:
    """Return where the three lowerings differ."""
    index = {column: place for place, column in enumerate(columns)}
    table = table_of(columns, rows, cuts)
    with duckdb.connect() as database:
        database.register("t", table)
        found = database.sql(f"SELECT {', '.join(f'{to_sql(e)} AS r{i}' for i, e in enumerate(exprs))} FROM t")
        queried = found.to_arrow_table() if hasattr(found, "to_arrow_table") else found.arrow()
        answers = [queried.column(i).to_pylist() for i in range(len(exprs))]
    wrong = []
    for expr, sql in zip(exprs, answers, strict=True):
        one = per_row(expr, index)
        alone, together = [one(row) for row in rows], on_table(expr, table).to_pylist()
        for row, *values in zip(rows, alone, together, sql, strict=True):
            if len({bits(value) for value in values}) > 1:
                wrong.append(f"{expr} of {row}: {values}")
    return wrong


OPTIONS: dict[str, list[tuple[Any, ...]]] = {
    "isin": [
        ((1, 2.5, BIG + 1, 2.0**63, 10**16),),
        ((0.0, math.nan),),
        (("a", "'", "a\0b"),),
        ((True,),),
        ((hr.Instant(0),),),
        ((date(1970, 1, 1),),),
    ],
    "startswith": [("a",), ("",), ("a\0",), ("'",)],
    "endswith": [("a",), ("",), ("\0b",), ("ς",)],
    "contains": [("B",), ("",), ("\0",), ("ß",)],
    "replace": [("a", "bb"), ("aa", ""), ("\0", "'"), ("ß", "ss")],
    "substring": [(0, None), (1, 1), (2, None), (0, 0), (40, 2), (2**31 - 1, 2**31 - 1)],
    "shift": [(1,), (-1,), (86_400_000_000 * 365,), (2**63,), (-(2**63),), (2**64,)],
    "truncate": [(1,), (7,), (900_000_000,), (86_400_000_000 * 7,), (2**62,)],
    **{op: [(zone,) for zone in ZONES] for op in ("year", "month", "day", "date", "hour", "minute", "second_of_day")},
    "weekday": [(zone,) for zone in ZONES],
}
OPERANDS = {"if_else": 3, "coalesce": 2, "least": 2, "greatest": 2}  # of the operators that are words; others have one


def node(op: str, args: tuple[Expr[Any], ...], options: tuple[Any, ...] = ()) -> Expr[Any]:
    if op in ("not", "negate", "is_null"):
        return Unary(op, args[0])
    if op == "shift":
        return Shift(args[0], *options)
    return Call(op, args, options) if op.isidentifier() else Binary(op, args[0], args[1])


def shapes(op: str) -> list[tuple[str, ...]]:
    """Return the types of operands that an operator takes."""
    count = OPERANDS.get(op, 1) if op.isidentifier() else 2
    return [kinds for kinds in product(SPECIAL, repeat=count) if OPERATORS[op].rule(kinds)]


def made(op: str, args: tuple[Expr[Any], ...]) -> Iterator[Expr[Any]]:
    """Return the operator with every choice of constants that suits its operands."""
    for options in OPTIONS.get(op, [()]):
        with suppress(DefinitionError):
            yield node(op, args, options)


def distinct(kinds: tuple[str, ...]) -> tuple[Expr[Any], ...]:
    """Return a column of its own for each operand."""
    left = {kind: list(columns) for kind, columns in BY_KIND.items()}
    return tuple(left[kind].pop() for kind in kinds)


@pytest.mark.parametrize("op", OPERATORS)
def test_an_operator_has_the_same_values_in_all_three_ways(op: str) -> None:
    exprs = [expr for kinds in shapes(op) for expr in made(op, distinct(kinds))]
    assert exprs
    for expr in exprs:
        columns = columns_of(expr)
        step = 1 if len(columns) < 3 else 4
        rows = list(product(*([*SPECIAL[c.dtype][::step], None] for c in columns)))
        assert disagreements([expr], columns, rows, cuts=(3, 3, 11)) == []


PRODUCERS: dict[str, list[tuple[str, tuple[str, ...]]]] = {kind: [] for kind in SPECIAL}
for _op in OPERATORS:
    for _kinds in shapes(_op):
        PRODUCERS[OPERATORS[_op].rule(_kinds).result].append((_op, _kinds))  # type: ignore[union-attr]
CONSTANTS: dict[str, list[Any]] = {
    **{kind: SPECIAL[kind] for kind in ("float", "int", "bool", "str")},
    "instant": [hr.Instant(value) for value in INSTANTS if EARLIEST <= value <= LATEST],
    "date": [date(1970, 1, 1), date(1, 1, 1), date(9999, 12, 31), date(2024, 2, 29)],
}
ANY: dict[str, st.SearchStrategy[Any]] = {
    "float": st.floats(),
    "int": st.integers(-(2**63), 2**63 - 1),
    "bool": st.booleans(),
    "str": st.text(max_size=8),
    "instant": st.integers(EARLIEST, LATEST),
    "date": st.integers(-719162, 2932896).map(lambda day: day * 86_400_000_000),
}


@st.composite
def trees(draw: st.DrawFn, kind: str, depth: int) -> Expr[Any]:
    if depth == 0 or draw(st.integers(0, 5)) == 0:
        leaf = draw(st.sampled_from([*BY_KIND[kind], *BY_KIND[kind], None]))
        return lift(draw(st.sampled_from(CONSTANTS[kind]))) if leaf is None else leaf
    op, kinds = draw(st.sampled_from(PRODUCERS[kind]))
    args = tuple(draw(trees(operand, depth - 1)) for operand in kinds)
    return draw(st.sampled_from([*made(op, args)] or [*BY_KIND[kind]]))


CELLS = st.tuples(*(st.one_of(st.none(), st.sampled_from(SPECIAL[c.dtype]), ANY[c.dtype]) for c in COLUMNS))


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(list(SPECIAL)).flatmap(lambda kind: trees(kind, 4)), min_size=1, max_size=3),
    st.lists(CELLS, max_size=12),
    st.lists(st.integers(0, 12), max_size=3),
)
def test_expressions_inside_expressions_agree_at_any_batch_boundaries(
    exprs: list[Expr[Any]], rows: list[tuple[Any, ...]], cuts: list[int]
) -> None:
    assert disagreements(exprs, COLUMNS, rows, cuts) == []
