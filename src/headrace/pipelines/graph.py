"""Say what features are made of: the columns that each reads, through windows, keys, conditions and functions."""

from __future__ import annotations

from typing import Any

from headrace.core.expressions import Column, columns_of
from headrace.features.plan import DatasetPlan, FeaturePlan, LanePlan


def group_hashes(plan: FeaturePlan) -> dict[str, str]:
    """Return the version of each group's definition by its name."""
    return {group.definition.name: group.hash for group in plan.groups}


def columns_read(plan: DatasetPlan) -> dict[str, list[str]]:
    """Return for each feature, and for `label`, the columns that its value follows from: `Orders.hours`.

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
    return named | {"label": sorted(_names(columns_of(plan.label)) | _names([c for c, _ in plan.label_moment.terms]))}


def columns_of_output(lane: LanePlan, output: int) -> list[Column[Any]]:
    """Return the columns that one output of a lane follows from."""
    place = lane.outputs[output].column
    value = [] if place is None else columns_of(lane.values[place])
    where = [] if lane.where is None else columns_of(lane.where)
    return [*value, *where, *lane.entity, *(column for column, _ in lane.moment.terms)]


def _names(columns: Any) -> set[str]:
    return {str(column) for column in columns}
