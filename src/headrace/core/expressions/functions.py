"""Choose between values: the functions of several expressions."""

from __future__ import annotations

from typing import Any

from headrace.core.errors import DefinitionError
from headrace.core.expressions.algebra import Call, Expr, lift
from headrace.core.location import user_location


def if_else(condition: Expr[bool] | Expr[bool | None], then: Any, otherwise: Any) -> Expr[Any]:
    """Take `then` where the condition is true, `otherwise` where it is false, null where it is null."""
    return Call("if_else", (lift(condition), lift(then), lift(otherwise)))


def coalesce(*values: Expr[Any] | Any) -> Expr[Any]:
    """Take the first value that is not null; null if all are.

    Raises:
        DefinitionError: fewer than two values.
    """
    return _of_several("coalesce", values)


def least(*values: Expr[Any] | Any) -> Expr[Any]:
    """Take the smallest value; null if one is null, NaN if one is NaN.

    Raises:
        DefinitionError: fewer than two values.
    """
    return _of_several("least", values)


def greatest(*values: Expr[Any] | Any) -> Expr[Any]:
    """Take the largest value; null if one is null, NaN if one is NaN.

    Raises:
        DefinitionError: fewer than two values.
    """
    return _of_several("greatest", values)


def _of_several(op: str, values: tuple[Any, ...]) -> Expr[Any]:
    if len(values) < 2:
        raise DefinitionError(f"hr.{op} chooses between values", where=user_location(), got=len(values), expected="two")
    return Call(op, tuple(lift(value) for value in values))
