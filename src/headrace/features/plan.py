"""Turn definitions into what has to be computed: lanes, outputs, columns. Pure; reads no data.

A *lane* holds the events of one entity whose values share source, moment and condition; it is the unit that is stored
online and scanned offline. Every check that can be made without data is made here: leakage, keys, names, types.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version as package_version
from typing import Any

from headrace.core.errors import DefinitionError, LeakageError, SchemaConflict
from headrace.core.expressions import Column, Expr, Moment, columns_of, type_of
from headrace.core.identity import content_hash, function_source
from headrace.core.time import DAY
from headrace.features.definition import (
    Bound,
    Dataset,
    Feature,
    FeatureGroup,
    FeatureLike,
    GroupDefinition,
    Item,
    OnDemand,
)
from headrace.features.record import FeatureColumn
from headrace.features.windows import KERNEL_VERSION, Lane, Output, ValueType
from headrace.sources.definition import SourceDefinition, definition_of

GRACE = DAY
VALUE_TYPES = {
    "float": ValueType.FLOAT,
    "int": ValueType.INT,
    "instant": ValueType.INT,
    "bool": ValueType.BOOL,
    "str": ValueType.REF,
}
NUMERIC = ("float", "int", "bool")


@dataclass(frozen=True, eq=False)
class LanePlan:
    """Say how one lane's events follow from rows, and which outputs are read from it."""

    prefix: bytes
    source: SourceDefinition
    entity: tuple[Column[Any], ...]
    moment: Moment
    where: Expr[bool] | None
    values: tuple[Expr[Any], ...]
    lane: Lane
    outputs: tuple[Output, ...]
    columns: tuple[FeatureColumn, ...]
    features: tuple[tuple[Feature, str | None], ...]

    @cached_property
    def reads(self) -> frozenset[Column[Any]]:
        """Return the columns whose change may change an event."""
        exprs = [*self.entity, *self.values, *([] if self.where is None else [self.where])]
        return frozenset([c for e in exprs for c in columns_of(e)] + [c for c, _ in self.moment.terms])


@dataclass(frozen=True, eq=False)
class GroupPlan:
    """Hold a group's lanes; `hash` names the version of its definition."""

    definition: GroupDefinition
    hash: str
    lanes: tuple[LanePlan, ...]


@dataclass(frozen=True, eq=False)
class BindingPlan:
    """Read a group under the key that stands in `key`, columns of the rows' source; outputs start at `offset`."""

    group: GroupPlan
    key: tuple[Column[Any], ...]
    offset: int
    lanes: tuple[LanePlan, ...]


