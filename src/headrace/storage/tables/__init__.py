"""Keep versioned tables of Arrow rows, each change applied once; open a store with `open_tables`."""

from __future__ import annotations

from headrace.core.settings import S3Settings
from headrace.storage.backends import resolve
from headrace.storage.tables.protocol import Capabilities, Change, Commit, Description, Filter, Pinned, Position, Tables

__all__ = ["Capabilities", "Change", "Commit", "Description", "Filter", "Pinned", "Position", "Tables", "open_tables"]


def open_tables(url: str, *, s3: S3Settings | None = None) -> Tables:
    """Open a table store; a table is created by its first `append`.

    Args:
        url: `delta:FOLDER`, `s3:BUCKET/PREFIX`, or another installed backend's.
        s3: how to reach object storage; without it by what the machine says.

    Raises:
        BadUrl, MissingExtra: no such backend.
    """
    factory, location = resolve("tables", url)
    store: Tables = factory(location, s3 or S3Settings()) if url.startswith("s3:") else factory(location)
    return store
