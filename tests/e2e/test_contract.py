"""A contract is inferred from whatever a source is, holds for what it was inferred from, and tells where data part from it."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from headrace.cli.template import write_project
from headrace.core.errors import DefinitionError, UsageError
from headrace.pipelines import contract
from headrace.pipelines.contract import check_contract, infer_contract
from headrace.pipelines.project import load_project
from headrace.sources import sample as sampling

ROWS = 400
START = datetime(2024, 1, 1, tzinfo=UTC)
TABLE = pa.table(
    {
        "Order No": [f"o-{n:04d}" for n in range(ROWS)],
        "placed": pa.array([START + timedelta(hours=n) for n in range(ROWS)], pa.timestamp("us", "UTC")),
        "shop": [f"shop-{n % 30}" for n in range(ROWS)],
        "items": [n * 7 % 90 for n in range(ROWS)],
        "hours": [n % 50 / 2 if n % 11 else None for n in range(ROWS)],
    }
)
CODE = '''import headrace as hr


class Orders(hr.Source):
    """Inferred from 400 rows. Review what names a row, the types, and when each value is known (known_at=)."""

    order_no: hr.Column[str] = hr.row_id(name="Order No")
    placed: hr.Column[hr.Instant] = hr.event_time()
    shop: hr.Column[str] = hr.entity(matches=r"[a-z]{4}\\-[0-9]+")
    items: hr.Column[int] = hr.column(ge=0, le=90)
    hours: hr.Column[float | None] = hr.column(ge=0, le=30)

    checks = hr.Checks(
        hr.unique(order_no),
        hr.mean(items).between(31, 58),
        hr.null_rate(hours) <= 0.2,
        hr.mean(hours).between(8.6, 15.9),
        hr.row_count().within(0.5, of="7d"),
        hr.missing("1d") <= 0,
    )
'''
PROJECT = """
class Shop(hr.FeatureGroup, of=Orders, entity=Orders.shop):
    orders = hr.count(Orders.order_no).over("1d")


dataset = hr.Dataset(rows=Orders, at=Orders.placed, features=[Shop], label=Orders.items > 40, mature="1h")


@hr.train(dataset, split=hr.by_time(valid="1d", test="1d"))
def first(data: hr.TrainingData, p: hr.Params) -> hr.Model:
    raise NotImplementedError


