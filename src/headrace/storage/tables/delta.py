"""Keep tables as Delta Lake through delta-rs, on local disk or in object storage: Parquet files and a log of commits."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs as fs
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from headrace.core.errors import (
    Conflict,
    Corrupt,
    DataError,
    DefinitionError,
    HeadraceError,
    NoVersion,
    Unavailable,
    did_you_mean,
)
from headrace.core.failpoints import reach
from headrace.core.memory import give_back
from headrace.core.time import DAY, HOUR
from headrace.storage.paths import inside, private_folder
from headrace.storage.tables.protocol import Capabilities, Change, Commit, Description, Filter, Pinned, Position
from headrace.storage.tables.schema import ensure_columns, ensure_fits, expression, sql, stored_rows

ATTEMPTS = 20
# Files are local: read as they are decoded they need a third less memory, and no more time, than read whole before.
PIECEMEAL = ds.ParquetFragmentScanOptions(pre_buffer=False, use_buffered_stream=True)
PORTION = 65_536  # rows of a scan at a time
MILLISECOND = 1_000
LOG_RETENTION, LOG_DAYS = "delta.logRetentionDuration", 30


class DeltaTables:
    """Implement the store in a folder, one folder below it for each table; any number of processes may use it.

    Where another place keeps the folders, a subclass says how it is reached.
    """

    _scan = PIECEMEAL
    _options: dict[str, str] | None = None

    def __init__(self, location: str) -> None:
        self._root = Path(location)
        self._name = f"delta:{location}"

    @property
    def capabilities(self) -> Capabilities:
        """Return what this backend can do."""
        return Capabilities(several_hosts=False)

    def _address(self, table: str) -> str:
        return str(inside(self._root, table))

    def _files(self) -> fs.FileSystem:
        """Return the folder that holds all tables. It is Arrow's own: threads that call back into Python may abort at exit."""
        return fs.SubTreeFileSystem(str(self._root.absolute()), fs.LocalFileSystem())

    def _make(self, table: str) -> None:
        """Make the folder of a table that is to be created."""
        private_folder(inside(self._root, table))

    def append(
        self,
        table: str,
        rows: pa.Table | pa.RecordBatch,
        *,
        position: Position | None = None,
        partition_by: Sequence[str] = (),
    ) -> Commit:
        """Add rows, creating the table (partitioned so) where there is none."""
        stored = stored_rows(rows, self._where(table))
        self._ensure_created(table, stored.schema, partition_by)

        def write(delta: DeltaTable) -> None:
            ensure_fits(_columns(delta), stored.schema, self._where(table))
            write_deltalake(
                delta,
                stored,
                mode="append",
                schema_mode="merge",
                commit_properties=_properties(position),
            )

        return self._change(table, position, write)

    def overwrite(
        self,
        table: str,
        rows: pa.Table | pa.RecordBatch,
        *,
        where: Sequence[Filter] = (),
        position: Position | None = None,
        partition_by: Sequence[str] = (),
    ) -> Commit:
        """Replace the rows that satisfy `where` (all, without it) in one commit; the new rows must satisfy it too."""
        stored = stored_rows(rows, self._where(table))
        self._ensure_created(table, stored.schema, partition_by)

        def write(delta: DeltaTable) -> None:
            columns = _columns(delta)
            ensure_fits(columns, stored.schema, self._where(table))
            self._ensure_satisfies(table, stored, where)
            write_deltalake(
                delta,
                stored,
                mode="overwrite",
                predicate=sql(where, columns, self._where(table)) or None,
                schema_mode="merge",
                commit_properties=_properties(position),
            )

        return self._change(table, position, write)

    def read(
        self,
        table: str,
        *,
        columns: Sequence[str] | None = None,
        where: Sequence[Filter] = (),
        version: int | None = None,
    ) -> pa.Table:
        """Return the rows that satisfy all filters, at a version (the newest by default)."""
        delta, schema, condition = self._asked(table, columns, where, version)
        return self._read(table, delta, self._dataset(table, delta), schema, condition, version)

    def _read(
        self,
        table: str,
        delta: DeltaTable,
        dataset: ds.Dataset,
        schema: pa.Schema,
        condition: pc.Expression | None,
        version: int | None,
    ) -> pa.Table:
        with self._reading(table, delta, version):
            found = dataset.to_table(columns=schema.names, filter=condition, fragment_scan_options=self._scan)
            give_back(found.nbytes)  # what decoding took
            return found.cast(schema)

    def pin(self, table: str, *, version: int | None = None) -> Pinned:
        """Return a version of a table (the newest by default) whose columns are read when they are asked for."""
        delta, schema, _ = self._asked(table, None, (), version)
        files, dataset = pa.table(delta.get_add_actions(flatten=True)), self._dataset(table, delta)

        def read(names: Sequence[str]) -> pa.Table:
            ensure_columns(schema.names, names, self._where(table))
            asked = pa.schema([schema.field(name) for name in names])
            return self._read(table, delta, dataset, asked, None, delta.version())

        return Pinned(tuple(schema.names), delta.count(), files.num_rows, _nulls(files, schema.names), read)

    def scan(
        self,
        table: str,
        *,
        columns: Sequence[str] | None = None,
        where: Sequence[Filter] = (),
        version: int | None = None,
        since: int | None = None,
    ) -> Iterator[pa.Table]:
        """Yield what `read` returns in portions, with `since` of the files that the table did not have at that version."""
        delta, schema, condition = self._asked(table, columns, where, version)
        known = frozenset() if since is None else self._paths(table, since)

        def portions() -> Iterator[pa.Table]:
            with self._reading(table, delta, version):
                asked = {"columns": schema.names, "filter": condition, "fragment_scan_options": self._scan}
                for group in _row_groups(self._dataset(table, delta), condition, asked, known):
                    yield from (pa.Table.from_batches([batch]).cast(schema) for batch in group)

        return portions()

    def _asked(
        self, table: str, columns: Sequence[str] | None, where: Sequence[Filter], version: int | None
    ) -> tuple[DeltaTable, pa.Schema, pc.Expression | None]:
        """Return a table at a version, the columns that are asked of it and the condition on its rows."""
        delta = self._existing(table)
        if version is not None:
            self._go_back(table, delta, version)
        schema = _columns(delta)
        names = list(schema.names if columns is None else columns)
        ensure_columns(schema.names, names, self._where(table))
        asked = pa.schema([schema.field(name) for name in names])
        return delta, asked, expression(where, schema, self._where(table))

    def _paths(self, table: str, version: int) -> frozenset[str]:
        """Return the files that a table was made of at a version, none where that is not known any more."""
        delta = self._existing(table)
        try:
            self._go_back(table, delta, version)
        except NoVersion:
            return frozenset()
        return frozenset(self._dataset(table, delta).files)

    def _dataset(self, table: str, delta: DeltaTable) -> ds.Dataset:
        return delta.to_pyarrow_dataset(filesystem=fs.SubTreeFileSystem(table, self._files()))

    @contextmanager
    def _reading(self, table: str, delta: DeltaTable, version: int | None) -> Iterator[None]:
        try:
            yield
        except (OSError, DeltaError, pa.ArrowException) as error:
            if version is not None and isinstance(error, FileNotFoundError):
                raise self._no_version(table, version, delta) from error
            raise self._damaged(table, error) from error

    def describe(self, table: str, *, applications: Sequence[str] = (), history: int = 0) -> Description | None:
        """Return what a table is, or None if there is none."""
        delta = self._open(table)
        if delta is None:
            return None
        changes = delta.history(history) if history else []
        return Description(
            version=delta.version(),
            columns=_columns(delta),
            partition_by=tuple(delta.metadata().partition_columns),
            rows=delta.count(),
            positions={name: delta.transaction_version(name) for name in applications},
            history=tuple(_change(entry) for entry in changes),
        )

    def delete(self, table: str, where: Sequence[Filter], *, position: Position | None = None) -> Commit:
        """Remove the rows that satisfy all filters; at least one filter."""
        if not where:
            raise DefinitionError(
                "deleting without a filter", where=self._where(table), next_step="overwrite the table with no rows"
            )

        def write(delta: DeltaTable) -> None:
            condition = sql(where, _columns(delta), self._where(table))
            delta.delete(condition, commit_properties=_properties(position))

        self._existing(table)
        return self._change(table, position, write)

    def compact(self, table: str, *, retain: int, cluster_by: Sequence[str] = ()) -> int:
        """Merge small files, and remove the files that no version of the last `retain` microseconds needs."""
        delta = self._existing(table)
        ensure_columns(_columns(delta).names, cluster_by, self._where(table))
        self._keep_log(table, delta, retain)
        if not _compacted(delta):
            self._change(table, None, lambda delta: _merge(delta, cluster_by))
        delta = self._existing(table)
        with _private_files, self._writing(table):
            # Only a full vacuum finds what killed writers left; it must not meet one that is still writing.
            removed = delta.vacuum(
                retention_hours=retain // HOUR, dry_run=False, enforce_retention_duration=False, full=retain >= DAY
            )
        return len(removed)

    def names(self) -> list[str]:
        """Return the names of all tables."""
        entries = self._files().get_file_info(fs.FileSelector("", allow_not_found=True))
        return sorted(entry.base_name for entry in entries if entry.type == fs.FileType.Directory)

    def forget_history(self, table: str) -> None:
        """Remove everything that is not of the newest version: files, also what killed writers left, and the log.

        The log tells the least and greatest values of each file and what was deleted, so it goes as well. Numbers of
        versions and committed positions stay. Nobody may be writing.
        """
        delta = self._existing(table)
        before = delta.metadata().configuration.get(LOG_RETENTION, f"interval {LOG_DAYS} days")
        with _private_files, self._writing(table):
            delta.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False, full=True)
            delta.alter.set_table_properties({LOG_RETENTION: "interval 0 seconds"})
            delta = self._existing(table)
            delta.create_checkpoint()
            delta.cleanup_metadata()
            self._drop_log(table, delta.version())
            delta.alter.set_table_properties({LOG_RETENTION: before})

    def _drop_log(self, table: str, version: int) -> None:
        """Remove entries of the log before a checkpoint; delta-rs leaves those of this very second."""
        files = self._files()
        for entry in files.get_file_info(fs.FileSelector(f"{table}/_delta_log")):
            number = entry.base_name.partition(".")[0]
            if number.isdigit() and int(number) < version:
                files.delete_file(entry.path)

    def _keep_log(self, table: str, delta: DeltaTable, retain: int) -> None:
        """Let the table keep its log as long as its versions; Delta's own default is 30 days."""
        wanted = f"interval {max(retain // DAY + 1, LOG_DAYS)} days"
        if delta.metadata().configuration.get(LOG_RETENTION, f"interval {LOG_DAYS} days") != wanted:
            self._change(table, None, lambda delta: delta.alter.set_table_properties({LOG_RETENTION: wanted}))

    def _where(self, table: str) -> str:
        return f"table {table} in {self._name}"

    def _open(self, table: str) -> DeltaTable | None:
        if "/" in table:
            raise DefinitionError("a table's name has no slash", where=self._name, got=table)
        try:
            return DeltaTable(self._address(table), storage_options=self._options)
        except TableNotFoundError:
            return None
        except (DeltaError, OSError) as error:
            raise self._damaged(table, error) from error

    def _existing(self, table: str) -> DeltaTable:
        delta = self._open(table)
        if delta is None:
            raise DataError(
                "no such table",
                where=self._name,
                got=table,
                next_step=did_you_mean(table, self.names()) or "headrace run, which fills tables",
            )
        return delta

    def _go_back(self, table: str, delta: DeltaTable, version: int) -> None:
        try:
            delta.load_as_version(version)
        except (DeltaError, OverflowError, ValueError) as error:
            raise self._no_version(table, version, delta) from error

    def _no_version(self, table: str, version: int, delta: DeltaTable) -> NoVersion:
        expected = f"0 to {delta.version()}, newer than the last compaction keeps"
        return NoVersion("no such version", where=self._where(table), got=version, expected=expected)

    def _ensure_created(self, table: str, schema: pa.Schema, partition_by: Sequence[str]) -> None:
        """Create the table empty, so that every change begins from a version and none can be applied twice."""
        if self._open(table) is not None:
            return
        ensure_columns(schema.names, partition_by, self._where(table))
        # A commit that fails has met another process's creation of the same table, which serves as well.
        with suppress(CommitFailedError), _private_files, self._writing(table):
            self._make(table)
            address, parts = self._address(table), list(partition_by) or None
            DeltaTable.create(address, schema, mode="ignore", partition_by=parts, storage_options=self._options)

    def _ensure_satisfies(self, table: str, rows: pa.Table, where: Sequence[Filter]) -> None:
        condition = expression(where, rows.schema, self._where(table))
        if condition is not None and rows.filter(condition).num_rows != rows.num_rows:
            raise DataError(
                "new rows outside of what they replace",
                where=self._where(table),
                got=rows.filter(~condition).slice(0, 3).to_pylist(),
                expected=" and ".join(f"{column} {operator} {value}" for column, operator, value in where),
            )

    def _change(self, table: str, position: Position | None, write: Callable[[DeltaTable], object]) -> Commit:
        """Apply a change to the newest version, again while other writers come first."""
        for _ in range(ATTEMPTS):
            delta = self._existing(table)
            done = delta.transaction_version(position.application) if position else None
            if position is not None and done is not None and done >= position.value:
                return Commit(delta.version(), applied=False)
            try:
                with _private_files, self._writing(table):
                    reach("tables.before_commit")
                    write(delta)
                    reach("tables.after_commit")
                return Commit(delta.version(), applied=True)
            except CommitFailedError as error:
                cause = error
        raise Conflict(
            "other writers came first too often; nothing was written",
            where=self._where(table),
            got=str(cause).splitlines()[0],
            next_step="try again",
        )

    @contextmanager
    def _writing(self, table: str) -> Iterator[None]:
        try:
            yield
        except CommitFailedError:
            raise
        except (DeltaError, OSError) as error:
            raise Unavailable(
                "the table could not be written",
                where=self._where(table),
                got=str(error).splitlines()[0],
                next_step="headrace doctor, then try again",
            ) from error

    def _damaged(self, table: str, error: Exception) -> HeadraceError:
        return Corrupt(
            "the table is damaged",
            where=self._where(table),
            got=str(error).splitlines()[0],
            next_step="restore it from a backup, or build it again from its source",
        )


