"""Many rows are answered as they are served, or from history: with any version, at any moment, without an endpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import headrace as hr
from headrace.core.errors import DataError, Refused, UsageError
from headrace.core.time import DAY, Instant, VirtualClock
from headrace.pipelines.predict import predict
from headrace.pipelines.project import Project, import_file, load_project
from headrace.pipelines.stores import open_stores
from headrace.pipelines.view import Silent
from headrace.registry.run import Registry

NOW = Instant.parse("2024-05-02T12:00:00Z")
INSTANT = pa.timestamp("us", "UTC")
SHOPS = [f"shop-{i}" for i in range(40)]


def loaded(folder: Path) -> Project:
    return load_project("orders:pipeline", folder=folder)


def asked(folder: Path, *, bad: bool = False) -> str:
    rows: list[Any] = [
        {"order_id": f"n{i}", "placed": NOW.isoformat(), "shop": s, "items": 4} for i, s in enumerate(SHOPS)
    ]
    if bad:
        rows[3] = rows[3] | {"items": "four"}
    file = folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return str(file)


def answered(project: Project, rows: str | None, **options: Any) -> dict[str, Any]:
    given = {"to": None, "version": None, "as_of": None, "clock": VirtualClock(NOW)} | options
    return predict(project, rows, state=None, progress=Silent(), **given).data


def test_history_answers_what_is_served_bit_for_bit_and_refuses_the_same_row(shop: Path) -> None:
    project, rows = loaded(shop), asked(shop, bad=True)
    served = answered(project, rows)
    found = answered(project, rows, as_of=NOW.isoformat())
    assert (found["rows"], found["errors"], found["version"]) == (40, 1, "orders/v1")
    assert [a.get("score") for a in found["predictions"]] == [a.get("score") for a in served["predictions"]]
    assert len({a.get("score") for a in found["predictions"]}) > 10
    assert found["predictions"][3] == {"error": "items is of another type"} == served["predictions"][3]
    first = found["predictions"][0]
    assert (first["order_id"], first["t"], "prediction_id" in first) == ("n0", NOW.isoformat(), False)
    assert [a.get("decision") for a in found["predictions"]] == [a.get("decision") for a in served["predictions"]]
    with open_stores(project, None, clock=VirtualClock(NOW), write=False) as stores:
        (record,) = stores.ledger.read(kinds=["predicted"])
    assert record.subject == "orders/v1"
    assert dict(record.body) | {"tables": {}} == {"as_of": NOW, "rows": 40, "errors": 1, "tables": {}}
    assert record.body["tables"] == {"Orders": 1}


def test_a_moment_of_the_past_knows_no_later_row(shop: Path) -> None:
    project, rows, then = loaded(shop), asked(shop), Instant(NOW - 40 * DAY)
    before = answered(project, rows, as_of=then.isoformat(), version="champion")["predictions"]
    now = answered(project, rows, version="v1")["predictions"]
    assert [a["score"] for a in before] != [a["score"] for a in now]
    moments = {name: pa.array([moment] * len(SHOPS), INSTANT) for name, moment in (("at", then), ("placed", NOW))}
    given = pa.table({"order_id": SHOPS, "shop": SHOPS, "items": [4] * len(SHOPS), **moments})
    frame = hr.training_set(given, import_file(shop / "orders.py").dataset.features)
    with open_stores(project, None, clock=VirtualClock(NOW), write=False) as stores:
        servable = Registry(stores.ledger, stores.blobs, project.name).servable("orders/v1")
    scores = servable.score(servable.encoder.encode(frame.values.table(frame.plan)))
    assert [a["score"] for a in before] == scores.tolist()


def test_answers_are_written_as_a_whole(shop: Path) -> None:
    project, rows = loaded(shop), asked(shop)
    parquet, lines = shop / "answers.parquet", shop / "answers.jsonl"
    found = answered(project, rows, version="v1", to=str(parquet))
    assert (found["rows"], found["errors"], "predictions" in found) == (40, 0, False)
    table = pq.read_table(parquet)
    assert table.column_names == ["order_id", "t", "score", "decision", "version", "error"]
    assert table["order_id"].to_pylist() == [f"n{i}" for i in range(40)]
    answered(project, rows, version="v1", to=str(lines))
    assert [orjson.loads(line)["score"] for line in lines.read_bytes().splitlines()] == table["score"].to_pylist()
    assert sorted(file.name for file in shop.glob("answers*")) == ["answers.jsonl", "answers.parquet"]


def test_what_cannot_be_answered_says_why(shop: Path) -> None:
    project, rows = loaded(shop), asked(shop)
    with pytest.raises(UsageError, match="which rows") as error:
        answered(project, None)
    assert error.value.next_step == f"headrace predict {project.typed} ROWS"
    with pytest.raises(UsageError, match="will have been known then") as error:
        answered(project, rows, as_of=Instant(NOW + 1).isoformat())
    assert error.value.next_step == "leave --as-of out"
    with pytest.raises(DataError, match="there is no challenger") as missing:
        answered(project, rows, version="challenger")
    assert (missing.value.got, missing.value.next_step) == ("v1", "--version names one")
    with pytest.raises(DataError, match="no such version"):
        answered(project, rows, version="v7")
    file = shop / "orders.py"
    file.write_text(file.read_text().replace('over("1d", "7d")', 'over("1d", "8d")'))
    with pytest.raises(Refused, match="trained on other features"):
        answered(loaded(shop), rows, version="v1")
