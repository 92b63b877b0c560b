"""Store a source's reveals in its table, and read them back, also after its class gained a column.

A reveal says by bits which columns it states. In the class a bit counts columns as they are written there; in the table
as they came into it, so that those of old reveals keep their meaning wherever a new column is put in the class.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.core.errors import DataError, SchemaConflict, UnknownColumn
from headrace.core.expressions import Column
from headrace.features.asked import Asked, asked_by
from headrace.features.buckets import Streamed
from headrace.features.history import Late
from headrace.features.keys import Keys
from headrace.features.lane_plan import LanePlan
from headrace.sources.definition import SourceDefinition
from headrace.sources.plan import reveal_schema
from headrace.sources.record import ARRIVAL, CONTENT, ROW_ID
from headrace.sources.stated import Stated, is_stated_name, stated_names
from headrace.sources.values import arrow_type
from headrace.storage.tables import Tables
from headrace.storage.tables.protocol import Commit, Filter, Position

FIXED = (ROW_ID, ARRIVAL, CONTENT)

LOOKED_AT_ONCE = 2_000_000  # rows among which others are looked for
APART = 100_000  # rows of a file from which on its columns are worth reading one by one


def reveals_table(source: str) -> str:
    """Return the name of the table that holds a source's accepted reveals."""
    return f"reveals_{source.lower()}"


def append_reveals(
    tables: Tables, source: SourceDefinition, reveals: pa.Table, position: Position | None = None
) -> Commit:
    """Append reveals, with the position that they reach if there is one; columns that the class gained are added to the table.

    Raises:
        SchemaConflict: the class changed otherwise than by a new nullable column.
    """
    name = reveals_table(source.name)
    known = ensure_grown(tables, source)
    gained = [c.name for c in source.columns if c.name not in known]
    order = [*known, *gained]
    places = [(place, order.index(c.name)) for place, c in enumerate(source.columns)]
    stored = _with_bits(reveals, places, len(order))
    return tables.append(name, stored.select([*FIXED, *stated_names(len(order)), *order]), position=position)


def read_source(
    tables: Tables,
    source: SourceDefinition,
    where: Sequence[Filter] = (),
    *,
    version: int | None = None,
    columns: Collection[str] | None = None,
) -> pa.Table:
    """Return a source's accepted reveals, or those that meet all of `where`, in the columns of its class or some of them.

    None states a column that came later. All reveals are there, and what they state, whichever columns are read.

    `version` is the table's, the newest by default.

    Raises:
        DataError: it has none yet, or not that version any more.
        SchemaConflict: the class changed otherwise than by a new nullable column.
    """
    known, name = ensure_there(tables, source), reveals_table(source.name)
    try:
        part = tables.read(name, columns=_stored_names(known, columns), where=where, version=version)
        return _as_declared(source, part, columns, known)
    except UnknownColumn:  # it came after that version
        return _as_declared(source, tables.read(name, where=where, version=version), columns)


def late_source(
    tables: Tables,
    source: SourceDefinition,
    *,
    version: int | None = None,
    columns: Collection[str] | None = None,
) -> pa.Table | Late:
    """Return what `read_source` returns, in columns that are read when they are asked for if the table's files are large.

    Raises:
        DataError, SchemaConflict: as `read_source`.
    """
    ensure_there(tables, source)
    pinned = tables.pin(reveals_table(source.name), version=version)
    if pinned.rows < APART * pinned.files:
        return read_source(tables, source, version=version, columns=columns)
    known = [name for name in pinned.names if name not in FIXED and not is_stated_name(name)]
    places = [(known.index(c.name), place) for place, c in enumerate(source.columns) if c.name in known]
    stored, declared = stated_names(len(known)), stated_names(len(source.columns))

    def read(names: Sequence[str]) -> pa.Table:
        bits = stored if any(is_stated_name(name) for name in names) else []
        found = pinned.read([*bits, *(name for name in names if name in pinned.names and not is_stated_name(name))])
        found = _with_bits(found, places, len(source.columns)) if bits else found
        return _with_nulls(source, found, names).select(names)

    names = [*declared, ROW_ID, CONTENT, *(c.name for c in source.columns if columns is None or c.name in columns)]
    return Late(partial(read, [ROW_ID, ARRIVAL, *declared]), tuple(names), read, pinned.nulls)


