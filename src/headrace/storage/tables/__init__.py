"""Keep versioned tables of Arrow rows, each change applied once; open a store with `open_tables`."""

from __future__ import annotations

from headrace.storage.backends import resolve
from headrace.storage.tables.protocol import Capabilities, Change, Commit, Description, Filter, Position, Tables

__all__ = ["Capabilities", "Change", "Commit", "Description", "Filter", "Position", "Tables", "open_tables"]


def open_tables(url: str) -> Tables:
    """Open a table store; a table is created by its first `append`.

    Args:
        url: `delta:FOLDER`, or another installed backend's.

    Raises:
        BadUrl, MissingExtra: no such backend.
    """
    factory, location = resolve("tables", url)
    store: Tables = factory(location)
    return store
