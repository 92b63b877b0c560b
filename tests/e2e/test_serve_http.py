"""A served process: a trained model over HTTP, a kill that loses no acknowledged answer, an end that drains."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.cli.template import write_project
from headrace.core.errors import ConfigurationError
from headrace.pipelines.operate import approve, promote, rollback
from headrace.pipelines.project import load_project
from headrace.pipelines.run import run
from headrace.pipelines.serve import serve
from headrace.pipelines.view import Silent
from headrace.serving.log import find, read_segment, segments

SERVE = [sys.executable, "-c", "from headrace.cli.main import main; main()", "serve", "orders:pipeline", "--json"]
ROW = {"order_id": "n1", "placed": "2024-05-01T12:00:00Z", "shop": "shop-3", "items": 4}
PATIENCE = 60


@dataclass(frozen=True)
class Process:
    """Hold a serving process and what it said when it began."""

    process: subprocess.Popen[str]
    told: dict[str, Any]
    client: httpx.Client

    def predict(self, *rows: Any) -> list[dict[str, Any]]:
        answer = self.client.post("/v1/predict/orders", json={"rows": rows})
        found: list[dict[str, Any]] = answer.raise_for_status().json()["predictions"]
        return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a project whose first model was promoted."""
    folder = tmp_path_factory.mktemp("served") / "project"
    write_project(str(folder))
    file = folder / "orders.py"
    file.write_text(file.read_text().replace("trials=5", "trials=1"))
    assert (
        run(load_project("orders:pipeline", folder=folder), state=None, seed=1, progress=Silent())["outcome"]
        == "promoted"
    )
    return folder


@contextmanager
def serving(folder: Path) -> Iterator[Process]:
    """Serve a project on a free port in a process of its own."""
    process = subprocess.Popen(
        [*SERVE, "--port", "0"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.stderr.read() if process.stderr else ""
        told = json.loads(line)
        with httpx.Client(base_url=told["url"], timeout=PATIENCE, trust_env=False) as client:
            yield Process(process, told, client)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=PATIENCE)


def logged(folder: Path) -> Path:
    return folder / ".headrace" / "predictions"


def test_a_trained_model_answers_with_both_protocols_and_ends_on_sigterm(trained: Path) -> None:
    with serving(trained) as served:
        assert served.told["version"] == "orders/v1"
        assert served.client.get("/v2/health/ready").json()["ready"] is True
        answers = served.predict(ROW, ROW | {"order_id": "n2", "items": 12})
        assert [a["version"] for a in answers] == ["orders/v1"] * 2
        assert all(0 < a["score"] < 1 and a["decision"] == (a["score"] >= 0.5) for a in answers)
        assert answers[0]["score"] != answers[1]["score"]
        features = find(logged(trained), answers[0]["prediction_id"]).features
        assert features["Orders.items"] == 4
        assert features["weekday"] == 2  # the first of May 2024 was a Wednesday
        names = served.client.get("/v2/models/orders").json()["parameters"]["features"]
        assert names == list(features)
        values = {"Orders.items": 4, "weekday": 2, "Shop.orders[1d]": 3, "Shop.late[7d]": 0.5}
        rows = [[values.get(name, hours) for name in names] for hours in (9.0, 40.0)]
        tensor = {"name": "x", "datatype": "FP64", "shape": [2, len(names)], "data": rows}
        scored = served.client.post("/v2/models/orders/infer", json={"inputs": [tensor]}).json()
        quick, slow = scored["outputs"][0]["data"]
        assert 0 < quick < slow < 1
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(PATIENCE) in (0, -signal.SIGTERM)


def test_a_kill_under_load_loses_no_acknowledged_prediction_and_serving_goes_on(trained: Path) -> None:
    acknowledged: list[str] = []
    enough = threading.Event()

    def ask(served: Process, name: str) -> None:
        number = 0
        with httpx.Client(base_url=served.told["url"], timeout=PATIENCE, trust_env=False) as client:
            while True:
                number += 1
                body = {"rows": [ROW | {"order_id": f"{name}-{number}"}]}
                try:
                    answer = client.post("/v1/predict/orders", json=body)
                except httpx.TransportError:
                    return  # the server is gone: this one was never acknowledged
                acknowledged.append(answer.json()["predictions"][0]["prediction_id"])
                if len(acknowledged) >= 300:
                    enough.set()

    with serving(trained) as served:
        clients = [threading.Thread(target=ask, args=(served, f"k{i}")) for i in range(3)]
        for thread in clients:
            thread.start()
        assert enough.wait(PATIENCE)
        served.process.kill()
        for thread in clients:
            thread.join(PATIENCE)
    found = {p.id: p for p in read_segment(logged(trained), segments(logged(trained))[-1])}
    assert len(acknowledged) >= 300
    assert [i for i in acknowledged if i not in found] == []
    with serving(trained) as again:
        fresh = again.predict(ROW)[0]["prediction_id"]
        assert fresh not in found
        assert find(logged(trained), acknowledged[0]) == found[acknowledged[0]]
        assert find(logged(trained), fresh).version == "orders/v1"


def test_sigterm_answers_the_request_under_way_and_takes_no_new_one(trained: Path) -> None:
    body = json.dumps({"rows": [ROW | {"order_id": "last"}]}).encode()
    with serving(trained) as served:
        address = ("127.0.0.1", int(served.told["url"].rsplit(":", 1)[1]))
        with closing(socket.create_connection(address, timeout=PATIENCE)) as raw:
            head = f"POST /v1/predict/orders HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
            raw.sendall(head.encode() + body[:10])
            assert served.predict(ROW)  # so the server has read the half request before it
            served.process.send_signal(signal.SIGTERM)
            wait_until_refused(address)
            raw.sendall(body[10:])
            reply = HTTPResponse(raw)
            reply.begin()
            assert reply.status == 200
            answer = json.loads(reply.read())["predictions"][0]
        assert served.process.wait(PATIENCE) in (0, -signal.SIGTERM)
    assert find(logged(trained), answer["prediction_id"]).request["order_id"] == "last"


def wait_until_refused(address: tuple[str, int]) -> None:
    for _ in range(PATIENCE * 20):
        try:
            socket.create_connection(address, timeout=PATIENCE).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.05)
    raise AssertionError("the server still takes connections")


