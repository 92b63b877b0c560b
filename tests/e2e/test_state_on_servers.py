"""Online state and streams on Redis: brought up, verified, rebuilt, erased, and what cannot be erased there is named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from headrace.core.time import DAY, Instant, SystemClock, VirtualClock
from headrace.pipelines.erase import erase
from headrace.pipelines.feed import open_project_streams
from headrace.pipelines.materialize import materialize, rebuild_online
from headrace.pipelines.project import Project, load_project
from headrace.pipelines.serve import PipelineService
from headrace.pipelines.stores import DATABASES, open_stores
from headrace.pipelines.up import Controller
from headrace.pipelines.verify import AWAY, measure_skew
from headrace.pipelines.view import Silent
from headrace.serving.definition import Endpoint
from headrace.testing.proxy import Proxy
from tests.servers import RedisServer

NOW = Instant.parse("2024-05-02T12:00:00Z")
KEY = "shop-13"


def moved(folder: Path, redis: RedisServer, url: str) -> Project:
    """Return the project with online state and streams on Redis."""
    project = load_project("orders:pipeline", folder=folder)
    stores = project.settings.stores.model_copy(update={"keyvalue": url, "streams": redis.address})
    sources = {"Orders": project.settings.sources["Orders"].model_copy(update={"stream": stream_of(url)})}
    return replace(project, settings=project.settings.model_copy(update={"stores": stores, "sources": sources}))


def stream_of(url: str) -> str:
    """Return a stream of its own for each prefix."""
    return f"orders-{parse_qs(urlsplit(url).query)['prefix'][0]}"


@pytest.fixture
def project(shop: Path, redis: RedisServer) -> Project:
    """Return a trained project whose online state was brought up on Redis and where a stream went on."""
    found, clock = moved(shop, redis, redis.url()), VirtualClock(NOW)
    shutil.rmtree(shop / ".headrace" / "online")  # where it was before
    materialize(found, groups=[], state=None, progress=Silent())
    with (
        open_stores(found, None, clock=clock, write=True) as stores,
        open_project_streams(found, stores, clock) as streams,
    ):
        service = PipelineService(found, stores, clock)
        controller = Controller(service, streams, seed=0)
        controller.loop.state = replace(controller.loop.state, daily=NOW + 400 * DAY)
        for number, name in enumerate([KEY, "shop-3", KEY]):
            clock.advance_to(Instant(clock.now() + 1_000_000))
            placed = clock.now().isoformat()
            event = {"order_id": f"s{number}", "placed": placed, "shop": name, "items": 2}
            event |= {"delivered": placed, "hours": 9.5}
            streams.append(
                stream_of(str(found.settings.stores.keyvalue)),
                [json.dumps(event).encode(), f"no JSON about {name}".encode()],
            )
            controller.tick()
            ask(service, f"q{number}", name)
        controller.keep()
        service.log.close()
    return found


def ask(service: PipelineService, order: str, shop: str) -> None:
    service.predict([{"order_id": order, "placed": service.clock.now().isoformat(), "shop": shop, "items": 4}])


def test_what_was_served_from_redis_is_compared_with_history(project: Project, shop: Path, redis: RedisServer) -> None:
    proxy, clock = Proxy(redis.port), VirtualClock(Instant(NOW + DAY))
    url = str(project.settings.stores.keyvalue).replace(str(redis.port), str(proxy.port)) + "&timeout=100ms"
    behind = moved(shop, redis, url)
    behind.pipeline.endpoint = Endpoint(on_missing="default", fallback=0.5)
    with open_stores(behind, None, clock=SystemClock(), write=True) as stores:
        service = PipelineService(behind, stores, clock)
        ask(service, "there", "shop-3")
        proxy.spoil("refuse")
        ask(service, "away", "shop-3")
        assert service.filled().lag is None  # nobody knows meanwhile, and the page of metrics answers all the same
        proxy.spoil("pass")
        service.log.close()
    proxy.close()
    with open_stores(project, None, clock=SystemClock(), write=False) as stores:
        skew = measure_skew(project, stores, sample=100)
    assert (skew.found, skew.compared, skew.differing) == (5, 4, 0)
    assert skew.skipped == {AWAY: 1}


def test_a_rebuild_on_redis_ends_in_the_same_state_whole_and_by_group(project: Project) -> None:
    before = materialize(project, groups=[], state=None, progress=Silent())
    assert (before["reveals"], before["keys"]) == (0, 0)
    rebuilt = rebuild_online(project, state=None, progress=Silent())
    filled = rebuild_online(project, group="Shop", state=None, progress=Silent())
    assert rebuilt["digest"] == filled["digest"] == before["digest"]
    assert filled["groups"] == ["Shop"] and filled["keys"] > 10


def test_an_erasure_empties_redis_and_names_the_events_that_it_cannot_rewrite(project: Project) -> None:
    view = erase(
        project, f"Orders.shop={KEY}", source=None, group=None, why="asked", yes=True, state=None, progress=Silent()
    )
    assert (view["predictions"], view["dead letters"], view["records of streams"]) == (2, 2, 0)
    (left,) = view["left"]["elsewhere"]
    assert left.startswith("4 events of stream orders-") and "redis does not rewrite records" in left
    assert view["left"] == {"files": (), "records": (), "elsewhere": (left,)} and left in view.notes
    with open_stores(project, None, clock=SystemClock(), write=False) as stores, stores.online.read() as snapshot:
        rows = [key + value for database in DATABASES for key, value in snapshot.items(database)]
    assert rows and not any(KEY.encode() in row.replace(f"{KEY}0".encode(), b"") for row in rows)
