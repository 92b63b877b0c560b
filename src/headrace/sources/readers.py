"""Bring rows as they are read into a source's declared columns and types, or refuse them with a reason."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.core.errors import DataError, SchemaChanged
from headrace.core.expressions import Column
from headrace.core.settings import SourceSettings
from headrace.sources.casts import Cells, NaiveTimestamps, cast_cells, cast_text
from headrace.sources.definition import SourceDefinition
from headrace.sources.jsonlines import cells_of
from headrace.sources.record import ARRIVAL
from headrace.sources.values import data_names

Kind = Literal["removed", "retyped", "doubled"]
Ints = NDArray[np.int64]
_INSTANT: Column[Any] = Column(role="column", dtype="instant", name=ARRIVAL)


@dataclass(frozen=True)
class Deviation:
    """Say how one column of the data differs from its declaration."""

    column: str
    kind: Kind
    declared: str
    found: str

    def __str__(self) -> str:
        return f"{self.column} ({self.kind}): {self.found}"


@dataclass(frozen=True, eq=False)
class Extract:
    """Hold some of a source's rows: declared columns under their own names in the declared types, and `_arrival` if observed.

    `numbers` counts the rows from 1 as they stand in the data. `misread` holds, by place in `table`, the texts that are
    no values of their column's type; such cells are null in `table`. `broken` holds, by number, what stood in place of
    a row: why it is none, and its text. `extra` names columns that the data have beyond the declared ones. `ambiguous` and `nonexistent` count local
    times that a change of clocks gave two instants or none. `reached` is the cursor's position after these rows.
    """

    table: pa.Table
    numbers: Ints
    extra: tuple[str, ...] = ()
    misread: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    broken: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    ambiguous: int = 0
    nonexistent: int = 0
    reached: str | None = None

    def after(self, number: int) -> Extract:
        """Return what comes after the row of a number."""
        first = int(np.searchsorted(self.numbers, number, side="right"))
        if not first and all(n > number for n in self.broken):
            return self
        misread = {place - first: texts for place, texts in self.misread.items() if place >= first}
        broken = {n: text for n, text in self.broken.items() if n > number}
        rest, numbers = self.table.slice(first), self.numbers[first:]
        return Extract(
            rest, numbers, self.extra, misread, broken, self.ambiguous, self.nonexistent, reached=self.reached
        )

    @property
    def last(self) -> int:
        """Return the number of the last row, 0 if there is none."""
        return max([int(self.numbers[-1]) if len(self.numbers) else 0, *self.broken])


@dataclass(frozen=True, eq=False)
class Raw:
    """Hold some of a source's rows as they stand in the data, with every column: Arrow values, or plain rows as JSON has them.

    `texts` names the Arrow columns whose cells are texts of any type, as all of a CSV are. `size` is about how many bytes
    the rows take.
    """

    rows: pa.Table | Sequence[Mapping[str, Any]]
    size: int
    texts: frozenset[str] = frozenset()


RawRows = Generator[Raw, None, None]  # closed early, it lets go of what it reads


class Conformer:
    """Bring the rows of one file or query, batch by batch, into the declared columns and types.

    `header` lists the data's columns and `where` names the data in errors. Nullable columns in `absent_ok` may be
    missing: their rows then do not state them. `text` names columns whose cells are texts, as all of a CSV are.

    Conversions that lose nothing are made: narrower integers and floats, decimals without a fraction as integers,
    dictionaries, timestamps of any unit with a zone (below a microsecond they are cut off), integers up to 2**53 for a
    float; a decimal with a fraction is the nearest float. Everything else is another type.

    Raises:
        SchemaChanged: a declared column is missing or there twice.
    """

    def __init__(
        self,
        definition: SourceDefinition,
        settings: SourceSettings,
        header: Sequence[str],
        where: str,
        *,
        text: Collection[str] = (),
        absent_ok: Collection[str] = (),
    ) -> None:
        self.definition, self.settings, self.where, self.text = definition, settings, where, frozenset(text)
        names = data_names(definition, settings.columns)
        deviations = deviations_of(definition, settings, header, absent_ok)
        if deviations:
            raise schema_changed(definition, deviations, where)
        observed = _arrival_name(definition, settings, header, where)
        self.wanted = [(column, name) for column, name in names.items() if name in header]
        self.wanted += [(_INSTANT, observed)] if observed else []
        self.extra = tuple(n for n in header if n not in {*names.values(), observed})
        self.read: set[str] = set()
        self.wrong: dict[str, str] = {}

    @property
    def names(self) -> list[str]:
        """Return the names in the data of the columns that are wanted of it."""
        return [name for _, name in self.wanted]

    def table(self, table: pa.Table, numbers: Ints, broken: Mapping[int, tuple[str, str]] | None = None) -> Extract:
        """Return a batch of Arrow rows in the declared types.

        Raises:
            SchemaChanged: a column is of another type.
            DataError: it has local timestamps and settings name no zone.
        """
        deviations, found = [], {}
        for column, name in self.wanted:
            values = pa.concat_arrays(table[name].chunks) if table[name].num_chunks else pa.nulls(0)
            cells = self._cells(column, name, values)
            if cells is None:
                deviations.append(Deviation(column.name, "retyped", column.dtype, str(values.type)))
                continue
            texts = {row: _text(values, row) for row in cells.misread}
            self._judge(column, texts, cells)
            found[column.name] = (cells, texts)
        if deviations:
            raise schema_changed(self.definition, deviations, self.where)
        return self._extract(found, numbers, broken or {}, {})

    def rows(
        self, rows: Sequence[Mapping[str, Any]], numbers: Ints, misread: Mapping[int, Mapping[str, str]]
    ) -> Extract:
        """Return plain rows, as JSON has them, in the declared types; a name that a row lacks is null there.

        `misread` holds the rows that are known to be none.
        """
        found = {}
        for column, name in self.wanted:
            values, texts = cells_of(column, [row.get(name) for row in rows], self.settings.zone)
            cells = Cells(values, tuple(texts))
            self._judge(column, texts, cells)
            found[column.name] = (cells, texts)
        return self._extract(found, numbers, {}, misread)

    def finish(self) -> None:
        """Judge all rows together: a column none of whose cells is a value of its type was retyped.

        Raises:
            SchemaChanged: there is such a column.
        """
        retyped = [(c, self.wrong[c.name]) for c, _ in self.wanted if c.name in self.wrong and c.name not in self.read]
        if retyped:
            deviations = [Deviation(c.name, "retyped", c.dtype, text) for c, text in retyped]
            raise schema_changed(self.definition, deviations, self.where)

    def _judge(self, column: Column[Any], texts: Mapping[int, str], cells: Cells) -> None:
        if len(cells.values) - cells.values.null_count:
            self.read.add(column.name)
        elif texts:
            example = "of another type" if column.pii else f"such as {next(iter(texts.values()))!r:.40}"
            self.wrong.setdefault(column.name, f"values {example}")

    def _cells(self, column: Column[Any], name: str, values: pa.Array) -> Cells | None:
        text, zone = name in self.text, self.settings.zone
        try:
            return cast_text(values, column.dtype, zone) if text else cast_cells(values, column.dtype, zone)
        except NaiveTimestamps as error:
            raise naive_timestamps(self.definition, f"{self.where}, column {name}", str(error)) from error

    def _extract(
        self,
        found: Mapping[str, tuple[Cells, Mapping[int, str]]],
        numbers: Ints,
        broken: Mapping[int, tuple[str, str]],
        unread: Mapping[int, Mapping[str, str]],
    ) -> Extract:
        misread: dict[int, dict[str, str]] = {row: dict(texts) for row, texts in unread.items()}
        for name, (_, texts) in found.items():
            for row, text in texts.items():
                misread.setdefault(row, {})[name] = text
        return Extract(
            pa.table({name: cells.values for name, (cells, _) in found.items()}),
            numbers,
            self.extra,
            misread,
            broken,
            sum(cells.ambiguous for cells, _ in found.values()),
            sum(cells.nonexistent for cells, _ in found.values()),
        )


def deviations_of(
    definition: SourceDefinition, settings: SourceSettings, header: Sequence[str], absent_ok: Collection[str]
) -> list[Deviation]:
    """Return the declared columns that a header lacks, but for those that it may, or has twice."""
    names = data_names(definition, settings.columns)
    found = [d for c, name in names.items() if (d := _absent(c, name, header.count(name)))]
    return [d for d in found if d.kind == "doubled" or d.column not in absent_ok]


def schema_changed(definition: SourceDefinition, deviations: Sequence[Deviation], where: str) -> SchemaChanged:
    """Return the error for columns that are not as declared, naming each with both types."""
    first = deviations[0]
    one = f"{definition.name}.{first.column} was {first.kind}" if first.kind != "doubled" else f"{first.column} twice"
    return SchemaChanged(
        one if len(deviations) == 1 else f"{definition.name}: {len(deviations)} columns changed",
        where=f"{where}, declared at {definition.location}",
        got=[str(d) for d in deviations],
        expected=[f"{d.column}: {d.declared}" for d in deviations],
        next_step=f"restore the column upstream, or change {definition.name} and run: headrace plan",
    )


def naive_timestamps(definition: SourceDefinition, where: str, example: str) -> DataError:
    """Return the error for local timestamps whose zone nothing says."""
    return DataError(
        f"{definition.name}: timestamps without a zone",
        where=where,
        got=example,
        expected="timestamps with an offset or in UTC",
        next_step=f'name their zone: [sources.{definition.name}] zone = "Europe/Paris"',
    )


def wanted_names(definition: SourceDefinition, settings: SourceSettings) -> set[str]:
    """Return every name in the data that a source may read."""
    names = {*data_names(definition, settings.columns).values(), settings.arrival or ARRIVAL}
    return names if settings.cursor is None else names | {settings.cursor}


def numbered() -> Callable[[int], Ints]:
    """Return a function that gives each further batch of some length its rows' numbers, from 1 on."""
    at = 0

    def take(length: int) -> Ints:
        nonlocal at
        at += length
        return np.arange(at - length + 1, at + 1)

    return take


def _arrival_name(
    definition: SourceDefinition, settings: SourceSettings, present: Sequence[str], where: str
) -> str | None:
    if settings.arrival is None:
        return ARRIVAL if ARRIVAL in present else None
    if settings.arrival in present:
        return settings.arrival
    missing = Deviation(ARRIVAL, "removed", "instant", f"no column {settings.arrival}")
    raise schema_changed(definition, [missing], where)


def _absent(column: Column[Any], name: str, times: int) -> Deviation | None:
    declared = column.dtype + (" | None" if column.nullable else "")
    if times == 1:
        return None
    return Deviation(column.name, "doubled" if times else "removed", declared, f"{times or 'no'} columns {name}")


def _text(values: pa.Array, row: int) -> str:
    """Return a cell as text; an instant beyond the years 1 to 9999 as its count."""
    value = values[row]
    return (
        str(value.as_py())
        if not pa.types.is_timestamp(values.type)
        else f"{value.cast(pa.int64()).as_py()} {values.type}"
    )
