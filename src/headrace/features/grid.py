"""Make the rows of a grid: every key that a table has shown, at every step of civil time at which it is active."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from headrace.core.expressions import COMPARE
from headrace.features.dataset import Grid
from headrace.features.history import History, Ints
from headrace.features.offline import dense_keys, lane_events
from headrace.features.record import OK
from headrace.features.windows import scan
from headrace.sources.zones import civil_times, localise

if TYPE_CHECKING:
    from headrace.features.plan import DatasetPlan


def steps(grid: Grid, span: tuple[int, int]) -> Ints:
    """Return the instants of a grid's steps in [start, end), microseconds UTC.

    A step that civil time passes twice comes once, one that it leaps over at the end of the leap.
    """
    first, end = (int(civil_times(np.array([instant], np.int64), grid.zone)[0]) for instant in span)
    low = -((grid.first - first) // grid.every)
    civil = grid.first + np.arange(low - 1, (end - grid.first) // grid.every + 2) * grid.every
    instants = np.unique(localise(civil, grid.zone).instants)
    found: Ints = instants[(instants >= span[0]) & (instants < span[1])]
    return found


def grid_rows(plan: DatasetPlan, histories: Mapping[str, History], span: tuple[int, int]) -> tuple[pa.Table, Ints]:
    """Return a grid's rows, by moment, and their moments."""
    grid, active = plan.grid, plan.active
    assert grid is not None
    assert active is not None
    lane, history = active.lanes[0], histories[grid.source.name]
    cells = history.read(grid.keys)[0]
    keys, place = dense_keys([cells[c.name] for c in grid.keys])
    events, numbers = lane_events(lane, history)
    if not len(events.key):
        span = (0, 0)
    else:
        span = (max(span[0], int(history.arrival.min())), span[1])
    t = steps(grid, span)
    number = np.array([numbers.get(key, -1) for key in keys], np.int64)
    asked = np.tile(number, len(t)), np.repeat(t, len(keys))
    back = None if lane.zone is None else civil_times(asked[1], lane.zone)
    scanned = scan(lane.lane, lane.outputs, events, *asked, query_at=back)
    words = np.ascontiguousarray(scanned.words[:, 0])
    values = words.view(np.float64) if lane.columns[0].dtype == "float" else words
    condition = grid.active
    chosen = (scanned.status[:, 0] == OK) & COMPARE[condition.op](values, condition.value)
    chosen &= asked[0] >= 0
    first = np.zeros(len(keys), np.int64)
    known = np.flatnonzero(place >= 0)[::-1]
    first[place[known]] = known
    where = pa.array(np.tile(first, len(t))[chosen])
    moments = asked[1][chosen]
    columns = {c.name: cells[c.name].combine_chunks().take(where) for c in grid.keys}
    return pa.table(columns | {grid.at.name: pa.array(moments)}), moments