def test_a_taken_port_and_an_open_address_are_refused_before_anything_begins(trained: Path) -> None:
    project = load_project("orders:pipeline", folder=trained)

    def begin(host: str, port: int) -> None:
        serve(project, state=None, host=host, port=port, behind_proxy=False, json=True)

    before = segments(logged(trained))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port} cannot be used") as caught:
            begin("127.0.0.1", port)
    assert f"--port {port + 1}" in str(caught.value)
    with pytest.raises(ConfigurationError, match="refusing to listen on an open address"):
        begin("0.0.0.0", 0)
    assert segments(logged(trained)) == before


def test_versions_are_promoted_and_rolled_back_under_a_running_server(trained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "project"))
    project = load_project("orders:pipeline", folder=folder)
    assert run(project, state=None, seed=9, progress=Silent())["outcome"] == "challenger"
    with serving(folder) as server:
        assert server.told["version"] == "orders/v1"
        asked = 0

        def wait_for(version: str) -> None:
            nonlocal asked
            began = time.monotonic()
            while time.monotonic() - began < PATIENCE:
                (answer,) = server.predict(ROW | {"order_id": f"w{asked}"})
                asked += 1
                if answer["version"] == version:
                    return
            raise AssertionError(f"{version} never answered")

        assert promote(project, "v2", why="test", force=False, state=None)["champion"] == "orders/v2"
        wait_for("orders/v2")
        assert rollback(project, to=None, why="test", state=None)["champion"] == "orders/v1"
        wait_for("orders/v1")
        approve(project, "v2", why="test", state=None)
    logged = [
        p
        for s in segments(folder / ".headrace" / "predictions")
        for p in read_segment(folder / ".headrace" / "predictions", s)
    ]
    assert sorted(p.request["order_id"] for p in logged if p.request["order_id"].startswith("w")) == sorted(
        f"w{number}" for number in range(asked)
    )
