"""Only the columns that features ask for are read of reveals; results are those of whole reveals, bit for bit."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import new_class
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import headrace as hr
from headrace.core.time import DAY, HOUR, Instant
from headrace.features.asked import asked_by, asked_of
from headrace.features.buckets import Spread, lanes_of
from headrace.features.fingerprint import content_digest
from headrace.features.history import History
from headrace.features.offline import OfflineFeatures, Values
from headrace.features.plan import plan_dataset, plan_features
from headrace.features.repair import backfill
from headrace.features.stream import DATABASE
from headrace.features.training_set import training_set
from headrace.pipelines.reveals import (
    APART,
    append_reveals,
    read_reveals,
    read_source,
    reveals_table,
    stream_reveals,
)
from headrace.sources.definition import SourceDefinition, definition_of
from headrace.sources.plan import reveal_of
from headrace.sources.record import ARRIVAL, CONTENT, ROW_ID, Reveal
from headrace.sources.run import batch_of
from headrace.sources.stated import BITS
from headrace.storage.keyvalue import open_keyvalue
from headrace.storage.tables import Pinned, open_tables
from headrace.storage.tables.delta import DeltaTables
from tests.stock import stock_of

START = int(Instant.parse("2024-01-01"))
FIXED = {ROW_ID, ARRIVAL, CONTENT, "_stated"}


class Sales(hr.Source):
    sale: hr.Column[int] = hr.row_id()
    sold: hr.Column[hr.Instant] = hr.event_time()
    item: hr.Column[int] = hr.entity()
    note: hr.Column[str | None] = hr.column()


class Offers(hr.Source):
    note: hr.Column[str | None] = (
        hr.column()
    )  # read by nothing, and first, so that other columns' bits stand behind its own
    offer: hr.Column[int] = hr.row_id()
    at: hr.Column[hr.Instant] = hr.event_time()
    item: hr.Column[int | None] = hr.entity()
    price: hr.Column[float | None] = hr.column()
    kind: hr.Column[str | None] = hr.column()
    paid_at: hr.Column[hr.Instant | None] = hr.column()
    paid: hr.Column[float | None] = hr.column(known_at=paid_at)


class Stocks(hr.Source, history="snapshots"):
    item: hr.Column[int] = hr.entity()
    taken: hr.Column[hr.Instant] = hr.event_time()
    left: hr.Column[int | None] = hr.column()
    note: hr.Column[str | None] = hr.column()
    known_at = taken + "2h"


class Returns(hr.Source):
    returned: hr.Column[int] = hr.row_id()
    at: hr.Column[hr.Instant] = hr.event_time()
    sale: hr.Column[int] = hr.foreign_key(Sales.sale)
    note: hr.Column[str | None] = hr.column()


class Item(hr.FeatureGroup, of=Offers, entity=Offers.item):
    price = hr.sum(Offers.price).over("1d", "7d")
    high = hr.count(Offers.price, where=Offers.kind != "a").over("7d")
    kind = hr.latest(Offers.kind)
    paid = hr.max(Offers.paid).over("7d")


class Sums(hr.Source):
    item: hr.Column[int] = hr.entity()
    day: hr.Column[hr.Instant] = hr.event_time()
    total: hr.Column[float | None] = hr.column()


class Left(hr.FeatureGroup, of=Stocks, entity=Stocks.item):
    left = hr.latest(Stocks.left)


PLAN = plan_dataset(
    hr.Dataset(
        rows=Sales,
        at=Sales.sold,
        features=[Item.on(Sales.item), Left.on(Sales.item)],
        label=hr.exists(Returns, on=Returns.sale).within("2d"),
        mature="2d",
    )
)
ASKED = {
    "Offers": {"at", "item", "price", "kind", "paid_at", "paid"},
    "Stocks": {"item", "taken", "left"},
    "Returns": {"at", "sale"},
}


class Watched(DeltaTables):
    """Keep which columns of each table came out of its files."""

    def __init__(self, location: str) -> None:
        super().__init__(location)
        self.seen: dict[str, set[str]] = defaultdict(set)

    def read(self, table: str, **asked: Any) -> pa.Table:
        """Return rows."""
        found = super().read(table, **asked)
        self.seen[table] |= {*found.column_names}
        return found

    def scan(self, table: str, **asked: Any) -> Iterator[pa.Table]:
        """Yield rows."""
        for piece in super().scan(table, **asked):
            self.seen[table] |= {*piece.column_names}
            yield piece

    def pin(self, table: str, **asked: Any) -> Pinned:
        """Return a version whose columns are read when they are asked for."""
        found = super().pin(table, **asked)

        def read(names: Sequence[str]) -> pa.Table:
            self.seen[table] |= {*names}
            return found.read(names)

        return replace(found, read=read)


def events(source: SourceDefinition, r: random.Random) -> Iterator[dict[str, Any]]:
    """Make events up: rows state themselves in parts, again and otherwise, some at one moment, some but in their note."""
    for number in range(260):
        at = START + r.randrange(20) * DAY // 2
        note, arrival = {"note": r.choice(["x", "y", "z", None])}, {ARRIVAL: at + r.choice([0, HOUR, 3 * HOUR])}
        if source.name == "Sales":
            yield {"sale": number, "sold": at, "item": r.randrange(5)} | note | arrival
        elif source.name == "Stocks":
            yield {"item": r.randrange(5), "taken": at, "left": r.choice([1, 2, None])} | note | arrival
        elif source.name == "Returns":
            yield {"returned": number, "at": at, "sale": r.randrange(260)} | note | arrival
        else:
            row: dict[str, Any] = {
                "offer": number % 90,
                "at": at,
                "item": r.choice([0, 1, 2, 3, None]),
                "kind": r.choice(["a", "b", None]),
            }
            row |= {"price": r.choice([1.5, -0.0, None]), "paid_at": at + r.choice([0, HOUR, DAY]), "paid": r.random()}
            kept = {name: cell for name, cell in row.items() if name == "offer" or r.random() < 0.8}
            yield kept | note | arrival
            if r.random() < 0.3:
                yield {"offer": number % 90, "note": "another"} | arrival


def stored(folder: Path, seed: int) -> Watched:
    """Return a store whose tables came in three commits each."""
    tables, r = Watched(str(folder)), random.Random(seed)
    for source in PLAN.sources:
        told = list(events(source, r))
        for part in range(3):
            made: list[Reveal] = [reveal for event in told[part::3] for reveal in reveal_of(source, event)]
            append_reveals(tables, source, batch_of(source, made).table)
    tables.seen.clear()
    return tables


def expected_seen(asked: dict[str, set[str]]) -> dict[str, set[str]]:
    return {reveals_table(name): FIXED | columns for name, columns in asked.items()}


def and_fixed(seen: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return what was seen and what stands beside every reveal, of which not all is read where it is not needed."""
    return {table: FIXED | columns for table, columns in seen.items()}


