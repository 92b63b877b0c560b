"""What is new is read once, in deliveries of bounded size, wherever it lies; whatever changes meanwhile is told."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from headrace.core.errors import ConfigurationError, DataError, MissingExtra, SchemaChanged, UserCodeError
from headrace.core.expressions import Column
from headrace.core.settings import LimitSettings, Settings, SourceSettings, load_settings
from headrace.core.time import HOUR, SECOND, Instant
from headrace.sources.batch import LONG_AGO, Loaded, iter_loads, load
from headrace.sources.definition import Source, column, definition_of, event_time, row_id
from headrace.sources.listing import list_files
from headrace.sources.parts import Mark


class Orders(Source):
    order: Column[str] = row_id()
    placed: Column[Instant] = event_time()
    amount: Column[float | None] = column()
    remark: Column[str | None] = column()


ORDERS = definition_of(Orders)
NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
HEADER = "order,placed,amount,remark\n"


def settings(limits: LimitSettings | None = None, **source: Any) -> Settings:
    return Settings(sources={"Orders": SourceSettings(**source)}, limits=limits or LimitSettings())


def line(number: int, remark: str = "") -> str:
    return f"o{number},2013-07-01T12:00:{number % 60:02}Z,{number},{remark}\n"


def rows(first: int, last: int) -> pa.Table:
    numbers = range(first, last)
    return pa.table(
        {
            "order": [f"o{n}" for n in numbers],
            "placed": pa.array([NOON + timedelta(seconds=n) for n in numbers], pa.timestamp("us", "UTC")),
            "amount": pa.array([float(n) for n in numbers]),
            "remark": pa.nulls(len(numbers), pa.string()),
        }
    )


def orders(loaded: list[Loaded]) -> list[str]:
    return [row_id[5:].decode() for part in loaded for row_id in part.load.batch.table["_row_id"].to_pylist()]


class Reader:
    """Load again and again what is new, as runs do."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self.seen: dict[str, Mark] = {}

    def __call__(self, *, stop_after: int | None = None) -> list[Loaded]:
        found = []
        for loaded in iter_loads(ORDERS, self.settings, self.folder, now=LONG_AGO, seen=self.seen):
            found.append(loaded)
            self.seen |= {mark.part: mark for mark in loaded.marks}
            if len(found) == stop_after:
                break
        return found


def test_only_new_and_changed_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text(HEADER + line(1))
    (tmp_path / "2.csv").write_text(HEADER + line(2))
    read = Reader(settings(path="*.csv"), tmp_path)
    assert orders(read()) == ["o1", "o2"]
    assert orders(read()) == []
    (tmp_path / "3.csv").write_text(HEADER + line(3))
    (tmp_path / "1.csv").write_text(HEADER + line(1) + line(11))
    assert orders(read()) == ["o1", "o3", "o11"]
    assert read.seen["1.csv"].rows == 2


