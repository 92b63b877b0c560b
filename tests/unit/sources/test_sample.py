"""The first rows of any batch source, typed as reading them later will type them, and no more rows than that takes."""

from __future__ import annotations

import gzip
import sqlite3
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

import headrace as hr
from headrace.core.errors import ConfigurationError, DataError, UsageError
from headrace.core.settings import LimitSettings, Settings
from headrace.sources import sample as sampling
from headrace.sources.batch import load
from headrace.sources.definition import definition_of
from headrace.sources.infer import code_of, infer
from headrace.sources.sample import Sample, sample, sample_file, undeclared

CSV = """order,zip,placed,local,day,size,late,hash,note
1,007,2024-01-01T10:00:00Z,2024-01-01 10:00:00,2024-01-01,1.5,true,0x5,
2,8000,2024-01-02T10:00:00+02:00,2024-01-02 10:00:00,2024-01-02,,false,0x6,
"""
JSON = (
    '{"order": 1, "zip": "007", "placed": "2024-01-01T10:00:00Z", "day": "2024-01-01", "size": 1, "mixed": 1, "in": {"a": 1}}\n'
    "no object\n"
    '{"order": 2, "zip": "8000", "placed": "2024-01-02T10:00:00+02:00", "day": "2024-01-02", "size": 2.5, "mixed": "x"}\n'
)


def read(folder: Path, limits: LimitSettings | None = None, **sources: Any) -> Sample:
    settings = Settings.model_validate({"sources": sources, "limits": limits or LimitSettings()})
    return sample(undeclared("Orders"), settings, folder)


def types(table: pa.Table) -> dict[str, str]:
    return {field.name: str(field.type) for field in table.schema}


def test_cells_of_a_csv_are_what_all_of_them_spell(tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text(CSV + "3,too short\n")
    found = read(tmp_path, Orders={"path": "orders.csv"})
    assert types(found.table) == {
        "order": "int64",
        "zip": "string",  # 007 is not 7
        "placed": "timestamp[us, tz=UTC]",
        "local": "timestamp[us]",
        "day": "date32[day]",
        "size": "double",
        "late": "bool",
        "hash": "string",
        "note": "null",
    }
    assert found.whole
    assert found.table["placed"].to_pylist()[1] == datetime(2024, 1, 2, 8, tzinfo=UTC)
    in_paris = read(tmp_path, Orders={"path": "orders.csv", "zone": "Europe/Paris"}).table
    assert in_paris["local"].to_pylist()[0] == datetime(2024, 1, 1, 9, tzinfo=UTC)


def test_lines_of_json_have_the_types_of_their_values(tmp_path: Path) -> None:
    path = tmp_path / "orders.jsonl.gz"
    path.write_bytes(gzip.compress(JSON.encode()))
    table = sample_file(path, "Orders").table
    assert types(table) == {
        "order": "int64",
        "zip": "string",
        "placed": "timestamp[us, tz=UTC]",
        "day": "date32[day]",
        "size": "double",
        "mixed": "binary",
        "in": "struct<a: int64>",
    }
    assert table["order"].to_pylist() == [1, 2]  # a line that is no object is no row of nulls
    assert [c.name for c in definition_of(infer(table, "Orders")).columns] == ["order", "zip", "placed", "day", "size"]


def test_settings_say_how_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "orders.txt").write_bytes("größe;n\n5;1\n-;2\n".encode("latin-1"))
    place = {"path": "orders.txt", "format": "csv", "delimiter": ";", "encoding": "latin-1", "nulls": ["-"]}
    assert read(tmp_path, Orders=place).table.to_pydict() == {"größe": [5, None], "n": [1, 2]}


def test_files_are_typed_together_and_folders_name_columns(tmp_path: Path) -> None:
    for year, cells in (("2024", "1,2\n"), ("2025", "x,2.5\n")):
        folder = tmp_path / "orders" / f"year={year}"
        folder.mkdir(parents=True)
        (folder / "a.csv").write_text("code,size\n" + cells)
    for path in ("orders", "orders/**/*.csv", "orders/*/a.csv"):
        table = read(tmp_path, Orders={"path": path}).table
        assert table.to_pydict() == {"code": ["1", "x"], "size": [2.0, 2.5], "year": [2024, 2025]}
    pq.write_table(pa.table({"code": ["y"], "more": [True]}), tmp_path / "orders" / "year=2025" / "b.parquet")
    table = read(tmp_path, Orders={"path": "orders"}).table
    assert sorted(table.to_pylist(), key=lambda row: str(row["code"]))[2] == {
        "code": "y",
        "size": None,
        "year": 2025,
        "more": True,
    }
    pq.write_table(pa.table({"code": [7]}), tmp_path / "orders" / "year=2025" / "b.parquet")
    with pytest.raises(DataError, match="its parts have columns of different types"):
        read(tmp_path, Orders={"path": "orders"})


def test_a_delta_table_is_sampled_at_its_version(tmp_path: Path) -> None:
    write_deltalake(tmp_path / "table", pa.table({"n": [1]}))
    write_deltalake(tmp_path / "table", pa.table({"n": [2]}), mode="append")
    assert sorted(read(tmp_path, Orders={"path": "delta:table"}).table["n"].to_pylist()) == [1, 2]
    assert read(tmp_path, Orders={"path": "delta:table", "version": 0}).table["n"].to_pylist() == [1]


