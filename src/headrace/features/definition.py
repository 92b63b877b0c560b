"""Declare features once: windowed aggregates, latest values and functions, from which every path is derived."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from headrace.core.errors import DefinitionError, UnknownColumn, did_you_mean
from headrace.core.expressions import Column, Expr, lift
from headrace.core.limits import Statistic
from headrace.core.location import user_location
from headrace.core.time import Instant, duration
from headrace.sources.definition import Source, definition_of

R = TypeVar("R")
Number = Expr[float | None] | Expr[int | None] | Expr[bool | None]
RETURNS: dict[Any, str] = {int: "int", float: "float", bool: "bool", str: "str"}


@dataclass(frozen=True, eq=False)
class Aggregate(Statistic):
    """Hold an aggregate that still lacks its windows: `hr.mean(column)`; call `.over(...)`, or compare it in checks."""

    def over(self, *windows: str, fill: float | None = None) -> Feature:
        """Compute over exact sliding windows `[t - window, t)` of the value's moment.

        `fill` replaces null where the window holds no value.

        Raises:
            DefinitionError: no window, one that is no duration, or one given twice.
        """
        sizes = tuple(_window(text, self.location) for text in windows)
        if not sizes or len(set(sizes)) < len(sizes):
            raise DefinitionError(
                "a feature needs windows, each once", where=user_location(), got=windows, expected='.over("1h", "24h")'
            )
        ordered = sorted(zip(sizes, windows, strict=True))
        return Feature(self, tuple(size for size, _ in ordered), tuple(text for _, text in ordered), fill=fill)


@dataclass(frozen=True, eq=False)
class Item:
    """Name one value of a feature: `Origin.dep_delay["1h"]`."""

    feature: Feature
    part: str | None

    def __str__(self) -> str:
        return self.feature.column_name(self.part)


class Feature:
    """Hold an aggregate with its windows, or the latest values of some columns; subscript it for one of its values."""

    def __init__(
        self,
        aggregate: Aggregate,
        windows: tuple[int, ...] = (),
        labels: tuple[str, ...] = (),
        *,
        columns: tuple[Column[Any], ...] = (),
        max_age: int | None = None,
        fill: float | None = None,
    ) -> None:
        self.aggregate, self.windows, self.labels, self.columns = aggregate, windows, labels, columns
        self.max_age, self.fill = max_age, fill
        self.name = ""
        self.group: type[FeatureGroup] | None = None

    def parts(self) -> tuple[str | None, ...]:
        """Return what the feature can be subscripted with; (None,) if it has one value only."""
        if self.windows:
            return self.labels
        return tuple(c.name for c in self.columns) if len(self.columns) > 1 else (None,)

    def column_name(self, part: str | None) -> str:
        """Return a value's full name: `Origin.dep_delay[1h]`."""
        owner = f"{self.group.__name__}." if self.group else ""
        return f"{owner}{self.name}" + (f"[{part}]" if part else "")

    def __getitem__(self, part: str) -> Item:
        """Return one of the feature's values, by window ("1h") or column name.

        Raises:
            UnknownColumn: the feature has no such part.
        """
        known = [p for p in self.parts() if p]
        same = [
            label
            for label, size in zip(self.labels, self.windows, strict=True)
            if size == _window(part, user_location())
        ]
        wanted = next(iter(same), part)
        if wanted not in known:
            raise UnknownColumn(
                f"{self.column_name(None)} has no part {part}",
                where=user_location(),
                got=part,
                expected=known,
                next_step=did_you_mean(part, known),
            )
        return Item(self, wanted)


def count(value: Expr[Any] | None = None, *, where: Expr[bool] | None = None) -> Aggregate:
    """Count rows, or a column's values that are not null."""
    return Aggregate("count", value, where)


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


class GroupMeta(type):
    """Make a misspelt feature of a group an error with a suggestion."""

    if not TYPE_CHECKING:

        def __getattr__(cls, name: str) -> Any:
            definition = cls.__dict__.get("__definition__")
            if name.startswith("__") or definition is None:
                raise AttributeError(name)
            known = [f.name for f in definition.features]
            raise UnknownFeature(
                f"{cls.__name__} has no feature {name}",
                where=user_location(),
                got=name,
                next_step=did_you_mean(name, known),
            )


class UnknownFeature(UnknownColumn, AttributeError):
    """Report a misspelt feature; an `AttributeError` too, so that `hasattr` and editors work."""


@dataclass(frozen=True, eq=False)
class GroupDefinition:
    """Hold what a feature group said."""

    name: str
    source: type[Source]
    entity: tuple[Column[Any], ...]
    features: tuple[Feature, ...]
    description: str
    location: str


