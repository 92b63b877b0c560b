"""A span's features as a table: the same values as a training set's, each day once, also after a kill and after new data."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from headrace.core.errors import GateRefused, UsageError
from headrace.core.time import Instant, SystemClock, VirtualClock
from headrace.pipelines.project import Project, load_project
from headrace.pipelines.ranges import materialize_range
from headrace.pipelines.reproduce import as_table, rebuild_training_set
from headrace.pipelines.run import run
from headrace.pipelines.stores import open_stores
from headrace.pipelines.view import Silent
from headrace.registry.run import Registry

NOW = Instant.parse("2024-05-02T12:00:00Z")
SPAN = ["--from", "2024-02-01", "--to", "2024-02-09"]


def loaded(folder: Path) -> Project:
    return load_project("orders:pipeline", folder=folder)


def written(project: Project, table: str) -> pa.Table:
    with open_stores(project, None, clock=SystemClock(), write=False) as stores:
        return stores.tables.read(table).sort_by([("_at", "ascending"), ("order_id", "ascending")])


def test_a_span_is_written_once_goes_on_after_a_kill_and_takes_up_new_data(shop: Path) -> None:
    project = loaded(shop)
    command = [sys.executable, "-m", "headrace.cli", "backfill", *SPAN]
    environment = os.environ | {"HEADRACE_FAILPOINTS": "backfill.after_day:kill:3"}
    killed = subprocess.run(command, cwd=shop, env=environment, capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    view = materialize_range(project, SPAN[1], SPAN[3], state=None, progress=Silent())
    assert (view["days"], view["unchanged"]) == (5, 3)
    with open_stores(project, None, clock=SystemClock(), write=False) as stores:
        version = Registry(stores.ledger, stores.blobs, project.name).version("v1")
        expected = as_table(rebuild_training_set(project, stores.tables, version.data))
    start, end = (pa.scalar(Instant.parse(SPAN[i]), pa.timestamp("us", "UTC")) for i in (1, 3))
    chosen = pc.and_(pc.greater_equal(expected["_at"], start), pc.less(expected["_at"], end))
    expected = expected.filter(chosen).sort_by([("_at", "ascending"), ("order_id", "ascending")])
    found = written(project, view["table"])
    assert found.num_rows == expected.num_rows == 8 * 60
    names = [name for name in found.column_names if name != "_day"]
    assert found.select(names).equals(expected.select(names))
    again = materialize_range(project, SPAN[1], SPAN[3], state=None, progress=Silent())
    assert (again["days"], again["unchanged"], again["rows"]) == (0, 8, 0)
    with (shop / "data" / "orders.csv").open("a") as file:
        file.write("late,2024-02-03T01:00:00Z,shop-3,5,2024-02-03T09:00:00Z,8.0\n")
    with suppress(GateRefused):
        run(project, state=None, seed=1, progress=Silent(), clock=VirtualClock(NOW))
    materialize_range(project, SPAN[1], SPAN[3], state=None, progress=Silent())
    assert written(project, view["table"]).num_rows == 8 * 60 + 1
    with pytest.raises(UsageError, match="whole days"):
        materialize_range(project, SPAN[3], SPAN[1], state=None, progress=Silent())
