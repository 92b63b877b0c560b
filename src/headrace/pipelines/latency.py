"""Measure how long predictions take: with the machine's clock, or in a replay from a seeded model that says so."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from headrace.core.errors import DataError
from headrace.features.moment import open_read
from headrace.features.online import OnlineFeatures
from headrace.features.stream import DATABASE, StreamPath
from headrace.pipelines.project import Project
from headrace.pipelines.reveals import first_reveals
from headrace.pipelines.stores import Stores
from headrace.serving.record import MODELLED

MEDIAN_US, SIGMA = 250.0, 0.35  # lognormal; near what one prediction takes on one core of a small server
BLOCK = 4096
TIMED_ROWS = 300


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


def measure_reads(project: Project, stores: Stores) -> Mapping[str, float]:
    """Measure what one prediction's features take on this machine: p50, p95 and p99 in microseconds over stored rows.

    Nothing is measured where a query computes features: no prediction can ask for them.

    Raises:
        DataError: nothing was ingested yet.
    """
    plan = project.plan
    if plan.queried:
        return {}
    source = plan.rows if plan.grid is None else plan.grid.source
    table = first_reveals(stores.tables, source, TIMED_ROWS)
    absent = [None] * table.num_rows
    columns = [table[c.name].to_pylist() if c.name in table.column_names else absent for c in plan.row]
    rows = list(zip(*columns, strict=True))
    reader, spent = OnlineFeatures(plan), []
    with stores.online.read() as snapshot:
        t = (StreamPath.newest(snapshot.getter(DATABASE)) or 0) + 1
        for row in rows:
            began = time.perf_counter_ns()
            get, at = open_read(stores.online, snapshot, reader, [row], t, now=t)
            reader.read(get, row, at)
            spent.append((time.perf_counter_ns() - began) / 1_000)
    if not spent:
        raise DataError("no rows to measure latency on", got=source.name, next_step="headrace run")
    return {name: float(np.percentile(spent, q)) for name, q in (("p50", 50), ("p95", 95), ("p99", 99))}
