"""Say what a codec of stream payloads is: bytes in, events as plain JSON values out.

Whatever the codec, an event comes out as plain JSON values, so that one reader gives the same reveals and refusals.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Decoded:
    """Hold one event of a payload as plain values, or why it is none; `row` is its place where a payload has many."""

    event: Mapping[str, Any]
    problem: str | None = None
    row: int | None = None


class Codec(Protocol):
    """Decode payloads."""

    @property
    def name(self) -> str:
        """Return the codec's name in settings."""
        ...

    def decode(self, data: bytes, names: Collection[str]) -> list[Decoded]:
        """Return a payload's events; values of other names than `names` may be left out.

        What is wrong with the payload is told in `Decoded.problem`, without values, and never raised.

        Raises:
            Unavailable: what the payload needs beside itself, as its schema, cannot be reached now.
        """
        ...
