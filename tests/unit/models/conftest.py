"""Offer features with nulls, categories, booleans and instants, and one-row vectors of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from headrace.features.record import FeatureColumn, FeatureVector
from headrace.models.encoder import Encoder

START = 1_356_998_400_000_000
COLUMNS = (
    FeatureColumn("carrier", "str", "row"),
    FeatureColumn("night", "bool", "on_demand"),
    FeatureColumn("announced", "instant", "row"),
    FeatureColumn("departures", "int", "window"),
    *(FeatureColumn(f"delay[{i}h]", "float", "window") for i in range(4)),
)


@dataclass(frozen=True)
class Rows:
    table: pa.Table
    encoder: Encoder
    matrix: NDArray[np.float32]
    label: NDArray[np.int64]
    number: NDArray[np.float64]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Keep OpenMP's spinning threads off machines that are busy."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="session")
def rows() -> Rows:
    random, n = np.random.default_rng(7), 2_000
    carrier = random.choice(["UA", "AA", "B6", "X"], n, p=[0.4, 0.3, 0.2, 0.1]).tolist()
    delays = random.normal(10, 20, (n, 4))
    hidden = random.random((n, 4)) < 0.1
    hidden[:, 3] = False  # no null in training here: LightGBM's missing_type None
    columns: dict[str, pa.Array] = {
        "carrier": pa.array([None if random.random() < 0.02 else c for c in carrier], pa.string()),
        "night": pa.array(random.random(n) < 0.3),
        "announced": pa.array(START + random.integers(0, 400, n) * 3_600_000_000),
        "departures": pa.array(random.integers(0, 60, n)),
    }
    columns |= {f"delay[{i}h]": pa.array(delays[:, i], mask=hidden[:, i]) for i in range(4)}
    table = pa.table(columns)
    encoder = Encoder.learn(COLUMNS, table)
    pull = np.where(hidden, 0, delays)[:, :2].sum(axis=1) + 20 * (np.array(carrier) == "UA") + random.normal(0, 20, n)
    return Rows(table, encoder, encoder.encode(table), (pull > 30).astype(np.int64), pull)


@pytest.fixture
def vector() -> FeatureVector:
    words, status = np.zeros(len(COLUMNS), np.int64), np.zeros(len(COLUMNS), np.uint8)
    words.view(np.float64)[4:] = [12.5, 3.0, -1.0, 0.25]
    words[1:4] = [1, START, 17]
    return FeatureVector(COLUMNS, words, status, ["AA"])
