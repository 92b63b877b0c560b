"""Keep a bounded number of buckets on their way, and hand on their answers in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_order(
    total: int, ahead: int, start: Callable[[int], T], finish: Callable[[int, T], R], drop: Callable[[T], object]
) -> Iterator[R]:
    """Yield `finish(place, start(place))` for each place, with up to `ahead` started and not yet finished.

    What was started and is not wanted any more, since something raised or nobody asks on, is dropped.
    """
    waiting: deque[tuple[int, T]] = deque()
    following = 0
    try:
        while waiting or following < total:
            while following < total and len(waiting) < ahead:
                waiting.append((following, start(following)))
                following += 1
            place, begun = waiting.popleft()
            yield finish(place, begun)
    finally:
        for _, begun in waiting:
            drop(begun)
