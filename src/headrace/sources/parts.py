"""Find the parts of which a source consists now (files, a query, a function), and what of them was read before."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from headrace.core.errors import ConfigurationError
from headrace.core.settings import LimitSettings, Settings, SourceSettings
from headrace.sources.definition import SourceDefinition
from headrace.sources.deltas import PREFIX, delta_parts, open_delta
from headrace.sources.files import FilePart
from headrace.sources.functions import FunctionPart
from headrace.sources.listing import list_files
from headrace.sources.queries import QueryPart
from headrace.sources.readers import Conformer, Extract, Raw, RawRows, deviations_of, numbered, schema_changed
from headrace.sources.values import data_names

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

    from headrace.sources.connections import Connection


@dataclass(frozen=True)
class Mark:
    """Say how far a part was read: `rows` of the state `mark`, or the cursor's position that is `mark`, or all (`whole`).

    `columns` are the nullable declared columns that the part had.
    """

    part: str
    mark: str
    rows: int
    whole: bool
    columns: tuple[str, ...] = ()


class Part(Protocol):
    """Read a part of a source batch by batch; `mark` tells its state, "" where nothing does."""

    @property
    def name(self) -> str:
        """Return what names the part in the record of what was read."""
        ...

    @property
    def where(self) -> str:
        """Return what names the part in messages."""
        ...

    @property
    def mark(self) -> str:
        """Return what changes when the part does."""
        ...

    @property
    def header(self) -> list[str]:
        """Return the names of the part's columns."""
        ...

    def extracts(self, absent_ok: Collection[str] = ()) -> Iterator[Extract]:
        """Yield the part's rows; nullable columns in `absent_ok` may be missing."""
        ...

    def raw(self) -> RawRows:
        """Yield the part's rows as they stand, for who has no declaration yet."""
        ...


def list_parts(
    definition: SourceDefinition, settings: Settings, folder: Path, *, now: int, seen: Mapping[str, Mark]
) -> Sequence[Part]:
    """Return the parts of a source that were not read whole before, as they are at `now` (microseconds UTC).

    Raises:
        ConfigurationError: settings do not say where the rows lie.
        DataError: there are no such files, or they cannot be read.
    """
    where = reading_of(definition, settings)
    if definition.held is not None:
        return [TablePart(definition, where, settings.limits, definition.held.table)]
    where = where.model_copy(update={"s3": where.s3 or settings.s3})
    limits = settings.limits
    if where.function is not None:
        return [FunctionPart(definition, where, limits, folder, _position(seen, "function"))]
    if where.sql is not None or where.database is not None:
        connect = _Connector(definition, where, settings, folder)
        return [QueryPart(definition, where, limits, connect, _position(seen, "query"))]
    if where.format == "delta" or (where.path or "").startswith(PREFIX):
        found: Sequence[Part] = delta_parts(definition, where, limits, folder)
    else:
        found = [FilePart(definition, where, limits, place, now) for place in list_files(definition, where, folder)]
    return [part for part in found if not _covered(part, seen)]


def reading_of(definition: SourceDefinition, settings: Settings) -> SourceSettings:
    """Return where a source's rows lie and how to read them; an inferred source brings its own.

    Raises:
        ConfigurationError: settings do not say.
    """
    if definition.held is not None:
        return SourceSettings(zone=definition.held.zone)
    return settings.source(definition.name)


@dataclass(frozen=True)
class TablePart:
    """Read the rows that an inferred source holds."""

    definition: SourceDefinition
    settings: SourceSettings
    limits: LimitSettings
    table: Any
    name: str = "table"
    mark: str = ""

    @property
    def where(self) -> str:
        """Return what messages name."""
        return f"the table of {self.definition.name}"

    @property
    def header(self) -> list[str]:
        """Return the names of the table's columns."""
        return list(self.table.column_names)

    def extracts(self, absent_ok: Collection[str] = ()) -> Iterator[Extract]:
        """Yield the table's rows.

        Raises:
            DataError: it has timestamps without a zone.
        """
        conformer = Conformer(self.definition, self.settings, self.header, self.where, absent_ok=absent_ok)
        numbers, wanted = numbered(), self.table.select(conformer.names)
        for start in range(0, self.table.num_rows, self.limits.read_rows):
            piece = wanted.slice(start, self.limits.read_rows)
            yield conformer.table(piece, numbers(piece.num_rows))
        conformer.finish()

    def raw(self) -> RawRows:
        """Yield the table's rows as they stand."""
        for start in range(0, self.table.num_rows, self.limits.read_rows):
            piece = self.table.slice(start, self.limits.read_rows)
            yield Raw(piece, piece.nbytes)


