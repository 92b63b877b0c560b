"""An erased key leaves no byte in any file of the state folder, and everything else goes on as if it had never been."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from headrace.core.errors import UsageError
from headrace.core.identity import text_id
from headrace.core.time import DAY, Instant, SystemClock, VirtualClock
from headrace.pipelines.baselines import load_baselines, set_baseline
from headrace.pipelines.erase import erase
from headrace.pipelines.project import Project, load_project
from headrace.pipelines.ranges import materialize_range
from headrace.pipelines.remains import remains_of
from headrace.pipelines.serve import PipelineService
from headrace.pipelines.stores import open_stores
from headrace.pipelines.up import Controller
from headrace.pipelines.verify import measure_skew
from headrace.pipelines.view import Silent, View
from headrace.serving.log import read_segment, segments
from headrace.storage.ledger import Entry
from headrace.storage.streams import open_streams

NOW = Instant.parse("2024-05-02T12:00:00Z")
KEY = "shop-13"
ERASE = [sys.executable, "-m", "headrace.cli", "erase", f"Orders.shop={KEY}", "--why", "asked for", "--yes", "--json"]


def loaded(folder: Path) -> Project:
    return load_project("orders:pipeline", folder=folder)


def event(number: int, shop: str, clock: VirtualClock) -> bytes:
    placed = clock.now().isoformat()
    return json.dumps(
        {"order_id": f"s{number}", "placed": placed, "shop": shop, "items": 2, "delivered": placed, "hours": 9.5}
    ).encode()


@pytest.fixture(scope="session")
def lived(trained_shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project that served, streamed and set rows aside, also about the key; and about one that begins like it."""
    folder = shutil.copytree(trained_shop, tmp_path_factory.mktemp("lived") / "project")
    project, clock = loaded(folder), VirtualClock(NOW)
    with (
        open_stores(project, None, clock=clock, write=True) as stores,
        open_streams(stores.state.url("streams"), clock=clock) as streams,
    ):
        service = PipelineService(project, stores, clock)
        controller = Controller(service, streams, seed=0)
        controller.loop.state = replace(controller.loop.state, daily=NOW + 400 * DAY)
        for number, shop in enumerate([KEY, "shop-3", f"{KEY}0", KEY, "shop-4"]):
            clock.advance_to(Instant(clock.now() + 1_000_000))
            bad = event(100 + number, shop, clock).replace(b'"items": 2', b'"items": -2')
            streams.append("Orders", [event(number, shop, clock), bad, b"not JSON about " + shop.encode()])
            controller.tick()
            service.predict([{"order_id": f"q{number}", "placed": clock.now().isoformat(), "shop": shop, "items": 4}])
        profile = {"categories": {KEY: 7, "shop-3": 9}, "texts": [KEY, f"{KEY}0"]}
        digest = stores.blobs.put(orjson.dumps(profile)).digest
        stores.ledger.append([Entry("profile", "orders/v0", {"blob": digest})])
        controller.keep()
        service.log.close()
    return folder


@pytest.fixture
def folder(lived: Path, tmp_path: Path) -> Path:
    return shutil.copytree(lived, tmp_path / "lived")


def erased(folder: Path, **options: Any) -> View:
    given: dict[str, Any] = {"source": None, "group": None, "why": "asked for", "yes": True, "state": None}
    return erase(loaded(folder), f"Orders.shop={KEY}", **given | options, progress=Silent(), clock=VirtualClock(NOW))


