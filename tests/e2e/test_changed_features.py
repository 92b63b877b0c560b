"""A changed definition: new features are filled from history, and a model is served only the features it was trained on."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import headrace as hr
from headrace.cli.template import write_project
from headrace.core.errors import ConfigurationError, GateRefused, Refused, SchemaConflict
from headrace.core.time import SystemClock
from headrace.features.stream import DATABASE, StreamPath
from headrace.pipelines.materialize import rebuild_online
from headrace.pipelines.operate import promote, rollback
from headrace.pipelines.pinned import reads
from headrace.pipelines.project import Project, import_file, load_project
from headrace.pipelines.reveals import read_source
from headrace.pipelines.run import run
from headrace.pipelines.serve import PipelineService
from headrace.pipelines.stores import open_registry, open_stores
from headrace.pipelines.view import Silent

MORE = """    orders = hr.count(Orders.items).over("1d")
    spread = hr.stddev(Orders.hours).over("7d")
    last = hr.latest(Orders.shop)
"""
RUN = [sys.executable, "-m", "headrace.cli", "run", "orders:pipeline"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "project"
    write_project(str(target))
    run(loaded(target), state=None, seed=1, progress=Silent())
    return target


def loaded(folder: Path) -> Project:
    return load_project("orders:pipeline", folder=folder)


def change(folder: Path) -> Project:
    file = folder / "orders.py"
    file.write_text(file.read_text().replace(MORE.splitlines(keepends=True)[0], MORE))
    return loaded(folder)


def ran(project: Project) -> None:
    """Run a project; whether its model is better than the champion does not matter here."""
    with suppress(GateRefused):
        run(project, state=None, seed=1, progress=Silent())


def left_out(project: Project) -> list[str]:
    with open_stores(project, None, clock=SystemClock(), write=False) as stores, stores.online.read() as snapshot:
        return [group.definition.name for group in StreamPath([project.plan]).uncovered(snapshot.getter(DATABASE))]


def service(project: Project) -> PipelineService:
    with open_stores(project, None, clock=SystemClock(), write=True) as stores:
        found = PipelineService(project, stores, SystemClock())
        found.log.close()
        return found


def online_is_offline(folder: Path) -> bool:
    """Compare the online store with history for every shop, some nine hours after the newest arrival."""
    module, at = import_file(folder / "orders.py"), "2024-05-02T12:00:00Z"
    shops = sorted({f"shop-{i}" for i in range(40)})
    moments = pa.array([hr.Instant.parse(at)] * len(shops), pa.timestamp("us", "UTC"))
    offline = hr.training_set(pa.table({"shop": shops, "at": moments}), [module.Shop])
    online = module.Shop.online(shops, at=at)
    assert np.isfinite(offline.numpy()).any()
    assert offline.values.table(offline.plan).equals(online.values.table(online.plan))
    return bool((offline.status == online.status).all())


def test_a_new_feature_is_filled_from_history_and_the_old_model_is_not_served_it(folder: Path) -> None:
    changed = change(folder)
    with pytest.raises(ConfigurationError, match="features are not in the online store yet") as caught:
        service(changed)
    assert "Shop" in str(caught.value)
    assert caught.value.next_step == f"headrace run {changed.typed}"

    view = run(changed, state=None, seed=1, progress=Silent())
    assert view["outcome"] == "challenger"  # the champion reads other features, so only a person can replace it
    assert online_is_offline(folder)
    with pytest.raises(Refused, match="orders/v1 was trained on other features"):
        service(changed)
    promote(changed, "v2", why="the project has new features", force=False, state=None)
    assert service(changed).version == "orders/v2"
    with pytest.raises(Refused, match="orders/v1 was trained on other features") as refused:
        rollback(changed, to=None, why="test", state=None)
    assert refused.value.exit_code == 3


@pytest.mark.parametrize("point", ["keyvalue.after_commit:kill:3", "keyvalue.after_commit:kill:2"])
def test_a_backfill_that_was_killed_is_done_again(folder: Path, point: str) -> None:
    changed = change(folder)
    killed = subprocess.run(
        RUN, cwd=folder, env=os.environ | {"HEADRACE_FAILPOINTS": point}, capture_output=True, check=False
    )
    assert killed.returncode == -9, killed.stderr
    assert left_out(changed) == ["Shop"]
    ran(changed)
    assert left_out(changed) == []
    assert online_is_offline(folder)


def test_a_feature_that_was_left_out_for_a_while_is_filled_again(folder: Path) -> None:
    original = (folder / "orders.py").read_text()
    ran(change(folder))
    data = folder / "data" / "orders.csv"
    lines = data.read_text().splitlines(keepends=True)
    newest = lines[-1].split(",")
    data.write_text("".join([*lines, ",".join(["new", *newest[1:]])]))
    ran(change(folder))
    changed = (folder / "orders.py").read_text()
    (folder / "orders.py").write_text(original)
    assert left_out(loaded(folder)) == ["Shop"]
    ran(loaded(folder))
    assert left_out(loaded(folder)) == []
    assert online_is_offline(folder)
    (folder / "orders.py").write_text(changed)
    rebuild_online(loaded(folder), state=None, progress=Silent())
    assert online_is_offline(folder)


ID = "    order_id: hr.Column[str] = hr.row_id()\n"
NOTED = ID + "    note: hr.Column[str | None] = hr.column()\n"
ADDED = """order_id,note,placed,shop,items,delivered,hours
n1,fragile,2024-04-29T10:00:00Z,shop-3,4,2024-04-30T10:00:00Z,24
n2,,2024-04-29T11:00:00Z,shop-3,2,,
"""


def redeclared(folder: Path, old: str, new: str) -> Project:
    file = folder / "orders.py"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    settings = folder / "headrace.toml"
    settings.write_text(settings.read_text().replace("data/orders.csv", "data"))
    return loaded(folder)


def test_a_new_nullable_column_needs_no_new_state_folder(folder: Path) -> None:
    before = stated(loaded(folder))
    project = redeclared(folder, ID, NOTED)  # it stands before columns that are stored already
    with pytest.raises(ConfigurationError, match="Orders was stored with other columns") as caught:
        left_out(project)
    assert caught.value.next_step == "headrace run, which adds the column"
    (folder / "data" / "r-later.csv").write_text(ADDED)
    ran(project)
    after = stated(project)
    assert {row: cells for row, cells in after.items() if row in before} == before
    assert after["n1"] == {"order_id", "note", "placed", "shop", "items", "delivered", "hours"}
    assert left_out(project) == []
    assert online_is_offline(folder)
    with open_registry(project, None, clock=SystemClock()) as registry:
        champion = registry.champion()
        assert champion is not None
        assert champion.name == "orders/v1"
        assert reads(project, champion)  # no feature of its reads the new column
    ran(project)
    assert stated(project) == after
    rebuild_online(project, state=None, progress=Silent())
    assert online_is_offline(folder)


ITEMS = "    items: hr.Column[int] = hr.column(ge=1, le=100)\n"
OTHERWISE = [
    (ITEMS, ITEMS.replace("int", "float"), "items", "items: double", "items: int64"),
    (ID, NOTED.replace(" | None", ""), "note", "note: str, never null", "rows without it"),
]


def test_another_change_of_columns_stops_at_the_gate(folder: Path) -> None:
    before = stated(loaded(folder))
    for old, new, name, got, expected in OTHERWISE:
        project = redeclared(folder, old, new)
        with pytest.raises(SchemaConflict) as caught:
            run(project, state=None, seed=1, progress=Silent())
        assert caught.value.what == f"Orders.{name} was stored otherwise than it is declared now"
        assert (caught.value.got, caught.value.expected) == (got, expected)
        assert caught.value.next_step
        redeclared(folder, new, old)
        assert stated(loaded(folder)) == before


def stated(project: Project) -> dict[str, set[str]]:
    """Return by order which columns its reveals state, values and all."""
    found: dict[str, set[str]] = {}
    with open_stores(project, None, clock=SystemClock(), write=False) as stores:
        (source,) = project.plan.sources
        for row in read_source(stores.tables, source).to_pylist():
            names = {c.name for place, c in enumerate(source.columns) if row["_stated"] >> place & 1}
            assert all(row[c.name] is None for c in source.columns if c.name not in names)
            found.setdefault(row["_row_id"][5:].decode(), set()).update(names)
    return found