def _with_nulls(source: SourceDefinition, table: pa.Table, names: Collection[str]) -> pa.Table:
    """Return reveals with those of some columns that they do not have: no row has a value there."""
    wanted = {*names}.difference(table.column_names)
    for c in source.columns:
        if c.name in wanted:
            table = table.append_column(c.name, pa.nulls(table.num_rows, arrow_type(c.dtype)))
    return table


def ensure_there(tables: Tables, source: SourceDefinition) -> list[str]:
    """Make sure that a source has reveals that can be read; return the columns of its table.

    Raises:
        DataError, SchemaConflict: as `read_source`.
    """
    known = ensure_grown(tables, source)
    if not known:
        raise DataError(
            f"{source.name} has no rows yet",
            where=source.location,
            next_step="headrace run takes them in, once its files or its stream hold some",
        )
    return known


def _stored_names(known: Sequence[str], columns: Collection[str] | None) -> list[str] | None:
    """Return which columns to read of a source's table, which has `known` ones; None for all."""
    if columns is None:
        return None
    return [*FIXED, *stated_names(len(known)), *(name for name in known if name in columns)]


def _as_declared(
    source: SourceDefinition,
    table: pa.Table,
    columns: Collection[str] | None = None,
    known: Sequence[str] | None = None,
) -> pa.Table:
    """Return stored reveals in `columns` of their class; `known` are those of their table, if not all of them were read."""
    if columns is None or known is None:
        known = [name for name in table.column_names if name not in FIXED and not is_stated_name(name)]
    schema = _schema(source, columns)
    places = [(known.index(c.name), place) for place, c in enumerate(source.columns) if c.name in known]
    return _with_bits(_with_nulls(source, table, schema.names), places, len(source.columns)).select(schema.names)


def _schema(source: SourceDefinition, columns: Collection[str] | None) -> pa.Schema:
    """Return the schema of a source's reveals, without the columns that are not asked for."""
    whole = reveal_schema(source)
    if columns is None:
        return whole
    return pa.schema([field for field in whole if field.name not in source.by_name or field.name in columns])


def read_reveals(
    tables: Tables,
    sources: Sequence[SourceDefinition],
    versions: Mapping[str, int] | None = None,
    asked: Asked | None = None,
) -> dict[str, pa.Table]:
    """Return every source's accepted reveals, of those in `versions` as they were then, of those in `asked` these columns.

    Raises:
        DataError, SchemaConflict: as `read_source`.
    """
    wanted, columns = versions or {}, asked or {}
    return {s.name: read_source(tables, s, version=wanted.get(s.name), columns=columns.get(s.name)) for s in sources}


def stream_reveals(
    tables: Tables,
    sources: Sequence[SourceDefinition],
    versions: Mapping[str, int] | None = None,
    asked: Asked | None = None,
) -> dict[str, Streamed]:
    """Return what `read_reveals` returns, to be read piece by piece when it is needed.

    Raises:
        DataError, SchemaConflict: as `read_source`.
    """
    found, wanted, columns = {}, versions or {}, asked or {}
    for source in sources:
        ensure_there(tables, source)
        described = tables.describe(reveals_table(source.name))
        rows = 0 if described is None else described.rows
        version, names = wanted.get(source.name), columns.get(source.name)
        whole = partial(late_source, tables, source, version=version, columns=names)
        found[source.name] = Streamed(rows, partial(_pieces, tables, source, version, names), whole)
    return found


def _pieces(
    tables: Tables, source: SourceDefinition, version: int | None, columns: Collection[str] | None
) -> Iterator[pa.Table]:
    yield _schema(source, columns).empty_table()
    known, name = ensure_there(tables, source), reveals_table(source.name)
    try:
        pieces = tables.scan(name, columns=_stored_names(known, columns), version=version)
    except UnknownColumn:  # it came after that version
        known, pieces = [], tables.scan(name, version=version)
    for piece in pieces:
        yield _as_declared(source, piece, columns, known or None)


