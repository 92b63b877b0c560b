"""Share work between threads, where what it calls lets go of the interpreter."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Part = TypeVar("Part")
Result = TypeVar("Result")


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0))


def in_threads(work: Callable[[Part], Result], parts: Sequence[Part], threads: int) -> list[Result]:
    """Return what `work` makes of each part, in their order; no thread is started for a single part.

    Raises:
        Exception: what `work` raised of the first part that failed.

    >>> in_threads(len, ["a", "bc", ""], threads=2)
    [1, 2, 0]
    """
    if threads < 2 or len(parts) < 2:
        return [work(part) for part in parts]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, parts))


def parted(rows: int, threads: int) -> list[slice]:
    """Return as many spans of rows as there are threads, about as long as each other.

    >>> parted(5, threads=2)
    [slice(0, 2, None), slice(2, 5, None)]
    """
    return [slice(rows * i // threads, rows * (i + 1) // threads) for i in range(threads)]
