"""Expand rows into reveals: one for each distinct moment at which some of a row's columns become known.

`expand` does it for a table, `reveal_of` for one event; both give the same reveals, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from headrace.core.errors import DataError
from headrace.core.expressions import Column, Moment, Row
from headrace.core.identity import encode_key
from headrace.sources.content import cell_words, content_column, content_of
from headrace.sources.definition import SourceDefinition
from headrace.sources.record import ARRIVAL, CONTENT, ROW_ID, Reveal, RevealBatch
from headrace.sources.values import arrow_type
from headrace.sources.zones import ends_of_days

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Cells = dict[int, tuple[NDArray[np.uint64], NDArray[np.bool_]]]


@dataclass(frozen=True, eq=False)
class RevealGroup:
    """Hold the columns that become known at one moment; `places` are theirs and the row id's, ascending."""

    moment: Moment
    places: tuple[int, ...]
    own: frozenset[int]


@dataclass(frozen=True, eq=False)
class Statement:
    """Say what rows with certain columns state at one moment, which is None where those columns do not tell it."""

    places: tuple[int, ...]
    moment: Moment | None
    per_row: Callable[[Row], int | None]


class Expansion:
    """Compile a source's moments once, for many tables and events."""

    def __init__(self, definition: SourceDefinition) -> None:
        self.definition = definition
        self.names = tuple(c.name for c in definition.columns)
        self.ids = tuple(definition.index[c] for c in definition.id_columns)
        self.groups = _groups(definition)
        self.statements = lru_cache(maxsize=1024)(self._statements)

    def _statements(self, present: frozenset[str]) -> tuple[Statement, ...]:
        """Return what rows with these columns (and perhaps `_arrival`) state, moment by moment.

        A row id alone states nothing, unless its moment is told: then the row is known to exist.
        """
        index, found = self.definition.index, []
        there = {place for place, name in enumerate(self.names) if name in present}
        ids = frozenset(self.ids)
        for group in self.groups:
            told = all(index[c] in there for c, _ in group.moment.terms)
            own = group.own & there
            if not own or (own <= ids and not told):
                continue
            if not told and ARRIVAL not in present:
                raise _no_moment(self.definition, group)
            places = tuple(p for p in group.places if p in there)
            found.append(Statement(places, group.moment if told else None, group.moment.per_row(index)))
        return tuple(found)

    def reveals(self, event: Mapping[str, Any], lag: int) -> list[Reveal]:
        """Return one event's reveals."""
        row = [event.get(name) for name in self.names]
        row_id = encode_key([row[p] for p in self.ids])
        if row_id is None:
            raise _no_id(self.definition, "the event")
        observed, found = event.get(ARRIVAL), []
        for statement in self.statements(frozenset(event)):
            moment = None
            if statement.moment is not None:
                moment = statement.per_row(row)
                if moment is None:
                    continue
            arrival = observed if observed is not None else cast("int", moment) + lag
            values = tuple([row[p] for p in statement.places])
            content = content_of(statement.places, values)
            found.append(Reveal(arrival, row_id, statement.places, values, content))
        return sorted(found, key=lambda r: (r.arrival, r.row_id, r.content))


@lru_cache(maxsize=256)
def expansion_of(definition: SourceDefinition) -> Expansion:
    """Return a source's compiled expansion."""
    return Expansion(definition)


def reveal_of(definition: SourceDefinition, event: Mapping[str, Any], *, lag: int = 0) -> list[Reveal]:
    """Return the reveals of one event, ordered by (arrival, row id, content); columns that it lacks are not stated.

    `event` holds typed values under the columns' own names (see `sources.values.EventReader`) and, if it was observed, its
    arrival under `_arrival`; else each reveal arrives at its moment plus `lag` microseconds. A column whose moment is
    null is not revealed: its value is not known yet.

    Raises:
        DataError: a part of the row id is null or missing, or a moment lies in a column that the event lacks while
            the event has no arrival.
    """
    return expansion_of(definition).reveals(event, lag)


