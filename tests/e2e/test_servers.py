"""A project whose online state lives on a server: run, answer, replay and recover as on LMDB, bit for bit."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.cli.template import write_project
from headrace.core.errors import ConfigurationError, Unavailable
from headrace.core.time import DAY, Instant, SystemClock, VirtualClock
from headrace.pipelines.materialize import rebuild_online
from headrace.pipelines.project import Project, load_project
from headrace.pipelines.replay import ReplayPlan, replay
from headrace.pipelines.run import run
from headrace.pipelines.serve import PipelineService
from headrace.pipelines.stores import open_stores
from headrace.pipelines.view import Silent
from headrace.serving.core import Answer
from headrace.serving.definition import Endpoint
from headrace.serving.http import App
from headrace.serving.log import find
from headrace.serving.record import DEGRADED, FALLBACK
from headrace.testing.proxy import Proxy
from tests.servers import RedisServer

NOW = Instant.parse("2024-05-01T12:00:00Z")
SERVERS = ["redis"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("servers") / "project"
    write_project(str(found))
    file = found / "orders.py"
    file.write_text(file.read_text().replace("trials=5", "trials=1"))
    return found


def on(folder: Path, url: str | None) -> Project:
    """Return the project with its online state at a URL."""
    project = load_project("orders:pipeline", folder=folder)
    stores = project.settings.stores.model_copy(update={"keyvalue": url})
    return replace(project, settings=project.settings.model_copy(update={"stores": stores}))


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Return a URL of its own on a server of a kind."""

    def find(kind: str) -> str:
        return str(request.getfixturevalue(kind).url())

    return find


@pytest.fixture(scope="module")
def embedded(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Any]]:
    """Return what a run leaves in LMDB, and the features that it answers with."""
    return ran(on(folder, None), str(tmp_path_factory.mktemp("embedded") / "state"))


def ran(project: Project, state: str) -> tuple[str, list[Any]]:
    run(project, state=state, seed=1, progress=Silent(), clock=VirtualClock(NOW))
    return answered(project, state)


def answered(project: Project, state: str) -> tuple[str, list[Any]]:
    with open_stores(project, state, clock=SystemClock(), write=True) as stores:
        service = PipelineService(project, stores, VirtualClock(NOW))
        found = [(a.score, a.vector.to_dict()) for a in asked(service)]
        service.log.close()
        return stores.online.digest("online"), found


def asked(service: PipelineService, shops: int = 20) -> list[Answer]:
    rows = [
        {"order_id": f"n{shop}", "placed": service.clock.now().isoformat(), "shop": f"shop-{shop}", "items": 3}
        for shop in range(shops)
    ]
    found = service.predict(rows)
    assert all(isinstance(answer, Answer) for answer in found)
    return [answer for answer in found if isinstance(answer, Answer)]


@pytest.mark.parametrize("kind", SERVERS)
def test_a_run_and_its_answers_equal_those_on_lmdb(
    folder: Path, embedded: tuple[str, list[Any]], place: Callable[[str], str], tmp_path: Path, kind: str
) -> None:
    project, state = on(folder, place(kind)), str(tmp_path / "state")
    assert ran(project, state) == embedded
    rebuild_online(project, state=state, progress=Silent())
    assert answered(project, state)[1] == embedded[1]


@pytest.mark.parametrize("kind", SERVERS)
def test_a_replay_decides_and_answers_as_on_lmdb(
    folder: Path, place: Callable[[str], str], tmp_path: Path, kind: str
) -> None:
    plan = ReplayPlan.parse("2024-01-01", "2024-02-10", seed=3, faults=[], freeze=None)
    results = [
        replay(on(folder, url), plan, state=str(tmp_path / name), progress=Silent())
        for name, url in (("embedded", None), ("served", place(kind)))
    ]
    assert results[0].digests == results[1].digests
    assert results[0].predictions == 40 * 60


def test_a_replay_does_not_touch_a_store_with_live_features(
    folder: Path, redis: RedisServer, live: tuple[str, str], tmp_path: Path
) -> None:
    project = on(folder, f"{redis.address}?prefix={live[0]}")
    plan = ReplayPlan.parse("2024-01-01", "2024-01-02", seed=3, faults=[], freeze=None)
    with pytest.raises(ConfigurationError, match="holds live features"):
        replay(project, plan, state=str(tmp_path / "replay"), progress=Silent())


