"""JSON, Avro and Arrow payloads give the same reveals and the same refusals; whatever is wrong is told, never raised."""

from __future__ import annotations

import io
import json
import random
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pytest

import headrace as hr
from headrace.core.errors import ConfigurationError, Unavailable
from headrace.core.settings import SourceSettings
from headrace.core.time import Instant
from headrace.sources.codecs import codec_of
from headrace.sources.definition import definition_of
from headrace.sources.events import Events
from headrace.sources.run import Load
from headrace.storage.streams import Message
from headrace.testing.servers import free_port

NOON = Instant.parse("2024-05-01T12:00:00Z")


class Trips(hr.Source):
    trip: hr.Column[str] = hr.row_id()
    start: hr.Column[hr.Instant] = hr.event_time()
    day: hr.Column[hr.Date | None] = hr.column()
    riders: hr.Column[int | None] = hr.column()
    fare: hr.Column[float | None] = hr.column()
    shared: hr.Column[bool | None] = hr.column()


TRIPS = definition_of(Trips)
SCHEMA: dict[str, Any] = {
    "type": "record",
    "name": "Trip",
    "fields": [
        {"name": "trip", "type": ["null", "string"]},
        {"name": "start", "type": ["null", {"type": "long", "logicalType": "timestamp-micros"}]},
        {"name": "day", "type": ["null", {"type": "int", "logicalType": "date"}]},
        {"name": "riders", "type": ["null", "long"]},
        {"name": "fare", "type": ["null", "double", "string"]},
        {"name": "shared", "type": ["null", "boolean"]},
        {"name": "note", "type": ["null", "string"]},
    ],
}
FIELDS = [field["name"] for field in SCHEMA["fields"]]
ARROW = pa.schema(
    [
        ("trip", pa.dictionary(pa.int32(), pa.string())),
        ("start", pa.timestamp("ns", "UTC")),
        ("day", pa.date32()),
        ("riders", pa.int32()),
        ("fare", pa.float64()),
        ("shared", pa.bool_()),
        ("note", pa.large_string()),
    ]
)
ROWS: list[dict[str, Any]] = [
    {"trip": "a", "start": NOON, "day": "2024-05-01", "riders": 3, "fare": 1.5, "shared": True, "note": "x"},
    {"trip": "b", "start": NOON + 1, "day": None, "riders": None, "fare": None, "shared": None, "note": None},
    {"trip": None, "start": NOON, "day": None, "riders": 1, "fare": 2.0, "shared": False, "note": None},
    {"trip": "c", "start": None, "day": None, "riders": 1, "fare": 2.0, "shared": False, "note": None},
]


