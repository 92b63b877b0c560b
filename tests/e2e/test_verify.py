"""Log and recompute: what was served is what history gives, bit for bit; where it is not, both values and the events show."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import typer

import headrace as hr
from headrace.cli.main import app
from headrace.cli.output import finish
from headrace.core.errors import DataError, GateRefused
from headrace.core.time import DAY, HOUR, Instant, SystemClock, VirtualClock
from headrace.evaluation.run import SkewFact
from headrace.features.stream import DATABASE
from headrace.features.windows import OnlineLane
from headrace.pipelines.project import Project, load_project
from headrace.pipelines.replay import ReplayPlan, replay
from headrace.pipelines.run import run
from headrace.pipelines.serve import PipelineService
from headrace.pipelines.stores import Stores, applied_key, open_stores
from headrace.pipelines.up import Controller
from headrace.pipelines.verify import Skew, measure_skew, verify
from headrace.pipelines.view import Silent
from headrace.storage.streams import open_streams

NOW = Instant.parse("2024-05-02T12:00:00Z")


def loaded(folder: Path) -> Project:
    return load_project("orders:pipeline", folder=folder)


@contextmanager
def serving(folder: Path, clock: VirtualClock) -> Iterator[tuple[PipelineService, Controller, Stores]]:
    project = loaded(folder)
    with (
        open_stores(project, None, clock=clock, write=True) as stores,
        open_streams(stores.state.url("streams"), clock=clock) as streams,
    ):
        service = PipelineService(project, stores, clock)
        controller = Controller(service, streams, seed=0)
        controller.loop.state = replace(controller.loop.state, daily=NOW + 400 * DAY)
        yield service, controller, stores
        service.log.close()


def live(folder: Path, clock: VirtualClock, rounds: int = 10) -> None:
    """Let events come, late ones and corrections too, and ask about orders in between."""
    rng = random.Random(int(clock.now()))
    with serving(folder, clock) as (service, controller, _):
        for step in range(rounds):
            clock.advance_to(Instant(clock.now() + 5 * HOUR))
            events = []
            for number in rng.choices(range(20), k=6):
                placed = Instant(clock.now() - rng.randrange(2 * DAY)).isoformat()
                event = {"order_id": f"s{number}", "placed": placed, "shop": f"shop-{number % 3}", "items": 2}
                event |= {"delivered": placed, "hours": round(rng.uniform(1, 50), 2)}
                events.append(json.dumps(event).encode())
            ask(service, f"before {step}", "shop-1")
            controller.streams.append("Orders", events)
            controller.tick()
            for shop in ("shop-0", "shop-1", "shop-2", "shop-99"):
                ask(service, f"{step} {shop}", shop)


def ask(service: PipelineService, name: str, shop: str) -> None:
    row = {"order_id": name, "placed": service.clock.now().isoformat(), "shop": shop, "items": 4}
    service.predict([row])


def skew_of(folder: Path, sample: int = 1_000) -> Skew:
    project = loaded(folder)
    with open_stores(project, None, clock=SystemClock(), write=False) as stores:
        return measure_skew(project, stores, sample=sample)


def test_what_was_served_between_events_is_what_history_gives(shop: Path) -> None:
    live(shop, VirtualClock(NOW))
    skew = skew_of(shop)
    assert (skew.found, skew.compared, skew.differing, skew.skipped) == (50, 50, 0, {})
    assert skew.values == 50 * len(loaded(shop).plan.columns)
    fewer = skew_of(shop, sample=7)
    assert (fewer.found, fewer.compared) == (50, 7)
    late_load(shop)
    assert skew_of(shop).differing == 0


def late_load(folder: Path) -> None:
    """Let a file bring what history should have known long ago: what was served before knew nothing of it."""
    with (folder / "data" / "orders.csv").open("a") as file:
        for i in range(50):
            placed = Instant(NOW + i * HOUR).isoformat()
            file.write(f"l{i},{placed},shop-{i % 3},5,{placed},{i}.5\n")
    project = loaded(folder)
    with suppress(GateRefused, DataError):
        run(project, state=None, seed=1, progress=Silent(), clock=VirtualClock(Instant(NOW + 30 * DAY)))


def tamper(folder: Path) -> None:
    """Put an event into a key of the online store that no row has."""
    project = loaded(folder)
    lane = project.plan.groups[0].lanes[0]
    with open_stores(project, None, clock=SystemClock(), write=True) as stores, stores.online.write() as transaction:
        access = transaction.access(DATABASE)
        key = lane.prefix + b"s\0\0\0\6shop-1"
        assert access.get(key) is not None
        packed = lane.lane.pack([1e9, 1])
        OnlineLane(lane.lane, lane.outputs).change(access, key, (NOW - HOUR, NOW - HOUR, 7, packed), None)


def test_skew_shows_both_values_and_the_events_and_refuses_the_gate(shop: Path) -> None:
    tamper(shop)
    clock = VirtualClock(NOW)
    live(shop, clock, rounds=3)
    view = verify(loaded(shop), sample=100, since=None, state=None, clock=clock)
    assert view["differing"] > 0
    first = view["differences"][0]
    assert first["feature"].startswith("Shop.") and first["served"] != first["recomputed"]
    assert first["events"][0]["events"]
    assert set(view["features"]) <= {c.name for c in loaded(shop).plan.columns if c.origin == "window"}
    with open_stores(loaded(shop), None, clock=clock, write=False) as stores:
        (record,) = stores.ledger.read(kinds=["verified"])
    assert record.body["differing"] == view["differing"] and "differences" not in record.body
    assert "shop-1" not in json.dumps(dict(record.body))
    file = shop / "orders.py"
    file.write_text(file.read_text().replace("gates=[", "gates=[hr.skew() <= 0, "))
    with pytest.raises(GateRefused, match="skew") as refused:
        run(loaded(shop), state=None, seed=2, progress=Silent(), clock=clock)
    assert "skew() <= 0: measured 0." in str(refused.value)


def test_a_gate_on_skew_holds_where_nothing_was_served_and_says_so(shop: Path) -> None:
    file = shop / "orders.py"
    file.write_text(file.read_text().replace("gates=[", "gates=[hr.skew() <= 0, "))
    view = verify(loaded(shop), sample=10, since="1d", state=None, clock=VirtualClock(NOW))
    assert view.title == "Nothing to compare" and view["compared"] == 0
    assert "Nothing was served" in view.notes[0]
    project = loaded(shop)
    with suppress(GateRefused):
        run(project, state=None, seed=2, progress=Silent(), clock=VirtualClock(NOW))
    with open_stores(project, None, clock=SystemClock(), write=False) as stores:
        gates = stores.ledger.read(kinds=["gates"], newest_first=True, limit=1)[0].body["gates"]
    assert (gates[0]["passed"], gates[0]["reason"]) == (True, "nothing was served with these features yet")


def test_what_cannot_be_compared_is_counted_by_reason(shop: Path) -> None:
    live(shop, VirtualClock(NOW), rounds=2)
    project = loaded(shop)
    with open_stores(project, None, clock=SystemClock(), write=True) as stores:
        with stores.online.write() as transaction:
            transaction.delete(DATABASE, applied_key("Orders"))
        service = PipelineService(project, stores, VirtualClock(Instant(NOW + 5 * DAY)))
        ask(service, "unknown", "shop-1")
        service.log.close()
        stores.tables.compact("reveals_orders", retain=0)
    skew = skew_of(shop)
    assert skew.found == 11 and skew.differing == 0
    assert skew.skipped["served from a state that is not known"] == 1
    assert skew.skipped["of table versions no longer kept"] + skew.compared == 10
    file = shop / "orders.py"
    file.write_text(file.read_text().replace('over("1d", "7d")', 'over("1d", "6d")'))
    other = skew_of(shop)
    assert other.skipped == {"of other features": 11}
    assert other.fact() == SkewFact(None, 0, True, "11 predictions of other features")


def test_a_replay_is_compared_with_its_own_history(trained_shop: Path, tmp_path: Path) -> None:
    project, state = loaded(trained_shop), str(tmp_path / "replayed")
    plan = ReplayPlan.parse("2024-02-01", "2024-02-05", seed=1, faults=[], freeze=None)
    replay(project, plan, state=state, progress=Silent())
    view = verify(project, sample=50, since="2024-01-01T00:00:00Z", state=state)
    assert (view["compared"], view["differing"], view["found"]) == (50, 0, 4 * 60)


def test_the_verb_exits_with_three_where_values_differ(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tamper(shop)
    live(shop, VirtualClock(NOW), rounds=1)
    monkeypatch.chdir(shop)
    command = typer.main.get_command(app)
    arguments = ["verify", "--since", "2024-05-01T00:00:00Z", "--json"]
    code = finish(lambda: command.main(arguments, standalone_mode=False), as_json=True)
    assert (code, json.loads(capsys.readouterr().out)["differing"] > 0) == (3, True)
    assert hr.skew(sample=5).sample == 5
