"""Write the heads of many keys at once, the same bytes as one event after the other would leave."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headrace.features.lanes import HEAD, NEVER, Chunks

Ints = NDArray[np.int64]
WORDS = HEAD.size // 8


def holds_at_once(chunks: Chunks) -> int:
    """Return up to how many events a head holds without blocks."""
    return (chunks.limit - 1) // chunks.event


def heads_of(chunks: Chunks, events: Ints, counts: Ints) -> list[bytes]:
    """Return the heads of keys that have so many events each, of all that stand one behind the other as rows of words.

    Empty where a key has no events, or more than a head holds.
    """
    keys, width = len(counts), events.shape[1]
    of, number = np.repeat(np.arange(keys), counts), np.arange(len(events))
    words = np.empty(WORDS * keys + events.size, np.int64)
    starts = WORDS * np.arange(keys) + width * (np.cumsum(counts) - counts)
    newest = np.full(keys, NEVER)
    np.maximum.at(newest, of, events[:, 1])
    head: tuple[int | Ints, ...] = chunks.marks, counts, newest, NEVER, 1
    for place, value in enumerate(head):
        words[starts + place] = value
    words[(WORDS * (of + 1) + width * number)[:, None] + np.arange(width)] = events
    joined, held = words.tobytes(), (counts > 0) & (counts <= holds_at_once(chunks))
    ends = starts + WORDS + width * counts
    spans = zip((8 * starts).tolist(), (8 * ends).tolist(), held.tolist(), strict=True)
    return [joined[begin:end] if whole else b"" for begin, end, whole in spans]
