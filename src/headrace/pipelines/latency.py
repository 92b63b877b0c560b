"""Measure how long predictions take: with the machine's clock, or in a replay from a seeded model that says so."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from headrace.serving.record import MODELLED

MEDIAN_US, SIGMA = 250.0, 0.35  # lognormal; near what one prediction takes on one core of a small server
BLOCK = 4096


class MeasuredStopwatch:
    """Measure with the machine's monotonic clock."""

    flag = 0

    def start(self) -> int:
        """Begin."""
        return time.perf_counter_ns()

    def stop(self, started: int) -> float:
        """Return the microseconds since the beginning."""
        return (time.perf_counter_ns() - started) / 1_000


class ModelledStopwatch:
    """Draw latencies from a lognormal distribution; equal seeds and counts give equal latencies."""

    flag = MODELLED

    def __init__(self, seed: int, drawn: int = 0) -> None:
        self.seed, self.drawn = seed, drawn
        self._block: list[float] = []

    def start(self) -> int:
        """Begin; a model needs no beginning."""
        return 0

    def stop(self, started: int) -> float:
        """Return the next latency in microseconds."""
        place = self.drawn % BLOCK
        if place == 0 or not self._block:
            rng = np.random.default_rng([self.seed, self.drawn // BLOCK])
            self._block = rng.lognormal(np.log(MEDIAN_US), SIGMA, BLOCK).tolist()
        self.drawn += 1
        return self._block[place]

    def percentiles(self) -> Mapping[str, float]:
        """Return the model's own p50, p95 and p99 in microseconds."""
        normal = {"p50": 0.0, "p95": 1.6448536269514722, "p99": 2.3263478740408408}
        return {name: float(MEDIAN_US * np.exp(SIGMA * z)) for name, z in normal.items()}
