"""Run Feast's side of `feature_store.py`: scripts of its own, in a virtual environment of its own, on the same files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

VERSION = "0.67.0"
HOME = Path(".peers/feast")
PYTHON = HOME / "bin" / "python"
SCRIPT = "fs_feast.py"
PLACES = (Path(__file__).parents[1] / "shared" / "peers", Path(__file__).parents[2] / "shared" / "peers")
# Workload: what the script is asked for, which files it reads.
RUNS: dict[str, list[list[str]]] = {
    "online": [["load", "sqlite", "dask"], ["online", "sqlite"]],
    "http": [["http", "sqlite"]],
    "join_s": [["hist", "dask", "s"]],
    "events": [["push", "sqlite"]],
    "materialize": [["mat", "sqlite", "dask", "vm200k"]],
}
FILES = ("va", "vb", "vc", "vm", "vm200k", "labels_s", "feats_s")
SECONDS = 1_200


def measure(
    workloads: Sequence[str], scripts: Path | None, *, install: bool, written: Callable[[str], Path]
) -> tuple[dict[str, float], str]:
    """Return Feast's figures by case, and a sentence that says which Feast, or why it was not run."""
    folder = scripts or next((place for place in PLACES if (place / SCRIPT).exists()), None)
    if install and not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", str(HOME)], check=True)
        subprocess.run([str(PYTHON), "-m", "pip", "install", "-q", f"feast=={VERSION}", "psutil"], check=True)
    if not PYTHON.exists():
        return {}, "Feast was not run: --install-peers installs it into .peers/feast"
    if folder is None or not (folder / SCRIPT).exists():
        return {}, f"Feast was not run: no {SCRIPT}, --peers names its folder"
    for name in FILES:
        written(name)
    _link_repository()
    found: dict[str, float] = {}
    for arguments in [run for workload in workloads for run in RUNS.get(workload, [])]:
        done = subprocess.run(
            [str(PYTHON), str(folder / SCRIPT), *arguments],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        if done.returncode:
            print(done.stderr[-2_000:], file=sys.stderr)
            return found, f"Feast {VERSION} failed at {' '.join(arguments)}"
        for line in done.stdout.splitlines():
            found |= dict(figures(json.loads(line))) if line.startswith("{") else {}
    return found, f"Feast {VERSION} with SQLite, offline with dask, once"


def _link_repository() -> None:
    """Let the script's relative paths mean the same from Feast's repository, against which Feast takes them."""
    link = Path(".peers/fs/feast_sqlite_dask/.peers")
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.symlink_to(Path(".peers").absolute())


def figures(line: dict[str, float | str]) -> Iterator[tuple[str, float]]:
    """Yield the cases that one line of the script's output answers."""
    what, case = line.get("what"), str(line.get("case"))
    if what == "sdk" and case in ("1x10", "1x50", "100x50"):
        yield case, float(line["p50_ms"]) * 1e3
    elif what == "http-serial" and case == "1x50":
        yield "http", float(line["p50_ms"]) * 1e3
    elif what == "hist":
        yield "join_s", float(line["s"])
    elif what == "push" and line["batch"] == 1:
        yield "durable", float(line["ms_per_call"]) * 1e3
    elif what == "push" and line["batch"] == 10_000:
        yield "bulk", float(line["rows_per_s"])
    elif what == "materialize":
        yield "materialize", float(line["rows_per_s"])
