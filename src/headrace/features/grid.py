"""Make the rows of a grid: every key that a table has shown, at every step of civil time at which it is active."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from headrace.core.expressions import COMPARE
from headrace.features.dataset import Grid
from headrace.features.history import Ints
from headrace.features.keys import Keys
from headrace.features.record import OK
from headrace.sources.zones import civil_times, localise

if TYPE_CHECKING:
    from headrace.features.past import WholePast
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


def grid_rows(plan: DatasetPlan, past: WholePast, span: tuple[int, int]) -> tuple[pa.Table, Ints]:
    """Return a grid's rows, by moment, and their moments."""
    grid, active = plan.grid, plan.active
    assert grid is not None
    assert active is not None
    lane, condition = active.lanes[0], grid.active
    cells, earliest = past.keys(grid.source, grid.keys)
    t = steps(grid, (max(span[0], earliest), span[1])) if cells.num_rows else np.zeros(0, np.int64)
    number, place = np.arange(cells.num_rows), Keys.of([cells[c.name] for c in grid.keys])
    asked, moments = np.tile(number, len(t)), np.repeat(t, cells.num_rows)
    found = past.ask(lane, Keys(place.distinct, place.place[asked]), moments)
    words = np.ascontiguousarray(found.words[:, 0])
    values = words.view(np.float64) if lane.columns[0].dtype == "float" else words
    chosen = (found.status[:, 0] == OK) & COMPARE[condition.op](values, condition.value)
    where, moments = pa.array(asked[chosen]), moments[chosen]
    columns = {c.name: cells[c.name].combine_chunks().take(where) for c in grid.keys}
    return pa.table(columns | {grid.at.name: pa.array(moments)}), moments
