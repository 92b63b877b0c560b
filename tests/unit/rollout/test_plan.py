"""Rollouts: a pure state machine that stops bad candidates, lets good ones through, and never moves a unit back."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import headrace as hr
from headrace.core.errors import DefinitionError
from headrace.core.limits import Limit
from headrace.core.time import DAY, HOUR
from headrace.monitoring.performance import LiveWindow
from headrace.monitoring.record import Measurement
from headrace.rollout.definition import Rollout
from headrace.rollout.plan import advance, begin, judge, variant_for
from headrace.rollout.record import Observed, RolloutState
from headrace.rollout.run import observe
from headrace.serving.record import ERROR

START = 1_000 * DAY


class Flights(hr.Source):
    flight_id: hr.Column[str] = hr.row_id()
    sched_dep: hr.Column[hr.Instant] = hr.event_time()


ERRORS, LATENCY = hr.live("error_rate") > 0.001, hr.live("latency_p99") > "40ms"
PSI = hr.live("prediction_psi", against="champion") > 0.2
ROLLOUT = Rollout(
    unit=Flights.flight_id,
    steps=[hr.shadow("1d"), hr.canary(0.05, "1d", min_rows=40), hr.canary(0.25, "1d", min_rows=200)],
    abort_if=[ERRORS, LATENCY, PSI],
)
FINE = {str(ERRORS.quantity): Measurement("error_rate", 0.0, 900, low=0.0, high=0.001)}


def opening() -> RolloutState:
    return begin(ROLLOUT, rollout_id="r1", candidate="v2", champion="v1", now=START)


def test_a_good_candidate_passes_every_step_and_is_promoted() -> None:
    state, now, kinds = opening(), START, []
    while state.running:
        now += DAY
        state, decision = advance(state, ROLLOUT, now, Observed(300, FINE))
        kinds.append((decision.kind, state.status, state.share))
    assert kinds == [("next", "canary", 0.05), ("next", "canary", 0.25), ("promote", "promoted", 1.0)]
    assert state.ended == now == START + 3 * DAY


def test_a_step_waits_for_its_length_and_for_its_rows() -> None:
    state, early = advance(opening(), ROLLOUT, START + DAY - 1, Observed(5_000, FINE))
    assert (early.kind, early.reason) == ("hold", "1d have not passed")
    few, decision = advance(opening(), ROLLOUT, START + DAY, Observed(99, FINE))
    assert (decision.kind, decision.reason, few.step) == ("hold", "99 of 100 rows seen", 0)
    assert advance(state, ROLLOUT, START + DAY, Observed(5_000, FINE))[1].kind == "next"


def test_rows_are_counted_anew_in_each_step() -> None:
    state, _ = advance(opening(), ROLLOUT, START + DAY, Observed(900, FINE))
    assert (state.rows, state.step_started, state.step) == (0, START + DAY, 1)


@pytest.mark.parametrize("rows", [0, 7])
def test_a_candidate_of_which_nothing_is_heard_is_aborted(rows: int) -> None:
    state, _ = advance(opening(), ROLLOUT, START + HOUR, Observed(rows, {}))
    state, decision = advance(state, ROLLOUT, START + 2 * DAY - 1 + (HOUR if rows else 0), Observed(rows, {}))
    assert decision.kind == "hold"
    state, decision = advance(state, ROLLOUT, START + 2 * DAY + (HOUR if rows else 0), Observed(rows, {}))
    assert (decision.kind, state.status, state.share) == ("abort", "aborted", 0.0)
    assert decision.reason.startswith("no metrics: not one new row")


def test_a_step_whose_rules_cannot_be_measured_is_aborted() -> None:
    state, decision = advance(opening(), ROLLOUT, START + DAY, Observed(900, {}))
    assert decision.kind == "hold"
    assert "no rule could be measured yet" in decision.reason
    state, decision = advance(state, ROLLOUT, START + 2 * DAY, Observed(1_800, {}))
    assert (decision.kind, decision.reason[:10]) == ("abort", "no metrics")


def test_a_limit_that_holds_beyond_chance_aborts_at_once() -> None:
    bad = Measurement("error_rate", 0.05, 200, low=0.02, high=0.1)
    state, decision = advance(opening(), ROLLOUT, START + HOUR, Observed(200, {str(ERRORS.quantity): bad}))
    assert (decision.kind, state.status, state.ended) == ("abort", "aborted", START + HOUR)
    assert 'live("error_rate") > 0.001: 0.05 over 200 rows' in decision.reason
    assert decision.rules[0].verdict == "violated"


def test_what_is_in_doubt_extends_the_step_and_is_not_promoted() -> None:
    doubtful = {str(ERRORS.quantity): Measurement("error_rate", 0.0025, 400, low=0.00001, high=0.02)}
    state, decision = advance(opening(), ROLLOUT, START + DAY, Observed(400, doubtful))
    assert decision.kind == "hold"
    assert "needs more rows" in decision.reason
    cleared, decision = advance(state, ROLLOUT, START + 2 * DAY, Observed(900, FINE))
    assert (decision.kind, cleared.step) == ("next", 1)
    state, decision = advance(state, ROLLOUT, START + 3 * DAY, Observed(600, doubtful))
    assert (decision.kind, state.status) == ("abort", "aborted")
    assert decision.reason.startswith("still in doubt after 3d")


@pytest.mark.parametrize(
    ("limit", "measured", "verdict"),
    [
        (ERRORS, Measurement("", 0.01, 9, low=0.002, high=0.1), "violated"),
        (ERRORS, Measurement("", 0.01, 9, low=0.0005, high=0.1), "doubtful"),
        (ERRORS, Measurement("", 0.001, 9, low=0.0005, high=0.1), "fine"),
        (ERRORS, Measurement("", 0.01, 9), "doubtful"),
        (ERRORS, Measurement("", None, 0, "no rows"), "undefined"),
        (hr.live("prediction_mean") < 0.1, Measurement("", 0.05, 9, low=0.01, high=0.09), "violated"),
        (hr.live("prediction_mean") < 0.1, Measurement("", 0.05, 9, low=0.01, high=0.2), "doubtful"),
        (hr.live("prediction_mean").between(0, 1), Measurement("", 0.5, 9, low=0.1, high=1.2), "doubtful"),
    ],
)
def test_a_rule_is_judged_by_the_range_of_the_true_value(limit: Limit, measured: Measurement, verdict: str) -> None:
    assert judge(limit, Observed(9, {str(limit.quantity): measured})).verdict == verdict


def test_an_ended_rollout_cannot_be_advanced() -> None:
    with pytest.raises(DefinitionError, match="no step to advance"):
        advance(replace(opening(), status="aborted"), ROLLOUT, START, Observed(0))


def test_without_steps_the_candidate_takes_over_at_once() -> None:
    state = begin(Rollout(unit=Flights.flight_id, steps=[]), rollout_id="r", candidate="v1", champion=None, now=START)
    assert (state.status, state.running, variant_for("u", state)) == ("promoted", False, "candidate")


@given(st.text(max_size=20), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_a_unit_once_with_the_candidate_stays_with_it(unit: str, first: float, second: float) -> None:
    low, high = sorted((first, second))
    small = replace(opening(), status="canary", share=low)
    assert variant_for(unit, opening()) == "champion"
    if variant_for(unit, small) == "candidate":
        assert variant_for(unit, replace(small, share=high)) == "candidate"
    assert variant_for(unit, replace(small, status="promoted")) == "candidate"
    assert variant_for(unit, replace(small, status="aborted")) == "champion"


def test_the_canary_gets_its_share_and_each_rollout_draws_anew() -> None:
    canary = replace(opening(), status="canary", share=0.25)
    units = [f"unit {i}" for i in range(4_000)]
    drawn = {unit for unit in units if variant_for(unit, canary) == "candidate"}
    again = {unit for unit in units if variant_for(unit, replace(canary, id="r2")) == "candidate"}
    assert 900 < len(drawn) < 1_100  # 4.6 standard deviations around 1,000
    assert 180 < len(drawn & again) < 320


@given(st.integers(0, 3), st.lists(st.tuples(st.integers(0, 400), st.sampled_from([None, 0.0, 0.01])), max_size=30))
def test_a_rollout_only_moves_forward_and_survives_its_checkpoint(
    hours: int, seen: list[tuple[int, float | None]]
) -> None:
    state, now = opening(), START
    for rows, rate in seen:
        if not state.running:
            break
        now += (hours * 7 + 1) * HOUR
        measured = Measurement("error_rate", rate, rows, low=rate, high=rate)
        before = RolloutState.from_dict(json.loads(json.dumps(state.to_dict())))
        assert before == state
        total = before.rows + rows
        state, decision = advance(before, ROLLOUT, now, Observed(total, {str(ERRORS.quantity): measured}))
        json.dumps(decision.to_dict(), allow_nan=False)
        assert state.step >= before.step
        assert state.share >= before.share or state.status == "aborted"
        if rate:
            assert state.status == "aborted"
        if before.step == 2 and state.status == "promoted":
            assert total >= 200 and now >= before.step_started + DAY


def lead(
    seed: int, *, errors: float = 0.0, slower: float = 1.0, shifted: float = 0.0, per_day: int = 900
) -> RolloutState:
    """Lead a candidate that is the champion but for what is said through the rollout, on made-up requests."""
    rng, live = np.random.default_rng(seed), LiveWindow(keep=20 * DAY)
    state, now, unit = replace(opening(), id=f"r{seed}"), START, 0
    while state.running and now < START + 40 * DAY:
        rows = int(rng.poisson(per_day / 4))
        scores, latencies = rng.beta(1.2, 4, rows), rng.lognormal(9, 0.45, rows)
        failed = rng.random(rows) < errors
        for i, t in enumerate(np.sort(rng.integers(now, now + 6 * HOUR, rows)).tolist()):
            unit += 1
            row_id = str(unit).encode()
            other = float("nan") if failed[i] else min(float(scores[i]) + shifted, 1.0)
            if variant_for(str(unit), state) == "candidate":
                flags = ERROR if failed[i] else 0
                live.append(row_id, t, other, version="v2", flags=flags, latency=float(latencies[i] * slower))
            else:
                shadows = [("v2", other)] if state.status == "shadow" else []
                score = float(scores[i])
                live.append(row_id, t, score, version="v1", latency=float(latencies[i]), shadows=shadows)
        now += 6 * HOUR
        state, _ = advance(state, ROLLOUT, now, observe(live, ROLLOUT, state, now))
    return state


def test_the_champion_against_itself_is_not_aborted() -> None:
    assert [seed for seed in range(60) if lead(seed).status != "promoted"] == []
    assert [seed for seed in range(20) if lead(seed, per_day=250).status != "promoted"] == []


@pytest.mark.parametrize(
    ("fault", "latest"), [({"errors": 0.02}, 0), ({"slower": 3.0}, 1), ({"shifted": 0.15}, 0)], ids=str
)
def test_a_bad_candidate_is_stopped_without_labels(fault: dict[str, float], latest: int) -> None:
    ended = [lead(seed, **fault) for seed in range(10)]  # type: ignore[arg-type]
    assert all(state.status == "aborted" and state.step <= latest for state in ended)
