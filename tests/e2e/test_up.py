"""The control loop beside a server: events of the local stream become features, bad ones are set aside, answers counted."""

from __future__ import annotations

import json

import pytest

from headrace.cli.template import write_project
from headrace.core.time import DAY, Instant, VirtualClock
from headrace.pipelines.project import Project, load_project
from headrace.pipelines.run import run
from headrace.pipelines.serve import PipelineService
from headrace.pipelines.stores import open_stores
from headrace.pipelines.up import Controller
from headrace.pipelines.view import Silent
from headrace.serving.core import Answer
from headrace.storage.streams import open_streams

NOW = Instant.parse("2024-06-01T12:00:00Z")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("up") / "project"
    write_project(str(folder))
    found = load_project("orders:pipeline", folder=folder)
    run(found, state=None, seed=0, progress=Silent(), clock=VirtualClock(NOW))
    return found


def order(number: int, at: Instant, hours: float) -> bytes:
    placed = at.isoformat()
    return json.dumps(
        {"order_id": f"n{number}", "placed": placed, "shop": "shop-3", "items": 4, "delivered": placed, "hours": hours}
    ).encode()


def ask(service: PipelineService, name: str) -> Answer:
    rows = [{"order_id": name, "placed": service.clock.now().isoformat(), "shop": "shop-3", "items": 4}]
    found = service.predict(rows)[0]
    assert isinstance(found, Answer)
    return found


def test_an_event_is_a_feature_after_the_next_tick_and_a_restart_applies_nothing_twice(project: Project) -> None:
    clock = VirtualClock(Instant(NOW + DAY))
    for restart in (False, True):
        with (
            open_stores(project, None, clock=clock, write=True) as stores,
            open_streams(stores.state.url("streams"), clock=clock) as streams,
        ):
            service = PipelineService(project, stores, clock)
            controller = Controller(service, streams, seed=0)
            if not restart:
                assert ask(service, "before").vector.to_dict()["Shop.orders[1d]"] == 0
                streams.append("Orders", [order(i, clock.now(), 50.5) for i in range(3)] + [b"not JSON"])
            clock.advance_to(clock.now() + 1_000_000)
            controller.tick()
            features = ask(service, f"after {restart}").vector.to_dict()
            assert (features["Shop.orders[1d]"], features["Shop.hours[1d]"]) == (3, 50.5)
            assert controller.loop.live.traffic(NOW, clock.now() + 1) == {"orders/v1": 3 if restart else 2}
            controller.tick()
            service.log.close()
            refused = stores.tables.read("quarantine")
            assert [r for r in refused["reason"].to_pylist() if "not JSON" in r] == [refused["reason"].to_pylist()[-1]]
