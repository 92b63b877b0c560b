"""Measure serving over HTTP beside a bare uvicorn: python bench/serving.py [--json] [--seconds S] [--rounds N].

A generated project is trained once and served as `headrace serve` does, in a process of its own with a clock that stands
at the end of its data, so that windows hold events. The echo is the same uvicorn with an application that sends back the
body of a prediction request. The cases take turns; every number is the median of the rounds, and every ratio is of the same
run. Inside: microseconds that the parts of one prediction take in this process, without HTTP. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import orjson
import uvicorn
import uvloop

from headrace.cli.template import DAYS, START, write_project
from headrace.core.time import DAY, Instant, VirtualClock
from headrace.features.stream import DATABASE
from headrace.pipelines.project import Project, load_project
from headrace.pipelines.run import run
from headrace.pipelines.serve import PipelineService, serve
from headrace.pipelines.stores import open_stores
from headrace.pipelines.view import Silent
from headrace.serving.http import bind

TARGET = "orders:pipeline"
END = Instant(START + DAYS * DAY)
WARM_UP = 300
MANY = 64
CALLS = 3_000

Row = dict[str, Any]


def project_in(folder: str) -> Project:
    """Return the generated project."""
    return load_project(TARGET, folder=Path(folder))


def example(number: int) -> Row:
    """Return a request row; shops take turns."""
    return {"order_id": f"bench-{number}", "placed": END.isoformat(), "shop": f"shop-{number % 20}", "items": 3}


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Send a request's body back."""
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    body = b"".join(parts)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def child(kind: str, folder: str) -> None:
    """Serve the project or the echo until SIGTERM, after a line of JSON with its address."""
    if kind == "serve":
        clock = VirtualClock(END)
        serve(project_in(folder), state=None, host="127.0.0.1", port=0, behind_proxy=False, json=True, clock=clock)
        return
    listening = bind("127.0.0.1", 0, behind_proxy=False)
    print(orjson.dumps({"url": f"http://127.0.0.1:{listening.getsockname()[1]}"}).decode(), flush=True)
    uvicorn.Server(uvicorn.Config(echo, log_level="warning", lifespan="off")).run(sockets=[listening])


@contextmanager
def server(kind: str, folder: str) -> Iterator[tuple[int, int]]:
    """Run a server in a process of its own; give its port and process id."""
    command = [sys.executable, __file__, "--child", kind, "--folder", folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"the {kind} server did not start")
            yield int(orjson.loads(line)["url"].rpartition(":")[2]), process.pid
        finally:
            process.terminate()