@dataclass(frozen=True, eq=False)
class FunctionPlan:
    """Compute an on-demand function from row columns ("row", place) and features ("feature", index)."""

    function: OnDemand[Any]
    index: int
    arguments: tuple[tuple[str, int], ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class FeaturePlan:
    """Say how features follow from rows whose columns are `row`; offline, online and on request follow this one plan."""

    row: tuple[Column[Any], ...]
    columns: tuple[FeatureColumn, ...]
    row_columns: tuple[tuple[int, Column[Any]], ...]
    bindings: tuple[BindingPlan, ...]
    functions: tuple[FunctionPlan, ...]
    features: str  # names all that a vector depends on: a model reads only vectors of the plan it was trained on

    @cached_property
    def places(self) -> dict[Column[Any], int]:
        """Return each row column's place."""
        return {column: place for place, column in enumerate(self.row)}

    @cached_property
    def groups(self) -> tuple[GroupPlan, ...]:
        """Return the groups that the features are of, each once."""
        return tuple({binding.group.hash: binding.group for binding in self.bindings}.values())

    @cached_property
    def sources(self) -> tuple[SourceDefinition, ...]:
        """Return the sources that the features are computed from."""
        found = [definition_of(group.definition.source) for group in self.groups]
        return tuple({source.name: source for source in found}.values())


@dataclass(frozen=True, eq=False, kw_only=True)
class DatasetPlan(FeaturePlan):
    """Say everything that a dataset's rows need; `row` is all columns of the rows' source."""

    dataset: Dataset
    rows: SourceDefinition
    at: Moment
    label: Expr[Any]
    label_moment: Moment
    mature: int
    request: tuple[Column[Any], ...]
    hash: str

    @cached_property
    def sources(self) -> tuple[SourceDefinition, ...]:
        """Return the sources that the dataset reads, the rows' first."""
        found = [self.rows, *(definition_of(group.definition.source) for group in self.groups)]
        return tuple({source.name: source for source in found}.values())


def plan_group(group: type[FeatureGroup]) -> GroupPlan:
    """Return a group's lanes.

    Raises:
        DefinitionError: a value has no fitting type, or reads columns of another source.
    """
    definition = group.__definition__
    source = definition_of(definition.source)
    digest = content_hash([_describe(definition, source), KERNEL_VERSION, package_version("tzdata")])
    return GroupPlan(definition, digest, tuple(_lanes(definition, source, bytes.fromhex(digest[:16]))))


def _describe(definition: GroupDefinition, source: SourceDefinition) -> list[Any]:
    features = [
        [f.name, f.aggregate.kind, str(f.aggregate.value), str(f.aggregate.where), f.aggregate.parameter]
        + [list(f.windows), [c.name for c in f.columns], f.max_age, f.fill]
        for f in definition.features
    ]
    return [definition.name, [c.name for c in definition.entity], features, source.meaning(definition.spoken)]


@dataclass
class _LaneBuilder:
    moment: Moment
    where: Expr[bool] | None
    state: bool
    values: list[Expr[Any]] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    columns: list[FeatureColumn] = field(default_factory=list)
    features: list[tuple[Feature, str | None]] = field(default_factory=list)

    def place(self, value: Expr[Any]) -> int:
        """Return the place of a value in the lane, the same for the same expression."""
        names = [str(v) for v in self.values]
        if str(value) not in names:
            self.values.append(value)
            return len(self.values) - 1
        return names.index(str(value))


def _lanes(definition: GroupDefinition, source: SourceDefinition, prefix: bytes) -> Iterator[LanePlan]:
    builders: dict[str, _LaneBuilder] = {}
    for feature in definition.features:
        for value in feature.columns or (feature.aggregate.value,):
            builder = _builder_for(builders, definition, source, feature, value)
            _add_outputs(builder, feature, value)
    for number, builder in enumerate(builders.values()):
        windows = tuple(sorted({o.window for o in builder.outputs if o.window is not None}))
        ages = [int(o.parameter) for o in builder.outputs if o.aggregate == "latest" and o.parameter is not None]
        yield LanePlan(
            prefix=b"L" + prefix + number.to_bytes(2, "big"),
            source=source,
            entity=definition.entity,
            moment=builder.moment,
            where=builder.where,
            values=tuple(builder.values),
            lane=Lane(
                values=tuple(VALUE_TYPES[type_of(v)] for v in builder.values),
                windows=windows,
                state=builder.state,
                keep=max([*windows, *ages, 0]) + GRACE,
                latest=any(o.aggregate == "latest" for o in builder.outputs),
            ),
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
    exprs = [e for e in (value, feature.aggregate.where, *definition.entity) if e is not None]
    read = [c for e in exprs for c in columns_of(e)]
    for column in read:
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
    key = f"{moment}|{feature.aggregate.where}|{state}"
    return builders.setdefault(key, _LaneBuilder(moment, feature.aggregate.where, state))


def _add_outputs(builder: _LaneBuilder, feature: Feature, value: Expr[Any] | None) -> None:
    kind = "mean" if feature.aggregate.kind == "rate" else feature.aggregate.kind
    dtype = "" if value is None else type_of(value)
    allowed = {"count": (*NUMERIC, "instant", "str", ""), "latest": (*NUMERIC, "instant", "str"), "rate": ("bool",)}
    if dtype not in allowed.get(feature.aggregate.kind, NUMERIC):
        raise DefinitionError(
            f"hr.{feature.aggregate.kind} cannot take {dtype or 'no'} values",
            where=feature.aggregate.location,
            got=f"{value}: {dtype}",
            expected=allowed.get(feature.aggregate.kind, NUMERIC),
        )
    place = None if value is None else builder.place(value)
    if kind == "latest":
        part = value.name if isinstance(value, Column) and len(feature.columns) > 1 else None
        builder.outputs.append(Output(place, kind, None, feature.max_age))
        builder.columns.append(FeatureColumn(feature.column_name(part), dtype, "latest"))
        builder.features.append((feature, part))
        return
    result = {"count": "int", "sum": dtype, "min": dtype, "max": dtype, "quantile": dtype}.get(kind, "float")
    for window, part in zip(feature.windows, feature.parts(), strict=True):
        builder.outputs.append(Output(place, kind, window, feature.aggregate.parameter))
        typed = "int" if kind == "sum" and result == "bool" else result
        builder.columns.append(FeatureColumn(feature.column_name(part), typed, "window"))
        builder.features.append((feature, part))


class _Collector:
    """Collect features' columns in the order in which the user lists them; the row may have any column that they read."""

    def __init__(self, features: Sequence[Any], location: str) -> None:
        self.features, self.location = features, location
        self.places: dict[Column[Any], int] = {}
        self.columns: list[FeatureColumn] = []
        self.row_columns: list[tuple[int, Column[Any]]] = []
        self.bindings: list[BindingPlan] = []
        self.functions: list[OnDemand[Any]] = []
        self.group_plans: dict[type[FeatureGroup], GroupPlan] = {}
        bound = [f.group for f in features if isinstance(f, Bound)] + [f for f in features if isinstance(f, type)]
        self.in_roles = {group for group in bound if bound.count(group) > 1}

    def direct(self, column: Column[Any], why: str) -> Column[Any]:
        """Return a column that is read from the row itself."""
        self.places.setdefault(column, len(self.places))
        return column

    def collect(self) -> tuple[FunctionPlan, ...]:
        """Collect every feature and return the plans of the functions, which stand last."""
        for feature in self.features:
            self.add(feature)
        _refuse_namesakes(self)
        functions = tuple(self.function_plans())
        _refuse_repeated(self.columns, self.location)
        return functions

    def add(self, feature: Any) -> None:
        if isinstance(feature, Column):
            column = self.direct(feature, "a feature")
            self.row_columns.append((len(self.columns), column))
            self.columns.append(FeatureColumn(str(column), column.dtype, "row"))
        elif isinstance(feature, type) and issubclass(feature, FeatureGroup):
            self.bind(feature, feature.__definition__.entity, None)
        elif isinstance(feature, Bound):
            self.bind(feature.group, feature.key, None)
        elif isinstance(feature, (Feature, Item)):
            owner = (feature.feature if isinstance(feature, Item) else feature).group
            if owner is None:
                raise DefinitionError("a feature outside any group", where=self.location)
            self.bind(owner, owner.__definition__.entity, feature)
        elif isinstance(feature, OnDemand):
            self.functions.append(feature)
        else:
            expected = "a column, a feature group, a feature, Group.on(column) or an on-demand function"
            raise DefinitionError("not a feature", where=self.location, got=repr(feature), expected=expected)

    def bind(self, group: type[FeatureGroup], key: tuple[Column[Any], ...], only: Feature | Item | None) -> None:
        definition = group.__definition__
        self.refuse_key(definition, key)
        for part in key:
            self.direct(part, f"the key of {definition.name}")
        plan = self.group_plans.setdefault(group, plan_group(group))
        role = "@" + ",".join(k.name for k in key) if group in self.in_roles else ""
        lanes = tuple(_selected(lane, only) for lane in plan.lanes)
        lanes = tuple(lane for lane in lanes if lane.outputs)
        self.bindings.append(BindingPlan(plan, key, len(self.columns), lanes))
        for column in (c for lane in lanes for c in lane.columns):
            name = column.name if not role else column.name.replace(definition.name, definition.name + role, 1)
            self.columns.append(FeatureColumn(name, column.dtype, column.origin))

    def refuse_key(self, definition: GroupDefinition, key: tuple[Column[Any], ...]) -> None:
        """Refuse a key of another number of parts than the group's."""
        if len(key) != len(definition.entity):
            raise DefinitionError(
                f"{definition.name} is keyed by {', '.join(map(str, definition.entity))}",
                where=self.location,
                got=[str(k) for k in key],
                expected="as many columns",
                next_step=f"{definition.name}.on(…)",
            )

    def function_plans(self) -> Iterator[FunctionPlan]:
        names = {c.name: i for i, c in enumerate(self.columns)}
        for function in self.functions:
            arguments = []
            for bound in function.bound.values():
                if isinstance(bound, Column):
                    column = self.direct(bound, f"an argument of {function.name}")
                    arguments.append(("row", self.places[column]))
                elif str(bound) in names:
                    arguments.append(("feature", names[str(bound)]))
                else:
                    raise DefinitionError(
                        f"{function.name} needs {bound}, which the dataset does not have",
                        where=function.location,
                        got=str(bound),
                        next_step=f"add {bound.feature.group.__name__ if bound.feature.group else bound} to features=[…]",
                    )
            yield FunctionPlan(function, len(self.columns), tuple(arguments))
            self.columns.append(FeatureColumn(function.name, function.dtype, "on_demand"))


class _DatasetCollector(_Collector):
    """Collect a dataset's features; what is read from the row must be known at the prediction's moment."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset.features, dataset.location)
        self.rows, self.at = definition_of(dataset.rows), Moment.of(dataset.at)
        self.places = dict(self.rows.index)

    def direct(self, column: Column[Any], why: str) -> Column[Any]:
        """Return a column of the row itself, after proof that it is known at the prediction's moment."""
        if column not in self.rows.index:
            raise DefinitionError(
                f"{column} is no column of {self.rows.name}",
                where=self.location,
                got=f"{column} as {why}",
                expected=f"columns of {self.rows.name}, or a feature group of {column.owner.__name__ if column.owner else '?'}",
                next_step=f"put it into a group: class G(hr.FeatureGroup, of=…): x = hr.latest({column})",
            )
        moment = self.rows.moments[column]
        if not moment.certainly_by(self.at):
            raise LeakageError(
                f"{column} would leak: it may become known after the prediction",
                where=self.location,
                got=f"{column} as {why}, known at {moment}",
                expected=f"known at or before {self.at}, provable from constant offsets",
                next_step=f'use a window over earlier rows, as hr.mean({column}).over("24h"), or correct its known_at',
            )
        return column

    def refuse_key(self, definition: GroupDefinition, key: tuple[Column[Any], ...]) -> None:
        """Refuse a key that the rows do not have."""
        if len(key) != len(definition.entity) or any(k not in self.rows.index for k in key):
            raise DefinitionError(
                f"{definition.name} is keyed by {', '.join(map(str, definition.entity))}, which no row of "
                f"{self.rows.name} has",
                where=self.location,
                got=[str(k) for k in key],
                expected=f"as many columns of {self.rows.name}",
                next_step=f"{definition.name}.on({self.rows.name}.…)",
            )


def _selected(lane: LanePlan, only: Feature | Item | None) -> LanePlan:
    """Return a lane with the outputs of one feature, or of one of its parts, only."""
    if only is None:
        return lane
    keep = [
        i
        for i, (feature, part) in enumerate(lane.features)
        if feature is (only.feature if isinstance(only, Item) else only)
        and (isinstance(only, Feature) or part == only.part)
    ]
    return LanePlan(
        **{k: getattr(lane, k) for k in ("prefix", "source", "entity", "moment", "where", "values", "lane")},
        outputs=tuple(lane.outputs[i] for i in keep),
        columns=tuple(lane.columns[i] for i in keep),
        features=tuple(lane.features[i] for i in keep),
    )


def plan_dataset(dataset: Dataset) -> DatasetPlan:
    """Return a dataset's plan.

    Raises:
        LeakageError: a feature, key or argument is not provably known at the prediction's moment.
        DefinitionError: a key, name or type does not fit.
    """
    collector = _DatasetCollector(dataset)
    rows, at = collector.rows, collector.at
    if at.terms[0][0] not in rows.index:
        raise DefinitionError(
            "at= must be a moment of the rows' source", where=dataset.location, got=str(at), expected=rows.name
        )
    functions = collector.collect()
    label_columns = columns_of(dataset.label)
    for column in label_columns:
        if column not in rows.index:
            raise DefinitionError(
                "the label must be computed from the rows' source", where=dataset.location, got=str(column)
            )
    features = _hash(collector, str(at))
    return DatasetPlan(
        row=rows.columns,
        columns=tuple(collector.columns),
        row_columns=tuple(collector.row_columns),
        bindings=tuple(collector.bindings),
        functions=functions,
        features=features,
        hash=content_hash([features, rows.hash, str(dataset.label), dataset.mature]),
        dataset=dataset,
        rows=rows,
        at=at,
        label=dataset.label,
        label_moment=Moment.latest([rows.moments[c] for c in label_columns]),
        mature=dataset.mature,
        request=tuple(c for c in rows.columns if rows.moments[c].certainly_by(at)),
    )


def plan_features(features: Sequence[FeatureLike], location: str) -> FeaturePlan:
    """Return the plan of features of rows that a caller brings; the columns that they read are known by the caller's word.

    Raises:
        DefinitionError: a key, name or type does not fit.
    """
    collector = _Collector(features, location)
    functions = collector.collect()
    return FeaturePlan(
        row=tuple(collector.places),
        columns=tuple(collector.columns),
        row_columns=tuple(collector.row_columns),
        bindings=tuple(collector.bindings),
        functions=functions,
        features=_hash(collector, "the caller's"),
    )


def _hash(collector: _Collector, at: str) -> str:
    """Return what names a vector's meaning: its columns, their groups' versions, under which keys, and its functions."""
    functions = [[f.name, function_source(f.function), [str(b) for b in f.bound.values()]] for f in collector.functions]
    columns = [[c.name, c.dtype, c.origin] for c in collector.columns]
    bindings = [[b.group.hash, b.offset, [str(k) for k in b.key]] for b in collector.bindings]
    return content_hash([at, columns, bindings, functions])


def _refuse_namesakes(collector: _Collector) -> None:
    """Refuse two different sources of one name: tables and positions are kept by name."""
    sources = [definition_of(c.owner) for c in collector.places if c.owner is not None]
    sources += [definition_of(group.__definition__.source) for group in collector.group_plans]
    found: dict[str, SourceDefinition] = {}
    for source in sources:
        if found.setdefault(source.name, source) is not source:
            raise SchemaConflict(
                "two sources of one name", where=source.location, got=source.name, expected="different class names"
            )


def _refuse_repeated(columns: Sequence[FeatureColumn], location: str) -> None:
    names = [c.name for c in columns]
    repeated = sorted({n for n in names if names.count(n) > 1})
    if repeated:
        raise SchemaConflict("a feature is listed twice", where=location, got=repeated, expected="each feature once")
    if not names:
        raise DefinitionError("a dataset without features", where=location, expected="features=[…]")
