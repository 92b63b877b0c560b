"""Describe values without computing them: columns, comparisons and calculations that a project file writes down.

An expression has no truth value and its operands are checked where it is written. It is lowered later: per row, for a
whole Arrow table, or to DuckDB's SQL.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeAlias, TypeVar, overload

from headrace.core.errors import DefinitionError
from headrace.core.expressions.constants import kind_of, listed, place_in_text, plain, text
from headrace.core.expressions.operators import Signature, signature_of
from headrace.core.location import user_location
from headrace.core.time import Date, Instant, duration, format_duration, zone_of

T_co = TypeVar("T_co", covariant=True)
Row = Sequence[Any]
MAX_DEPTH = 100  # operators inside operators: a lowering recurses, and Python stops at 1,000 frames


class Expr(Generic[T_co]):
    """Stand for a value of type `T_co` in each row; comparing and calculating gives further expressions."""

    location: str

    def kind(self) -> str:
        """Return the type of the values by name: str, int, float, bool, instant or date.

        It is "" while the class of a column is still being written, "null" for None.
        """
        raise NotImplementedError

    @overload
    def __lt__(self: Number, other: float | Number) -> Expr[bool]: ...
    @overload
    def __lt__(self: Text, other: str | Text) -> Expr[bool]: ...
    @overload
    def __lt__(self: Moments, other: Instant | Date | Moments) -> Expr[bool]: ...
    def __lt__(self, other: Any) -> Expr[bool]:
        return Binary("<", self, lift(other))

    @overload
    def __le__(self: Number, other: float | Number) -> Expr[bool]: ...
    @overload
    def __le__(self: Text, other: str | Text) -> Expr[bool]: ...
    @overload
    def __le__(self: Moments, other: Instant | Date | Moments) -> Expr[bool]: ...
    def __le__(self, other: Any) -> Expr[bool]:
        return Binary("<=", self, lift(other))

    @overload
    def __gt__(self: Number, other: float | Number) -> Expr[bool]: ...
    @overload
    def __gt__(self: Text, other: str | Text) -> Expr[bool]: ...
    @overload
    def __gt__(self: Moments, other: Instant | Date | Moments) -> Expr[bool]: ...
    def __gt__(self, other: Any) -> Expr[bool]:
        return Binary(">", self, lift(other))

    @overload
    def __ge__(self: Number, other: float | Number) -> Expr[bool]: ...
    @overload
    def __ge__(self: Text, other: str | Text) -> Expr[bool]: ...
    @overload
    def __ge__(self: Moments, other: Instant | Date | Moments) -> Expr[bool]: ...
    def __ge__(self, other: Any) -> Expr[bool]:
        return Binary(">=", self, lift(other))

    def __eq__(self, other: object) -> Expr[bool]:  # type: ignore[override]
        return Binary("==", self, lift(other))

    def __ne__(self, other: object) -> Expr[bool]:  # type: ignore[override]
        return Binary("!=", self, lift(other))

    __hash__ = object.__hash__

    @overload  # only Expr[None] would fit more than one
    def __add__(self: Text, other: str | Text) -> Text: ...  # type: ignore[overload-overlap]
    @overload
    def __add__(self: Moments, other: str) -> Expr[Instant | None]: ...
    @overload
    def __add__(self: Whole, other: int | Whole) -> Whole: ...  # type: ignore[overload-overlap]
    @overload
    def __add__(self: Number, other: float | Number) -> Number: ...
    def __add__(self, other: Any) -> Expr[Any]:
        return self._moved(other, 1) if self._moves(other) else Binary("+", self, lift(other))

    @overload
    def __sub__(self: Moments, other: str) -> Expr[Instant | None]: ...
    @overload
    def __sub__(self: Moments, other: Instant | Date | Moments) -> Whole: ...  # type: ignore[overload-overlap]
    @overload
    def __sub__(self: Whole, other: int | Whole) -> Whole: ...  # type: ignore[overload-overlap]
    @overload
    def __sub__(self: Number, other: float | Number) -> Number: ...
    def __sub__(self, other: Any) -> Expr[Any]:
        return self._moved(other, -1) if self._moves(other) else Binary("-", self, lift(other))

    @overload
    def __mul__(self: Whole, other: int | Whole) -> Whole: ...  # type: ignore[overload-overlap]
    @overload
    def __mul__(self: Number, other: float | Number) -> Number: ...
    def __mul__(self, other: Any) -> Expr[Any]:
        return Binary("*", self, lift(other))

    def __truediv__(self: Number, other: float | Number) -> Number:
        return Binary("/", self, lift(other))

    @overload
    def __floordiv__(self: Whole, other: int | Whole) -> Whole: ...  # type: ignore[overload-overlap]
    @overload
    def __floordiv__(self: Number, other: float | Number) -> Number: ...
    def __floordiv__(self, other: Any) -> Expr[Any]:
        return Binary("//", self, lift(other))

    @overload
    def __mod__(self: Whole, other: int | Whole) -> Whole: ...  # type: ignore[overload-overlap]
    @overload
    def __mod__(self: Number, other: float | Number) -> Number: ...
    def __mod__(self, other: Any) -> Expr[Any]:
        return Binary("%", self, lift(other))

    def __radd__(self, other: float | str) -> Expr[Any]:
        return Binary("+", lift(other), self)

    def __rsub__(self, other: Any) -> Expr[Any]:
        return Binary("-", lift(other), self)

    def __rmul__(self: Number, other: float) -> Expr[Any]:
        return Binary("*", lift(other), self)

    def __rtruediv__(self: Number, other: float) -> Number:
        return Binary("/", lift(other), self)

    def __rfloordiv__(self: Number, other: float) -> Expr[Any]:
        return Binary("//", lift(other), self)

    def __rmod__(self: Number, other: float) -> Expr[Any]:
        return Binary("%", lift(other), self)

    def __neg__(self: Number) -> Expr[Any]:
        return Unary("negate", self)

    def __and__(self: Condition, other: bool | Condition) -> Expr[bool]:
        return Binary("&", self, lift(other))

    def __or__(self: Condition, other: bool | Condition) -> Expr[bool]:
        return Binary("|", self, lift(other))

    def __xor__(self: Condition, other: bool | Condition) -> Expr[bool]:
        return Binary("^", self, lift(other))

    __rand__, __ror__, __rxor__ = __and__, __or__, __xor__

    def __invert__(self: Condition) -> Expr[bool]:
        return Unary("not", self)

    def is_null(self) -> Expr[bool]:
        """Ask whether the value is null; the answer never is."""
        return Unary("is_null", self)

    def not_null(self) -> Expr[bool]:
        """Ask whether there is a value; the answer is never null."""
        return ~self.is_null()

    def fill_null(self, value: Any) -> Expr[Any]:
        """Put a value where there is none."""
        return Call("coalesce", (self, lift(value)))

    def isin(self, values: Iterable[Any]) -> Expr[bool]:
        """Ask whether the value equals one of some constants.

        Raises:
            DefinitionError: a value is no constant or of another type.
        """
        return Call("isin", (self,), (listed(values),))

    def between(self, low: Any, high: Any) -> Expr[bool]:
        """Ask whether the value lies between two others or equals one of them."""
        return Binary("&", Binary(">=", self, lift(low)), Binary("<=", self, lift(high)))

    def clip(self: Number, low: Any = None, high: Any = None) -> Expr[Any]:
        """Replace what is below `low` by `low` and what is above `high` by `high`; NaN stays.

        Raises:
            DefinitionError: neither is given.
        """
        if low is None and high is None:
            raise DefinitionError("clip needs a bound", where=user_location(), expected="low=, high= or both")
        raised: Expr[Any] = self if low is None else Call("greatest", (self, lift(low)))
        return raised if high is None else Call("least", (raised, lift(high)))

    def abs(self: Number) -> Expr[Any]:
        """Take the number without its sign."""
        return Call("abs", (self,))

    __abs__ = abs

    def sign(self: Number) -> Whole:
        """Take -1, 0 or 1; null for NaN."""
        return Call("sign", (self,))

    def floor(self: Number) -> Expr[Any]:
        """Round down to a whole number; a float stays a float."""
        return Call("floor", (self,))

    def ceil(self: Number) -> Expr[Any]:
        """Round up to a whole number; a float stays a float."""
        return Call("ceil", (self,))

    def round(self: Number) -> Expr[Any]:
        """Round to the nearest whole number, to the even one of two; a float stays a float."""
        return Call("round", (self,))

    def sqrt(self: Number) -> Number:
        """Take the square root; null below 0."""
        return Call("sqrt", (self,))

    def is_nan(self: Number) -> Expr[bool]:
        """Ask whether a float is NaN."""
        return Call("is_nan", (self,))

    def is_finite(self: Number) -> Expr[bool]:
        """Ask whether a float is neither NaN nor infinite."""
        return Call("is_finite", (self,))

    def as_int(self) -> Whole:
        """Read a text, cut a float towards 0, count an instant's microseconds since 1970 UTC; null where impossible."""
        return Call("as_int", (self,))

    def as_float(self) -> Number:
        """Read a text, or take an integer's nearest float; null where impossible."""
        return Call("as_float", (self,))

    def as_str(self) -> Text:
        """Write an integer's digits, or "true" or "false"."""
        return Call("as_str", (self,))

    def as_bool(self) -> Condition:
        """Ask whether a number is not 0, or read "true" and "false"; null where impossible."""
        return Call("as_bool", (self,))

    def lower(self: Text) -> Text:
        """Turn A to Z into a to z; all else stays."""
        return Call("lower", (self,))

    def upper(self: Text) -> Text:
        """Turn a to z into A to Z; all else stays."""
        return Call("upper", (self,))

    def strip(self: Text) -> Text:
        """Take ASCII white space off both ends."""
        return Call("strip", (self,))

    def length(self: Text) -> Whole:
        """Count code points."""
        return Call("length", (self,))

    def startswith(self: Text, prefix: str) -> Expr[bool]:
        """Ask whether the text begins with a constant."""
        return Call("startswith", (self,), (text(prefix),))

    def endswith(self: Text, suffix: str) -> Expr[bool]:
        """Ask whether the text ends with a constant."""
        return Call("endswith", (self,), (text(suffix),))

    def contains(self: Text, part: str) -> Expr[bool]:
        """Ask whether a constant is in the text."""
        return Call("contains", (self,), (text(part),))

    def replace(self: Text, old: str, new: str) -> Text:
        """Replace every `old`, from the left, by `new`.

        Raises:
            DefinitionError: `old` is empty.
        """
        if not old:
            raise DefinitionError("nothing to replace", where=user_location(), got="''", expected="a text to look for")
        return Call("replace", (self,), (text(old), text(new)))

    def substring(self: Text, start: int, length: int | None = None) -> Text:
        """Take `length` code points, or all, from the place `start`, counted from 0.

        Raises:
            DefinitionError: a number is negative or beyond 2^31.
        """
        return Call("substring", (self,), (place_in_text(start), None if length is None else place_in_text(length)))

    def truncate(self: Expr[Instant | None], step: str) -> Expr[Instant | None]:
        """Round an instant down to a multiple of a duration since 1970-01-01 00:00 UTC."""
        return Call("truncate", (self,), (plain(duration(step)),))

    def seconds_since(self: Moments, other: Any) -> Number:
        """Count the seconds from another instant or date to this one, with their fraction."""
        return Binary("/", Binary("-", self, lift(other)), lift(1_000_000))

    def year(self: Moments, zone: str | None = None) -> Whole:
        """Take the year on a zone's calendar (UTC's without one; a date has its own)."""
        return self._shown("year", zone)

    def month(self: Moments, zone: str | None = None) -> Whole:
        """Take the month, 1 to 12, on a zone's calendar (UTC's without one; a date has its own)."""
        return self._shown("month", zone)

    def day(self: Moments, zone: str | None = None) -> Whole:
        """Take the day of the month, 1 to 31, on a zone's calendar (UTC's without one; a date has its own)."""
        return self._shown("day", zone)

    def weekday(self: Moments, zone: str | None = None) -> Whole:
        """Take the day of the week, Monday is 0, on a zone's calendar (UTC's without one; a date has its own)."""
        return self._shown("weekday", zone)

    def date(self: Expr[Instant | None], zone: str | None = None) -> Dates:
        """Take the date on a zone's calendar (UTC's without one)."""
        return self._shown("date", zone)

    def hour(self: Expr[Instant | None], zone: str | None = None) -> Whole:
        """Take the hour, 0 to 23, on a zone's clock (UTC's without one)."""
        return self._shown("hour", zone)

    def minute(self: Expr[Instant | None], zone: str | None = None) -> Whole:
        """Take the minute, 0 to 59, on a zone's clock (UTC's without one)."""
        return self._shown("minute", zone)

    def second_of_day(self: Expr[Instant | None], zone: str | None = None) -> Whole:
        """Take the whole seconds that a zone's clock (UTC's without one) shows since its 00:00."""
        return self._shown("second_of_day", zone)

    def _shown(self, part: str, zone: str | None) -> Expr[Any]:
        if zone is not None:
            zone_of(zone)
        return Call(part, (self,), (zone,))

    def _moves(self, other: Any) -> bool:
        """Tell whether adding a text means adding a duration: all but texts can only be moved."""
        return isinstance(other, str) and self.kind() != "str"

    def _moved(self, by: str, sign: int) -> Expr[Any]:
        return Shift(self, plain(sign * duration(by)))

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