def test_a_file_too_young_to_tell_its_state_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "1.csv"
    path.write_text(HEADER + line(1))
    written = path.stat().st_mtime_ns // 1_000
    (young,) = iter_loads(ORDERS, settings(path="1.csv"), tmp_path, now=written + SECOND, seen={})
    assert [mark.mark for mark in young.marks] == [""]
    (old,) = iter_loads(ORDERS, settings(path="1.csv"), tmp_path, now=written + HOUR, seen={})
    assert old.marks[0].mark == f"{path.stat().st_size}:{path.stat().st_mtime_ns}"


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_large_file_is_delivered_in_parts_and_goes_on_where_it_was_left(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"orders.{suffix}"
    if suffix == "csv":
        path.write_text(HEADER + "".join(map(line, range(100))))
    elif suffix == "parquet":
        pq.write_table(rows(0, 100), path)
    else:
        path.write_text(
            "".join(
                f'{{"order":"o{n}","placed":"2013-07-01T12:00:00Z","amount":1,"remark":null}}\n' for n in range(100)
            )
        )
    limits = LimitSettings(delivery_rows=30, read_rows=10, read_bytes=400)
    read = Reader(settings(limits, path=path.name), tmp_path)
    first = read(stop_after=2)
    assert all(30 <= part.load.rows <= 45 for part in first)
    assert not read.seen[path.name].whole
    rest = read()
    assert sorted(orders(first + rest)) == sorted(f"o{n}" for n in range(100))
    assert read.seen[path.name] == Mark(path.name, read.seen[path.name].mark, 100, True, ("amount", "remark"))


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "orders.csv"
    path.write_text(HEADER + "".join(map(line, range(50))))
    limits = LimitSettings(delivery_rows=10, read_bytes=300)
    deliveries = iter_loads(ORDERS, settings(limits, path="orders.csv"), tmp_path, now=LONG_AGO, seen={})
    next(deliveries)
    with path.open("a") as file:
        file.write(line(50))
    with pytest.raises(DataError, match="a file changed while it was read") as error:
        list(deliveries)
    assert error.value.next_step == "run the same command again; nothing was taken from the file"


def test_a_folder_is_taken_as_it_was_listed(tmp_path: Path) -> None:
    for name in ("1", "2"):
        (tmp_path / f"{name}.csv").write_text(HEADER + line(int(name)))
    limits = LimitSettings(delivery_rows=1)
    deliveries = iter_loads(ORDERS, settings(limits, path="."), tmp_path, now=LONG_AGO, seen={})
    found = [next(deliveries)]
    (tmp_path / "3.csv").write_text(HEADER + line(3))
    assert orders(found + list(deliveries)) == ["o1", "o2"]
    deliveries = iter_loads(ORDERS, settings(limits, path="."), tmp_path, now=LONG_AGO, seen={})
    next(deliveries)
    (tmp_path / "3.csv").unlink()
    with pytest.raises(DataError, match="a file changed while it was read") as error:
        list(deliveries)
    assert error.value.got == "no such file any more"


def test_an_added_column_passes_and_a_removed_or_retyped_one_stops(tmp_path: Path) -> None:
    short = "order,placed,amount\na,2013-07-01T12:00:00Z,1\n"
    (tmp_path / "1.csv").write_text(short)
    (tmp_path / "2.csv").write_text(HEADER.strip() + ",more\n" + line(2, "x").strip() + ",y\n")
    read = Reader(settings(path="*.csv"), tmp_path)
    stated = {r.row_id[5:]: r.places for r in read()[0].load.batch.reveals()}
    assert stated == {b"a": (0, 1, 2), b"o2": (0, 1, 2, 3)}  # the first says nothing of its remark
    (tmp_path / "3.csv").write_text(short)
    with pytest.raises(SchemaChanged) as error:
        read()
    assert error.value.what == "Orders.remark was removed"
    assert "3.csv, declared at " in str(error.value.where)
    assert error.value.got == "remark (removed): no columns remark"
    assert error.value.expected == "remark: str | None"
    (tmp_path / "3.csv").write_text(HEADER + "c,2013-07-01T12:00:00Z,many,\n")
    with pytest.raises(SchemaChanged, match=r"Orders\.amount was retyped"):
        read()
    pq.write_table(rows(3, 4).set_column(2, "amount", pa.array(["three"])), tmp_path / "3.parquet")
    (tmp_path / "3.csv").unlink()
    read.settings = settings(path=".")
    with pytest.raises(SchemaChanged) as error:
        read()
    assert (error.value.got, error.value.expected) == ("amount (retyped): string", "amount: float")


def test_a_declared_column_that_no_file_has_stops(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("order,placed,amount\na,2013-07-01T12:00:00Z,1\n")
    with pytest.raises(SchemaChanged, match=r"Orders\.remark was removed"):
        Reader(settings(path="1.csv"), tmp_path)()


def test_folders_name_columns(tmp_path: Path) -> None:
    for remark in ("New%20York", "__HIVE_DEFAULT_PARTITION__"):
        for n, amount in enumerate(("1", "2.5")):
            folder = tmp_path / "data" / f"remark={remark}" / f"amount={amount}"
            folder.mkdir(parents=True)
            pq.write_table(rows(n, n + 1).select(["order", "placed"]), folder / "part.parquet")
    (tmp_path / "data" / "_temporary").mkdir()
    (tmp_path / "data" / "_temporary" / "part.parquet").touch()
    found = load(ORDERS, settings(path="data"), tmp_path).batch.table
    assert sorted(zip(found["amount"].to_pylist(), found["remark"].to_pylist(), strict=True), key=str) == [
        (1.0, "New York"),
        (1.0, None),
        (2.5, "New York"),
        (2.5, None),
    ]
    (tmp_path / "data" / "remark=x" / "amount=many").mkdir(parents=True)
    pq.write_table(rows(0, 1).select(["order", "placed"]), tmp_path / "data" / "remark=x" / "amount=many" / "a.parquet")
    with pytest.raises(SchemaChanged, match=r"Orders\.amount was retyped"):
        load(ORDERS, settings(path="data"), tmp_path)


def test_delta_tables_are_read_file_by_file_at_any_version(tmp_path: Path) -> None:
    for first in (0, 3):
        write_deltalake(tmp_path / "orders", rows(first, first + 3), mode="append", partition_by=["amount"])
    read = Reader(settings(path="delta:orders"), tmp_path)
    assert sorted(orders(read())) == [f"o{n}" for n in range(6)]
    assert orders(read()) == []
    write_deltalake(tmp_path / "orders", rows(6, 7), mode="append", partition_by=["amount"])
    assert orders(read()) == ["o6"]
    assert sorted(orders(Reader(settings(path="orders", format="delta", version=0), tmp_path)())) == ["o0", "o1", "o2"]
    DeltaTable(tmp_path / "orders").optimize.compact()
    assert orders(read()) == []  # nothing to merge within a partition
    for wrong in ({"path": "delta:nowhere"}, {"path": "delta:orders", "version": 99}):
        with pytest.raises(DataError, match="not a readable Delta table"):
            Reader(settings(**wrong), tmp_path)()


def write_duckdb(path: Path, table: pa.Table) -> None:
    with duckdb.connect(str(path)) as connection:
        connection.register("new_rows", table)
        connection.execute("CREATE TABLE IF NOT EXISTS orders AS FROM new_rows LIMIT 0")
        connection.execute("INSERT INTO orders FROM new_rows")


def write_sqlite(path: Path, table: pa.Table) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute('CREATE TABLE IF NOT EXISTS orders ("order" text, placed text, amount real, remark text)')
        found = [(r["order"], r["placed"].isoformat(), r["amount"], r["remark"]) for r in table.to_pylist()]
        connection.executemany("INSERT INTO orders VALUES (?, ?, ?, ?)", found)
    connection.close()


DATABASES: dict[str, Callable[[Path, pa.Table], None]] = {"duckdb": write_duckdb, "sqlite": write_sqlite}


@pytest.mark.parametrize("scheme", DATABASES)
def test_a_database_is_read_from_the_cursor_on(tmp_path: Path, scheme: str) -> None:
    write = DATABASES[scheme]
    write(tmp_path / "shop.db", rows(0, 20))
    limits = LimitSettings(delivery_rows=8, read_rows=4)
    cursor = "placed" if scheme == "sqlite" else "n"
    sql = "SELECT *, amount AS n FROM orders" if scheme == "sqlite" else "SELECT *, amount::int AS n FROM orders;"
    read = Reader(settings(limits, database=f"{scheme}:shop.db", sql=sql, cursor=cursor), tmp_path)
    first = read()
    assert [part.load.rows for part in first] == [8, 8, 4]
    assert sorted(orders(first)) == sorted(f"o{n}" for n in range(20))
    assert orders(read()) == ["o19"]  # whatever else has the newest position would be missed without it
    write(tmp_path / "shop.db", rows(20, 22))
    assert orders(read()) == ["o19", "o20", "o21"]


def test_rows_without_a_cursor_value_are_read_every_time(tmp_path: Path) -> None:
    write_duckdb(tmp_path / "shop.db", rows(0, 3))
    sql = "SELECT *, CASE WHEN amount > 0 THEN amount::int END AS n FROM orders"
    read = Reader(settings(database="duckdb:shop.db", sql=sql, cursor="n"), tmp_path)
    assert sorted(orders(read())) == ["o0", "o1", "o2"]
    assert sorted(orders(read())) == ["o0", "o2"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("DROP TABLE orders", ConfigurationError),
        ("SELECT 1; DROP TABLE orders", ConfigurationError),
        ("SELECT * FROM read_csv('/etc/passwd')", DataError),
        ("SELECT * FROM nowhere", DataError),
        ("SELECT * FROM settings", DataError),  # no variable of ours is a table
        ("WITH x AS (SELECT 1) INSERT INTO orders SELECT 1", DataError),
    ],
)
def test_a_query_can_only_read_its_database(tmp_path: Path, text: str, error: type[Exception]) -> None:
    write_duckdb(tmp_path / "shop.db", rows(0, 3))
    with pytest.raises(error):
        Reader(settings(database="duckdb:shop.db", sql=text), tmp_path)()
    with duckdb.connect(str(tmp_path / "shop.db")) as connection:
        assert connection.execute("SELECT count(*) FROM orders").fetchall() == [(3,)]


def test_numbers_of_databases_are_exact_or_refused(tmp_path: Path) -> None:
    write_duckdb(tmp_path / "shop.db", rows(0, 2))
    cheap = 'SELECT "order", placed, 0.1::decimal(10, 2) AS amount, remark FROM orders'
    found = load(ORDERS, settings(database="duckdb:shop.db", sql=cheap), tmp_path)
    assert found.batch.table["amount"].to_pylist() == [0.1, 0.1]
    huge = 'SELECT "order", placed, 9007199254740993::hugeint AS amount, remark FROM orders'
    with pytest.raises(SchemaChanged, match="retyped"):
        load(ORDERS, settings(database="duckdb:shop.db", sql=huge), tmp_path)


def test_a_query_may_join_the_other_sources(tmp_path: Path) -> None:
    pq.write_table(rows(0, 3), tmp_path / "raw.parquet")
    (tmp_path / "remarks.csv").write_text("number,text\n1,one\n2,two\n")
    sql = 'SELECT "order", placed, amount, text AS remark FROM Raw LEFT JOIN Remarks ON number = amount'
    sources = {"Orders": {"sql": sql}, "Raw": {"path": "raw.parquet"}, "Remarks": {"path": "remarks.csv"}}
    found = load(ORDERS, Settings.model_validate({"sources": sources}), tmp_path).batch.table
    assert sorted(found["remark"].to_pylist(), key=str) == [None, "one", "two"]
    sources["Orders"]["sql"] = "SELECT * FROM read_csv('remarks.csv')"
    with pytest.raises(DataError, match="the query failed"):
        load(ORDERS, Settings.model_validate({"sources": sources}), tmp_path)


def test_a_function_of_the_project_returns_rows(tmp_path: Path) -> None:
    (tmp_path / "loaders.py").write_text(
        "import pyarrow as pa\nfrom datetime import datetime, UTC\n"
        "def orders(since=None):\n"
        "    first = 0 if since is None else since\n"
        "    for n in range(first, first + 2):\n"
        "        yield pa.table({'order': [f'o{n}'], 'placed': [datetime(2013, 7, 1, tzinfo=UTC)],\n"
        "                        'amount': [1.0], 'remark': pa.nulls(1, pa.string()), 'n': [n]})\n"
        "def broken():\n    raise ValueError('no rows today')\n"
        "def nothing():\n    return 5\n"
    )
    read = Reader(settings(function="loaders:orders", cursor="n"), tmp_path)
    assert [orders(read()), orders(read())] == [["o0", "o1"], ["o1", "o2"]]
    wrong: list[tuple[str, type[Exception], str]] = [
        ("loaders:broken", UserCodeError, "no rows today"),
        ("loaders:nothing", DataError, "returned no Arrow"),
        ("loaders:order", ConfigurationError, "did you mean orders?"),
        ("os:getcwd", ConfigurationError, "no such project file"),
        ("../loaders:orders", ConfigurationError, "leave its folder"),
    ]
    for name, error, text in wrong:
        with pytest.raises(error) as caught:
            Reader(settings(function=name), tmp_path)()
        assert text in str(caught.value)


def test_settings_name_one_place(tmp_path: Path) -> None:
    for text in (
        'path = "a.csv"\ndatabase = "sqlite:x"\ntable = "t"',
        'database = "sqlite:x"',
        'table = "t"',
        'path = "a.csv"\ncursor = "n"',
        'encoding = "martian"',
    ):
        (tmp_path / "headrace.toml").write_text(f"[sources.Orders]\n{text}\n")
        with pytest.raises(ConfigurationError, match="a setting does not fit"):
            load_settings(tmp_path)


def test_a_database_that_is_not_there_is_named_without_its_secrets(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no such database"):
        Reader(settings(database="sqlite:none.db", table="t"), tmp_path)()
    with pytest.raises(MissingExtra) as missing:
        Reader(settings(database="adbc:adbc_driver_nowhere:x", table="t"), tmp_path)()
    assert missing.value.next_step == 'pip install "adbc-driver-nowhere"'
    url = "postgresql://me:s3cret@127.0.0.1:1/shop"
    with pytest.raises(DataError) as error:
        Reader(settings(database=url, table="t"), tmp_path)()
    assert "s3cret" not in str(error.value)
    assert "s3cret" not in repr(settings(database=url, table="t"))


def test_the_names_of_a_listing_do_not_depend_on_where_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "1.csv").touch()
    monkeypatch.chdir(tmp_path / "data")
    (found,) = list_files(ORDERS, SourceSettings(path="data"), tmp_path)
    assert (found.name, found.where) == (os.path.join("data", "1.csv"), "1.csv")
