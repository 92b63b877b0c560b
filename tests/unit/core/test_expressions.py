"""Expressions: definitions have no truth value, mistakes name their line, texts name definitions, SQL holds no surprise.

That all ways of computing every operator agree is shown in tests/properties/test_expressions.py.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from functools import reduce
from typing import Any, cast

import duckdb
import numpy as np
import pyarrow as pa
import pytest

import headrace as hr
from headrace.core.errors import DefinitionError
from headrace.core.expressions import OPERATORS, Column, Expr, Operation, columns_of, lift, on_table, per_row, type_of
from headrace.core.expressions.algebra import MAX_DEPTH
from headrace.core.expressions.arrow import ROWS
from headrace.core.expressions.sql import to_sql
from headrace.core.expressions.zones import CYCLE, rules_of
from headrace.core.time import DAY, Instant


class T(hr.Source):
    key: hr.Column[str] = hr.row_id()
    at: hr.Column[hr.Instant] = hr.event_time()
    x: hr.Column[float | None] = hr.column()
    n: hr.Column[int | None] = hr.column()
    b: hr.Column[bool | None] = hr.column()
    s: hr.Column[str | None] = hr.column()
    d: hr.Column[hr.Date | None] = hr.column(known_at=at - "1h")


def test_a_definition_has_no_truth_value() -> None:
    with pytest.raises(DefinitionError, match="no truth value") as error:
        bool(T.x > 1)
    assert "test_expressions.py" in str(error.value)
    with pytest.raises(DefinitionError, match="no truth value"):
        _ = 1 < T.x < 3


def test_types_and_columns_are_known_without_data() -> None:
    assert [type_of(e) for e in (T.x > 1, T.n + 1, T.n / 2, T.x + T.n, T.at - "1h")] == [
        "bool",
        "int",
        "float",
        "float",
        "instant",
    ]
    assert columns_of((T.x > 1) & (T.n < T.x)) == (T.x, T.n)


def test_a_null_decides_nothing_and_a_decided_side_wins() -> None:
    both = per_row((T.x > 1) | T.b, {T.x: 0, T.b: 1})
    assert [both(r) for r in ((None, True), (None, False), (2.0, None), (0.0, None))] == [True, None, True, None]


TEXTS: dict[str, Callable[[], Expr[Any]]] = {
    # Versions of stored features are hashes of these texts: none may change.
    "(T.x > 15)": lambda: T.x > 15,
    "((T.x + 1) != (T.n * -0.5))": lambda: T.x + 1 != T.n * -0.5,
    "((2 - T.n) / T.x)": lambda: (2 - T.n) / T.x,
    "((T.x <= 1e+16) & (not (is_null T.b)))": lambda: (T.x <= 1e16) & ~T.b.is_null(),
    "((T.s == 'it\\'s \"') | (T.b == True))": lambda: (T.s == "it's \"") | (T.b == True),  # noqa: E712
    "(T.at - 90m)": lambda: T.at - "1.5h",
    "(T.at + 1d)": lambda: T.at + "24h",
    # The operators that came later.
    "((negate T.x) // (T.n % 2))": lambda: -T.x // (T.n % 2),
    "(T.at >= Instant(2024-01-01T00:00:00Z))": lambda: T.at >= hr.Instant.parse("2024-01-01"),
    "(T.d < datetime.date(2024, 1, 1))": lambda: T.d < date(2024, 1, 1),
    "if_else((T.b ^ True), T.n, None)": lambda: hr.if_else(T.b ^ True, T.n, None),
    "isin(T.s, ('a', 'b'))": lambda: T.s.isin(["a", "b", "a"]),
    "isin(T.x, (1, 1.0, nan))": lambda: T.x.isin([1, 1.0, float("nan")]),
    "least(greatest(T.x, 0), 1)": lambda: T.x.clip(0, 1),
    "((T.x >= 1) & (T.x <= 2))": lambda: T.x.between(1, 2),
    "(not (is_null T.x))": lambda: T.x.not_null(),
    "coalesce(T.s, '')": lambda: T.s.fill_null(""),
    "((T.at - T.at) / 1000000)": lambda: T.at.seconds_since(T.at),
    "substring(T.s, 1, None)": lambda: T.s.substring(1),
    "hour(T.at, 'Europe/Paris')": lambda: T.at.hour("Europe/Paris"),
    "year(T.d, None)": lambda: T.d.year(),
    "truncate(T.at, 900000000)": lambda: T.at.truncate("15m"),
    "(('a' + T.s) + 'b')": lambda: "a" + T.s + "b",
    "((1 // T.n) + (2 % T.n))": lambda: 1 // T.n + 2 % T.n,
}


@pytest.mark.parametrize("text", TEXTS)
def test_an_expressions_text_is_canonical(text: str) -> None:
    assert str(TEXTS[text]()) == text


def test_a_type_error_is_told_at_the_line_that_makes_it() -> None:
    with pytest.raises(DefinitionError) as error:
        _ = T.s * 2  # type: ignore[operator]
    told = str(error.value).splitlines()
    assert told[0] == "a * b cannot take these types"
    assert told[1].startswith("  where:    tests/unit/core/test_expressions.py:")
    assert told[2:] == [
        "  got:      T.s: str, 2: int",
        "  expected: int or float; .as_int() makes a number of a bool or text",
    ]


U: Any = T  # the type checker would refuse most of these mistakes


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: U.s + 1,
        lambda: U.s + U.n,
        lambda: U.n + "1h",
        lambda: U.b + U.n,
        lambda: U.b == 1,
        lambda: U.x == None,  # noqa: E711
        lambda: U.at > 5,
        lambda: U.at > "2024-01-01",
        lambda: U.at == U.d,
        lambda: U.x & U.b,
        lambda: ~U.n,
        lambda: U.d.hour(),
        lambda: U.d.year("UTC"),
        lambda: U.at.hour("Europe/Pariss"),
        lambda: U.n.is_nan(),
        lambda: U.x.as_str(),
        lambda: U.s.isin([1]),
        lambda: U.s.isin("abc"),
        lambda: U.s.isin([]),
        lambda: U.s.isin([None]),
        lambda: hr.if_else(U.x, 1, 2),
        lambda: hr.if_else(U.b, 1, "a"),
        lambda: hr.if_else(U.b, None, None),
        lambda: hr.coalesce(U.x, "a"),
        lambda: hr.least(U.x),
        lambda: U.x.clip(),
        lambda: U.s.startswith(1),
        lambda: U.s.replace("", "a"),
        lambda: U.s.substring(-1),
        lambda: U.s.substring(0, 2**31),
        lambda: U.s == "\ud800",
        lambda: U.n + 2**63,
        lambda: U.at + "99999999999999w",
        lambda: U.x > [1],
        lambda: U.at > datetime(2024, 1, 1),
        lambda: U.at > hr.Instant(2**62),
        lambda: U.at.truncate("15 minutes"),
    ],
)
def test_a_mistake_is_refused_where_it_is_written(wrong: Any) -> None:
    with pytest.raises(DefinitionError):
        wrong()


def test_columns_of_a_class_that_is_still_written_are_checked_once_it_is() -> None:
    kept: list[Expr[Any]] = []

    class Late(hr.Source):
        key: hr.Column[str] = hr.row_id()
        at: hr.Column[hr.Instant] = hr.event_time()
        early = at - "1h"
        kept.append(cast(Any, key) * 2)

    assert type_of(Late.early) == "instant"
    with pytest.raises(DefinitionError, match="cannot take these types") as error:
        type_of(kept[0])
    assert "test_expressions.py" in str(error.value)


def test_every_operator_gives_a_type() -> None:
    made: list[Expr[Any]] = [
        T.x.abs(),
        T.x.sign(),
        T.n.floor(),
        T.n.sqrt(),
        T.s.length(),
        T.s.lower(),
        T.s.contains("a"),
        T.at.date(),
    ]
    assert [type_of(e) for e in made] == ["float", "int", "int", "float", "int", "str", "bool", "date"]
    made = [T.n // 2, T.n // 2.0, T.s + "a", T.at - T.at, T.d - T.d, T.d + "1d", T.at.truncate("1d"), T.d.weekday()]
    assert [type_of(e) for e in made] == ["int", "float", "str", "int", "int", "instant", "instant", "int"]
    made = [hr.if_else(T.b, None, T.n), hr.coalesce(T.n, T.x), hr.greatest(T.d, date(2024, 1, 1)), T.s.as_bool()]
    assert [type_of(e) for e in made] == ["int", "float", "date", "bool"]


def test_constants_of_other_libraries_are_plain_ones() -> None:
    assert str(T.x > np.float64(0.1)) == "(T.x > 0.1)"
    assert str(T.s == np.str_("a")) == "(T.s == 'a')"
    assert str(T.at > datetime(2024, 1, 1, tzinfo=UTC)) == "(T.at > Instant(2024-01-01T00:00:00Z))"


def test_a_chain_that_no_lowering_could_follow_is_refused() -> None:
    whole = reduce(operator.add, [U.x] * (MAX_DEPTH + 1))
    assert per_row(whole, {T.x: 0})((1.0,)) == MAX_DEPTH + 1
    assert on_table(whole, pa.table({"x": [1.0]})).to_pylist() == [MAX_DEPTH + 1]
    with duckdb.connect() as database:
        found = database.execute(f"SELECT {to_sql(whole)} FROM (SELECT 1.0::DOUBLE AS x)").fetchall()
    assert found == [(MAX_DEPTH + 1,)]
    with pytest.raises(DefinitionError, match="too many steps"):
        _ = whole + 1


def test_large_dictionary_encoded_and_empty_tables_are_computed() -> None:
    n = (2 * ROWS) // 3 + 7
    table = pa.table({"s": pa.array(["a", None, "B"] * n).dictionary_encode()})
    assert on_table(T.s.upper(), table).to_pylist() == ["A", None, "B"] * n
    empty = on_table(T.s.length() + 1, table.slice(0, 0))
    assert (len(empty), empty.type) == (0, pa.int64())
    assert on_table(lift(3) + 4, table).to_pylist() == [7] * len(table)


def test_names_and_texts_cannot_become_sql() -> None:
    name = 'x" FROM t; DROP TABLE t; --'
    evil: Column[Any] = Column(name=name, dtype="str")
    text = "'); DROP TABLE t; --"
    table = pa.table({name: ["a"]})
    with duckdb.connect() as database:
        database.register("given", table)
        database.execute("CREATE TABLE t AS FROM given")
        expr = (evil + text).contains("'") & (evil != text)
        assert database.execute(f"SELECT {to_sql(expr)} FROM t").fetchall() == [(True,)]
        assert database.execute("SELECT count(*) FROM t").fetchall() == [(1,)]
    assert to_sql(evil == "'") == "(\"x\"\" FROM t; DROP TABLE t; --\" = CAST('''' AS VARCHAR))"


def test_columns_that_sql_cannot_tell_apart_are_refused() -> None:
    class Twins(hr.Source):
        key: hr.Column[str] = hr.row_id()
        at: hr.Column[hr.Instant] = hr.event_time()
        amount: hr.Column[float] = hr.column()
        Amount: hr.Column[float] = hr.column()

    with pytest.raises(DefinitionError, match="two columns of one name in SQL"):
        to_sql(Twins.amount + Twins.Amount)


def test_sql_grows_with_the_expression_and_not_with_its_depth() -> None:
    deep: Expr[Any] = T.x
    for _ in range(30):
        deep = hr.least(deep.sqrt(), 3.5) // 0.5
    assert len(to_sql(deep)) < 60_000


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Gaza", "Antarctica/Troll", "Pacific/Apia", "UTC"])
def test_a_zones_clock_is_zoneinfos(zone: str) -> None:
    rules = rules_of(zone)
    later = [change + CYCLE for change in rules.changes if change >= rules.repeats]
    for change in [*rules.changes, *later[::50], 0, -60 * 365 * DAY]:
        for instant in (change - 1, change, change + 1):
            shown = Instant(instant).in_zone(zone).utcoffset()
            assert shown is not None
            assert rules.ahead(instant) == shown // timedelta(microseconds=1)


def test_every_operator_is_reached_by_a_method_or_function() -> None:
    named = {name for name in OPERATORS if name.isidentifier()} - {"not", "negate", "shift"}
    public = {name for name in dir(Expr) if not name.startswith("_")} | {"if_else", "coalesce", "least", "greatest"}
    assert named <= public


NAN, INF, MOST, LEAST = math.nan, math.inf, 2**63 - 1, -(2**63)
BEFORE_SUMMER = int(Instant.parse("2024-03-31T00:59:59.5Z"))  # half a second before Paris goes from UTC+1 to UTC+2
# Each operator, or an edge of it, with answers worked out by hand.
ANSWERS: list[tuple[Expr[Any], list[tuple[Any, Any]]]] = [
    (U.n < 2**53 + 1.0, [(2**53 - 1, True), (2**53, False), (2**53 + 1, False), (None, None)]),
    (U.n == 2.0**63, [(MOST, False), (LEAST, False)]),
    (U.n >= -INF, [(LEAST, True)]),
    (U.x != U.x, [(NAN, True), (1.0, False), (None, None)]),
    (U.x > NAN, [(INF, False)]),
    (U.x <= NAN, [(NAN, False), (-INF, False)]),
    (U.s < "b", [("a", True), ("", True), ("B", True), ("é", False), ("\U0001f600", False)]),
    (U.n + 1, [(MOST, None), (MOST - 1, MOST), (-1, 0)]),
    (U.n - 1, [(LEAST, None)]),
    (U.n * U.n, [(2**32, None), (-3, 9), (LEAST, None)]),
    (U.x + U.x, [(1.7e308, INF), (0.1, 0.2)]),
    (U.n / 0, [(1, None), (0, None)]),
    (U.n / 4, [(1, 0.25), (2**53 + 1, 2.0**51)]),
    (U.x / -0.0, [(1.0, None), (NAN, None)]),
    (U.n // 2, [(-7, -4), (7, 3)]),
    (U.n // -1, [(LEAST, None), (5, -5)]),
    (U.n % 3, [(-7, 2), (7, 1)]),
    (U.n % 0, [(7, None)]),
    (U.x % -3.0, [(7.0, -2.0), (-7.0, -1.0), (INF, NAN)]),
    (U.x // 0.1, [(1.0, 9.0), (-0.0, -0.0)]),
    (-U.n, [(LEAST, None), (3, -3)]),
    (-U.x, [(0.0, -0.0)]),
    (U.b & U.b, [(True, True), (False, False), (None, None)]),
    (U.b & False, [(None, False), (True, False)]),
    (U.b | True, [(None, True), (False, True)]),
    (U.b ^ True, [(None, None), (False, True), (True, False)]),
    (~U.b, [(None, None), (False, True)]),
    (U.s.is_null(), [(None, True), ("", False)]),
    (hr.if_else(U.b, 1, 2.5), [(True, 1.0), (False, 2.5), (None, None)]),
    (hr.coalesce(U.n, 0.5), [(None, 0.5), (3, 3.0)]),
    (hr.least(U.x, 0.0), [(-0.0, -0.0), (NAN, NAN), (None, None), (1.0, 0.0)]),
    (hr.greatest(-0.0, U.x), [(0.0, 0.0), (NAN, NAN), (-1.0, -0.0)]),
    (U.n.isin([1.0, 2.5, 2.0**53]), [(1, True), (2, False), (2**53 + 1, False), (None, None)]),
    (U.x.isin([NAN, 0.0]), [(NAN, False), (-0.0, True)]),
    (U.n.abs(), [(LEAST, None), (-3, 3)]),
    (U.x.sign(), [(-0.0, 0), (-INF, -1), (NAN, None), (0.1, 1)]),
    (U.x.floor(), [(-0.5, -1.0), (0.5, 0.0), (-0.0, -0.0), (INF, INF), (NAN, NAN)]),
    (U.x.ceil(), [(-0.5, -0.0), (0.5, 1.0)]),
    (U.x.round(), [(0.5, 0.0), (1.5, 2.0), (-2.5, -2.0), (0.49999999999999994, 0.0), (-0.1, -0.0)]),
    (U.x.sqrt(), [(-1.0, None), (-0.0, -0.0), (2.0, 1.4142135623730951), (NAN, NAN)]),
    (U.x.is_nan(), [(NAN, True), (INF, False)]),
    (U.x.is_finite(), [(NAN, False), (INF, False), (1e308, True)]),
    (U.x.as_int(), [(-1.9, -1), (1.9, 1), (2.0**63, None), (-(2.0**63), LEAST), (NAN, None), (INF, None)]),
    (U.s.as_int(), [("-007", -7), ("+3", 3), ("9223372036854775808", None), (" 3", None), ("٣", None), ("1.0", None)]),
    (
        U.s.as_float(),
        [(".5", 0.5), ("5.", 5.0), ("1e999", INF), ("-0", -0.0), ("1e", None), ("nan", None), ("1_0", None)],
    ),
    (U.n.as_float(), [(2**53 + 1, 2.0**53)]),
    (U.n.as_str(), [(-7, "-7")]),
    (U.b.as_str(), [(True, "true"), (False, "false")]),
    (U.s.as_bool(), [("true", True), ("false", False), ("True", None)]),
    (U.x.as_bool(), [(NAN, True), (-0.0, False)]),
    (U.b.as_int(), [(True, 1)]),
    (U.at.as_int(), [(5, 5)]),
    (U.s.lower(), [("AZ Ä İ", "az Ä İ")]),
    (U.s.upper(), [("az ä ß", "AZ ä ß")]),
    (U.s.strip(), [("\v\f\r\n\t a \u2003", "a \u2003"), ("\u00a0", "\u00a0")]),
    (U.s.length(), [("e\u0301", 2), ("\U0001f600", 1)]),
    (U.s.startswith("a"), [("ab", True), ("", False)]),
    (U.s.endswith(""), [("ab", True)]),
    (U.s.contains("\0"), [("a\0b", True)]),
    (U.s.replace("aa", "b"), [("aaa", "ba")]),
    (U.s.substring(1, 2), [("a\U0001f600bc", "\U0001f600b"), ("a", "")]),
    (U.at + "1h", [(0, 3_600_000_000), (MOST, None)]),
    (U.at.truncate("15m"), [(-1, -900_000_000), (LEAST, None)]),
    (U.at - U.at, [(5, 0)]),
    (U.at.seconds_since(hr.Instant(0)), [(1_500_000, 1.5)]),
    (U.at.hour("Europe/Paris"), [(BEFORE_SUMMER, 1), (BEFORE_SUMMER + 500_000, 3), (MOST, None)]),
    (U.at.minute("Asia/Kathmandu"), [(0, 30)]),  # UTC+5:30 until 1986
    (U.at.second_of_day("Europe/Paris"), [(BEFORE_SUMMER, 7199), (BEFORE_SUMMER + 500_000, 10800)]),
    (U.at.date("America/New_York"), [(0, -DAY)]),
    (U.at.weekday(), [(0, 3), (-1, 2)]),
    (U.at.year("Europe/Paris"), [(1_704_063_600_000_000, 2024), (1_704_063_599_999_999, 2023)]),
    (U.d.month(), [(19_782 * DAY, 2)]),
    (U.d.day(), [(19_782 * DAY, 29)]),
]


@pytest.mark.parametrize(("expr", "answers"), ANSWERS, ids=lambda value: str(value) if isinstance(value, Expr) else "")
def test_an_operator_means_what_the_page_says(expr: Expr[Any], answers: list[tuple[Any, Any]]) -> None:
    value = per_row(expr, dict.fromkeys(columns_of(expr), 0))
    for given, expected in answers:
        assert repr(value((given,))) == repr(expected), given


def test_every_operator_has_an_answer() -> None:
    def inside(expr: Expr[Any]) -> set[str]:
        return {expr.op}.union(*map(inside, expr.args)) if isinstance(expr, Operation) else set()

    assert {op for expr, _ in ANSWERS for op in inside(expr)} == set(OPERATORS)
