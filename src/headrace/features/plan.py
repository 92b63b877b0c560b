"""Turn datasets into what has to be computed: lanes under keys, functions, columns. Pure; reads no data.

Every check that can be made without data is made here: leakage, keys, names, types.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from headrace.core.errors import DefinitionError, LeakageError, SchemaConflict
from headrace.core.expressions import Column, Expr, Moment, columns_of
from headrace.core.functions import function_source
from headrace.core.identity import content_hash
from headrace.features.aggregates import Feature, Item
from headrace.features.dataset import Dataset, Downsample, Grid
from headrace.features.definition import Bound, FeatureGroup, FeatureLike, GroupDefinition, OnDemand
from headrace.features.label_plan import RowLabel, TableLabel, plan_label
from headrace.features.lane_plan import GroupPlan, LanePlan, plan_definition, plan_group
from headrace.features.record import FeatureColumn
from headrace.sources.definition import SourceDefinition, definition_of


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
    def read(self) -> tuple[SourceDefinition, ...]:
        """Return the sources that the features are computed from."""
        found = [definition_of(group.definition.source) for group in self.groups]
        return tuple({source.name: source for source in found}.values())

    @cached_property
    def sources(self) -> tuple[SourceDefinition, ...]:
        """Return the sources whose rows are taken in; those of a query stand for the one that it fills."""
        return tuple({feed.name: feed for source in self.read for feed in source.feeds}.values())

    @cached_property
    def queried(self) -> tuple[SourceDefinition, ...]:
        """Return the sources that a query fills."""
        return tuple(source for source in self.read if source.query is not None)

    def refuse_queries(self, what: str, where: str | None = None) -> None:
        """Refuse what needs the features of single rows at once, where a query computes some.

        Raises:
            DefinitionError: it does.
        """
        for source in self.queried:
            assert source.query is not None
            raise DefinitionError(
                f"{source.name} is computed by a query over whole tables: {what}",
                where=where or source.query.location,
                got=f"hr.sql(…) at {source.query.location}",
                expected="features of windows, latest values, row columns and on-demand functions",
                next_step=f"leave it out, or have a job write the rows to a table and use hr.precomputed({source.name}, …)",
            )


@dataclass(frozen=True, eq=False, kw_only=True)
class DatasetPlan(FeaturePlan):
    """Say everything that a dataset's rows need; `row` is all columns of the rows' source.

    With a `grid` no table holds the rows; those are active whose one output of `active` compares so with a constant.
    `where` and `labelled_if` leave rows out, the latter those whose label nobody could see.
    """

    dataset: Dataset
    rows: SourceDefinition
    at: Moment
    label: RowLabel | TableLabel
    mature: int
    request: tuple[Column[Any], ...]
    hash: str
    where: Expr[bool] | None
    labelled_if: RowLabel | None
    sample: Downsample | None
    grid: Grid | None
    active: GroupPlan | None

    @cached_property
    def direct(self) -> tuple[Column[Any], ...]:
        """Return the rows source's columns that the features read directly: what a request must bring."""
        places = {place for f in self.functions for where, place in f.arguments if where == "row"}
        found = [c for _, c in self.row_columns] + [k for b in self.bindings for k in b.key]
        found += [self.rows.columns[p] for p in sorted(places)]
        return tuple(dict.fromkeys(found))

    @cached_property
    def read(self) -> tuple[SourceDefinition, ...]:
        """Return the sources that the dataset reads, the rows' first."""
        groups = [*self.groups, *([] if self.active is None else [self.active])]
        found = [*([] if self.grid else [self.rows]), *(definition_of(group.definition.source) for group in groups)]
        found += self.label.sources
        return tuple({source.name: source for source in found}.values())


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
            self.bind(feature, self.key_of(feature.__definition__), None)
        elif isinstance(feature, Bound):
            self.bind(feature.group, feature.key, None)
        elif isinstance(feature, (Feature, Item)):
            owner = (feature.feature if isinstance(feature, Item) else feature).group
            if owner is None:
                raise DefinitionError("a feature outside any group", where=self.location)
            self.bind(owner, self.key_of(owner.__definition__), feature)
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
        for lane in plan.lanes:
            _refuse_unknowable(lane)
        role = "@" + ",".join(k.name for k in key) if group in self.in_roles else ""
        lanes = tuple(_selected(lane, only) for lane in plan.lanes)
        lanes = tuple(lane for lane in lanes if lane.outputs)
        self.bindings.append(BindingPlan(plan, key, len(self.columns), lanes))
        for column in (c for lane in lanes for c in lane.columns):
            name = column.name if not role else column.name.replace(definition.name, definition.name + role, 1)
            self.columns.append(FeatureColumn(name, column.dtype, column.origin))

    def key_of(self, definition: GroupDefinition) -> tuple[Column[Any], ...]:
        """Return under which columns a group is read that is bound to none: its own."""
        return definition.entity

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
        self.rows = dataset.rows.definition if isinstance(dataset.rows, Grid) else definition_of(dataset.rows)
        self.at = Moment.of(dataset.at)
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

    def key_of(self, definition: GroupDefinition) -> tuple[Column[Any], ...]:
        """Return the row's own columns of a group's key: the same ones, or their namesakes where it is of another source."""
        return tuple(c if c in self.rows.index else self.rows.by_name.get(c.name, c) for c in definition.entity)

    def refuse_key(self, definition: GroupDefinition, key: tuple[Column[Any], ...]) -> None:
        """Refuse a key that the rows do not have, or of another type."""
        others = [
            k for k, c in zip(key, definition.entity, strict=False) if k not in self.rows.index or k.dtype != c.dtype
        ]
        if len(key) != len(definition.entity) or others:
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
    return replace(
        lane,
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
    for column in [] if dataset.where is None else columns_of(dataset.where):
        collector.direct(column, "the rows' condition")
    features, label = _hash(collector, str(at)), plan_label(dataset, rows)
    grid = dataset.rows if isinstance(dataset.rows, Grid) else None
    active = None if grid is None else _plan_active(grid)
    rest = [str(dataset.where), str(dataset.labelled_if), str(dataset.sample), None if active is None else active.hash]
    plan = DatasetPlan(
        row=rows.columns,
        columns=tuple(collector.columns),
        row_columns=tuple(collector.row_columns),
        bindings=tuple(collector.bindings),
        functions=functions,
        features=features,
        hash=content_hash([features, rows.hash, str(label), dataset.mature, *rest]),
        dataset=dataset,
        rows=rows,
        at=at,
        label=label,
        mature=dataset.mature,
        request=tuple(c for c in rows.columns if rows.moments[c].certainly_by(at)),
        where=dataset.where,
        labelled_if=_plan_labelled(dataset, rows, label),
        sample=dataset.sample,
        grid=grid,
        active=active,
    )
    _refuse_wrong_queries(plan)
    return plan


def _refuse_wrong_queries(plan: FeaturePlan) -> None:
    for source in plan.queried:
        from headrace.sources.sql import refuse_wrong_query  # not loaded where no query is

        refuse_wrong_query(source)


def _plan_labelled(dataset: Dataset, rows: SourceDefinition, label: RowLabel | TableLabel) -> RowLabel | None:
    """Return which rows have a label at all, where the row itself tells."""
    condition = dataset.labelled_if
    if condition is None or (isinstance(label, TableLabel) and label.spoilt is not None):
        return None
    columns = columns_of(condition)
    others = [str(c) for c in columns if c not in rows.index]
    if others:
        raise DefinitionError(
            "labelled_if= reads columns of the row, or of the label's table",
            where=dataset.location,
            got=others,
            expected=f"columns of {rows.name}",
        )
    return RowLabel(condition, Moment.latest([rows.moments[c] for c in columns]))


def _plan_active(grid: Grid) -> GroupPlan:
    """Return the lane that tells which keys a grid has."""
    condition = grid.active
    feature = condition.feature
    if (
        feature.group is not None
        or len(feature.parts()) != 1
        or feature.aggregate.rows not in (None, grid.keys[0].owner)
    ):
        raise DefinitionError(
            "a grid's active= is one value of the keys' own table",
            where=grid.location,
            got=str(condition),
            expected=f'hr.count({grid.source.name}).over("56d") > 0',
        )
    named = feature.renamed("active", feature.frames)
    source = grid.keys[0].owner
    assert source is not None
    return plan_definition(GroupDefinition("active", source, grid.keys, (named,), "", grid.location))


def _refuse_unknowable(lane: LanePlan) -> None:
    """Refuse windows ahead of values that are known only when their instant has come: nothing could ever be in them."""
    if lane.on is None or lane.zone is not None or all(o.offset >= 0 for o in lane.outputs):
        return
    known, (column, offset) = dict(lane.moment.terms), lane.on.terms[0]
    if column in known and known[column] >= offset:
        feature = lane.features[0][0]
        raise DefinitionError(
            f"{feature.column_name(None)} looks ahead at values that are not known by then",
            where=feature.aggregate.location,
            got=f"known at {lane.moment}, placed on {lane.on}",
            expected="a known_at= before the event",
            next_step="say when it is announced: known_at = announced",
        )


def plan_features(features: Sequence[FeatureLike], location: str) -> FeaturePlan:
    """Return the plan of features of rows that a caller brings; the columns that they read are known by the caller's word.

    Raises:
        DefinitionError: a key, name or type does not fit.
    """
    collector = _Collector(features, location)
    functions = collector.collect()
    plan = FeaturePlan(
        row=tuple(collector.places),
        columns=tuple(collector.columns),
        row_columns=tuple(collector.row_columns),
        bindings=tuple(collector.bindings),
        functions=functions,
        features=_hash(collector, "the caller's"),
    )
    _refuse_wrong_queries(plan)
    return plan


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
    sources += [feed for source in sources for feed in source.feeds]
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
