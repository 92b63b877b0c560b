"""Measure the feature store beside Feast and the bare limits: python bench/feature_store.py [--rows small|full] [--json].

Every row of the table is one workload of one seeded data set (`store_data.py`), in the same run: ours (`store_ours.py`), what the
storage or a query engine alone takes (`store_limits.py`), and Feast. Ours and the limit run in a process each and take turns;
figures are medians of the repeats, ratios are ours over the limit's, below 1 where ours is quicker. Feast is measured once, after
them, by its own scripts where they lie (`--peers`), when `.peers/feast` exists or `--install-peers` makes it. Memory is the most
that a side's process held, with its data; CPU seconds are those of a process in a repeat, all its threads together. Redis runs on
loopback, a server for each side. Nothing is asserted. `small` leaves out the join of 1M labels x 10M rows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import store_feast
from store_data import written

HERE = Path(__file__).parent
LIBRARIES = ("headrace", "lmdb", "duckdb", "numpy", "pyarrow", "deltalake")
FULL = ("join_l",)
ALONE = ("parity",)  # no limit stands beside them

# Case, workload, what it is, unit, whether more is better.
CASES = (
    ("1x10", "online", "online, 1 entity x 10, to a dictionary", "µs", False),
    ("1x50", "online", "online, 1 x 50 of 3 groups, to a dictionary", "µs", False),
    ("100x50", "online", "online, 100 x 50, to NumPy", "µs", False),
    ("redis_1x10", "redis", "Redis, 1 entity x 10, to a dictionary", "µs", False),
    ("redis_1x50", "redis", "Redis, 1 x 50 of 3 groups, to a dictionary", "µs", False),
    ("redis_100x50", "redis", "Redis, 100 x 50, to NumPy", "µs", False),
    ("http", "http", "over HTTP, 1 x 50, one connection", "µs", False),
    ("http_rate", "http", "over HTTP, 1 x 50, eight connections", "/s", True),
    ("join_s", "join_s", "join, 100k labels x 1M rows x 10", "s", False),
    ("join_s_dask", "join_s", "the same, Feast by dask, not by duckdb", "s", False),
    ("join_l", "join_l", "join, 1M labels x 10M rows x 10", "s", False),
    ("windows_u", "windows_u", "windows, 100k labels x 10M events, in memory", "s", False),
    ("windows_z", "windows_z", "the same, Zipf's law", "s", False),
    ("tables_u", "tables_u", "the same from tables, uniform keys", "s", False),
    ("tables_z", "tables_z", "the same from tables, Zipf's law", "s", False),
    ("read", "reads", "windowed read, 333 events, 28 outputs", "µs", False),
    ("redis_read", "redis_reads", "Redis, windowed read, 333 events", "µs", False),
    ("event", "events", "event to windows, without its commit", "µs", False),
    ("durable", "events", "event to windows, a durable commit each", "µs", False),
    ("batch", "events", "events, 1,000 to a commit", "/s", True),
    ("bulk", "events", "events, 10,000 to a commit", "/s", True),
    ("materialize", "materialize", "materialize 1M x 10", "rows/s", True),
    ("redis_materialize", "redis_materialize", "materialize 1M x 10 to Redis", "rows/s", True),
    ("size", "materialize", "the store's size, a row of 10", "B", False),
    ("redis_size", "redis_materialize", "Redis' memory, a row of 10", "B", False),
    ("compared", "parity", "windows read online, compared with offline", "", True),
    ("differing", "parity", "of them other than offline, in any bit", "", False),
)
TWICE = {"join_s_dask": "join_s"}  # what Feast does in two ways and the others in one

Row = dict[str, Any]


class Side:
    """Speak with one side's process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def repeat(self) -> dict[str, float]:
        """Run a repeat and return its figures."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, float]:
        """Return the next line of figures.

        Raises:
            SystemExit: the process ended; its error stands above.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a side's process ended")
        found: dict[str, float] = json.loads(line)
        return found


@contextmanager
def side(name: str, workload: str) -> Iterator[Side]:
    """Run one side in a process of its own."""
    command = [sys.executable, str(HERE / "store_side.py"), name, workload]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            found = Side(process)
            found.answer()
            yield found
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)