def expand(definition: SourceDefinition, table: pa.Table, *, lag: int = 0) -> RevealBatch:
    """Return the reveals of a table's rows, as `reveal_of` of each row would give them.

    The table has declared columns under their own names in the declared types (see `sources.readers.conform`); those
    it lacks are not stated. Its `_arrival` (int64), where there is one, is when each row was observed to arrive.

    Raises:
        DataError: as `reveal_of`, or an arrival is null. Rows without an id are found beforehand by
            `sources.run.place`.
    """
    import pyarrow as pa

    from headrace.sources.stated import Stated

    expansion = expansion_of(definition)
    table = table.combine_chunks()
    ids = row_ids(definition, table)
    statements = expansion.statements(frozenset(table.column_names))
    found = [part for part in (_revealed(definition, s, table, lag) for s in statements) if len(part.rows)]
    if not found:
        return RevealBatch(definition, reveal_schema(definition).empty_table())
    order = _ordered(definition, found, table, ids)
    stated = Stated.of_groups([part.statement.places for part in found], order.group, len(definition.columns))
    known = [ids.take(pa.array(order.rows)), pa.array(order.arrival)]
    fixed = [*known, *stated.arrays(), pa.array(order.content)]
    arrays = fixed + _gather(definition, table, [part.statement for part in found], order)
    return RevealBatch(definition, pa.Table.from_arrays(arrays, schema=reveal_schema(definition)))


def row_ids(definition: SourceDefinition, table: pa.Table) -> pa.Array:
    """Return each row's id as bytes.

    Raises:
        DataError: a part of an id is null, or the table lacks its column.
    """
    import pyarrow as pa

    missing = [c.name for c in definition.id_columns if c.name not in table.column_names]
    if missing:
        raise _no_id(definition, f"a table without {', '.join(missing)}")
    parts = [table[c.name].to_pylist() for c in definition.id_columns]
    keys = [encode_key(row) for row in zip(*parts, strict=True)]
    if None in keys:
        raise _no_id(definition, f"row {keys.index(None)} of a table")
    return pa.array(keys, pa.binary())


def reveal_schema(definition: SourceDefinition) -> pa.Schema:
    """Return the Arrow schema of a source's reveals, as `RevealBatch` describes it."""
    import pyarrow as pa

    from headrace.sources.stated import stated_names

    numbers = [ARRIVAL, *stated_names(len(definition.columns)), CONTENT]
    fixed = [(ROW_ID, pa.binary()), *((name, pa.int64()) for name in numbers)]
    return pa.schema([*fixed, *((c.name, arrow_type(c.dtype)) for c in definition.columns)])


@dataclass(frozen=True, eq=False)
class _Revealed:
    """Hold which rows of a table make a statement, and when it arrives."""

    statement: Statement
    rows: Ints
    arrival: Ints


@dataclass(frozen=True, eq=False)
class _Order:
    """Hold, reveal by reveal in their final order: the table's row, the statement, and the fixed columns."""

    rows: Ints
    group: NDArray[np.int16]
    arrival: Ints
    content: Ints


def _groups(definition: SourceDefinition) -> tuple[RevealGroup, ...]:
    index = definition.index
    ids = {index[c] for c in definition.id_columns}
    found: dict[tuple[tuple[int, int], ...], set[int]] = {}
    moments: dict[tuple[tuple[int, int], ...], Moment] = {}
    for place, column in enumerate(definition.columns):
        moment = definition.moments[column]
        terms = tuple((index[c], offset) for c, offset in moment.terms)
        moments[terms] = moment
        found.setdefault(terms, set()).add(place)
    return tuple(
        RevealGroup(moments[terms], tuple(sorted(own.union(ids))), frozenset(own)) for terms, own in found.items()
    )


def _revealed(definition: SourceDefinition, statement: Statement, table: pa.Table, lag: int) -> _Revealed:
    import numpy as np

    observed = _observed(definition, table)
    if statement.moment is None:
        return _Revealed(statement, np.arange(table.num_rows), cast("Ints", observed))
    moment, known = moments_on(statement.moment, table)
    rows = np.flatnonzero(known)
    return _Revealed(statement, rows, moment[rows] + lag if observed is None else observed[rows])


