"""Offer a dataset with a column of every type, scorers that answer, fail and give no number, and cores that serve them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import headrace as hr
from headrace.core.expressions import Column
from headrace.features.definition import FeatureLike
from headrace.features.online import OnlineFeatures
from headrace.features.plan import DatasetPlan, plan_dataset
from headrace.features.record import FeatureVector
from headrace.pipelines.latency import MeasuredStopwatch
from headrace.serving.core import Core
from headrace.serving.definition import Endpoint, Threshold
from headrace.serving.log import PredictionLog
from headrace.serving.router import Router, Routes, Variant
from headrace.serving.signature import Signature


class Rides(hr.Source):
    ride: hr.Column[str] = hr.row_id()
    asked: hr.Column[hr.Instant] = hr.event_time()
    zone: hr.Column[str] = hr.entity(matches=r"z-[0-9]+")
    seats: hr.Column[int] = hr.column(ge=1, le=8)
    account: hr.Column[int] = hr.column()
    price: hr.Column[float] = hr.column(ge=0)
    kind: hr.Column[str] = hr.column(isin=["cab", "van"])
    pool: hr.Column[bool] = hr.column()
    born: hr.Column[hr.Date | None] = hr.column()
    phone: hr.Column[str | None] = hr.column(matches=r"[0-9]+", pii=True)
    ended: hr.Column[hr.Instant | None] = hr.column()
    minutes: hr.Column[float | None] = hr.column(known_at=ended)


@hr.on_demand(price=Rides.price, seats=Rides.seats)
def per_seat(price: float, seats: int) -> float:
    return price / (seats - 3)  # three seats: the mistake that tests need


class Zone(hr.FeatureGroup, of=Rides, entity=Rides.zone):
    minutes = hr.mean(Rides.minutes).over("1h")


ALL: list[FeatureLike] = [Rides.seats, Rides.account, Rides.price, Rides.kind, Rides.pool, Rides.asked, Zone, per_seat]
DATASET = hr.Dataset(rows=Rides, at=Rides.asked, features=ALL, label=Rides.minutes > 30, mature="1d")


class Constant:
    """Answer every row with one score."""

    def __init__(self, score: float) -> None:
        self.score = score

    def score_one(self, vector: FeatureVector) -> float:
        return self.score


class Failing:
    """Raise for every row, as a model that cannot score it does."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def score_one(self, vector: FeatureVector) -> float:
        raise self.error


@dataclass
class Bench:
    """Hold a core with what it stands on."""

    core: Core
    router: Router
    log: PredictionLog
    signature: Signature
    folder: Path
    row: dict[str, Any]

    def ask(self, t: int = 1_000, **changed: Any) -> Any:
        """Predict the usual row, with some values changed."""
        return self.core.predict(self.signature.decode(self.row | changed), t, dict[bytes, bytes]().get)


@pytest.fixture(scope="session")
def plan() -> DatasetPlan:
    return plan_dataset(DATASET)


@pytest.fixture(scope="session")
def signature(plan: DatasetPlan) -> Signature:
    return Signature(plan, plan.direct)


@pytest.fixture
def row() -> dict[str, Any]:
    return {
        "ride": "r1",
        "asked": "2024-05-01T12:00:00Z",
        "zone": "z-7",
        "seats": 2,
        "account": 2**63 - 1,
        "price": 12.5,
        "kind": "cab",
        "pool": False,
    }


@pytest.fixture
def constant() -> Callable[[str, float], Variant]:
    return lambda version, score: Variant(version, Constant(score))


@pytest.fixture
def failing() -> Callable[[str, Exception], Variant]:
    return lambda version, error: Variant(version, Failing(error))


@pytest.fixture
def bench(
    plan: DatasetPlan, signature: Signature, row: dict[str, Any], tmp_path: Path
) -> Iterator[Callable[..., Bench]]:
    """Return a maker of cores: routes, endpoint, threshold and the column that the rollout's share goes by."""
    logs: list[PredictionLog] = []

    def make(
        routes: Routes,
        *,
        endpoint: Endpoint | None = None,
        decision: Threshold | None = None,
        unit: Column[Any] | None = Rides.ride,
    ) -> Bench:
        folder = tmp_path / f"log-{len(logs)}"
        folder.mkdir()
        log = PredictionLog(folder, plan.columns, [c.name for c in plan.request], segment=1)
        logs.append(log)
        core = Core(
            OnlineFeatures(plan),
            Router(routes),
            log,
            endpoint=endpoint or Endpoint(),
            decision=decision,
            unit=unit,
            stopwatch=MeasuredStopwatch(),
        )
        return Bench(core, core.router, log, signature, folder, row)

    yield make
    for log in logs:
        log.close()
