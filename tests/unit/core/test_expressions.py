"""Expressions: both lowerings agree, definitions have no truth value, mistakes name their line."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import headrace as hr
from headrace.core.errors import DefinitionError
from headrace.core.expressions import Expr, columns_of, lift, on_table, per_row, type_of


class T(hr.Source):
    key: hr.Column[str] = hr.row_id()
    at: hr.Column[hr.Instant] = hr.event_time()
    x: hr.Column[float | None] = hr.column()
    n: hr.Column[int | None] = hr.column()
    b: hr.Column[bool | None] = hr.column()


NUMBERS = st.sampled_from([T.x, T.n, lift(0.1), lift(3), lift(-2.5)])


def combine(inner: st.SearchStrategy[Expr[Any]]) -> st.SearchStrategy[Expr[Any]]:
    operators = [lambda a, b: a + b, lambda a, b: a - b, lambda a, b: a * b, lambda a, b: a / b]
    return st.builds(lambda f, a, b: f(a, b), st.sampled_from(operators), inner, inner)


def conditions(numbers: st.SearchStrategy[Expr[Any]]) -> st.SearchStrategy[Expr[Any]]:
    compare = [lambda a, b: a < b, lambda a, b: a >= b, lambda a, b: a == b, lambda a, b: a != b]
    simple = st.one_of(
        st.builds(lambda f, a, b: f(a, b), st.sampled_from(compare), numbers, numbers),
        numbers.map(lambda a: a.is_null()),
        st.just(T.b),
    )
    logic = [lambda a, b: a & b, lambda a, b: a | b, lambda a, b: ~a | b]
    return st.recursive(
        simple, lambda i: st.builds(lambda f, a, b: f(a, b), st.sampled_from(logic), i, i), max_leaves=4
    )


EXPRS = st.recursive(NUMBERS, combine, max_leaves=5)
ROWS = st.lists(
    st.tuples(
        st.one_of(st.none(), st.floats(-1e9, 1e9, allow_nan=False)),
        st.one_of(st.none(), st.integers(-1000, 1000)),
        st.one_of(st.none(), st.booleans()),
    ),
    min_size=1,
    max_size=8,
)


@given(st.one_of(EXPRS, conditions(EXPRS)), ROWS)
def test_a_row_and_a_table_give_the_same_values(expr: Expr[Any], rows: list[tuple[Any, ...]]) -> None:
    index = {T.x: 0, T.n: 1, T.b: 2}
    types = {"x": pa.float64(), "n": pa.int64(), "b": pa.bool_()}
    table = pa.table({k: pa.array([r[i] for r in rows], t) for i, (k, t) in enumerate(types.items())})
    alone = [per_row(expr, index)(row) for row in rows]
    together = on_table(expr, table).to_pylist()
    assert alone == together


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
