"""Whole training sets are the same in buckets as in memory: rows, labels of other tables, samples, grids, limits of memory."""

from __future__ import annotations

import errno
from collections.abc import Mapping
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
from headrace.testing.oracle import made_log

START = int(Instant.parse("2024-03-28T00:00:00Z"))
SPAN = 20 * DAY
AS_OF = START + 18 * DAY  # what arrives later is left out, and on this very instant something does


class Sales(hr.Source):
    sale: hr.Column[str] = hr.row_id()
    sold: hr.Column[hr.Instant] = hr.event_time()
    store: hr.Column[str | None] = hr.entity()
    item: hr.Column[int | None] = hr.entity()
    amount: hr.Column[float | None] = hr.column()
    closed: hr.Column[hr.Instant | None] = hr.column()
    good: hr.Column[bool | None] = hr.column(known_at=closed)


class Returns(hr.Source):
    number: hr.Column[int] = hr.row_id()
    returned: hr.Column[hr.Instant] = hr.event_time()
    sale: hr.Column[str] = hr.foreign_key(Sales.sale)
    reason: hr.Column[str | None] = hr.column()


class Store(hr.FeatureGroup, of=Sales, entity=Sales.store):
    sum = hr.sum(Sales.amount).over("6h", "2d")
    good = hr.rate(Sales.good).over("7d")
    last = hr.latest(Sales.amount, Sales.item)


class Item(hr.FeatureGroup, of=Sales, entity=(Sales.store, Sales.item)):
    count = hr.count().over("1d", "lifetime")


@hr.on_demand(amount=Sales.amount, usual=Store.sum["2d"])
def share(amount: float | None, usual: float | None) -> float | None:
    return None if not amount or not usual else amount / usual


OWN = hr.Dataset(
    rows=Sales,
    at=Sales.sold,
    features=[Sales.amount, Store, Item, share],
    label=Sales.good,
    mature="2d",
    where=Sales.amount > 0,
    sample=hr.downsample(False, 0.5),
)
RETURNED = hr.Dataset(
    rows=Sales,
    at=Sales.sold,
    features=[Store, Item],
    label=hr.exists(Returns, on=Returns.sale, where=Returns.reason == "broken").within("5d"),
    labelled_if=Sales.good.is_null() | Sales.good,
)
DEMAND = hr.Dataset(
    rows=hr.grid((Sales.store, Sales.item), every="1d", tz="Europe/Paris", active=hr.count(Sales).over("3d") > 0),
    features=[Store, Item],
    label=hr.sum(Sales.amount).ahead("2d", fill=0),
)


def instant(random: Random) -> int:
    return START + random.randrange(SPAN // (6 * HOUR)) * 6 * HOUR


def maybe(value: Any, random: Random) -> Any:
    return None if random.random() < 0.15 else value


def made(count: int = 1_500) -> dict[str, pa.Table]:
    random, sales, returns = Random(4), definition_of(Sales), definition_of(Returns)
    draws: list[tuple[Any, Mapping[str, Any]]] = [
        (
            sales,
            {
                "sale": lambda r: f"s{r.randrange(200)}",
                "sold": instant,
                "store": lambda r: maybe(r.choice("XYZ"), r),
                "item": lambda r: maybe(r.randrange(3), r),
                "amount": lambda r: maybe(r.choice([0.1, 0.2, 1e16, -1e16, -3.0, 7.0]), r),
                "closed": lambda r: maybe(instant(r), r),
                "good": lambda r: maybe(r.random() < 0.7, r),
            },
        ),
        (
            returns,
            {
                "number": lambda r: r.randrange(400),
                "returned": instant,
                "sale": lambda r: f"s{r.randrange(200)}",
                "reason": lambda r: maybe(r.choice(["broken", "late"]), r),
            },
        ),
    ]
    found = {}
    for source, values in draws:
        by_column = {source.by_name[name]: draw for name, draw in values.items()}
        log = made_log(source, by_column, rows=300, reveals=count, span=(START, START + SPAN), random=random)
        # Arrivals at midnight only: many events stand at one moment and arrived together, so that their rows decide.
        reveals = [reveal._replace(arrival=reveal.arrival // DAY * DAY) for _, reveal in log]
        found[source.name] = batch_of(source, reveals).table
    return found


def same(found: TrainingSet, expected: TrainingSet) -> bool:
    """Say whether two training sets agree in every bit."""
    floats = [(found.label, expected.label), (found.weight, expected.weight)]
    assert found.t.tolist() == expected.t.tolist()
    assert found.rows.equals(expected.rows)
    for name in expected.features.column_names:
        mine, theirs = found.features[name].combine_chunks(), expected.features[name].combine_chunks()
        assert mine.is_null().equals(theirs.is_null()), name
        if pa.types.is_floating(mine.type):
            floats.append((mine.to_numpy(zero_copy_only=False), theirs.to_numpy(zero_copy_only=False)))
        else:
            assert mine.equals(theirs), name
    return all(a is b or (a.view(np.int64) == b.view(np.int64)).all() for a, b in floats) and (  # type: ignore[union-attr]
        found.manifest == expected.manifest
    )


PLANS: dict[str, DatasetPlan] = {
    "own label, sampled": plan_dataset(OWN),
    "label of another table": plan_dataset(RETURNED),
    "grid": plan_dataset(DEMAND),
}


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("bucket_rows", [100, 11])
def test_training_sets_are_the_same_in_buckets(name: str, bucket_rows: int, tmp_path: Path) -> None:
    reveals, plan = made(), PLANS[name]
    given: dict[str, Any] = {"as_of": AS_OF, "start": START + DAY, "end": START + 15 * DAY}
    expected = training_set(plan, reveals, **given)
    assert len(expected) > 30
    assert 0 < np.isnan(expected.label).sum() < len(expected) or name == "grid"
    told: list[tuple[str, int, int]] = []
    spread = Spread(LocalEngine(), tmp_path, bucket_rows, lambda *one: told.append(one))
    assert same(training_set(plan, reveals, **given, spread=spread), expected)
    assert any(what == "events of Sales" and done == total for what, done, total in told)
    assert not list(tmp_path.iterdir())


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
