"""Read the data files of a Delta table that somebody else writes; they never change, so their names tell what is new."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from headrace.core.errors import DataError
from headrace.core.location import shown
from headrace.core.settings import LimitSettings, S3Settings, SourceSettings
from headrace.sources.definition import SourceDefinition
from headrace.sources.readers import Conformer, Extract, Raw, RawRows, numbered, wanted_names
from headrace.storage.s3 import S3, file_system, storage_options

PREFIX = "delta:"


@dataclass(frozen=True, eq=False)
class DeltaPart:
    """Read one data file of a Delta table."""

    definition: SourceDefinition
    settings: SourceSettings
    limits: LimitSettings
    where: str
    name: str
    schema: pa.Schema
    fragment: Any
    mark: str = "delta"

    @property
    def header(self) -> list[str]:
        """Return the names of the table's columns; those that came later are null in older files."""
        return list(self.schema.names)

    def extracts(self, absent_ok: Collection[str] = ()) -> Iterator[Extract]:
        """Yield the file's rows.

        Raises:
            SchemaChanged: a declared column is missing or of another type.
            DataError: the file cannot be read, or is gone.
        """
        conformer = Conformer(self.definition, self.settings, self.header, self.where, absent_ok=absent_ok)
        columns = [n for n in self.header if n in wanted_names(self.definition, self.settings)]
        numbers = numbered()
        with reading_delta(self.definition, self.where):
            batches = self.fragment.to_batches(
                schema=self.schema, columns=columns, batch_size=self.limits.read_rows, use_threads=False
            )
            for batch in batches:
                if batch.num_rows:
                    yield conformer.table(pa.Table.from_batches([batch]), numbers(batch.num_rows))
        conformer.finish()

    def raw(self) -> RawRows:
        """Yield the file's rows as they stand.

        Raises:
            DataError: the file cannot be read, or is gone.
        """
        with reading_delta(self.definition, self.where):
            batches = self.fragment.to_batches(schema=self.schema, batch_size=self.limits.read_rows, use_threads=False)
            for batch in batches:
                yield Raw(pa.Table.from_batches([batch]), batch.nbytes)


def delta_parts(
    definition: SourceDefinition, settings: SourceSettings, limits: LimitSettings, folder: Path
) -> list[DeltaPart]:
    """Return the data files of a table's newest version, or of the one that settings name.

    Raises:
        DataError: there is no such table or version, or it needs a reader that can do more.
    """
    data, where = open_delta(definition, settings, folder)
    fragments = sorted(data.get_fragments(), key=lambda fragment: str(fragment.path))
    return [
        DeltaPart(definition, settings, limits, f"{where}, file {f.path}", f"{settings.path}/{f.path}", data.schema, f)
        for f in fragments
    ]


def open_delta(definition: SourceDefinition, settings: SourceSettings, folder: Path) -> tuple[Any, str]:
    """Return a Delta table as an Arrow dataset, and how messages name it.

    Raises:
        DataError: there is no such table or version, or it needs a reader that can do more.
    """
    from deltalake import DeltaTable
    from pyarrow import fs

    location = str(settings.path).removeprefix(PREFIX)
    remote = location.startswith(S3)
    address = location if remote else str((folder / location).absolute())
    where = location if remote else shown(address)
    reached = settings.s3 or S3Settings()
    with reading_delta(definition, where):
        options = storage_options(reached) if remote else None
        table = DeltaTable(address, version=settings.version, storage_options=options)
        system = file_system(reached) if remote else fs.LocalFileSystem()
        return table.to_pyarrow_dataset(filesystem=fs.SubTreeFileSystem(address.removeprefix(S3), system)), where


@contextmanager
def reading_delta(definition: SourceDefinition, where: str) -> Iterator[None]:
    """Turn what goes wrong with a Delta table into an error that names it."""
    from deltalake.exceptions import DeltaError

    try:
        yield
    except (DeltaError, OSError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f"{definition.name}: not a readable Delta table",
            where=where,
            got=str(error).splitlines()[0],
            expected="a Delta table, at a version that was not vacuumed, without deletion vectors",
            next_step=f"check [sources.{definition.name}] path, version and, for s3://, [s3]",
        ) from error
