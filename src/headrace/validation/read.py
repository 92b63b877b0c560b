"""Read what is validated in pieces of bounded size: row groups of Parquet files, slices of tables."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from headrace.core.errors import DataError, UsageError
from headrace.core.location import user_location
from headrace.core.settings import LimitSettings, SourceSettings
from headrace.sources.casts import NaiveTimestamps, cast_cells
from headrace.sources.definition import SourceDefinition
from headrace.sources.files import FilePart
from headrace.sources.listing import Place, list_files
from headrace.sources.readers import Deviation, schema_changed
from headrace.sources.record import ARRIVAL
from headrace.sources.run import place
from headrace.sources.values import data_names
from headrace.validation.blocks import BLOCK_ROWS, Block, whole

FEW_BYTES = 4  # uncompressed bytes a row of a Parquet column below which its texts are read as dictionary


@dataclass(frozen=True, eq=False)
class Unit:
    """Name a piece that can be read, again too: where it begins, its rows, and the rows that were no rows at all."""

    offset: int
    rows: int
    read: Callable[[], Iterator[Block]]
    refused: pa.Table | None = None

    def holds(self, offsets: Collection[int]) -> bool:
        """Tell whether a block with one of these offsets lies inside."""
        return any(self.offset <= offset < self.offset + self.rows for offset in offsets)


def units_of(
    definition: SourceDefinition, data: Any, settings: SourceSettings, block_rows: int = BLOCK_ROWS
) -> list[Unit]:
    """Return the pieces of a table, or of one or more files.

    Raises:
        SchemaChanged: a declared column is missing or there twice.
        DataError: a file cannot be read.
        UsageError: the data are neither files nor a table.
    """
    if isinstance(data, (str, Path)):
        return _units_of_files(definition, [data], settings, block_rows)
    if isinstance(data, (list, tuple)) and data and all(isinstance(item, (str, Path)) for item in data):
        return _units_of_files(definition, data, settings, block_rows)
    try:
        table = data if isinstance(data, pa.Table) else pa.table(data)
    except (TypeError, ValueError, pa.ArrowException) as error:
        raise UsageError(
            "nothing that can be checked",
            where=user_location(),
            got=type(data).__name__,
            expected="a path, paths, or a table of pandas, polars, Arrow or DuckDB",
        ) from error
    names = _wanted(definition, settings, table.column_names, "the table")
    return list(_slices(definition, settings, table.select(list(names.values())), names, (0, block_rows), "the table"))


def _units_of_files(
    definition: SourceDefinition, paths: Sequence[str | Path], settings: SourceSettings, block_rows: int
) -> list[Unit]:
    units: list[Unit] = []
    limits = LimitSettings()
    wheres = [settings.model_copy(update={"path": str(path)}) for path in paths]
    for file in [file for where in wheres for file in list_files(definition, where, Path())]:
        offset = units[-1].offset + units[-1].rows if units else 0
        if (settings.format or file.kind) == "parquet" and not file.partitions:
            units += _row_groups(definition, settings, file, offset, block_rows)
        else:
            part = FilePart(definition, settings, limits, file, now=0)
            units += _placed(definition, part, offset, block_rows)
    return units


def _placed(definition: SourceDefinition, part: FilePart, offset: int, block_rows: int) -> list[Unit]:
    """Return the pieces of a file that is read whole: texts have to be read to be understood."""
    found = [place(definition, extract, part.where) for extract in part.extracts()]
    if not found:
        return []
    table = pa.concat_tables([accepted for accepted, _ in found])
    names = {name: name for name in table.column_names}
    units = list(_slices(definition, SourceSettings(), table, names, (offset, block_rows), part.where))
    refused = pa.concat_tables([rows for _, rows in found])
    return [*units, Unit(offset + table.num_rows, 0, lambda: iter(()), refused)]


def _row_groups(
    definition: SourceDefinition, settings: SourceSettings, file: Place, offset: int, block_rows: int
) -> Iterator[Unit]:
    where = file.where
    with _opened(definition, file) as opened:
        metadata, schema = opened.metadata, opened.schema_arrow
    names = _wanted(definition, settings, schema.names, where)
    texts = _few_texts(definition, metadata, names)
    if not metadata.num_rows:
        yield from _slices(definition, settings, schema.empty_table(), names, (offset, block_rows), where)
        return
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows

        def read(group: int = group, start: int = offset) -> Iterator[Block]:
            with _opened(definition, file, texts) as opened:
                columns = list(names.values())
                for batch in opened.iter_batches(block_rows, row_groups=[group], columns=columns, use_threads=False):
                    yield _typed(definition, settings, batch, names, start, where)
                    start += batch.num_rows

        yield Unit(offset, rows, read)
        offset += rows


@contextmanager
def _opened(definition: SourceDefinition, file: Place, texts: Sequence[str] = ()) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file; what goes wrong while it is read says so in its name."""
    try:
        with (
            file.system.open_input_file(file.path) as stream,
            pq.ParquetFile(stream, read_dictionary=list(texts)) as opened,
        ):
            yield opened
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(definition, file.where, error) from error