class _PrivateFiles:
    """Keep the process's umask at 077 while any thread writes: delta-rs has no setting for file modes."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._inside = 0
        self._before = 0

    def __enter__(self) -> None:
        with self._guard:
            if self._inside == 0:
                self._before = os.umask(0o077)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._guard:
            self._inside -= 1
            if self._inside == 0:
                os.umask(self._before)


_private_files = _PrivateFiles()


def _nulls(files: pa.Table, columns: Sequence[str]) -> dict[str, int]:
    """Return how many nulls columns hold, of those of which the log tells it for each file."""
    told = {name: files[f"null_count.{name}"] for name in columns if f"null_count.{name}" in files.column_names}
    return {name: pc.sum(counts).as_py() for name, counts in told.items() if len(counts) and not counts.null_count}


def _columns(delta: DeltaTable) -> pa.Schema:
    return pa.schema(delta.schema().to_arrow())


def _row_groups(
    files: ds.Dataset, condition: pc.Expression | None, asked: Mapping[str, Any], known: frozenset[str]
) -> Iterator[Iterator[pa.RecordBatch]]:
    """Yield each row group's batches, but of known files: a scan of all would read ahead of a slow caller, up to a gigabyte."""
    asked = {**asked, "schema": files.schema, "batch_size": PORTION}
    for file in files.get_fragments(condition):
        if file.path in known:
            continue
        yield from (group.to_batches(**asked) for group in file.split_by_row_group(condition, files.schema))


def _merge(delta: DeltaTable, cluster_by: Sequence[str]) -> None:
    if cluster_by:
        delta.optimize.z_order(list(cluster_by))
    else:
        delta.optimize.compact()


def _compacted(delta: DeltaTable) -> bool:
    """Tell whether nothing was written since the last compaction; clustering would write every row again."""
    for entry in delta.history(8):
        if entry["operation"] == "OPTIMIZE":
            return True
        if entry["operation"] not in ("VACUUM START", "VACUUM END", "SET TBLPROPERTIES"):
            return False
    return False


def _properties(position: Position | None) -> CommitProperties | None:
    if position is None:
        return None
    return CommitProperties(app_transactions=[Transaction(position.application, position.value)])


def _change(entry: dict[str, object]) -> Change:
    return Change(int(str(entry["version"])), int(str(entry["timestamp"])) * MILLISECOND, str(entry["operation"]))
