"""Load batch sources: everything at once, or what is new since the last time in deliveries of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.core.errors import DataError
from headrace.core.settings import Settings, SourceSettings
from headrace.sources.definition import SourceDefinition
from headrace.sources.parts import Mark, Part, columns_by_part, list_parts, reading_of
from headrace.sources.plan import expand, reveal_schema
from headrace.sources.readers import Extract
from headrace.sources.record import ARRIVAL, CONTENT, ROW_ID, RevealBatch
from headrace.sources.run import Load, place

if TYPE_CHECKING:
    import pyarrow as pa

LONG_AGO = 2**62  # listed then, every file's time stamp is old enough to tell its state


@dataclass(frozen=True, eq=False)
class Loaded:
    """Hold some rows of a source, and how far they reach into its parts: what must be stored together."""

    load: Load
    marks: tuple[Mark, ...]


def load(definition: SourceDefinition, settings: Settings, folder: Path) -> Load:
    """Read all of a source, as settings say; relative paths start from `folder`.

    Raises:
        ConfigurationError: settings do not say where the rows lie.
        SchemaChanged: a declared column is missing, of another type, or there twice.
        DataError: no file, or one that cannot be read.
        UserCodeError: the project's function failed.
    """
    unbounded = settings.model_copy(update={"limits": settings.limits.model_copy(update={"delivery_rows": LONG_AGO})})
    found = list(iter_loads(definition, unbounded, folder, now=LONG_AGO, seen={}))
    return found[0].load


def iter_loads(
    definition: SourceDefinition, settings: Settings, folder: Path, *, now: int, seen: Mapping[str, Mark]
) -> Iterator[Loaded]:
    """Yield what a source has beyond what was `seen`, at most about `[limits] delivery_rows` rows at a time.

    Its parts are those of one listing, made at `now` (microseconds UTC). Columns are compared with their declaration
    before the first row is read.

    Raises:
        ConfigurationError, SchemaChanged, DataError, UserCodeError: as `load`.
    """
    parts = list_parts(definition, settings, folder, now=now, seen=seen)
    columns = columns_by_part(definition, settings, parts, seen)
    where = reading_of(definition, settings)
    gathered = _Gathered(definition, where)
    for part, (may_lack, here) in zip(parts, columns, strict=True):
        before = seen.get(part.name)
        skip = before.rows if before is not None and before.mark == part.mark != "" and not before.whole else 0
        rows, reached = skip, None
        for extract in part.extracts(may_lack):
            rows, reached = max(rows, extract.last), extract.reached
            gathered.add(extract.after(skip), part)
            if gathered.rows >= settings.limits.delivery_rows:
                gathered.mark(Mark(part.name, reached or part.mark, rows, whole=False, columns=here))
                yield gathered.take()
        gathered.mark(Mark(part.name, reached or part.mark, rows, whole=True, columns=here))
    if gathered.marks or not parts:
        yield gathered.take()


@dataclass
class _Gathered:
    """Gather rows until they make a delivery."""

    definition: SourceDefinition
    where: SourceSettings
    tables: list[pa.Table] = field(default_factory=list)
    refused: list[pa.Table] = field(default_factory=list)
    marks: dict[str, Mark] = field(default_factory=dict)
    extra: dict[str, None] = field(default_factory=dict)
    rows: int = 0
    local: tuple[int, int] = (0, 0)
    observed: set[bool] = field(default_factory=set)

    def add(self, extract: Extract, part: Part) -> None:
        """Take in some rows of a part.

        Raises:
            DataError: some parts have arrivals and some have none.
        """
        accepted, refused = place(self.definition, extract, part.where)
        if accepted.num_rows or not self.tables:
            self.tables.append(accepted)
        self.refused.append(refused)
        self.extra.update(dict.fromkeys(extract.extra))
        self.observed.add(ARRIVAL in extract.table.column_names)
        if len(self.observed) > 1:
            raise self._mixed_arrivals(part)
        self.rows += extract.table.num_rows + len(extract.broken)
        self.local = (self.local[0] + extract.ambiguous, self.local[1] + extract.nonexistent)

    def mark(self, mark: Mark) -> None:
        """Note how far a part was read."""
        self.marks[mark.part] = mark

    def take(self) -> Loaded:
        """Return what was gathered, and begin anew."""
        import pyarrow as pa

        from headrace.sources.values import refusal_schema

        alike: dict[tuple[str, ...], list[pa.Table]] = {}
        for table in self.tables:
            alike.setdefault(tuple(table.column_names), []).append(table)
        batches = [expand(self.definition, pa.concat_tables(tables), lag=self.where.lag) for tables in alike.values()]
        refused = pa.concat_tables([refusal_schema().empty_table(), *self.refused])
        found = Load(
            _merged(self.definition, batches), refused, self.rows, True in self.observed, tuple(self.extra), *self.local
        )
        loaded = Loaded(found, tuple(self.marks.values()))
        self.tables, self.refused, self.marks, self.extra, self.rows, self.local = [], [], {}, {}, 0, (0, 0)
        return loaded

    def _mixed_arrivals(self, part: Part) -> DataError:
        return DataError(
            f"{self.definition.name}: some files have arrivals and some have none",
            where=f"[sources.{self.definition.name}] path",
            got=f"{part.where} is unlike those before it",
            expected=f"the column {self.where.arrival or ARRIVAL} in every file, or in none",
            next_step="give the two kinds of files a source each, or write the column everywhere",
        )


def _merged(definition: SourceDefinition, batches: Sequence[RevealBatch]) -> RevealBatch:
    """Return batches as one in the order of reveals, each reveal once."""
    import pyarrow as pa

    if not batches:
        return RevealBatch(definition, reveal_schema(definition).empty_table())
    table = batches[0].table
    if len(batches) > 1:
        order = [(name, "ascending") for name in (ARRIVAL, ROW_ID, CONTENT)]
        table = pa.concat_tables([batch.table for batch in batches]).sort_by(order)
    return RevealBatch(definition, _without_copies(table))


def _without_copies(table: pa.Table) -> pa.Table:
    """Return ordered reveals without those that say what the one before says."""
    import numpy as np
    import pyarrow as pa

    arrivals, contents = table[ARRIVAL].to_numpy(), table[CONTENT].to_numpy()
    alike = np.flatnonzero((arrivals[1:] == arrivals[:-1]) & (contents[1:] == contents[:-1]))
    ids = table[ROW_ID].combine_chunks()
    copies = [place for place in alike.tolist() if ids[place] == ids[place + 1]]
    if not copies:
        return table
    keep = np.ones(table.num_rows, bool)
    keep[np.array(copies) + 1] = False
    return table.filter(pa.array(keep))
