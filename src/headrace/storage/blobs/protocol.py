"""Say what a blob store promises: bytes under the SHA-256 of themselves.

Promises, each checked by `headrace.testing.blobs.BlobsContract`:

- A blob is there whole and durable when `put` returns, or not at all. Putting the same bytes again changes nothing.
- Every `get` hashes what it read; bytes that are not what the name says fail as `Corrupt` and are never returned.
- A name is 64 lower-case hex digits; nothing else reaches the store, so no name leads out of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from headrace.core.errors import ConfigurationError

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Blob:
    """Name stored bytes: their SHA-256 as 64 hex digits, and how many they are."""

    digest: str
    size: int


@dataclass(frozen=True)
class Capabilities:
    """Say what a store can do: whether several hosts may share it."""

    several_hosts: bool


class Blobs(Protocol):
    """Keep bytes under their hash."""

    @property
    def capabilities(self) -> Capabilities:
        """Return what this backend can do."""
        ...

    def put(self, source: bytes | Path) -> Blob:
        """Store bytes, or a file's content read in pieces.

        Raises:
            DataError: the file cannot be read.
            Unavailable: the store is full or cannot be written.
        """
        ...

    def get(self, digest: str) -> bytes:
        """Return a blob's bytes, verified.

        Raises:
            DataError: there is no such blob.
            Corrupt: the stored bytes are other ones.
            ConfigurationError: not a digest.
        """
        ...

    def has(self, digests: Iterable[str]) -> set[str]:
        """Return those of the digests that are stored, without reading their bytes."""
        ...

    def list(self) -> Iterator[Blob]:
        """Walk all blobs, by digest."""
        ...

    def delete(self, digests: Iterable[str]) -> None:
        """Remove blobs; a missing one is no error."""
        ...


def checked_digest(digest: str) -> str:
    """Return a digest as it is.

    Raises:
        ConfigurationError: it is not 64 lower-case hex digits.
    """
    if not _DIGEST.fullmatch(digest):
        raise ConfigurationError(
            "not a blob's name", got=repr(digest), expected="64 lower-case hex digits of a SHA-256"
        )
    return digest
