"""Read the first rows of a source that nobody has declared yet, typed as reading them by a declaration would type them.

Texts (a CSV's cells, what folders name) become numbers, truth values, dates or instants only where every one of them can
be read as such, by the same functions that read them later.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc

from headrace.core.errors import DataError, UsageError
from headrace.core.expressions import Column
from headrace.core.settings import Settings, SourceSettings
from headrace.core.time import DAY
from headrace.sources.casts import NaiveTimestamps, cast_text
from headrace.sources.definition import SourceDefinition
from headrace.sources.infer import plain_table
from headrace.sources.listing import kind_of
from headrace.sources.parts import Part, list_parts, reading_of
from headrace.sources.readers import Raw, RawRows
from headrace.sources.values import typed_value

ROWS = 1_000_000  # of a source that are looked at
BYTES = 2**29
PROBE = 1_000  # texts of a column that tell at once that it is no number
UTC, LOCAL = pa.timestamp("us", "UTC"), pa.timestamp("us")
PADDED = r"^[+-]?0[\dxX]"  # what is written so is a name: 007 is not 7
DATED = re.compile(r"\d{4}-\d\d-\d\d")


@dataclass(frozen=True, eq=False)
class Sample:
    """Hold the first rows of a source; `whole` if those are all.

    Timestamps that carry no zone have none here either. A column of nulls has the null type, one whose values are of
    several types is binary: neither can be declared.
    """

    table: pa.Table
    whole: bool


def sample(definition: SourceDefinition, settings: Settings, folder: Path) -> Sample:
    """Read the first rows of a source, of all its columns, as settings say; relative paths start from `folder`.

    About a million rows are read, or half a gigabyte, whatever the source holds.

    Raises:
        ConfigurationError: settings do not say where the rows lie.
        DataError: there is no row, or what is there cannot be read or brought together.
        UserCodeError: the project's function failed.
    """
    found: list[Raw] = []
    rows, size, whole = 0, 0, True
    with closing(_pieces(list_parts(definition, settings, folder, now=0, seen={}))) as pieces:
        for raw in pieces:
            found.append(raw)
            rows, size = rows + len(raw.rows), size + raw.size
            if rows >= ROWS or size >= BYTES:
                whole = False
                break
    if not rows:
        raise DataError(
            f"{definition.name}: no rows to learn from",
            got="no rows",
            expected="at least one",
            next_step="check what writes the data: it may not have run yet",
        )
    table = _together(definition, found, reading_of(definition, settings).zone)
    return Sample(table.slice(0, ROWS), whole)


def sample_file(path: Path, name: str, *, zone: str | None = None) -> Sample:
    """Read the first rows of a file, of a source that is to be called `name`; `zone` is that of local timestamps.

    Raises:
        UsageError: it is no file of a format that can be read.
        DataError: it cannot be read, or has no row.
    """
    if kind_of(path.name) is None or not path.is_file():
        raise UsageError(
            "not a data file",
            got=str(path),
            expected="a .parquet, .csv or .jsonl file that exists, the last two also compressed",
            next_step="check the path, or rename the file after its format",
        )
    settings = Settings(sources={name: SourceSettings(path=str(path.absolute()), zone=zone)})
    return sample(undeclared(name), settings, path.parent)


def undeclared(name: str) -> SourceDefinition:
    """Return a source of which only the name is known, to be read as it stands."""
    time: Column[Any] = Column(role="event_time", dtype="instant", name="time")
    return SourceDefinition(name, (), (), time, time, None, name)


def _pieces(parts: Sequence[Part]) -> RawRows:
    for part in parts:
        with closing(part.raw()) as pieces:
            yield from pieces


def _together(definition: SourceDefinition, found: Sequence[Raw], zone: str | None) -> pa.Table:
    """Return pieces as one table: texts are judged over all of them, columns that some lack are null there."""
    alike: dict[frozenset[str], list[pa.Table]] = {}
    plain: list[Mapping[str, Any]] = []
    for raw in found:
        if isinstance(raw.rows, pa.Table):
            alike.setdefault(raw.texts, []).append(plain_table(raw.rows))
        else:
            plain += raw.rows
    try:
        tables = [_typed_texts(_joined(tables), texts, zone) for texts, tables in alike.items()]
        return _joined(tables + ([_typed_rows(plain, zone)] if plain else []))
    except pa.ArrowException as error:
        raise DataError(
            f"{definition.name}: its parts have columns of different types",
            got=str(error).splitlines()[0],
            expected="one type for each column",
            next_step="name one of the parts alone, or give the kinds of data a source each",
        ) from error


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    if all(table.schema.equals(tables[0].schema) for table in tables):
        return pa.concat_tables(tables)
    return pa.concat_tables(tables, promote_options="permissive")


def _typed_texts(table: pa.Table, texts: frozenset[str], zone: str | None) -> pa.Table:
    for place, name in enumerate(table.column_names):
        if name in texts:
            table = table.set_column(place, name, _spelled(table.column(place).combine_chunks(), zone))
    return table


def _spelled(texts: pa.Array, zone: str | None) -> pa.Array:
    """Return what all texts of a column spell."""
    there = texts.drop_null()
    if not len(there):
        return pa.nulls(len(texts))
    padded = bool(pc.any(pc.match_substring_regex(there, PADDED)).as_py())
    for dtype in ("int", "float", "bool", "date", "instant"):
        if padded and dtype in ("int", "float"):
            continue
        if _as(there.slice(0, PROBE), dtype, zone) is not None and (found := _as(texts, dtype, zone)) is not None:
            return found
    return texts


def _as(texts: pa.Array, dtype: str, zone: str | None) -> pa.Array | None:
    """Return texts as values of a type, None if some are none."""
    kind = {"date": pa.date32(), "instant": UTC}.get(dtype)
    try:
        cells = cast_text(texts, dtype, zone)
    except NaiveTimestamps:
        cells, kind = cast_text(texts, dtype, "UTC"), LOCAL
    if cells.misread:
        return None
    return cells.values if kind is None else _moments(cells.values, kind)


def _moments(microseconds: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_date(kind):
        return pc.divide(microseconds, DAY).cast(pa.int32()).cast(kind)
    return microseconds.cast(kind)


def _typed_rows(rows: Sequence[Mapping[str, Any]], zone: str | None) -> pa.Table:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: _typed([row.get(name) for row in rows], zone) for name in names})


def _typed(values: Sequence[Any], zone: str | None) -> pa.Array:
    """Return plain values as Arrow values of one type; as bytes where they have none in common."""
    kinds = {type(value) for value in values} - {type(None)}
    zoned = {value.tzinfo is not None for value in values if isinstance(value, datetime)}
    if kinds == {UUID}:
        return pa.array([None if value is None else str(value) for value in values])
    try:
        return _dated(values, zone) if kinds == {str} else pa.array(values, UTC if zoned == {True} else None)
    except (pa.ArrowException, OverflowError, ValueError):  # several kinds, or integers that no column holds
        texts = [None if value is None else str(value).encode("utf-8", "replace") for value in values]
        return pa.array(texts, pa.binary())


def _dated(texts: Sequence[Any], zone: str | None) -> pa.Array:
    """Return texts as dates or instants where all are."""
    distinct = {text for text in texts if text is not None}
    if all(DATED.match(text) for text in distinct):
        for dtype, read_in, kind in (("date", None, pa.date32()), ("instant", zone, UTC), ("instant", "UTC", LOCAL)):
            column: Column[Any] = Column(role="column", dtype=dtype, name=dtype)
            try:
                found = {text: typed_value(column, text, read_in) for text in distinct}
            except ValueError:
                continue
            moments = [None if text is None else found[text] for text in texts]
            return _moments(pa.array(moments, pa.int64()), kind)
    return pa.array(texts, pa.string())