Whole: TypeAlias = Expr[int | None]
Number: TypeAlias = Expr[float | None]
Text: TypeAlias = Expr[str | None]
Condition: TypeAlias = Expr[bool | None]
Dates: TypeAlias = Expr[Date | None]
Moments: TypeAlias = Expr[Instant | Date | None]


@dataclass(frozen=True, eq=False, repr=False)
class Literal(Expr[T_co]):
    """Hold a constant: a number, a text, a bool, an instant, a date or None."""

    value: Any
    location: str = field(default_factory=user_location)

    def kind(self) -> str:
        """Return the constant's type."""
        return kind_of(self.value)

    def __str__(self) -> str:
        return repr(self.value)


class Operation(Expr[T_co]):
    """Apply an operator to expressions; its operands are checked when it is made."""

    op: str
    args: tuple[Expr[Any], ...]
    options: tuple[Any, ...]
    location: str

    def _hold(self, *args: Expr[Any], options: tuple[Any, ...] = ()) -> None:
        depth = 1 + max(getattr(arg, "depth", 0) for arg in args)
        if depth > MAX_DEPTH:
            raise DefinitionError(
                "an expression of too many steps",
                where=self.location,
                got=f"{depth} operators inside each other",
                expected=f"at most {MAX_DEPTH}",
                next_step="add up halves, or compute the value in the source",
            )
        self.__dict__.update(args=args, options=options, depth=depth)
        self.kind()

    def kind(self) -> str:
        """Return the type that the operator gives.

        Raises:
            DefinitionError: it cannot take its operands.
        """
        if any(arg.kind() == "" for arg in self.args):
            return "instant" if self.op == "shift" else ""
        return self.signature.result

    @cached_property
    def signature(self) -> Signature:
        """Return to which types the operands are converted, and which type the operator gives.

        Raises:
            DefinitionError: it cannot take its operands.
        """
        operands = [(str(arg), arg.kind()) for arg in self.args]
        return signature_of(self.op, operands, self.options, self.location)


