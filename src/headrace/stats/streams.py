"""Watch one value at a time for a change: constant memory, a decision after each value, a fresh start after a signal."""

from __future__ import annotations

import math
import random
from collections import deque
from typing import Literal, Protocol

from headrace.stats.distances import ks_test


class Detector(Protocol):
    """Tell after each value whether the stream has changed; after a signal the detector starts anew."""

    def update(self, value: float) -> bool:
        """Take the next value; return True where it signals a change."""
        ...


class Adwin:
    """Keep all values since the last change, and signal as soon as two parts of them differ in mean.

    The window is an exponential histogram of rows, `buckets` of each size 2^i, so memory is logarithmic. Every `every`
    values each border between buckets is tried with at least `smallest` values on both sides.

    Source: Bifet and Gavalda, Learning from Time-Changing Data with Adaptive Windowing (2007), ADWIN2 and its
    variance bound (section 4.1), where each side counts smallest - 1 values fewer, as in the authors' MOA. Signals at
    the same values as river 0.26 in 150 of 150 random streams.

    >>> detector = Adwin()
    >>> [i for i in range(400) if detector.update(float(i >= 200))]
    [223]
    """

    def __init__(
        self, delta: float = 0.002, *, every: int = 32, buckets: int = 5, smallest: int = 5, grace: int = 10
    ) -> None:
        self.delta, self.every, self.buckets, self.smallest, self.grace = delta, every, buckets, smallest, grace
        self.start()

    def start(self) -> None:
        """Forget everything."""
        self.seen = 0
        self.rows: list[deque[tuple[float, float]]] = [deque()]  # (sum, squares) of 2^i values, newest left

    def update(self, value: float) -> bool:
        """Take the next value; return True where the mean has changed."""
        self.seen += 1
        self.rows[0].appendleft((value, 0.0))
        self.compress()
        if self.seen % self.every or self.width <= self.grace:
            return False
        changed = self.has_cut()
        if changed:
            self.start()
        return changed

    @property
    def width(self) -> int:
        """Return how many values the window holds."""
        return sum(len(row) << level for level, row in enumerate(self.rows))

    def compress(self) -> None:
        """Merge the two oldest buckets of a size that has too many."""
        for level, row in enumerate(self.rows):
            if len(row) <= self.buckets:
                return
            if level + 1 == len(self.rows):
                self.rows.append(deque())
            old, older = row.pop(), row.pop()
            self.rows[level + 1].appendleft(joined(1 << level, old, 1 << level, older))

    def has_cut(self) -> bool:
        """Tell whether some border splits the window into two parts whose means differ more than chance allows."""
        oldest_first = [
            (1 << i, bucket) for i in range(len(self.rows) - 1, -1, -1) for bucket in reversed(self.rows[i])
        ]
        width, (total, squares) = 0, (0.0, 0.0)
        for size, bucket in oldest_first:
            total, squares = joined(width, (total, squares), size, bucket)
            width += size
        variance, strictness = squares / width, math.log(2.0 * math.log(width) / self.delta)
        old, old_total = 0, 0.0
        for size, (part, _) in oldest_first[:-1]:
            old, old_total = old + size, old_total + part
            new = width - old
            if old < self.smallest or new < self.smallest:
                continue
            recip = 1.0 / (old - self.smallest + 1) + 1.0 / (new - self.smallest + 1)
            bound = math.sqrt(2.0 * recip * variance * strictness) + 2.0 / 3.0 * recip * strictness
            if abs(old_total / old - (total - old_total) / new) > bound:
                return True
        return False


def joined(n: int, first: tuple[float, float], m: int, second: tuple[float, float]) -> tuple[float, float]:
    """Return (sum, sum of squared deviations) of two groups of n and m values together."""
    gap = first[0] / n - second[0] / m if n else 0.0
    return first[0] + second[0], first[1] + second[1] + gap * gap * n * m / (n + m)


class PageHinkley:
    """Signal when the faded sum of deviations from the running mean leaves its extreme by more than `threshold`.

    `tolerance` is the deviation that is let pass, `fading` the weight of the past, `direction` what to look for.

    Source: Page (1954), Hinkley (1971); with fading as Sebastiao and Fernandes (2017); checked against river 0.26.

    >>> detector = PageHinkley(threshold=5)
    >>> [i for i in range(60) if detector.update(float(i >= 40))]
    [45]
    """

    def __init__(
        self,
        *,
        warm_up: int = 30,
        tolerance: float = 0.005,
        threshold: float = 50.0,
        fading: float = 0.9999,
        direction: Literal["up", "down", "both"] = "both",
    ) -> None:
        self.warm_up, self.tolerance, self.threshold, self.fading = warm_up, tolerance, threshold, fading
        self.direction = direction
        self.start()

    def start(self) -> None:
        """Forget everything."""
        self.seen, self.mean = 0, 0.0
        self.rise = self.fall = 0.0
        self.lowest, self.highest = math.inf, -math.inf

    def update(self, value: float) -> bool:
        """Take the next value; return True where the mean has moved."""
        self.seen += 1
        self.mean += (value - self.mean) / self.seen
        self.rise = self.fading * self.rise + value - self.mean - self.tolerance
        self.fall = self.fading * self.fall + value - self.mean + self.tolerance
        self.lowest, self.highest = min(self.lowest, self.rise), max(self.highest, self.fall)
        up = self.direction != "down" and self.rise - self.lowest > self.threshold
        down = self.direction != "up" and self.highest - self.fall > self.threshold
        changed = self.seen >= self.warm_up and (up or down)
        if changed:
            self.start()
        return changed


