"""Keep the ledger in one SQLite file: WAL, fsync on every commit, one writer at a time, any number of processes."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, QueuePool, create_engine, event
from sqlalchemy.exc import DBAPIError

from headrace.core.errors import BackendError, ConfigurationError, Corrupt, Unavailable
from headrace.core.time import Clock
from headrace.storage.ledger.protocol import Capabilities, Signer
from headrace.storage.ledger.relational import PointRow, RelationalLedger
from headrace.storage.ledger.schema import REVISION

# Below the five seconds within which a locked ledger must say so.
BUSY_SECONDS = 4.0
POOL_SIZE = 4
CORRUPT = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_ERROR", "SQLITE_FORMAT")


class SqliteLedger(RelationalLedger):
    """Implement the ledger for one host; open it after any fork, never before."""

    def __init__(self, location: str, *, clock: Clock, signer: Signer | None = None, read_only: bool = False) -> None:
        super().__init__(clock=clock, signer=signer, read_only=read_only)
        self._path = Path(location)
        self._reader = self._new_engine()
        self._immediate = self._reader.execution_options(begin="BEGIN IMMEDIATE")
        self._inode: int | None = None
        try:
            if not self._is_current():
                self._prepare()
        except DBAPIError as error:
            raise self._translate(error) from error
        self._inode = os.stat(self._path).st_ino

    @property
    def capabilities(self) -> Capabilities:
        """Return what this backend can do."""
        return Capabilities(several_hosts=False)

    @property
    def _engine(self) -> Engine:
        return self._reader

    @property
    def _writer(self) -> Engine:
        return self._immediate

    @property
    def _where(self) -> str:
        return f"sqlite:{self._path}"

    def _new_engine(self) -> Engine:
        engine = create_engine(
            "sqlite+pysqlite://",
            creator=self._connect,
            poolclass=QueuePool,
            pool_size=POOL_SIZE,
            pool_timeout=BUSY_SECONDS,
        )
        event.listen(engine, "begin", _begin)
        return engine

    def _connect(self) -> sqlite3.Connection:
        mode = "ro" if self._read_only else "rw"
        connection = sqlite3.connect(
            f"file:{quote(str(self._path.absolute()))}?mode={mode}",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA trusted_schema=OFF")
        return connection

    def _is_current(self) -> bool:
        """Tell whether the file needs no work, without importing Alembic."""
        if not self._path.exists():
            if self._read_only:
                raise ConfigurationError(
                    "there is no ledger", where=self._where, next_step="headrace run, which creates one"
                )
            return False
        with self._reader.begin() as connection:
            revision = _revision(connection)
        if revision is not None and revision > REVISION:
            raise ConfigurationError(
                "the ledger was made by a newer Headrace",
                where=self._where,
                got=f"format {revision}",
                expected=f"format {REVISION} or older",
                next_step="pip install --upgrade headrace",
            )
        return revision == REVISION

    def _prepare(self) -> None:
        """Create or migrate the file in one transaction; one process does it, the others wait and find it done."""
        if self._read_only:
            raise ConfigurationError(
                "the ledger needs a migration and was opened for reading only",
                where=self._where,
                next_step="headrace run, which brings it up to date",
            )
        with self._exclusive():
            with closing(self._connect()) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
            if not self._is_current():
                from headrace.storage.ledger.migrate import upgrade

                with self._immediate.begin() as migrating:
                    upgrade(migrating)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold an flock, since switching to WAL does not wait for SQLite's own locks; make sure that the file exists.

        The lock has a file of its own: closing any descriptor of the database drops this process's SQLite locks.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(f"{self._path}.lock", flags, 0o600)
        except OSError as error:
            raise Unavailable(
                "the ledger cannot be created",
                where=self._where,
                got=error,
                next_step="choose a folder that you may write to",
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not self._path.exists():
                os.close(os.open(self._path, flags | os.O_EXCL, 0o600))
            yield
        finally:
            os.close(descriptor)

    def _insert_points(self, connection: Connection, rows: Sequence[PointRow]) -> None:
        if rows:
            connection.exec_driver_sql("INSERT INTO series (seq, position, name, step, value) VALUES (?,?,?,?,?)", rows)

    def _ensure_present(self) -> None:
        # SQLite would go on writing into a deleted file; a stat costs 2 µs.
        try:
            present = self._inode is None or os.stat(self._path).st_ino == self._inode
        except OSError:
            present = False
        if not present:
            raise Unavailable(
                "the ledger file is gone",
                where=self._where,
                got="another file or none at this path",
                expected="the file that was opened",
                next_step="restore it from a backup, then start again",
            )

    def _translate(self, error: DBAPIError) -> BackendError:
        name = getattr(error.orig, "sqlite_errorname", "") or ""
        if name.startswith(CORRUPT):
            return Corrupt(
                "the ledger file is damaged",
                where=self._where,
                got=error.orig,
                next_step="restore it from a backup, then headrace audit",
            )
        locked = name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
        return Unavailable(
            f"the ledger is locked by another process for over {BUSY_SECONDS:g} s" if locked else "the ledger failed",
            where=self._where,
            got=error.orig,
            next_step="try again; headrace doctor shows who holds it" if locked else "headrace doctor",
        )


def _begin(connection: Connection) -> None:
    """Begin as the engine's option says: a transaction that reads first and writes later fails at once when locked."""
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))


def _revision(connection: Connection) -> str | None:
    """Return the format that the tables are in, None where there are none."""
    known: Any = connection.exec_driver_sql("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").scalar()
    if known is None:
        return None
    revision: str | None = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return revision
