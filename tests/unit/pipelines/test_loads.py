"""The note that something was read holds with the commit of its rows, and never without it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from headrace.pipelines.loads import LoadBook
from headrace.sources.parts import Mark
from headrace.storage.tables import open_tables

ROWS = pa.table({"x": [1]})
A, B = Mark("a.csv", "1:1", 5, True, ("note",)), Mark("b.csv", "1:1", 7, True)


def test_what_a_killed_run_meant_to_store_was_not_read(tmp_path: Path) -> None:
    tables = open_tables(f"delta:{tmp_path}")
    first = LoadBook(tables, "Orders", "rows")
    tables.append("rows", ROWS, position=first.cover([A], rows=True, at=1))
    first.cover([B], rows=True, at=2)  # killed here: the rows never came
    second = LoadBook(tables, "Orders", "rows")
    assert second.seen == {"a.csv": A}
    changed = Mark("a.csv", "2:2", 6, True)
    tables.append("rows", ROWS, position=second.cover([changed], rows=True, at=3))
    assert LoadBook(tables, "Orders", "rows").seen == {"a.csv": changed}
    assert LoadBook(tables, "Others", "other_rows").seen == {}


def test_a_part_without_new_rows_is_covered_at_once(tmp_path: Path) -> None:
    tables = open_tables(f"delta:{tmp_path}")
    book = LoadBook(tables, "Orders", "rows")
    book.cover([A], rows=False, at=1)
    assert LoadBook(tables, "Orders", "rows").seen == {"a.csv": A}
    before = tables.describe("loads")
    book.cover([A], rows=False, at=2)
    after = tables.describe("loads")
    assert before is not None
    assert after is not None
    assert before.version == after.version  # nothing new to note
