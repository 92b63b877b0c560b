"""Hold a transaction's changes in this process until they are committed to a server."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

from headrace.storage.keyvalue.errors import bad_key
from headrace.storage.keyvalue.protocol import MAX_KEY_BYTES, Access, Get, Snapshot

Changes = dict[bytes, bytes | None]


class PendingTransaction:
    """Collect changes beside what was read; nobody else can commit meanwhile, so what was read once stays true.

    `changes` holds, by database, the new value of each changed key; None where it is to be removed.

    Args:
        view: reads what is stored.
        where: names the store in errors.
    """

    def __init__(self, view: Snapshot, where: str) -> None:
        self.changes: dict[str, Changes] = {}
        self._view, self._where = view, where
        self._known: dict[str, Changes] = {}

    def get(self, database: str, key: bytes) -> bytes | None:
        """Return the value of a key, or None."""
        return self.access(database).get(key)

    def get_many(self, database: str, keys: Iterable[bytes]) -> list[bytes | None]:
        """Return the values of keys, in their order, changes of this transaction included."""
        known, wanted = self._rows(database)[1], list(keys)
        missing = [key for key in dict.fromkeys(wanted) if key not in known]
        if missing:
            known.update(zip(missing, self._view.get_many(database, missing), strict=True))
        return [known[key] for key in wanted]

    def getter(self, database: str) -> Get:
        """Return the function that reads one database; what was read before costs no round trip."""
        return self.access(database).get

    def put(self, database: str, key: bytes, value: bytes) -> None:
        """Write a value."""
        self.access(database).put(key, value)

    def put_many(self, database: str, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Write many values."""
        written = {key: bytes(value) for key, value in rows}
        for key in written:
            if not 0 < len(key) <= MAX_KEY_BYTES:
                raise bad_key(self._where, len(key))
        for held in self._rows(database):
            held.update(written)

    def delete(self, database: str, key: bytes) -> None:
        """Remove a key; a missing one is no error."""
        self.access(database).delete(key)

    def access(self, database: str) -> Access:
        """Return one database's operations as plain functions."""
        changed, known = self._rows(database)

        def get(key: bytes) -> bytes | None:
            if key in known:
                return known[key]
            return self.get_many(database, [key])[0]

        def put(key: bytes, value: bytes) -> None:
            if not 0 < len(key) <= MAX_KEY_BYTES:
                raise bad_key(self._where, len(key))
            changed[key] = known[key] = bytes(value)

        def delete(key: bytes) -> None:
            if not 0 < len(key) <= MAX_KEY_BYTES:
                raise bad_key(self._where, len(key))
            changed[key] = known[key] = None

        return Access(get, put, delete)

    def items(self, database: str, prefix: bytes = b"", after: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Walk the rows whose key begins with `prefix`, in key order, those above `after` only."""
        changed = dict(self._rows(database)[0])
        new = sorted(
            (key, value)
            for key, value in changed.items()
            if value is not None and key.startswith(prefix) and (after is None or key > after)
        )
        stored = (row for row in self._view.items(database, prefix, after) if row[0] not in changed)
        return heapq.merge(stored, new)

    def count(self, database: str) -> int:
        """Return the number of rows."""
        changed = self._rows(database)[0]
        replaced = sum(value is not None for value in self._view.get_many(database, changed))
        return self._view.count(database) - replaced + sum(value is not None for value in changed.values())

    def _rows(self, database: str) -> tuple[Changes, Changes]:
        if database not in self.changes:
            self._view.getter(database)  # raises where there is no such database
            self.changes[database], self._known[database] = {}, {}
        return self.changes[database], self._known[database]
