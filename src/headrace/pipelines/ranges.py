"""Materialize a span's rows with their features as a table of their own, day by day, for whoever reads tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.core.errors import UsageError
from headrace.core.failpoints import reach
from headrace.core.time import DAY, Clock, Instant, SystemClock
from headrace.features.asked import asked_of
from headrace.features.offline import histories_of
from headrace.features.record import label_columns
from headrace.features.training_set import MaturedRows, matured_rows
from headrace.pipelines.given import given
from headrace.pipelines.project import Project
from headrace.pipelines.reveals import read_reveals, reveals_table
from headrace.pipelines.stores import Stores, open_stores
from headrace.pipelines.view import Progress, Table, View
from headrace.sources.record import ARRIVAL
from headrace.storage.tables.protocol import Position

PREFIX = "features_"
AT_ONCE = 31  # days that are computed together; each is its own commit
DAY_COLUMN, AT_COLUMN, WEIGHT_COLUMN = "_day", "_at", "_weight"


def materialize_range(
    project: Project, start: str, end: str, *, state: str | None, progress: Progress, clock: Clock | None = None
) -> View:
    """Write the dataset's rows of some UTC days with their features into a table that is named by the definition.

    A day that was written from the same data is left as it is, so a killed backfill goes on, and the next one does what is
    new. Rows whose label is not known yet have none.

    Raises:
        UsageError: not whole days, or none.
        DataError: nothing was ingested yet.
    """
    first, last = given("--from", start, Instant.parse), given("--to", end, Instant.parse)
    if last <= first or first % DAY or last % DAY:
        raise UsageError(
            "not a span of whole days",
            got=f"--from {start} --to {end}",
            expected="--from before --to",
            next_step="name days, as --from 2024-01-01 --to 2024-02-01",
        )
    with open_stores(project, state, clock=clock or SystemClock(), write=True, create=False) as stores:
        work = _Ranges(project, stores)
        days = list(range(first, last, DAY))
        due, rows = work.due(days), 0
        for place in range(0, len(due), AT_ONCE):
            for day, table in work.compute(due[place : place + AT_ONCE]):
                work.write(day, table)
                rows += table.num_rows
                progress.step("days", due.index(day) + 1, len(due), Instant(day).day())
    data = {"table": work.table, "days": len(due), "unchanged": len(days) - len(due), "rows": rows}
    shown = Table("What was done", ["", ""], [[name, f"{value}"] for name, value in data.items()])
    return View(f"{rows:,} rows with features in {work.table}", data, [shown])


class _Ranges:
    def __init__(self, project: Project, stores: Stores) -> None:
        self.project, self.stores, self.plan = project, stores, project.plan
        self.table = f"{PREFIX}{project.name.replace('.', '_')}_{self.plan.hash[:8]}"
        self.reveals = read_reveals(stores.tables, self.plan.sources, asked=asked_of(self.plan))
        described = [stores.tables.describe(reveals_table(source.name)) for source in self.plan.sources]
        versions = sum(table.version for table in described if table is not None)
        self.position = versions + 1  # every change of a source's table raises it
        self.newest = max(pc.max(table[ARRIVAL]).as_py() or 0 for table in self.reveals.values())

    def due(self, days: Sequence[int]) -> list[int]:
        """Return the days that were not written from the present data yet."""
        names = {day: Instant(day).day() for day in days}
        described = self.stores.tables.describe(self.table, applications=list(names.values()))
        done = {} if described is None else described.positions
        return [day for day, name in names.items() if (done.get(name) or 0) < self.position]

    def compute(self, days: Sequence[int]) -> Iterator[tuple[int, pa.Table]]:
        """Yield each day's rows with their features and, where they are known, labels."""
        as_of = self.newest + self.plan.mature
        histories = histories_of(self.plan, self.reveals, as_of)
        found = matured_rows(self.plan, histories, as_of=as_of, start=days[0], end=days[-1] + DAY)
        table = self._table(found)
        for day in days:
            begin, end = np.searchsorted(found.t, [day, day + DAY])
            yield day, table.slice(int(begin), int(end - begin))

    def _table(self, found: MaturedRows) -> pa.Table:
        columns = {DAY_COLUMN: pa.array(found.t // DAY, pa.int32()).cast(pa.date32())}
        columns[AT_COLUMN] = pa.array(found.t, pa.timestamp("us", "UTC"))
        for column in self.plan.rows.id_columns:
            if column.name in found.rows.column_names:
                columns[column.name] = found.rows[column.name]
        features = found.values.table(self.plan)
        columns |= {name: features[name] for name in features.column_names}
        if self.plan.sample is not None:
            columns[WEIGHT_COLUMN] = pa.array(found.weight)
        labels = label_columns(self.plan.label.names, found.label)
        return pa.table(columns | {f"_{name}": label for name, label in labels.items()})

    def write(self, day: int, table: pa.Table) -> None:
        """Put a day's rows in the place of those that were there, once for each state of the data."""
        wanted: date = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=day)).date()
        position = Position(Instant(day).day(), self.position)
        where = [(DAY_COLUMN, "=", wanted)]
        self.stores.tables.overwrite(self.table, table, where=where, position=position, partition_by=[DAY_COLUMN])
        reach("backfill.after_day")
