"""HTTP: both protocols answer, and whatever is sent gets a JSON answer in 4xx while the server goes on serving."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from numpy.typing import NDArray

from headrace.cli.template import write_project
from headrace.core.errors import ConfigurationError
from headrace.core.time import SystemClock
from headrace.features.record import FeatureVector
from headrace.features.stream import DATABASE, StreamPath
from headrace.pipelines.project import load_project
from headrace.pipelines.serve import PipelineService, limits_of
from headrace.pipelines.stores import open_stores
from headrace.serving.connection import connection
from headrace.serving.definition import Endpoint
from headrace.serving.http import App, bind
from headrace.serving.log import find, read_segment
from headrace.serving.router import Routes, Variant

ROW = {"order_id": "o1", "placed": "2024-05-01T12:00:00Z", "shop": "shop-3", "items": 4}
WIDTH = 6
MIB = 2**20


class Sum:
    """Score a row with a constant, and a matrix with its row sums; more than 100 in a cell is its end."""

    def __init__(self, score: float) -> None:
        self.constant = score

    def score_one(self, vector: FeatureVector) -> float:
        return self.constant

    def score(self, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        if (matrix > 100).any():
            raise RuntimeError("/secret/path/model.onnx: overflow")
        scores: NDArray[np.float64] = matrix.sum(axis=1, dtype=np.float64)
        return scores


@dataclass(frozen=True)
class Served:
    """Hold a served project: its service, where it listens, and a client."""

    service: PipelineService
    port: int
    client: httpx.Client
    log: Path

    def predict(self, *rows: Any, **options: Any) -> httpx.Response:
        return self.client.post("/v1/predict/orders", json={"rows": rows}, **options)

    def infer(self, **changed: Any) -> httpx.Response:
        tensor = {"name": "x", "datatype": "FP32", "shape": [2, WIDTH], "data": list(range(2 * WIDTH))} | changed
        return self.client.post("/v2/models/orders/infer", json={"id": "q-1", "inputs": [tensor]})

    def still_serves(self) -> bool:
        return self.predict(ROW).status_code == 200 and self.client.get("/v2/health/live").json() == {"live": True}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served") / "project"
    write_project(str(folder))
    project = load_project("orders:pipeline", folder=folder)
    listening = bind("127.0.0.1", 0, behind_proxy=False)
    port = listening.getsockname()[1]
    with open_stores(project, None, clock=SystemClock(), write=True) as stores:
        service = PipelineService(project, stores, SystemClock())
        app = App(service, limits_of(project))
        config = uvicorn.Config(
            app,
            http=connection(app.limits.header_bytes),
            log_level="critical",
            lifespan="on",
            timeout_graceful_shutdown=2,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
            yield Served(service, port, client, stores.predictions)
        server.should_exit = True
        thread.join()
        service.log.close()


@contextmanager
def routed(served: Served, routes: Routes) -> Iterator[None]:
    before = served.service.router.routes
    served.service.router.routes = routes
    try:
        yield
    finally:
        served.service.router.routes = before


@pytest.fixture
def champion(served: Served) -> Iterator[None]:
    with routed(served, Routes(Variant("orders/v7", Sum(0.75)))):
        yield


@pytest.mark.usefixtures("champion")
def test_a_prediction_says_who_answered_and_where_it_is_logged(served: Served) -> None:
    answer = served.predict(ROW).json()["predictions"][0]
    assert {k: answer[k] for k in ("score", "decision", "model", "version", "variant", "fallback", "cached")} == {
        "score": 0.75,
        "decision": True,
        "model": "orders",
        "version": "orders/v7",
        "variant": "champion",
        "fallback": False,
        "cached": False,
    }
    assert answer["features"] == {"OK": 3, "NULL": 3}
    logged = find(served.log, answer["prediction_id"])
    assert (logged.score, logged.version, logged.request["shop"]) == (0.75, "orders/v7", "shop-3")


def test_without_a_model_the_fallback_answers_and_is_flagged(served: Served) -> None:
    answer = served.predict(ROW).json()["predictions"][0]
    assert (answer["score"], answer["variant"], answer["version"], answer["fallback"]) == (0.3, "fallback", None, True)


def test_without_a_fallback_it_is_unavailable_and_says_when_to_ask_again(served: Served) -> None:
    before, served.service.core.endpoint = served.service.core.endpoint, Endpoint()
    try:
        answer = served.predict(ROW)
    finally:
        served.service.core.endpoint = before
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"] == "no model can answer"
    assert served.still_serves()


def test_one_bad_row_fails_alone(served: Served) -> None:
    rows = [ROW, ROW | {"items": 0}, {"order_id": "o3"}, 7, ROW | {"order_id": "o5"}]
    answer = served.predict(*rows)
    assert answer.status_code == 200
    found = answer.json()["predictions"]
    assert [p.get("error") for p in found] == [
        None, "items is out of its range", "placed is missing", "a row must be an object", None,
    ]  # fmt: skip
    assert found[1]["expected"] == "{'ge': 1, 'le': 100}"
    assert find(served.log, found[4]["prediction_id"]).request["order_id"] == "o5"


def test_where_no_row_is_right_the_request_is_refused(served: Served) -> None:
    answer = served.predict(ROW | {"itms": 1})
    assert answer.status_code == 422
    assert answer.json() == {"error": "unknown column itms", "next": "did you mean items?"}


@pytest.mark.usefixtures("champion")
def test_the_open_inference_protocol(served: Served) -> None:
    get = served.client.get
    assert get("/v2").json()["name"] == "headrace"
    assert get("/v2/health/live").json() == {"live": True}
    assert get("/v2/health/ready").json()["ready"] is True
    assert get("/v2/models/orders/ready").status_code == 200
    told = get("/v2/models/orders").json()
    assert told["versions"] == ["orders/v7"]
    assert told["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, WIDTH]}]
    assert [c["name"] for c in told["parameters"]["request"]] == ["order_id", "placed", "shop", "items"]
    assert len(told["parameters"]["features"]) == WIDTH
    answer = served.infer().json()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("q-1", "orders", "orders/v7")
    assert answer["outputs"] == [{"name": "score", "datatype": "FP64", "shape": [2], "data": [15.0, 51.0]}]
    nested = served.infer(data=[list(range(6)), list(range(6, 12))]).json()
    assert nested["outputs"] == answer["outputs"]


def test_without_a_model_it_is_alive_and_not_ready(served: Served) -> None:
    for path in ("/v2/health/ready", "/v2/models/orders/ready"):
        answer = served.client.get(path)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert answer.json()["error"] == "no model serves yet"
    assert served.infer().status_code == 503
    assert served.client.get("/v2/models/orders").json()["versions"] == []


@pytest.mark.usefixtures("champion")
@pytest.mark.parametrize(
    "changed",
    [
        {"shape": [2, WIDTH + 1]},
        {"shape": [3, WIDTH]},
        {"shape": [0, WIDTH], "data": []},
        {"shape": [-1, WIDTH]},
        {"shape": [4097, WIDTH]},
        {"shape": [10**12, WIDTH]},
        {"shape": ["2", WIDTH]},
        {"shape": 12},
        {"datatype": "BYTES"},
        {"data": ["1"] * 12},
        {"data": [True] * 12},
        {"data": [None] * 12},
        {"data": [1e300] * 12},
        {"data": [{}] * 12},
        {"data": [[1], [2, 3]]},
        {"data": "x"},
    ],
    ids=str,
)
def test_a_tensor_that_does_not_fit_is_refused(served: Served, changed: dict[str, Any]) -> None:
    answer = served.infer(**changed)
    assert answer.status_code == 400
    assert answer.json()["error"]
    assert answer.json()["next"]


@pytest.mark.usefixtures("champion")
def test_an_unexpected_failure_tells_the_caller_nothing_of_the_inside(served: Served) -> None:
    answer = served.infer(data=[1_000] * 12)
    assert answer.status_code == 500
    assert answer.json() == {"error": "an internal error; the server's log says more"}
    assert answer.headers["connection"] == "close"  # uvicorn closes it: a client must not send the next request there
    assert served.still_serves()


@pytest.mark.parametrize(
    ("method", "path", "status", "error", "step"),
    [
        ("POST", "/v1/predict/flights", 404, "no model 'flights'", "models: orders"),
        ("POST", "/v2/models/flights/infer", 404, "no model 'flights'", "models: orders"),
        ("GET", "/v2/models/flights", 404, "no model 'flights'", "models: orders"),
        ("GET", "/v2/models/orders/versions/1", 404, "no such path", "POST /v1/predict/orders, GET /v2/models/orders"),
        ("GET", "/../../etc/passwd", 404, "no such path", "POST /v1/predict/orders, GET /v2/models/orders"),
        ("POST", "/nowhere", 404, "no such path", "POST /v1/predict/orders, GET /v2/models/orders"),
        ("GET", "/v1/predict/orders", 405, "GET is not allowed here", "POST"),
        ("DELETE", "/v2/models/orders", 405, "DELETE is not allowed here", "GET"),
        ("POST", "/metrics", 405, "POST is not allowed here", "GET"),
    ],
)
def test_a_wrong_path_or_method(served: Served, method: str, path: str, status: int, error: str, step: str) -> None:
    answer = served.client.request(method, path)
    assert answer.status_code == status
    assert answer.json() == {"error": error, "next": step}
    assert answer.headers.get("allow") == (step if status == 405 else None)


DEEP = b"[" * 1000 + b"]" * 1000
BAD_BODIES = {
    "empty": (b"", 400, "not JSON"),
    "no rows": (b"{}", 422, "no rows"),
    "a list": (b"[1]", 422, "no rows"),
    "rows are no list": (b'{"rows": {}}', 422, "no rows"),
    "empty rows": (b'{"rows": []}', 422, "no rows"),
    "NaN": (b'{"rows": [{"items": NaN}]}', 400, "not JSON"),
    "infinity by digits": (b'{"rows": [{"items": 1e999}]}', 400, "not JSON"),
    "invalid UTF-8": (b'{"rows": [{"shop": "\xff"}]}', 400, "not JSON"),
    "half a surrogate pair": (b'{"rows": [{"shop": "\\ud800"}]}', 400, "not JSON"),
    "cut off": (b'{"rows": [{"shop": "', 400, "not JSON"),
    "nested": (b'{"rows": ' + DEEP + b"}", 400, "JSON nested too deeply"),
    "nested behind a text": (
        b'{"a": "' + b"x" * 2 * MIB + b'\\"", "rows": ' + DEEP + b"}",
        400,
        "JSON nested too deeply",
    ),
    "only opened": (b"[" * 100_000, 400, "JSON nested too deeply"),
    "millions of lists": (b"[" + b"[]," * 2_000_000 + b"[]]", 413, "JSON of too many parts"),
    "endless text of quotes": (b'"' + b'\\"' * MIB, 400, "not JSON"),
    "10,000 rows": (json.dumps({"rows": [ROW] * 10_000}).encode(), 413, "10000 rows are too many"),
    "17 MiB": (b" " * 17 * MIB, 413, "the request is too large"),
    "a column name of a megabyte": (b'{"rows": [{"' + b"items" * 200_000 + b'": 1}]}', 422, "unknown column items"),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_bad_body_is_refused_and_the_server_goes_on(served: Served, name: str) -> None:
    body, status, error = BAD_BODIES[name]
    logged = served.service.log.count
    answer = served.client.post("/v1/predict/orders", content=body)
    assert answer.status_code == status
    assert answer.json()["error"].startswith(error)
    assert len(answer.content) < 600
    assert served.service.log.count == logged
    assert served.still_serves()


def test_brackets_in_texts_do_not_nest(served: Served) -> None:
    answer = served.predict(ROW | {"order_id": "[" * 5_000 + '\\"{'})
    assert answer.status_code == 200
    row_of_64 = b'{"rows": [' + b"[" * 62 + b"]" * 62 + b"]}"
    assert served.client.post("/v1/predict/orders", content=row_of_64).json()["error"] == "a row must be an object"


def test_50_megabytes_declared_are_refused_before_they_are_sent(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as raw:
        raw.sendall(b"POST /v1/predict/orders HTTP/1.1\r\nhost: x\r\ncontent-length: 52428800\r\n\r\n")
        reply = http.client.HTTPResponse(raw)
        reply.begin()
        assert reply.status == 413
        assert json.loads(reply.read())["error"] == "the request is too large"
    assert served.still_serves()


def test_50_megabytes_streamed_without_a_length_are_refused(served: Served) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as raw:
        raw.sendall(b"POST /v1/predict/orders HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(50 * 16):
            raw.sendall(chunk)
        raw.sendall(b"0\r\n\r\n")
        reply = http.client.HTTPResponse(raw)
        reply.begin()
        assert reply.status == 413
        assert json.loads(reply.read())["next"] == f"at most {16 * MIB} bytes"
    assert served.still_serves()


@pytest.mark.parametrize(
    "sent", [b"GARBAGE\r\n\r\n", b"POST /v1/predict/orders HTTP/1.1\r\ncontent-length: x\r\n\r\n", b""]
)
def test_what_is_no_http_costs_its_own_connection(served: Served, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as raw:
        raw.sendall(sent)
        raw.shutdown(socket.SHUT_WR)
        while raw.recv(65536):
            pass
    assert served.still_serves()


def test_a_request_that_ends_early_leaves_no_trace(served: Served) -> None:
    logged = served.service.log.count
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as raw:
        raw.sendall(b'POST /v1/predict/orders HTTP/1.1\r\nhost: x\r\ncontent-length: 500\r\n\r\n{"rows": [')
    assert served.still_serves()
    assert served.service.log.count == logged + 1


def test_a_websocket_is_refused(served: Served) -> None:
    upgrade = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    answer = served.client.get(
        "/v1/predict/orders", headers=upgrade | {"sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ=="}
    )
    assert answer.status_code == 403
    assert served.still_serves()


def metric(served: Served, line: str) -> float:
    page = served.client.get("/metrics").text
    return next((float(x.rsplit(" ", 1)[1]) for x in page.splitlines() if x.startswith(line)), 0.0)


def test_the_metrics_count_requests_predictions_and_refusals(served: Served) -> None:
    lines = [
        'headrace_requests_total{route="predict",status="200"}',
        'headrace_requests_total{route="predict",status="422"}',
        'headrace_predictions_total{variant="fallback",version="none"}',
        "headrace_refused_rows_total",
        "headrace_prediction_seconds_count",
    ]
    before = [metric(served, line) for line in lines]
    served.predict(ROW, ROW, ROW | {"items": -1})
    served.predict(ROW | {"items": -1})
    assert [metric(served, line) - was for line, was in zip(lines, before, strict=True)] == [1, 1, 2, 2, 2]
    assert served.client.get("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")


def test_a_swap_under_load_loses_no_request_and_mixes_no_versions(served: Served) -> None:
    scores = {f"orders/v{i}": i / 10 for i in range(1, 6)}
    made = [Routes(Variant(version, Sum(score))) for version, score in scores.items()]
    ended, found, failures = threading.Event(), [], []

    def ask(client_number: int) -> None:
        try:
            with httpx.Client(base_url=served.client.base_url, trust_env=False, timeout=30) as client:
                for i in range(60):
                    body = {"rows": [ROW | {"order_id": f"c{client_number}-{i}-{k}"} for k in range(3)]}
                    found.extend(client.post("/v1/predict/orders", json=body).raise_for_status().json()["predictions"])
        except httpx.HTTPError as error:
            failures.append(error)

    def swap() -> None:
        while not ended.is_set():
            for routes in made:
                served.service.router.routes = routes

    with routed(served, made[0]):
        swapper = threading.Thread(target=swap)
        clients = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
        for thread in (swapper, *clients):
            thread.start()
        for thread in clients:
            thread.join()
        ended.set()
        swapper.join()
    assert not failures
    assert len({p["prediction_id"] for p in found}) == 4 * 60 * 3
    assert all(p["score"] == scores[p["version"]] for p in found)
    assert len({p["version"] for p in found}) > 1
    logged = {p.id: p for p in read_segment(served.log, served.service.log.segment)}
    assert all(
        (logged[p["prediction_id"]].score, logged[p["prediction_id"]].version) == (p["score"], p["version"])
        for p in found
    )


def test_a_taken_port_is_told_with_the_next_one() -> None:
    with bind("127.0.0.1", 0, behind_proxy=False) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError) as caught:
            bind("127.0.0.1", port, behind_proxy=False)
    assert str(caught.value).splitlines() == [
        f"port {port} cannot be used",
        "  got:      Address already in use",
        "  expected: a free port from 1 to 65535, or 0 for any",
        f"  next:     headrace serve … --port {port + 1}",
    ]


@pytest.mark.parametrize("port", [70_000, -1])
def test_a_port_that_is_none_is_told(port: int) -> None:
    with pytest.raises(ConfigurationError, match=f"port {port} cannot be used"):
        bind("127.0.0.1", port, behind_proxy=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "127.0.0.1.example.org", ""])
def test_an_address_that_others_reach_is_refused_without_a_proxy(host: str) -> None:
    with pytest.raises(ConfigurationError, match="refusing to listen on an open address"):
        bind(host, 0, behind_proxy=False)


def test_with_a_proxy_in_front_any_address_may_listen() -> None:
    with bind("0.0.0.0", 0, behind_proxy=True) as listening:
        assert listening.getsockname()[1] > 0


def replies(served: Served, *parts: bytes) -> bytes:
    """Send bytes on a connection of their own and return what came back before it closed."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as raw:
        try:
            for part in parts:
                raw.sendall(part)
        except OSError:
            pass  # it was refused before it was sent whole
        found = b""
        try:
            while b"}" not in found and (more := raw.recv(65_536)):
                found += more
        except ConnectionResetError:
            pass
        return found


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([b"x-a: " + b"a" * 70_000 + b"\r\n\r\n"], id="one header"),
        pytest.param([b"x-%05d: aaaaaaaa\r\n" % i for i in range(10_000)] + [b"\r\n"], id="many headers"),
        pytest.param([b"x-a: "] + [b"a" * MIB] * 50, id="a header that never ends"),
    ],
)
def test_a_head_beyond_the_limit_is_refused_and_the_server_goes_on(served: Served, parts: list[bytes]) -> None:
    answer = replies(served, b"GET /v2 HTTP/1.1\r\nhost: x\r\n", *parts)
    reset = answer == b"" and len(parts) == 51  # who goes on sending may see only the reset
    assert reset or answer.startswith(b"HTTP/1.1 431 ")
    assert served.client.get("/v2/health/live").json() == {"live": True}


