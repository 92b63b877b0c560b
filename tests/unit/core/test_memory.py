"""Free memory goes back to the system, unless little was worked on."""

from __future__ import annotations

import resource
from pathlib import Path

from headrace.core.memory import WORTH, give_back

PIECES, BYTES = 4_000, 32_000  # small enough to come from the heap


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_memory_below_what_is_still_held_is_given_back() -> None:
    pieces = [b"x" * BYTES for _ in range(PIECES)]
    held = pieces[-1]  # the heap ends behind it, so nothing before it goes back on its own
    before = resident()
    del pieces
    give_back(WORTH - 1)
    kept = resident()
    give_back()
    assert before - kept < PIECES * BYTES // 4 < PIECES * BYTES // 2 < kept - resident()
    assert len(held) == BYTES
