"""Declare aggregates with their windows, and latest values: what a feature is, before it belongs to a group."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from headrace.core.errors import DefinitionError, UnknownColumn, did_you_mean
from headrace.core.expressions import Column, Expr, lift
from headrace.core.limits import Statistic
from headrace.core.location import user_location
from headrace.core.time import DAY, duration, format_duration, zone_of
from headrace.sources.definition import Source, definition_of

R = TypeVar("R")
Number = Expr[float | None] | Expr[int | None] | Expr[bool | None]
RETURNS: dict[Any, str] = {int: "int", float: "float", bool: "bool", str: "str"}
LIFETIME = "lifetime"
FOR_EVER = 2**62  # the window of a lifetime


@dataclass(frozen=True)
class Frame:
    """Hold one window of a feature: [t - offset - window, t - offset), microseconds; a negative offset lies ahead.

    With `hop` the window's begin is floored to a multiple of it.
    """

    label: str
    window: int
    offset: int = 0
    hop: int = 0


@dataclass(frozen=True, eq=False)
class Aggregate(Statistic):
    """Hold an aggregate that still lacks its windows: `hr.mean(column)`; call `.over(...)` or `.ahead(...)`.

    In a source's checks it is compared as it is: `hr.mean(column) <= 10`.
    """

    n: int = 1
    fold: Fold[Any] | None = None

    def over(
        self,
        *windows: str,
        fill: float | None = None,
        offset: Offset | Sequence[Offset] | None = None,
        hop: str | None = None,
        on: Expr[Any] | None = None,
        tz: str | None = None,
    ) -> Feature:
        """Compute over exact sliding windows `[t - window, t)` of the value's moment; "lifetime" has no begin.

        `fill` replaces null where the window holds no value. `offset` moves windows back: `[t - offset - window,
        t - offset)`; with a list each window is computed at each offset. `hop` floors a window's begin to its multiples,
        so that it changes in steps. `on` places values at another instant of the row than their moment; what is seen is
        what is known by t all the same. `tz` counts windows and hops in a zone's civil time, so that days of 23 and 25
        hours are days; it takes `on`, which may be a date.

        Raises:
            DefinitionError: no window, one that is no duration, or one given twice; `tz` without `on`.
        """
        frames = [
            Frame(
                _label(text, back, offset), FOR_EVER if text == LIFETIME else _window(text, self.location), back, step
            )
            for text in windows
            for back in _offsets(offset)
            for step in [0 if hop is None else _window(hop, self.location)]
        ]
        return self._feature(frames, windows, fill, on, tz)

    def ahead(
        self,
        *windows: str,
        fill: float | None = None,
        offset: Offset | Sequence[Offset] | None = None,
        on: Expr[Any] | None = None,
        tz: str | None = None,
    ) -> Feature:
        """Compute over windows that lie ahead, `[t, t + window)`, of instants announced earlier: planned promotions.

        Values stand at `on`, the source's event time unless said; only those whose moment is before t are seen. As a
        label the window is looked at when it is over. `offset` moves windows further ahead. Dates, and instants with
        `tz`, are counted in civil time.

        Raises:
            DefinitionError: no window, or one that is no duration.
        """
        frames = []
        for text in windows:
            for forward in _offsets(offset):
                window = _window(text, self.location)
                frames.append(Frame(_label(text, forward, offset), window, -forward - window))
        return self._feature(frames, windows, fill, on, tz, ahead=True)

    def _feature(
        self,
        frames: Sequence[Frame],
        windows: Sequence[str],
        fill: float | None,
        on: Expr[Any] | None,
        tz: str | None,
        ahead: bool = False,
    ) -> Feature:
        spans = [(frame.window, frame.offset) for frame in frames]
        if not spans or len(set(spans)) < len(spans):
            raise DefinitionError(
                "a feature needs windows, each once", where=user_location(), got=windows, expected='.over("1h", "24h")'
            )
        if tz is not None:
            zone_of(tz)
        if tz is not None and on is None and not ahead:
            raise DefinitionError(
                "civil time needs an instant or a date to count from",
                where=user_location(),
                got=f'tz="{tz}"',
                expected='on=…, as .over("7d", on=Sales.day, tz="Europe/Paris")',
            )
        ordered = sorted(frames, key=lambda frame: (frame.window, frame.offset if frame.offset >= 0 else -frame.offset))
        return Feature(self, tuple(ordered), fill=fill, on=on, zone=tz, ahead=ahead)


Offset = str | int


def _offsets(offset: Offset | Sequence[Offset] | None) -> list[int]:
    """Return offsets in microseconds; a plain number counts days."""
    given = [0] if offset is None else [offset] if isinstance(offset, (str, int)) else list(offset)
    return [o * DAY if isinstance(o, int) else _window(o, user_location()) for o in given]


def _label(window: str, offset: int, given: object) -> str:
    """Return what a window is subscripted with: "7d", or "7d+14d" where it is computed at several offsets."""
    several = not isinstance(given, (str, int)) and given is not None
    return f"{window}+{format_duration(offset) if offset else '0d'}" if several else window


@dataclass(frozen=True, eq=False)
class Item:
    """Name one value of a feature: `Origin.dep_delay["1h"]`."""

    feature: Feature
    part: str | None

    def __str__(self) -> str:
        return self.feature.column_name(self.part)


@dataclass(frozen=True, eq=False)
class Condition:
    """Hold a comparison of a feature's one value with a constant: `hr.count(Sales).over("56d") > 0`."""

    feature: Feature
    op: str
    value: float

    def __bool__(self) -> bool:
        raise DefinitionError("a definition has no truth value", where=user_location(), got=str(self))

    def __str__(self) -> str:
        return f"({self.feature} {self.op} {self.value})"


