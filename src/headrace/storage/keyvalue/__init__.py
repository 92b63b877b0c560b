"""Keep bytes under bytes, read in snapshots and written in transactions; open a store with `open_keyvalue`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace.storage.backends import resolve
from headrace.storage.keyvalue.protocol import Access, Capabilities, Get, KeyValue, Snapshot, Transaction

__all__ = ["Access", "Capabilities", "Get", "KeyValue", "Snapshot", "Transaction", "open_keyvalue"]


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
