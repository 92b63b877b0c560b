"""Decide what is due: monitors to evaluate, retrainings to start; pure, so that a replay decides as production does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from headrace.core.limits import Limit
from headrace.core.time import DAY, Instant, format_duration
from headrace.monitoring.definition import Every, LiveQuantity, Monitor, Trigger, UnusualDrift

COOL_DOWN = 7 * DAY
MAX_BACKOFF = 8


@dataclass(frozen=True)
class MonitoringState:
    """Hold what due work follows from.

    Instants are microseconds UTC. `trained` is when the last training that ended well began, `attempted` when the last
    one began at all, `failures` how many have failed since one ended well, `labels` how many labels have matured since
    `trained`. `firing` holds the monitors whose condition held when last evaluated, and what was found. `held` are the
    rules that wait and have been reported as waiting.
    """

    evaluated: Mapping[str, int] = field(default_factory=dict)
    firing: Mapping[str, str] = field(default_factory=dict)
    trained: int | None = None
    attempted: int | None = None
    in_flight: bool = False
    failures: int = 0
    labels: int = 0
    held: tuple[str, ...] = ()

    def evaluated_at(self, key: str, now: int, fires: str | None) -> MonitoringState:
        """Return the state after a monitor was evaluated; `fires` says what holds, None that nothing does."""
        firing = {name: text for name, text in self.firing.items() if name != key}
        if fires is not None:
            firing[key] = fires
        return replace(self, evaluated={**self.evaluated, key: now}, firing=firing)

    def retraining_began(self, now: int) -> MonitoringState:
        """Return the state after a retraining began."""
        return replace(self, attempted=now, in_flight=True, held=())

    def retraining_ended(self, *, trained: bool) -> MonitoringState:
        """Return the state after it ended; a training that failed counts for the pause before the next attempt."""
        if not trained:
            return replace(self, in_flight=False, failures=self.failures + 1)
        return replace(self, in_flight=False, failures=0, trained=self.attempted, labels=0, firing={})

    def labels_matured(self, count: int) -> MonitoringState:
        """Return the state with that many more labels matured."""
        return replace(self, labels=self.labels + count)

    def reported(self, held: Held) -> MonitoringState:
        """Return the state after rules were reported as waiting."""
        return replace(self, held=held.rules)

    def to_dict(self) -> dict[str, Any]:
        """Return the state as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Self:
        """Return the state that `to_dict` wrote, also after a round trip through JSON."""
        return cls(**{**body, "held": tuple(body["held"])})


@dataclass(frozen=True)
class Evaluate:
    """Ask for a monitor to be evaluated."""

    key: str
    monitor: Monitor
    why: str


@dataclass(frozen=True)
class Cause:
    """Say what asks for a retraining: the rule as it is written, and what was found."""

    rule: str
    found: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.found}"


@dataclass(frozen=True)
class Retrain:
    """Ask for a retraining, with every cause that holds now."""

    causes: tuple[Cause, ...]


@dataclass(frozen=True)
class Held:
    """Say that causes for a retraining hold, and why it waits; reported once until other rules ask."""

    causes: tuple[Cause, ...]
    why: str

    @property
    def rules(self) -> tuple[str, ...]:
        """Return the rules that ask."""
        return tuple(cause.rule for cause in self.causes)


Action = Evaluate | Retrain | Held


def key_of(monitor: Monitor) -> str:
    """Return the name under which a monitor's state and incidents are kept: its condition as it is written."""
    return str(monitor.condition)


def due(
    monitors: Sequence[Monitor],
    triggers: Sequence[Trigger],
    state: MonitoringState,
    now: int,
    *,
    cool_down: int = COOL_DOWN,
) -> list[Action]:
    """Return what is to be done now, monitors first; evaluate them, then ask again for the retrainings they cause.

    A monitor is due once in each of its periods, which are counted from 1970 (days begin at midnight UTC), so that a late
    tick does not shift the next. A retraining waits while one is under way, and after an attempt for the cool-down: at
    least until the window of a monitor that asks for it no longer reaches back before the attempt, and after the second
    failure in a row twice as long, after the third four times, then eight times. The first training is the caller's.
    """
    actions: list[Action] = [
        Evaluate(key_of(monitor), monitor, f"every {format_duration(monitor.every)}")
        for monitor in monitors
        if is_due(state.evaluated.get(key_of(monitor)), monitor.every, now)
    ]
    scheduled = [Cause(str(trigger), found) for trigger in triggers if (found := _holds(trigger, state, now))]
    asking = [monitor for monitor in monitors if monitor.retrains and key_of(monitor) in state.firing]
    causes = (*scheduled, *(Cause(key_of(monitor), state.firing[key_of(monitor)]) for monitor in asking))
    if not causes:
        return actions
    # What a schedule asks for does not wait for any monitor's window to fill anew.
    reach = 0 if scheduled else min(window_of(monitor) for monitor in asking)
    wait = _wait(state, now, max(cool_down, reach))
    if wait is None:
        return [*actions, Retrain(causes)]
    held = Held(causes, wait)
    return actions if held.rules == state.held else [*actions, held]


def is_due(last: int | None, period: int, now: int) -> bool:
    """Tell whether a new period has begun since something was last done."""
    return last is None or now // period > last // period


def window_of(monitor: Monitor) -> int:
    """Return how far back a monitor's condition looks, in microseconds."""
    condition = monitor.condition
    if isinstance(condition, UnusualDrift):
        return condition.windows * condition.n
    if isinstance(condition, Limit) and isinstance(condition.quantity, LiveQuantity):
        return (condition.quantity.over or DAY) + (condition.quantity.matured or 0)
    return 0


def _holds(trigger: Trigger, state: MonitoringState, now: int) -> str | None:
    if isinstance(trigger, Every):
        if state.trained is None or now - state.trained < trigger.period:
            return None
        return f"last trained {Instant(state.trained).day()}"
    return f"{state.labels} labels since the last training" if state.labels >= trigger.count else None


def _wait(state: MonitoringState, now: int, cool_down: int) -> str | None:
    if state.in_flight:
        return "a retraining is under way"
    if state.attempted is None:
        return None
    pause = cool_down * min(2 ** max(state.failures - 1, 0), MAX_BACKOFF)
    if now - state.attempted >= pause:
        return None
    failed = f" after {state.failures} failed" if state.failures else ""
    return f"cool-down until {Instant(state.attempted + pause).isoformat()}{failed}"
