"""What is due: each monitor once a period, and no retraining that repeats what the last one could not mend."""

from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

import headrace as hr
from headrace.core.time import DAY, HOUR
from headrace.monitoring.definition import Every, NewLabels
from headrace.monitoring.plan import Evaluate, Held, MonitoringState, Retrain, due, key_of

NOW = 1_000 * DAY
AUC = hr.when(hr.live("auc", over="14d", matured="2d") < 0.68, every="1d").alert("ops").retrain()
ERRORS = hr.when(hr.live("error_rate") > 0.01, every="1h").retrain()
QUIET = hr.when(hr.live("error_rate", over="1d") > 0.02, every="1d")
TRIGGERS: list[Every | NewLabels] = [hr.every("45d"), hr.new_labels(40_000)]


def firing(monitor: object, state: MonitoringState, now: int = NOW) -> MonitoringState:
    return state.evaluated_at(key_of(monitor), now, "0.61 over 900 labelled rows")  # type: ignore[arg-type]


def test_a_monitor_is_due_once_in_each_of_its_periods() -> None:
    state = MonitoringState()
    (action,) = due([AUC], [], state, NOW)
    assert isinstance(action, Evaluate) and action.key == key_of(AUC)
    state = state.evaluated_at(key_of(AUC), NOW + 5, None)
    assert due([AUC], [], state, NOW + DAY - 1) == []
    # A tick that came late yesterday does not shift today's.
    assert isinstance(due([AUC], [], state, NOW + DAY)[0], Evaluate)


def test_a_retraining_names_every_cause() -> None:
    state = firing(AUC, MonitoringState(trained=NOW - 45 * DAY, attempted=NOW - 45 * DAY, labels=40_001))
    found = due([AUC, QUIET], TRIGGERS, state, NOW)[-1]
    assert isinstance(found, Retrain)
    assert [str(cause) for cause in found.causes] == [
        'every("45d"): last trained 1972-08-13',
        "new_labels(40000): 40001 labels since the last training",
        'live("auc", over="14d", matured="2d") < 0.68: 0.61 over 900 labelled rows',
    ]


def test_nothing_is_retrained_without_a_cause() -> None:
    state = MonitoringState(trained=NOW - 44 * DAY, attempted=NOW - 44 * DAY, labels=39_999)
    state = firing(QUIET, state.evaluated_at(key_of(AUC), NOW, None))
    assert due([AUC, QUIET], TRIGGERS, state, NOW) == []


def test_a_monitor_waits_until_its_window_no_longer_reaches_before_the_last_training() -> None:
    state = firing(AUC, MonitoringState().retraining_began(NOW - 16 * DAY).retraining_ended(trained=True))
    assert isinstance(due([AUC], [], state, NOW)[0], Retrain)
    (held,) = due([AUC], [], state, NOW - 1)
    assert isinstance(held, Held)
    assert held.why == "cool-down until 1972-09-27T00:00:00Z"
    assert due([AUC], [], state.reported(held), NOW - 1) == []


def test_a_retraining_under_way_holds_the_next() -> None:
    state = firing(AUC, MonitoringState().retraining_began(NOW - 90 * DAY))
    (held,) = due([AUC], [], state, NOW)
    assert isinstance(held, Held) and held.why == "a retraining is under way"


def test_a_failing_retraining_pauses_longer_each_time() -> None:
    state, now, begun = MonitoringState(trained=NOW, attempted=NOW), NOW + 45 * DAY, []
    while now < NOW + 400 * DAY:
        if any(isinstance(action, Retrain) for action in due([], TRIGGERS, state, now)):
            begun.append((now - NOW) // DAY)
            state = state.retraining_began(now).retraining_ended(trained=False)
        now += DAY
    assert begun == [45, 52, 66, 94, 150, 206, 262, 318, 374]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=400))
def test_a_flapping_monitor_starts_at_most_one_retraining_in_a_cool_down(hours: list[tuple[bool, bool]]) -> None:
    state, begun = MonitoringState(), []
    for i, (holds, ends_well) in enumerate(hours):
        now = NOW + i * HOUR
        state = state.evaluated_at(key_of(ERRORS), now, "0.5" if holds else None)
        if any(isinstance(action, Retrain) for action in due([ERRORS], [], state, now, cool_down=2 * DAY)):
            begun.append(now)
            state = state.retraining_began(now).retraining_ended(trained=ends_well)
        assert MonitoringState.from_dict(json.loads(json.dumps(state.to_dict()))) == state
    assert all(second - first >= 2 * DAY for first, second in pairwise(begun))
    assert len(begun) >= any(holds for holds, _ in hours)


def test_a_training_that_ended_well_counts_labels_and_causes_anew() -> None:
    state = firing(AUC, MonitoringState().labels_matured(50_000)).retraining_began(NOW).retraining_ended(trained=True)
    assert (state.labels, state.trained, dict(state.firing)) == (0, NOW, {})
