"""Keep blobs as local files, `ab/cdef…` for the digest `abcdef…`."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from headrace.core.errors import Corrupt, DataError, Unavailable
from headrace.core.failpoints import reach
from headrace.storage.blobs.protocol import Blob, Capabilities, checked_digest
from headrace.storage.paths import inside, private_file, private_folder, sync_folder, write_all

PIECE = 1 << 20
INCOMING = "incoming"


class FileBlobs:
    """Implement the store in a folder; any number of processes may use it."""

    def __init__(self, location: str) -> None:
        self._root = Path(location)

    @property
    def capabilities(self) -> Capabilities:
        """Return what this backend can do."""
        return Capabilities(several_hosts=False)

    def put(self, source: bytes | Path) -> Blob:
        """Store bytes, or a file's content read in pieces."""
        try:
            incoming = private_folder(self._root / INCOMING)
            # Unique among live writers; what a killed one left is overwritten once its number comes round again.
            temporary = incoming / f"{os.getpid()}-{threading.get_ident()}"
            try:
                blob = _copy(_pieces(source), temporary)
                self._publish(blob, temporary)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise Unavailable(
                "the blob could not be stored", where=self._where, got=error, next_step="headrace doctor"
            ) from error
        return blob

    def get(self, digest: str) -> bytes:
        """Return a blob's bytes, verified."""
        path = self._path(digest)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise DataError("no such blob", where=self._where, got=digest, next_step="headrace audit") from None
        except OSError as error:
            raise Unavailable("the blob could not be read", where=self._where, got=error) from error
        with os.fdopen(descriptor, "rb") as file:
            data = file.read()
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            raise Corrupt(
                "a blob's bytes are not those that were stored",
                where=str(path),
                got=f"{found}, {len(data)} bytes",
                expected=digest,
                next_step="restore it from a backup, or register the version again",
            )
        return data

    def has(self, digests: Iterable[str]) -> set[str]:
        """Return those of the digests that are stored, without reading their bytes."""
        return {digest for digest in digests if self._path(digest).is_file()}

    def list(self) -> Iterator[Blob]:
        """Walk all blobs, by digest."""
        if not self._root.is_dir():
            return
        for folder in sorted(self._root.iterdir()):
            if len(folder.name) == 2 and folder.is_dir():
                for path in sorted(folder.iterdir()):
                    yield Blob(folder.name + path.name, path.lstat().st_size)

    def delete(self, digests: Iterable[str]) -> None:
        """Remove blobs; a missing one is no error."""
        for digest in digests:
            path = self._path(digest)
            with suppress(FileNotFoundError):
                path.unlink()
                sync_folder(path.parent)

    @property
    def _where(self) -> str:
        return f"file:{self._root}"

    def _path(self, digest: str) -> Path:
        checked_digest(digest)
        return inside(self._root, f"{digest[:2]}/{digest[2:]}")

    def _publish(self, blob: Blob, temporary: Path) -> None:
        """Give complete bytes their name; a damaged blob of that name is repaired, since the name fixes the bytes."""
        path = self._path(blob.digest)
        shelf = private_folder(path.parent)
        reach("blobs.before_rename")
        os.rename(temporary, path)
        sync_folder(shelf)
        sync_folder(self._root)
        reach("blobs.after_rename")


def _pieces(source: bytes | Path) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    try:
        with source.open("rb") as file:
            while piece := file.read(PIECE):
                yield piece
    except OSError as error:
        raise DataError("the file cannot be read", where=str(source), got=error) from error


def _copy(pieces: Iterator[bytes], temporary: Path) -> Blob:
    digest, size = hashlib.sha256(), 0
    with private_file(temporary) as descriptor:
        for piece in pieces:
            write_all(descriptor, piece)
            digest.update(piece)
            size += len(piece)
        os.fsync(descriptor)
    return Blob(digest.hexdigest(), size)
