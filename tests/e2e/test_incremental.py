"""Runs over growing data: each row once whatever is killed, new files only, and a change of columns stops at the gate."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headrace.cli.template import write_project
from headrace.core.errors import SchemaChanged
from headrace.core.time import SystemClock
from headrace.pipelines.inspect import list_incidents, list_models
from headrace.pipelines.project import Project, load_project
from headrace.pipelines.run import run
from headrace.pipelines.stores import DATABASES, open_stores
from headrace.pipelines.view import Silent, View
from headrace.storage.tables import Tables, open_tables

LIMITS = "\n[limits]\ndelivery_rows = 1500\nread_rows = 500\nread_bytes = 20000\n"
OLD = 1_700_000_000  # seconds: a file of that age tells its state by its time stamp


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Return a project whose orders come in twelve files, one row of which is bad."""
    folder = tmp_path / "shop"
    write_project(str(folder))
    code = (folder / "orders.py").read_text()
    code = code.replace('hr.metric("log_loss").beats_champion(confidence=0.95), ', "").replace("trials=5", "trials=1")
    (folder / "orders.py").write_text(code)
    lines = (folder / "data" / "orders.csv").read_text().splitlines()
    (folder / "data" / "orders.csv").unlink()
    lines[4000] = lines[4000].replace("shop-", "market-")
    for number in range(12):
        write_orders(folder, number, [lines[0], *lines[1 + 600 * number : 601 + 600 * number]])
    settings = folder / "headrace.toml"
    settings.write_text(settings.read_text().replace("data/orders.csv", "data/*.csv") + LIMITS)
    return folder


def write_orders(folder: Path, number: int, lines: list[str]) -> None:
    path = folder / "data" / f"orders-{number:02}.csv"
    path.write_text("\n".join([*lines, ""]))
    os.utime(path, (OLD + number, OLD + number))


def project_of(folder: Path) -> Project:
    sys.modules.pop("orders", None)
    return load_project("orders:pipeline", folder=folder)


def run_once(folder: Path, seed: int = 0) -> View:
    return run(project_of(folder), state=None, seed=seed, progress=Silent())


def ingested(view: View) -> str:
    return str(next(row[1] for row in view.tables[0].rows if row[0] == "ingest"))


def tables(folder: Path) -> Tables:
    return open_tables(f"delta:{folder / '.headrace' / 'tables'}")


def contents(folder: Path) -> dict[str, list[Any]]:
    """Return what a run leaves of its data: every reveal, and every row set aside."""
    keys = ["_row_id", "_arrival", "_content"]
    reveals = tables(folder).read("reveals_orders", columns=keys).to_pylist()
    aside = tables(folder).read("quarantine", columns=["position", "reason", "payload"]).to_pylist()
    return {"reveals": sorted(tuple(r.values()) for r in reveals), "aside": sorted(tuple(r.values()) for r in aside)}


def killed(folder: Path, point: str) -> int:
    command = [sys.executable, "-m", "headrace.cli", "run", "orders:pipeline"]
    environment = os.environ | {"HEADRACE_FAILPOINTS": point}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False).returncode


def test_a_load_killed_again_and_again_neither_loses_nor_doubles_a_row(shop: Path) -> None:
    for point in ("before_commit:kill:4", "after_commit:kill:3", "after_commit:kill:2"):
        assert killed(shop, f"tables.{point}") == -9
    assert re.search(r" of [1-4],\d{3} rows", ingested(run_once(shop)))  # what was stored before was not read again
    found = contents(shop)
    assert len(found["reveals"]) == len(set(found["reveals"])) == 14_325
    assert [row[0] for row in found["aside"]] == ["run"]
    loads = tables(shop).read("loads").to_pylist()
    assert {row["part"] for row in loads if row["whole"]} == {f"data/orders-{n:02}.csv" for n in range(12)}


def test_a_second_run_reads_new_files_only(shop: Path) -> None:
    first = run_once(shop)
    assert re.fullmatch(r"Orders: 14,325 new reveals of 7,200 rows", ingested(first))
    assert "nothing new" in run_once(shop).notes[0]
    late = ["order_id,placed,shop,items,delivered,hours", "late1,2024-04-29T10:00:00Z,shop-3,4,,"]
    write_orders(shop, 12, late)
    view = run_once(shop)
    assert ingested(view) == "Orders: 1 new reveals of 1 rows"
    future = [late[0], "far,2999-01-01T10:00:00Z,shop-3,4,,"]
    write_orders(shop, 13, future)
    assert ingested(run_once(shop)) == "Orders: 0 new reveals of 1 rows, 1 are not known before a later run"
    assert len(contents(shop)["reveals"]) == 14_326


def test_a_changed_schema_upstream_stops_and_changes_nothing(shop: Path) -> None:
    run_once(shop)
    before = everything(shop)
    settings = shop / "headrace.toml"
    settings.write_text(settings.read_text() + '\n[alerts]\nops = "file:ops.jsonl"\n')
    write_orders(shop, 12, ["order_id,placed,shop,delivered,hours", "x,2024-04-29T10:00:00Z,shop-3,,"])
    for _ in range(3):
        with pytest.raises(SchemaChanged) as error:
            run_once(shop)
    assert error.value.what == "Orders.items was removed"
    assert error.value.expected == "items: int"
    assert everything(shop) == before
    alerts = [json.loads(line) for line in (shop / ".headrace" / "alerts" / "ops.jsonl").read_text().splitlines()]
    assert [(alert["event"], alert["key"], alert["what"]) for alert in alerts] == [
        ("opened", "data/Orders", "Orders.items was removed")
    ]
    write_orders(shop, 12, ["order_id,placed,shop,items,delivered,hours", "x,2024-04-29T10:00:00Z,shop-3,2,,"])
    assert ingested(run_once(shop)) == "Orders: 1 new reveals of 1 rows"
    incidents = list_incidents(project_of(shop), state=None).data["incidents"]
    assert [incident["what"] for incident in incidents] == ["Orders.items was removed"]
    assert incidents[0]["closed"]


def everything(folder: Path) -> list[Any]:
    """Return what a refused delivery must leave as it was: tables, online values, models."""
    project = project_of(folder)
    models = [str(version["version"]) for version in list_models(project, state=None).data["versions"]]
    with open_stores(project, None, clock=SystemClock(), write=False) as stores, stores.online.read() as snapshot:
        online = [list(snapshot.items(name)) for name in DATABASES]
    return [contents(folder), models, online]