def moments_on(moment: Moment, table: pa.Table) -> tuple[Ints, NDArray[np.bool_]]:
    """Return the instant at which each row's value is known, and whether there is one (else the instant is 0)."""
    import numpy as np
    import pyarrow.compute as pc

    latest: Ints | None = None
    known = np.ones(table.num_rows, bool)
    for column, offset in moment.terms:
        values = table[column.name].combine_chunks()
        if values.null_count:
            known &= values.is_valid().to_numpy(zero_copy_only=False)
            values = pc.fill_null(values, 0)
        instants = values.to_numpy(zero_copy_only=False)
        found: Ints = ends_of_days(instants, column.zone) if column.zone else instants
        found = found + offset if offset else found
        latest = found if latest is None else np.maximum(latest, found)
    assert latest is not None
    return latest if known.all() else np.where(known, latest, 0), known


def _observed(definition: SourceDefinition, table: pa.Table) -> Ints | None:
    if ARRIVAL not in table.column_names:
        return None
    arrivals = table[ARRIVAL].combine_chunks()
    if arrivals.null_count:
        raise DataError(
            f"{definition.name}: rows without an arrival",
            where=f"column {ARRIVAL}",
            got=f"{arrivals.null_count} nulls",
            expected="every row's arrival, or no such column",
            next_step="drop the column and declare a lag: [sources." + definition.name + '] lag = "1h"',
        )
    values: Ints = arrivals.to_numpy(zero_copy_only=False)
    return values


def _ordered(definition: SourceDefinition, found: Sequence[_Revealed], table: pa.Table, ids: pa.Array) -> _Order:
    """Put the reveals of all statements in the order (arrival, row id, content)."""
    import numpy as np

    cells: Cells = {}
    content = np.concatenate([_contents(definition, part, table, cells) for part in found])
    cells.clear()
    rows = np.concatenate([part.rows for part in found])
    arrival = np.concatenate([part.arrival for part in found])
    group = np.repeat(np.arange(len(found), dtype=np.int16), [len(part.rows) for part in found])
    order = np.lexsort((content, _rank(ids)[rows], arrival))
    return _Order(rows[order], group[order], arrival[order], content[order])


def _contents(definition: SourceDefinition, part: _Revealed, table: pa.Table, cells: Cells) -> Ints:
    for place in part.statement.places:
        if place not in cells:
            column = definition.columns[place]
            cells[place] = cell_words(table[column.name].combine_chunks(), column.dtype)
    words = [(cells[p][0][part.rows], cells[p][1][part.rows]) for p in part.statement.places]
    return content_column(part.statement.places, words)


def _rank(ids: pa.Array) -> Ints:
    import pyarrow.compute as pc

    ranks: Ints = pc.rank(ids, tiebreaker="dense").to_numpy().astype("int64")
    return ranks


def _gather(
    definition: SourceDefinition, table: pa.Table, statements: Sequence[Statement], order: _Order
) -> list[pa.Array]:
    """Return each column's values for the ordered reveals, null where the reveal's statement lacks the column."""
    import numpy as np
    import pyarrow as pa

    arrays = []
    for place, column in enumerate(definition.columns):
        states = np.array([place in statement.places for statement in statements])
        if not states.any():
            arrays.append(pa.nulls(len(order.rows), arrow_type(column.dtype)))
            continue
        # One gather for each column, straight to its place: no second copy of the table is ever held.
        chosen = pa.array(order.rows, mask=None if states.all() else ~states[order.group])
        arrays.append(table[column.name].combine_chunks().take(chosen))
    return arrays


def _no_id(definition: SourceDefinition, what: str) -> DataError:
    return DataError(
        f"{definition.name}: {what} has no row id",
        where=definition.location,
        got=f"null or nothing in {', '.join(c.name for c in definition.id_columns)}",
        expected="a value in every part of the row id",
        next_step="quarantine such rows first; if the column may be null, choose another row id",
    )


def _no_moment(definition: SourceDefinition, group: RevealGroup) -> DataError:
    stated: list[Column[Any]] = [definition.columns[p] for p in group.places]
    return DataError(
        f"{definition.name}: nothing says when {', '.join(c.name for c in stated)} became known",
        where=definition.location,
        got=f"neither {group.moment} nor an arrival",
        expected="the columns that the moment is made of, or an arrival",
        next_step="deliver those columns too, or send the rows through a stream, which stamps their arrival",
    )
