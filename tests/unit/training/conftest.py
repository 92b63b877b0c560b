"""Offer a dataset and matured training rows over sixty days, with nulls, categories and censored rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from lightgbm import LGBMClassifier

import headrace as hr
from headrace.core.time import DAY, Instant
from headrace.features.record import FeatureColumn, TrainingSet
from headrace.training.definition import Training


class Flights(hr.Source):
    flight: hr.Column[str] = hr.row_id()
    sched: hr.Column[hr.Instant] = hr.event_time()
    carrier: hr.Column[str] = hr.entity()
    late: hr.Column[float | None] = hr.column(known_at=sched + "6h")

    known_at = sched - "30d"


dataset = hr.Dataset(
    rows=Flights, at=Flights.sched - "1h", features=[Flights.carrier], label=Flights.late > 15, mature="2d"
)
COLUMNS = (
    FeatureColumn("carrier", "str", "row"),
    FeatureColumn("departures", "int", "window"),
    *(FeatureColumn(f"delay[{i}h]", "float", "window") for i in range(4)),
)


def forest(data: hr.TrainingData, p: hr.Params) -> hr.Model:
    model = LGBMClassifier(
        n_estimators=15,
        num_leaves=p.int("num_leaves", 4, 31),
        learning_rate=p.float("learning_rate", 0.02, 0.3, log=True),
        random_state=p.seed,
        n_jobs=p.threads,
        deterministic=True,
        force_row_wise=True,
        verbose=-1,
    )
    return hr.model(model.fit(data.train.X, data.train.y))


def rows_of(n: int = 3_000, *, seed: int = 1, leak: bool = False) -> TrainingSet:
    random = np.random.default_rng(seed)
    t = np.sort(random.integers(0, 60 * DAY, n)) + int(Instant.parse("2013-01-01"))
    carrier = random.choice(["UA", "AA", "B6"], n)
    delays, hidden = random.normal(10, 20, (n, 4)), random.random((n, 4)) < 0.1
    pull = np.where(hidden, 0, delays)[:, :2].sum(axis=1) + 15 * (carrier == "UA") + random.normal(0, 20, n)
    label = (pull > 30).astype(np.float64)
    columns: dict[str, pa.Array] = {"carrier": pa.array(carrier), "departures": pa.array(random.integers(0, 60, n))}
    columns |= {f"delay[{i}h]": pa.array(delays[:, i], mask=hidden[:, i]) for i in range(4)}
    if leak:
        columns["delay[3h]"] = pa.array(pull)
    label[random.random(n) < 0.03] = np.nan
    order = random.permutation(n) if seed == 2 else np.arange(n)
    return TrainingSet(
        COLUMNS,
        pa.table(columns).take(order),
        pa.table({"carrier": carrier[order]}),
        t[order],
        label[order],
        int(t.max()) + 2 * DAY,
        {"definition": "d1", "rows": n},
    )


Make = Callable[..., Training]


@pytest.fixture
def make() -> Make:
    def build(function: Any = forest, **options: Any) -> Training:
        settings = {"split": hr.by_time(valid="10d", test="10d"), "search": hr.Search(trials=3, metric="log_loss")}
        return hr.train(options.pop("dataset", dataset), **{**settings, **options})(function)

    return build


@pytest.fixture(scope="session")
def numbers() -> hr.Dataset:
    late = Flights.late
    return hr.Dataset(rows=Flights, at=Flights.sched - "1h", features=[Flights.carrier], label=late, mature="2d")


@pytest.fixture(scope="session")
def rows() -> TrainingSet:
    return rows_of()


@pytest.fixture(scope="session")
def leaking() -> TrainingSet:
    return rows_of(leak=True)
