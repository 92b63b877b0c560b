"""Read Parquet, CSV and JSON Lines files as a source's declared columns in the declared types, or refuse them with a reason."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from headrace.core.errors import ConfigurationError, DataError, SchemaChanged
from headrace.core.expressions import Column
from headrace.core.location import shown
from headrace.core.settings import SourceSettings
from headrace.sources.casts import Cells, NaiveTimestamps, cast_cells, cast_text
from headrace.sources.definition import SourceDefinition
from headrace.sources.jsonlines import LINE, JsonRows, cells_of, read_json_lines
from headrace.sources.record import ARRIVAL
from headrace.sources.values import data_names

Kind = Literal["removed", "retyped", "doubled"]
Format = Literal["parquet", "csv", "jsonl"]
SUFFIXES: Mapping[str, Format] = {"parquet": "parquet", "csv": "csv", "jsonl": "jsonl", "ndjson": "jsonl"}
COMPRESSED = ("gz", "bz2", "zst", "lz4")
_INSTANT: Column[Any] = Column(role="column", dtype="instant")


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
    """Hold a source's rows: declared columns under their own names in the declared types, and `_arrival` if observed.

    `misread` holds, row by row, the texts that are no values of their column's type; such cells are null in `table`.
    `extra` names columns that the data have beyond the declared ones. `ambiguous` and `nonexistent` count local times
    that a change of clocks gave two instants or none.
    """

    table: pa.Table
    extra: tuple[str, ...] = ()
    misread: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    ambiguous: int = 0
    nonexistent: int = 0


def find_files(definition: SourceDefinition, settings: SourceSettings, folder: Path) -> list[Path]:
    """Return the files that a source's `path` names, in the order of their names.

    Raises:
        ConfigurationError: settings name no path.
        DataError: there is no such file.
    """
    if settings.path is None:
        raise ConfigurationError(
            f"nothing says where the files of {definition.name} lie",
            where=f"[sources.{definition.name}]",
            expected="path",
            next_step=f'add to [sources.{definition.name}]: path = "data/{definition.name.lower()}.parquet"',
        )
    pattern = str(folder / settings.path)
    path = Path(pattern)
    found = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if _kind_of(p) is not None)
    files = [p for p in found if p.is_file()]
    if not files:
        raise DataError(
            f"{definition.name}: no such file",
            where=f"[sources.{definition.name}] path",
            got=settings.path,
            expected=f"a file, a folder or a glob below {shown(str(folder))}",
            next_step="check the path, or make the file: what writes it may not have run yet",
        )
    return files


def read_file(definition: SourceDefinition, settings: SourceSettings, path: Path) -> Extract:
    """Read one file.

    Raises:
        SchemaChanged: a declared column is missing, of another type, or there twice.
        DataError: the file cannot be read, its suffix names no known format, or it has timestamps without a zone.
    """
    kind = settings.format or _kind_of(path)
    if kind is None:
        raise DataError(
            f"{definition.name}: a file of unknown format",
            where=shown(str(path)),
            got=path.suffix or "no suffix",
            expected=".parquet, .csv or .jsonl, the last two also compressed (.gz, .bz2, .zst, .lz4)",
            next_step=f'say which: [sources.{definition.name}] format = "csv"',
        )
    where = shown(str(path))
    try:
        if kind == "csv":
            return conform(definition, _read_csv(settings, path), settings, where=where, text=True)
        if kind == "jsonl":
            return _conform_json(definition, read_json_lines(path), settings, where)
        table, header = _read_parquet(definition, settings, path)
        return conform(definition, table, settings, where=where, header=header)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(definition, path, kind, error) from error


def conform(
    definition: SourceDefinition,
    table: pa.Table,
    settings: SourceSettings,
    *,
    where: str,
    header: Sequence[str] | None = None,
    text: bool = False,
) -> Extract:
    """Return a table's declared columns in the declared types.

    `where` names the table in errors, `header` lists its columns if some were not read, `text` says that all cells are
    texts, as in a CSV.

    Conversions that lose nothing are made: narrower integers and floats, dictionaries, timestamps of any unit with a
    zone (below a microsecond they are cut off), integers up to 2**53 for a float. Everything else is another type. A
    text cell that is no value of its column's type is null and in `misread`; where no cell is one, the column is
    retyped.

    Raises:
        SchemaChanged, DataError: as `read_file`.
    """
    names = data_names(definition, settings.columns)
    present = table.column_names if header is None else list(header)
    deviations = [d for c, name in names.items() if (d := _absent(c, name, present.count(name)))]
    absent = {d.column for d in deviations}
    wanted = [(c.name, c.dtype, name) for c, name in names.items() if c.name not in absent]
    observed = _arrival_name(definition, settings, present, where)
    wanted += [(ARRIVAL, "instant", observed)] if observed else []
    found: dict[str, Cells] = {}
    misread: dict[int, dict[str, str]] = {}
    for name, dtype, source in wanted:
        values = pa.concat_arrays(table[source].chunks) if table[source].num_chunks else pa.nulls(0)
        cells = _cells(definition, settings, values, dtype, f"{where}, column {source}", text)
        if cells is None:
            private = name in definition.by_name and definition.by_name[name].pii
            deviations.append(Deviation(name, "retyped", dtype, _type_found(values, private, text)))
        else:
            found[name] = cells
            for row in cells.misread:
                misread.setdefault(row, {})[name] = values[row].as_py()
    if deviations:
        raise schema_changed(definition, deviations, where)
    return Extract(
        pa.table({name: cells.values for name, cells in found.items()}),
        tuple(n for n in present if n not in {*names.values(), observed}),
        misread,
        sum(cells.ambiguous for cells in found.values()),
        sum(cells.nonexistent for cells in found.values()),
    )


def _conform_json(definition: SourceDefinition, lines: JsonRows, settings: SourceSettings, where: str) -> Extract:
    """Return JSON lines' declared columns in the declared types; a name that a line lacks is null there."""
    names, present = data_names(definition, settings.columns), lines.names()
    deviations = [d for c, name in names.items() if (d := _absent(c, name, present.count(name)))] if lines.rows else []
    absent = {d.column for d in deviations}
    observed = _arrival_name(definition, settings, present, where) if lines.rows else None
    wanted = [(c.name, c, name) for c, name in names.items() if c.name not in absent]
    wanted += [(ARRIVAL, _INSTANT, observed)] if observed else []
    found: dict[str, pa.Array] = {}
    misread: dict[int, dict[str, str]] = {row: {LINE: text} for row, text in lines.broken.items()}
    for name, column, source in wanted:
        values = [row.get(source) for row in lines.rows]
        found[name], wrong = cells_of(column, values, settings.zone)
        if wrong and found[name].null_count == len(values):
            example = "a value of another type" if column.pii else f"{next(iter(wrong.values()))!r:.40}"
            deviations.append(Deviation(name, "retyped", column.dtype, f"values such as {example}"))
        for row, text in wrong.items():
            misread.setdefault(row, {})[name] = text
    if deviations:
        raise schema_changed(definition, deviations, where)
    return Extract(pa.table(found), tuple(n for n in present if n not in {*names.values(), observed}), misread)


