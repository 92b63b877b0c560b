"""Whole training sets are the same in buckets as in memory: rows, labels of other tables, samples, grids, limits of memory."""

from __future__ import annotations

import errno
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

import headrace as hr
from headrace.core.errors import DataError, Unavailable, UserCodeError
from headrace.core.time import DAY, HOUR, Instant
from headrace.engines.local import LocalEngine
from headrace.features.buckets import Shuffle, Spread
from headrace.features.plan import DatasetPlan, plan_dataset
from headrace.features.record import TrainingSet
from headrace.features.training_set import training_set
from headrace.sources.definition import definition_of
from headrace.sources.run import batch_of
from headrace.testing.oracle import made_log, reveal

START = int(Instant.parse("2024-03-28T00:00:00Z"))
SPAN = 20 * DAY
AS_OF = START + 18 * DAY  # what arrives later is left out, and on this very instant something does


class Sales(hr.Source):
    sale: hr.Column[str] = hr.row_id()
    sold: hr.Column[hr.Instant] = hr.event_time()
    store: hr.Column[str | None] = hr.entity()
    item: hr.Column[int | None] = hr.entity()
    amount: hr.Column[float | None] = hr.column()
    odd: hr.Column[float | None] = hr.column(allow_nan=True)
    note: hr.Column[str | None] = hr.column()
    _label: hr.Column[str | None] = hr.column()  # a name that buckets use too
    due: hr.Column[hr.Instant | None] = hr.column()
    closed: hr.Column[hr.Instant | None] = hr.column()
    good: hr.Column[bool | None] = hr.column(known_at=closed)


class Returns(hr.Source):
    number: hr.Column[int] = hr.row_id()
    returned: hr.Column[hr.Instant] = hr.event_time()
    sale: hr.Column[str] = hr.foreign_key(Sales.sale)
    reason: hr.Column[str | None] = hr.column()


class Prices(hr.Source, history="scd2"):
    item: hr.Column[int] = hr.entity()
    since: hr.Column[hr.Instant] = hr.valid_from()
    until: hr.Column[hr.Instant | None] = hr.valid_to()
    price: hr.Column[float | None] = hr.column()
    label: hr.Column[str | None] = hr.column()


class Ranks(hr.Source, history="snapshots"):
    store: hr.Column[str] = hr.entity()
    taken: hr.Column[hr.Instant] = hr.event_time()
    rank: hr.Column[int | None] = hr.column()


class Promotions(hr.Source):
    store: hr.Column[str] = hr.entity()
    number: hr.Column[int] = hr.column()
    day: hr.Column[hr.Date] = hr.event_date(tz="Europe/Paris")
    announced: hr.Column[hr.Instant] = hr.column()
    discount: hr.Column[float | None] = hr.column()
    row_id = hr.row_id(store, number)
    known_at = announced


class Days(hr.Source):
    store: hr.Column[str] = hr.entity()
    day: hr.Column[hr.Date] = hr.event_date(tz="Europe/Paris", known_after="6h")
    units: hr.Column[int | None] = hr.column()
    open: hr.Column[bool | None] = hr.column()
    row_id = hr.row_id(store, day)


class Scores(hr.Source):
    store: hr.Column[str] = hr.entity()
    made: hr.Column[hr.Instant] = hr.event_time()
    score: hr.Column[float | None] = hr.column()
    tier: hr.Column[str | None] = hr.column()


class Widest(hr.Source):
    """Have more columns than one integer can tell stated ones of."""

    store: hr.Column[str] = hr.entity()
    made: hr.Column[hr.Instant] = hr.event_time()
    __annotations__ |= {f"c{i}": "hr.Column[float | None]" for i in range(70)}
    vars().update({f"c{i}": hr.column() for i in range(70)})


class Store(hr.FeatureGroup, of=Sales, entity=Sales.store):
    sum = hr.sum(Sales.amount).over("6h", "2d")
    good = hr.rate(Sales.good).over("7d")
    last = hr.latest(Sales.amount, Sales.item, Sales.odd)
    spread = hr.max(Sales.odd, where=~Sales.odd.is_nan()).over("3d")


class Item(hr.FeatureGroup, of=Sales, entity=(Sales.store, Sales.item)):
    count = hr.count().over("1d", "lifetime")


@hr.aggregate
def drift(values: list[float]) -> float | None:
    return sum(i * value for i, value in enumerate(values))


@hr.aggregate
def joined(values: list[str]) -> int:
    return len("".join(values))


class Own(hr.FeatureGroup, of=Sales, entity=Sales.store):
    drift = drift(Sales.amount).over("2d", "lifetime")
    words = joined(Sales.note, where=Sales.amount > 0).over("3d")
    kinds = hr.count_distinct(Sales.note.upper() + "!").over("7d")
    usual = hr.most_frequent(Sales.note + Sales._label).over("7d")
    ends = hr.first(Sales.note, n=2).over("3d")
    newest = hr.latest(Sales.note, max_age="12h")


