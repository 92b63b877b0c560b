"""Read Parquet, CSV and JSON Lines files batch by batch, and notice a file that changes meanwhile."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from headrace.core.errors import DataError
from headrace.core.settings import LimitSettings, SourceSettings
from headrace.sources.definition import SourceDefinition
from headrace.sources.jsonlines import LINE, SHOWN_LINE, iter_json_lines
from headrace.sources.listing import Format, Place
from headrace.sources.readers import Conformer, Extract, Ints, Raw, RawRows, numbered, wanted_names
from headrace.sources.values import data_names

WIDE = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


@dataclass(frozen=True)
class FilePart:
    """Read one file of a source; `now` is when it was listed (microseconds UTC).

    Every method raises SchemaChanged where a declared column is missing, of another type, or there twice, and DataError
    where the file cannot be read, changed since it was listed, is of no known format, or has timestamps without a zone.
    """

    definition: SourceDefinition
    settings: SourceSettings
    limits: LimitSettings
    place: Place
    now: int

    @property
    def name(self) -> str:
        """Return the file's name in the record of what was read."""
        return self.place.name

    @property
    def where(self) -> str:
        """Return the file's name as messages show it."""
        return self.place.where

    @property
    def mark(self) -> str:
        """Return what tells the file's state, "" where nothing does yet."""
        return self.place.mark(self.now)

    @property
    def header(self) -> list[str]:
        """Return the names of the file's own columns, and of those that only its folders name."""
        return [*self._own, *self._added]

    def extracts(self, absent_ok: Collection[str] = ()) -> Iterator[Extract]:
        """Yield the file's rows; nullable columns in `absent_ok` may be missing."""
        texts = self._added if self._kind == "parquet" else self.header
        conformer = Conformer(self.definition, self.settings, self.header, self.where, text=texts, absent_ok=absent_ok)
        with self._reading():
            yield from {"parquet": self._parquet, "csv": self._csv, "jsonl": self._json}[self._kind](conformer)
            self._refuse_changed()
        conformer.finish()

    def raw(self) -> RawRows:
        """Yield the file's rows as they stand, without those that are none."""
        with self._reading():
            yield from {"parquet": self._raw_parquet, "csv": self._raw_csv, "jsonl": self._raw_json}[self._kind]()

    @cached_property
    def _kind(self) -> Format:
        kind = self.settings.format or self.place.kind
        if kind is None:
            raise DataError(
                f"{self.definition.name}: a file of unknown format",
                where=self.where,
                got=self.place.path.rpartition("/")[2],
                expected=".parquet, .csv or .jsonl, the last two also compressed (.gz, .bz2, .zst, .lz4)",
                next_step=f'say which: [sources.{self.definition.name}] format = "csv"',
            )
        return kind

    @cached_property
    def _own(self) -> list[str]:
        with self._reading():
            if self._kind == "parquet":
                with self.place.system.open_input_file(self.place.path) as file:
                    return list(pq.read_schema(file).names)
            return self._csv_header() if self._kind == "csv" else self._json_header()

    @property
    def _added(self) -> dict[str, str | None]:
        return {name: value for name, value in self.place.partitions.items() if name not in self._own}

    @cached_property
    def _wanted(self) -> set[str]:
        return wanted_names(self.definition, self.settings)

    def _with_added(self, table: pa.Table, wanted: Collection[str]) -> pa.Table:
        for name, value in self._added.items():
            if name in wanted:
                table = table.append_column(name, pa.repeat(pa.scalar(value, pa.string()), table.num_rows))
        return table

    def _parquet(self, conformer: Conformer) -> Iterator[Extract]:
        numbers = numbered()
        columns = [name for name in dict.fromkeys(self._own) if name in self._wanted]
        with self.place.system.open_input_file(self.place.path) as opened, pq.ParquetFile(opened) as file:
            for batch in file.iter_batches(self.limits.read_rows, columns=columns, use_threads=False):
                table = self._with_added(pa.Table.from_batches([batch]), self._wanted)
                yield conformer.table(table, numbers(table.num_rows))

    def _raw_parquet(self) -> RawRows:
        with self.place.system.open_input_file(self.place.path) as opened, pq.ParquetFile(opened) as file:
            for batch in file.iter_batches(self.limits.read_rows, use_threads=False):
                table = self._with_added(pa.Table.from_batches([batch]), self._added)
                yield Raw(table, batch.nbytes, frozenset(self._added))

    def _csv_header(self) -> list[str]:
        with self._text() as stream:
            return list(self._open_csv(stream, []).schema.names)

    def _csv(self, conformer: Conformer) -> Iterator[Extract]:
        """Read the wanted columns as text; the types are judged cell by cell, and rows of another length are told."""
        columns, ragged = [n for n in dict.fromkeys(self._own) if n in self._wanted], _Ragged()
        with self._text() as stream:
            reader = self._open_csv(stream, ragged.found, texts=columns, only=columns)
            for batch in reader:
                numbers, broken = ragged.numbers(batch.num_rows)
                table = self._with_added(pa.Table.from_batches([batch]), self._wanted)
                yield conformer.table(table, numbers, broken)
            _, broken = ragged.numbers(0, at_end=True)
            if broken:
                nothing = self._with_added(reader.schema.empty_table(), self._wanted)
                yield conformer.table(nothing, np.zeros(0, np.int64), broken)

    def _raw_csv(self) -> RawRows:
        with self._text() as stream:
            for batch in self._open_csv(stream, [], texts=self._own):
                table = self._with_added(pa.Table.from_batches([batch]), self._added)
                yield Raw(table, batch.nbytes, frozenset(table.column_names))

    def _open_csv(
        self, stream: Any, ragged: list[Any], *, texts: Sequence[str] = (), only: Sequence[str] | None = None
    ) -> Any:
        def kept(row: Any) -> str:
            ragged.append(row)
            return "error" if "\n" in row.text else "skip"  # an unclosed quote takes whole rows with it

        return pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(block_size=self.limits.read_bytes, use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=self.settings.delimiter, newlines_in_values=True, invalid_row_handler=kept
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=only,
                column_types={name: pa.string() for name in texts},
                null_values=list(self.settings.nulls),
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )

    def _json_header(self) -> list[str]:
        """Return every name that some line has, in the order in which they come first."""
        names: dict[str, None] = {}
        with self._text() as stream:
            for lines in iter_json_lines(stream, bytes_at_a_time=self.limits.read_bytes):
                names.update(dict.fromkeys(name for row in lines.rows for name in row))
        if not names:  # nothing tells the columns of a file without a row; broken lines are refused one by one
            return list(data_names(self.definition, self.settings.columns).values())
        return list(names)

    def _json(self, conformer: Conformer) -> Iterator[Extract]:
        numbers = numbered()
        with self._text() as stream:
            for lines in iter_json_lines(stream, bytes_at_a_time=self.limits.read_bytes, names=conformer.names):
                rows = [{**self._added, **row} for row in lines.rows] if self._added else lines.rows
                misread = {row: {LINE: text} for row, text in lines.broken.items()}
                yield conformer.rows(rows, numbers(len(rows)), misread)

    def _raw_json(self) -> RawRows:
        with self._text() as stream:
            for lines in iter_json_lines(stream, bytes_at_a_time=self.limits.read_bytes):
                rows = [{**self._added, **row} for place, row in enumerate(lines.rows) if place not in lines.broken]
                yield Raw(rows, self.limits.read_bytes)

    @contextmanager
    def _text(self) -> Iterator[Any]:
        """Open the file as a stream of UTF-8."""
        encoding = self.settings.encoding
        with self.place.system.open_input_stream(self.place.path) as stream:
            start = stream.read(2)
        if start in WIDE and codecs.lookup(encoding).name == "utf-8":
            raise DataError(
                f"{self.definition.name}: a text that is not UTF-8",
                where=self.where,
                got=f"the byte order mark of {WIDE[start]}",
                expected=encoding,
                next_step=f'name it: [sources.{self.definition.name}] encoding = "{WIDE[start]}"',
            )
        with self.place.system.open_input_stream(self.place.path) as stream:
            yield stream if codecs.lookup(encoding).name == "utf-8" else _transcoded(stream, encoding)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn what goes wrong while reading into an error that names the file."""
        try:
            yield
        except (pa.ArrowException, OSError, ValueError) as error:
            self._refuse_changed()
            raise self._unreadable(error) from error

    def _refuse_changed(self) -> None:
        info = self.place.system.get_file_info(self.place.path)
        if not info.is_file or f"{info.size}:{info.mtime_ns}" != self.place.state:
            raise DataError(
                f"{self.definition.name}: a file changed while it was read",
                where=self.where,
                got="another size or time than listed" if info.is_file else "no such file any more",
                expected="files that stay as they are: written beside, then renamed",
                next_step="run the same command again; nothing was taken from the file",
            )

    def _unreadable(self, error: Exception) -> DataError:
        kind, size = self._kind, self.place.size
        return DataError(
            f"{self.definition.name}: {'an empty file' if not size else f'not a readable {kind} file'}",
            where=self.where,
            got=str(error).splitlines()[0] if size else "0 bytes",
            expected=f"a complete {kind} file" + (" with a header and equally long rows" if kind == "csv" else ""),
            next_step="write the file again (beside, then rename), or take it out of the path",
        )


class _Ragged:
    """Count a CSV's rows where some were passed over for their length."""

    def __init__(self) -> None:
        self.found: list[Any] = []  # filled while a batch is parsed, so always ahead of it
        self.last = 0

    def numbers(self, length: int, *, at_end: bool = False) -> tuple[Ints, dict[int, tuple[str, str]]]:
        """Return the numbers of the next `length` rows, and what stood in place of rows up to the last of them."""
        wrong = {row.number - 1: row for row in self.found}
        taken: list[int] = []
        at = self.last
        if not wrong:
            self.last += length
            return np.arange(at + 1, at + length + 1), {}
        while len(taken) < length:
            at += 1
            if at not in wrong:
                taken.append(at)
        self.last = at
        passed = {n: row for n, row in wrong.items() if n < at or at_end}
        self.found[:] = [row for row in self.found if row.number - 1 not in passed]
        why = "{} cells, where the header has {}"
        told = {
            n: (why.format(row.actual_columns, row.expected_columns), row.text[:SHOWN_LINE])
            for n, row in passed.items()
        }
        return np.array(taken, np.int64), told


def _transcoded(stream: Any, encoding: str) -> Any:
    """Return a stream's text in UTF-8."""
    return pa.transcoding_input_stream(stream, encoding, "utf-8")