@dataclass(frozen=True, eq=False, repr=False)
class Binary(Operation[T_co]):
    """Combine two expressions with an operator."""

    op: str
    left: Expr[Any]
    right: Expr[Any]
    location: str = field(default_factory=user_location)

    def __post_init__(self) -> None:
        self._hold(self.left, self.right)

    def __str__(self) -> str:
        return f"({self.left} {self.op} {self.right})"


@dataclass(frozen=True, eq=False, repr=False)
class Unary(Operation[T_co]):
    """Apply `not`, `negate` or `is_null` to an expression."""

    op: str
    value: Expr[Any]
    location: str = field(default_factory=user_location)

    def __post_init__(self) -> None:
        self._hold(self.value)

    def __str__(self) -> str:
        return f"({self.op} {self.value})"


@dataclass(frozen=True, eq=False, repr=False)
class Shift(Operation[T_co]):
    """Move an instant by a constant number of microseconds."""

    value: Expr[Any]
    offset: int
    location: str = field(default_factory=user_location)
    op = "shift"

    def __post_init__(self) -> None:
        self._hold(self.value, options=(self.offset,))

    def __str__(self) -> str:
        return f"({self.value} {'-' if self.offset < 0 else '+'} {format_duration(abs(self.offset))})"


@dataclass(frozen=True, eq=False, repr=False)
class Call(Operation[T_co]):
    """Apply any other operator, with constants that belong to it."""

    op: str
    args: tuple[Expr[Any], ...]
    options: tuple[Any, ...] = ()
    location: str = field(default_factory=user_location)

    def __post_init__(self) -> None:
        self._hold(*self.args, options=self.options)

    def __str__(self) -> str:
        return f"{self.op}({', '.join([*map(str, self.args), *map(repr, self.options)])})"


def lift(value: object) -> Expr[Any]:
    """Return an expression as it is and a plain constant as a literal.

    Raises:
        DefinitionError: the value is neither.
    """
    return value if isinstance(value, Expr) else Literal(plain(value))
