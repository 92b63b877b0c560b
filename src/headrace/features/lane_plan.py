"""Turn a group's definition into lanes: which events are kept under which key, and what is read from them. Pure.

A *lane* holds the events of one entity whose values share source, moment, condition and place in time; it is the unit that
is stored online and scanned offline.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version as package_version
from typing import Any

from headrace.core.errors import DefinitionError
from headrace.core.expressions import Column, Expr, Moment, columns_of, type_of
from headrace.core.functions import function_source
from headrace.core.identity import content_hash
from headrace.core.time import DAY
from headrace.features.aggregates import FOR_EVER, Feature
from headrace.features.definition import FeatureGroup, GroupDefinition
from headrace.features.lanes import MAX_COLUMNS
from headrace.features.outputs import sketch_bits
from headrace.features.record import FeatureColumn
from headrace.features.windows import KERNEL_VERSION, Lane, Output, ValueType
from headrace.sources.definition import SourceDefinition, definition_of

GRACE = DAY
VALUE_TYPES = {
    "float": ValueType.FLOAT,
    "int": ValueType.INT,
    "instant": ValueType.INT,
    "date": ValueType.INT,
    "bool": ValueType.BOOL,
    "str": ValueType.REF,
}
NUMERIC = ("float", "int", "bool")
SINGLE = (*NUMERIC, "instant", "str")  # what an aggregate that returns one of the values can take
ALLOWED: dict[str, tuple[str, ...]] = dict.fromkeys(("latest", "mode", "last", "first", "fold"), SINGLE)
ALLOWED |= {"min": (*NUMERIC, "instant"), "max": (*NUMERIC, "instant"), "rate": ("bool",)}
ALLOWED |= {"count": (*SINGLE, "date", ""), "distinct": (*SINGLE, "date")}
ESTIMATED = ("float", "int")  # what an estimated quantile, itself a float, can take
RESULTS = {"count": "int", "distinct": "int", "mean": "float", "rate": "float", "stddev": "float"}


@dataclass(frozen=True, eq=False)
class LanePlan:
    """Say how one lane's events follow from rows, and which outputs are read from it.

    Events stand at their `moment`, or `on` another instant of the row, counted in the civil time of `zone` if there is one.
    """

    prefix: bytes
    source: SourceDefinition
    entity: tuple[Column[Any], ...]
    moment: Moment
    where: Expr[bool] | None
    on: Moment | None
    zone: str | None
    values: tuple[Expr[Any], ...]
    lane: Lane
    outputs: tuple[Output, ...]
    columns: tuple[FeatureColumn, ...]
    features: tuple[tuple[Feature, str | None], ...]

    @cached_property
    def reads(self) -> frozenset[Column[Any]]:
        """Return the columns whose change may change an event."""
        exprs = [*self.entity, *self.values, *([] if self.where is None else [self.where])]
        moments = [self.moment] if self.on is None else [self.moment, self.on]
        return frozenset([c for e in exprs for c in columns_of(e)] + [c for m in moments for c, _ in m.terms])

    def reads_texts(self, output: int) -> bool:
        """Return whether an output is computed from texts, which lanes hold as numbers."""
        column = self.outputs[output].column
        return column is not None and self.lane.values[column] is ValueType.REF

    @cached_property
    def dated(self) -> bool:
        """Return whether latest values hold only while the newest copy of the source's table has their key."""
        return self.source.history == "snapshots" and any(o.aggregate == "latest" for o in self.outputs)

    @cached_property
    def keeps_nulls(self) -> bool:
        """Return whether an event without any value counts too."""
        return self.lane.state or any(o.column is None for o in self.outputs)


@dataclass(frozen=True, eq=False)
class GroupPlan:
    """Hold a group's lanes; `hash` names the version of its definition."""

    definition: GroupDefinition
    hash: str
    lanes: tuple[LanePlan, ...]


