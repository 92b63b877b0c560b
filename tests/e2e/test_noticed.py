"""A running server learns labels and foreign keys from what is ingested beside it, and from what was there before it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headrace.cli.template import write_project
from headrace.core.identity import encode_key
from headrace.core.time import DAY, Instant, VirtualClock
from headrace.pipelines.project import Project, load_project
from headrace.pipelines.quarantine import decisions_of, quarantined
from headrace.pipelines.run import run
from headrace.pipelines.serve import PipelineService
from headrace.pipelines.stores import Stores, open_stores
from headrace.pipelines.up import Controller
from headrace.pipelines.view import Silent
from headrace.storage.streams import Streams, open_streams

NOW = Instant.parse("2024-06-01T12:00:00Z")
REFUNDS = """class Refunds(hr.Source):
    refund_id: hr.Column[str] = hr.row_id()
    paid: hr.Column[hr.Instant] = hr.event_time()
    order_id: hr.Column[str] = hr.foreign_key(Orders.order_id)
    checks = hr.Checks(hr.foreign_key(order_id, Orders.order_id), bad_rows="quarantine")


class Refunded(hr.FeatureGroup, of=Refunds, entity=Refunds.order_id):
    refunds = hr.count(Refunds.refund_id).over("7d")


@hr.on_demand("""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    folder = tmp_path / "project"
    write_project(str(folder))
    text = (folder / "orders.py").read_text().replace("trials=5", "trials=1")
    text = text.replace("@hr.on_demand(", REFUNDS, 1).replace("Shop, weekday]", "Shop, Refunded, weekday]")
    text = text.replace('hr.Checks(hr.row_count().within(0.8, of="7d"), ', "hr.Checks(")  # clocks differ by years here
    (folder / "orders.py").write_text(text)
    with (folder / "headrace.toml").open("a") as settings:
        settings.write('\n[sources.Refunds]\npath = "data/refunds.csv"\n')
    order = (folder / "data/orders.csv").read_text().splitlines()[1].split(",")[0]
    (folder / "data/refunds.csv").write_text(f"refund_id,paid,order_id\nr0,2024-03-01T00:00:00Z,{order}\n")
    found = load_project("orders:pipeline", folder=folder)
    run(found, state=None, seed=0, progress=Silent(), clock=VirtualClock(NOW))
    return found


class Server:
    """Hold a controller whose ticks a test drives."""

    def __init__(self, project: Project, stores: Stores, streams: Streams, clock: VirtualClock) -> None:
        self.project, self.stores, self.streams, self.clock = project, stores, streams, clock
        self.service = PipelineService(project, stores, clock)
        self.controller = Controller(self.service, streams, seed=0)
        self.controller.loop.state = replace(self.controller.loop.state, daily=NOW + 400 * DAY)

    def tick(self) -> None:
        self.clock.advance_to(Instant(self.clock.now() + 1_000_000))
        self.controller.tick()

    def order(self, name: str, **more: Any) -> None:
        placed = self.clock.now().isoformat()
        row = {"order_id": name, "placed": placed, "shop": "shop-3", "items": 4, "delivered": placed} | more
        self.streams.append("Orders", [json.dumps(row).encode()])

    def refund(self, name: str, order: str) -> None:
        row = {"refund_id": name, "paid": self.clock.now().isoformat(), "order_id": order}
        self.streams.append("Refunds", [json.dumps(row).encode()])

    def ask(self, name: str) -> None:
        self.service.predict([{"order_id": name, "placed": self.clock.now().isoformat(), "shop": "shop-3", "items": 4}])

    def label(self, name: str) -> float:
        book, key = self.controller.loop.live.labels, encode_key([name])
        assert key is not None
        return float(book.labels[book.place(key)])

    def waiting(self, source: str) -> int:
        tables = self.stores.tables
        return len({*quarantined(tables, source)["id"].to_pylist()} - decisions_of(tables, source).keys())


@pytest.fixture
def server(project: Project) -> Iterator[Server]:
    clock = VirtualClock(Instant(NOW + DAY))
    with (
        open_stores(project, None, clock=clock, write=True) as stores,
        open_streams(stores.state.url("streams"), clock=clock) as streams,
    ):
        found = Server(project, stores, streams, clock)
        yield found
        found.service.log.close()


def beside(project: Project, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "headrace.cli", *words], cwd=project.folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_labels_and_foreign_keys_of_released_rows_are_known_at_the_next_tick(server: Server) -> None:
    server.ask("early")
    server.ask("corrected")
    server.order("large", items=500, delivered=None)
    server.order("early", hours=-1.0)
    server.order("corrected", hours=30.0)
    server.tick()
    server.order("corrected", hours=-2.0)
    server.refund("r1", "large")
    server.tick()
    assert (server.waiting("Orders"), server.waiting("Refunds")) == (3, 1)
    assert math.isnan(server.label("early")) and server.label("corrected") == 1.0
    beside(server.project, "quarantine", "release", "Orders", "--everything", "--why", "the clocks were wrong")
    server.refund("r2", "large")
    server.tick()
    assert (server.label("early"), server.label("corrected")) == (0.0, 0.0)
    assert (server.waiting("Orders"), server.waiting("Refunds")) == (0, 1)
    noticed = server.controller.noticed
    server.tick()
    assert server.controller.noticed == noticed


def test_dropped_rows_are_no_labels_and_no_keys(server: Server) -> None:
    server.ask("early")
    server.order("early", hours=-1.0)
    server.order("large", items=500, delivered=None)
    server.tick()
    beside(server.project, "quarantine", "drop", "Orders", "--everything", "--why", "a test of somebody's")
    server.refund("r1", "large")
    server.tick()
    assert math.isnan(server.label("early"))
    assert (server.waiting("Orders"), server.waiting("Refunds")) == (0, 1)


def test_labels_and_foreign_keys_of_replayed_letters_are_known_at_the_next_tick(server: Server) -> None:
    server.ask("late")
    naive = server.clock.now().isoformat().removesuffix("Z").split("+")[0]
    server.order("late", placed=naive, delivered=naive, hours=30.0)
    server.tick()
    assert math.isnan(server.label("late")) and server.controller.feed.letters["Orders"] == 1
    settings = server.project.folder / "headrace.toml"
    settings.write_text(settings.read_text().replace("[sources.Orders]", '[sources.Orders]\nzone = "UTC"', 1))
    beside(server.project, "dead-letters", "replay", "orders:pipeline")
    server.refund("r1", "late")
    server.tick()
    assert server.label("late") == 1.0 and server.waiting("Refunds") == 0


def test_what_was_stored_before_a_server_started_may_be_referred_to(server: Server) -> None:
    known = server.stores.tables.read("reveals_orders")["order_id"][0].as_py()
    server.refund("r1", known)
    server.refund("r2", "nobody")
    server.tick()
    assert server.waiting("Refunds") == 1
    assert sorted(server.stores.tables.read("reveals_refunds")["refund_id"].to_pylist()) == ["r0", "r1"]
