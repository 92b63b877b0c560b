"""Turn names from outside into paths inside a root folder, and write files so that they exist whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from headrace.core.errors import ConfigurationError
from headrace.core.failpoints import reach

FILE_MODE = 0o600
FOLDER_MODE = 0o700
MAX_NAME_BYTES = 255


def inside(root: Path, name: str) -> Path:
    """Return the path of `name` below `root`, whether it exists or not.

    >>> inside(Path("state"), "a/b").as_posix()
    'state/a/b'

    Raises:
        ConfigurationError: the name is empty or absolute, has a part that is `..`, hidden, too long or not printable, or
            passes through a symbolic link.
    """
    path = root
    for part in plain_parts(name, root):
        path = path / part
        if path.is_symlink():
            raise _escape(root, name, "no symbolic link on the way")
    return path


def plain_parts(name: str, root: object) -> tuple[str, ...]:
    """Return the parts of a relative name, which lead nowhere but below `root`.

    Raises:
        ConfigurationError: the name is empty or absolute, or has a part that is `..`, hidden, too long or not printable.
    """
    parts = PurePosixPath(name).parts
    bad = not parts or "\\" in name or not name.isprintable() or name != "/".join(parts)
    if bad or any(part.startswith(".") or "/" in part or len(part.encode()) > MAX_NAME_BYTES for part in parts):
        raise _escape(root, name, "a relative name of plain parts")
    return parts


def private_folder(path: Path) -> Path:
    """Create a folder that only its owner can enter, with its parents; an existing one is left as it is."""
    if not path.is_dir():
        private_folder(path.parent)
        with suppress(FileExistsError):
            path.mkdir(mode=FOLDER_MODE)
    return path


def write_atomically(path: Path, data: bytes, *, temporary: Path, failpoint: str) -> None:
    """Write a file so that after a crash at any moment it holds all of `data` or does not exist under its name.

    `temporary` must lie on the same file system; it is replaced if it exists.
    """
    with private_file(temporary) as descriptor:
        write_all(descriptor, data)
        os.fsync(descriptor)
    reach(f"{failpoint}.before_rename")
    os.rename(temporary, path)
    sync_folder(path.parent)
    reach(f"{failpoint}.after_rename")


@contextmanager
def private_file(path: Path) -> Iterator[int]:
    """Create an empty file that only its owner can read, and give its descriptor for the length of a `with` block."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, FILE_MODE)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all bytes; the system may take fewer at a time."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def folder_bytes(path: Path) -> int:
    """Return the bytes on disk of all files below a folder; files that vanish meanwhile count as nothing."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return total


def _escape(root: object, name: str, expected: str) -> ConfigurationError:
    return ConfigurationError(
        "a name that would leave its folder", where=str(root), got=repr(name), expected=expected, next_step="rename it"
    )