def plan_group(group: type[FeatureGroup]) -> GroupPlan:
    """Return a group's lanes.

    Raises:
        DefinitionError: a value has no fitting type, or reads columns of another source.
    """
    return plan_definition(group.__definition__)


def plan_definition(definition: GroupDefinition) -> GroupPlan:
    """Return the lanes of what a group said; see `plan_group`."""
    source = definition_of(definition.source)
    digest = content_hash([_describe(definition, source), KERNEL_VERSION, package_version("tzdata")])
    return GroupPlan(definition, digest, tuple(_lanes(definition, source, bytes.fromhex(digest[:16]))))


def _describe(definition: GroupDefinition, source: SourceDefinition) -> list[Any]:
    features = [
        [f.name, f.aggregate.kind, str(f.aggregate.value), str(f.aggregate.where), f.aggregate.parameter, f.aggregate.n]
        + [[[w.window, w.offset, w.hop] for w in f.frames], [c.name for c in f.columns], f.max_age, f.fill]
        + [str(f.on), f.zone, f.ahead, function_source(f.aggregate.fold.function) if f.aggregate.fold else None]
        + [error for error in [f.aggregate.approx] if error is not None]
        for f in definition.features
    ]
    return [definition.name, [c.name for c in definition.entity], features, source.meaning(definition.spoken)]


@dataclass
class _LaneBuilder:
    moment: Moment
    where: Expr[bool] | None
    state: bool
    on: Moment | None
    zone: str | None
    values: list[Expr[Any]] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)
    outputs: list[Output] = field(default_factory=list)
    columns: list[FeatureColumn] = field(default_factory=list)
    features: list[tuple[Feature, str | None]] = field(default_factory=list)

    def takes(self, value: Expr[Any] | None, source: SourceDefinition) -> bool:
        """Return whether a value has its place in the lane, or room for one beside what the lane itself needs."""
        own = (self.on is not None) + (source.ends is not None and str(source.ends) not in self.places)
        return value is None or str(value) in self.places or len(self.values) + own < MAX_COLUMNS

    def place(self, value: Expr[Any]) -> int:
        """Return the place of a value in the lane, the same for the same expression."""
        found = self.places.setdefault(str(value), len(self.values))
        if found == len(self.values):
            self.values.append(value)
        return found

    def add(self, feature: Feature, part: str | None, dtype: str, output: Output) -> None:
        """Add an output with its column."""
        origin = "latest" if output.aggregate == "latest" else "window"
        self.outputs.append(output)
        self.columns.append(FeatureColumn(feature.column_name(part), dtype, origin))
        self.features.append((feature, part))

    def lane(self) -> Lane:
        """Return the lane as it is stored; a placed one ends with the moment."""
        types = [VALUE_TYPES[type_of(v)] for v in self.values]
        reach = [max(0, o.offset + o.window) + o.hop for o in self.outputs if o.window is not None]
        ages = [int(o.parameter) for o in self.outputs if o.aggregate == "latest" and o.parameter is not None]
        return Lane(
            values=tuple(types if self.on is None else [*types, ValueType.INT]),
            windows=tuple(sorted({o.window for o in self.outputs if o.window is not None})),
            state=self.state,
            keep=min(max([*reach, *ages, 0]) + GRACE, FOR_EVER),
            latest=any(o.aggregate == "latest" for o in self.outputs),
            placed=self.on is not None,
        )


def _lanes(definition: GroupDefinition, source: SourceDefinition, prefix: bytes) -> Iterator[LanePlan]:
    builders: dict[str, _LaneBuilder] = {}
    for feature in definition.features:
        for value in feature.columns or (feature.aggregate.value,):
            builder = _builder_for(builders, definition, source, feature, value)
            _add_outputs(builder, source, feature, value)
    for number, builder in enumerate(builders.values()):
        yield LanePlan(
            prefix=b"L" + prefix + number.to_bytes(2, "big"),
            source=source,
            entity=definition.entity,
            moment=builder.moment,
            where=builder.where,
            on=builder.on,
            zone=builder.zone,
            values=tuple(builder.values),
            lane=builder.lane(),
            outputs=tuple(builder.outputs),
            columns=tuple(builder.columns),
            features=tuple(builder.features),
        )


