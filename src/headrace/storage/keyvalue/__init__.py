"""Keep bytes under bytes, read in snapshots and written in transactions; open a store with `open_keyvalue`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

from headrace.storage.backends import resolve
from headrace.storage.keyvalue.protocol import Access, Capabilities, Get, KeyValue, Snapshot, Transaction

__all__ = [
    "Access",
    "Capabilities",
    "Get",
    "KeyValue",
    "Snapshot",
    "Transaction",
    "drop_keyvalue",
    "drop_rows",
    "examine_keyvalue",
    "open_keyvalue",
]

DROPPED_AT_ONCE = 10_000  # rows to a commit


def open_keyvalue(url: str, *, databases: Sequence[str], read_only: bool = False, **settings: Any) -> KeyValue:
    """Open a key-value store, creating it where that is needed and allowed.

    >>> with open_keyvalue("memory:", databases=["state"]) as store:
    ...     with store.write() as transaction:
    ...         transaction.put("state", b"key", b"value")
    ...     with store.read() as snapshot:
    ...         snapshot.get("state", b"key")
    b'value'

    Args:
        url: `lmdb:FOLDER`, `memory:` or another installed backend's.
        databases: the names of the databases that will be used.
        read_only: refuse to create and to write.
        settings: the backend's own, as `map_size` of LMDB.

    Raises:
        BadUrl, MissingExtra: no such backend.
        Unavailable: it cannot be opened.
        Corrupt: it is no store, or a damaged one.
    """
    factory, location = resolve("keyvalue", url)
    store: KeyValue = factory(location, databases=databases, read_only=read_only, **settings)
    return store


def examine_keyvalue(url: str) -> None:
    """Look at every page of a store of files that nobody has open; other stores look after themselves.

    Raises:
        BadUrl, MissingExtra: no such backend.
        Corrupt: it is damaged.
    """
    factory, location = resolve("keyvalue", url)
    examine = getattr(factory, "examine", None)
    if examine is not None:
        examine(location)


def drop_keyvalue(url: str, databases: Sequence[str]) -> None:
    """Delete all that a store holds, so that of files no byte stays; nobody may have it open.

    Files go also where they are too damaged to open; of a server's store the named databases are emptied.

    Raises:
        BadUrl, MissingExtra: no such backend.
        Unavailable: it cannot be opened.
    """
    factory, location = resolve("keyvalue", url)
    drop = getattr(factory, "drop", None)
    if drop is not None:
        drop(location)
        return
    with open_keyvalue(url, databases=databases) as store:
        for database in databases:
            drop_rows(store, database)


def drop_rows(store: KeyValue, database: str, prefix: bytes = b"") -> None:
    """Delete the rows whose key begins with a prefix, in several commits."""
    more = True
    while more:
        with store.write() as transaction:
            keys = [key for key, _ in islice(transaction.items(database, prefix), DROPPED_AT_ONCE)]
            for key in keys:
                transaction.delete(database, key)
            more = len(keys) == DROPPED_AT_ONCE