def test_a_database_is_sampled(tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "duck.db")) as duck:
        duck.execute(
            "CREATE TABLE orders AS SELECT n AS id, TIMESTAMPTZ '2024-01-01 00:00Z' AS at, 1.5::decimal(8, 2) AS price,"
            " uuid() AS code FROM range(3) AS r(n)"
        )
    table = read(tmp_path, Orders={"database": "duckdb:duck.db", "table": "orders"}).table
    assert (table["id"].to_pylist(), table["price"].to_pylist()) == ([0, 1, 2], [Decimal("1.50")] * 3)
    assert [c.name for c in definition_of(infer(table, "Orders")).columns] == ["id", "at", "price", "code"]
    with sqlite3.connect(tmp_path / "lite.db") as lite:
        lite.execute("CREATE TABLE orders (id INTEGER, at TEXT, day TEXT, size, picture BLOB)")
        rows = [(1, "2024-01-01T00:00:00Z", "2024-01-01", 2, b"1"), (2, "2024-01-02T00:00:00Z", "2024-01-02", 0.5, b"")]
        lite.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?)", rows)
    lite.close()
    table = read(tmp_path, Orders={"database": "sqlite:lite.db", "sql": "SELECT * FROM orders ORDER BY id"}).table
    assert types(table) == {
        "id": "int64",
        "at": "timestamp[us, tz=UTC]",
        "day": "date32[day]",
        "size": "double",
        "picture": "binary",
    }
    assert table["day"].to_pylist() == [date(2024, 1, 1), date(2024, 1, 2)]


def test_a_query_over_other_sources_and_a_function_are_sampled(tmp_path: Path) -> None:
    (tmp_path / "raw.csv").write_text("n\n1\n2\n")
    sources: dict[str, Any] = {"Orders": {"sql": "SELECT n, n * 2 AS twice FROM Raw"}, "Raw": {"path": "raw.csv"}}
    assert read(tmp_path, **sources).table.to_pydict() == {"n": [1, 2], "twice": [2, 4]}
    (tmp_path / "loaders.py").write_text("import pyarrow as pa\ndef orders():\n    yield pa.table({'n': [1, 2]})\n")
    assert read(tmp_path, Orders={"function": "loaders:orders"}).table.to_pydict() == {"n": [1, 2]}


def test_a_class_that_holds_its_rows_is_sampled_from_them() -> None:
    held = hr.source(pa.table({"id": [1, 2], "at": [datetime(2024, 1, 1, tzinfo=UTC)] * 2}), "Orders")
    assert sample(definition_of(held), Settings(), Path()).table["id"].to_pylist() == [1, 2]


def test_no_more_is_read_than_the_sample_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "ROWS", 10)
    (tmp_path / "rows.py").write_text(
        "import pyarrow as pa\nfrom pathlib import Path\n"
        "def orders():\n    for n in range(1_000):\n        Path(__file__).with_name('taken').write_text(str(n))\n"
        "        yield pa.table({'n': [n] * 4})\n"
    )
    found = read(tmp_path, Orders={"function": "rows:orders"})
    assert (found.table["n"].to_pylist(), found.whole) == ([0] * 4 + [1] * 4 + [2] * 2, False)
    assert int((tmp_path / "taken").read_text()) < 5
    (tmp_path / "1.csv").write_text("n\n" + "1\n" * 9)
    (tmp_path / "2.csv").write_bytes(b"\xff\xfe is no text")
    with pytest.raises(DataError, match="not UTF-8"):
        read(tmp_path, Orders={"path": "*.csv"})
    (tmp_path / "1.csv").write_text("n\n" + "1\n" * 11)
    assert read(tmp_path, Orders={"path": "*.csv"}).table.num_rows == 10
    monkeypatch.setattr(sampling, "BYTES", 30)
    assert read(tmp_path, LimitSettings(read_bytes=8), Orders={"path": "*.csv"}).table.num_rows < 10


def test_what_was_inferred_is_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text(
        CSV.replace(",local", "").replace(",2024-01-01 10:00:00", "").replace(",2024-01-02 10:00:00", "")
    )
    found = read(tmp_path, Orders={"path": "orders.csv"})
    made = definition_of(infer(found.table, "Orders"))
    space: dict[str, Any] = {"hr": hr}
    exec(code_of(made), space)  # noqa: S102  # what is tested is what this code reads
    settings = Settings.model_validate({"sources": {"Orders": {"path": "orders.csv"}}})
    loaded = load(definition_of(space["Orders"]), settings, tmp_path)
    assert (loaded.rows, loaded.refused.num_rows) == (2, 0)
    assert loaded.batch.table["zip"].to_pylist() == ["007", "8000"]


def test_what_is_no_source_of_rows_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("a,b\n")
    with pytest.raises(DataError, match="no rows to learn from"):
        sample_file(tmp_path / "empty.csv", "Orders")
    for name in ("none.csv", "notes.txt"):
        with pytest.raises(UsageError, match="not a data file"):
            sample_file(tmp_path / name, "Orders")
    with pytest.raises(ConfigurationError):
        read(tmp_path)
