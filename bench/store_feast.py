"""Run Feast's side of `feature_store.py`: scripts of its own, in a virtual environment of its own, on the same files."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from headrace.testing.servers import redis_server

VERSION = "0.67.0"
HOME = Path(".peers/feast")
PYTHON = HOME / "bin" / "python"
NEEDS = (f"feast[redis,duckdb]=={VERSION}", "psutil")
SCRIPT = "fs_feast.py"
REDIS_PORT = 7390  # the script's own
PLACES = (Path(__file__).parents[1] / "shared" / "peers", Path(__file__).parents[2] / "shared" / "peers")
# Workload: what the script is asked for. The last two words of "load" and "mat" say where it keeps and reads what.
RUNS: dict[str, list[list[str]]] = {
    "online": [["load", "sqlite", "dask"], ["online", "sqlite"]],
    "redis": [["load", "redis", "dask"], ["online", "redis"]],
    "http": [["load", "sqlite", "dask"], ["http", "sqlite"]],
    "join_s": [["hist", "duckdb", "s"], ["hist", "dask", "s"]],
    "events": [["push", "sqlite"]],
    "materialize": [["mat", "sqlite", "dask", "vm200k"]],
    "redis_materialize": [["mat", "redis", "dask", "vm200k"]],
}
FILES = ("va", "vb", "vc", "vm", "vm200k", "labels_s", "feats_s")
STORES = ("sqlite_dask", "sqlite_duckdb", "redis_dask")
ROWS = 200_000  # of vm200k
SECONDS = 1_200
Written = Callable[[str], Path]


def measure(
    workloads: Sequence[str], scripts: Path | None, *, install: bool, written: Written
) -> tuple[dict[str, float], str]:
    """Return Feast's figures by case, and a sentence that says which Feast, or why it was not run."""
    folder = scripts or next((place for place in PLACES if (place / SCRIPT).exists()), None)
    if install and not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", str(HOME)], check=True)
        subprocess.run([str(PYTHON), "-m", "pip", "install", "-q", *NEEDS], check=True)
    if not PYTHON.exists():
        return {}, "Feast was not run: --install-peers installs it into .peers/feast"
    if folder is None or not (folder / SCRIPT).exists():
        return {}, f"Feast was not run: no {SCRIPT}, --peers names its folder"
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", REDIS_PORT)) == 0:
            return {}, f"Feast was not run: its script takes port {REDIS_PORT} for Redis, and somebody has it"
    for name in FILES:
        written(name)
    found: dict[str, float] = {}
    with TemporaryDirectory() as place, redis_server(Path(place), port=REDIS_PORT, durable=False):
        for workload in workloads:
            _begin_anew()
            for arguments in RUNS.get(workload, []):
                told = _run([str(PYTHON), str(folder / SCRIPT), *arguments])
                if told is None:
                    return found, f"Feast {VERSION} failed at {' '.join(arguments)}"
                found |= {case: value for line in told for case, value in figures(line)}
    return found, f"Feast {VERSION} with SQLite or Redis, offline with dask, joins also with duckdb, once"


def _run(command: list[str]) -> list[dict[str, float | str]] | None:
    """Return the lines of figures that a run of the script prints; None, and its error on stderr, where it failed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode:
        print(done.stderr[-2_000:], file=sys.stderr)
        return None
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def _begin_anew() -> None:
    """Empty the script's stores, and let its relative paths mean the same from each one, against which Feast takes them."""
    for store in STORES:
        home = Path(f".peers/fs/feast_{store}")
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        (home / ".peers").symlink_to(Path(".peers").absolute())


def figures(line: dict[str, float | str]) -> Iterator[tuple[str, float]]:
    """Yield the cases that one line of the script's output answers."""
    what, case, redis = line.get("what"), str(line.get("case")), "redis_" if line.get("online") == "redis" else ""
    if what == "sdk" and case in ("1x10", "1x50", "100x50"):
        yield redis + case, float(line["p50_ms"]) * 1e3
    elif what == "http-serial" and case == "1x50":
        yield "http", float(line["p50_ms"]) * 1e3
    elif what == "http-8clients" and case == "1x50":
        yield "http_rate", float(line["per_s"])
    elif what == "hist":
        yield "join_s_dask" if line["offline"] == "dask" else "join_s", float(line["s"])
    elif what == "push" and line["batch"] == 1:
        yield "durable", float(line["ms_per_call"]) * 1e3
    elif what == "push" and line["batch"] == 10_000:
        yield "bulk", float(line["rows_per_s"])
    elif what == "materialize":
        yield f"{redis}materialize", float(line["rows_per_s"])
    elif what == "size":
        yield "size", float(line["bytes"]) / ROWS
