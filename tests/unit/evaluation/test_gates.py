"""Gates: each kind passes and fails where it must, says what it measured, and never passes unmeasured."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import headrace as hr
from headrace.core.errors import DataError, DefinitionError, GateRefused
from headrace.core.identity import canonical
from headrace.evaluation.definition import Gate
from headrace.evaluation.metrics import METRICS, measure
from headrace.evaluation.plan import Needs, plan_gates
from headrace.evaluation.record import Evaluation, GateResult, SliceResult
from headrace.evaluation.run import Footprint, JudgedRows, evaluate, interval_of
from headrace.evaluation.slices import worst
from headrace.stats.scores import Rows


class Flights(hr.Source):
    flight: hr.Column[str] = hr.row_id()
    sched: hr.Column[hr.Instant] = hr.event_time()
    carrier: hr.Column[str | None] = hr.entity()
    gate: hr.Column[int] = hr.column()

    known_at = sched - "30d"


FOOTPRINT = Footprint(2_000_000, {"p99": 9_000.0, "p50": 900.0}, "modelled")


def judged(n: int = 4_000, *, noise: float = 1.0, seed: int = 1) -> JudgedRows:
    random = np.random.default_rng(seed)
    truth = random.normal(size=n)
    label = (truth + random.normal(size=n) > 0).astype(float)
    carrier = random.choice(["UA", "AA", "B6"], n, p=[0.6, 0.38, 0.02]).astype(object)
    shown = np.where(carrier == "AA", 0.3 * truth, truth) + noise * random.normal(size=n)
    carrier[:5] = None
    columns = pa.table({"carrier": pa.array(carrier.tolist(), pa.string()), "gate": random.integers(0, 3, n)})
    return JudgedRows(label, 1 / (1 + np.exp(-shown)), None, columns)


def one(gate: Gate, rows: JudgedRows | None = None, **facts: Any) -> GateResult:
    footprint = dataclasses.replace(FOOTPRINT, **facts)
    rng = np.random.default_rng(0)
    (result,) = evaluate([gate], rows or judged(), footprint, task="classification", rng=rng).gates
    return result


def test_a_limit_on_a_metric() -> None:
    rows = judged()
    auc = measure("auc", rows.labels, rows.candidate).value
    assert auc is not None and 0.6 < auc < 0.8
    result = one(hr.metric("auc") >= 0.6)
    assert (result.passed, result.measured, result.kind, result.threshold) == (True, auc, "metric", 0.6)
    assert result.interval is not None and result.interval[0] < auc < result.interval[1]
    assert not one(hr.metric("auc") >= 0.8).passed
    assert one((hr.metric("auc")).between(0.6, 0.8)).passed
    assert str(one(hr.metric("auc") >= 0.8)).startswith('FAILED  metric("auc") >= 0.8: measured 0.')


def test_the_decision_s_threshold_counts() -> None:
    rows = judged()
    for threshold in (0.3, 0.7):
        decided = dataclasses.replace(rows, threshold=threshold)
        expected = measure("recall", rows.labels, rows.candidate, threshold=threshold).value
        assert one(hr.metric("recall") >= 0.5, decided).measured == expected


def test_what_cannot_be_measured_does_not_pass() -> None:
    rows = judged()
    yes = dataclasses.replace(rows, labels=np.ones(len(rows.labels)))
    result = one(hr.metric("auc") >= 0.0, yes)
    assert (result.passed, result.measured, result.reason) == (False, None, "needs rows of both classes")
    assert not one(hr.metric("log_loss") <= 99, dataclasses.replace(rows, candidate=rows.candidate * np.nan)).passed


def test_the_worst_slice_decides_and_small_ones_are_only_listed() -> None:
    gate = hr.metric("auc", by=Flights.carrier, min_rows=500) >= 0.68
    result = one(gate)
    by_name = {s.name: s for s in result.slices}
    assert [s.name for s in result.slices] == ["UA", "AA", "B6", "(null)"]
    assert by_name["AA"].judged and by_name["AA"].value == result.measured
    assert not by_name["B6"].judged and by_name["B6"].reason == f"{by_name['B6'].rows} rows, 500 needed"
    assert (result.passed, result.evidence) == (False, {"worst": "AA"})
    assert one(hr.metric("auc", by=Flights.carrier, min_rows=500) >= 0.5).passed
    worst_loss = one(hr.metric("log_loss", by=Flights.carrier, min_rows=500) <= 0.1)
    assert worst_loss.measured == max(s.value for s in worst_loss.slices if s.value is not None)


def test_no_slice_that_is_large_enough_does_not_pass() -> None:
    result = one(hr.metric("auc", by=Flights.carrier, min_rows=10_000) >= 0.1)
    assert (result.passed, result.measured) == (False, None)
    assert result.reason == "none of 4 slices has 10000 rows and a defined auc"


@given(
    st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=6), st.sampled_from(["<", "<=", ">", ">=", "between"])
)
def test_all_judged_slices_hold_exactly_if_the_worst_does(values: list[float | None], op: str) -> None:
    quantity = hr.metric("auc", by=Flights.carrier)
    limits = {"<": quantity < 0.5, "<=": quantity <= 0.5, ">": quantity > 0.5, ">=": quantity >= 0.5}
    limit = {**limits, "between": quantity.between(0.25, 0.75)}[op]
    slices = tuple(SliceResult(str(i), 9, value, value is not None) for i, value in enumerate(values))
    low = worst(slices, limit)
    if low is None:
        assert all(value is None for value in values)
        return
    assert low.value is not None
    assert limit.holds(low.value) == all(limit.holds(value) for value in values if value is not None)


def test_a_gap_between_slices() -> None:
    result = one(hr.gap("recall", by=Flights.carrier, min_rows=500) <= 0.01)
    values = [s.value for s in result.slices if s.value is not None]
    assert result.measured == max(values) - min(values)
    assert (result.passed, result.evidence["lowest"]) == (False, "AA")
    assert one(hr.gap("recall", by=Flights.carrier, min_rows=500) <= 0.5).passed
    alone = one(hr.gap("recall", by=Flights.carrier, min_rows=2_000) <= 0.5)
    assert (alone.passed, alone.reason) == (False, "1 of 4 groups can be judged")


def test_a_slice_may_be_of_numbers() -> None:
    assert [s.name for s in one(hr.metric("auc", by=Flights.gate) >= 0.1).slices] != []


def test_latency_and_size() -> None:
    assert one(hr.latency("p99") <= "15ms").passed
    late = one(hr.latency("p99") <= "5ms")
    assert (late.passed, late.measured, late.threshold, late.evidence) == (False, 9_000, 5_000, {"source": "modelled"})
    missing = one(hr.latency("p99") <= "5ms", latency={})
    assert (missing.passed, missing.reason) == (False, "no latency was measured")
    assert one(hr.model_size() <= "2MB").passed
    assert not one(hr.model_size() <= "2MB", size=2_000_001).passed


@pytest.mark.parametrize("name", ["log_loss", "auc", "f1", "brier"])
def test_the_champion_must_be_beaten_on_the_same_rows(name: str) -> None:
    rows, gate = judged(noise=0.3), hr.metric(name).beats_champion(confidence=0.95)
    worse = judged(noise=2.0).candidate
    better = one(gate, dataclasses.replace(rows, champion=worse))
    assert better.passed and better.reason is None and better.interval is not None
    for champion, candidate in ((rows.candidate, worse), (rows.candidate, rows.candidate)):
        result = one(gate, dataclasses.replace(rows, candidate=candidate, champion=champion))
        assert (result.passed, result.reason) == (False, "not shown to be better than the champion")
    assert better.threshold == measure(name, rows.labels, worse).value


def test_each_model_is_compared_at_its_own_threshold() -> None:
    rows = dataclasses.replace(judged(), champion=judged(noise=2.0).candidate, threshold=0.3, champion_threshold=0.7)
    result = one(hr.metric("f1").beats_champion(), rows)
    assert result.measured == measure("f1", rows.labels, rows.candidate, threshold=0.3).value
    assert result.threshold == measure("f1", rows.labels, judged(noise=2.0).candidate, threshold=0.7).value


def test_without_a_champion_the_gate_holds_and_says_so() -> None:
    result = one(hr.metric("log_loss").beats_champion())
    assert (result.passed, result.reason) == (True, "no champion yet")


def test_chance_rarely_beats_the_champion() -> None:
    """Two equal models: of 200 candidates at most about 2.5 % may look better (95 % two-sided); 12 is 4 sigma."""
    gate, wins = hr.metric("log_loss").beats_champion(confidence=0.95), 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        truth = random.normal(size=300)
        label = (truth + random.normal(size=300) > 0).astype(float)
        first, second = (1 / (1 + np.exp(-truth - random.normal(size=300))) for _ in range(2))
        wins += one(gate, JudgedRows(label, first, second, pa.table({"x": label}))).passed
    assert 0 < wins <= 12


def test_an_evaluation_is_plain_json_and_comes_back() -> None:
    gates: list[Gate] = [
        hr.metric("auc") >= 0.99,
        hr.metric("auc", by=Flights.carrier, min_rows=500) >= 0.1,
        hr.gap("recall", by=Flights.carrier) <= 0.2,
        hr.metric("ece").between(0, 1),
        hr.metric("log_loss").beats_champion(),
        hr.latency("p50") <= "1ms",
    ]
    rows = dataclasses.replace(judged(), champion=judged(noise=3).candidate)
    found = evaluate(gates, rows, FOOTPRINT, task="classification", rng=np.random.default_rng(1))
    body = json.loads(canonical(found.to_json()))
    assert Evaluation.from_json({k: v for k, v in body.items() if k != "passed"}) == found
    assert body["passed"] is False and [gate.gate for gate in found.failed] == ['metric("auc") >= 0.99']
    again = evaluate(gates, rows, FOOTPRINT, task="classification", rng=np.random.default_rng(1))
    assert again == found
    with pytest.raises(GateRefused) as caught:
        found.raise_if_failed("flights/v3")
    assert caught.value.exit_code == 3
    assert caught.value.where == 'metric("auc") >= 0.99'
    assert found.champion is not None and set(found.candidate) == set(found.champion)


def test_numbers_have_gates_too() -> None:
    label = np.arange(100.0)
    rows = JudgedRows(label, label + 1, None, pa.table({"x": label}))
    found = evaluate([hr.metric("mae") <= 1.0], rows, FOOTPRINT, task="regression", rng=np.random.default_rng(1))
    assert found.passed and found.candidate["rmse"] == 1.0


def test_what_gates_need_is_known_before() -> None:
    gates: list[Gate] = [
        hr.gap("recall", by=Flights.carrier) <= 0.2,
        hr.metric("auc", by=Flights.gate) >= 0.1,
        hr.latency("p95") <= "1s",
        hr.metric("brier").beats_champion(),
    ]
    assert plan_gates(gates, "classification") == Needs(("carrier", "gate"), True, ("p95",))
    assert plan_gates([], "regression") == Needs((), False, ())


@pytest.mark.parametrize(
    ("gate", "task", "said"),
    [
        (hr.metric("auc") >= 0.5, "regression", "auc does not measure a regression"),
        (hr.metric("rmse") <= 0.5, "classification", "rmse does not measure a classification"),
        (hr.metric("positive_rate").beats_champion(), "classification", "positive_rate has no better direction"),
        (hr.live("error_rate") > 0.1, "classification", "not a gate"),
    ],
)
def test_gates_that_do_not_fit_are_mistakes(gate: Gate, task: Any, said: str) -> None:
    with pytest.raises(DefinitionError, match=said):
        plan_gates([gate], task)


def test_missing_slice_columns_and_other_rows_are_refused() -> None:
    rows = judged()
    gate = hr.metric("auc", by=Flights.carrier) >= 0.5
    with pytest.raises(DataError, match="no column to slice by"):
        one(gate, dataclasses.replace(rows, columns=rows.columns.select(["gate"])))
    with pytest.raises(DataError, match="the slice columns are of other rows"):
        one(hr.metric("auc") >= 0.5, dataclasses.replace(rows, columns=rows.columns.slice(1)))


@pytest.mark.parametrize("name", [m.name for m in METRICS.values() if m.task != "ranking"])
def test_every_metric_has_an_interval_around_its_value(name: str) -> None:
    random = np.random.default_rng(4)
    label = random.integers(0, 2, 800).astype(float)
    predicted = np.clip(0.3 + 0.4 * label + random.normal(0, 0.25, 800), 0.01, 0.99)
    value = measure(name, label, predicted).value
    found = interval_of(METRICS[name], Rows(label, predicted), np.random.default_rng(1))
    assert value is not None and found is not None
    assert found[0] < value < found[1] and found[1] - found[0] < 0.2
