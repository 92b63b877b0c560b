"""Say which columns of their sources features are computed from: what else reveals state need not be read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from headrace.features.buckets import lanes_of
from headrace.features.lane_plan import LanePlan
from headrace.features.plan import DatasetPlan, FeaturePlan

Asked: TypeAlias = Mapping[str, frozenset[str]]  # names of columns by source; one that is not there is asked for whole


def asked_of(plan: FeaturePlan, *, rows: bool = True) -> Asked:
    """Return which columns a plan's features ask for, and with `rows` its training sets: all columns of a dataset's rows."""
    found = {source.name: frozenset[str]() for source in plan.read} | asked_by(lanes_of(plan, labels=rows))
    whole = {feed.name for source in plan.queried for feed in source.feeds}
    if isinstance(plan, DatasetPlan):
        if plan.grid is not None:
            found[plan.grid.source.name] |= {column.name for column in plan.grid.keys}
        elif rows:
            whole.add(plan.rows.name)
    return {name: columns for name, columns in found.items() if name not in whole}


def asked_by(lanes: Iterable[LanePlan]) -> dict[str, frozenset[str]]:
    """Return which columns some lanes ask for; of tables that a query reads, all."""
    found: dict[str, frozenset[str]] = {}
    whole: set[str] = set()
    for lane in lanes:
        source = lane.source
        copies = source.moments[source.time].terms if lane.dated else ()
        read = {column.name for column in [*lane.reads, *(column for column, _ in copies)]}
        found[source.name] = found.get(source.name, frozenset()) | read
        whole |= set() if source.query is None else {feed.name for feed in source.feeds}
    return {name: columns for name, columns in found.items() if name not in whole}
