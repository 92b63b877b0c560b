"""Declare datasets: whose rows, asked when, with which features, and what label comes when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.core.errors import DefinitionError
from headrace.core.expressions import Column, Expr, columns_of, lift
from headrace.core.location import user_location
from headrace.core.time import DAY, Instant, duration, format_duration, zone_of
from headrace.features.aggregates import LIFETIME, Aggregate, Condition, Feature, Frame, Item
from headrace.features.definition import FeatureLike
from headrace.sources.definition import Source, SourceDefinition, definition_of, source_of


@dataclass(frozen=True, eq=False)
class WindowLabel:
    """Hold a label that rows of a table decide in a window ahead, found under `key`, columns of that table.

    Without a key it is the rows' own. A `boolean` label asks whether there is any.
    """

    feature: Feature
    source: type[Source]
    key: tuple[Column[Any], ...] | None
    boolean: bool
    part: str | None = None

    def __str__(self) -> str:
        named = "" if self.key is None else f" by {', '.join(map(str, self.key))}"
        return f"{'exists ' if self.boolean else ''}{self.feature}{named}"

    @property
    def frames(self) -> tuple[Frame, ...]:
        """Return the windows that the label asks for."""
        return tuple(f for f in self.feature.frames if self.part in (None, f.label))


@dataclass(frozen=True, eq=False)
class Exists:
    """Ask whether a table has a row for each row of the dataset; say in which time with `within`."""

    source: type[Source]
    key: Column[Any]
    where: Expr[bool] | None
    location: str = field(default_factory=user_location)

    def within(self, window: str) -> WindowLabel:
        """Be true where such a row's event lies in `[t, t + window)`; the answer matures when the window is over."""
        found = Aggregate("count", None, self.where, rows=self.source, location=self.location).ahead(window)
        return WindowLabel(found, self.source, (self.key,), boolean=True)


def exists(source: type[Source], *, on: Column[Any], where: Expr[bool] | None = None) -> Exists:
    """Make a label of whether another table has a row that refers to this one: a chargeback, a return, a click.

        label=hr.exists(Chargebacks, on=Chargebacks.txn_id).within("90d")

    Raises:
        DefinitionError: `on` is no column of the table.
    """
    definition = definition_of(source)
    if on not in definition.index:
        raise DefinitionError(
            "on= is a column of the table", where=user_location(), got=str(on), expected=definition.name
        )
    return Exists(source, on, where)


@dataclass(frozen=True)
class Downsample:
    """Keep a share of the training rows with one label value, and all others; `weight` gives the kept ones back theirs."""

    value: float
    share: float
    weight: bool


