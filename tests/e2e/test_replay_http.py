"""A thousand requests over real HTTP get the bits that the replay answered for the same rows at the same moments."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import uvicorn

from headrace.core.time import DAY, Instant, SystemClock, VirtualClock
from headrace.features.stream import DATABASE, StreamPath
from headrace.pipelines.project import Project
from headrace.pipelines.replay import ReplayPlan, read_world, replay
from headrace.pipelines.serve import PipelineService, limits_of
from headrace.pipelines.stores import open_stores
from headrace.pipelines.view import Silent
from headrace.serving.connection import connection
from headrace.serving.http import App, bind
from headrace.serving.log import read_segment, segments
from headrace.serving.record import Prediction
from headrace.sources.values import plain

START, PAUSE, END = "2024-01-01", "2024-02-27", "2024-03-16"


def lived(project: Project, end: str, state: Path) -> ReplayPlan:
    plan = ReplayPlan.parse(START, end, seed=3, faults=[], freeze=None)
    replay(project, plan, state=str(state), progress=Silent())
    return plan


def logged(project: Project, state: Path) -> dict[bytes, Prediction]:
    with open_stores(project, str(state), clock=SystemClock(), write=False) as stores:
        found = [p for s in segments(stores.predictions) for p in read_segment(stores.predictions, s)]
    return {p.row_id: p for p in found}


@contextmanager
def listening(service: PipelineService) -> Iterator[httpx.Client]:
    """Serve on loopback in a thread."""
    socket = bind("127.0.0.1", 0, behind_proxy=False)
    limits = limits_of(service.project)
    config = uvicorn.Config(App(service, limits), http=connection(limits.header_bytes), log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    try:
        port = socket.getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def bits(value: object) -> object:
    return np.float64(value).tobytes() if isinstance(value, float) else value


def test_a_thousand_answers_over_http_are_those_of_the_replay(orders: Project, tmp_path: Path) -> None:
    whole = lived(orders, END, tmp_path / "whole")
    lived(orders, PAUSE, tmp_path / "paused")
    expected, world = logged(orders, tmp_path / "whole"), read_world(orders, whole)
    clock, answered = VirtualClock(Instant.parse(PAUSE)), 0
    columns = orders.plan.rows.columns
    needed = {c.name for c in orders.plan.request}
    path = StreamPath([orders.plan])
    with open_stores(orders, str(tmp_path / "paused"), clock=clock, write=True) as stores:
        service = PipelineService(orders, stores, clock)
        with listening(service) as client:
            for day in range(Instant.parse(PAUSE), Instant.parse(END), DAY):
                events = [(r.arrival, 0, r) for r in world.delivery("Orders", Instant(day)).reveals()]
                events += [(t, 1, row) for t, row in world.requests(day)]  # type: ignore[misc]
                for instant, kind, what in sorted(events, key=lambda event: event[:2]):
                    clock.advance_to(instant)
                    if kind == 0:
                        with service.lock, stores.online.write() as transaction:
                            path.apply(transaction.access(DATABASE), "Orders", what)
                        continue
                    row = {c.name: plain(c, v) for c, v in zip(columns, what, strict=True) if c.name in needed}
                    answer = client.post("/v1/predict/orders", json={"rows": [row]}).raise_for_status().json()
                    given, wanted = answer["predictions"][0], expected[service.core.row_id(what)]
                    assert bits(given["score"]) == bits(wanted.score)
                    assert (given["version"], given["decision"]) == (wanted.version, wanted.decision)
                    answered += 1
        service.log.close()
    assert answered >= 1_000
    over_http = {k: p for k, p in logged(orders, tmp_path / "paused").items() if p.t >= Instant.parse(PAUSE)}
    assert len(over_http) == answered
    for row_id, prediction in over_http.items():
        wanted = expected[row_id]
        assert (prediction.t, prediction.request, prediction.status) == (wanted.t, wanted.request, wanted.status)
        assert [bits(v) for v in prediction.features.values()] == [bits(v) for v in wanted.features.values()]
    assert not any(p.fallback for p in over_http.values())
