"""Unfold a source's stored reveals into versions of its rows: what held from when until when."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
from headrace.sources.stated import Stated, stated_names

NEVER = np.iinfo(np.int64).max
AT_ONCE = 2_000_000  # cells of columns that are read when they are asked for
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Late:
    """Hold reveals whose columns are read when they are asked for: every time the same rows in the same order.

    Attributes:
        first: returns row ids, arrivals and what the reveals state.
        names: all columns but arrivals.
        read: returns some of these.
        nulls: of columns of which that is known without reading them, how many nulls they hold at most.
    """

    first: Callable[[], pa.Table]
    names: tuple[str, ...]
    read: Callable[[Sequence[str]], pa.Table]
    nulls: Mapping[str, int]

    def among(self, chosen: pa.ChunkedArray) -> Late:
        """Return it with some of the rows alone."""
        return replace(self, read=lambda names: self.read(names).filter(chosen))


@dataclass(frozen=True)
class History:
    """Hold reveals ordered by (row, arrival, content); version i is the row as it was after reveal i.

    `row` is a dense row number, `arrival` microseconds UTC. `cells(column)` carries each column's newest stated value
    forward within its row. In a `single` history every row has one reveal; versions then stand as the reveals do, and
    columns that `table` lacks may be `late` ones.
    """

    source: SourceDefinition
    table: pa.Table
    order: Ints
    row: Ints
    arrival: Ints
    single: bool = False
    late: Late | None = None
    bits: Stated | None = None  # of reveals whose table lacks them

    @classmethod
    def build(cls, source: SourceDefinition, reveals: pa.Table | Late, as_of: int, *, threads: int = 0) -> History:
        """Order the reveals that had arrived by `as_of` (microseconds UTC), with `threads` or one on each core."""
        table, late = (reveals.first(), reveals) if isinstance(reveals, Late) else (reveals, None)
        newest = pc.max(table[ARRIVAL]).as_py()
        if newest is not None and newest > as_of:
            known = pc.less_equal(table[ARRIVAL], as_of)
            table, late = table.filter(known), late and late.among(known)
        arrivals = table[ARRIVAL].combine_chunks()
        table = table.set_column(table.column_names.index(ARRIVAL), ARRIVAL, arrivals)
        arrival: Ints = arrivals.to_numpy().astype(np.int64, copy=False)
        if certainly_distinct(table[ROW_ID], threads or usable_cores()):
            places = np.arange(table.num_rows)
            if late is None:
                return cls(source, table, places, places, arrival, single=True)
            bits, kept = Stated.of(table), table.select([ARRIVAL])
            return cls(source, kept, places, places, arrival, single=True, late=late, bits=bits)
        table = table if late is None else _joined(table, late.read(late.names))
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
        found = Stated.of(self.table) if self.bits is None else self.bits
        return found if self.single else found.take(self.order)

    @cached_property
    def copies(self) -> Copies:
        """Return the whole copies of the table that the reveals make up."""
        terms = self.source.moments[self.source.time].terms
        names = [*stated_names(len(self.source.columns)), *(column.name for column, _ in terms)]
        return Copies.of(self.source, self.holding(names).table)

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Return columns of the reveals; those that are not in hand are read."""
        if self.late is None:
            return self.table.select(names)
        here = {*self.table.column_names}
        missing = [name for name in dict.fromkeys(names) if name not in here]
        return (_joined(self.table, self.late.read(missing)) if missing else self.table).select(names)

    def holding(self, names: Sequence[str]) -> History:
        """Return it with some columns in hand, which will be asked for more than once."""
        if self.late is None:
            return self
        return replace(self, table=self.columns(list(dict.fromkeys([*self.table.column_names, *names]))))

    def whole(self) -> History:
        """Return it with all columns in hand."""
        return self if self.late is None else self.holding(self.late.names)

    def each(self, columns: Sequence[Column[Any]]) -> Iterator[tuple[Column[Any], pa.ChunkedArray]]:
        """Yield the reveals' values of some columns, one after the other; of those that are not in hand a few are read at once."""
        width = max(AT_ONCE // max(len(self), 1), 1)
        for at in range(0, len(columns), width):
            part = columns[at : at + width]
            found = self.columns([column.name for column in part]).columns
            yield from zip(part, found, strict=True)
            del found  # before the next ones are read

    def row_hashes(self, versions: Ints) -> Ints:
        """Return the tie-breaking hash of the row of each of some versions, the same as the stream's."""
        return hashed_ids(row_prefix(self.source.name), self.row_ids(versions))

    def row_ids(self, versions: Ints) -> pa.ChunkedArray:
        """Return the ids of the rows that some versions are of."""
        return self.columns([ROW_ID])[ROW_ID].take(pa.array(self.order[versions]))

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
        if not self.stated.always(self.source.index[column]):
            return False
        told = None if self.late is None else self.late.nulls.get(column.name)
        return (self.columns([column.name])[column.name].null_count if told is None else told) == 0

    def rows(self, columns: Sequence[Column[Any]], versions: Ints) -> pa.Table:
        """Return some columns at given versions of a single history."""
        places, found = pa.array(versions), {}
        for column, values in self.each(columns):
            place = self.source.index[column]
            found[column.name] = values.take(places)
            if not self.stated.always(place):
                stated = pa.array(self.stated.says(place)[versions])
                found[column.name] = pc.if_else(stated, found[column.name], None)
        return pa.table(found)

    def cells(self, column: Column[Any]) -> pa.Array:
        """Return the column's value in each version, null where it is null or was not stated yet."""
        return self._cells(self.columns([column.name])[column.name], self.origin(column))

    def cells_at(self, columns: Sequence[Column[Any]], versions: pa.Array) -> pa.Table:
        """Return some columns at given versions, null where the version is."""
        found = {c.name: self._cells(values, self.origin(c)).take(versions) for c, values in self.each(columns)}
        return pa.table(found)

    def _cells(self, values: pa.ChunkedArray, origin: Ints) -> pa.Array:
        if self.single and origin is self.row:
            return values.combine_chunks()
        place = self.order[np.maximum(origin, 0)] if len(self) else origin
        return values.combine_chunks().take(pa.array(place, pa.int64(), mask=origin < 0))

    def newest_rows(self) -> pa.Table:
        """Return every row as it holds last, in the order of row ids: whatever order the rows were taken in."""
        ids = self.columns([ROW_ID])[ROW_ID].combine_chunks().take(pa.array(self.order[self.starts]))
        return self.cells_at(self.source.columns, pa.array(self.lasts[ascending(ids)]))

    def read(self, columns: Sequence[Column[Any]]) -> tuple[pa.Table, Ints]:
        """Return some columns of every version, and their newest arrival (ABSENT where none was stated)."""
        whole = {c: self.single and self.stated.always(self.source.index[c]) for c in columns}
        cells, newest = {}, self.arrival if any(whole.values()) else np.full(len(self), ABSENT)
        table = self.columns([column.name for column in columns])
        for column in columns:
            if whole[column]:
                cells[column.name] = table[column.name]
                continue
            origin = self.origin(column)
            cells[column.name] = self._cells(table[column.name], origin)
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


def _joined(table: pa.Table, more: pa.Table) -> pa.Table:
    """Return the columns of two tables, of one that is in both the second's."""
    return pa.table({name: part[name] for part in (table, more) for name in part.column_names})


def _integers(table: pa.Table, name: str) -> Ints:
    """Return a column without nulls."""
    values: Ints = table[name].combine_chunks().to_numpy().astype(np.int64, copy=False)
    return values
