"""Describe columns, the leaves of expressions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from headrace.core.expressions.algebra import Expr, Operation, T_co
from headrace.core.location import user_location
from headrace.core.time import end_of_day


@dataclass(eq=False, repr=False)
class Column(Expr[T_co]):
    """Describe one column of a source: its type, its valid values, and when its value becomes known.

    Made by `hr.column`, `hr.entity`, `hr.row_id`, `hr.event_time`; its source gives it name, owner and type.
    """

    role: str = "column"
    known_at: Expr[Any] | None = None
    due: Expr[Any] | None = None
    unit: str | None = None
    description: str | None = None
    ge: float | None = None
    le: float | None = None
    matches: str | None = None
    allowed: tuple[Any, ...] | None = None
    allow_nan: bool = False
    state: bool = False
    pii: bool = False
    renamed: str | None = None
    zone: str | None = None
    known_after: int = 0
    references: Column[Any] | None = None
    parts: tuple[Column[Any], ...] = ()
    location: str = field(default_factory=user_location)
    name: str = ""
    owner: type | None = None
    dtype: str = ""
    nullable: bool = False

    def kind(self) -> str:
        """Return the declared type."""
        return self.dtype

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process must know of the column: of its owner only the name."""
        return self.__dict__ | {"owner": None if self.owner is None else self.owner.__name__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        owner = state["owner"]
        self.__dict__.update(state, owner=None if owner is None else type(owner, (), {}))

    def instant(self, value: Any) -> Any:
        """Return the instant that a value of the column stands for: a day of a zone stands for its end."""
        return value if self.zone is None else end_of_day(value, self.zone)

    def __str__(self) -> str:
        return f"{self.owner.__name__}.{self.name}" if self.owner else (self.name or f"<column at {self.location}>")


def columns_of(expr: Expr[Any]) -> tuple[Column[Any], ...]:
    """Return the columns that an expression reads, each once, in order of appearance."""
    if isinstance(expr, Column):
        return (expr,)
    found: dict[Column[Any], None] = {}
    for arg in expr.args if isinstance(expr, Operation) else ():
        found.update(dict.fromkeys(columns_of(arg)))
    return tuple(found)


def type_of(expr: Expr[Any]) -> str:
    """Return the type of an expression's values: str, int, float, bool, instant or date.

    Raises:
        DefinitionError: an operator cannot take its operands.
    """
    return expr.kind()