class Connection(asyncio.Protocol):
    """Send one request again and again on one connection, and keep how long each answer took."""

    def __init__(self, request: bytes, until: Callable[[int], bool], ended: asyncio.Future[None]) -> None:
        self.request, self.until, self.ended = request, until, ended
        self.spent: list[float] = []
        self.received, self.wanted = bytearray(), 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one without inheriting from it
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail unless the last answer was read."""
        if not self.ended.done():
            self.ended.set_exception(exc or ConnectionError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        """Read an answer, and ask again until it is enough."""
        self.received += data
        if not self.wanted:
            head = self.received.find(b"\r\n\r\n")
            if head < 0:
                return
            if not self.received.startswith(b"HTTP/1.1 200"):
                self._fail()
                return
            place = self.received.find(b"content-length: ") + 16
            self.wanted = head + 4 + int(self.received[place : self.received.find(b"\r", place)])
        if len(self.received) < self.wanted:
            return
        self.spent.append(time.perf_counter() - self.began)
        if self.until(len(self.spent)):
            self.ended.set_result(None)
            self.transport.close()
        else:
            self._ask()

    def _ask(self) -> None:
        self.received.clear()
        self.wanted, self.began = 0, time.perf_counter()
        self.transport.write(self.request)

    def _fail(self) -> None:
        self.ended.set_exception(RuntimeError(bytes(self.received[:400]).decode(errors="replace")))
        self.transport.close()


async def drive(port: int, request: bytes, connections: int, until: Callable[[int], bool]) -> list[float]:
    """Return the seconds of every answer on so many connections at once."""
    loop = asyncio.get_running_loop()
    made = [Connection(request, until, loop.create_future()) for _ in range(connections)]
    for one in made:
        await loop.create_connection(lambda one=one: one, "127.0.0.1", port)  # type: ignore[misc]
    await asyncio.gather(*(one.ended for one in made))
    return [spent for one in made for spent in one.spent]


def measure(port: int, request: bytes, seconds: float) -> Row:
    """Measure one connection's latency and the throughput of many."""

    def go(connections: int) -> tuple[list[float], float]:
        began = time.perf_counter()
        end = began + seconds
        spent = uvloop.run(drive(port, request, connections, lambda _: time.perf_counter() >= end))
        return sorted(spent), time.perf_counter() - began

    uvloop.run(drive(port, request, 1, lambda count: count >= WARM_UP))
    alone, _ = go(1)
    crowd, took = go(MANY)
    return {
        "p50_us": alone[len(alone) // 2] * 1e6,
        "p99_us": alone[len(alone) * 99 // 100] * 1e6,
        "per_s": len(crowd) / took,
        "crowd_p99_us": crowd[len(crowd) * 99 // 100] * 1e6,
    }


def post(path: str, body: Any) -> bytes:
    """Return the bytes of a request."""
    content = orjson.dumps(body)
    head = f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {len(content)}"
    return head.encode() + b"\r\n\r\n" + content


def over_http(folder: str, width: int, seconds: float, rounds: int) -> tuple[list[Row], float]:
    """Measure the cases in turns; return them with the served process's memory in MB."""
    name = project_in(folder).name
    row = {"rows": [example(7)]}
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, width], "data": [1.0] * width}
    with server("echo", folder) as (bare, _), server("serve", folder) as (port, pid):
        cases = {
            "bare uvicorn, echo": (bare, post("/", row)),
            "POST /v1/predict": (port, post(f"/v1/predict/{name}", row)),
            "POST /v2/…/infer": (port, post(f"/v2/models/{name}/infer", {"inputs": [tensor]})),
        }
        taken: dict[str, list[Row]] = {case: [] for case in cases}
        for _ in range(rounds):
            for case, (where, request) in cases.items():
                taken[case].append(measure(where, request, seconds))
        memory = memory_of(pid)
    found = []
    for case, measured in taken.items():
        found.append({"case": case} | {k: statistics.median(one[k] for one in measured) for k in measured[0]})
    for one in found:
        one["p50_ratio"] = one["p50_us"] / found[0]["p50_us"]
        one["per_s_ratio"] = one["per_s"] / found[0]["per_s"]
    return found, memory


def memory_of(pid: int) -> float:
    """Return a process's resident memory in MB, as Linux tells it."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def median_us(call: Callable[[int], object]) -> float:
    """Return the median microseconds of a call."""
    spent = []
    for number in range(CALLS):
        began = time.perf_counter_ns()
        call(number)
        spent.append(time.perf_counter_ns() - began)
    return statistics.median(spent) / 1_000


def inside(folder: str) -> tuple[list[Row], int]:
    """Measure the parts of a prediction without HTTP; return them with the width of the tensor."""
    project, clock = project_in(folder), VirtualClock(END)
    with open_stores(project, None, clock=clock, write=True) as stores:
        service = PipelineService(project, stores, clock)
        core, champion = service.core, service.router.routes.champion
        assert champion is not None, "the run promoted no model"
        rows = [service.signature.decode(example(i)) for i in range(20)]
        with stores.online.read() as snapshot:
            get, t = snapshot.getter(DATABASE), int(END)
            vector = core.features.read(get, rows[7], t)
            parts = {
                "decode one row": median_us(lambda i: service.signature.decode(example(i))),
                "read its features": median_us(lambda i: core.features.read(get, rows[i % 20], t)),
                "score them": median_us(lambda _: champion.scorer.score_one(vector)),
                "predict: read, route, score, decide, log": median_us(lambda i: core.predict(rows[i % 20], t, get)),
            }
        parts["service: snapshot, decode, predict"] = median_us(lambda i: service.predict([example(i)]))
        service.log.close()
        _, read, score, whole, _ = parts.values()
        parts["predict, beside reading and scoring"] = whole - read - score
        return [{"part": name, "us": us} for name, us in parts.items()], len(project.plan.columns)


def show(http: list[Row], parts: list[Row], memory: float) -> None:
    """Print all as tables."""
    print(
        f"{'over HTTP, one row a request':<30}{'p50':>9}{'p99':>9}{'ratio':>8}{f'{MANY} connections':>19}{'ratio':>8}"
    )
    for one in http:
        print(
            f"{one['case']:<30}{one['p50_us']:>6.0f} µs{one['p99_us']:>6.0f} µs{one['p50_ratio']:>8.2f}"
            f"{one['per_s']:>17,.0f}/s{one['per_s_ratio']:>8.2f}"
        )
    print(f"memory of the serving process {memory:.0f} MB\n\ninside, median of {CALLS:,} calls")
    for one in parts:
        print(f"{one['part']:<44}{one['us']:>7.1f} µs")


def main() -> None:
    """Measure all, and print tables or JSON."""
    parser = argparse.ArgumentParser(description="Measure serving beside a bare uvicorn.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=3.0, help="of every measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", choices=["echo", "serve"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.folder)
        return
    with tempfile.TemporaryDirectory() as parent:
        folder = f"{parent}/orders"
        write_project(folder)
        run(project_in(folder), state=None, seed=0, progress=Silent(), clock=VirtualClock(END))
        parts, width = inside(folder)
        http, memory = over_http(folder, width, options.seconds, options.rounds)
    if options.json:
        print(orjson.dumps({"http": http, "inside": parts, "memory_mb": memory}, option=orjson.OPT_INDENT_2).decode())
    else:
        show(http, parts, memory)


if __name__ == "__main__":
    main()