pipeline = hr.Pipeline(model=first, endpoint=hr.Endpoint(fallback=0.5))
"""


def write_duckdb(folder: Path) -> None:
    given = TABLE  # noqa: F841  # the query names it
    with duckdb.connect(str(folder / "shop.db")) as connection:
        connection.execute("CREATE TABLE orders AS SELECT * FROM given")


def write_files(folder: Path) -> None:
    (folder / "data").mkdir()
    pa.csv.write_csv(TABLE.slice(0, 150), folder / "data" / "1.csv")
    pa.csv.write_csv(TABLE.slice(150), folder / "data" / "2.csv")


def write_function(folder: Path) -> None:
    pq.write_table(TABLE, folder / "orders.parquet")
    (folder / "loaders.py").write_text(
        "from pathlib import Path\nimport pyarrow.parquet as pq\n"
        "def orders():\n    yield pq.read_table(Path(__file__).with_name('orders.parquet'))\n"
    )


def write_raw(folder: Path) -> None:
    pq.write_table(TABLE, folder / "raw.parquet")


SOURCES: dict[str, tuple[Any, str]] = {
    "files": (write_files, '[sources.Orders]\npath = "data/*.csv"\n'),
    "folder": (write_files, '[sources.Orders]\npath = "data"\n'),
    "delta": (lambda folder: write_deltalake(folder / "table", TABLE), '[sources.Orders]\npath = "delta:table"\n'),
    "database": (write_duckdb, '[sources.Orders]\ndatabase = "duckdb:shop.db"\ntable = "orders"\n'),
    "query": (write_raw, '[sources.Orders]\nsql = "SELECT * FROM Raw"\n[sources.Raw]\npath = "raw.parquet"\n'),
    "function": (write_function, '[sources.Orders]\nfunction = "loaders:orders"\n'),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_contract_is_inferred_from_every_kind_of_source_and_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    write, settings = SOURCES[kind]
    write(tmp_path)
    (tmp_path / "headrace.toml").write_text(settings)
    monkeypatch.chdir(tmp_path)
    view = infer_contract("Orders", pipeline=None, env=None, to="orders.py")
    assert (tmp_path / "orders.py").read_text() == view["code"] == CODE
    assert (view["rows"], view["whole"], view["left_out"]) == (ROWS, True, [])
    with (tmp_path / "orders.py").open("a") as file:
        file.write("\n" + PROJECT)
    project = load_project("orders:pipeline", folder=tmp_path)
    assert check_contract(project, "Orders")["differences"] == []
    with pytest.raises(UsageError, match="the file exists"):
        infer_contract("Orders", pipeline=None, env=None, to="orders.py")


@pytest.mark.parametrize(
    ("place", "name"), [("data", "Data"), ("data/*.csv", "Data"), ("data/1.csv", "Rows1"), ("delta:table", "Table")]
)
def test_a_place_needs_no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, name: str) -> None:
    write_files(tmp_path)
    write_deltalake(tmp_path / "table", TABLE)
    monkeypatch.chdir(tmp_path)
    view = infer_contract(place, pipeline=None, env=None, to=None)
    assert (view["source"], view["rows"]) == (name, 150 if place == "data/1.csv" else ROWS)
    for wrong in ("Order", "none.csv", "nowhere"):
        with pytest.raises(UsageError, match="neither a place nor a source"):
            infer_contract(wrong, pipeline=None, env=None, to=None)


def test_of_a_large_source_the_first_rows_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path)
    (tmp_path / "orders.py").write_text(CODE + "\n" + PROJECT)
    (tmp_path / "headrace.toml").write_text(SOURCES["files"][1])
    for module in (sampling, contract):
        monkeypatch.setattr(module, "ROWS", 100)
    monkeypatch.chdir(tmp_path)
    view = infer_contract("Orders", pipeline="orders:pipeline", env=None, to=None)
    assert (view.title, view["whole"]) == ("A contract of Orders from the first 100 rows", False)
    lines = (tmp_path / "data" / "2.csv").read_text().splitlines()
    (tmp_path / "data" / "2.csv").write_text(
        "\n".join([*lines, lines[-1].replace("shop-9", "shop-8")]) + "\n"
    )  # a row twice, beyond the sample
    project = load_project("orders:pipeline", folder=tmp_path)
    checked = check_contract(project, "Orders")
    assert checked.title == "Orders and its first 100 rows agree"
    monkeypatch.undo()
    (found,) = check_contract(project, "Orders")["differences"]
    assert (found["what"], found["data"]) == ("unique(Orders.order_no)", "failed: 1 of 401 rows break it")


def test_what_a_class_does_not_say_and_what_of_the_data_breaks_it_is_told(tmp_path: Path) -> None:
    table = TABLE.set_column(3, "items", pa.array([-1, 500, *TABLE["items"].to_pylist()[2:]]))
    table = table.append_column("paid", pa.array([True] * ROWS)).append_column("parts", pa.array([[1]] * ROWS))
    pq.write_table(table, tmp_path / "orders.parquet")
    (tmp_path / "headrace.toml").write_text('[sources.Orders]\npath = "orders.parquet"\n')
    said = CODE.replace('hr.entity(matches=r"[a-z]{4}\\-[0-9]+")', "hr.entity()").replace(
        "hr.column(ge=0, le=30)", "hr.column()"
    )
    (tmp_path / "orders.py").write_text(said.replace("items: hr.Column[int]", "items: hr.Column[int | None]") + PROJECT)
    found = check_contract(load_project("orders:pipeline", folder=tmp_path), "Orders")["differences"]
    assert [(d["what"], d["class"], d["data"]) for d in found] == [
        ("Orders.items", "may be null", "no null in 400 rows"),
        ("Orders.hours", "no ge=", "ge=0"),
        ("Orders.hours", "no le=", "le=30"),
        ("paid", "not declared", "bool, 0 nulls"),
        ("Orders.items <= 90", "none", "failed: 1 of 400 rows break it"),
        ("Orders.items >= 0", "none", "failed: 1 of 400 rows break it"),
    ]


def test_local_times_and_rows_without_a_name_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = TABLE["placed"].cast(pa.timestamp("us"))
    pa.csv.write_csv(TABLE.set_column(1, "placed", local), tmp_path / "orders.csv")
    monkeypatch.chdir(tmp_path)
    view = infer_contract("orders.csv", pipeline=None, env=None, to=None)
    assert 'Without a zone: placed. Name it in headrace.toml: [sources.Orders] zone = "Europe/Paris"' in view.notes
    pa.csv.write_csv(pa.concat_tables([TABLE, TABLE]), tmp_path / "twice.csv")
    with pytest.raises(DefinitionError, match="no column names a row"):
        infer_contract("twice.csv", pipeline=None, env=None, to=None)


def test_the_command_writes_a_file_that_says_what_it_showed(tmp_path: Path) -> None:
    write_project(str(tmp_path / "project"))
    command = [sys.executable, "-m", "headrace.cli", "contract", "infer", "Orders", "--to", "mine.py", "--json"]
    done = subprocess.run(command, cwd=tmp_path / "project", capture_output=True, check=True)
    told = json.loads(done.stdout)
    assert told["code"] == (tmp_path / "project" / "mine.py").read_text()
    assert "class Orders(hr.Source):" in told["code"]