def measure(workload: str, repeats: int) -> dict[str, dict[str, float]]:
    """Return the sides' medians of a workload, repeats taken in turns; the first is not counted."""
    taken: dict[str, list[dict[str, float]]] = {"ours": []}
    if workload not in ALONE:
        taken["limit"] = []
    with ExitStack() as stack:
        sides = {name: stack.enter_context(side(name, workload)) for name in taken}
        for _ in range(repeats + 1):
            for name, one in sides.items():
                taken[name].append(one.repeat())
    medians = {}
    for name, found in taken.items():
        medians[name] = {key: statistics.median(one[key] for one in found[1:]) for key in found[0]}
    return medians


def rows_of(workload: str, measured: Mapping[str, Mapping[str, float]], feast: Mapping[str, float]) -> Iterator[Row]:
    """Yield the rows of a workload."""
    for case, of, name, unit, more in CASES:
        if of != workload or (case in TWICE and case not in feast):
            continue
        shared = TWICE.get(case, case)
        row: Row = {"case": name, "unit": unit, "ours": measured["ours"][shared], "feast": feast.get(case)}
        for side, found in measured.items():
            row |= {side: found[shared]} | {f"{side}_{held}": found[held] for held in ("mb", "before_mb", "cpu_s")}
        for other in ("limit", "feast"):
            if row.get(other) is not None:
                row[f"{other}_ratio"] = (
                    row[other] / row["ours"] if more == (other == "limit") else row["ours"] / row[other]
                )
        yield row


def versions() -> dict[str, str]:
    """Return what is measured."""
    found = {"Python": platform.python_version(), "cores": str(os.cpu_count())}
    return found | {name: version(name) for name in LIBRARIES}


def figure(value: float | None, unit: str) -> str:
    """Return a figure with its unit."""
    if value is None:
        return "-"
    return f"{value:,.0f} {unit}" if value >= 1_000 else f"{value:.3g} {unit}"


def show(rows: Sequence[Row], repeats: int, note: str) -> None:
    """Print the table."""
    named = ", ".join(f"{name} {number}" for name, number in versions().items())
    print(f"{named}; medians of {repeats} repeats in turns; {note}\n")
    print(
        f"{'':<46}{'ours':>16}{'bare limit':>16}{'ratio':>7}{'Feast':>16}{'times':>7}{'ours CPU s, MB (before)':>25}{'limit':>21}"
    )
    for row in rows:
        ratio = f"{row['limit_ratio']:.2f}" if "limit_ratio" in row else ""
        times = f"{row['feast_ratio']:.0f}x" if "feast_ratio" in row else ""
        held = [
            f"{row[f'{s}_cpu_s']:.2f}{row[f'{s}_mb']:>7.0f} ({row[f'{s}_before_mb']:.0f})" if f"{s}_mb" in row else ""
            for s in ("ours", "limit")
        ]
        print(
            f"{row['case']:<46}{figure(row['ours'], row['unit']):>16}{figure(row.get('limit'), row['unit']):>16}"
            f"{ratio:>7}{figure(row['feast'], row['unit']):>16}{times:>7}{held[0]:>25}{held[1]:>21}"
        )


def options_of() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description="Measure the feature store beside Feast and the bare limits.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rows", choices=["small", "full"], default="small")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="workloads: " + ", ".join(dict.fromkeys(c[1] for c in CASES)))
    parser.add_argument("--install-peers", action="store_true", help="install Feast into .peers/feast")
    parser.add_argument("--peers", type=Path, help="the folder of the peers' scripts")
    return parser.parse_args()


def main() -> None:
    """Measure all, and print a table or JSON."""
    options = options_of()
    chosen = [w for w in dict.fromkeys(c[1] for c in CASES) if options.rows == "full" or w not in FULL]
    chosen = [w for w in chosen if not options.only or w in options.only]
    measured = {workload: measure(workload, options.repeats) for workload in chosen}
    feast, note = store_feast.measure(chosen, options.peers, install=options.install_peers, written=written)
    rows = [row for workload, found in measured.items() for row in rows_of(workload, found, feast)]
    if options.json:
        facts = {"versions": versions(), "repeats": options.repeats, "peer": note, "rows": rows}
        print(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        show(rows, options.repeats, note)


if __name__ == "__main__":
    main()
