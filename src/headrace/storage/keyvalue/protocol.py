"""Say what a key-value store promises: bytes under bytes in named databases, read in snapshots, written in transactions.

Promises, each checked by `headrace.testing.keyvalue.KeyValueContract`:

- `read()` sees one moment: what is written afterwards is not visible in it. Where `snapshot` is False, each `get` and
  `get_many` sees one moment, never part of a transaction, and a later call an equal or a later moment; `items` and `count`
  may walk in pages, and see rows of one transaction apart.
- `write()` applies all of its changes or, when its body raises, none. It sees its own changes. One writer at a time;
  the next waits.
- A commit that returned survives the death of this process. After a crash of the machine the newest commits may be
  missing, the store is whole.
- Keys are 1 to 511 bytes, ordered as bytes. Values are any bytes.
- The databases are named when the store is opened; another name is a ConfigurationError.
- A damaged store fails as `Corrupt` and names the command that rebuilds it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

MAX_KEY_BYTES = 511

Get = Callable[[bytes], bytes | None]


@dataclass(frozen=True, slots=True)
class Access:
    """Hold one database's operations inside a transaction as plain functions, for hot loops.

    Attributes:
        get: return the value of a key, or None.
        put: write a value.
        delete: remove a key; a missing one is no error.
    """

    get: Get
    put: Callable[[bytes, bytes], object]
    delete: Callable[[bytes], object]


@dataclass(frozen=True)
class Capabilities:
    """Say what a store can do.

    Attributes:
        snapshot: one `read()` sees one moment over all databases.
        transactions: one `write()` applies as a whole.
        durable: data outlives the process.
        processes: other processes of the host can open it at the same time.
        remote: it is reached over a network: other hosts can open it too, and each call costs a round trip, so ask for
            many keys at once. Inside a transaction what was read or written once is there without another round trip.
    """

    snapshot: bool
    transactions: bool
    durable: bool
    processes: bool
    remote: bool = False


class Snapshot(Protocol):
    """Read the store as it was at one moment."""

    def get(self, database: str, key: bytes) -> bytes | None:
        """Return the value of a key, or None."""
        ...

    def get_many(self, database: str, keys: Iterable[bytes]) -> list[bytes | None]:
        """Return the values of keys, in their order."""
        ...

    def getter(self, database: str) -> Get:
        """Return the function that reads one database, for hot loops; it is valid while the snapshot is open."""
        ...

    def items(self, database: str, prefix: bytes = b"", after: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Walk the rows whose key begins with `prefix`, in key order, those above `after` only."""
        ...

    def count(self, database: str) -> int:
        """Return the number of rows."""
        ...


class Transaction(Snapshot, Protocol):
    """Change the store; everything is applied when the `with` block ends well."""

    def put(self, database: str, key: bytes, value: bytes) -> None:
        """Write a value."""
        ...

    def put_many(self, database: str, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Write many values: quicker than one by one, and quickest in the order of the keys."""
        ...

    def delete(self, database: str, key: bytes) -> None:
        """Remove a key; a missing one is no error."""
        ...

    def access(self, database: str) -> Access:
        """Return one database's operations as plain functions, valid while the transaction is open."""
        ...


class KeyValue(Protocol):
    """Keep bytes under bytes."""

    @property
    def capabilities(self) -> Capabilities:
        """Return what this backend can do."""
        ...

    def read(self) -> AbstractContextManager[Snapshot]:
        """Open a snapshot for the length of a `with` block.

        Raises:
            Unavailable: the store is closed, all reader slots are taken, or (also in each call inside) the server
                cannot be reached in time.
            Corrupt: the bytes are no store.
        """
        ...

    def write(self) -> AbstractContextManager[Transaction]:
        """Open a transaction for the length of a `with` block, in one thread; it commits unless the block raises.

        Raises:
            DataError: a key is empty or too long.
            Unavailable: the store is closed or read-only, the disk is full, or room ran out inside the transaction; in
                the last case room was added and the same transaction will succeed when it is run again.
            Conflict: another writer took over, since this one had not been heard of for too long; nothing was written.
            Corrupt: the bytes are no store.
        """
        ...

    def digest(self, *databases: str) -> str:
        """Return the SHA-256 of all rows in key order, of the named databases or of all; equal content, equal digest."""
        ...

    def close(self) -> None:
        """Release the store; later calls raise Unavailable."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def digest_rows(snapshot: Snapshot, databases: Sequence[str]) -> str:
    """Return the SHA-256 of rows, each part preceded by its length, databases by name; an empty one counts as absent."""
    digest = hashlib.sha256()
    for database in sorted(databases):
        rows = snapshot.count(database)
        if rows:
            name = database.encode()
            digest.update(struct.pack("<QQ", len(name), rows) + name)
        for key, value in snapshot.items(database):
            digest.update(struct.pack("<QQ", len(key), len(value)) + key + value)
    return digest.hexdigest()
