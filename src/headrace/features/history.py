"""Unfold a source's stored reveals into versions of its rows: what held from when until when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.core.expressions import Column
from headrace.core.threads import usable_cores
from headrace.features.equal import certainly_distinct, hashed_ids
from headrace.features.keys import ascending
from headrace.features.rows import ABSENT
from headrace.features.snapshots import Copies
from headrace.sources.definition import SourceDefinition
from headrace.sources.record import ARRIVAL, CONTENT, ROW_ID
from headrace.sources.stated import Stated

NEVER = np.iinfo(np.int64).max
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class History:
    """Hold reveals ordered by (row, arrival, content); version i is the row as it was after reveal i.

    `row` is a dense row number, `arrival` microseconds UTC. `cells(column)` carries each column's newest stated value
    forward within its row. In a `single` history every row has one reveal; versions then stand as the reveals do.
    """

    source: SourceDefinition
    table: pa.Table
    order: Ints
    row: Ints
    arrival: Ints
    single: bool = False

    @classmethod
    def build(cls, source: SourceDefinition, reveals: pa.Table, as_of: int, *, threads: int = 0) -> History:
        """Order the reveals that had arrived by `as_of` (microseconds UTC), with `threads` or one on each core."""
        newest = pc.max(reveals[ARRIVAL]).as_py()
        late = newest is not None and newest > as_of
        table = reveals.filter(pc.less_equal(reveals[ARRIVAL], as_of)) if late else reveals
        arrivals = table[ARRIVAL].combine_chunks()
        table = table.set_column(table.column_names.index(ARRIVAL), ARRIVAL, arrivals)
        arrival: Ints = arrivals.to_numpy().astype(np.int64, copy=False)
        if certainly_distinct(table[ROW_ID], threads or usable_cores()):
            places = np.arange(table.num_rows)
            return cls(source, table, places, places, arrival, single=True)
        ids = table[ROW_ID].combine_chunks()
        row = ids.dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)
        order = np.lexsort((_integers(table, CONTENT), arrival, row))
        return cls(source, table, order, row[order], arrival[order])

    def __len__(self) -> int:
        return len(self.row)

    @cached_property
    def starts(self) -> Ints:
        """Return the place of each row's first version."""
        if self.single or not len(self):
            return self.row
        return np.flatnonzero(np.concatenate([[True], self.row[1:] != self.row[:-1]]))

    @cached_property
    def lasts(self) -> Ints:
        """Return the place of each row's newest version."""
        return np.append(self.starts, len(self))[1:] - 1

    @cached_property
    def first(self) -> Ints:
        """Return, for each version, the place of its row's first version."""
        return self.row if self.single else np.repeat(self.starts, np.diff(np.append(self.starts, len(self))))

    @cached_property
    def stated(self) -> Stated:
        """Return which columns each reveal states."""
        found = Stated.of(self.table)
        return found if self.single else found.take(self.order)

    @cached_property
    def copies(self) -> Copies:
        """Return the whole copies of the table that the reveals make up."""
        return Copies.of(self.source, self.table)

    def row_hashes(self, versions: Ints) -> Ints:
        """Return the tie-breaking hash of the row of each of some versions, the same as the stream's."""
        return hashed_ids(row_prefix(self.source.name), self.row_ids(versions))

    def row_ids(self, versions: Ints) -> pa.ChunkedArray:
        """Return the ids of the rows that some versions are of."""
        return self.table[ROW_ID].take(pa.array(self.order[versions]))

    def origin(self, column: Column[Any]) -> Ints:
        """Return, for each version, the place of the reveal that states the column's value; -1 if none has."""
        place = self.source.index[column]
        if self.single and self.stated.always(place):
            return self.row
        said = np.where(self.stated.says(place), np.arange(len(self)), -1)
        newest = np.maximum.accumulate(said) if len(self) else said
        return np.where(newest >= self.first, newest, -1)

    def complete(self, column: Column[Any]) -> bool:
        """Return whether every reveal states the column, and none as null."""
        return self.stated.always(self.source.index[column]) and self.table[column.name].null_count == 0

    def rows(self, columns: Sequence[Column[Any]], versions: Ints) -> pa.Table:
        """Return some columns at given versions of a single history."""
        places, found = pa.array(versions), {}
        for column in columns:
            values = self.table[column.name].take(places)
            place = self.source.index[column]
            if not self.stated.always(place):
                values = pc.if_else(pa.array(self.stated.says(place)[versions]), values, None)
            found[column.name] = values
        return pa.table(found)

    def cells(self, column: Column[Any]) -> pa.Array:
        """Return the column's value in each version, null where it is null or was not stated yet."""
        return self._cells(column, self.origin(column))

    def _cells(self, column: Column[Any], origin: Ints) -> pa.Array:
        values = self.table[column.name].combine_chunks()
        if self.single and origin is self.row:
            return values
        place = self.order[np.maximum(origin, 0)] if len(self) else origin
        return values.take(pa.array(place, pa.int64(), mask=origin < 0))

    def newest_rows(self) -> pa.Table:
        """Return every row as it holds last, in the order of row ids: whatever order the rows were taken in."""
        ids = self.table[ROW_ID].combine_chunks().take(pa.array(self.order[self.starts]))
        place = pa.array(self.lasts[ascending(ids)])
        return pa.table({c.name: self.cells(c).take(place) for c in self.source.columns})

    def read(self, columns: Sequence[Column[Any]]) -> tuple[pa.Table, Ints]:
        """Return some columns of every version, and their newest arrival (ABSENT where none was stated)."""
        whole = {c: self.single and self.stated.always(self.source.index[c]) for c in columns}
        cells, newest = {}, self.arrival if any(whole.values()) else np.full(len(self), ABSENT)
        for column in columns:
            if whole[column]:
                cells[column.name] = self.table[column.name]
                continue
            origin = self.origin(column)
            cells[column.name] = self._cells(column, origin)
            if len(self):
                newest = np.maximum(newest, np.where(origin >= 0, self.arrival[np.maximum(origin, 0)], ABSENT))
        return pa.table(cells), newest

    def version_at(self, t: Ints) -> Ints:
        """Return, for each row, the place of its version at an instant of its own; -1 if nothing had arrived."""
        if self.single or not len(self):
            return np.where(self.arrival <= t, self.row, -1)
        asked = np.repeat(t, np.diff(np.append(self.starts, len(self))))
        return np.maximum.reduceat(np.where(self.arrival <= asked, np.arange(len(self)), -1), self.starts)


def row_prefix(source: str) -> bytes:
    """Return what stands before a row's id where rows of several sources are told apart."""
    return b"R" + source.encode() + b"\0"


def _integers(table: pa.Table, name: str) -> Ints:
    """Return a column without nulls."""
    values: Ints = table[name].combine_chunks().to_numpy().astype(np.int64, copy=False)
    return values
