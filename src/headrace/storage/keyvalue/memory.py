"""Keep keys and values in this process, for simulations and tests; nothing outlives it."""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self

from headrace.core.errors import Unavailable
from headrace.core.failpoints import reach
from headrace.storage.keyvalue.errors import bad_key, closed, unknown_database
from headrace.storage.keyvalue.protocol import MAX_KEY_BYTES, Access, Capabilities, Get, digest_rows

WHERE = "memory:"
WAIT_SECONDS = 5.0

CAPABILITIES = Capabilities(snapshot=True, transactions=True, durable=False, processes=False)
Rows = dict[bytes, bytes]


class MemoryKeyValue:
    """Hold every database as a dict that is never changed in place once published: a snapshot is a reference to it.

    A transaction keeps its changes beside the dict and merges them at the end. The merge copies the database when a
    snapshot may be looking at it and changes it in place when none is open.
    """

    def __init__(self, location: str = "", *, databases: Sequence[str], read_only: bool = False) -> None:
        self._tables: dict[str, Rows] = {name: {} for name in databases}
        self._read_only = read_only
        self._writing = threading.Lock()
        self._guard = threading.Lock()
        self._readers = 0
        self._closed = False

    @property
    def capabilities(self) -> Capabilities:
        """Return what this backend can do."""
        return CAPABILITIES

    def read(self) -> _MemoryRead:
        """Open a snapshot for the length of a `with` block."""
        return _MemoryRead(self)

    def write(self) -> _MemoryWrite:
        """Open a transaction for the length of a `with` block; it commits unless the block raises."""
        return _MemoryWrite(self)

    def digest(self, *databases: str) -> str:
        """Return the SHA-256 of all rows in key order."""
        with self.read() as snapshot:
            return digest_rows(snapshot, databases or tuple(self._tables))

    def close(self) -> None:
        """Release the store; later calls raise Unavailable."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_reader(self) -> dict[str, Rows]:
        self._ensure_open()
        with self._guard:
            self._readers += 1
            return dict(self._tables)

    def _close_reader(self) -> None:
        with self._guard:
            self._readers -= 1

    def _open_writer(self) -> dict[str, Rows]:
        self._ensure_open()
        if self._read_only:
            raise Unavailable("the store was opened for reading only", where=WHERE)
        if not self._writing.acquire(timeout=WAIT_SECONDS):
            raise Unavailable("another transaction is open", where=WHERE, next_step="end it first")
        return self._tables

    def _publish(self, changes: dict[str, dict[bytes, bytes | None]]) -> None:
        with self._guard:
            for name, changed in changes.items():
                rows = self._tables[name] if self._readers == 0 else dict(self._tables[name])
                for key, value in changed.items():
                    if value is None:
                        rows.pop(key, None)
                    else:
                        rows[key] = value
                self._tables[name] = rows

    def _ensure_open(self) -> None:
        if self._closed:
            raise closed(WHERE)


class _MemorySnapshot:
    """Read a set of dicts."""

    def __init__(self, tables: dict[str, Rows]) -> None:
        self._tables = tables

    def get(self, database: str, key: bytes) -> bytes | None:
        """Return the value of a key, or None."""
        return self.getter(database)(key)

    def get_many(self, database: str, keys: Iterable[bytes]) -> list[bytes | None]:
        """Return the values of keys, in their order."""
        get = self.getter(database)
        return [get(key) for key in keys]

    def getter(self, database: str) -> Get:
        """Return the function that reads one database."""
        return self._rows(database).get

    def items(self, database: str, prefix: bytes = b"", after: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Walk the rows whose key begins with `prefix`, in key order, those above `after` only."""
        rows = self._rows(database)
        keys = sorted(rows)
        start = bisect_left(keys, prefix)
        if after is not None:
            start = max(start, bisect_right(keys, after))
        for key in keys[start:]:
            if not key.startswith(prefix):
                break
            yield key, rows[key]

    def count(self, database: str) -> int:
        """Return the number of rows."""
        return len(self._rows(database))

    def _rows(self, database: str) -> Rows:
        try:
            return self._tables[database]
        except KeyError:
            raise unknown_database(database, self._tables, WHERE) from None


class _MemoryTransaction(_MemorySnapshot):
    """Read through pending changes and collect more of them."""

    def __init__(self, tables: dict[str, Rows]) -> None:
        super().__init__(tables)
        self.changes: dict[str, dict[bytes, bytes | None]] = {}

    def getter(self, database: str) -> Get:
        """Return the function that reads one database, pending changes first."""
        return self.access(database).get

    def put(self, database: str, key: bytes, value: bytes) -> None:
        """Write a value."""
        self.access(database).put(key, value)

    def put_many(self, database: str, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Write many values."""
        put = self.access(database).put
        for key, value in rows:
            put(key, value)

    def delete(self, database: str, key: bytes) -> None:
        """Remove a key; a missing one is no error."""
        self.access(database).delete(key)

    def access(self, database: str) -> Access:
        """Return one database's operations as plain functions."""
        stored = super()._rows(database)
        changed = self.changes.setdefault(database, {})

        def get(key: bytes) -> bytes | None:
            return changed[key] if key in changed else stored.get(key)

        def put(key: bytes, value: bytes) -> None:
            if not 0 < len(key) <= MAX_KEY_BYTES:
                raise bad_key(WHERE, len(key))
            changed[key] = bytes(value)

        def delete(key: bytes) -> None:
            if not 0 < len(key) <= MAX_KEY_BYTES:
                raise bad_key(WHERE, len(key))
            changed[key] = None

        return Access(get, put, delete)

    def _rows(self, database: str) -> Rows:
        stored = super()._rows(database)
        changed = self.changes.get(database)
        if not changed:
            return stored
        merged = {**stored, **changed}
        return {key: value for key, value in merged.items() if value is not None}


class _MemoryRead:
    """Count an open snapshot, so that a commit knows whether it may change dicts in place."""

    def __init__(self, store: MemoryKeyValue) -> None:
        self._store = store

    def __enter__(self) -> _MemorySnapshot:
        return _MemorySnapshot(self._store._open_reader())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store._close_reader()


class _MemoryWrite:
    """Hold the writer's lock and publish the changes when the block ends well."""

    def __init__(self, store: MemoryKeyValue) -> None:
        self._store = store

    def __enter__(self) -> _MemoryTransaction:
        self._transaction = _MemoryTransaction(self._store._open_writer())
        return self._transaction

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                reach("keyvalue.before_commit")
                self._store._publish(self._transaction.changes)
                reach("keyvalue.after_commit")
        except OSError as failure:
            raise Unavailable("the store could not be written", where=WHERE, got=failure) from failure
        finally:
            self._store._writing.release()