def held(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield every place in which the key stands: bytes of files, and values inside compressed pages."""
    for path in sorted(p for p in (folder / ".headrace").rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if KEY.encode() in path.read_bytes().replace(f"{KEY}0".encode(), b""):
            yield name, "bytes"
        if path.suffix == ".parquet":
            for column in pq.read_table(path).columns:
                texts = [v for v in column.to_pylist() if isinstance(v, (str, bytes))]
                if any(
                    (v if isinstance(v, str) else v.decode("latin1")).replace(f"{KEY}0", "").count(KEY) for v in texts
                ):
                    yield name, "values"


def test_no_byte_of_an_erased_key_is_left_and_the_rest_is_whole(folder: Path) -> None:
    before = set(held(folder))
    assert {name.split("/")[1] for name, _ in before} == {"online", "predictions", "streams", "tables", "blobs"}
    shown = erased(folder, yes=False)
    assert not shown["erased"] and shown["rows"]["Orders"] > 300 and "--yes does it" in shown.notes[0]
    assert set(held(folder)) == before
    project = loaded(folder)
    derived = materialize_range(project, "2024-02-01", "2024-02-03", state=None, progress=Silent())
    with open_stores(project, None, clock=SystemClock(), write=False) as stores:
        rows, version = stores.tables.read("reveals_orders"), stores.tables.describe("reveals_orders")
        head = stores.ledger.head()
    view = erased(folder)
    assert list(held(folder)) == []
    assert view["left"] == {"files": (), "records": (), "elsewhere": ()}
    assert view["rows with features"] == derived["rows"] == 120
    again = materialize_range(project, "2024-02-01", "2024-02-03", state=None, progress=Silent())
    assert 100 < again["rows"] < 120
    assert list(held(folder)) == []
    assert (view["predictions"], view["records of streams"], view["profiles"]) == (2, 6, 1)
    assert (view["rows set aside"], view["dead letters"]) == (2, 2)
    with open_stores(project, None, clock=SystemClock(), write=False) as stores:
        ids = set(rows.filter(pc.equal(rows["shop"], KEY))["_row_id"].to_pylist())
        left = stores.tables.read("reveals_orders")
        assert left.num_rows == rows.num_rows - view["reveals"] and not ids & set(left["_row_id"].to_pylist())
        described = stores.tables.describe("reveals_orders", applications=["run/Orders", "stream-0/Orders"])
        assert described is not None and version is not None and described.version > version.version
        assert described.positions == {"run/Orders": 1, "stream-0/Orders": 5}
        assert stores.ledger.verify([head]).ok
        kinds = [r.kind for r in stores.ledger.read(after=head.seq)]
        assert kinds == ["erasure.begun", "log.erased", "profile", "materialized", "erasure.done"]
        asked = [p.request["shop"] for s in segments(stores.predictions) for p in read_segment(stores.predictions, s)]
        assert asked == ["shop-3", f"{KEY}0", "shop-4"]
        assert measure_skew(project, stores, sample=10).differing == 0
    assert not (folder / ".headrace" / "erasures" / "pending").exists()


def test_what_is_served_afterwards_knows_nothing_of_it_and_streams_go_on(folder: Path) -> None:
    erased(folder)
    project, clock = loaded(folder), VirtualClock(Instant(NOW + DAY))
    with (
        open_stores(project, None, clock=clock, write=True) as stores,
        open_streams(stores.state.url("streams"), clock=clock) as streams,
    ):
        service = PipelineService(project, stores, clock)
        controller = Controller(service, streams, seed=0)
        controller.loop.state = replace(controller.loop.state, daily=NOW + 400 * DAY)
        assert controller.loop.live.traffic(NOW, clock.now()) == {"orders/v1": 3}
        streams.append("Orders", [event(500, "shop-3", clock)])
        clock.advance_to(Instant(clock.now() + 1_000_000))
        controller.tick()
        for shop, orders in ((KEY, 0), ("shop-3", 2)):
            row = {"order_id": f"x{shop}", "placed": clock.now().isoformat(), "shop": shop, "items": 1}
            (answer,) = service.predict([row])
            assert answer.vector.to_dict()["Shop.orders[1d]"] == orders  # type: ignore[union-attr]
        service.log.close()
    again = erased(folder)
    assert (again["reveals"], again["predictions"]) == (0, 1)  # it was asked about anew
    assert list(held(folder)) == []


def test_baselines_lose_the_key_and_hold_on(folder: Path) -> None:
    project = loaded(folder)
    for why in ("first", "second"):
        set_baseline(project, "Orders", why=why)
    view = erased(folder)
    assert list(held(folder)) == [] and not any(view["left"].values())
    with open_stores(project, None, clock=SystemClock(), write=False) as stores:
        baseline = load_baselines(stores.ledger, stores.blobs, project.plan.sources)["Orders"]
        records = stores.ledger.read(kinds=["baseline.set"])
        assert stores.ledger.verify().ok
    assert "shop-3" in baseline["shop"].profile.categories and KEY not in baseline["shop"].profile.categories
    assert [record.body["version"] for record in records] == [1, 2, 3]
    assert records[-1].body["erased"] and view["baselines"] >= 1


@pytest.mark.parametrize(
    "point", ["predictions.rewrite.before_rename", "erase.after.profiles", "tables.after_commit", "renew.after_drop"]
)
def test_a_killed_erasure_goes_on(folder: Path, point: str) -> None:
    environment = os.environ | {"HEADRACE_FAILPOINTS": f"{point}:kill"}
    killed = subprocess.run(ERASE, cwd=folder, env=environment, capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    view = erased(folder)
    assert list(held(folder)) == [] and not any(view["left"].values())
    with open_stores(loaded(folder), None, clock=SystemClock(), write=False) as stores:
        assert len(stores.ledger.read(kinds=["erasure.done"])) == 1 and stores.ledger.verify().ok


def test_what_cannot_be_erased_is_named(folder: Path) -> None:
    with open_stores(loaded(folder), None, clock=SystemClock(), write=True) as stores:
        (record,) = stores.ledger.append([Entry("verdict", "Orders", {"samples": [KEY]})])
        (stores.state.folder("alerts") / "alerts.jsonl").write_text(json.dumps({"what": f"{KEY} is slow"}))
    view = erased(folder)
    assert view["left"] == {"files": ("alerts/alerts.jsonl",), "records": (record.seq,), "elsewhere": ()}
    assert "still stands elsewhere" in view.title and any(str(record.seq) in note for note in view.notes)


def test_a_text_is_found_where_a_number_spells_it(folder: Path) -> None:
    with open_stores(loaded(folder), None, clock=SystemClock(), write=False) as stores:
        assert not remains_of(folder / ".headrace", "192.168.100.1", [], stores)
        (folder / ".headrace" / "left").write_bytes(
            b"odd" + text_id("192.168.100.1").to_bytes(8, "little", signed=True)
        )
        assert remains_of(folder / ".headrace", "192.168.100.1", [], stores).files == ("left",)


@pytest.mark.parametrize(
    ("wanted", "options", "message"),
    [
        ("Orders.shap=x", {}, "not a column and a value"),
        ("Orders.shop", {}, "not a column and a value"),
        ("Orders.hours=3", {}, "only texts and integers name a key"),
        ("Orders.items=three", {}, "not an integer"),
        ("shop=x", {"source": "Order"}, "no such source"),
        ("shop=x", {"group": "Shops"}, "no such feature group"),
        ("shop=x", {"why": " "}, "needs a reason"),
        ("shop=peter", {"why": "peter asked"}, "the reason names what is erased"),
    ],
)
def test_a_wrong_erasure_is_refused(lived: Path, wanted: str, options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"source": None, "group": None, "why": "asked for", "yes": True, "state": None}
    with pytest.raises(UsageError, match=message):
        erase(loaded(lived), wanted, **given | options, progress=Silent())