class Feature:
    """Hold an aggregate with its windows, or the latest values of some columns; subscript it for one of its values."""

    def __init__(
        self,
        aggregate: Aggregate,
        frames: tuple[Frame, ...] = (),
        *,
        columns: tuple[Column[Any], ...] = (),
        max_age: int | None = None,
        fill: float | None = None,
        on: Expr[Any] | None = None,
        zone: str | None = None,
        ahead: bool = False,
    ) -> None:
        self.aggregate, self.frames, self.columns = aggregate, frames, columns
        self.max_age, self.fill, self.on, self.zone, self.ahead = max_age, fill, on, zone, ahead
        self.name = ""
        self.group: type[Any] | None = None

    def renamed(self, name: str, frames: tuple[Frame, ...]) -> Feature:
        """Return the feature under a name of its own with some windows; what the user defined is not changed."""
        found = Feature(
            self.aggregate,
            frames,
            columns=self.columns,
            max_age=self.max_age,
            fill=self.fill,
            on=self.on,
            zone=self.zone,
            ahead=self.ahead,
        )
        found.name = name
        return found

    def parts(self) -> tuple[str | None, ...]:
        """Return what the feature can be subscripted with; (None,) if it has one value only."""
        if self.frames:
            n = self.aggregate.n
            return tuple(f.label if n == 1 else f"{f.label}:{k}" for f in self.frames for k in range(1, n + 1))
        return tuple(c.name for c in self.columns) if len(self.columns) > 1 else (None,)

    def column_name(self, part: str | None) -> str:
        """Return a value's full name: `Origin.dep_delay[1h]`."""
        owner = f"{self.group.__name__}." if self.group else ""
        return f"{owner}{self.name}" + (f"[{part}]" if part else "")

    def __str__(self) -> str:
        if self.group is not None:
            return self.column_name(None)
        inner = self.aggregate.value if self.aggregate.value is not None else ""
        return f"{self.aggregate.kind}({inner}) over {', '.join(f.label for f in self.frames)}"

    def __getitem__(self, part: str) -> Item:
        """Return one of the feature's values, by window ("1h") or column name.

        Raises:
            UnknownColumn: the feature has no such part.
        """
        known = [p for p in self.parts() if p]
        wanted = part
        if self.frames and part not in known and "+" not in part and ":" not in part:
            same = [f.label for f in self.frames if f.window == _window(part, user_location())]
            wanted = same[0] if len(same) == 1 else part
        if wanted not in known:
            raise UnknownColumn(
                f"{self.column_name(None)} has no part {part}",
                where=user_location(),
                got=part,
                expected=known,
                next_step=did_you_mean(part, known),
            )
        return Item(self, wanted)

    def __gt__(self, value: float) -> Condition:
        return Condition(self, ">", value)

    def __ge__(self, value: float) -> Condition:
        return Condition(self, ">=", value)

    def __lt__(self, value: float) -> Condition:
        return Condition(self, "<", value)

    def __le__(self, value: float) -> Condition:
        return Condition(self, "<=", value)


class Fold(Generic[R]):
    """Hold a function of the values of a window, oldest first; call it with a column to aggregate that column."""

    def __init__(self, function: Callable[[list[Any]], R]) -> None:
        self.function, self.name, self.location = function, function.__name__, user_location()
        hints = typing.get_type_hints(function)
        self.returns, _ = optional(hints.get("return"))
        parameters = [name for name in hints if name != "return"]
        if len(parameters) != 1 or self.returns not in (int, float, bool):
            raise DefinitionError(
                f"{self.name}: an aggregate takes the list of a window's values and returns a number",
                where=self.location,
                got=hints,
                expected="@hr.aggregate above def f(values: list[float]) -> float | None",
            )
        self.dtype = RETURNS[self.returns]

    def __call__(self, value: Expr[Any], *, where: Expr[bool] | None = None) -> Aggregate:
        """Aggregate a column or expression; nulls are left out, and of no values the result is null."""
        return Aggregate("fold", lift(value), where, fold=self)


