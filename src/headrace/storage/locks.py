"""Keep a folder to one process, for as long as it lives."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path


def take_lock(file: Path, refusal: Callable[[str], Exception]) -> int:
    """Lock a file, made where it is missing, until the returned descriptor is closed or this process dies.

    It holds this process's number for whoever finds it locked.

    Raises:
        Exception: what `refusal` makes of the number of the process that holds the lock ("" if it left none).
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise refusal(holder) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
