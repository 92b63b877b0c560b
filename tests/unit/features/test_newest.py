"""Rows that state themselves once are joined by finding the newest one; the answer is that of the general way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import headrace as hr
from headrace.core.identity import encode_key
from headrace.features.history import History
from headrace.features.keys import dense_keys, integer_keys
from headrace.features.offline import OfflineFeatures, only_newest
from headrace.features.plan import plan_features
from headrace.sources.definition import definition_of
from headrace.sources.plan import expand
from headrace.sources.record import ARRIVAL


class Scores(hr.Source, history="snapshots"):
    at: hr.Column[hr.Instant] = hr.event_time()
    customer: hr.Column[int] = hr.entity()
    score: hr.Column[float | None] = hr.column(allow_nan=True)
    visits: hr.Column[int | None] = hr.column()
    tier: hr.Column[str | None] = hr.column()
    good: hr.Column[bool | None] = hr.column()


class Orders(hr.Source):
    order: hr.Column[int] = hr.row_id()
    at: hr.Column[hr.Instant] = hr.event_time()
    customer: hr.Column[int] = hr.entity()
    amount: hr.Column[float] = hr.column()
    shop: hr.Column[str] = hr.column()
    note: hr.Column[str | None] = hr.column()


class State(hr.FeatureGroup, of=Scores, entity=Scores.customer):
    now = hr.latest(Scores.score, Scores.visits, Scores.tier, Scores.good)
    young = hr.latest(Scores.score, Scores.tier, max_age="5s")


class Events(hr.FeatureGroup, of=Orders, entity=Orders.customer):
    last = hr.latest(Orders.amount, Orders.shop, max_age="20s")
    ever = hr.latest(Orders.amount)
    dear = hr.latest(Orders.amount, where=Orders.amount > 0)


class Noted(hr.FeatureGroup, of=Orders, entity=Orders.customer):
    note = hr.latest(Orders.note)


def some(r: np.random.Generator, values: list[Any], n: int, nulls: bool = True) -> list[Any]:
    return [None if nulls and r.random() < 0.3 else values[i] for i in r.integers(0, len(values), n)]


def reveals(name: str, n: int, r: np.random.Generator) -> pa.Table:
    """Return rows with ties of moment and arrival, late ones among them."""
    at = r.permutation(n * 100)[:n] * 1_000 if name == "Scores" else r.integers(0, 40, n) * 1_000_000
    table: dict[str, Any] = {"at": pa.array(at, pa.int64()), "customer": pa.array(r.integers(-2, 5, n), pa.int64())}
    if name == "Scores":
        table["score"] = pa.array(some(r, [0.1, -0.0, 0.0, float("nan"), 1e300], n), pa.float64())
        table["visits"] = pa.array(some(r, [1, 2**62, -5], n), pa.int64())
        table["tier"] = pa.array(some(r, ["", "a", "ü", "the tier of all others"], n), pa.string())
        table["good"] = pa.array(some(r, [True, False], n), pa.bool_())
    else:
        table |= {"order": pa.array(np.arange(n)), "amount": pa.array(some(r, [1.5, -2.0, 7.0], n, nulls=False))}
        table["shop"] = pa.array(some(r, ["x", "yy"], n, nulls=False))
        table["note"] = pa.array(some(r, ["hm", "a note of more words"], n), pa.string())
    table[ARRIVAL] = pa.array(at + r.integers(0, 3, n) * 1_000_000, pa.int64())
    source = {"Scores": Scores, "Orders": Orders}[name]
    return expand(definition_of(source), pa.table(table)).table


@pytest.mark.parametrize("seed", range(20))
def test_the_newest_row_answers_as_the_lanes_do(seed: int) -> None:
    r = np.random.default_rng(seed)
    n = int(r.integers(0, 300))
    plan = plan_features([State, Events.on(Scores.customer), Noted.on(Scores.customer)], "test")
    rows = pa.table({"customer": pa.array(some(r, [*range(-3, 6)], 200), pa.int64())})
    t = r.integers(-1_000_000, 45_000_000, 200)
    histories = {s.name: History.build(s, reveals(s.name, n, r), 2**62) for s in plan.sources}
    assert all(history.single for history in histories.values())
    general = {name: replace(history, single=False) for name, history in histories.items()}
    found, expected = (OfflineFeatures(plan, h).compute(rows, t) for h in (histories, general))
    assert (found.words == expected.words).all()
    assert (found.status == expected.status).all()
    assert found.table(plan).equals(expected.table(plan)) or np.isnan(found.words.view(np.float64)).any()
    assert {k: v.to_pylist() for k, v in found.texts.items()} == {k: v.to_pylist() for k, v in expected.texts.items()}


def test_which_lanes_need_only_the_newest_row() -> None:
    r = np.random.default_rng(0)
    plan = plan_features([State, Events.on(Scores.customer), Noted.on(Scores.customer)], "test")
    histories = {s.name: History.build(s, reveals(s.name, 50, r), 2**62) for s in plan.sources}
    found = [[only_newest(lane, histories[lane.source.name]) for lane in b.lanes] for b in plan.bindings]
    assert found == [[True], [True, True], [False]]


def test_integers_are_coded_as_keys_alone_are() -> None:
    values = [0, 1, -1, 255, 2**63 - 1, -(2**63)]
    assert integer_keys(np.array(values)).to_pylist() == [encode_key([v]) for v in values]


def test_keys_of_more_combinations_than_numbers_stay_apart() -> None:
    """Seven parts of 1,000 different values each have 10^21 combinations, more than 64 bits tell apart."""
    r = np.random.default_rng(0)
    rows = np.vstack([r.integers(0, 1_000, (2_000, 7)), np.repeat(np.arange(1_000), 7).reshape(-1, 7)])
    columns = [pa.chunked_array([np.append(rows[:, i], rows[:5, i])]) for i in range(7)]
    keys, place = dense_keys(columns)
    assert len(keys) == len({tuple(row) for row in rows.tolist()})
    expected = [encode_key(row) for row in [*rows.tolist(), *rows[:5].tolist()]]
    assert keys.take(pa.array(place)).to_pylist() == expected


def test_a_key_with_a_null_part_is_none() -> None:
    columns = [pa.chunked_array([["a", None, "b", "a", None]]), pa.chunked_array([[1, 2, None, 1, None]])]
    keys, place = dense_keys(columns)
    assert keys.to_pylist() == [encode_key(["a", 1])]
    assert place.tolist() == [0, -1, -1, 0, -1]
    assert dense_keys([column.slice(4) for column in columns])[0].to_pylist() == []
