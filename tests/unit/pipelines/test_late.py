"""Of large tables columns are read when they are asked for: the same results, from fewer columns in memory at a time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import headrace as hr
from headrace.core.time import DAY, HOUR, Instant
from headrace.features.asked import asked_of
from headrace.features.buckets import Spread, lanes_of
from headrace.features.history import History, Late
from headrace.features.offline import OfflineFeatures, Values
from headrace.features.plan import FeaturePlan, plan_features
from headrace.features.repair import backfill
from headrace.features.stock import WholeStock
from headrace.features.stream import DATABASE
from headrace.pipelines import reveals as stored
from headrace.pipelines.reveals import append_reveals, late_source, read_source, stream_reveals
from headrace.sources.definition import definition_of
from headrace.sources.plan import reveal_of
from headrace.sources.record import ARRIVAL, ROW_ID
from headrace.sources.run import batch_of
from headrace.storage.keyvalue import open_keyvalue
from headrace.storage.tables import Pinned
from headrace.storage.tables.delta import DeltaTables

START = int(Instant.parse("2024-01-01"))
EVER = 2**62


class Deals(hr.Source):
    deal: hr.Column[int] = hr.row_id()
    at: hr.Column[hr.Instant] = hr.event_time()
    item: hr.Column[int] = hr.entity()
    low: hr.Column[int] = hr.column()
    price: hr.Column[float | None] = hr.column()
    kind: hr.Column[str | None] = hr.column()
    note: hr.Column[str] = hr.column()


class Last(hr.FeatureGroup, of=Deals, entity=Deals.item):
    low = hr.latest(Deals.low)
    note = hr.latest(Deals.note)


class Several(hr.FeatureGroup, of=Deals, entity=Deals.item):
    price = hr.latest(Deals.price)
    kind = hr.latest(Deals.kind)
    low = hr.sum(Deals.low).over("2d", "7d")
    high = hr.count(Deals.price, where=Deals.kind != "a").over("7d")


PLANS = [plan_features([group], "") for group in (Last, Several)]
DEALS = definition_of(Deals)


class Watched(DeltaTables):
    """Keep which columns were read together."""

    def __init__(self, location: str) -> None:
        super().__init__(location)
        self.reads: list[set[str]] = []

    def pin(self, table: str, **asked: Any) -> Pinned:
        """Return a version whose columns are read when they are asked for."""
        found = super().pin(table, **asked)

        def read(names: Sequence[str]) -> pa.Table:
            self.reads.append({*names})
            return found.read(names)

        return replace(found, read=read)


def told(seed: int, *, again: bool, parts: bool) -> list[dict[str, Any]]:
    """Make deals up, each told of once unless `again`; with `parts` some lack columns."""
    r, found = random.Random(seed), []
    for number in range(200):
        at = START + r.randrange(60) * DAY // 4
        row: dict[str, Any] = {
            "deal": number % 150 if again else number,
            "at": at,
            "item": r.randrange(6),
            "low": r.randrange(9),
        }
        row |= {"note": r.choice(["x", "a longer note than 8 bytes"]), "price": r.choice([0.5, -0.0, None])}
        row |= {"kind": r.choice(["a", "b", "another kind than 8 bytes", None])}
        dropped = {name for name in ("low", "price") if parts and r.random() < 0.3}
        row = {name: cell for name, cell in row.items() if name not in dropped}
        found.append(row | {ARRIVAL: at + r.choice([0, HOUR])})
    return found


def tables_of(folder: Path, rows: list[dict[str, Any]]) -> Watched:
    tables = Watched(str(folder))
    for part in range(3):
        made = [reveal for event in rows[part::3] for reveal in reveal_of(DEALS, event)]
        append_reveals(tables, DEALS, batch_of(DEALS, made).table)
    tables.reads.clear()
    return tables


def values(tables: Watched, plan: FeaturePlan, as_of: int) -> Values:
    rows, t = pa.table({"item": np.arange(300) % 7}), START + np.arange(300) * HOUR
    streamed = stream_reveals(tables, plan.sources, asked=asked_of(plan))
    with Spread().past(plan.read, lanes_of(plan), streamed, as_of) as past:
        return OfflineFeatures(plan, past).compute(rows, t)


@pytest.mark.parametrize("plan", PLANS, ids=["newest rows", "windows"])
@pytest.mark.parametrize("as_of", [EVER, START + 9 * DAY])
@pytest.mark.parametrize(("again", "parts"), [(False, False), (False, True), (True, True)])
def test_answers_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: FeaturePlan, as_of: int, again: bool, parts: bool
) -> None:
    tables = tables_of(tmp_path, told(7, again=again, parts=parts))
    expected = values(tables, plan, as_of)
    assert not tables.reads  # small files are read at once
    monkeypatch.setattr(stored, "APART", 0)
    found = values(tables, plan, as_of)
    assert tables.reads
    assert np.array_equal(found.words, expected.words) and np.array_equal(found.status, expected.status)
    assert found.texts == expected.texts
    assert 0 < np.count_nonzero(found.status == 0) < found.status.size


def test_values_of_newest_rows_are_read_last_and_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "APART", 0)
    monkeypatch.setattr("headrace.features.history.AT_ONCE", 200)
    tables = tables_of(tmp_path, told(7, again=False, parts=False))
    values(tables, PLANS[0], EVER)
    ties = {ROW_ID}  # of deals of one item and moment
    assert tables.reads == [{ROW_ID, "_arrival", "_stated"}, {"item", "at"}, ties, {"low"}, {"note"}]


def test_what_several_lanes_read_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "APART", 0)
    tables = tables_of(tmp_path, told(7, again=False, parts=False))
    values(tables, plan_features([Last, Several], ""), EVER)
    read = [sorted(names) for names in tables.reads]
    shared = ["at", "item", "kind", "low", "price"]  # Several has two lanes, one of them with a condition
    assert read[:2] == [["_arrival", ROW_ID, "_stated"], shared]
    assert all({*names}.isdisjoint(shared) for names in read[2:])


@pytest.mark.parametrize("plan", PLANS, ids=["newest rows", "windows"])
@pytest.mark.parametrize(("again", "parts"), [(False, False), (False, True), (True, True)])
def test_a_store_is_filled_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: FeaturePlan, again: bool, parts: bool
) -> None:
    tables, asked = tables_of(tmp_path / "tables", told(8, again=again, parts=parts)), asked_of(plan)["Deals"]

    def digest(apart: int) -> str:
        monkeypatch.setattr(stored, "APART", apart)
        reveals = late_source(tables, DEALS, columns=asked)
        assert isinstance(reveals, Late) == (apart == 0)
        with open_keyvalue(f"lmdb:{tmp_path / str(apart)}", databases=[DATABASE]) as store:
            stock = WholeStock([DEALS], {"Deals": reveals}, EVER)
            assert backfill(store, plan.groups, EVER, lambda: stock, lambda done, total: None) in (6, 12)
            return store.digest(DATABASE)

    assert digest(0) == digest(10**6)


def test_the_version_is_that_of_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "APART", 0)
    rows = told(9, again=False, parts=True)
    tables = tables_of(tmp_path, rows[:150])
    expected, late = read_source(tables, DEALS), late_source(tables, DEALS)
    made = [reveal for event in rows[150:] for reveal in reveal_of(DEALS, event)]
    append_reveals(tables, DEALS, batch_of(DEALS, made).table)
    history = History.build(DEALS, late, EVER)
    assert len(history) == 150 and history.single
    for column in DEALS.columns:
        assert history.cells(column).equals(History.build(DEALS, expected, EVER).cells(column))
    whole = history.whole()
    assert whole.table.select(expected.column_names).equals(expected)
    assert whole.row_ids(np.arange(150)).to_pylist() == expected[ROW_ID].to_pylist()
