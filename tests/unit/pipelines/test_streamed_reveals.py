"""Reveals of a table store are dealt to buckets piece by piece: the same training set, in bounded memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import headrace as hr
from headrace.core.errors import DataError
from headrace.core.time import DAY, Instant
from headrace.engines.local import LocalEngine
from headrace.features.buckets import DEALT, PARTS, Spread, Streamed, _pieces
from headrace.features.fingerprint import content_digest
from headrace.features.plan import plan_dataset
from headrace.features.record import TrainingSet
from headrace.features.training_set import training_set
from headrace.pipelines.reveals import append_reveals, count_known, read_reveals, reveals_table, stream_reveals
from headrace.sources.definition import definition_of
from headrace.sources.plan import expand
from headrace.storage.tables import Tables, open_tables

START = int(Instant.parse("2024-01-01"))
SPAN = 30 * DAY


class Sales(hr.Source):
    sale: hr.Column[int] = hr.row_id()
    sold: hr.Column[hr.Instant] = hr.event_time()
    shop: hr.Column[int] = hr.entity()
    amount: hr.Column[float] = hr.column()
    good: hr.Column[bool] = hr.column()


class Shop(hr.FeatureGroup, of=Sales, entity=Sales.shop):
    sum = hr.sum(Sales.amount).over("1d", "7d")


PLAN = plan_dataset(hr.Dataset(rows=Sales, at=Sales.sold, features=[Shop], label=Sales.good, mature="1d"))


def filled(folder: Path, count: int, parts: int) -> Tables:
    """Return a store whose table came in so many commits."""
    tables, random = open_tables(f"delta:{folder}"), np.random.default_rng(0)
    for part in range(parts):
        ids = np.arange(part * count, (part + 1) * count)
        sold = (
            START + random.integers(0, SPAN, count) // DAY * DAY
        )  # many at one moment: their order in the table decides
        cells = {
            "shop": random.integers(0, 9, count),
            "amount": random.random(count),
            "good": random.random(count) < 0.5,
        }
        reveals = expand(definition_of(Sales), pa.table({"sale": ids, "sold": sold, **cells})).table
        append_reveals(tables, definition_of(Sales), reveals)
    return tables


def built(tables: Tables, folder: Path, bucket_rows: int, *, streamed: bool, as_of: int) -> TrainingSet:
    version = {"Sales": 2}
    reveals = (stream_reveals if streamed else read_reveals)(tables, PLAN.sources, version)
    return training_set(PLAN, reveals, as_of=as_of, spread=Spread(LocalEngine(), folder, bucket_rows))


def test_the_same_training_set_follows_from_a_pinned_version(tmp_path: Path) -> None:
    tables, as_of = filled(tmp_path / "tables", 300, 4), START + SPAN
    expected = built(tables, tmp_path, 10_000, streamed=False, as_of=as_of)
    assert len(expected) > 500
    for bucket_rows in (10_000, 100):
        found = built(tables, tmp_path, bucket_rows, streamed=True, as_of=as_of)
        assert content_digest(found) == content_digest(expected)
    read = read_reveals(tables, PLAN.sources, {"Sales": 2})["Sales"]
    half = START + SPAN // 2
    assert count_known(tables, "Sales", half, version=2) == int(np.count_nonzero(read["_arrival"].to_numpy() <= half))
    assert read.num_rows < tables.read(reveals_table("Sales")).num_rows


def test_no_rows_yet_is_told_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Sales has no rows yet"):
        stream_reveals(open_tables(f"delta:{tmp_path}"), PLAN.sources)


def test_portions_are_as_small_as_the_number_of_files_allows() -> None:
    pieces = [pa.table({"n": np.arange(7)})] * 5

    def read() -> Iterator[pa.Table]:
        yield from [pa.table({"n": np.zeros(0, np.int64)}), *pieces]

    found = list(_pieces(Streamed(35, read), 14))
    assert [table.num_rows for table in found] == [14, 14, 7]
    assert pa.concat_tables(found).equals(pa.concat_tables(pieces))
    assert [table.num_rows for table in _pieces(Streamed(0, lambda: iter([pieces[0].slice(0, 0)])), 9)] == [0]
    assert DEALT * PARTS > 50_000_000  # so large a log makes files no larger than needed, and never very many


PEAK = """
import sys, pyarrow as pa
from pathlib import Path
from tests.unit.pipelines.test_streamed_reveals import *
tables = open_tables(f"delta:{sys.argv[1]}")
source = definition_of(Sales)
reveals = stream_reveals(tables, [source])
with Spread(LocalEngine(), Path(sys.argv[2]), 40_000).past([source], PLAN.groups[0].lanes, reveals, START + SPAN) as past:
    print(pa.default_memory_pool().max_memory(), reveals["Sales"].rows)
"""


def test_what_is_held_does_not_grow_with_the_table(tmp_path: Path) -> None:
    """The most that Arrow ever holds, in bytes; a whole table is several times as large."""
    peaks, rows = [], []
    for parts in (2, 12):
        filled(tmp_path / str(parts), 100_000, parts)
        command = [sys.executable, "-c", PEAK, str(tmp_path / str(parts)), str(tmp_path)]
        environment = os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system"}
        told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
        peaks.append(int(told[0]))
        rows.append(int(told[1]))
    assert rows == [200_000, 1_200_000]
    assert peaks[1] < 1.5 * peaks[0]
    whole = open_tables(f"delta:{tmp_path / '12'}").read(reveals_table("Sales")).nbytes
    assert peaks[1] < whole
