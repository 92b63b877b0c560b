"""The catalogue finds features by what people know of them; lineage leads both ways; a change shows whom it touches."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
import typer

from headrace.cli.main import app
from headrace.core.errors import DataError, DefinitionError, GateRefused, UnknownColumn
from headrace.core.time import DAY, SECOND, Instant, VirtualClock
from headrace.pipelines.catalogue import list_features
from headrace.pipelines.health import measure_health
from headrace.pipelines.lineage import lineage
from headrace.pipelines.materialize import materialize
from headrace.pipelines.plan import describe_plan
from headrace.pipelines.project import Project, load_project
from headrace.pipelines.run import run
from headrace.pipelines.serve import PipelineService
from headrace.pipelines.stores import open_stores
from headrace.pipelines.view import Silent
from headrace.serving.http import Metrics

NOW = Instant.parse("2024-05-02T12:00:00Z")
SHOP = "class Shop(hr.FeatureGroup, of=Orders, entity=Orders.shop):\n"
SAID = SHOP + '    """How quickly a shop delivers."""\n\n    owner, tags = "logistics", ("delivery", "core")\n'
BASKET = '''class Basket(hr.FeatureGroup, of=Orders, entity=Orders.shop):
    """What people buy there."""

    biggest = hr.max(Orders.items).over("7d")


@hr.on_demand('''


def loaded(folder: Path) -> Project:
    return load_project("orders:pipeline", folder=folder)


def changed(folder: Path, old: str, new: str) -> Project:
    file = folder / "orders.py"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))
    return loaded(folder)


def names(project: Project, search: str) -> list[str]:
    return [f["feature"] for f in list_features(project, search, state=None)["features"]]


def test_features_are_found_by_owner_tag_description_column_and_user(shop: Path) -> None:
    before = loaded(shop).plan.hash
    changed(shop, SHOP, SAID)
    project = changed(shop, "@hr.on_demand(", BASKET)
    assert project.plan.hash == before  # what a group says about itself is no part of its definition
    windows = ["Shop.hours[1d]", "Shop.hours[7d]", "Shop.late[7d]", "Shop.orders[1d]"]
    assert names(project, "logistics") == windows
    assert names(project, "core late") == ["Shop.late[7d]"]
    assert names(project, "quickly DELIVERS orders.hours") == windows[:3]
    assert names(project, "people buy") == ["Basket.biggest[7d]"]
    assert "Orders.items" in names(project, "orders/v1") and "Basket.biggest[7d]" not in names(project, "orders/v1")
    assert names(project, "no such thing") == []
    found = {f["feature"]: f for f in list_features(project, "", state=None)["features"]}
    late, biggest = found["Shop.late[7d]"], found["Basket.biggest[7d]"]
    assert late["models"] == ("orders/v1 (production)",) and late["datasets"] == ["orders.dataset"]
    assert (late["computed"], late["window"], late["by"]) == ("rate of (Orders.hours > 24)", "7d", "Orders.shop")
    assert late["reads"] == ("Orders.delivered", "Orders.hours", "Orders.placed", "Orders.shop")
    assert (biggest["models"], biggest["datasets"], biggest["columns"]) == ((), [], ())
    assert found["weekday"]["reads"] == ("Orders.placed",)


def test_an_owner_that_is_no_text_is_refused(shop: Path) -> None:
    project = changed(shop, SHOP, SHOP + '    tags = "delivery"\n')
    with pytest.raises(DefinitionError, match="Shop: an owner is a text, tags are texts") as refused:
        list_features(project, "", state=None)
    assert "orders.py" in str(refused.value.where)


def test_lineage_leads_from_a_column_to_models_and_back(shop: Path) -> None:
    project = loaded(shop)
    down = lineage(project, "Orders.hours", state=None)["downstream"]
    assert down["features"] == ["Shop.hours[1d]", "Shop.hours[7d]", "Shop.late[7d]"]
    assert (down["label"], down["datasets"], down["models"]) == (True, ["orders.dataset"], ["orders/v1 (production)"])
    assert lineage(project, "Orders.order_id", state=None)["downstream"]["models"] == []
    assert len(lineage(project, "Orders", state=None)["columns"]) == 6
    feature = lineage(project, "Shop.hours", state=None)
    assert feature["features"] == ["Shop.hours[1d]", "Shop.hours[7d]"]
    assert feature["upstream"]["columns"] == ["Orders.delivered", "Orders.hours", "Orders.placed", "Orders.shop"]
    up = lineage(project, "v1", state=None)
    assert up["upstream"]["tables"] == [{"source": "Orders", "reveals": 14326, "version": 1}]
    assert up["upstream"]["features"]["weekday"] == ["Orders.placed"]
    assert up["upstream"]["run"] and up["stage"] == "production"
    later = changed(shop, "hr.rate(Orders.hours > 24)", "hr.rate(Orders.items > 3)")
    assert "Orders.hours" in lineage(later, "v1", state=None)["upstream"]["features"]["Shop.late[7d]"]
    assert "Orders.hours" not in lineage(later, "Shop.late", state=None)["upstream"]["columns"]
    with pytest.raises(UnknownColumn) as unknown:
        lineage(project, "Orders.hors", state=None)
    assert unknown.value.next_step == "did you mean Orders.hours?"
    with pytest.raises(DataError, match="no such version"):
        lineage(project, "v7", state=None)


def test_a_changed_definition_shows_who_pins_the_old_one_and_what_filling_costs(shop: Path) -> None:
    (one,) = describe_plan(loaded(shop))["groups"]
    assert (one["status"], one["pinned_by"], one["keys"], one["rows"]) == ("materialized", (), 20, 14326)
    project = changed(shop, '.over("7d")\n    orders', '.over("6d")\n    orders')
    (one,) = describe_plan(project)["groups"]
    assert one["status"] == "changed" and one["before"] != one["version"]
    assert one["pinned_by"] == ("orders/v1 (production)",)
    assert (one["keys"], one["rows"]) == (20, 14326) and one["seconds"] > 0
    done = materialize(project, groups=[], state=None, progress=Silent())
    assert (done["groups"], done["keys"], done["reveals"]) == (["Shop"], 40, 0)
    (one,) = describe_plan(project)["groups"]
    assert (one["status"], one["seconds"]) == ("materialized", None)
    assert one["pinned_by"] == ("orders/v1 (production)",)
    assert describe_plan(project, state=str(shop / "nowhere"))["groups"] == []
    with suppress(GateRefused):
        run(project, state=None, seed=1, progress=Silent(), clock=VirtualClock(NOW))
    assert lineage(project, "Orders.hours", state=None)["downstream"]["models"][0].startswith("orders/v2")


def test_health_tells_freshness_coverage_and_null_rates(shop: Path) -> None:
    project, clock = loaded(shop), VirtualClock(Instant(NOW + DAY))
    with open_stores(project, None, clock=clock, write=True) as stores:
        service = PipelineService(project, stores, clock)
        asked = {"placed": NOW.isoformat(), "items": 4}
        service.predict([asked | {"order_id": f"n{i}", "shop": "shop-3" if i < 8 else "shop-99"} for i in range(10)])
        metrics = Metrics()
        metrics.filled = service.filled
        page = metrics.page().decode()
        service.log.close()
    assert 'headrace_feature_coverage{feature="Shop.hours[7d]"} 0.8' in page
    found = measure_health(project, state=None, clock=clock)
    (fresh,) = found.sources
    assert f"headrace_online_lag_seconds {(fresh.lag or 0) / SECOND}" in page
    assert fresh.applied and fresh.newest is not None and fresh.lag == clock.now() - fresh.newest
    week = found.features["Shop.hours[7d]"]
    assert (week.served, week.coverage) == (10, 0.8)
    assert week.statuses == {"OK": 8, "NULL": 2}
    assert week.null_rate == pytest.approx(0.2)
    assert (week.keys, week.keys_coverage) == (20, 1.0)
    assert found.features["Orders.items"].coverage == 1.0
    view = list_features(project, "shop.hours", state=None, health=True)
    assert [f["health"][0]["served"] for f in view["features"]] == [10, 10]
    assert view["freshness"][0]["source"] == "Orders"


def test_the_verbs_take_words_with_or_without_the_pipeline(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(shop)
    command = typer.main.get_command(app)
    told = []
    for words in (["features", "late", "7d"], ["features", "orders:pipeline", "late"], ["features", "orders", "late"]):
        command.main([*words, "--json"], standalone_mode=False)
        told.append([f["feature"] for f in json.loads(capsys.readouterr().out)["features"]])
    assert told == [["Shop.late[7d]"]] * 3
    command.main(["lineage", "Shop.late", "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["kind"] == "feature"
