"""Declare features once: groups of aggregates over one source, and functions, from which every path is derived."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from headrace.core.errors import DefinitionError, UnknownColumn, did_you_mean
from headrace.core.expressions import Column, Expr
from headrace.core.location import user_location
from headrace.features.aggregates import RETURNS, Aggregate, Feature, Item, optional
from headrace.sources.definition import Source, definition_of

R = TypeVar("R")


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

    @property
    def spoken(self) -> list[Expr[Any]]:
        """Return what the group names of its source."""
        parts = [e for f in self.features for e in (f.aggregate.value, f.aggregate.where, f.on, *f.columns)]
        return [*self.entity, *(e for e in parts if e is not None)]


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
        self.returns, _ = optional(hints.get("return"))
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
        self.required = tuple(name for name in bound if not optional(hints.get(name))[1])

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        """Call the function itself."""
        return self.function(*args, **kwargs)


def on_demand(**bound: Column[Any] | Item) -> Callable[[Callable[..., R]], OnDemand[R]]:
    """Make a function of columns a feature; it runs on the same values in history, streams and requests.

    A null in a parameter that is not optional gives null without calling the function. The function must depend on its
    parameters alone: it reads no clock, no file, no global state.
    """
    return lambda function: OnDemand(function, bound)


FeatureLike = Column[Any] | type[FeatureGroup] | Bound | Feature | Item | OnDemand[Any]
