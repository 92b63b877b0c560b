"""A pipeline on features by SQL is trained, judged and registered; one with an endpoint is refused before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.cli.template import write_project
from headrace.core.errors import DefinitionError, HeadraceError
from headrace.core.time import SystemClock
from headrace.pipelines.catalogue import list_features
from headrace.pipelines.lineage import lineage
from headrace.pipelines.plan import describe_plan
from headrace.pipelines.predict import predict
from headrace.pipelines.project import load_project
from headrace.pipelines.run import run
from headrace.pipelines.serve import PipelineService
from headrace.pipelines.stores import open_stores
from headrace.pipelines.view import Silent, View

DAY = "2024-05-01T12:00:00Z"
QUERY = '''
class Days(hr.Source):
    shop: hr.Column[str] = hr.entity()
    day: hr.Column[hr.Instant] = hr.event_time()
    items: hr.Column[float | None] = hr.column()


Daily = hr.sql(
    """
    SELECT shop, date_trunc('day', placed) + INTERVAL 1 DAY AS day, CAST(sum(items) AS DOUBLE) AS items
    FROM Orders GROUP BY ALL
    """,
    Days,
    tables=[Orders],
    entity=Days.shop,
    known_at=Days.day,
)


@hr.on_demand('''


def project_with_query(folder: Path, *, endpoint: bool) -> None:
    write_project(str(folder))
    text = (folder / "orders.py").read_text()
    text = text.replace("\n@hr.on_demand(", QUERY, 1).replace("Shop, weekday]", "Shop, Daily, weekday]")
    if not endpoint:
        text = "\n".join(line for line in text.split("\n") if "endpoint=" not in line and "rollout=" not in line)
    (folder / "orders.py").write_text(text)


def test_a_pipeline_without_an_endpoint_trains_on_them(tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    project_with_query(folder, endpoint=False)
    project = load_project("orders:pipeline", folder=folder)
    planned = describe_plan(project)
    assert [s["source"] for s in planned["sources"]] == ["Orders"]
    ((group, where, read),) = next(t for t in planned.tables if t.title == "Features by SQL").rows
    assert (group, read) == ("Days", "Orders.items, Orders.order_id, Orders.placed, Orders.shop")
    assert "orders.py:" in where
    by_name = {one["feature"]: one["reads"] for one in planned["features"]}
    assert by_name["Days.items"] == ["Days.day", "Days.items", "Days.shop", *read.split(", ")]
    found = run(project, state=None, seed=1, progress=Silent()).data
    assert found["passed"]
    shown = {one["feature"]: one for one in list_features(project, "", state=None, health=True)["features"]}
    assert "Orders.items" in shown["Days.items"]["reads"] and "Orders.hours" not in shown["Days.items"]["reads"]
    assert lineage(project, "Orders.items", state=None)["downstream"]["features"].count("Days.items") == 1
    assert "Days.items" not in lineage(project, "Orders.hours", state=None)["downstream"]["features"]
    assert lineage(project, "v1", state=None)["upstream"]["features"]["Days.items"] == by_name["Days.items"]
    impact = {one["group"]: one for one in describe_plan(project)["groups"]}
    assert (impact["Days"]["status"], impact["Days"]["rows"], impact["Days"]["seconds"]) == ("by query", 0, None)
    (windowed,), (queried,) = shown["Shop.orders[1d]"]["health"], shown["Days.items"]["health"]
    assert windowed["keys"] > 0 == queried["keys"]
    again = run(project, state=None, seed=1, progress=Silent()).data
    assert again["run"] == found["run"]
    clock = SystemClock()
    with (
        open_stores(project, None, clock=clock, write=False) as stores,
        pytest.raises(HeadraceError, match="nothing to serve"),
    ):
        PipelineService(project, stores, clock)
    assert found["next"] == f"headrace predict {project.typed} ROWS"
    rows = folder / "rows.csv"
    lines = [f"n{i},2024-05-01T10:00:00Z,shop-{i},4" for i in range(40)]
    rows.write_text("\n".join(["order_id,placed,shop,items", *lines]))
    view = predict(project, str(rows), to=None, version=None, as_of=DAY, state=None, progress=Silent())
    assert (view["rows"], view["errors"]) == (40, 0)
    assert len({answer["score"] for answer in view["predictions"]}) > 10


def test_an_endpoint_is_refused_with_the_line_and_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    project_with_query(folder, endpoint=True)
    project = load_project("orders:pipeline", folder=folder)
    plans: list[Callable[[], View]] = [
        lambda: describe_plan(project),
        lambda: run(project, state=None, seed=1, progress=Silent()),
    ]
    for ask in plans:
        with pytest.raises(DefinitionError, match="no endpoint can compute it for a request") as error:
            ask()
        assert "orders.py:" in str(error.value.where)
        assert "hr.sql(…) at" in str(error.value.got)
        assert "hr.precomputed(Days, …)" in str(error.value.next_step)
    with open_stores(project, None, clock=SystemClock(), write=False) as stores:
        assert stores.tables.describe("reveals_orders") is None


def test_lineage_goes_through_the_sql_of_settings_to_the_files(tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    write_project(str(folder))
    settings = (folder / "headrace.toml").read_text()
    assert settings.count("[sources.Orders]") == 1
    text = "SELECT * REPLACE (hours * 1 AS hours), hours > 24 AS late FROM Raw WHERE items >= 0"
    sql = f'[sources.Orders]\nsql = "{text}"\n\n[sources.Raw]'
    (folder / "headrace.toml").write_text(settings.replace("[sources.Orders]", sql))
    project = load_project("orders:pipeline", folder=folder)
    behind = lineage(project, "Orders.hours", state=None)["upstream"]["texts"]
    assert behind == {"Orders.hours": ["Raw.hours", "Raw.items"]}
    down = lineage(project, "Raw.hours", state=None)
    assert down["columns"] == ["Orders.hours"] and "Shop.late[7d]" in down["downstream"]["features"]
    assert len(lineage(project, "Raw.items", state=None)["columns"]) == 6  # a condition decides which rows there are
    up = lineage(project, "Shop.orders", state=None)["upstream"]
    assert up["texts"]["Orders.items"] == ["Raw.items"]
    for file in (folder / "data").iterdir():
        file.unlink()
    gone = lineage(project, "Orders.hours", state=None)
    assert "texts" not in gone["downstream"] and "upstream" not in gone.data
    assert "What [sources.Orders] sql reads cannot be told: Raw: no such file" in gone.notes[-1]
