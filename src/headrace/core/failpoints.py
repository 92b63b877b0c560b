"""Make named points in the code fail on demand, so that tests can kill the process between any two effects.

`HEADRACE_FAILPOINTS` holds comma-separated entries `name:action[:hit]`. The actions are `kill` (SIGKILL to this
process), `raise` (an `OSError` with EIO, as a failing disk gives) and `sleep` (one second, or `sleep=0.2`). With `hit`
the point acts on exactly that hit, counted from 1, else on every one.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

from headrace.core.errors import ConfigurationError

VARIABLE = "HEADRACE_FAILPOINTS"
ACTIONS = ("kill", "raise", "sleep")


@dataclass(frozen=True)
class Failpoint:
    """Hold what one point does, and on which hit (None: on every one)."""

    name: str
    action: str
    seconds: float = 1.0
    hit: int | None = None
    hits: Iterator[int] = field(default_factory=lambda: count(1), compare=False)

    def act(self) -> None:
        """Count a hit and do what the point asks for."""
        if self.hit is not None and next(self.hits) != self.hit:
            return
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.action == "raise":
            raise OSError(errno.EIO, f"failpoint {self.name}")
        time.sleep(self.seconds)


def parse(text: str) -> dict[str, Failpoint]:
    """Read the text of `HEADRACE_FAILPOINTS`.

    >>> parse("ledger.commit:kill:3")["ledger.commit"].hit
    3

    Raises:
        ConfigurationError: an entry is malformed.
    """
    points = [_entry(entry.strip()) for entry in text.split(",") if entry.strip()]
    return {point.name: point for point in points}


def _entry(text: str) -> Failpoint:
    name, _, rest = text.partition(":")
    action, _, hit = rest.partition(":")
    action, _, seconds = action.partition("=")
    try:
        point = Failpoint(name, action, float(seconds or 1.0), int(hit) if hit else None)
    except ValueError:
        point = Failpoint("", action)
    if not point.name or action not in ACTIONS or (seconds and action != "sleep"):
        raise ConfigurationError(
            "a malformed failpoint",
            where=VARIABLE,
            got=text,
            expected="name:kill, name:raise or name:sleep=SECONDS, then :N for the N-th hit only",
            next_step=f"unset {VARIABLE}",
        )
    return point


_points: dict[str, Failpoint] | None = parse(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None


def reach(name: str) -> None:
    """Mark that the code has reached a point; it does nothing (in under 100 ns) unless the point is armed.

    Raises:
        OSError: the point is armed with `raise`.
    """
    if _points is None:
        return
    point = _points.get(name)
    if point is not None:
        point.act()


@contextmanager
def armed(text: str) -> Iterator[None]:
    """Arm points in this process for the length of a `with` block; the text is that of `HEADRACE_FAILPOINTS`.

    >>> with armed("demo:raise:2"):
    ...     reach("demo")
    ...     try:
    ...         reach("demo")
    ...     except OSError as error:
    ...         print(error.strerror)
    failpoint demo
    """
    global _points
    before = _points
    _points = parse(text)
    try:
        yield
    finally:
        _points = before
