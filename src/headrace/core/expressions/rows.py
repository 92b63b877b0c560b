"""Lower an expression to a function of one row."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

from headrace.core.expressions.algebra import Expr, Literal, Operation, Row, Shift
from headrace.core.expressions.columns import Column
from headrace.core.expressions.constants import LEAST, MOST, members, stored
from headrace.core.expressions.scalars import COMPARE, scalar

RowFunction = Callable[[Row], Any]


def per_row(expr: Expr[Any], index: Mapping[Column[Any], int]) -> RowFunction:
    """Lower an expression to a function of one row, whose values stand at the places that `index` gives.

    Comparisons of a column with a constant get a function of their own: they run for every event.
    """
    if isinstance(expr, Column):
        return operator.itemgetter(index[expr])
    if isinstance(expr, Literal):
        value = stored(expr.value)
        return lambda row: value
    assert isinstance(expr, Operation)
    wanted = expr.signature.operands
    if isinstance(expr, Shift):
        return _shift(per_row(expr.value, index), expr.offset)
    if expr.op in COMPARE and isinstance(expr.args[0], Column) and isinstance(expr.args[1], Literal):
        return _compare(index[expr.args[0]], COMPARE[expr.op], stored(expr.args[1].value))
    inner = [_converted(per_row(arg, index), arg.kind(), kind) for arg, kind in zip(expr.args, wanted, strict=True)]
    if expr.op in _OF_NULLS:
        return _OF_NULLS[expr.op](inner)
    return strict(inner, function_of(expr))


def function_of(expr: Operation[Any]) -> Callable[..., Any]:
    """Return an operator, with its constants, as a function of values that are not null."""
    kind = expr.signature.operands[0]
    apply = scalar(expr.op, kind)
    if expr.op in ("least", "greatest"):
        return lambda *values: reduce(apply, values)
    options = (frozenset(members(expr.options[0], kind)),) if expr.op == "isin" else expr.options
    return (lambda *values: apply(*values, *options)) if options else apply


def _converted(inner: RowFunction, kind: str, wanted: str) -> RowFunction:
    if kind == "int" and wanted == "float":
        return lambda row: None if (value := inner(row)) is None else float(value)
    return inner


def _compare(place: int, apply: Callable[[Any, Any], Any], value: Any) -> RowFunction:
    return lambda row: None if (cell := row[place]) is None else apply(cell, value)


def _shift(inner: RowFunction, offset: int) -> RowFunction:
    low, high = max(LEAST, LEAST - offset), min(MOST, MOST - offset)
    return lambda row: None if (value := inner(row)) is None or not low <= value <= high else value + offset


def strict(inner: Sequence[RowFunction], apply: Callable[..., Any]) -> RowFunction:
    """Return a function that gives null as soon as one operand is null."""
    if len(inner) == 1:
        one = inner[0]
        return lambda row: None if (value := one(row)) is None else apply(value)
    if len(inner) == 2:
        left, right = inner
        return lambda row: None if (a := left(row)) is None or (b := right(row)) is None else apply(a, b)

    def every(row: Row) -> Any:
        values = [value(row) for value in inner]
        return None if None in values else apply(*values)

    return every


def _is_null(inner: Sequence[RowFunction]) -> RowFunction:
    one = inner[0]
    return lambda row: one(row) is None


def _kleene(decides: bool) -> Callable[[Sequence[RowFunction]], RowFunction]:
    """Return what `&` (False decides) and `|` (True decides) do with null."""

    def lower(inner: Sequence[RowFunction]) -> RowFunction:
        left, right = inner

        def both(row: Row) -> Any:
            a, b = left(row), right(row)
            if a is decides or b is decides:
                return decides
            return None if a is None or b is None else not decides

        return both

    return lower


def _if_else(inner: Sequence[RowFunction]) -> RowFunction:
    condition, then, otherwise = inner
    return lambda row: None if (holds := condition(row)) is None else then(row) if holds else otherwise(row)


def _coalesce(inner: Sequence[RowFunction]) -> RowFunction:
    return lambda row: next((value for one in inner if (value := one(row)) is not None), None)


_OF_NULLS: dict[str, Callable[[Sequence[RowFunction]], RowFunction]] = {
    "is_null": _is_null,
    "&": _kleene(False),
    "|": _kleene(True),
    "if_else": _if_else,
    "coalesce": _coalesce,
}