def _kind_of(path: Path) -> Format | None:
    """Return the format that a file's name tells, also of a compressed one."""
    suffixes = [suffix[1:].lower() for suffix in path.suffixes]
    last = suffixes[-2] if len(suffixes) > 1 and suffixes[-1] in COMPRESSED else suffixes[-1] if suffixes else ""
    return SUFFIXES.get(last)


def schema_changed(definition: SourceDefinition, deviations: list[Deviation], where: str) -> SchemaChanged:
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


def _cells(
    definition: SourceDefinition, settings: SourceSettings, values: pa.Array, dtype: str, where: str, text: bool
) -> Cells | None:
    try:
        return cast_text(values, dtype, settings.zone) if text else cast_cells(values, dtype, settings.zone)
    except NaiveTimestamps as error:
        raise DataError(
            f"{definition.name}: timestamps without a zone",
            where=where,
            got=str(error),
            expected="timestamps with an offset or in UTC",
            next_step=f'name their zone: [sources.{definition.name}] zone = "Europe/Paris"',
        ) from error


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


def _read_parquet(definition: SourceDefinition, settings: SourceSettings, path: Path) -> tuple[pa.Table, list[str]]:
    """Return the wanted columns, and the names of all."""
    wanted = {*data_names(definition, settings.columns).values(), settings.arrival or ARRIVAL}
    with pq.ParquetFile(path) as file:
        header: list[str] = file.schema_arrow.names
        return file.read(columns=[name for name in header if name in wanted], use_threads=False), header


def _read_csv(settings: SourceSettings, path: Path) -> pa.Table:
    """Read every column as text; the types are judged cell by cell."""
    with pa.input_stream(path) as probe:
        header = pyarrow.csv.open_csv(probe).schema.names
    options = pyarrow.csv.ConvertOptions(
        column_types={name: pa.string() for name in header},
        null_values=list(settings.nulls),
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    with pa.input_stream(path) as stream:
        return pyarrow.csv.read_csv(stream, parse_options=parse, convert_options=options)


def _unreadable(definition: SourceDefinition, path: Path, kind: str, error: Exception) -> DataError:
    size = path.stat().st_size if path.exists() else 0
    return DataError(
        f"{definition.name}: {'an empty file' if not size else f'not a readable {kind} file'}",
        where=shown(str(path)),
        got=str(error).splitlines()[0] if size else "0 bytes",
        expected=f"a complete {kind} file" + (" with a header and equally long rows" if kind == "csv" else ""),
        next_step="write the file again (beside, then rename), or take it out of the path",
    )


def _type_found(values: pa.Array, private: bool, text: bool) -> str:
    if not text:
        return str(values.type)
    example = next((v for v in values.to_pylist() if v is not None), "")
    return "text" if private else f"text such as {example!r:.40}"
