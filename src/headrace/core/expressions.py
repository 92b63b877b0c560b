"""Describe values without computing them: columns, comparisons and arithmetic that a project file writes down.

An expression has no truth value; it is lowered later, per row (`per_row`) or for a whole Arrow table (`on_table`),
and both give the same values: null in, null out; a division by zero is null; `&` and `|` follow Kleene's logic.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from headrace.core.errors import DefinitionError
from headrace.core.location import user_location
from headrace.core.time import Instant, duration, end_of_day, format_duration

if TYPE_CHECKING:
    import pyarrow as pa

T_co = TypeVar("T_co", covariant=True)
Row = Sequence[Any]
Operand = Any
COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
ARROW = {"<": "less", "<=": "less_equal", ">": "greater", ">=": "greater_equal", "==": "equal", "!=": "not_equal"}
ARROW |= {"+": "add", "-": "subtract", "*": "multiply", "&": "and_kleene", "|": "or_kleene"}


class Expr(Generic[T_co]):
    """Stand for a value of type `T_co` in each row; comparing and calculating gives further expressions."""

    location: str

    def __lt__(self, other: Operand) -> Expr[bool]:
        return Binary("<", self, lift(other))

    def __le__(self, other: Operand) -> Expr[bool]:
        return Binary("<=", self, lift(other))

    def __gt__(self, other: Operand) -> Expr[bool]:
        return Binary(">", self, lift(other))

    def __ge__(self, other: Operand) -> Expr[bool]:
        return Binary(">=", self, lift(other))

    def __eq__(self, other: object) -> Expr[bool]:  # type: ignore[override]
        return Binary("==", self, lift(other))

    def __ne__(self, other: object) -> Expr[bool]:  # type: ignore[override]
        return Binary("!=", self, lift(other))

    __hash__ = object.__hash__

    def __add__(self, other: Operand) -> Expr[Any]:
        return Shift(self, duration(other)) if isinstance(other, str) else Binary("+", self, lift(other))

    def __sub__(self, other: Operand) -> Expr[Any]:
        return Shift(self, -duration(other)) if isinstance(other, str) else Binary("-", self, lift(other))

    def __mul__(self, other: Operand) -> Expr[Any]:
        return Binary("*", self, lift(other))

    def __truediv__(self, other: Operand) -> Expr[float | None]:
        return Binary("/", self, lift(other))

    def __radd__(self, other: Operand) -> Expr[Any]:
        return Binary("+", lift(other), self)

    def __rsub__(self, other: Operand) -> Expr[Any]:
        return Binary("-", lift(other), self)

    def __rmul__(self, other: Operand) -> Expr[Any]:
        return Binary("*", lift(other), self)

    def __and__(self, other: Expr[Any]) -> Expr[bool]:
        return Binary("&", self, lift(other))

    def __or__(self, other: Expr[Any]) -> Expr[bool]:
        return Binary("|", self, lift(other))

    def __invert__(self) -> Expr[bool]:
        return Unary("not", self)

    def is_null(self) -> Expr[bool]:
        """Ask whether the value is null; the answer never is."""
        return Unary("is_null", self)

    def __bool__(self) -> bool:
        raise DefinitionError(
            "a definition has no truth value",
            where=user_location(),
            got=f"{self} in an `if`, `and`, `or`, `not` or a chained comparison",
            expected="an expression that stays a definition",
            next_step="use & | ~ and one comparison at a time",
        )

    def __iter__(self) -> Iterator[Any]:
        raise DefinitionError("a definition cannot be looped over", where=user_location(), got=str(self))

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True, eq=False, repr=False)
class Literal(Expr[T_co]):
    """Hold a constant: a number, a string, a bool or None."""

    value: Any
    location: str = field(default_factory=user_location)

    def __str__(self) -> str:
        return repr(self.value)


@dataclass(frozen=True, eq=False, repr=False)
class Binary(Expr[T_co]):
    """Combine two expressions with an operator."""

    op: str
    left: Expr[Any]
    right: Expr[Any]
    location: str = field(default_factory=user_location)

    def __str__(self) -> str:
        return f"({self.left} {self.op} {self.right})"


@dataclass(frozen=True, eq=False, repr=False)
class Unary(Expr[T_co]):
    """Apply `not` or `is_null` to an expression."""

    op: str
    value: Expr[Any]
    location: str = field(default_factory=user_location)

    def __str__(self) -> str:
        return f"({self.op} {self.value})"


@dataclass(frozen=True, eq=False, repr=False)
class Shift(Expr[T_co]):
    """Move an instant by a constant number of microseconds."""

    value: Expr[Any]
    offset: int
    location: str = field(default_factory=user_location)

    def __str__(self) -> str:
        return f"({self.value} {'-' if self.offset < 0 else '+'} {format_duration(abs(self.offset))})"


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
    isin: tuple[Any, ...] | None = None
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

    def __str__(self) -> str:
        return f"{self.owner.__name__}.{self.name}" if self.owner else (self.name or f"<column at {self.location}>")

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process must know of the column: of its owner only the name."""
        return self.__dict__ | {"owner": None if self.owner is None else self.owner.__name__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        owner = state["owner"]
        self.__dict__.update(state, owner=None if owner is None else type(owner, (), {}))

    def instant(self, value: Any) -> Any:
        """Return the instant that a value of the column stands for: a day of a zone stands for its end."""
        return value if self.zone is None else end_of_day(value, self.zone)


def lift(value: object) -> Expr[Any]:
    """Return an expression as it is and a plain constant as a literal.

    Raises:
        DefinitionError: the value is neither.
    """
    if isinstance(value, Expr):
        return value
    if value is None or isinstance(value, (bool, int, float, str)):
        return Literal(value)
    raise DefinitionError(
        "not an expression or a constant", where=user_location(), got=f"{type(value).__name__} {value}"
    )


def children(expr: Expr[Any]) -> tuple[Expr[Any], ...]:
    """Return the expressions directly inside one."""
    if isinstance(expr, Binary):
        return (expr.left, expr.right)
    if isinstance(expr, (Unary, Shift)):
        return (expr.value,)
    return ()


def columns_of(expr: Expr[Any]) -> tuple[Column[Any], ...]:
    """Return the columns that an expression reads, each once, in order of appearance."""
    if isinstance(expr, Column):
        return (expr,)
    found: dict[Column[Any], None] = {}
    for child in children(expr):
        found.update(dict.fromkeys(columns_of(child)))
    return tuple(found)


def type_of(expr: Expr[Any]) -> str:
    """Return the type of an expression's values: str, int, float, bool, instant or date."""
    if isinstance(expr, Column):
        return expr.dtype
    if isinstance(expr, Literal):
        return type(expr.value).__name__
    if isinstance(expr, Shift):
        return "instant"
    if isinstance(expr, Unary) or (isinstance(expr, Binary) and (expr.op in COMPARE or expr.op in "&|")):
        return "bool"
    types = {type_of(child) for child in children(expr)}
    if isinstance(expr, Binary) and (expr.op == "/" or "float" in types):
        return "float"
    if types == {"instant"}:
        return "int"
    return "int"


def per_row(expr: Expr[Any], index: Mapping[Column[Any], int]) -> Callable[[Row], Any]:
    """Lower an expression to a function of one row, whose values stand at the places that `index` gives.

    Comparisons of a column with a constant get a function of their own: they run for every event.
    """
    if isinstance(expr, Column):
        return operator.itemgetter(index[expr])
    if isinstance(expr, Literal):
        constant = expr.value
        return lambda row: constant
    if isinstance(expr, Shift):
        inner, offset = per_row(expr.value, index), expr.offset
        return lambda row: None if (value := inner(row)) is None else value + offset
    if isinstance(expr, Unary):
        inner = per_row(expr.value, index)
        if expr.op == "is_null":
            return lambda row: inner(row) is None
        return lambda row: None if (value := inner(row)) is None else not value
    return _binary_per_row(cast("Binary[Any]", expr), index)


def _binary_per_row(expr: Binary[Any], index: Mapping[Column[Any], int]) -> Callable[[Row], Any]:
    left, right = per_row(expr.left, index), per_row(expr.right, index)
    if expr.op in "&|":
        decides = expr.op == "|"
        return lambda row: _kleene(left(row), right(row), decides)
    if expr.op == "/":
        return lambda row: _divide(left(row), right(row))
    apply = COMPARE.get(expr.op) or ARITHMETIC[expr.op]
    if isinstance(expr.left, Column) and isinstance(expr.right, Literal) and expr.right.value is not None:
        place, constant = index[expr.left], expr.right.value
        return lambda row: None if (value := row[place]) is None else apply(value, constant)

    def both(row: Row) -> Any:
        a, b = left(row), right(row)
        return None if a is None or b is None else apply(a, b)

    return both


def _kleene(a: bool | None, b: bool | None, decides: bool) -> bool | None:
    if a is decides or b is decides:
        return decides
    return None if a is None or b is None else not decides


def _divide(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None or b == 0 else a / b


def on_table(expr: Expr[Any], table: pa.Table) -> pa.ChunkedArray:
    """Compute an expression for every row of an Arrow table that has the columns under their own names."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(expr, Column):
        return table.column(expr.name)
    if isinstance(expr, Literal):
        return pa.chunked_array([pa.array([expr.value] * table.num_rows)])
    if isinstance(expr, Shift):
        return pc.add(on_table(expr.value, table), expr.offset)
    if isinstance(expr, Unary):
        inner = on_table(expr.value, table)
        return pc.is_null(inner) if expr.op == "is_null" else pc.invert(inner)
    assert isinstance(expr, Binary)
    left, right = on_table(expr.left, table), _side(expr.right, table)
    if expr.op == "/":
        divisor = pc.cast(right, pa.float64())
        return pc.divide(pc.cast(left, pa.float64()), pc.if_else(pc.equal(divisor, 0.0), None, divisor))
    return getattr(pc, ARROW[expr.op])(left, right)


def _side(expr: Expr[Any], table: pa.Table) -> Any:
    import pyarrow as pa

    return pa.scalar(expr.value) if isinstance(expr, Literal) else on_table(expr, table)


@dataclass(frozen=True)
class Moment:
    """Say when a value is known: the latest of some instants, each a column plus a constant offset (microseconds)."""

    terms: tuple[tuple[Column[Any], int], ...]

    @classmethod
    def of(cls, expr: Expr[Any]) -> Moment:
        """Read a moment from a column of instants, moved by constants at most.

        Raises:
            DefinitionError: the expression is something else.
        """
        offset, inner = 0, expr
        while isinstance(inner, Shift):
            offset, inner = offset + inner.offset, inner.value
        if not isinstance(inner, Column):
            raise DefinitionError(
                "not a moment",
                where=expr.location,
                got=str(expr),
                expected='a column of instants, plus or minus a duration: sched_dep - "1h"',
            )
        return cls(((inner, offset),))

    @classmethod
    def latest(cls, moments: Sequence[Moment]) -> Moment:
        """Return the latest of several moments; of terms on one column only the largest offset matters."""
        largest: dict[Column[Any], int] = {}
        for column, offset in (term for moment in moments for term in moment.terms):
            largest[column] = max(offset, largest.get(column, offset))
        return cls(tuple(sorted(largest.items(), key=lambda term: term[0].name)))

    def certainly_by(self, other: Moment) -> bool:
        """Tell whether this is provably never later than `other`, from constant offsets alone."""
        bounds = dict(other.terms)
        return all(column in bounds and offset <= bounds[column] for column, offset in self.terms)

    def per_row(self, index: Mapping[Column[Any], int]) -> Callable[[Row], Instant | None]:
        """Lower to a function of one row; null if any of the instants is null."""
        if len(self.terms) == 1 and self.terms[0][0].zone is None:
            return per_row(Shift(*self.terms[0]), index) if self.terms[0][1] else per_row(self.terms[0][0], index)
        places = [(index[column], column.instant, offset) for column, offset in self.terms]

        def latest(row: Row) -> Any:
            found = None
            for place, instant, offset in places:
                value = row[place]
                if value is None:
                    return None
                moment = instant(value) + offset
                if found is None or moment > found:
                    found = moment
            return found

        return latest

    def __str__(self) -> str:
        texts = [str(Shift(column, offset)) if offset else str(column) for column, offset in self.terms]
        return texts[0] if len(texts) == 1 else f"latest of {', '.join(texts)}"