def _builder_for(
    builders: dict[str, _LaneBuilder],
    definition: GroupDefinition,
    source: SourceDefinition,
    feature: Feature,
    value: Expr[Any] | None,
) -> _LaneBuilder:
    on, zone = _placed(definition, source, feature)
    exprs = [e for e in (value, feature.aggregate.where, *definition.entity) if e is not None]
    read = [c for e in exprs for c in columns_of(e)]
    for column in [*read, *(c for c, _ in on.terms)] if on is not None else read:
        if column not in source.index:
            raise DefinitionError(
                f"{definition.name}.{feature.name} reads a column of another source",
                where=feature.aggregate.location,
                got=str(column),
                expected=f"columns of {source.name}",
            )
    moments = [source.moments[c] for c in read]
    if value is None:
        moments.append(Moment.of(source.default_known_at))
    moment = Moment.latest(moments)
    state = value is not None and all(c.state for c in columns_of(value)) and bool(columns_of(value))
    key = f"{moment}|{feature.aggregate.where}|{state}|{on}|{zone}"
    # A null mask has so many bits: what is beyond them goes to further lanes, which share nothing but the key.
    found, number = builders.setdefault(key, _LaneBuilder(moment, feature.aggregate.where, state, on, zone)), 0
    while not found.takes(value, source):
        number += 1
        found = builders.setdefault(f"{key}|{number}", _LaneBuilder(moment, feature.aggregate.where, state, on, zone))
    return found


def _placed(
    definition: GroupDefinition, source: SourceDefinition, feature: Feature
) -> tuple[Moment | None, str | None]:
    """Return on which instant a feature's values stand, if not at their moment, and in which zone's civil time."""
    if feature.on is None and not feature.ahead:
        return None, None
    on = Moment.of(source.time if feature.on is None else feature.on)
    column = on.terms[0][0]
    if column.dtype not in ("instant", "date"):
        raise DefinitionError(
            f"{definition.name}.{feature.name}: on= is no instant or date",
            where=feature.aggregate.location,
            got=f"{column}: {column.dtype}",
        )
    return on, feature.zone or column.zone


def _add_outputs(builder: _LaneBuilder, source: SourceDefinition, feature: Feature, value: Expr[Any] | None) -> None:
    aggregate, kind = feature.aggregate, feature.aggregate.kind
    dtype = "" if value is None else type_of(value)
    estimated = kind == "quantile" and aggregate.approx is not None
    allowed = ESTIMATED if estimated else ALLOWED.get(kind, NUMERIC)
    if dtype not in allowed:
        raise DefinitionError(
            f"hr.{kind} cannot take {dtype or 'no'} values" + (", with approx=" if estimated else ""),
            where=aggregate.location,
            got=f"{value}: {dtype}",
            expected=allowed,
        )
    place = None if value is None else builder.place(value)
    if kind == "latest":
        part = value.name if isinstance(value, Column) and len(feature.columns) > 1 else None
        until = None if source.ends is None or not builder.state else builder.place(source.ends)
        builder.add(feature, part, dtype, Output(place, kind, None, feature.max_age, until=until))
        return
    result = aggregate.fold.dtype if aggregate.fold else "float" if estimated else RESULTS.get(kind, dtype)
    result = "int" if kind == "sum" and result == "bool" else result
    parts, bits = iter(feature.parts()), 0 if aggregate.approx is None else sketch_bits(kind, aggregate.approx)
    for frame in feature.frames:
        for number in range(1, aggregate.n + 1):
            parameter = number if kind in ("last", "first") else aggregate.parameter
            spoken = "mean" if kind == "rate" else kind
            output = Output(place, spoken, frame.window, parameter, frame.offset, frame.hop, bits=bits)
            builder.add(feature, next(parts), result, output)
