"""Hold the outside of a replay: what arrives from sources, day by day, and which requests are made, instant by instant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.core.time import DAY
from headrace.features.history import NEVER, History, Ints
from headrace.features.offline import as_words, rows_at
from headrace.features.plan import DatasetPlan
from headrace.sources.record import ARRIVAL, RevealBatch

Request = tuple[int, tuple[Any, ...]]


@dataclass(frozen=True)
class World:
    """Hold every source's reveals ordered by arrival, and the rows for which predictions are asked."""

    plan: DatasetPlan
    batches: Mapping[str, RevealBatch]
    asked: Ints
    rows: pa.Table

    @classmethod
    def build(cls, plan: DatasetPlan, truth: Mapping[str, RevealBatch], arriving: Mapping[str, RevealBatch]) -> World:
        """Let each row of the rows' source be asked about at its moment, with what is then true.

        `truth` are the reveals as they are, `arriving` as they arrive (with faults planted): who asks for a prediction
        knows its own row, whatever goes wrong on the way to us.
        """
        history = History.build(plan.rows, truth[plan.rows.name].table, NEVER)
        anchor, offset = plan.at.terms[0]
        t = as_words(history.cells(anchor))[history.lasts] + offset
        known = rows_at(history, history.version_at(t))
        ids = known[plan.rows.id_columns[0].name].combine_chunks()
        order = np.lexsort((pc.rank(ids, tiebreaker="dense").to_numpy(), t))
        return cls(plan, arriving, t[order], known.take(pa.array(order)))

    def delivery(self, source: str, day: int) -> RevealBatch:
        """Return what arrives from a source on the UTC day that begins at `day`."""
        batch = self.batches[source]
        start, end = np.searchsorted(self._arrivals[source], [day, day + DAY])
        return RevealBatch(batch.source, batch.table.slice(start, end - start))

    def before(self, source: str, day: int) -> RevealBatch:
        """Return what had arrived from a source before `day`."""
        batch = self.batches[source]
        return RevealBatch(batch.source, batch.table.slice(0, int(np.searchsorted(self._arrivals[source], day))))

    def requests(self, day: int) -> Iterator[Request]:
        """Yield the requests of a day as (instant, row), in order; a row holds only what is known by then."""
        start, end = np.searchsorted(self.asked, [day, day + DAY])
        part = self.rows.slice(int(start), int(end - start))
        known = set(self.plan.request)
        columns = [part[c.name].to_pylist() if c in known else [None] * part.num_rows for c in self.plan.rows.columns]
        rows = zip(*columns, strict=True)
        return zip(self.asked[start:end].tolist(), rows, strict=True)

    @cached_property
    def _arrivals(self) -> dict[str, Ints]:
        return {name: batch.table[ARRIVAL].to_numpy() for name, batch in self.batches.items()}
