"""Say what features are made of: the columns that each reads, through windows, keys, conditions and functions."""

from __future__ import annotations

from typing import Any

from headrace.core.expressions import Column, columns_of
from headrace.features.label_plan import RowLabel, TableLabel
from headrace.features.lane_plan import LanePlan
from headrace.features.plan import DatasetPlan, FeaturePlan
from headrace.sources.scans import columns_queried


def group_hashes(plan: FeaturePlan) -> dict[str, str]:
    """Return the version of each group's definition by its name."""
    return {group.definition.name: group.hash for group in plan.groups}


def columns_read(plan: DatasetPlan) -> dict[str, list[str]]:
    """Return for each feature, for `label`, and for `rows` (which there are), the columns that it follows from: `Orders.hours`.

    Keys, conditions and the moments at which values are known count too: without them there would be another value.
    """
    found: dict[int, set[str]] = {place: _names([column]) for place, column in plan.row_columns}
    for binding in plan.bindings:
        place, key = binding.offset, _names(binding.key)
        for lane in binding.lanes:
            for i in range(len(lane.outputs)):
                found[place] = key | _names(columns_of_output(lane, i))
                place += 1
    for function in plan.functions:
        found[function.index] = set()
        for where, at in function.arguments:
            found[function.index] |= _names([plan.row[at]]) if where == "row" else found[at]
    named = {column.name: sorted(found[i]) for i, column in enumerate(plan.columns)}
    return named | {"label": sorted(_names(_label_columns(plan))), "rows": sorted(_names(_row_columns(plan)))}


def columns_of_output(lane: LanePlan, output: int) -> list[Column[Any]]:
    """Return the columns that one output of a lane follows from, and those of other tables that a query makes them of."""
    places = [p for p in (lane.outputs[output].column, lane.outputs[output].until) if p is not None]
    values = [column for place in places for column in columns_of(lane.values[place])]
    where = [] if lane.where is None else columns_of(lane.where)
    moments = [lane.moment] if lane.on is None else [lane.moment, lane.on]
    own = [*values, *where, *lane.entity, *(column for moment in moments for column, _ in moment.terms)]
    return own if lane.source.query is None else [*own, *columns_queried(lane.source, own)]


def _label_columns(plan: DatasetPlan) -> list[Column[Any]]:
    """Return the columns of the row or of another table that a dataset's labels follow from."""
    own = [label for label in (plan.label, plan.labelled_if) if isinstance(label, RowLabel)]
    found = [c for label in own for c in [*columns_of(label.value), *(c for c, _ in label.moment.terms)]]
    if isinstance(plan.label, TableLabel):
        lanes = [lane for lane in (plan.label.lane, plan.label.spoilt) if lane is not None]
        found += [
            *plan.label.key,
            *(c for lane in lanes for i in range(len(lane.outputs)) for c in columns_of_output(lane, i)),
        ]
    return found


def _row_columns(plan: DatasetPlan) -> list[Column[Any]]:
    """Return the columns that decide which rows a dataset has, and at which moments."""
    found = [c for c, _ in plan.at.terms if plan.grid is None]
    found += [] if plan.where is None else columns_of(plan.where)
    if plan.grid is not None:
        found += plan.grid.keys
    if plan.active is not None:
        found += [c for lane in plan.active.lanes for i in range(len(lane.outputs)) for c in columns_of_output(lane, i)]
    return found


def _names(columns: Any) -> set[str]:
    return {str(column) for column in columns}
