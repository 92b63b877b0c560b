"""What a table has already is found among as many rows as there may be, a part at a time."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import headrace as hr
from headrace.core.errors import DataError
from headrace.core.identity import encode_key
from headrace.features.plan import plan_features
from headrace.pipelines import reveals
from headrace.pipelines.reveals import append_reveals, read_source, reveals_of_keys, without_known
from headrace.sources.definition import definition_of
from headrace.sources.plan import reveal_of
from headrace.sources.record import ARRIVAL, CONTENT, ROW_ID
from headrace.sources.run import batch_of
from headrace.storage.tables import open_tables


class Visits(hr.Source):
    visit: hr.Column[str] = hr.row_id()
    at: hr.Column[hr.Instant] = hr.event_time()
    shop: hr.Column[str | None] = hr.entity()
    clerk: hr.Column[int | None] = hr.entity()
    spent: hr.Column[float | None] = hr.column()


class Counter(hr.FeatureGroup, of=Visits, entity=(Visits.shop, Visits.clerk)):
    spent = hr.sum(Visits.spent).over("1d")


KEYS = [ROW_ID, ARRIVAL, CONTENT]


def table_of(rows: list[tuple[bytes, int, int]]) -> pa.Table:
    ids, arrivals, contents = zip(*rows, strict=True)
    return pa.table(
        {ROW_ID: pa.array(ids, pa.binary()), ARRIVAL: arrivals, CONTENT: contents, "told": list(range(len(rows)))}
    )


@pytest.mark.parametrize("at_once", [1, 7, 2_000_000])
def test_rows_that_a_table_has_are_left_out_and_the_rest_keeps_its_order(
    tmp_path: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reveals, "LOOKED_AT_ONCE", at_once)
    r, tables = random.Random(at_once), open_tables(f"delta:{tmp_path}")
    every = [(b"row %d" % r.randrange(40), r.randrange(5), r.randrange(2)) for _ in range(300)]
    asked = table_of(every[100:])
    assert without_known(tables, "rows", asked, KEYS).equals(asked)
    for start in range(0, 150, 30):
        tables.append("rows", table_of(every[start : start + 30]))
    held = set(every[:150])
    left = [place for place, row in enumerate(every[100:]) if row not in held]
    assert 0 < len(left) < 150
    assert without_known(tables, "rows", asked, KEYS)["told"].to_pylist() == left
    assert without_known(tables, "rows", asked.slice(0, 0), KEYS).num_rows == 0
    ids = {row for row, _, _ in held}
    found = without_known(tables, "rows", asked, [ROW_ID])["told"].to_pylist()
    assert found == [place for place, (row, _, _) in enumerate(every[100:]) if row not in ids]


def test_the_reveals_of_keys_are_all_of_every_row_that_ever_had_one(tmp_path: Path) -> None:
    """Rows change their keys, and reveals that say nothing of the key belong to them too."""
    r, tables, source = random.Random(4), open_tables(f"delta:{tmp_path}"), definition_of(Visits)
    (lane,) = plan_features([Counter], "").groups[0].lanes
    with pytest.raises(DataError, match="no rows yet"):
        reveals_of_keys(tables, lane, pa.array([], pa.binary()))
    told: list[dict[str, Any]] = []
    for arrival in range(400):
        event = {"visit": f"v{r.randrange(60)}", "at": r.randrange(9), "spent": 1.0, ARRIVAL: arrival}
        key = {"shop": r.choice(["a", "b", None]), "clerk": r.choice([1, 2, 3, None])}
        told.append(event | (key if r.random() < 0.4 else {}))
    for start in range(0, 400, 100):
        made = [reveal for event in told[start : start + 100] for reveal in reveal_of(source, event)]
        append_reveals(tables, source, batch_of(source, made).table)
    wanted = {("a", 1), ("b", 3)}
    rows = {event["visit"] for event in told if (event.get("shop"), event.get("clerk")) in wanted}
    keys = pa.array([encode_key(key) for key in wanted], pa.binary())
    found = reveals_of_keys(tables, lane, keys)
    stored = read_source(tables, source)
    assert found.column_names == [
        name for name in stored.column_names if name != "visit"
    ]  # the lane asks for all but it
    expected = [row for row in stored.to_pylist() if row.pop("visit") in rows]
    assert 0 < len(rows) < 60
    assert sorted(map(repr, found.to_pylist())) == sorted(map(repr, expected))
    nobody = pa.array([encode_key(["c", 1])], pa.binary())
    assert reveals_of_keys(tables, lane, nobody).equals(found.slice(0, 0))
