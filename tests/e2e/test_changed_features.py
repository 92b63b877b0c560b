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
from headrace.core.errors import ConfigurationError, GateRefused, Refused
from headrace.core.time import SystemClock
from headrace.features.stream import DATABASE, StreamPath
from headrace.pipelines.materialize import rebuild_online
from headrace.pipelines.operate import promote, rollback
from headrace.pipelines.project import Project, import_file, load_project
from headrace.pipelines.run import run
from headrace.pipelines.serve import PipelineService
from headrace.pipelines.stores import open_stores
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


def test_a_source_with_other_columns_is_refused_before_its_stored_rows_are_misread(folder: Path) -> None:
    file = folder / "orders.py"
    told = 'hours: hr.Column[float | None] = hr.column(ge=0, unit="h", known_at=delivered)'
    file.write_text(file.read_text().replace(told, told + "\n    note: hr.Column[str | None] = hr.column()"))
    data = folder / "data" / "orders.csv"
    lines = data.read_text().splitlines()
    data.write_text("\n".join([lines[0] + ",note", *(line + ",x" for line in lines[1:])]) + "\n")
    with pytest.raises(ConfigurationError, match="Orders was stored with other columns") as caught:
        run(loaded(folder), state=None, seed=1, progress=Silent())
    assert "--state NEW" in str(caught.value)