def aggregate(function: Callable[[list[Any]], R]) -> Fold[R]:
    """Make a function of a window's values (oldest first, nulls left out) an aggregate of your own.

    The function must depend on the values alone: it runs on the same ones in history, streams and requests. It is called
    once a window and row; ready-made aggregates are some hundred times faster.

        @hr.aggregate
        def longest_gap(values: list[float]) -> float | None: ...

        class Card(hr.FeatureGroup, of=Transactions, entity=Transactions.card):
            gap = longest_gap(Transactions.amount).over("24h")

    Raises:
        DefinitionError: the function takes something else than one list, or returns no number.
    """
    return Fold(function)


def count(value: Expr[Any] | type[Source] | None = None, *, where: Expr[bool] | None = None) -> Aggregate:
    """Count rows, or a column's values that are not null; outside a group name the source whose rows are counted."""
    if isinstance(value, type):
        definition_of(value)
        return Aggregate("count", None, where, rows=value)
    return Aggregate("count", value, where)


def count_distinct(value: Expr[Any], *, where: Expr[bool] | None = None) -> Aggregate:
    """Count different values, exactly; null is none, and zeros of both signs are one."""
    return Aggregate("distinct", lift(value), where)


def most_frequent(value: Expr[Any], *, where: Expr[bool] | None = None) -> Aggregate:
    """Take the value that comes most often; null if there are none.

    Of several the least is taken; of texts, which have no order in windows, the one with the least 63-bit hash.
    """
    return Aggregate("mode", lift(value), where)


def last(value: Expr[Any], *, n: int = 1, where: Expr[bool] | None = None) -> Aggregate:
    """Take the last values of a window that are not null: with `n` the n last, as parts "24h:1" (the last), "24h:2"…

    Raises:
        DefinitionError: `n` is not from 1 to 64.
    """
    return Aggregate("last", lift(value), where, n=_number(n))


def first(value: Expr[Any], *, n: int = 1, where: Expr[bool] | None = None) -> Aggregate:
    """Take the first values of a window that are not null, as `last` takes the last.

    Raises:
        DefinitionError: `n` is not from 1 to 64.
    """
    return Aggregate("first", lift(value), where, n=_number(n))


def _number(n: int) -> int:
    if not isinstance(n, int) or not 1 <= n <= 64:
        raise DefinitionError("not a number of values", where=user_location(), got=n, expected="1 to 64")
    return n


def sum(value: Number, *, where: Expr[bool] | None = None) -> Aggregate:
    """Add values up exactly and round once; null if there are none."""
    return Aggregate("sum", lift(value), where)


def mean(value: Number, *, where: Expr[bool] | None = None) -> Aggregate:
    """Average values exactly and round once; null if there are none."""
    return Aggregate("mean", lift(value), where)


def min(value: Number, *, where: Expr[bool] | None = None) -> Aggregate:
    """Take the smallest value; null if there are none."""
    return Aggregate("min", lift(value), where)


def max(value: Number, *, where: Expr[bool] | None = None) -> Aggregate:
    """Take the largest value; null if there are none."""
    return Aggregate("max", lift(value), where)


def stddev(value: Number, *, where: Expr[bool] | None = None) -> Aggregate:
    """Compute the sample standard deviation (n - 1); null below two values."""
    return Aggregate("stddev", lift(value), where)


def rate(condition: Expr[bool] | Expr[bool | None], *, where: Expr[bool] | None = None) -> Aggregate:
    """Compute the share of rows, among those where the condition is not null, for which it is true."""
    return Aggregate("rate", lift(condition), where)


def quantile(value: Number, q: float, *, where: Expr[bool] | None = None) -> Aggregate:
    """Take the exact inverse-CDF quantile: the smallest value that at least a share `q` of the values do not exceed.

    Raises:
        DefinitionError: `q` is not in (0, 1].
    """
    if not 0 < q <= 1:
        raise DefinitionError("not a quantile", where=user_location(), got=q, expected="0 < q <= 1")
    return Aggregate("quantile", lift(value), where, parameter=q)


def latest(*columns: Column[Any], max_age: str | None = None, where: Expr[bool] | None = None) -> Feature:
    """Take each column's newest value that is not null; null once it is older than `max_age`.

    Raises:
        DefinitionError: no column given.
    """
    if not columns:
        raise DefinitionError("latest needs a column", where=user_location(), expected="hr.latest(Weather.temp)")
    limit = None if max_age is None else _window(max_age, user_location())
    return Feature(Aggregate("latest", None, where), columns=columns, max_age=limit)


def _window(text: str, location: str) -> int:
    try:
        return duration(text)
    except DefinitionError as error:
        error.where = location
        raise


def optional(hint: Any) -> tuple[Any, bool]:
    """Split `float | None` into (float, True)."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        inner = [a for a in typing.get_args(hint) if a is not type(None)]
        return (inner[0] if len(inner) == 1 else hint), len(inner) < len(typing.get_args(hint))
    return hint, hint is None or hint is Any
