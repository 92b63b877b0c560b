"""Keep bytes under their SHA-256, verified on every read; open a store with `open_blobs`."""

from __future__ import annotations

from headrace.storage.backends import resolve
from headrace.storage.blobs.protocol import Blob, Blobs, Capabilities

__all__ = ["Blob", "Blobs", "Capabilities", "open_blobs"]


def open_blobs(url: str) -> Blobs:
    """Open a blob store; it is created by the first `put`.

    Args:
        url: `file:FOLDER`, or another installed backend's.

    Raises:
        BadUrl, MissingExtra: no such backend.
    """
    factory, location = resolve("blobs", url)
    store: Blobs = factory(location)
    return store
