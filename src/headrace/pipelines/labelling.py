"""Tell labels to the monitors: those of the row itself as reveals state them, those of other tables as they mature."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from headrace.core.errors import DefinitionError
from headrace.core.expressions import columns_of, per_row
from headrace.core.identity import encode_key
from headrace.features.asked import asked_of
from headrace.features.label_plan import RowLabel, TableLabel
from headrace.features.plan import DatasetPlan
from headrace.features.training_set import matured_labels
from headrace.pipelines.reveals import read_reveals, reveals_table
from headrace.sources.record import ROW_ID, Reveal
from headrace.storage.tables import Tables


class RowLabels:
    """Compute the labels that are expressions over rows; where another table decides, no reveal of a row states one."""

    def __init__(self, plan: DatasetPlan) -> None:
        refuse_unfollowed(plan)
        self.rows = plan.rows.name
        read = [label.value for label in (plan.label, plan.labelled_if) if isinstance(label, RowLabel)]
        own, index = isinstance(plan.label, RowLabel), plan.rows.index
        self.places = frozenset(index[c] for value in read for c in columns_of(value)) if own else frozenset()
        self._label = per_row(plan.label.value, index) if isinstance(plan.label, RowLabel) else None
        self._seen = None if plan.labelled_if is None else per_row(plan.labelled_if.value, index)

    def stated(self, source: str, reveal: Reveal) -> bool:
        """Tell whether a reveal of a source states something that a label is made of."""
        return source == self.rows and not self.places.isdisjoint(reveal.places)

    def of(self, values: Sequence[Any]) -> float:
        """Return the label of a row of the rows' source; NaN where it has none (yet)."""
        label = None if self._label is None else self._label(values)
        if label is None or (self._seen is not None and self._seen(values) is not True):
            return math.nan
        return float(label)


def refuse_unfollowed(plan: DatasetPlan) -> None:
    """Raise where nobody could follow the labels of rows that are asked about one by one.

    Raises:
        DefinitionError: the rows are a grid, which no request names, or have several labels.
    """
    if plan.grid is not None or len(plan.label.names) > 1:
        raise DefinitionError(
            "what a version answers cannot be followed up by its labels",
            where=plan.dataset.location,
            got="rows of a grid" if plan.grid is not None else f"{len(plan.label.names)} labels a row",
            expected="rows of a table, with one label each",
            next_step="headrace run trains and gates it; headrace predict answers for many rows at once",
        )


def maturing(plan: DatasetPlan, tables: Tables, since: int, now: int) -> Iterator[tuple[bytes, float]]:
    """Yield rows and the labels that another table told for them when they matured: after `since`, by `now`.

    Both are microseconds UTC. Labels are those that a training set of `now` would have; a row whose label nobody could see
    is left out. Rows with a label of their own are told when it arrives, so there are none here.
    """
    if not isinstance(plan.label, TableLabel):
        return
    sources = {source.name: source for source in (plan.rows, *plan.label.sources)}
    if any(tables.describe(reveals_table(name)) is None for name in sources):
        return
    reveals = read_reveals(tables, tuple(sources.values()), asked=asked_of(plan))
    start, end = since - plan.mature + 1, now - plan.mature + 1
    reveals[plan.rows.name] = _near(plan, reveals[plan.rows.name], start, end)
    found = matured_labels(plan, reveals, as_of=now, start=start, end=end)
    ids = [found.rows[c.name].to_pylist() for c in plan.rows.id_columns]
    for parts, label in zip(zip(*ids, strict=True), found.label.tolist(), strict=True):
        key = encode_key(list(parts))
        if key is not None and not math.isnan(label):
            yield key, label


def _near(plan: DatasetPlan, reveals: pa.Table, start: int, end: int) -> pa.Table:
    """Return the reveals of the rows whose moment some reveal puts into [start, end)."""
    anchor, offset = plan.at.terms[0]
    if anchor.zone is not None:
        return reveals
    moment = reveals[anchor.name]
    inside = pc.and_(pc.greater_equal(moment, start - offset), pc.less(moment, end - offset))
    return reveals.filter(pc.is_in(reveals[ROW_ID], value_set=reveals[ROW_ID].filter(inside).unique()))
