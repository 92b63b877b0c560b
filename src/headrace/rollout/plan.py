"""Decide how a rollout goes on: a pure function of where it stands, the time, and what was measured."""

from __future__ import annotations

from dataclasses import replace

from headrace.core.errors import DefinitionError
from headrace.core.identity import unit_interval
from headrace.core.limits import Limit
from headrace.core.time import Instant, format_duration
from headrace.monitoring.record import Measurement
from headrace.rollout.definition import Rollout, Step
from headrace.rollout.record import Decision, DecisionKind, Observed, RolloutState, RuleResult, Variant

SILENCE = 2  # a step is given up after this many times its length without a new row
EXTENSION = 3  # a step whose rules are in doubt ends, one way or the other, after this many times its length and rows


def begin(rollout: Rollout, *, rollout_id: str, candidate: str, champion: str | None, now: int) -> RolloutState:
    """Return the state at a rollout's beginning; without steps the candidate is promoted at once.

    `rollout_id` salts the assignment of units, so that each rollout draws its canary anew.
    """
    opening = RolloutState(rollout_id, candidate, champion, "promoted", 0, 1.0, now, now, 0, now, ended=now)
    return _enter(opening, rollout, 0, now) if rollout.steps else opening


def advance(state: RolloutState, rollout: Rollout, now: int, observed: Observed) -> tuple[RolloutState, Decision]:
    """Return the next state and why: abort, go on with the step, enter the next one, or promote.

    - *Abort* when a rule of `abort_if` holds beyond chance: for the whole range that the true value may have, given the
      rows seen. Or when for twice the step's length no new row was seen, or no rule could be measured. Or when a limit
      holds for what was measured, without certainty, and the step has lasted three times its length and has seen three
      times `min_rows`: what stays in doubt is not promoted.
    - *Next* (after the last step: *promote*) when the step's length has passed, it has seen `min_rows`, and no rule is
      in doubt; if there are rules, at least one must have been measured.
    - Else *hold*.

    Raises:
        DefinitionError: the rollout has ended, or its definition no longer has this step.
    """
    step = _current(state, rollout)
    fresh = observed.rows > state.rows
    state = replace(state, rows=observed.rows, seen=now if fresh else state.seen)
    rules = tuple(judge(limit, observed) for limit in rollout.abort_if)
    kind, reason = _decide(state, step, now, rules)
    decision = Decision(kind, reason, str(step), observed.rows, rules)
    if kind == "abort":
        return replace(state, status="aborted", share=0.0, ended=now), decision
    if kind == "next" and state.step + 1 == len(rollout.steps):
        return replace(state, status="promoted", share=1.0, ended=now), replace(decision, kind="promote")
    if kind == "next":
        return _enter(state, rollout, state.step + 1, now), decision
    return state, decision


def judge(limit: Limit, observed: Observed) -> RuleResult:
    """Judge an abort rule by what was measured, and by the range that the true value may have."""
    name = str(limit.quantity)
    found = observed.measurements.get(name, Measurement(name, None, 0, "not measured"))
    if found.value is None:
        return RuleResult(str(limit), "undefined", found.to_dict())
    if not limit.holds(found.value):
        return RuleResult(str(limit), "fine", found.to_dict())
    # A percentile of few rows has no upper end; a rule that asks for an excess needs the lower one only.
    ends = {">": (found.low,), ">=": (found.low,), "<": (found.high,), "<=": (found.high,)}
    decisive = ends.get(limit.op, (found.low, found.high))
    beyond = all(end is not None and limit.holds(end) for end in decisive)
    return RuleResult(str(limit), "violated" if beyond else "doubtful", found.to_dict())


def variant_for(unit: str, state: RolloutState, salt: str | None = None) -> Variant:
    """Return which variant answers a unit: always the same one within a step, and once the candidate, always it.

    The unit's place in [0, 1) is fixed by the rollout's salt (its id unless given), so a larger share only adds units.

    >>> state = RolloutState("r1", "v2", "v1", "canary", 1, 0.05, 0, 0, 0, 0)
    >>> sum(variant_for(f"unit {i}", state) == "candidate" for i in range(10_000))
    503
    """
    if state.status == "promoted":
        return "candidate"
    chosen = state.status == "canary" and unit_interval(salt or state.id, unit) < state.share
    return "candidate" if chosen else "champion"


def _current(state: RolloutState, rollout: Rollout) -> Step:
    if not state.running or state.step >= len(rollout.steps):
        raise DefinitionError(
            "this rollout has no step to advance",
            where=rollout.location,
            got=f"{state.id}: {state.status}, step {state.step + 1} of {len(rollout.steps)}",
            expected="a running rollout with its own definition",
            next_step="begin a new rollout",
        )
    return rollout.steps[state.step]


def _enter(state: RolloutState, rollout: Rollout, index: int, now: int) -> RolloutState:
    step = rollout.steps[index]
    share = step.share if step.kind == "canary" else 0.0
    return replace(state, status=step.kind, step=index, share=share, step_started=now, rows=0, seen=now, ended=None)


def _decide(state: RolloutState, step: Step, now: int, rules: tuple[RuleResult, ...]) -> tuple[DecisionKind, str]:
    violated = [rule for rule in rules if rule.verdict == "violated"]
    if violated:
        return "abort", "; ".join(map(_named, violated))
    if now - state.seen >= SILENCE * step.length:
        since = Instant(state.seen).isoformat()
        return "abort", f"no metrics: not one new row of the candidate since {since}, {SILENCE} times {step}"
    doubtful = [rule for rule in rules if rule.verdict == "doubtful"]
    unmeasured = bool(rules) and all(rule.verdict == "undefined" for rule in rules)
    elapsed = now - state.step_started
    if unmeasured and elapsed >= SILENCE * step.length and state.rows >= step.min_rows:
        return "abort", f"no metrics after {format_duration(elapsed)}: " + "; ".join(map(_named, rules))
    if doubtful and elapsed >= EXTENSION * step.length and state.rows >= EXTENSION * step.min_rows:
        return "abort", f"still in doubt after {format_duration(elapsed)}: " + "; ".join(map(_named, doubtful))
    if elapsed < step.length:
        return "hold", f"{format_duration(step.length)} have not passed"
    if state.rows < step.min_rows:
        return "hold", f"{state.rows} of {step.min_rows} rows seen"
    if doubtful:
        return "hold", "in doubt, needs more rows: " + "; ".join(map(_named, doubtful))
    if unmeasured:
        return "hold", "no rule could be measured yet: " + "; ".join(map(_named, rules))
    return "next", f"{state.rows} rows in {format_duration(elapsed)}, no limit of abort_if holds"


def _named(rule: RuleResult) -> str:
    return f"{rule.rule}: {_shown(rule)}"


def _shown(rule: RuleResult) -> str:
    measured = rule.measured
    if "value" not in measured:
        return str(measured.get("why", "not measured"))
    bounds = [f"{name} {measured[name]:.4g}" for name in ("low", "high") if name in measured]
    return f"{measured['value']:.4g} over {measured['n']} rows" + (f" ({', '.join(bounds)})" if bounds else "")
