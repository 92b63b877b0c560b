"""Plant faults into a replay, each on a day of its own; what they cause is labelled with their name in every record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.core.errors import UsageError, did_you_mean
from headrace.core.expressions import columns_of
from headrace.core.time import DAY, Instant
from headrace.features.label_plan import RowLabel, TableLabel
from headrace.features.plan import DatasetPlan
from headrace.sources.record import ARRIVAL, RevealBatch
from headrace.sources.stated import Stated

LATE_BY = 7 * DAY
NAMES = {
    "bad_data": "a day whose measured columns arrive far outside every valid range or pattern",
    "bad_model": "the next candidate is corrupted after its gates have passed",
    "late_labels": "a day's labels arrive a week late",
    "schema_change": "a day's deliveries carry a column with another type",
    "crash": "the process is killed on that day and started again",
}


@dataclass(frozen=True)
class Fault:
    """Hold a fault's name and its day (midnight UTC)."""

    name: str
    day: Instant

    def __str__(self) -> str:
        return f"{self.name}@{self.day.day()}"

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read NAME@DATE, as in bad_model@2013-09-01.

        Raises:
            UsageError: an unknown name, or no date.
        """
        name, _, date = text.partition("@")
        if name not in NAMES or not date:
            raise UsageError(
                "not a fault",
                got=text,
                expected="NAME@DATE, as in bad_model@2013-09-01",
                next_step=did_you_mean(name, NAMES),
            )
        return cls(name, Instant.parse(date))


def spoil(plan: DatasetPlan, batches: Mapping[str, RevealBatch], faults: tuple[Fault, ...]) -> dict[str, RevealBatch]:
    """Return the sources' reveals as they arrive with the faults that concern data planted in them."""
    found = dict(batches)
    changes: dict[str, Callable[[DatasetPlan, RevealBatch, int], RevealBatch]] = {
        "bad_data": _bad_data,
        "late_labels": _late_labels,
    }
    labels = plan.label.sources[0].name if isinstance(plan.label, TableLabel) else plan.rows.name
    for fault in faults:
        if fault.name in changes:
            name = labels if fault.name == "late_labels" else plan.rows.name
            found[name] = changes[fault.name](plan, found[name], fault.day)
    return found


def _on_day(batch: RevealBatch, day: int) -> Any:
    arrival = batch.table[ARRIVAL]
    return pc.and_(pc.greater_equal(arrival, day), pc.less(arrival, day + DAY))


def _bad_data(plan: DatasetPlan, batch: RevealBatch, day: int) -> RevealBatch:
    """Break every column that has a valid range or pattern, in all reveals that arrive on the day."""
    broken, table = _on_day(batch, day), batch.table
    for column in batch.source.columns:
        if column.matches is not None and column.dtype == "str":
            table = _replace(table, column.name, pc.if_else(broken, "#BROKEN#", table[column.name]))
        elif column.dtype == "float":
            table = _replace(table, column.name, pc.if_else(broken, float("nan"), table[column.name]))
    return RevealBatch(batch.source, table)


def _late_labels(plan: DatasetPlan, batch: RevealBatch, day: int) -> RevealBatch:
    """Let the reveals that state the label arrive `LATE_BY` later; where another table decides, all of its."""
    table, late = batch.table, _on_day(batch, day)
    if isinstance(plan.label, RowLabel):
        places = [batch.source.index[c] for c in columns_of(plan.label.value)]
        late = pc.and_(late, pa.array(Stated.of(table).says_any(places)))
    late = pc.if_else(late, LATE_BY, 0)
    arrival = pc.add(table[ARRIVAL], late)
    return RevealBatch(batch.source, _replace(table, ARRIVAL, arrival).sort_by(ARRIVAL))


def _replace(table: pa.Table, name: str, column: Any) -> pa.Table:
    place = table.column_names.index(name)
    return table.set_column(place, name, pc.cast(column, table.schema.field(name).type))


def retyped(batch: RevealBatch) -> pa.Table:
    """Return a delivery whose first measured column arrives as text: what `schema_change` delivers."""
    column = next(c for c in batch.source.columns if c.dtype == "float")
    place = batch.table.column_names.index(column.name)
    texts = pa.array([None if v is None else f"{v:g} min" for v in batch.table[column.name].to_pylist()], pa.string())
    return batch.table.set_column(place, column.name, texts)


def day_bounds(arrivals: np.ndarray[Any, np.dtype[np.int64]], start: int, end: int) -> list[int]:
    """Return the places at which each day from `start` to `end` begins in sorted arrivals, and the last day's end."""
    return [int(i) for i in np.searchsorted(arrivals, np.arange(start, end + DAY, DAY))]
