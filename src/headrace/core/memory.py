"""Give memory that is free back to the system: allocators keep what they may need again, with many threads for each of them."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

WORTH = 16_000_000  # bytes that were worked on, from which on it is worth milliseconds


def give_back(worked_on: int = WORTH) -> None:
    """Give back what Arrow's allocator and the C library hold free, unless only a little was worked on (bytes)."""
    if worked_on < WORTH:
        return
    import pyarrow as pa

    pa.default_memory_pool().release_unused()
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Any:
    """Return glibc's malloc_trim; other C libraries have none."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