def downsample(value: bool | float, share: float, *, weight: bool = True) -> Downsample:
    """Keep only a share of the training rows whose label is `value`: the many negatives of a rare event.

    Which rows are kept follows from their ids alone, so a retraining keeps the same ones. With `weight` each kept row
    weighs 1 / share in `data.train.weight`, so that rates and scores stay calibrated.

    Raises:
        DefinitionError: the share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise DefinitionError("not a share", where=user_location(), got=share, expected="0 < share <= 1")
    return Downsample(float(value), share, weight)


WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class Grid:
    """Hold rows that no table has: one for each known key at each step of time."""

    def __init__(
        self, keys: tuple[Column[Any], ...], every: int, weekday: int | None, zone: str, active: Condition
    ) -> None:
        self.keys, self.every, self.weekday, self.zone, self.active = keys, every, weekday, zone, active
        self.location = user_location()
        source = source_of(keys[0])
        self.source = source
        self.at: Column[Any] = Column(role="event_time", name="at", dtype="instant")
        columns = (*keys, self.at)
        self.definition = SourceDefinition(
            f"grid of {source.name}", columns, columns, self.at, self.at, None, self.location
        )

    @property
    def first(self) -> int:
        """Return the civil time of the first step after 1970-01-01, which was a Thursday."""
        return 0 if self.weekday is None else (self.weekday - 3) % 7 * DAY


def grid(
    keys: Column[Any] | tuple[Column[Any], ...],
    *,
    every: str,
    on: str | None = None,
    tz: str = "UTC",
    active: Condition | None = None,
) -> Grid:
    """Make a row for each key that a table has shown by then, at every step: forecasts for each store and item.

    Steps are counted in the zone's civil time from midnight, with `on` from a weekday ("mon"). `active` leaves keys out
    for as long as a feature of theirs says so: `hr.count(Sales).over("56d") > 0`.

    Raises:
        DefinitionError: keys of several tables, an unknown weekday or zone, or steps that are no whole weeks where `on`
            names a weekday.
    """
    columns = keys if isinstance(keys, tuple) else (keys,)
    where, step = user_location(), duration(every)
    if not columns or len({c.owner for c in columns}) > 1:
        raise DefinitionError("a grid's keys are columns of one table", where=where, got=[str(c) for c in columns])
    if on is not None and (on not in WEEKDAYS or step % (7 * DAY)):
        raise DefinitionError(
            "a grid on a weekday has steps of whole weeks",
            where=where,
            got=f'on="{on}", every="{every}"',
            expected=WEEKDAYS,
        )
    zone_of(tz)
    owner = columns[0].owner
    shown = active if active is not None else Aggregate("count", None, rows=owner, location=where).over(LIFETIME) > 0
    return Grid(columns, step, None if on is None else WEEKDAYS.index(on), tz, shown)


Label = Expr[bool] | Expr[float | None] | Expr[Any] | Feature | Item | WindowLabel


class Dataset:
    """Describe training rows and requests alike: one row per prediction, holding only what was known at its moment."""

    def __init__(
        self,
        *,
        rows: type[Source] | Grid,
        features: Sequence[FeatureLike],
        label: Label,
        at: Expr[Instant] | Expr[Any] | None = None,
        mature: str | None = None,
        where: Expr[bool] | None = None,
        labelled_if: Expr[bool] | Expr[bool | None] | None = None,
        sample: Downsample | None = None,
    ) -> None:
        self.location = user_location()
        self.rows, self.features, self.where, self.labelled_if, self.sample = (
            rows,
            tuple(features),
            where,
            labelled_if,
            sample,
        )
        self.label = _label_of(label, rows, self.location)
        moment = rows.at if isinstance(rows, Grid) else at
        if moment is None or (isinstance(rows, Grid) and at is not None):
            raise DefinitionError(
                "a dataset of a table's rows says at which moment they are asked, a grid has moments of its own",
                where=self.location,
                got=f"at={at}",
                expected="at=Flights.sched_dep, or rows=hr.grid(…)",
            )
        self.at: Expr[Any] = moment
        horizon = max(-f.offset for f in self.label.frames) if isinstance(self.label, WindowLabel) else None
        if mature is None and horizon is None:
            raise DefinitionError("nothing says how long a label may take", where=self.location, expected='mature="2d"')
        self.mature = duration(mature) if mature is not None else horizon or 0
        if horizon is not None and self.mature < horizon:
            raise DefinitionError(
                "a label cannot mature before its window is over",
                where=self.location,
                got=f'mature="{mature}"',
                expected=f"at least {format_duration(horizon)}",
            )
        if not isinstance(rows, Grid):
            definition_of(rows)


def _label_of(label: Label, rows: type[Source] | Grid, location: str) -> Expr[Any] | WindowLabel:
    """Return a label as an expression over the row, or as windows over a table.

    Raises:
        DefinitionError: it is neither, or a window that does not lie ahead.
    """
    if isinstance(label, WindowLabel):
        return label
    if not isinstance(label, (Feature, Item)):
        return lift(label)
    feature, part = (label.feature, label.part) if isinstance(label, Item) else (label, None)
    if any(f.offset >= 0 for f in feature.frames) or not feature.frames:
        raise DefinitionError(
            "a label is a window that lies ahead", where=location, got=str(feature), expected='hr.sum(…).ahead("7d")'
        )
    if feature.group is not None:
        definition = feature.group.__definition__
        return WindowLabel(feature, definition.source, definition.entity, boolean=False, part=part)
    source = feature.aggregate.rows or _owner(feature.aggregate, location)
    if not isinstance(rows, Grid):
        raise DefinitionError(
            "nothing says under which key the label is found",
            where=location,
            got=str(feature),
            expected="a feature of a group, hr.exists(…, on=…), or rows=hr.grid(…)",
        )
    return WindowLabel(feature, source, None, boolean=False, part=part)


def _owner(aggregate: Aggregate, location: str) -> type[Source]:
    """Return the source that an aggregate outside a group is of."""
    owners = {c.owner for c in columns_of(aggregate.value)} if aggregate.value is not None else set()
    owner = owners.pop() if len(owners) == 1 else None
    if owner is None or not issubclass(owner, Source):
        raise DefinitionError("an aggregate of no one table", where=location, got=str(aggregate.value))
    return owner
