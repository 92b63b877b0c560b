"""Keep Delta tables in object storage: each commit is a put that fails where another writer came first."""

from __future__ import annotations

import pyarrow.dataset as ds
import pyarrow.fs as fs

from headrace.core.errors import BadUrl, HeadraceError, Unavailable
from headrace.core.settings import S3Settings
from headrace.storage.paths import plain_parts
from headrace.storage.s3 import S3, file_system, storage_options
from headrace.storage.tables.delta import DeltaTables
from headrace.storage.tables.protocol import Capabilities


class S3Tables(DeltaTables):
    """Implement the store below a prefix of a bucket; any number of processes on any number of hosts may use it.

    Args:
        location: `BUCKET/PREFIX`, or a bucket alone.
        settings: how to reach it.
    """

    # What is read ahead in large pieces comes in fewer round trips.
    _scan = ds.ParquetFragmentScanOptions(pre_buffer=True)

    def __init__(self, location: str, settings: S3Settings) -> None:
        self._name = f"s3:{location}"
        self._prefix = location.removeprefix("//").strip("/")
        if not self._prefix:
            raise BadUrl("no bucket", where="[stores] tables", got=self._name, expected="s3:BUCKET/PREFIX")
        self._settings, self._options = settings, storage_options(settings)

    @property
    def capabilities(self) -> Capabilities:
        """Return what this backend can do."""
        return Capabilities(several_hosts=True)

    def names(self) -> list[str]:
        """Return the names of all tables."""
        try:
            return super().names()
        except OSError as error:
            raise self._damaged("?", error) from error

    def _address(self, table: str) -> str:
        return "/".join([S3 + self._prefix, *plain_parts(table, self._name)])

    def _files(self) -> fs.FileSystem:
        return fs.SubTreeFileSystem(self._prefix, file_system(self._settings))

    def _make(self, table: str) -> None:
        """Make nothing: a folder is there when something is in it."""

    def _damaged(self, table: str, error: Exception) -> HeadraceError:
        if not isinstance(error, OSError) or isinstance(error, FileNotFoundError):
            return super()._damaged(table, error)
        return Unavailable(
            "the object storage does not answer as it should",
            where=self._where(table),
            got=str(error).splitlines()[0],
            next_step="check [s3]: endpoint, region and keys, and that the bucket exists",
        )