class Placed(hr.FeatureGroup, of=Sales, entity=Sales.store):
    due = hr.sum(Sales.amount).over("2d", on=Sales.due)
    coming = hr.count(Sales.amount).ahead("3d", on=Sales.due)
    local = hr.count().over("1d", "2d", on=Sales.sold, tz="Europe/Paris", hop="1d")
    weeks = hr.mean(Sales.amount).over("1d", offset=[0, 7])
    order = drift(Sales.amount).over("2d", on=Sales.due)


class Price(hr.FeatureGroup, of=Prices, entity=Prices.item):
    now = hr.latest(Prices.price, Prices.label)
    fresh = hr.latest(Prices.price, max_age="2d")
    changes = hr.count(Prices.price).over("5d")


class Rank(hr.FeatureGroup, of=Ranks, entity=Ranks.store):
    now = hr.latest(Ranks.rank)


class Planned(hr.FeatureGroup, of=Promotions, entity=Promotions.store):
    days = hr.count().ahead("2d")
    best = hr.max(Promotions.discount).over("3d", on=Promotions.day)


class Sold(hr.FeatureGroup, of=Days, entity=Days.store):
    units = hr.sum(Days.units).over("1d", "3d", fill=0)
    civil = hr.sum(Days.units).over("2d", on=Days.day)


class Next(hr.FeatureGroup, of=Sales, entity=Sales.store):
    amount = hr.sum(Sales.amount).ahead("3d", on=Sales.sold)


class Wide(hr.FeatureGroup, of=Widest, entity=Widest.store):
    newest = hr.latest(*(Widest.__definition__.by_name[f"c{i}"] for i in (0, 61, 62, 69)))
    sum = hr.sum(Widest.__definition__.by_name["c63"]).over("3d")


Ready: Any = hr.precomputed(Scores, entity=Scores.store, max_age="3d")


@hr.on_demand(amount=Sales.amount, usual=Store.sum["2d"])
def share(amount: float | None, usual: float | None) -> float | None:
    return None if not amount or not usual else amount / usual


class Daily(hr.Source):
    store: hr.Column[str] = hr.entity()
    day: hr.Column[hr.Instant] = hr.event_time()
    spent: hr.Column[float | None] = hr.column()
    note: hr.Column[str | None] = hr.column()
    row_id = hr.row_id(store, day)


Spent = hr.sql(
    """
    SELECT store, date_trunc('day', sold) + INTERVAL 1 DAY AS day, sum(amount) AS spent, max(note) AS note
    FROM Sales WHERE store IS NOT NULL AND sold IS NOT NULL GROUP BY ALL
    """,
    Daily,
    tables=[Sales],
    entity=Daily.store,
    known_at=Daily.day,
)


def with_features(*features: Any, **given: Any) -> hr.Dataset:
    options: dict[str, Any] = {"rows": Sales, "at": Sales.sold, "label": Sales.good, "mature": "2d"}
    return hr.Dataset(**(options | given), features=list(features))


DATASETS: dict[str, hr.Dataset] = {
    "own label, sampled": with_features(
        Sales.amount, Store, Item, share, where=Sales.amount > 0, sample=hr.downsample(False, 0.5)
    ),
    "label of another table": with_features(
        Store,
        Item,
        label=hr.exists(Returns, on=Returns.sale, where=Returns.reason == "broken").within("5d"),
        labelled_if=Sales.good.is_null() | Sales.good,
        mature=None,
    ),
    "label of a window ahead": with_features(Store, label=Next.amount["3d"], mature="4d"),
    "folds, texts and expressions": with_features(Own, Sales.note),
    "windows of other instants, ahead, in civil time": with_features(Placed),
    "rows that end": with_features(Price),
    "snapshots": with_features(Rank),
    "days, and what was announced": with_features(Sold, Planned),
    "precomputed": with_features(Ready),
    "by a query": with_features(Spent),
    "a table of many columns": with_features(Wide),
    "grid": hr.Dataset(
        rows=hr.grid((Sales.store, Sales.item), every="1d", tz="Europe/Paris", active=hr.count(Sales).over("3d") > 0),
        features=[Store, Item],
        label=hr.sum(Sales.amount).ahead("2d", fill=0),
    ),
    "weekly grid of days, several labels": hr.Dataset(
        rows=hr.grid(Days.store, every="7d", on="mon", tz="Europe/Paris"),
        features=[Sold, Planned, Rank],
        label=hr.sum(Days.units).ahead("1d", offset=[0, 1, 2], fill=0),
        labelled_if=Days.open,
    ),
    "grid, sampled": hr.Dataset(
        rows=hr.grid(Days.store, every="6h", tz="Europe/Paris"),
        features=[Sold],
        label=hr.count(Days.units).ahead("2d"),
        sample=hr.downsample(2.0, 0.4, weight=False),
    ),
}
PLANS: dict[str, DatasetPlan] = {name: plan_dataset(dataset) for name, dataset in DATASETS.items()}