def python(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with the types that Avro and Arrow writers take."""
    start = None if row["start"] is None else datetime.fromtimestamp(int(row["start"]) // 10**6, UTC)
    if start is not None:
        start = start.replace(microsecond=int(row["start"]) % 10**6)
    return row | {"start": start, "day": None if row["day"] is None else date.fromisoformat(row["day"])}


def framed(record: dict[str, Any], schema: Any = SCHEMA, number: int = 7) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), record)
    return b"\0" + number.to_bytes(4, "big") + out.getvalue()


def ipc(table: pa.Table, compression: str | None = None, rows: int = 2) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table, max_chunksize=rows)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def load(folder: Path, settings: dict[str, Any], *payloads: bytes) -> Load:
    given = SourceSettings.model_validate(settings)
    messages = [Message(place, NOON + 5, data) for place, data in enumerate(payloads)]
    return Events(TRIPS, given, codec=codec_of(given, folder)).load(messages)


@pytest.fixture
def schemas(tmp_path: Path) -> Path:
    (tmp_path / "7.avsc").write_text(json.dumps(SCHEMA))
    return tmp_path


def test_the_same_events_give_the_same_reveals_and_refusals_in_every_codec(schemas: Path) -> None:
    plain = load(schemas, {}, *[json.dumps(row).encode() for row in ROWS])
    avro = load(schemas, {"codec": "avro", "schemas": "."}, *[framed(python(row)) for row in ROWS])
    table = pa.Table.from_pylist([python(row) for row in ROWS], ARROW)
    arrow = load(schemas, {"codec": "arrow"}, ipc(table))
    assert plain.batch.table.num_rows == 2
    assert avro.batch.table.equals(plain.batch.table)
    assert arrow.batch.table.equals(plain.batch.table)
    reasons = ["trip: null, but it names the row", "start: null, but it places the row"]
    for found in (plain, avro, arrow):
        assert found.refused["reason"].to_pylist() == reasons
        assert (found.rows, found.times) == (4, (NOON, NOON + 1))
    assert avro.refused["offset"].to_pylist() == ["2", "3"]
    assert arrow.refused["row"].to_pylist() == [2, 3]
    assert arrow.refused["raw"].to_pylist() == [ipc(table)] * 2


def test_values_of_other_types_are_refused_alike(schemas: Path) -> None:
    row = ROWS[0] | {"fare": "dear"}
    assert load(schemas, {}, json.dumps(row).encode()).refused["reason"].to_pylist() == [
        "fare: expected float, got str 'dear'"
    ]
    avro = load(schemas, {"codec": "avro", "schemas": "."}, framed(python(row)))
    assert avro.refused["reason"].to_pylist() == ["fare: expected float, got str 'dear'"]
    table = pa.Table.from_pylist([python(ROWS[0]) | {"fare": "dear"}], ARROW.set(4, pa.field("fare", pa.string())))
    assert load(schemas, {"codec": "arrow"}, ipc(table)).refused["reason"].to_pylist() == [
        "fare: expected float, got str 'dear'"
    ]


def test_local_timestamps_need_a_zone_in_every_codec(schemas: Path) -> None:
    local = json.loads(json.dumps(SCHEMA))
    local["fields"][1]["type"] = {"type": "long", "logicalType": "local-timestamp-millis"}
    (schemas / "8.avsc").write_text(json.dumps(local))
    naive = python(ROWS[0]) | {"start": datetime(2024, 5, 1, 14, 0)}
    payloads = {
        "json": json.dumps(ROWS[0] | {"start": "2024-05-01T14:00:00"}).encode(),
        "avro": framed(naive, local, 8),
        "arrow": ipc(pa.Table.from_pylist([naive], ARROW.set(1, pa.field("start", pa.timestamp("ms"))))),
    }
    for codec, data in payloads.items():
        settings = {"codec": codec, "schemas": "."}
        (reason,) = load(schemas, settings, data).refused["reason"].to_pylist()
        assert reason.startswith("start: expected instant, got str '2024-05-01T14:00:00'")
        found = load(schemas, settings | {"zone": "Europe/Zurich"}, data)
        assert found.times == (NOON,), codec


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not in the schema registry's wire format"),
        (b"{}", "not in the schema registry's wire format"),
        (b"\1\0\0\0\7abc", "not in the schema registry's wire format"),
        (b"\0\0\0\0\x63abc", "there is no schema 99"),
        (b"\0\0\0\0\7", "not a record of schema 7: EOFError"),
        (framed(python(ROWS[0])) + b"x", "not a record of schema 7: 1 bytes are left behind the record"),
        (b"\0\0\0\0\1\2", "not a record of schema 1: it is int"),
        (b"\0\0\0\0\2\2", "schema 2 cannot be read: "),
        (b"\0\0\0\0\3\2", "schema 3 cannot be read: an array of values without bytes"),
        (b"\0\0\0\0\4\2", "schema 4 cannot be read: the type Node contains itself"),
    ],
)
def test_what_is_no_avro_is_told(schemas: Path, data: bytes, reason: str) -> None:
    node = {"type": "record", "name": "Node", "fields": [{"name": "next", "type": ["null", "Node"]}]}
    bomb = {"type": "record", "name": "B", "fields": [{"name": "a", "type": {"type": "array", "items": "null"}}]}
    for number, schema in ((1, "long"), (2, {"type": "nothing"}), (3, bomb), (4, node)):
        (schemas / f"{number}.avsc").write_text(json.dumps(schema))
    found = load(schemas, {"codec": "avro", "schemas": "."}, data, framed(python(ROWS[0])))
    (told,) = found.refused["reason"].to_pylist()
    assert told.startswith(reason)
    assert found.refused["raw"].to_pylist() == [data]
    assert len(found.batch) == 1


def test_what_is_no_arrow_is_told(schemas: Path) -> None:
    table = pa.Table.from_pylist([python(row) for row in ROWS[:2]], ARROW)
    many = pa.table({"trip": pa.nulls(10**5), "note": pa.array(["x"] * 10**5)})
    endless = ipc(pa.table({"trip": pa.nulls(10**6)}), rows=10**6)
    doubled = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["trip", "trip"])
    bad = [b"", b"nonsense", ipc(table)[:-30], ipc(table, "zstd"), ipc(many, "zstd", 10**5), endless, ipc(doubled)]
    found = load(schemas, {"codec": "arrow"}, *bad, ipc(table))
    assert found.refused.num_rows == len(bad)
    assert {reason.partition(":")[0] for reason in found.refused["reason"].to_pylist()} == {
        "not an Arrow stream that can be read"
    }
    assert len(found.batch) == 2


@pytest.mark.parametrize("codec", ["json", "avro", "arrow"])
def test_spoilt_bytes_never_raise(schemas: Path, codec: str) -> None:
    rng = random.Random(3)
    good = {
        "json": json.dumps(ROWS[0]).encode(),
        "avro": framed(python(ROWS[0])),
        "arrow": ipc(pa.Table.from_pylist([python(row) for row in ROWS], ARROW)),
    }[codec]
    for _ in range(400):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(5 if codec == "avro" else 0, len(data))] = rng.randrange(256)
        found = load(schemas, {"codec": codec, "schemas": "."}, bytes(data[: rng.choice([len(data), 9, 40])]))
        assert found.refused.num_rows + len(found.batch) > 0 or codec == "arrow"


class Registry(BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        type(self).asked.append(f"{self.path} {self.headers.get('Authorization')}")
        known = {"/r/schemas/ids/7": {"schema": json.dumps(SCHEMA)}, "/r/schemas/ids/8": {"schemaType": "PROTOBUF"}}
        body = json.dumps(known.get(self.path, {"error_code": 40403})).encode()
        self.send_response(500 if self.path.endswith("/9") else 200 if self.path in known else 404)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def registry() -> Iterator[str]:
    Registry.asked = []
    server = HTTPServer(("127.0.0.1", 0), Registry)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://user:p%40ss@127.0.0.1:{server.server_port}/r/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_registry_is_asked_once_for_each_schema(tmp_path: Path, registry: str) -> None:
    settings = {"codec": "avro", "schemas": registry}
    found = load(
        tmp_path, settings, framed(python(ROWS[0])), framed(python(ROWS[1])), b"\0\0\0\0\x08x", b"\0\0\0\0\x06"
    )
    assert len(found.batch) == 2
    assert found.refused["reason"].to_pylist() == ["schema 8 is no Avro schema: PROTOBUF", "there is no schema 6"]
    assert Registry.asked[0] == "/r/schemas/ids/7 Basic dXNlcjpwQHNz"
    assert [line.split()[0][-1] for line in Registry.asked] == ["7", "8", "6"]


def test_a_registry_that_is_gone_makes_events_wait_and_shows_no_password(tmp_path: Path, registry: str) -> None:
    with pytest.raises(Unavailable) as error:
        load(tmp_path, {"codec": "avro", "schemas": registry}, b"\0\0\0\0\x09x")
    assert "p%40ss" not in str(error.value)
    gone = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(Unavailable, match="registry"):
        load(tmp_path, {"codec": "avro", "schemas": gone}, b"\0\0\0\0\x09x")


def test_avro_without_schemas_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nothing says where"):
        codec_of(SourceSettings(codec="avro"), tmp_path)
    with pytest.raises(ConfigurationError, match="no folder"):
        codec_of(SourceSettings(codec="avro", schemas="absent"), tmp_path)