def test_a_path_beyond_the_limit_is_refused(served: Served) -> None:
    assert replies(served, b"GET /" + b"a" * 65_530 + b" HTTP/1.1\r\nhost: x\r\n\r\n").startswith(b"HTTP/1.1 431 ")


@pytest.mark.usefixtures("champion")
def test_the_heads_limit_is_of_each_request_and_leaves_bodies_alone(served: Served) -> None:
    headers = {"x-a": "a" * 60_000}
    for _ in range(3):
        assert served.predict(*[ROW] * 4096, headers=headers).status_code == 200


def test_a_swap_while_a_matrix_is_scored_does_not_change_who_answered(served: Served) -> None:
    class Replaced(Sum):
        def score(self, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
            served.service.router.routes = Routes(Variant("orders/v9", Sum(0.9)))
            return super().score(matrix)

    with routed(served, Routes(Variant("orders/v8", Replaced(0.8)))):
        assert served.infer().json()["model_version"] == "orders/v8"
        assert served.infer().json()["model_version"] == "orders/v9"


@pytest.mark.usefixtures("champion")
@pytest.mark.parametrize("t", ["2999-01-01T00:00:00Z", 32_472_144_000_000_000], ids=["text", "microseconds"])
def test_a_stated_moment_is_the_moment_of_the_prediction(served: Served, t: Any) -> None:
    answer = served.client.post("/v1/predict/orders", json={"rows": [ROW], "t": t}).json()
    assert find(served.log, answer["predictions"][0]["prediction_id"]).t == 32_472_144_000_000_000


@pytest.mark.usefixtures("champion")
def test_a_stated_moment_before_the_newest_arrival_is_refused(served: Served) -> None:
    newest = 1_714_564_800_000_000
    with served.service.stores.online.write() as transaction:
        StreamPath([served.service.project.plan]).commit(transaction.access(DATABASE), newest, {})
    body = {"rows": [ROW], "t": newest - 1}
    refused = served.client.post("/v1/predict/orders", json=body)
    assert refused.status_code == 422
    assert refused.json()["error"] == "t is older than what the online features have seen"
    assert served.client.post("/v1/predict/orders", json=body | {"t": newest}).status_code == 200


@pytest.mark.usefixtures("champion")
@pytest.mark.parametrize("body", [{"t": "2999-01-01T00:00:00"}, {"t": True}, {"t": 2**70}, {"at": 5}])
def test_what_states_no_moment_is_refused(served: Served, body: dict[str, Any]) -> None:
    assert served.client.post("/v1/predict/orders", json={"rows": [ROW]} | body).status_code in (400, 422)