def instant(random: Random) -> int:
    return START + random.randrange(SPAN // (6 * HOUR)) * 6 * HOUR


def day(random: Random) -> int:
    return (START // DAY + random.randrange(SPAN // DAY)) * DAY


def maybe(draw: Any) -> Any:
    return lambda random: None if random.random() < 0.15 else draw(random)


def one_of(*values: Any) -> Any:
    return lambda random: random.choice(values)


STORE, NUMBER, TEXT = (
    one_of("X", "Y", "Z"),
    one_of(0.1, 0.2, 1e16, -1e16, -3.0, 7.0),
    one_of("", "a", "ü", "a b and more words", "still more words than that"),
)
ODD = one_of(float("nan"), -float("nan"), -0.0, 0.0, float("inf"), 1.5)
DRAWN: dict[type[hr.Source], dict[str, Any]] = {
    Sales: {
        "sale": lambda r: f"s{r.randrange(200)}",
        "sold": instant,
        "store": maybe(STORE),
        "item": maybe(one_of(0, 1, 2)),
        "amount": maybe(NUMBER),
        "odd": maybe(ODD),
        "note": maybe(TEXT),
        "_label": maybe(TEXT),
        "due": maybe(instant),
        "closed": maybe(instant),
        "good": maybe(lambda r: r.random() < 0.7),
    },
    Returns: {
        "number": lambda r: r.randrange(400),
        "returned": instant,
        "sale": lambda r: f"s{r.randrange(200)}",
        "reason": maybe(one_of("broken", "late")),
    },
    Prices: {
        "item": one_of(0, 1, 2),
        "since": instant,
        "until": maybe(instant),
        "price": maybe(NUMBER),
        "label": maybe(TEXT),
    },
    Ranks: {"store": STORE, "taken": lambda r: instant(r) // DAY * DAY, "rank": maybe(lambda r: r.randrange(9))},
    Promotions: {
        "store": STORE,
        "number": lambda r: r.randrange(60),
        "day": day,
        "announced": instant,
        "discount": maybe(NUMBER),
    },
    Days: {
        "store": STORE,
        "day": day,
        "units": maybe(lambda r: r.randrange(-5, 99)),
        "open": maybe(one_of(True, False)),
    },
    Widest: {"store": STORE, "made": instant} | {f"c{i}": maybe(NUMBER) for i in range(70)},
    Scores: {"store": STORE, "made": instant, "score": maybe(NUMBER), "tier": maybe(TEXT)},
}


@cache
def made(count: int = 1_200, *, once: bool = False) -> dict[str, pa.Table]:
    """Return reveals of every source: partial, late, doubled, corrected ones, or `once` a whole one for each row."""
    random, found = Random(4), {}
    for table, drawn in DRAWN.items():
        source = definition_of(table)
        values = {source.by_name[name]: draw for name, draw in drawn.items()}
        log = made_log(source, values, rows=300, reveals=count, span=(START, START + SPAN), random=random)
        if once:
            stated = {r.row_id: {c: draw(random) for c, draw in values.items()} for _, r in log}
            ids = {r.row_id: dict(zip(r.places, r.values, strict=True)) for _, r in log}
            for row, cells in stated.items():
                cells.update({c: ids[row][source.index[c]] for c in source.id_columns})
            log = [(source.name, reveal(source, cells, instant(random))) for cells in stated.values()]
        # Arrivals at midnight only: many events stand at one moment and arrived together, so that their rows decide.
        reveals = [one._replace(arrival=one.arrival // DAY * DAY) for _, one in log]
        found[source.name] = batch_of(source, reveals).table
    return found


def plain(table: pa.Table) -> dict[str, tuple[pa.DataType, list[Any]]]:
    """Return each column's type and values, floats as their bits."""
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    bits = {name: c.view(pa.int64()) if pa.types.is_floating(c.type) else c for name, c in columns.items()}
    return {name: (c.type, bits[name].to_pylist()) for name, c in columns.items()}


def same(found: TrainingSet, expected: TrainingSet) -> bool:
    """Say whether two training sets agree in every bit."""
    for mine, theirs in ((found.rows, expected.rows), (found.features, expected.features)):
        assert plain(mine) == plain(theirs)
    assert found.t.tolist() == expected.t.tolist()
    assert found.manifest == expected.manifest
    floats = [(found.label, expected.label), (found.weight, expected.weight)]
    return all(a is b or (a.view(np.int64) == b.view(np.int64)).all() for a, b in floats)  # type: ignore[union-attr]


@pytest.mark.parametrize("once", [False, True], ids=["reveals", "rows"])
@pytest.mark.parametrize("name", PLANS)
def test_training_sets_are_the_same_in_buckets(name: str, once: bool, tmp_path: Path) -> None:
    reveals, plan = made(once=once), PLANS[name]
    given: dict[str, Any] = {"as_of": AS_OF, "start": START + DAY, "end": START + 15 * DAY}
    expected = training_set(plan, reveals, **given)
    assert len(expected) > 2
    dull = [c for c in expected.features.column_names if len(expected.features[c].unique()) < 2]
    assert not dull
    for bucket_rows in (30, 11):
        told: list[tuple[str, int, int]] = []
        spread = Spread(LocalEngine(), tmp_path, bucket_rows, lambda *one, told=told: told.append(one))
        assert same(training_set(plan, reveals, **given, spread=spread), expected)
        assert any(what.startswith("events of ") and done == total > 1 for what, done, total in told)
        assert not list(tmp_path.iterdir())


def test_the_training_sets_under_test_have_every_kind_of_label() -> None:
    found = {name: training_set(plan, made(), as_of=AS_OF) for name, plan in PLANS.items()}
    missing = {name: float(np.isnan(one.label).mean()) for name, one in found.items()}
    assert all(0 < missing[name] < 1 for name in PLANS if "grid" not in name)
    assert 0 < missing["weekly grid of days, several labels"] < 1
    assert found["weekly grid of days, several labels"].label.shape[1] == 3
    assert set(found["own label, sampled"].weight.tolist()) == {1.0, 2.0}  # type: ignore[union-attr]


def test_reveals_may_be_larger_than_memory(tmp_path: Path) -> None:
    reveals, plan = made(), PLANS["label of another table"]
    for name, table in reveals.items():
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=50)
    stored = {name: pads.dataset(tmp_path / f"{name}.parquet") for name in reveals}
    (tmp_path / "work").mkdir()
    spread = Spread(folder=tmp_path / "work", bucket_rows=64)
    expected = training_set(plan, reveals, as_of=AS_OF)
    assert same(training_set(plan, stored, as_of=AS_OF, spread=spread), expected)
    assert same(training_set(plan, stored, as_of=AS_OF), expected)


def test_nothing_at_all_is_a_training_set_too(tmp_path: Path) -> None:
    empty = {name: table.slice(0, 0) for name, table in made(5).items()}
    plan, spread = PLANS["own label, sampled"], Spread(_Apart(), tmp_path, 10)
    found = training_set(plan, empty, as_of=AS_OF, spread=spread)
    assert len(found) == 0
    assert same(found, training_set(plan, empty, as_of=AS_OF))
    with pytest.raises(DataError, match="no data for a source"):
        training_set(plan, {}, as_of=AS_OF, spread=spread)


class _Apart(LocalEngine):
    """Ask for three buckets at least."""

    def __init__(self) -> None:
        super().__init__()
        self.capabilities = type(self.capabilities)(workers=3, isolated=True, several_hosts=False)


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    shuffle = Shuffle(tmp_path / "file" / "below", 2)
    with pytest.raises(Unavailable, match="buckets cannot be written") as caught:
        shuffle.add(pa.table({"n": [1, 2]}), np.array([0, 1]))
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOTDIR


def test_a_failing_fold_names_its_bucket_and_leaves_nothing(tmp_path: Path) -> None:
    @hr.aggregate
    def fails(values: list[float]) -> float:
        raise ValueError("too odd")

    class Odd(hr.FeatureGroup, of=Sales, entity=Sales.store):
        odd = fails(Sales.amount).over("2d")

    plan = plan_dataset(hr.Dataset(rows=Sales, at=Sales.sold, features=[Odd], label=Sales.good, mature="2d"))
    with pytest.raises(UserCodeError, match="fails raised ValueError: too odd") as caught:
        training_set(plan, made(), as_of=AS_OF, spread=Spread(folder=tmp_path, bucket_rows=100))
    assert caught.value.where is not None and ", bucket " in caught.value.where
    assert isinstance(caught.value.__cause__, ValueError)
    assert not list(tmp_path.iterdir())


def test_rows_that_all_fall_into_one_bucket_take_no_more_room(tmp_path: Path) -> None:
    table = pa.table({"row": pa.array([b"row number %d" % i for i in range(5_000)], pa.binary())})
    sizes = []
    for place, bucket in enumerate((np.arange(5_000) // 100, np.full(5_000, 7))):
        shuffle = Shuffle(tmp_path / str(place), 50)
        shuffle.add(table, bucket)
        assert pa.concat_tables([shuffle.opened()(i) for i in range(50)]).equals(table)
        sizes.append(shuffle.files[0].stat().st_size)
    assert sizes[1] <= sizes[0]
