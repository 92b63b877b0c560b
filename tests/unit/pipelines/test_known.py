"""What a table has already is found among as many rows as there may be, a part at a time."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pytest

from headrace.pipelines import reveals
from headrace.pipelines.reveals import without_known
from headrace.sources.record import ARRIVAL, CONTENT, ROW_ID
from headrace.storage.tables import open_tables

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
