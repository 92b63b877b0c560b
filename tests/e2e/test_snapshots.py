"""Whole copies of a table in files: runs, kills, files read again and late copies leave what one undisturbed run leaves."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace.cli.template import write_project
from headrace.core.errors import DataError
from headrace.core.time import DAY, Instant, SystemClock
from headrace.features.offline import OfflineFeatures, histories_of
from headrace.features.online import OnlineFeatures
from headrace.features.stream import DATABASE, StreamPath
from headrace.pipelines.materialize import rebuild_online
from headrace.pipelines.project import Project, load_project
from headrace.pipelines.reveals import read_reveals
from headrace.pipelines.run import run
from headrace.pipelines.stores import open_stores
from headrace.pipelines.view import Silent
from tests.online import applied_digest

PROFILES = """
class Profiles(hr.Source, history="snapshots"):
    shop: hr.Column[str] = hr.entity()
    taken: hr.Column[hr.Instant] = hr.event_time()
    staff: hr.Column[int] = hr.column()


class Profile(hr.FeatureGroup, of=Profiles, entity=Profiles.shop):
    staff = hr.latest(Profiles.staff)


@hr.on_demand("""
START = Instant.parse("2024-01-01")
SHOPS = [f"shop-{i}" for i in range(20)]


def write_copy(folder: Path, day: int, without: Collection[str] = ()) -> Path:
    """Write the copy of a day, in two files, as exports of many parts do."""
    taken = Instant(START + day * DAY).isoformat()
    there = [shop for shop in SHOPS if shop not in without]
    for part, shops in enumerate((there[:7], there[7:])):
        with (folder / "profiles" / f"{day:02}-{part}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["shop", "taken", "staff"], *([s, taken, day + int(s[5:])] for s in shops)])
    return folder / "profiles" / f"{day:02}-0.csv"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a project whose shops are described once a day; shop-3 is gone from the eleventh copy."""
    folder = tmp_path / "shop"
    write_project(str(folder))
    code = (folder / "orders.py").read_text()
    code = code.replace("\n@hr.on_demand(", PROFILES, 1).replace("Shop, weekday]", "Shop, Profile, weekday]")
    code = code.replace('hr.metric("log_loss").beats_champion(confidence=0.95), ', "").replace("trials=5", "trials=1")
    (folder / "orders.py").write_text(code)
    (folder / "profiles").mkdir()
    for day in range(11):
        write_copy(folder, day, {"shop-3"} if day == 10 else ())
    with (folder / "headrace.toml").open("a") as settings:
        settings.write('\n[sources.Profiles]\npath = "profiles/*.csv"\n')
    return folder


def loaded(folder: Path) -> Project:
    sys.modules.pop("orders", None)
    return load_project("orders:pipeline", folder=folder)


def run_once(folder: Path) -> None:
    run(loaded(folder), state=None, seed=0, progress=Silent())


def staff(folder: Path) -> dict[str, Any]:
    """Return each shop's value as the online store has it, after comparing it with history bit by bit."""
    project = loaded(folder)
    plan = project.plan
    place = next(i for i, c in enumerate(plan.columns) if c.name == "Profile.staff")
    with open_stores(project, None, clock=SystemClock(), write=False) as stores, stores.online.read() as snapshot:
        get, reader = snapshot.getter(DATABASE), OnlineFeatures(plan)
        t = (StreamPath.newest(get) or 0) + DAY
        shop, items = (next(i for i, c in enumerate(plan.row) if c.name == name) for name in ("shop", "items"))
        placed = next(i for i, c in enumerate(plan.row) if c.name == "placed")
        rows = [[None] * len(plan.row) for _ in SHOPS]
        for row, name in zip(rows, SHOPS, strict=True):
            row[shop], row[items], row[placed] = name, 1, t  # type: ignore[call-overload]
        online = [list(reader.read(get, row, t).to_dict().values()) for row in rows]
        table = pa.table({c.name: [row[i] for row in rows] for i, c in enumerate(plan.row)})
        histories = histories_of(plan, read_reveals(stores.tables, plan.sources), t)
        offline = OfflineFeatures(plan, histories).compute(table, np.full(len(rows), t)).table(plan)
    assert repr(online) == repr([list(row.values()) for row in offline.to_pylist()])
    return {name: values[place] for name, values in zip(SHOPS, online, strict=True)}


def store_digest(folder: Path) -> str:
    with open_stores(loaded(folder), None, clock=SystemClock(), write=False) as stores:
        return applied_digest(stores.online)


def killed(folder: Path, point: str) -> int:
    command = [sys.executable, "-m", "headrace.cli", "run", "orders:pipeline"]
    environment = os.environ | {"HEADRACE_FAILPOINTS": point}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False).returncode


def test_a_key_that_a_copy_lacks_has_no_value_until_it_comes_back(folder: Path) -> None:
    run_once(folder)
    values = staff(folder)
    assert values["shop-3"] is None
    assert values["shop-4"] == 10 + 4

    late = write_copy(folder, 12, {"shop-4", "shop-5"})
    run_once(folder)
    values = staff(folder)
    assert [values[f"shop-{i}"] for i in (3, 4, 5, 6)] == [12 + 3, None, None, 12 + 6]

    write_copy(folder, 11)  # an older copy comes late: what the newer one lacks stays gone
    os.utime(late, (1_700_000_000, 1_700_000_000))  # and a file is read again that is known
    before = staff(folder)
    run_once(folder)
    assert staff(folder) == before == values
    streamed = store_digest(folder)
    rebuild_online(loaded(folder), state=None, progress=Silent())
    assert staff(folder) == values
    assert store_digest(folder) == streamed

    write_copy(folder, 13, {"shop-6"})
    run_once(folder)
    values = staff(folder)
    assert [values[f"shop-{i}"] for i in (4, 5, 6)] == [13 + 4, 13 + 5, None]


@pytest.mark.parametrize("point", ["tables.after_commit:kill:2", "keyvalue.after_commit:kill:4"])
def test_a_killed_run_goes_on_to_the_same_state(folder: Path, point: str) -> None:
    run_once(folder)
    write_copy(folder, 12, {"shop-4"})
    undisturbed = shutil.copytree(folder, folder.parent / "undisturbed")
    assert killed(folder, point) == -9
    run_once(folder)
    run_once(undisturbed)
    assert staff(folder) == staff(undisturbed)
    assert staff(folder)["shop-4"] is None


def test_a_copy_that_lacks_too_many_keys_is_stopped_by_a_check(folder: Path) -> None:
    code, column = (folder / "orders.py").read_text(), "    staff: hr.Column[int] = hr.column()\n"
    checks = "    checks = hr.Checks(hr.count(shop) >= 15)\n"
    (folder / "orders.py").write_text(code.replace(column, column + checks))
    run_once(folder)
    before = staff(folder)
    write_copy(folder, 11, SHOPS[:12])
    with pytest.raises(DataError, match="count"):
        run_once(folder)
    assert staff(folder) == before
