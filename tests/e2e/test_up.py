"""The control loop beside a server: events of the local stream become features, bad ones are set aside, answers counted."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from headrace.cli.template import write_project
from headrace.core.settings import ServingSettings
from headrace.core.time import DAY, SECOND, Instant, VirtualClock
from headrace.pipelines.project import Project, load_project
from headrace.pipelines.run import run
from headrace.pipelines.serve import PipelineService
from headrace.pipelines.stores import Stores, open_stores
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
            service.log.close()  # killed: what was answered since the state was kept is in the log alone
            letters = stores.tables.read("dead_letters_orders", where=[("format", "=", "json")]).to_pylist()
            assert [(row["payload"], row["partition"], row["offset"]) for row in letters] == [(b"not JSON", 0, "3")]
            assert letters[0]["reason"].startswith("not JSON")


def test_a_day_that_is_over_is_sealed_and_judged_for_drift_and_so_is_what_a_kill_left_open(project: Project) -> None:
    clock = VirtualClock(Instant(NOW + 3 * DAY))
    with (
        open_stores(project, None, clock=clock, write=True) as stores,
        open_streams(stores.state.url("streams"), clock=clock) as streams,
    ):
        service = PipelineService(project, stores, clock)
        controller = Controller(service, streams, seed=0)
        left = service.log.segment
        ask(service, "left open")
        assert sealed(stores) == set(range(1, left))
        again = PipelineService(project, stores, clock)  # as after a kill
        assert sealed(stores) == set(range(1, left + 1))
        controller = Controller(again, streams, seed=0)
        watch = controller.loop.monitoring.drift
        assert watch is not None
        before = watch.served
        for number in range(30):
            ask(again, f"served {number}")
        clock.advance_to(clock.now() + DAY)
        controller.tick()
        assert sealed(stores) == set(range(1, again.log.segment))
        assert again.log.segment == left + 2
        assert watch.served == before + 1
        assert again.log.block.seen == 0
        again.log.close()
        service.log.close()


def sealed(stores: Stores) -> set[int]:
    return {int(r.subject.removeprefix("segment-")) for r in stores.ledger.read(kinds=["log.sealed"])}


def test_requests_are_answered_while_a_model_is_trained(project: Project, tmp_path: Path) -> None:
    clock, state = VirtualClock(Instant(NOW - 29 * DAY)), str(tmp_path / "state")
    run(project, state=state, seed=0, progress=Silent(), clock=clock)
    with (
        open_stores(project, state, clock=clock, write=True) as stores,
        open_streams(stores.state.url("streams"), clock=clock) as streams,
    ):
        service = PipelineService(project, stores, clock)
        controller = Controller(service, streams, seed=1)
        clock.advance_to(clock.now() + 31 * DAY)
        worker = threading.Thread(target=controller.tick)
        worker.start()
        answers = 0
        while worker.is_alive():
            ask(service, f"meanwhile {answers}")
            answers += controller.loop.monitoring.state.in_flight
        assert len(stores.ledger.read(kinds=["retrained"])) == 1
        assert answers > 20
        service.log.close()


def test_with_no_sync_interval_an_answer_is_on_the_disk_before_it_is_given(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = project.settings.model_copy(update={"serving": ServingSettings(log_sync=0)})
    strict = replace(project, settings=settings)
    clock = VirtualClock(Instant(NOW + 40 * DAY))
    for one, expected in ((strict, 1), (project, 0)):
        with open_stores(one, None, clock=clock, write=True) as stores:
            service = PipelineService(one, stores, clock)
            synced: list[int] = []
            with monkeypatch.context() as patched:
                patched.setattr("headrace.serving.log.os.fsync", synced.append)
                ask(service, "asked")
            assert len(synced) == expected
            service.log.close()


def test_what_was_answered_and_labelled_before_a_kill_is_recalled(project: Project, tmp_path: Path) -> None:
    clock, state = VirtualClock(NOW), str(tmp_path / "state")
    run(project, state=state, seed=0, progress=Silent(), clock=clock)
    views = []
    for killed in (True, False):
        with (
            open_stores(project, state, clock=clock, write=True) as stores,
            open_streams(stores.state.url("streams"), clock=clock) as streams,
        ):
            service = PipelineService(project, stores, clock)
            controller = Controller(service, streams, seed=0)
            if killed:
                controller.tick()
                for number in range(8):
                    ask(service, f"n{number}")
                clock.advance_to(clock.now() + SECOND)
                streams.append("Orders", [order(i, clock.now(), 30.0) for i in range(5)])
                clock.advance_to(clock.now() + SECOND)
                controller.tick()
            live = controller.loop.live
            views.append(
                (live.traffic(NOW, clock.now()), sorted(live.labels.unlabelled()), str(live.labels.labels.tolist()))
            )
            service.log.close()
    assert views[0] == views[1]
    assert views[0][0] == {"orders/v1": 8}
    assert views[0][2] == str([1.0] * 5 + [float("nan")] * 3)