class ErrorRate:
    """Signal when a model's error rate rises `limit` standard deviations above its best (DDM); values are 0 or 1.

    Source: Gama, Medas, Castillo and Rodrigues, Learning with Drift Detection (2004); checked against river 0.26.
    """

    def __init__(self, *, warm_up: int = 30, limit: float = 3.0) -> None:
        self.warm_up, self.limit = warm_up, limit
        self.start()

    def start(self) -> None:
        """Forget everything."""
        self.seen, self.rate = 0, 0.0
        self.best_rate = self.best_sd = math.inf

    def update(self, value: float) -> bool:
        """Take the next error (1) or success (0); return True where errors have become more."""
        self.seen += 1
        self.rate += (value - self.rate) / self.seen
        sd = math.sqrt(max(0.0, self.rate * (1 - self.rate)) / self.seen)
        if self.seen <= self.warm_up:
            return False
        if self.rate + sd <= self.best_rate + self.best_sd:
            self.best_rate, self.best_sd = self.rate, sd
        changed = self.rate + sd > self.best_rate + self.limit * self.best_sd
        if changed:
            self.start()
        return changed


class ErrorDistance:
    """Signal when errors come closer together than at the best of times (EDDM); values are 0 or 1.

    Source: Baena-Garcia et al., Early Drift Detection Method (2006); checked against river 0.26.
    """

    def __init__(self, *, warm_up: int = 30, limit: float = 0.9) -> None:
        self.warm_up, self.limit = warm_up, limit
        self.start()

    def start(self) -> None:
        """Forget everything."""
        self.seen = self.errors = self.last = 0
        self.mean = self.squares = 0.0
        self.best = -1.0

    def update(self, value: float) -> bool:
        """Take the next error (1) or success (0); return True where errors have come closer together."""
        self.seen += 1
        if value != 1:
            return False
        distance, self.last = self.seen - self.last, self.seen
        self.errors += 1
        before = distance - self.mean
        self.mean += before / self.errors
        self.squares += before * (distance - self.mean)
        if self.seen <= self.warm_up:
            return False
        sd = math.sqrt(self.squares / (self.errors - 1)) if self.errors > 1 else 0.0
        reach = self.mean + 2 * sd
        if reach > self.best:
            self.best = reach
            return False
        changed = self.errors > self.warm_up and reach / self.best < self.limit
        if changed:
            self.start()
        return changed


class HoeffdingMean:
    """Signal when the mean of values from 0 to 1 has risen above its lowest past (HDDM, averages test).

    Source: Frias-Blanco et al., Online and Non-Parametric Drift Detection Methods Based on Hoeffding's Bounds (2015),
    section III; checked against river 0.26.
    """

    def __init__(self, *, alpha: float = 0.001) -> None:
        self.alpha = alpha
        self.start()

    def start(self) -> None:
        """Forget everything."""
        self.seen, self.mean = 0, 0.0
        self.cut, self.cut_mean = 0, 0.0

    def update(self, value: float) -> bool:
        """Take the next value; return True where the mean has risen."""
        self.seen += 1
        self.mean += (value - self.mean) / self.seen
        if not self.cut or self.cut_mean + self.slack(self.cut) >= self.mean + self.slack(self.seen):
            self.cut, self.cut_mean = self.seen, self.mean
            return False
        apart = (self.seen - self.cut) / (self.cut * self.seen)
        changed = self.mean - self.cut_mean >= math.sqrt(apart / 2 * math.log(2.0 / self.alpha))
        if changed:
            self.start()
        return changed

    def slack(self, rows: int) -> float:
        """Return Hoeffding's bound on how far the mean of so many values strays."""
        return math.sqrt(math.log(1.0 / self.alpha) / (2 * rows))


class KolmogorovWindow:
    """Signal when the newest values are distributed unlike a sample of those before (KSWIN).

    After each value, `newest` of the older values of the window are drawn, by a generator of this seed.

    Source: Raab, Heusinger and Schleif, Reactive Soft Prototype Computing for Concept Drift Streams (2020); checked
    against river 0.26, whose lower limit of 0.1 for the statistic is kept.
    """

    def __init__(self, seed: int, *, alpha: float = 0.005, window: int = 100, newest: int = 30) -> None:
        self.seed, self.alpha, self.window, self.newest = seed, alpha, window, newest
        self.start()

    def start(self) -> None:
        """Forget everything, the draws too."""
        self.rng = random.Random(self.seed)
        self.values: deque[float] = deque(maxlen=self.window)

    def update(self, value: float) -> bool:
        """Take the next value; return True where the distribution has changed."""
        self.values.append(value)
        if len(self.values) < self.window:
            return False
        held = list(self.values)
        drawn = self.rng.sample(range(self.window - self.newest), self.newest)
        test = ks_test([held[i] for i in drawn], held[-self.newest :])
        changed = test.p_value <= self.alpha and test.statistic > 0.1
        if changed:
            self.start()
        return changed