@pytest.fixture(scope="module")
def live(folder: Path, redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Return the prefix and the state folder of a project that was run over Redis."""
    prefix, state = uuid.uuid4().hex, str(tmp_path_factory.mktemp("live") / "state")
    project = on(folder, f"{redis.address}?prefix={prefix}")
    run(project, state=state, seed=1, progress=Silent(), clock=VirtualClock(NOW))
    return prefix, state


@pytest.fixture
def proxy(redis: RedisServer) -> Iterator[Proxy]:
    found = Proxy(redis.port)
    yield found
    found.close()


@contextmanager
def serving(
    folder: Path, live: tuple[str, str], proxy: Proxy, endpoint: Endpoint, **settings: int
) -> Iterator[PipelineService]:
    """Serve the project with its store behind a proxy, and with another endpoint."""
    prefix, state = live
    project = on(folder, f"redis://127.0.0.1:{proxy.port}/0?prefix={prefix}&timeout=100ms")
    project.pipeline.endpoint = endpoint
    changed = project.settings.serving.model_copy(update={"store_retry": 10_000, **settings})
    project = replace(project, settings=project.settings.model_copy(update={"serving": changed}))
    with open_stores(project, state, clock=SystemClock(), write=True) as stores:
        service = PipelineService(project, stores, VirtualClock(NOW))
        try:
            yield service
        finally:
            service.log.close()


def features(answers: list[Answer]) -> list[dict[str, Any]]:
    return [answer.vector.to_dict() for answer in answers]


@pytest.mark.parametrize("fault", ["refuse", "delay", "reset"])
@pytest.mark.parametrize("on_missing", ["fallback", "default", "stale"])
def test_while_the_store_is_away_answers_degrade_as_the_endpoint_says(
    folder: Path, live: tuple[str, str], proxy: Proxy, on_missing: Any, fault: str
) -> None:
    with serving(folder, live, proxy, Endpoint(fallback=0.25, on_missing=on_missing)) as service:
        fresh = asked(service)
        for _ in range(2):
            proxy.spoil(fault)
            away = asked(service)
            proxy.spoil("pass")
            assert {answer.flags for answer in away} == {DEGRADED | (FALLBACK if on_missing == "fallback" else 0)}
            service.commit()
            assert all(find(service.stores.predictions, answer.id).degraded for answer in away)
            if on_missing == "fallback":
                assert {(answer.score, answer.variant) for answer in away} == {(0.25, "fallback")}
            elif on_missing == "stale":
                assert [(a.score, a.vector.to_dict()) for a in away] == [(a.score, a.vector.to_dict()) for a in fresh]
            else:
                known = {"Orders.items": 3, "weekday": NOW.in_zone("UTC").weekday()}
                assert features(away) == [dict.fromkeys(features(fresh)[0]) | known] * len(away)
            time.sleep(0.02)  # the store is left alone for 10 ms
            again = asked(service)
            assert features(again) == features(fresh)
            assert {answer.flags for answer in again} == {0}


def test_values_that_stand_in_have_an_age_and_their_own_keys(folder: Path, live: tuple[str, str], proxy: Proxy) -> None:
    with serving(folder, live, proxy, Endpoint(on_missing="stale"), stale_for=DAY) as service:
        fresh = asked(service, 3)
        proxy.spoil("refuse")
        away = features(asked(service))
        assert away[:3] == features(fresh)
        assert {row["Shop.hours[7d]"] for row in away[3:]} == {None}
        assert isinstance(service.clock, VirtualClock)
        service.clock.advance_to(Instant(NOW + 9 * DAY))
        assert {row["Shop.hours[7d]"] for row in features(asked(service))} == {None}
        proxy.spoil("pass")


def test_over_http_a_degraded_answer_is_marked_and_a_failed_one_says_when_to_come_back(
    folder: Path, live: tuple[str, str], proxy: Proxy
) -> None:
    body = {"rows": [{"order_id": "n1", "placed": NOW.isoformat(), "shop": "shop-3", "items": 3}]}

    async def post(service: PipelineService) -> httpx.Response:
        transport = httpx.ASGITransport(app=App(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/v1/predict/orders", json=body)

    for endpoint, status in ((Endpoint(on_missing="default"), 200), (Endpoint(), 503)):
        with serving(folder, live, proxy, endpoint) as service:
            assert "degraded" not in asyncio.run(post(service)).json()["predictions"][0]
            proxy.spoil("refuse")
            found = asyncio.run(post(service))
            proxy.spoil("pass")
            assert found.status_code == status
            if status == 200:
                assert found.json()["predictions"][0]["degraded"] is True
            else:
                assert found.headers["retry-after"] == "1"
                assert found.json()["error"] == "Redis cannot be reached"


def test_a_store_that_is_away_is_asked_once_and_then_left_alone(
    folder: Path, live: tuple[str, str], proxy: Proxy
) -> None:
    """Of requests that come while it is left alone none waits for it, however many they are."""
    with serving(folder, live, proxy, Endpoint(), store_retry=3_600_000_000) as service:
        asked(service)
        proxy.spoil("refuse")
        with pytest.raises(Unavailable):
            asked(service)
        proxy.spoil("pass")
        with pytest.raises(Unavailable):  # it is there again, and is not asked yet
            asked(service)