def columns_by_part(
    definition: SourceDefinition, settings: Settings, parts: Sequence[Part], seen: Mapping[str, Mark]
) -> list[tuple[frozenset[str], tuple[str, ...]]]:
    """Return for each part which nullable columns it may lack, and which it has.

    A column may be missing before the first part that has it: it was added. One that is missing afterwards was removed;
    but a part that is read again may lack what it lacked before.

    Raises:
        SchemaChanged: a column was removed, or no part has it.
    """
    where = reading_of(definition, settings)
    names = data_names(definition, where.columns)
    optional = {c.name: name for c, name in names.items() if c.nullable}
    had = {name for mark in seen.values() for name in mark.columns}
    coming = {own for part in parts for own, name in optional.items() if name in part.header}
    found = []
    for part in parts:
        here = tuple(own for own, name in optional.items() if name in part.header)
        before = seen.get(part.name)
        lacked = frozenset() if before is None else (coming | had) - {*before.columns}
        had.update(here)
        may_lack = frozenset(coming - had) | lacked
        deviations = deviations_of(definition, where, part.header, may_lack)
        if deviations:
            raise schema_changed(definition, deviations, part.where)
        found.append((may_lack, here))
    return found


def _covered(part: Part, seen: Mapping[str, Mark]) -> bool:
    mark = seen.get(part.name)
    return mark is not None and mark.whole and mark.mark == part.mark != ""


def _position(seen: Mapping[str, Mark], name: str) -> str | None:
    return seen[name].mark if name in seen else None


class _Connector:
    """Open the database of a source's query, or one of the other sources' tables."""

    def __init__(self, definition: SourceDefinition, where: SourceSettings, settings: Settings, folder: Path) -> None:
        self.definition, self.where, self.settings, self.folder = definition, where, settings, folder

    def __call__(self) -> AbstractContextManager[Connection]:
        from headrace.sources.connections import connect, over_tables

        if self.where.database is not None:
            return connect(self.where.database, self.folder)
        return over_tables(named_tables(self.definition, self.where, self.settings, self.folder))


def named_tables(
    definition: SourceDefinition, where: SourceSettings, settings: Settings, folder: Path
) -> dict[str, Dataset]:
    """Return the tables of the other sources that a source's `sql` names, without reading a row.

    Raises:
        ConfigurationError: a source that it names has no files.
        DataError: there are no such files, or they cannot be read.
    """
    words = set(re.findall(r"\w+", str(where.sql)))
    named = [name for name in settings.sources if name in words and name != definition.name]
    return {name: _dataset(name, definition, settings, folder) for name in named}


def _dataset(name: str, definition: SourceDefinition, settings: Settings, folder: Path) -> Dataset:
    from pyarrow import dataset

    other = settings.sources[name]
    other = other.model_copy(update={"s3": other.s3 or settings.s3})
    stranger = replace(definition, name=name)  # only for messages: its columns are not read here
    if other.path is None:
        raise ConfigurationError(
            f"{definition.name}: its query names a source that has no files",
            where=f"[sources.{definition.name}] sql",
            got=name,
            expected="sources with a path",
            next_step="name the database of both: database = …",
        )
    if other.path.startswith(PREFIX) or other.format == "delta":
        found: Dataset = open_delta(stranger, other, folder)[0]
        return found
    places = list_files(stranger, other, folder)
    kind = other.format or places[0].kind
    formats = {"parquet": "parquet", "csv": "csv", "jsonl": "json"}
    return dataset.dataset(
        [place.path for place in places],
        filesystem=places[0].system,
        format=formats[str(kind)],
        partitioning="hive",
    )
