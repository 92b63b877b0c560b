"""Groups of more columns than a null mask has bits: the same bits offline, online, in buckets and by definition."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import headrace as hr
from headrace.core.identity import encode_key
from headrace.core.time import DAY, HOUR, Instant
from headrace.engines.local import LocalEngine
from headrace.features.buckets import Spread, lanes_of
from headrace.features.offline import OfflineFeatures
from headrace.features.online import OnlineFeatures
from headrace.features.plan import FeaturePlan, plan_features
from headrace.features.rows import RowCodec
from headrace.features.stream import DATABASE, StreamPath
from headrace.sources.definition import SourceDefinition, definition_of
from headrace.sources.plan import expand
from headrace.storage.keyvalue import open_keyvalue
from headrace.testing.oracle import made_log, parity

START = int(Instant.parse("2024-03-01T00:00:00Z"))
KINDS = ("float | None", "int | None", "str | None", "bool | None")
DRAWN: tuple[Any, ...] = (
    lambda r: r.choice([None, 0.1, -0.0, 1e16, r.random()]),
    lambda r: r.choice([None, 0, -1, 2**62]),
    lambda r: r.choice([None, "", "é", f"text {r.randrange(9)}"]),
    lambda r: r.choice([None, True, False]),
)


def exported(columns: int, history: Any = None) -> type[hr.Source]:
    """Return a table that another system computed: a key, an instant, and so many columns of every type."""
    body: dict[str, Any] = {
        "customer": hr.entity(),
        "made": hr.valid_from() if history == "scd2" else hr.event_time(),
        "__annotations__": {"customer": "hr.Column[str]", "made": "hr.Column[hr.Instant]"},
    }
    if history == "scd2":
        body["gone"] = hr.valid_to()
        body["__annotations__"]["gone"] = "hr.Column[hr.Instant | None]"
    for i in range(columns):
        body[f"c{i}"] = hr.column()
        body["__annotations__"][f"c{i}"] = f"hr.Column[{KINDS[i % 4]}]"
    return type("Exported", (hr.Source,), body, **({"history": history} if history else {}))


def log_of(source: SourceDefinition, reveals: int) -> list[Any]:
    drawn: dict[Any, Any] = {
        source.by_name["customer"]: lambda r: f"customer {r.randrange(4)}",
        source.by_name["made"]: lambda r: START + r.randrange(9 * DAY),
    }
    if "gone" in source.by_name:
        drawn[source.by_name["gone"]] = lambda r: r.choice([None, START + r.randrange(20 * DAY)])
    drawn |= {c: DRAWN[int(c.name[1:]) % 4] for c in source.columns if c.name[0] == "c" and c.name[1:].isdigit()}
    return made_log(source, drawn, rows=12, reveals=reveals, span=(START, START + 9 * DAY), random=Random(5))


@pytest.mark.parametrize("history", [None, "scd2", "snapshots"])
@pytest.mark.parametrize("columns", [63, 64, 65, 128, 129])
def test_values_are_the_same_by_every_path(columns: int, history: Any) -> None:
    """Reveals state a part of the columns, come late, twice, are corrected, and move between keys."""
    table = exported(columns, history)
    plan = plan_features([hr.precomputed(table, entity=table.customer, max_age="6d")], "")  # type: ignore[attr-defined]
    assert [c.name for c in plan.columns] == [f"Exported.c{i}" for i in range(columns)]
    random = Random(columns)
    asked = [([f"customer {random.randrange(5)}"], START + random.randrange(16 * DAY)) for _ in range(12)]
    assert parity(plan, log_of(definition_of(table), 40), asked, random=random) == 2 * 12 * columns


@pytest.mark.parametrize("columns", [64, 65, 128, 1000])
def test_what_was_written_is_read_back(columns: int, tmp_path: Path) -> None:
    table = exported(columns)
    source, random = definition_of(table), Random(1)
    plan = plan_features([hr.precomputed(table, entity=table.customer)], "")  # type: ignore[attr-defined]
    assert [len(lane.values) for lane in plan.groups[0].lanes] == [
        min(64, columns - start) for start in range(0, columns, 64)
    ]
    rows = [
        {"customer": f"customer {number}", "made": START + number * HOUR}
        | {f"c{i}": DRAWN[i % 4](random) for i in range(columns)}
        for number in range(30)
    ]
    types = pa.schema(
        [
            (c.name, {"str": pa.string(), "float": pa.float64(), "bool": pa.bool_()}.get(c.dtype, pa.int64()))
            for c in source.columns
        ]
    )
    batch, t = expand(source, pa.Table.from_pylist(rows, types)), START + DAY * 9
    expected = [[row[f"c{i}"] for i in range(columns)] for row in rows]
    assert repr(online(plan, batch, [[row["customer"]] for row in rows], t)) == repr(expected)
    keys, moments = pa.table({"customer": [row["customer"] for row in rows]}), np.full(len(rows), t)
    for bucket_rows in (100, 7):
        with Spread(LocalEngine(), tmp_path, bucket_rows).past(
            plan.sources, lanes_of(plan), {"Exported": batch.table}, t
        ) as past:
            found = OfflineFeatures(plan, past).compute(keys, moments).table(plan).to_pylist()
        assert repr([list(row.values()) for row in found]) == repr(expected)


def online(plan: FeaturePlan, batch: Any, rows: list[list[Any]], t: int) -> list[list[Any]]:
    path, reader = StreamPath([plan]), OnlineFeatures(plan)
    codec = RowCodec("Exported", [c.dtype for c in batch.source.columns])
    with open_keyvalue("memory:", databases=[DATABASE]) as store:
        with store.write() as transaction:
            for reveal in batch.reveals():
                path.apply(transaction.access(DATABASE), "Exported", reveal)
        with store.read() as snapshot:
            get = snapshot.getter(DATABASE)
            held = path.row(get, "Exported", encode_key([rows[0][0], START]) or b"")
            assert held is not None
            assert codec.decode(codec.encode(held)) == held
            return [list(reader.read(get, row, t).to_dict().values()) for row in rows]


def test_other_groups_may_be_as_wide() -> None:
    """A window over the same values finds them in the lane that has them; a count of rows is in the first."""
    table = exported(130)
    definition = definition_of(table)
    body: dict[str, Any] = {f"f{i}": hr.latest(definition.by_name[f"c{i}"]) for i in range(130)}
    body |= {f"s{i}": hr.sum(definition.by_name[f"c{i}"]).over("1d", "7d") for i in range(0, 130, 4)}
    body["on"] = hr.sum(definition.by_name["c0"]).over("1d", on=definition.by_name["made"])
    body["rows"] = hr.count().over("7d")
    wide = type("Wide", (hr.FeatureGroup,), body, of=table, entity=table.customer)  # type: ignore[attr-defined]
    plan = plan_features([wide], "")
    widths = [len(lane.values) for lane in plan.groups[0].lanes]
    assert sorted(widths) == [1, 2, 64, 64]
    random = Random(2)
    asked = [([f"customer {random.randrange(5)}"], START + random.randrange(12 * DAY)) for _ in range(10)]
    assert parity(plan, log_of(definition, 40), asked, random=random) > 0
