"""Measure 40 checks on a table of 20 columns: ours, pandera-polars, pointblank, and bare Polars and DuckDB SQL.

python bench/validation.py [--rows 10000000] [--repeats 5] [--json] [--great-expectations]

Every side runs in a process of its own, interleaved, and reports its own wall time, CPU time and peak memory. The peers
live in a virtual environment of their own, `.peers/validation`, which the first run makes; a peer that cannot be
installed is reported as such. The checks are 20 types, 6 nulls, 5 ranges, 3 sets, a pattern, uniqueness, a foreign key,
freshness, a mean and a KL divergence; what a side cannot check is in its `skipped`. The data have planted faults, whose
counts stand in `truth`.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PEERS = HERE.parent / ".peers" / "validation"
PACKAGES = ["pandera[polars]", "pointblank", "polars", "duckdb", "pyarrow"]
SIDES = ["headrace", "polars", "duckdb", "pandera-polars", "pointblank"]


def environment(extra: list[str]) -> Path:
    """Return the peers' interpreter, made on the first call."""
    python = PEERS / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(PEERS)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "-q", *PACKAGES, *extra], check=True, capture_output=True)
    return python


def measured(python: Path | str, side: str, folder: Path) -> dict[str, Any]:
    """Run one side once, in its own process, and return what it reports."""
    done = subprocess.run(
        [str(python), str(HERE / "validation_sides.py"), side, str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians of one side's runs, and what it found."""
    good = [run for run in runs if "error" not in run]
    if not good:
        return runs[0]
    medians = {key: round(statistics.median(run[key] for run in good), 3) for key in ("wall_s", "cpu_s", "peak_mb")}
    return medians | {key: good[0][key] for key in ("fails", "skipped", "versions")}


def main() -> None:
    """Make the data, interleave the sides, and print a table or JSON."""
    options = argparse.ArgumentParser()
    options.add_argument("--rows", type=int, default=10_000_000)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--json", action="store_true")
    options.add_argument("--great-expectations", action="store_true")
    given = options.parse_args()
    folder = HERE.parent / ".peers" / f"validation-data-{given.rows}"
    if not (folder / "truth.json").is_file():
        subprocess.run([sys.executable, str(HERE / "validation_data.py"), str(folder), str(given.rows)], check=True)
    peers = environment(["great-expectations"] if given.great_expectations else [])
    sides = [*SIDES, *(["great-expectations"] if given.great_expectations else [])]
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(given.repeats):
        for side in sides:
            runs[side].append(measured(sys.executable if side == "headrace" else peers, side, folder))
    found = {side: summary(each) for side, each in runs.items()}
    truth = json.loads((folder / "truth.json").read_text())
    workload = {"rows": given.rows, "columns": 20, "checks": 40, "truth": truth["faults"]}
    report = {"workload": workload, "repeats": given.repeats, "python": platform.python_version(), "sides": found}
    if given.json:
        print(json.dumps(report, indent=2))
        return
    print(f"{given.rows:,} rows, median of {given.repeats} interleaved repeats; headrace {version('headrace')}")
    for side, told in found.items():
        if "error" in told:
            print(f"{side:<20} did not run: {told['error']}")
            continue
        speed = f"{told['wall_s']:7.2f} s {told['cpu_s']:7.2f} s CPU {told['peak_mb']:7.0f} MB"
        print(f"{side:<20} {speed}  skipped {', '.join(told['skipped']) or 'nothing'}")
        print(f"{'':<20} found {told['fails']}")
    print(f"{'planted':<20} {truth['faults']}")


if __name__ == "__main__":
    main()