@dataclass(frozen=True, eq=False)
class Bound:
    """Read a group under a key that stands in other columns: `Sky.on(Flights.origin)`."""

    group: type[FeatureGroup]
    key: tuple[Column[Any], ...]
    location: str = field(default_factory=user_location)


class FeatureGroup(metaclass=GroupMeta):
    """Collect features of one source and entity; subclass it with `of=` and `entity=`."""

    __definition__: ClassVar[GroupDefinition]

    def __init_subclass__(
        cls,
        *,
        of: type[Source] | None = None,
        entity: Column[Any] | tuple[Column[Any], ...] = (),
        abstract: bool = False,
    ) -> None:
        if abstract:
            return
        if of is None:
            raise DefinitionError(f"{cls.__name__} has no source", where=user_location(), expected="of=…, entity=…")
        location, source = user_location(), definition_of(of)
        key = entity if isinstance(entity, tuple) else (entity,)
        for part in key:
            if not isinstance(part, Column) or part not in source.index:
                raise DefinitionError(
                    f"{cls.__name__}: its entity must be a column of {source.name}",
                    where=location,
                    got=part,
                    expected=[str(c) for c in source.columns if c.role == "entity"],
                )
        found = []
        for name, value in list(cls.__dict__.items()):
            if isinstance(value, Aggregate):
                raise DefinitionError(
                    f"{cls.__name__}.{name} has no window",
                    where=value.location,
                    next_step=f'hr.{value.kind}(…).over("1h")',
                )
            if isinstance(value, Feature):
                value.name, value.group = name, cls
                found.append(value)
        if not found:
            raise DefinitionError(
                f"{cls.__name__} has no features", where=location, expected="mean = hr.mean(…).over(…)"
            )
        doc = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
        cls.__definition__ = GroupDefinition(cls.__name__, of, key, tuple(found), doc, location)

    @classmethod
    def on(cls, *key: Column[Any]) -> Bound:
        """Read the group under the key in other columns: `Sky.on(Flights.origin)` is the weather at the origin."""
        return Bound(cls, key)


class OnDemand(Generic[R]):
    """Hold a function of columns, computed at the prediction's moment; calling it calls the function."""

    def __init__(self, function: Callable[..., R], bound: dict[str, Column[Any] | Item]) -> None:
        self.function, self.bound = function, bound
        self.name = function.__name__
        self.location = user_location()
        hints = typing.get_type_hints(function)
        self.returns, _ = _optional(hints.get("return"))
        missing = [name for name in inspect.signature(function).parameters if name not in bound]
        unknown = [name for name in bound if name not in inspect.signature(function).parameters]
        if missing or unknown or self.returns not in RETURNS:
            raise DefinitionError(
                f"{self.name}: each parameter needs a column, and the result a type",
                where=self.location,
                got={"without a column": missing, "without a parameter": unknown, "returns": self.returns},
                expected="@hr.on_demand(x=Source.x) above def f(x: float) -> float | None",
            )
        self.dtype = RETURNS[self.returns]
        self.required = tuple(name for name in bound if not _optional(hints.get(name))[1])

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        """Call the function itself."""
        return self.function(*args, **kwargs)


def _optional(hint: Any) -> tuple[Any, bool]:
    """Split `float | None` into (float, True)."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        inner = [a for a in typing.get_args(hint) if a is not type(None)]
        return (inner[0] if len(inner) == 1 else hint), len(inner) < len(typing.get_args(hint))
    return hint, hint is None or hint is Any


def on_demand(**bound: Column[Any] | Item) -> Callable[[Callable[..., R]], OnDemand[R]]:
    """Make a function of columns a feature; it runs on the same values in history, streams and requests.

    A null in a parameter that is not optional gives null without calling the function. The function must depend on its
    parameters alone: it reads no clock, no file, no global state.
    """
    return lambda function: OnDemand(function, bound)


FeatureLike = Column[Any] | type[FeatureGroup] | Bound | Feature | Item | OnDemand[Any]


class Dataset:
    """Describe training rows and requests alike: one row per prediction, holding only what was known at its moment."""

    def __init__(
        self,
        *,
        rows: type[Source],
        at: Expr[Instant] | Expr[Any],
        features: Sequence[FeatureLike],
        label: Expr[bool] | Expr[float | None] | Expr[Any],
        mature: str,
    ) -> None:
        self.rows, self.at, self.features, self.label = rows, at, tuple(features), lift(label)
        self.mature = duration(mature)
        self.location = user_location()
        definition_of(rows)
