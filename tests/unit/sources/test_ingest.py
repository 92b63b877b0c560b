"""Files and streams become reveals; rows that cannot are refused, with the good ones kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest

from headrace.core.errors import ConfigurationError, DataError
from headrace.core.expressions import Column
from headrace.core.settings import LimitSettings, Settings, SourceSettings
from headrace.core.time import HOUR, MINUTE, Instant
from headrace.sources.batch import load
from headrace.sources.definition import Source, column, definition_of, event_time, row_id
from headrace.sources.events import Events
from headrace.storage.streams.protocol import Message


class Orders(Source):
    order: Column[str] = row_id()
    placed: Column[Instant] = event_time()
    paid: Column[Instant | None] = column()
    amount: Column[float | None] = column(known_at=paid)


ORDERS = definition_of(Orders)
NOON = Instant.parse("2013-07-01T12:00:00Z")
FULL = {"order": "a", "placed": "2013-07-01T12:00:00Z", "paid": "2013-07-01T13:00:00Z", "amount": 5}


def settings(**source: Any) -> Settings:
    return Settings(sources={"Orders": SourceSettings(**source)})


def test_a_folder_is_loaded_as_one_ordered_batch(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("order,placed,paid,amount\nb,2013-07-01T12:30:00Z,,\n")
    (tmp_path / "2.csv").write_text("order,placed,paid,amount,more\na,2013-07-01T12:00:00Z,2013-07-01T13:00:00Z,5,x\n")
    found = load(ORDERS, settings(path=".", lag=MINUTE), tmp_path)
    arrivals = [NOON + MINUTE, NOON + 31 * MINUTE, NOON + 61 * MINUTE]
    assert [reveal.arrival for reveal in found.batch.reveals()] == arrivals
    assert (found.rows, found.extra, found.observed, found.refused.num_rows) == (2, ("more",), False, 0)


def test_rows_that_cannot_be_revealed_are_refused(tmp_path: Path) -> None:
    rows = ["a,2013-07-01T12:00:00Z,,", ",2013-07-01T12:00:00Z,,", "c,,,", "d,soon,,4", "e,2013-07-01T12:00:00Z,,five"]
    path = tmp_path / "orders.csv"
    path.write_text("order,placed,paid,amount\n" + "\n".join(rows) + "\n")
    found = load(ORDERS, settings(path="orders.csv"), tmp_path)
    assert [reveal.values for reveal in found.batch.reveals()] == [("a", NOON)]
    assert found.rows == 5
    assert found.refused["reason"].to_pylist() == [
        "order: null, but it names the row",
        "placed: null, but it places the row",
        "placed: expected instant, got 'soon'",
        "amount: expected float, got 'five'",
    ]
    assert found.refused["position"].to_pylist() == [f"{path}, row {n}" for n in (2, 3, 4, 5)]
    assert json.loads(found.refused["payload"][2].as_py()) == {
        "order": "d",
        "placed": "soon",
        "paid": None,
        "amount": 4.0,
    }


def test_files_with_and_without_arrivals_do_not_mix(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("order,placed,paid,amount\na,2013-07-01T12:00:00Z,,\n")
    (tmp_path / "2.csv").write_text(
        "order,placed,paid,amount,_arrival\nb,2013-07-01T12:00:00Z,,,2013-07-01T12:00:00Z\n"
    )
    with pytest.raises(DataError, match="some files have arrivals and some have none"):
        load(ORDERS, settings(path="*.csv"), tmp_path)


def test_a_source_without_settings_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as error:
        load(ORDERS, Settings(), tmp_path)
    assert error.value.next_step == 'add to headrace.toml: [sources.Orders] path = "data/orders.parquet"'


def test_events_are_read_one_by_one_and_bad_ones_refused() -> None:
    bad = [b"{", b"[1]", orjson.dumps({"amount": 1}), orjson.dumps(FULL | {"paid": 1.5}), b'"' + b"x" * 200 + b'"']
    messages = [Message(9 - i, 7, data) for i, data in enumerate([*bad, orjson.dumps(FULL)])]
    found = Events(ORDERS, limits=LimitSettings(event_bytes=200)).load(messages)
    stated = {(r.arrival, r.values) for r in found.batch.reveals()}
    assert stated == {(7, ("a", NOON)), (7, ("a", NOON + HOUR, 5.0))}
    reasons = found.refused["reason"].to_pylist()
    assert reasons[0].startswith("not JSON: ")
    assert reasons[1:] == [
        "expected an object, got list",
        "order: null, but it names the row",
        "paid: expected instant, got float 1.5",
        "202 bytes, more than [limits] event_bytes = 200",
    ]
    assert found.refused["position"].to_pylist() == [f"stream, partition 0, position {n}" for n in (9, 8, 7, 6, 5)]
    assert found.refused["raw"].to_pylist() == bad
    assert (found.rows, found.observed) == (6, True)
