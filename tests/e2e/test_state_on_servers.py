"""Online state and streams on Redis: brought up, verified, rebuilt, erased, and what cannot be erased there is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from redis import Redis

from headrace.cli.template import write_project
from headrace.core.errors import HeadraceError
from headrace.core.time import DAY, Instant, SystemClock, VirtualClock
from headrace.pipelines.erase import erase
from headrace.pipelines.feed import open_project_streams
from headrace.pipelines.materialize import materialize, rebuild_online
from headrace.pipelines.project import Project, load_project
from headrace.pipelines.run import run
from headrace.pipelines.serve import PipelineService
from headrace.pipelines.stores import DATABASES, open_stores
from headrace.pipelines.up import Controller
from headrace.pipelines.verify import AWAY, measure_skew
from headrace.pipelines.view import Silent
from headrace.serving.definition import Endpoint
from headrace.testing.proxy import Proxy
from headrace.testing.servers import kafka_broker
from tests.servers import DynamoServer, RedisServer

NOW = Instant.parse("2024-05-02T12:00:00Z")
KEY = "shop-13"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with kafka_broker(tmp_path_factory.mktemp("kafka")) as port:
        yield f"127.0.0.1:{port}?ahead=600w"


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
            streams.append(
                stream_of(str(found.settings.stores.keyvalue)),
                [event(f"s{number}", name, clock), f"no JSON about {name}".encode()],
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


def test_an_erasure_empties_redis_and_its_streams_and_the_feed_goes_on(project: Project) -> None:
    view = erase(
        project, f"Orders.shop={KEY}", source=None, group=None, why="asked", yes=True, state=None, progress=Silent()
    )
    assert (view["predictions"], view["dead letters"], view["records of streams"]) == (2, 2, 4)
    assert not any(view["left"].values())
    name = stream_of(str(project.settings.stores.keyvalue))
    client: Any = Redis.from_url(str(project.settings.stores.streams))
    entries = client.xrange(name)
    assert len(entries) == 2 and not any(KEY.encode() in value for _, fields in entries for value in fields.values())
    rows = online_rows(project)
    assert rows and not any(KEY.encode() in row.replace(f"{KEY}0".encode(), b"") for row in rows)
    clock = VirtualClock(Instant(NOW + DAY))
    with (
        open_stores(project, None, clock=clock, write=True) as stores,
        open_project_streams(project, stores, clock) as streams,
    ):
        service = PipelineService(project, stores, clock)
        controller = Controller(service, streams, seed=0)
        controller.loop.state = replace(controller.loop.state, daily=NOW + 400 * DAY)
        streams.append(name, [event("late", "shop-3", clock)])
        clock.advance_to(Instant(clock.now() + 1_000_000))
        controller.tick()
        row = {"order_id": "x", "placed": clock.now().isoformat(), "shop": "shop-3", "items": 1}
        (answer,) = service.predict([row])
        assert answer.vector.to_dict()["Shop.orders[1d]"] == 2  # type: ignore[union-attr]
        service.log.close()


def test_an_erasure_empties_dynamodb_and_says_what_to_do_about_kafka(
    tmp_path: Path, dynamodb: DynamoServer, broker: str
) -> None:
    write_project(str(tmp_path / "shop"))
    data = tmp_path / "shop/data/orders.csv"
    data.write_text("".join(data.read_text().splitlines(keepends=True)[:200]))  # each commit costs moto its whole table
    found, clock = load_project("orders:pipeline", folder=tmp_path / "shop"), VirtualClock(NOW)
    at = {"keyvalue": dynamodb.url(timeout="10s"), "streams": f"kafka://{broker}"}
    where = found.settings.stores.model_copy(update=at)
    project = replace(found, settings=found.settings.model_copy(update={"stores": where}))
    with pytest.raises(HeadraceError):  # too few rows to train on; they are ingested all the same
        run(project, state=None, seed=0, progress=Silent(), clock=clock)
    materialize(project, groups=[], state=None, progress=Silent())
    with (
        open_stores(project, None, clock=clock, write=False) as stores,
        open_project_streams(project, stores, clock) as streams,
    ):
        for number, name in enumerate([KEY, "shop-3", f"{KEY}0", KEY]):
            streams.append("Orders", [event(f"s{number}", name, clock)])
    assert any(KEY.encode() in row.replace(f"{KEY}0".encode(), b"") for row in online_rows(project))
    view = erase(
        project, f"Orders.shop={KEY}", source=None, group=None, why="asked", yes=True, state=None, progress=Silent()
    )
    assert view["reveals"] > 0 and (view["records of streams"], view["left"]["files"]) == (0, ())
    (left,) = view["left"]["elsewhere"]
    assert left.startswith(
        "2 events of stream Orders state it, up to offset 3 of partition 0, and kafka does not delete"
    )
    assert "--topic Orders --add-config retention.ms=…" in left and left in view.notes and broker not in left
    rows = online_rows(project)
    assert rows and not any(KEY.encode() in row.replace(f"{KEY}0".encode(), b"") for row in rows)


def online_rows(project: Project) -> list[bytes]:
    with open_stores(project, None, clock=SystemClock(), write=False) as stores, stores.online.read() as snapshot:
        return [key + value for database in DATABASES for key, value in snapshot.items(database)]


def event(order: str, shop: str, clock: VirtualClock) -> bytes:
    placed = clock.now().isoformat()
    told = {"order_id": order, "placed": placed, "shop": shop, "items": 2, "delivered": placed, "hours": 9.5}
    return json.dumps(told).encode()
