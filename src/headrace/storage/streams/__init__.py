"""Keep durable, append-only sequences of records, stamped on arrival; open a store with `open_streams`."""

from __future__ import annotations

from typing import Any

from headrace.core.time import Clock
from headrace.storage.backends import resolve
from headrace.storage.streams.protocol import (
    Appended,
    Bounds,
    Capabilities,
    Cursor,
    Membership,
    Message,
    Streams,
)

__all__ = ["Appended", "Bounds", "Capabilities", "Cursor", "Membership", "Message", "Streams", "open_streams"]


def open_streams(url: str, *, clock: Clock, **settings: Any) -> Streams:
    """Open a stream store; a stream is created by its first `append`.

    Args:
        url: `log:FOLDER`, `kafka://HOST:PORT`, `redis://HOST:PORT/0`, or another installed backend's.
        clock: stamps arrival.
        settings: the backend's own, as `segment_bytes` of the local log.

    Raises:
        BadUrl, MissingExtra: no such backend.
    """
    factory, location = resolve("streams", url)
    store: Streams = factory(location, clock=clock, **settings)
    return store
