"""Give folders for files that are there only while something is computed, and clear away what killed processes left."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from headrace.storage.locks import take_lock

PREFIX, LOCK, FILES = "headrace-work-", "lock", "files"


@contextmanager
def work_in(parent: Path | None) -> Iterator[Path]:
    """Give an empty folder in another one, which must exist (None: the system's for temporary files), for a `with` block.

    It is removed at the end. What processes left that were killed is removed before; what living ones use stays.
    """
    with _guarded(parent) as folder:
        mine = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder))
        lock = take_lock(mine / LOCK, RuntimeError)
    try:
        (mine / FILES).mkdir()
        yield mine / FILES
    finally:
        try:
            shutil.rmtree(mine)
        finally:
            os.close(lock)


def clear_work(parent: Path) -> None:
    """Remove what processes left in a folder that were killed."""
    with _guarded(parent):
        pass


@contextmanager
def _guarded(parent: Path | None) -> Iterator[Path]:
    """Keep others from making folders for a moment, and remove those whose process is gone."""
    if parent is None:
        yield Path(tempfile.gettempdir())
        return
    guard = os.open(parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(guard, fcntl.LOCK_EX)
        for left in parent.glob(f"{PREFIX}*"):
            with suppress(BlockingIOError):
                lock = take_lock(left / LOCK, BlockingIOError)
                try:
                    shutil.rmtree(left)
                finally:
                    os.close(lock)
        yield parent
    finally:
        os.close(guard)
