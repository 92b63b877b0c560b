"""Measure one training set on every engine: seconds, their ratio to this process, and how much memory it took.

python bench/engines.py [--rows N] [--buckets N] [--json] [URL ...]

The results are compared bit for bit. An engine's start and its first training set, in which workers start and Java warms up, are
told apart from the second, whose seconds are compared: a cluster is warm. Memory is the largest sampled resident size of the
process and all its descendants together; pages that they share count for each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import headrace as hr
from headrace.core.time import DAY, HOUR, MINUTE, Instant
from headrace.engines import open_engine
from headrace.features.buckets import Spread
from headrace.features.plan import plan_dataset
from headrace.features.training_set import training_set
from headrace.sources.definition import definition_of
from headrace.sources.plan import expand

URLS = ["local:", "local:processes=2", "ray:cpus=2", "spark:master=local[2]"]
START = int(Instant.parse("2024-01-01"))
SEED, STORES, SPAN = 7, 500, 60 * DAY


class Orders(hr.Source):
    order: hr.Column[int] = hr.row_id()
    placed: hr.Column[hr.Instant] = hr.event_time()
    store: hr.Column[int] = hr.entity()
    delivered: hr.Column[hr.Instant] = hr.column()
    hours: hr.Column[float] = hr.column(known_at=delivered)


class Store(hr.FeatureGroup, of=Orders, entity=Orders.store):
    hours = hr.mean(Orders.hours).over("6h", "1d", "7d", "30d")
    spread = hr.stddev(Orders.hours).over("1d", "7d")
    worst = hr.max(Orders.hours).over("1d", "7d")
    orders = hr.count().over("1d", "7d", "lifetime")


PLAN = plan_dataset(hr.Dataset(rows=Orders, at=Orders.placed, features=[Store], label=Orders.hours > 24, mature="4d"))


@dataclass(frozen=True)
class Row:
    """Hold one engine's figures."""

    engine: str
    start_s: float
    first_s: float
    seconds: float
    mb: float
    digest: str


def made(rows: int) -> pa.Table:
    """Return the reveals of seeded orders, hot stores among them."""
    rng = np.random.default_rng(SEED)
    placed = START + np.sort(rng.integers(0, SPAN // MINUTE, rows)) * MINUTE
    hours = np.round(rng.lognormal(2.6, 0.4, rows), 2)
    store = np.minimum(rng.zipf(1.3, rows), STORES)
    columns = {"order": np.arange(rows), "placed": placed, "store": store}
    table = pa.table(columns | {"delivered": placed + (hours * HOUR).astype(np.int64), "hours": hours})
    return expand(definition_of(Orders), table).table


class Memory:
    """Sample how much memory this process and its descendants hold together."""

    def __init__(self) -> None:
        self.largest, self.done = 0.0, threading.Event()
        self.thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Memory:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.done.wait(0.1):
            self.largest = max(self.largest, _resident())


def _resident() -> float:
    """Return the megabytes of this process and all below it."""
    parents: dict[int, list[int]] = {}
    sizes: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(entry.name))
        sizes[int(entry.name)] = int(fields[21]) * resource.getpagesize()
    found, waiting = 0, [os.getpid()]
    while waiting:
        pid = waiting.pop()
        found += sizes.get(pid, 0)
        waiting += parents.get(pid, [])
    return found / 1e6


def measure(url: str, rows: int, buckets: int) -> Row:
    """Return one engine's figures, in this process."""
    reveals = {"Orders": made(rows)}
    settings: dict[str, Any] = {"bucket_rows": -(-reveals["Orders"].num_rows // buckets)}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, open_engine(url) as engine, Memory() as memory:
        started = time.perf_counter()
        spread = Spread(engine, Path(folder), **settings)
        training_set(PLAN, reveals, as_of=START + SPAN, spread=spread)
        warm = time.perf_counter()
        found = training_set(PLAN, reveals, as_of=START + SPAN, spread=spread)
        ended = time.perf_counter()
    sink = hashlib.sha256(found.label.tobytes())
    for column in found.features.columns:
        sink.update(np.nan_to_num(column.to_numpy(), nan=-1.5).astype(np.float64).tobytes())
    return Row(url, started - began, warm - started, ended - warm, memory.largest, sink.hexdigest()[:16])


def main() -> None:
    """Measure each engine in a process of its own and print the figures beside the first engine's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("urls", nargs="*", default=URLS)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--buckets", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(asdict(measure(given.urls[0], given.rows, given.buckets))))
        return
    base = [sys.executable, __file__, "--one", "--rows", str(given.rows)]
    found = []
    for url, buckets in [(given.urls[0], 1), *((url, given.buckets) for url in given.urls)]:
        command = [*base, "--buckets", str(buckets), url]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append({"buckets": buckets} | json.loads(done.stdout.splitlines()[-1]))
    if len({row["digest"] for row in found}) > 1:
        raise SystemExit(f"the results differ: {found}")
    for row in found:
        row["ratio"] = row["seconds"] / found[0]["seconds"]
    if given.json:
        print(json.dumps({"rows": given.rows, "cores": os.cpu_count(), "engines": found}, indent=2))
        return
    print(f"{given.rows:,} orders, {os.cpu_count()} cores, the same bits everywhere ({found[0]['digest']})")
    for row in found:
        cold = f"{row['start_s']:6.1f} s to start {row['first_s']:6.1f} s at first"
        told = f"{cold} {row['seconds']:8.2f} s then {row['ratio']:6.2f}x {row['mb']:8,.0f} MB"
        print(f"{row['engine']:<24}{row['buckets']:>4} buckets {told}")


if __name__ == "__main__":
    main()