def _slices(
    definition: SourceDefinition,
    settings: SourceSettings,
    table: pa.Table,
    names: dict[str, str],
    pieces: tuple[int, int],
    where: str,
) -> Iterator[Unit]:
    offset, block_rows = pieces
    for start in range(0, max(table.num_rows, 1), block_rows):  # of no rows too, every check has a result
        part = table.slice(start, block_rows)

        def read(part: pa.Table = part, at: int = offset + start) -> Iterator[Block]:
            yield _typed(definition, settings, part, names, at, where)

        yield Unit(offset + start, part.num_rows, read)


def _wanted(
    definition: SourceDefinition, settings: SourceSettings, present: Sequence[str], where: str
) -> dict[str, str]:
    """Return the declared columns' names in the data, and that of the arrival."""
    found, deviations = {}, []
    counts: dict[str, int] = {}
    for name in present:
        counts[name] = counts.get(name, 0) + 1
    for column, name in data_names(definition, settings.columns).items():
        found[column.name] = name
        times = counts.get(name, 0)
        if times != 1:
            declared = column.dtype + (" | None" if column.nullable else "")
            kind = "doubled" if times else "removed"
            deviations.append(Deviation(column.name, kind, declared, f"{times or 'no'} columns {name}"))  # type: ignore[arg-type]
    arrival = settings.arrival or ARRIVAL
    if arrival in counts:
        found[ARRIVAL] = arrival
    elif settings.arrival:
        deviations.append(Deviation(ARRIVAL, "removed", "instant", f"no column {arrival}"))
    if deviations:
        raise schema_changed(definition, deviations, where)
    return found


def _few_texts(definition: SourceDefinition, metadata: pq.FileMetaData, names: dict[str, str]) -> list[str]:
    """Return the text columns with few distinct values: read as a dictionary they cost a fraction."""
    texts = {names[c.name] for c in definition.columns if c.dtype == "str"}
    sizes = dict.fromkeys(texts, 0)
    for group in range(metadata.num_row_groups):
        held = metadata.row_group(group)
        for i in range(held.num_columns):
            chunk = held.column(i)
            if chunk.path_in_schema in sizes:
                sizes[chunk.path_in_schema] += chunk.total_uncompressed_size
    return sorted(name for name, size in sizes.items() if size < FEW_BYTES * max(metadata.num_rows, 1))


def _typed(
    definition: SourceDefinition, settings: SourceSettings, part: Any, names: dict[str, str], offset: int, where: str
) -> Block:
    """Return a piece as a block: each column in its declared type, texts as a dictionary where they are one."""
    columns, deviations = {}, []
    for name, source in names.items():
        column = definition.by_name.get(name)
        dtype = "instant" if column is None else column.dtype
        held = part.column(source)
        values = whole(held) if isinstance(held, pa.ChunkedArray) else held
        found = _cast(definition, values, dtype, settings.zone, f"{where}, column {source}")
        if found is None:
            deviations.append(Deviation(name, "retyped", dtype, str(values.type)))
        else:
            columns[name] = found
    if deviations:
        raise schema_changed(definition, deviations, where)
    arrived = columns.pop(ARRIVAL, None)
    if arrived is not None and arrived.null_count:
        raise DataError(
            f"{definition.name}: rows without an arrival",
            where=where,
            got=f"{arrived.null_count} nulls",
            expected="every row's arrival, or no such column",
        )
    arrival = None if arrived is None else arrived.to_numpy()
    return Block(definition, columns, part.num_rows, offset, None, arrival)


def _cast(definition: SourceDefinition, values: pa.Array, dtype: str, zone: str | None, where: str) -> pa.Array | None:
    kind = values.type
    coded = dtype == "str" and pa.types.is_dictionary(kind) and pa.types.is_string(kind.value_type)
    try:
        if coded and not values.dictionary.null_count:
            values.dictionary.validate(full=True)
            return values if pa.types.is_int32(kind.index_type) else values.cast(pa.dictionary(pa.int32(), pa.string()))
        found = cast_cells(values, dtype, zone)
    except NaiveTimestamps as error:
        raise DataError(
            f"{definition.name}: timestamps without a zone",
            where=where,
            got=str(error),
            expected="timestamps with an offset or in UTC",
            next_step=f'name their zone: [sources.{definition.name}] zone = "Europe/Paris"',
        ) from error
    except pa.ArrowException as error:
        raise _unreadable(definition, where, error) from error
    return None if found is None else found.values


def _unreadable(definition: SourceDefinition, where: str, error: Exception) -> DataError:
    return DataError(
        f"{definition.name}: the data cannot be read",
        where=where,
        got=str(error).splitlines()[0],
        expected="complete Parquet files, texts in UTF-8, instants within int64 microseconds",
        next_step="write the file again (beside, then rename), or take it out of the path",
    )
