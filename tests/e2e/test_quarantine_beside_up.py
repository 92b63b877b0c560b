"""Bad rows of a stream are decided about while `headrace up` takes in events and answers; neither waits for the other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from headrace.cli.template import write_project
from headrace.core.errors import HeadraceError
from headrace.core.time import SystemClock
from headrace.pipelines.materialize import rebuild_online
from headrace.pipelines.project import Project, load_project
from headrace.pipelines.quarantine import list_quarantine
from headrace.pipelines.run import run
from headrace.pipelines.stores import open_stores
from headrace.pipelines.view import Silent
from headrace.serving.log import find
from headrace.storage.streams import open_streams

PATIENCE = 60
CLI = [sys.executable, "-m", "headrace.cli"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("beside") / "project"
    write_project(str(folder))
    (folder / "orders.py").write_text((folder / "orders.py").read_text().replace("trials=5", "trials=1"))
    found = load_project("orders:pipeline", folder=folder)
    assert run(found, state=None, seed=0, progress=Silent())["outcome"] == "promoted"
    return found


class Up:
    """Ask a running `headrace up`."""

    def __init__(self, project: Project, url: str) -> None:
        self.project, self.client = project, httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False)

    def send(self, *events: tuple[str, int]) -> None:
        """Append orders of shop-3 to the stream: ids and how many items each has."""
        clock = SystemClock()
        with open_streams(f"log:{self.project.folder / '.headrace' / 'streams'}", clock=clock) as streams:
            rows = [{"order_id": name, "placed": clock.now().isoformat(), "shop": "shop-3"} for name, _ in events]
            bodies = [json.dumps(row | {"items": items}).encode() for row, (_, items) in zip(rows, events, strict=True)]
            streams.append("Orders", bodies)

    def orders(self) -> int:
        """Return how many orders of a day the features of shop-3 count."""
        row = {"order_id": "asked", "placed": SystemClock().now().isoformat(), "shop": "shop-3", "items": 4}
        answer = self.client.post("/v1/predict/orders", json={"rows": [row]}).raise_for_status().json()
        name = answer["predictions"][0]["prediction_id"]
        features = wait_for(lambda: find(self.project.folder / ".headrace" / "predictions", name).features)
        return int(features["Shop.orders[1d]"])


def wait_for(what: Callable[[], Any]) -> Any:
    end, error = time.monotonic() + PATIENCE, None
    while time.monotonic() < end:
        try:
            if found := what():
                return found
        except HeadraceError as caught:  # it is not there yet: the last reason is told
            error = caught
        time.sleep(0.1)
    raise AssertionError("it did not come") from error


@contextmanager
def up(project: Project, end: signal.Signals = signal.SIGINT) -> Iterator[Up]:
    """Run `headrace up` in a process of its own, and end it by a signal."""
    command = [*CLI, "up", "orders:pipeline", "--port", "0", "--json"]
    process = subprocess.Popen(command, cwd=project.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.stderr and process.stderr.read()
        yield Up(project, json.loads(line)["url"])
        process.send_signal(end)
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == (0 if end == signal.SIGINT else -end), errors
    finally:
        process.kill()
        process.wait()


def quarantine(project: Project, verb: str, name: str, failpoint: str = "") -> int:
    """Decide about one order by the command; return its exit code."""
    waiting = list_quarantine(project, "Orders", everything=False, limit=50, state=None)["rows"]
    (chosen,) = [row["id"] for row in waiting if name in stated(project, row["id"])]
    done = subprocess.run(
        [*CLI, "quarantine", verb, "Orders", "--ids", chosen, "--why", "wholesale"],
        cwd=project.folder,
        env=os.environ | {"HEADRACE_FAILPOINTS": failpoint},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode in (0, -9), done.stderr
    return done.returncode


def stated(project: Project, identity: str) -> str:
    with open_stores(project, None, clock=SystemClock(), write=False) as stores:
        (row,) = stores.tables.read("quarantine", where=[("id", "=", identity)]).to_pylist()
    return str(row["payload"])


def statuses(project: Project) -> list[str]:
    rows = list_quarantine(project, "Orders", everything=True, limit=50, state=None)["rows"]
    return sorted(row["status"] for row in rows)


def test_rows_are_released_and_dropped_while_up_takes_in_events(project: Project) -> None:
    with up(project, signal.SIGKILL) as served:
        served.send(("g1", 4), ("g2", 4), ("g3", 4), ("g4", 4), ("large", 500), ("killed", 501), ("dropped", 502))
        wait_for(lambda: statuses(project) == ["open"] * 3)
        wait_for(lambda: served.orders() == 4)
        assert quarantine(project, "release", "large") == 0
        assert served.orders() == 5
        served.send(("g5", 4))
        wait_for(lambda: served.orders() == 6)
        assert quarantine(project, "release", "killed", "ingest.stored:kill") == -9
        assert served.orders() == 6
        assert quarantine(project, "drop", "dropped") == 0  # which finishes what was killed
        assert served.orders() == 7
        assert statuses(project) == ["dropped", "released", "released"]
    with up(project) as served:
        assert served.orders() == 7
        served.send(("g6", 4))
        wait_for(lambda: served.orders() == 8)
    with open_stores(project, None, clock=SystemClock(), write=False) as stores:
        names = stores.tables.read("reveals_orders", where=[("items", ">=", 500)])["order_id"].to_pylist()
        assert sorted(names) == ["killed", "large"]
        assert stores.ledger.verify().ok
    rebuild_online(project, state=None, progress=Silent())
    with up(project) as served:
        assert served.orders() == 8