def first_reveals(tables: Tables, source: SourceDefinition, number: int) -> pa.Table:
    """Return some reveals of a source, those that come first in its table.

    Raises:
        DataError, SchemaConflict: as `read_source`.
    """
    ensure_there(tables, source)
    found, rows = [reveal_schema(source).empty_table()], 0
    for piece in tables.scan(reveals_table(source.name)):
        found.append(_as_declared(source, piece).slice(0, number - rows))
        rows += found[-1].num_rows
        if rows >= number:
            break
    return pa.concat_tables(found)


def reveals_since(
    tables: Tables, source: SourceDefinition, version: int, since: int | None, *, at_once: int
) -> Iterator[pa.Table]:
    """Yield the reveals that came to a source's table from one version to another, all where `since` is None.

    Some that were there are among them where the table was written anew since; a table has about `at_once` rows.
    """
    waiting: list[pa.Table] = []
    rows = 0
    for piece in tables.scan(reveals_table(source.name), version=version, since=since):
        waiting.append(_as_declared(source, piece))
        rows += piece.num_rows
        if rows >= at_once:
            yield pa.concat_tables(waiting)
            waiting, rows = [], 0
    if waiting:
        yield pa.concat_tables(waiting)


def reveals_of_keys(tables: Tables, lane: LanePlan, keys: pa.Array) -> pa.Table:
    """Return the reveals of every row that ever had one of some encoded keys of a lane, in the columns that it asks for.

    A large table is not held whole.

    Raises:
        DataError, SchemaConflict: as `read_source`.
    """
    source, names = lane.source, [column.name for column in lane.entity]
    found = [pa.array([], pa.binary())]
    known = set(names) <= {*ensure_grown(tables, source)}
    for piece in tables.scan(reveals_table(source.name), columns=[ROW_ID, *names]) if known else ():
        place = Keys.of([piece[name] for name in names]).among(keys)
        found.append(piece[ROW_ID].filter(pa.array(place >= 0)).combine_chunks())
    return reveals_of_rows(tables, source, pa.concat_arrays(found).unique(), asked_by([lane]).get(source.name))


def reveals_of_rows(
    tables: Tables, source: SourceDefinition, ids: pa.Array, columns: Collection[str] | None = None
) -> pa.Table:
    """Return the stored reveals of some rows, whole or in some columns; a large table is not held whole.

    Raises:
        DataError, SchemaConflict: as `read_source`.
    """
    known = ensure_there(tables, source)
    parts = _among(tables, reveals_table(source.name), ROW_ID, ids, columns=_stored_names(known, columns))
    found = [_as_declared(source, part, columns, known) for part in parts]
    return pa.concat_tables([_schema(source, columns).empty_table(), *found])


def without_known(tables: Tables, table: str, rows: pa.Table, keys: Sequence[str]) -> pa.Table:
    """Return the rows that a table does not have yet, in their order, told by some columns; it is not held whole.

    The first of `keys` and the arrival, if it is one, say which parts of the table are looked at.
    """
    if not rows.num_rows or tables.describe(table) is None:
        return rows
    where: list[Filter] = []
    if ARRIVAL in keys:
        first, last = pc.min_max(rows[ARRIVAL]).as_py().values()
        where = [(ARRIVAL, ">=", first), (ARRIVAL, "<=", last)]
    ids = rows[keys[0]].combine_chunks().unique()
    for known in _among(tables, table, keys[0], ids, columns=keys, where=where):
        rows = without(rows, known, keys)
    return rows


def without(rows: pa.Table, known: pa.Table, keys: Sequence[str]) -> pa.Table:
    """Return the rows that are not among known ones, in their order, told by some columns."""
    if not (rows.num_rows and known.num_rows):
        return rows
    marked = rows.select(keys).append_column("_place", pa.array(np.arange(rows.num_rows)))
    left = marked.join(known.select(keys), keys=list(keys), join_type="left anti")["_place"]
    return rows.take(pa.array(np.sort(left.to_numpy())))


