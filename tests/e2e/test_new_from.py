"""A project written around somebody's own file can be planned as it stands, and runs."""

from __future__ import annotations

import os
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
import pytest

from headrace.cli.from_data import write_project_from
from headrace.core.errors import DataError, DefinitionError, UsageError
from headrace.pipelines.plan import describe_plan
from headrace.pipelines.project import load_project
from headrace.pipelines.run import run
from headrace.pipelines.view import Silent

ROWS = 1_500


def table(zone: str | None = "UTC") -> pa.Table:
    rng, start = random.Random(5), datetime(2024, 1, 1, tzinfo=UTC)
    times = pa.array([start + timedelta(hours=n) for n in range(ROWS)], pa.timestamp("us", "UTC"))
    return pa.table(
        {
            "Order No": pa.array(range(ROWS)),
            "placed": times if zone else times.cast(pa.timestamp("us")),
            "customer_id": [f"c{rng.randrange(30)}" for _ in range(ROWS)],
            "weight": [rng.random() if n % 7 else None for n in range(ROWS)],
            "late": [rng.random() < 0.3 for _ in range(ROWS)],
        }
    )


def write(folder: Path, kind: str, data: pa.Table) -> Path:
    path = folder / f"my orders.{kind}"
    if kind == "parquet":
        pq.write_table(data, path)
    elif kind == "csv":
        pa.csv.write_csv(data, path)
    else:
        import polars

        frame: Any = polars.from_arrow(data)
        path.write_text(frame.with_columns(placed=frame["placed"].dt.strftime("%Y-%m-%dT%H:%M:%SZ")).write_ndjson())
    return path


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_a_file_becomes_a_project_that_is_planned(tmp_path: Path, kind: str) -> None:
    view = write_project_from(str(tmp_path / "project"), str(write(tmp_path, kind, table())), label=None, zone=None)
    assert [[c["column"], c["type"], c["is"]] for c in view.data["columns"]] == [
        ["order_no", "int", "names the row"],
        ["placed", "instant", "when it happened"],
        ["customer_id", "str", "a thing that has features"],
        ["weight", "float | None", ""],
        ["late", "bool", ""],
    ]
    assert view.data["label"] == "MyOrders.late"
    code = tmp_path / "project" / "myorders.py"
    code.write_text(code.read_text().replace("trials=5", "trials=1"))
    project = load_project("myorders:pipeline", folder=tmp_path / "project")
    told = describe_plan(project)
    assert {"MyOrders"} == {source.name for source in project.plan.sources}
    assert "CustomerId.mean_weight[1d]" in str([column.name for column in project.plan.columns])
    assert told.data["pipeline"] == "myorders:pipeline"
    if kind == "parquet":
        assert run(project, state=None, seed=0, progress=Silent()).data["outcome"] == "promoted"


def test_what_is_asked_for_is_predicted_and_zones_are_said(tmp_path: Path) -> None:
    path = write(tmp_path, "parquet", table(zone=None))
    with pytest.raises(DataError, match="timestamps without a zone") as error:
        write_project_from(str(tmp_path / "a"), str(path), label=None, zone=None)
    assert "--zone" in str(error.value.next_step)
    assert not (tmp_path / "a").exists()
    other = write(tmp_path, "jsonl", table())
    other.write_text(other.read_text().replace("}", ', "packed": "2024-01-01 10:00:00"}'))
    with pytest.raises(DataError, match="timestamps without a zone") as error:
        write_project_from(str(tmp_path / "a"), str(other), label=None, zone=None)
    assert "column packed" in str(error.value.where)
    view = write_project_from(str(tmp_path / "a"), str(path), label="weight", zone="Europe/Paris")
    assert view.data["label"].startswith("MyOrders.weight > 0.")
    assert 'zone = "Europe/Paris"' in (tmp_path / "a" / "headrace.toml").read_text()
    with pytest.raises(UsageError, match="no column to predict"):
        write_project_from(str(tmp_path / "b"), str(path), label="wait", zone="UTC")
    with pytest.raises(UsageError, match="not empty"):
        write_project_from(str(tmp_path / "a"), str(path), label=None, zone=None)


def test_a_file_that_makes_no_project_leaves_nothing_behind(tmp_path: Path) -> None:
    broken = tmp_path / "x.parquet"
    broken.write_bytes(b"PAR1")
    doubled = write(tmp_path, "parquet", pa.concat_tables([table(), table()]))
    for path, error in ((broken, DataError), (tmp_path / "no.csv", UsageError), (doubled, DefinitionError)):
        with pytest.raises(error):
            write_project_from(str(tmp_path / "p"), str(path), label=None, zone=None)
        assert not (tmp_path / "p").exists()


def test_no_name_of_a_file_becomes_code(tmp_path: Path) -> None:
    path = tmp_path / 'json"""\n1+.parquet'
    pq.write_table(table(), path)
    write_project_from(str(tmp_path / "p"), str(path), label=None, zone=None)
    names = sorted(name for name in os.listdir(tmp_path / "p") if name.endswith(".py"))
    assert names == ["json1.py"]
    assert load_project("json1:pipeline", folder=tmp_path / "p").settings.sources["Json1"].path == os.path.relpath(
        path, tmp_path / "p"
    )