@pytest.fixture(params=[APART, 0], ids=["at once", "one by one"], autouse=True)
def apart(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Let tables that are in memory be read whole, or column by column as those with large files are."""
    monkeypatch.setattr("headrace.pipelines.reveals.APART", request.param)
    return int(request.param)


def whole(source: type[hr.Source]) -> set[str]:
    return {column.name for column in definition_of(source).columns}


@pytest.mark.parametrize("bucket_rows", [10_000, 60])
@pytest.mark.parametrize("seed", range(3))
def test_a_training_set_is_the_same_without_the_columns_that_nothing_asks_for(
    tmp_path: Path, seed: int, bucket_rows: int
) -> None:
    tables, as_of, spread = (
        stored(tmp_path / "tables", seed),
        START + 12 * DAY,
        Spread(folder=tmp_path, bucket_rows=bucket_rows),
    )
    expected = training_set(PLAN, stream_reveals(tables, PLAN.sources), as_of=as_of, spread=spread)
    assert {name for names in tables.seen.values() for name in names} >= {"note"}
    tables.seen.clear()
    found = training_set(PLAN, stream_reveals(tables, PLAN.sources, asked=asked_of(PLAN)), as_of=as_of, spread=spread)
    assert content_digest(found) == content_digest(expected)
    assert and_fixed(tables.seen) == expected_seen({"Sales": whole(Sales)} | ASKED)  # rows are part of the training set
    assert len(found) > 200 and 0 < np.nansum(found.label) < len(found)
    assert all(0 < found.features[name].null_count < len(found) for name in ("Item.kind", "Item.paid[7d]", "Left.left"))


@pytest.mark.parametrize("bucket_rows", [10_000, 60])
def test_features_alone_ask_for_no_rows_and_no_labels(tmp_path: Path, bucket_rows: int) -> None:
    tables, spread = stored(tmp_path / "tables", 3), Spread(folder=tmp_path, bucket_rows=bucket_rows)
    rows, t = pa.table({"item": np.arange(400) % 6}), START + np.arange(400) * HOUR

    def values(asked: Any) -> Values:
        reveals = stream_reveals(tables, PLAN.sources, asked=asked)
        with spread.past(PLAN.read, lanes_of(PLAN, labels=False), reveals, START + 30 * DAY) as past:
            return OfflineFeatures(PLAN, past).compute(rows, t)

    expected = values(None)
    tables.seen.clear()
    found = values(asked_of(PLAN, rows=False))
    assert np.array_equal(found.words, expected.words) and np.array_equal(found.status, expected.status)
    assert found.texts == expected.texts
    assert and_fixed(tables.seen) == expected_seen(
        {"Sales": set(), "Returns": set(), **{name: ASKED[name] for name in ("Offers", "Stocks")}}
    )


@pytest.mark.parametrize("buckets", [False, True])
def test_a_store_is_filled_with_the_same_bytes(tmp_path: Path, buckets: bool) -> None:
    tables, newest = stored(tmp_path / "tables", 4), START + 12 * DAY
    lanes = [lane for group in PLAN.groups for lane in group.lanes]
    sources, asked = list({lane.source.name: lane.source for lane in lanes}.values()), asked_by(lanes)

    def digest(columns: Any, name: str) -> str:
        with open_keyvalue(f"lmdb:{tmp_path / name}", databases=[DATABASE]) as store:
            reveals = read_reveals(tables, sources, asked=columns)
            folder = tmp_path if buckets else None
            stock = stock_of(sources, PLAN.groups, reveals, newest, folder)
            assert backfill(store, PLAN.groups, newest, lambda: stock, lambda done, total: None) > 5
            return store.digest(DATABASE)

    expected = digest(None, "whole")
    tables.seen.clear()
    assert digest(asked, "asked") == expected
    assert and_fixed(tables.seen) == expected_seen({name: ASKED[name] for name in ("Offers", "Stocks")})


def test_a_history_without_a_column_has_the_same_versions(tmp_path: Path) -> None:
    """Reveals that change but what nobody reads, and those that come at one moment, stay and keep their order."""
    tables, source = stored(tmp_path, 5), definition_of(Offers)
    asked = asked_of(PLAN)["Offers"]
    full = History.build(source, read_source(tables, source), 2**62)
    part = History.build(source, read_source(tables, source, columns=asked), 2**62)
    told = full.table[ROW_ID].to_pylist()
    unread = [full.stated.masks()[i] & ~0b11 == 0 for i in range(len(full))]  # only its note, under its id
    assert len(set(told)) < len(told) and sum(unread) > 20
    tied = (np.diff(full.row) == 0) & (np.diff(full.arrival) == 0)
    assert tied.sum() > 20
    for name in ("row", "arrival", "order"):
        assert np.array_equal(getattr(full, name), getattr(part, name))
    for column in (source.by_name[name] for name in asked):
        assert full.cells(column).equals(part.cells(column))
    with pytest.raises(KeyError, match="note"):
        part.cells(source.by_name["note"])


def test_a_column_that_came_later_is_null_in_an_earlier_version_whichever_are_read(tmp_path: Path) -> None:
    def wide(columns: int) -> SourceDefinition:
        def fill(scope: dict[str, Any]) -> None:
            scope["__annotations__"] = {"name": hr.Column[str], "at": hr.Column[hr.Instant]}
            scope |= {"name": hr.row_id(), "at": hr.event_time()}
            for i in range(columns):
                scope["__annotations__"][f"c{i}"] = hr.Column[int | None]
                scope[f"c{i}"] = hr.column()

        return definition_of(new_class("Wide", (hr.Source,), {}, fill))

    old, new, tables = wide(BITS - 4), wide(BITS + 4), open_tables(f"delta:{tmp_path}")
    before = append_reveals(
        tables, old, batch_of(old, reveal_of(old, {"name": "a", "at": 1, "c0": 5, ARRIVAL: 2})).table
    )
    last = f"c{BITS + 3}"
    append_reveals(tables, new, batch_of(new, reveal_of(new, {"name": "b", "at": 1, last: 7, ARRIVAL: 2})).table)
    for version in (before.version, None):
        expected = read_source(tables, new, version=version)
        for columns in ({"c0"}, {"c0", last}, {last}, set[str]()):
            names = [name for name in expected.column_names if name.startswith("_") or name in columns]
            found = read_source(tables, new, version=version, columns=columns)
            assert found.column_names == names and found.equals(expected.select(names))
            streamed = stream_reveals(
                tables, [new], {} if version is None else {"Wide": version}, {"Wide": frozenset(columns)}
            )
            assert pa.concat_tables(streamed["Wide"].read()).equals(found)


def test_what_a_dataset_asks_for() -> None:
    assert {name: {*columns} for name, columns in asked_of(PLAN).items()} == ASKED
    features = plan_features([Item.price], "")
    assert {name: {*columns} for name, columns in asked_of(features).items()} == {
        "Offers": ASKED["Offers"] - {"paid", "paid_at"}
    }
    grid = plan_dataset(
        hr.Dataset(
            rows=hr.grid(Sales.item, every="1d", active=hr.count(Sales).over("7d") > 0),
            features=[Left.on(Sales.item)],
            label=hr.count(Sales).ahead("1d"),
        )
    )
    assert {name: {*columns} for name, columns in asked_of(grid).items()} == {
        "Sales": {"item", "sold"},
        "Stocks": ASKED["Stocks"],
    }
    text = 'SELECT item, MAX("at") AS day, SUM(price) AS total FROM Offers GROUP BY item'
    queried = hr.sql(text, Sums, tables=[Offers], entity=Sums.item, known_at=Sums.day)
    asked = asked_of(plan_features([queried, Item, Left], ""))
    assert "Offers" not in asked and {*asked["Stocks"]} == ASKED["Stocks"]  # a query may read any column of its tables
