"""Measure what starting costs: `import headrace` and `headrace --help`, each over a bare interpreter in the same run.

python bench/startup.py [--json]
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

REPEATS = 7
COMMANDS = {
    "bare python": [sys.executable, "-c", "pass"],
    "import headrace": [sys.executable, "-c", "import headrace"],
    "headrace --help": [sys.executable, "-m", "headrace.cli", "--help"],
}


def seconds(command: list[str]) -> float:
    """Return how long a command takes."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    """Interleave the commands and print medians, differences to the bare interpreter, and ratios."""
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(REPEATS):
        for name, command in COMMANDS.items():
            taken[name].append(seconds(command))
    medians = {name: statistics.median(values) for name, values in taken.items()}
    bare = medians["bare python"]
    rows = {
        name: {"ms": 1e3 * value, "over_bare_ms": 1e3 * (value - bare), "ratio": value / bare}
        for name, value in medians.items()
    }
    if "--json" in sys.argv:
        print(json.dumps({"python": sys.version.split()[0], "repeats": REPEATS, "rows": rows}, indent=2))
        return
    print(f"Python {sys.version.split()[0]}, median of {REPEATS} interleaved repeats")
    for name, row in rows.items():
        print(f"{name:<18} {row['ms']:8.1f} ms  {row['over_bare_ms']:+8.1f} ms over bare  {row['ratio']:5.2f}x")


if __name__ == "__main__":
    main()