def _among(
    tables: Tables,
    table: str,
    key: str,
    values: pa.Array,
    *,
    columns: Sequence[str] | None = None,
    where: Sequence[Filter] = (),
) -> Iterator[pa.Table]:
    """Yield, in parts, a table's rows whose key is one of some values."""
    if not len(values):
        return
    low, high = pc.min_max(values).as_py().values()
    waiting: list[pa.Table] = []
    pieces = tables.scan(table, columns=columns, where=[*where, (key, ">=", low), (key, "<=", high)])
    for piece in chain(pieces, [None]):
        waiting += [] if piece is None else [piece]
        if waiting and (piece is None or sum(part.num_rows for part in waiting) >= LOOKED_AT_ONCE):
            part = pa.concat_tables(waiting)
            yield part.filter(pc.is_in(part[key], value_set=values))
            waiting = []


def extent_of(tables: Tables, source: SourceDefinition, version: int, *, since: int | None = None) -> tuple[int, int]:
    """Return how many reveals a source's table has at a version, and the newest arrival, 0 if there is none.

    With `since` those that `reveals_since` yields.

    Raises:
        DataError, SchemaConflict: as `read_source`.
    """
    ensure_there(tables, source)
    rows = newest = 0
    for piece in tables.scan(reveals_table(source.name), columns=[ARRIVAL], version=version, since=since):
        rows, newest = rows + piece.num_rows, max(newest, pc.max(piece[ARRIVAL]).as_py() or 0)
    return rows, newest


def sample_ids(tables: Tables, source: str, version: int | None, *, one_of: int) -> list[bytes]:
    """Return one of so many row ids of a source's reveals, as they stand in its table, in the order of the ids."""
    found: list[bytes] = []
    passed = 0
    for piece in tables.scan(reveals_table(source), columns=[ROW_ID], version=version):
        found += piece[ROW_ID].take(pa.array(np.arange(-passed % one_of, piece.num_rows, one_of))).to_pylist()
        passed += piece.num_rows
    return sorted(found)


def count_known(tables: Tables, source: str, as_of: int, *, version: int) -> int:
    """Return how many of a source's reveals had arrived by an instant (microseconds UTC)."""
    known: list[Filter] = [(ARRIVAL, "<=", as_of)]
    pieces = tables.scan(reveals_table(source), columns=[ARRIVAL], where=known, version=version)
    return sum(piece.num_rows for piece in pieces)


def ensure_grown(tables: Tables, source: SourceDefinition) -> list[str]:
    """Return the columns of a source's table in their order there, [] where there is no table yet.

    Raises:
        SchemaConflict: the class lost a column, gives one another type, or gained one that is never null.
    """
    described = tables.describe(reveals_table(source.name))
    if described is None:
        return []
    stored = [field for field in described.columns if field.name not in FIXED and not is_stated_name(field.name)]
    wanted = {field.name: field.type for field in reveal_schema(source)}
    for field in stored:
        if field.name not in wanted:
            raise _changed(source, field.name, f"{field.name}: {field.type}", "no such column")
        if field.type != wanted[field.name]:
            raise _changed(source, field.name, f"{field.name}: {field.type}", f"{field.name}: {wanted[field.name]}")
    known = [field.name for field in stored]
    for c in source.columns:
        if c.name not in known and not c.nullable:
            raise _changed(source, c.name, "rows without it", f"{c.name}: {c.dtype}, never null", _nullable(c))
    return known


def _with_bits(reveals: pa.Table, places: Sequence[tuple[int, int]], columns: int) -> pa.Table:
    """Return reveals whose bits stand in other places: (from, to), of so many columns."""
    names = stated_names(columns)
    if all(old == new for old, new in places) and names[-1] in reveals.column_names:
        return reveals
    moved = Stated.of(reveals).moved(places, columns).arrays()
    kept = reveals.drop_columns([name for name in reveals.column_names if is_stated_name(name)])
    for name, bits in zip(names, moved, strict=True):
        kept = kept.append_column(name, bits)
    return kept


def _nullable(column: Column[object]) -> str:
    return f"declare it as hr.Column[{column.dtype} | None]: the rows of before do not have it"


def _changed(source: SourceDefinition, name: str, old: str, new: str, step: str | None = None) -> SchemaConflict:
    return SchemaConflict(
        f"{source.name}.{name} was stored otherwise than it is declared now",
        where=source.location,
        got=new,
        expected=old,
        next_step=step or "take the change back, or begin a new state folder: headrace run … --state NEW",
    )
