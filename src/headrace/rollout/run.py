"""Collect what a rollout's step has shown so far from what was served."""

from __future__ import annotations

from collections.abc import Mapping

from headrace.monitoring.definition import LiveQuantity
from headrace.monitoring.performance import LiveWindow, Scope
from headrace.rollout.definition import Rollout
from headrace.rollout.record import Observed, RolloutState
from headrace.stats.profiles import Profile


def observe(
    live: LiveWindow, rollout: Rollout, state: RolloutState, now: int, *, training: Profile | None = None
) -> Observed:
    """Measure every abort rule for the candidate since the step began.

    A rule against "champion" compares with the champion's scores of the same time: in the shadow of the same rows.
    `training` is the profile of the scores in training, for rules that compare with nothing else.
    """
    against: Mapping[str, str | Profile | None] = {"champion": state.champion, "training": training}
    known = {name: other for name, other in against.items() if other is not None}
    scope = Scope(state.candidate, state.step_started, known)
    quantities = [rule.quantity for rule in rollout.abort_if if isinstance(rule.quantity, LiveQuantity)]
    measurements = {str(quantity): live.measure(quantity, now, scope) for quantity in quantities}
    return Observed(live.rows_of(state.candidate, since=state.step_started, now=now), measurements)
