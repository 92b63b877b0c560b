"""Keep keys and values in one LMDB environment: memory-mapped reads, one writer, a commit fsynced without its meta page.

Metasync is off: a crash of the machine may lose the newest commit but never damages the file. The map is address space,
not disk: it starts at `map_size` and doubles when less than `HEADROOM` of it is left.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import lmdb

from headrace.core.errors import Corrupt, HeadraceError, Unavailable
from headrace.core.failpoints import reach
from headrace.storage.keyvalue.errors import absent, bad_key, closed, damaged, unknown_database
from headrace.storage.keyvalue.lmdb_pages import file_size, verify
from headrace.storage.keyvalue.protocol import Access, Capabilities, Get, digest_rows

MAP_SIZE = 1 << 30
HEADROOM = 256 << 20
MOST_WAITING = 1 << 14  # changes of a transaction that are held in memory
MAX_DATABASES = 64
MAX_READERS = 512
RESIZE_SECONDS = 5.0
WRITER_SECONDS = 0.05  # more than a writer takes between its commit and what follows
# The 0.9 file format, whatever engine the installed package would choose for new files.
ENGINE = 0
# Reading every page in Python costs about 11 ms a MiB, so only small files are checked whole when they are opened.
VERIFY_BYTES = 8 << 20
CAPABILITIES = Capabilities(snapshot=True, transactions=True, durable=True, processes=True)
DAMAGE = (
    lmdb.CorruptedError,
    lmdb.InvalidError,
    lmdb.PageNotFoundError,
    lmdb.PanicError,
    lmdb.VersionMismatchError,
    lmdb.CursorFullError,
)


class LmdbKeyValue:
    """Implement the store in a folder of its own; open it once in a process, and after any fork.

    Args:
        location: the folder.
        databases: the names that it holds.
        read_only: open for reading beside another process that writes.
        map_size: bytes of address space to begin with.
    """

    def __init__(
        self, location: str, *, databases: Sequence[str], read_only: bool = False, map_size: int = MAP_SIZE
    ) -> None:
        self._path = Path(location)
        self._read_only = read_only
        self._transactions = _OpenTransactions()
        self._grow_to = self._size = 0
        if read_only and file_size(self._path) == 0:
            raise absent(self._where)
        try:
            if not read_only:
                self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._environment = self._open(map_size)
            self._page_bytes = self._environment.stat()["psize"]
            self._ensure_whole()
            self._databases = {name: self._database(name) for name in databases}
            self._first = next(iter(self._databases.values()), None)
        except (lmdb.Error, OSError) as error:
            raise self._translate(error) from error
        self._closed = False

    @staticmethod
    def examine(location: str) -> None:
        """Look at every page of a store's file; nobody may be writing.

        Raises:
            Corrupt: a page is not what LMDB would have written.
        """
        verify(Path(location))

    @staticmethod
    def drop(location: str) -> None:
        """Delete a store's files, whatever they hold; nobody may have it open."""
        for name in ("data.mdb", "lock.mdb"):
            (Path(location) / name).unlink(missing_ok=True)

    @property
    def capabilities(self) -> Capabilities:
        """Return what this backend can do."""
        return CAPABILITIES

    def read(self) -> _LmdbRead:
        """Open a snapshot for the length of a `with` block."""
        return _LmdbRead(self)

    def write(self) -> _LmdbWrite:
        """Open a transaction for the length of a `with` block; it commits unless the block raises."""
        return _LmdbWrite(self)

    def digest(self, *databases: str) -> str:
        """Return the SHA-256 of all rows in key order."""
        with self.read() as snapshot:
            return digest_rows(snapshot, databases or tuple(self._databases))

    def close(self) -> None:
        """Release the store; later calls raise Unavailable."""
        self._closed = True
        self._environment.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, map_size: int) -> lmdb.Environment:
        return lmdb.Environment(
            str(self._path),
            map_size=max(map_size, file_size(self._path) + HEADROOM),
            readonly=self._read_only,
            metasync=False,
            mode=0o600,
            create=not self._read_only,
            max_dbs=MAX_DATABASES,
            max_readers=MAX_READERS,
            max_spare_txns=4,
            lib_version=ENGINE,
        )

    def _ensure_whole(self) -> None:
        """Raise Corrupt, with nothing left open, unless the file is as long as it claims and, if small, sound."""
        try:
            if self._claimed() > file_size(self._path):
                self._ensure_spare_end()
            if not self._read_only and file_size(self._path) <= VERIFY_BYTES:
                with self._environment.begin(write=True):
                    verify(self._path)
        except BaseException:
            self._environment.close()
            raise

    def _claimed(self) -> int:
        """Return how many bytes the file's pages take."""
        return int((self._environment.info()["last_pgno"] + 1) * self._page_bytes)

    def _ensure_spare_end(self) -> None:
        """Raise Corrupt unless the pages that a file lacks at its end are ones that nothing uses.

        LMDB never writes a page that was taken and given back in one transaction, so a store may be shorter than it
        claims for as long as its writer takes to make up for it, or until it is opened again if that writer was killed.
        A page that is used must be there: LMDB would read past the end of its memory map, which kills the process.
        """
        if self._read_only:
            time.sleep(WRITER_SECONDS)
        size, claimed = file_size(self._path), self._claimed()
        if size >= claimed:
            return
        if claimed > size + HEADROOM:
            raise damaged(f"lmdb:{self._path}", f"{size} bytes", f"at least {claimed}")
        with TemporaryDirectory(prefix="headrace-") as folder:
            copy = Path(folder) / "data.mdb"
            shutil.copyfile(self._path / "data.mdb", copy)
            os.truncate(copy, claimed)
            try:
                verify(copy.parent)
            except Corrupt as error:
                raise damaged(f"lmdb:{self._path}", f"{size} bytes", f"at least {claimed}") from error
        if not self._read_only:
            os.truncate(self._path / "data.mdb", claimed)

    def _keep_end(self) -> None:
        """Make the file as long as it claims, see `_ensure_spare_end`. It never shrinks, so it is looked at when it grows."""
        claimed = self._claimed()
        if self._size < claimed:
            self._size = file_size(self._path)
        if self._size < claimed:
            os.truncate(self._path / "data.mdb", claimed)

    def _database(self, name: str) -> Any:
        try:
            return self._environment.open_db(name.encode(), create=not self._read_only)
        except lmdb.NotFoundError:
            return None

    def _handle(self, name: str) -> Any:
        try:
            return self._databases[name]
        except KeyError:
            raise unknown_database(name, self._databases, self._where) from None

    @property
    def _where(self) -> str:
        return f"lmdb:{self._path}"

    def _begin(self, *, write: bool) -> Any:
        """Begin a transaction, taking up growth by this or another process first."""
        if self._closed:
            raise closed(self._where)
        if write:
            self._make_room()
        self._transactions.enter()
        try:
            return self._environment.begin(db=self._first, write=write)
        except lmdb.MapResizedError:
            self._transactions.leave()
            self._resize(0)
            return self._begin(write=write)
        except lmdb.Error as error:
            self._transactions.leave()
            raise self._translate(error) from error

    def _make_room(self) -> None:
        if self._read_only:
            raise Unavailable("the store was opened for reading only", where=self._where)
        information = self._environment.info()
        used = (information["last_pgno"] + 1) * self._page_bytes
        size = information["map_size"]
        if size - used < min(HEADROOM, size // 2) or size < self._grow_to:
            self._resize(max(2 * size, self._grow_to))
            self._grow_to = 0

    def _resize(self, size: int) -> None:
        """Set the map's size, 0 for what another process chose; no transaction of this process may be open."""
        with self._transactions.none_open(self._where):
            self._environment.set_mapsize(size)

    def _room_ran_out(self) -> None:
        self._grow_to = 2 * self._environment.info()["map_size"]

    def _translate(self, error: Exception) -> HeadraceError:
        if isinstance(error, DAMAGE):
            return damaged(f"lmdb:{self._path}", str(error), "an LMDB environment")
        if isinstance(error, lmdb.BadValsizeError):
            return bad_key(self._where)
        if isinstance(error, lmdb.MapFullError):
            self._room_ran_out()
            return Unavailable(
                "room ran out inside the transaction; nothing was written and room was added",
                where=self._where,
                next_step="run the same transaction again",
            )
        return Unavailable(
            "the store failed", where=self._where, got=error, next_step="headrace doctor, then try again"
        )


class _OpenTransactions:
    """Count this process's open transactions: LMDB may resize its map only while there are none."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._open = self._waiting = 0

    def enter(self) -> None:
        """Count one in; it waits while a resize is under way."""
        with self._lock:
            self._open += 1

    def leave(self) -> None:
        """Count one out."""
        with self._lock:
            self._open -= 1
            if self._waiting and self._open == 0:
                self._changed.notify_all()

    @contextmanager
    def none_open(self, where: str) -> Iterator[None]:
        """Wait until none is open, and keep new ones out for the length of a `with` block.

        Raises:
            Unavailable: one stayed open for five seconds.
        """
        with self._changed:
            self._waiting += 1
            try:
                free = self._changed.wait_for(lambda: self._open == 0, RESIZE_SECONDS)
            finally:
                self._waiting -= 1
            if not free:
                raise Unavailable(
                    "the store must grow and a snapshot stays open",
                    where=where,
                    got=f"{self._open} open transactions",
                    next_step="close snapshots after each read, then try again",
                )
            yield


class _LmdbSnapshot:
    """Read through one LMDB transaction. Its default is the store's first database, which is read with the quickest calls."""

    def __init__(self, store: LmdbKeyValue, transaction: Any) -> None:
        self._store = store
        self._transaction = transaction

    def get(self, database: str, key: bytes) -> bytes | None:
        """Return the value of a key, or None."""
        return self.getter(database)(key)

    def get_many(self, database: str, keys: Iterable[bytes]) -> list[bytes | None]:
        """Return the values of keys, in their order."""
        get = self.getter(database)
        return [get(key) for key in keys]

    def getter(self, database: str) -> Get:
        """Return the function that reads one database."""
        handle = self._store._handle(database)
        if handle is None:
            return _nothing
        get: Any = self._transaction.get
        return get if handle is self._store._first else partial(get, db=handle)

    def items(self, database: str, prefix: bytes = b"", after: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Walk the rows whose key begins with `prefix`, in key order, those above `after` only."""
        handle = self._store._handle(database)
        if handle is None:
            return
        with self._transaction.cursor(db=handle) as cursor:
            start = prefix if after is None or after < prefix else after
            found = cursor.set_range(start) if start else cursor.first()
            if found and after is not None and cursor.key() == after:
                found = cursor.next()
            if not found:
                return
            for key, value in cursor:
                if not key.startswith(prefix):
                    break
                yield key, value

    def count(self, database: str) -> int:
        """Return the number of rows."""
        handle = self._store._handle(database)
        return 0 if handle is None else int(self._transaction.stat(handle)["entries"])


class _LmdbTransaction(_LmdbSnapshot):
    """Write through one LMDB transaction.

    Changes wait in memory and go in together, in the order of their keys: a key that changes often is written once, and
    what is written together lies together in the file, which a commit then writes in fewer pieces.
    """

    def __init__(self, store: LmdbKeyValue, transaction: Any) -> None:
        super().__init__(store, transaction)
        self._waiting: dict[str, dict[bytes, bytes | None]] = {}

    def getter(self, database: str) -> Get:
        """Return the function that reads one database."""
        return self.access(database).get

    def items(self, database: str, prefix: bytes = b"", after: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Walk the rows whose key begins with `prefix`, in key order, those above `after` only."""
        self.settle()
        yield from super().items(database, prefix, after)

    def count(self, database: str) -> int:
        """Return the number of rows."""
        self.settle()
        return super().count(database)

    def put(self, database: str, key: bytes, value: bytes) -> None:
        """Write a value."""
        self.access(database).put(key, value)

    def put_many(self, database: str, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Write many values: quicker than one by one, and quickest in the order of the keys."""
        self.settle()
        with self._transaction.cursor(db=self._store._handle(database)) as cursor:
            cursor.putmulti(rows)

    def delete(self, database: str, key: bytes) -> None:
        """Remove a key; a missing one is no error."""
        self.access(database).delete(key)

    def access(self, database: str) -> Access:
        """Return one database's operations as plain functions."""
        stored = super().getter(database)
        waiting = self._waiting.setdefault(database, {})

        def get(key: bytes) -> bytes | None:
            return waiting[key] if key in waiting else stored(key)

        def put(key: bytes, value: bytes | None) -> None:
            waiting[key] = value
            if len(waiting) >= MOST_WAITING:
                self.settle()

        return Access(get, put, lambda key: put(key, None))

    def settle(self) -> None:
        """Write what waits."""
        for database, waiting in self._waiting.items():
            if not waiting:
                continue
            handle = self._store._handle(database)
            for key in [key for key, value in waiting.items() if value is None]:
                del waiting[key]
                self._transaction.delete(key, db=handle)
            with self._transaction.cursor(db=handle) as cursor:
                cursor.putmulti([(key, waiting[key]) for key in sorted(waiting)])
            waiting.clear()


class _LmdbRead:
    """Open and close a read transaction."""

    __slots__ = ("_store", "_transaction")

    def __init__(self, store: LmdbKeyValue) -> None:
        self._store = store

    def __enter__(self) -> _LmdbSnapshot:
        self._transaction = self._store._begin(write=False)
        return _LmdbSnapshot(self._store, self._transaction)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._transaction.abort()
        self._store._transactions.leave()
        if isinstance(error, lmdb.Error):
            raise self._store._translate(error) from error


class _LmdbWrite:
    """Open a write transaction and commit it when the block ends well."""

    __slots__ = ("_store", "_transaction", "_writer")

    def __init__(self, store: LmdbKeyValue) -> None:
        self._store = store

    def __enter__(self) -> _LmdbTransaction:
        self._transaction = self._store._begin(write=True)
        self._writer = _LmdbTransaction(self._store, self._transaction)
        return self._writer

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._writer.settle()
                reach("keyvalue.before_commit")
                self._transaction.commit()
                self._store._keep_end()
                reach("keyvalue.after_commit")
        except (lmdb.Error, OSError) as failure:
            raise self._store._translate(failure) from failure
        finally:
            self._transaction.abort()
            self._store._transactions.leave()
        if isinstance(error, lmdb.Error):
            raise self._store._translate(error) from error


def _nothing(key: bytes) -> None:
    """Answer for a database that nobody has written yet."""
