"""Evaluate the monitors that are due, keep incidents, and say which retrainings shall start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from headrace.core.errors import DefinitionError
from headrace.core.limits import Limit
from headrace.core.time import format_duration
from headrace.evaluation.metrics import METRICS
from headrace.monitoring.definition import LiveQuantity, Monitor, Trigger, UnusualDrift
from headrace.monitoring.drift import DriftWatch
from headrace.monitoring.incidents import IncidentBook, Incidents, Observation
from headrace.monitoring.performance import EVERYTHING, LiveWindow, Scope
from headrace.monitoring.plan import COOL_DOWN, Evaluate, Held, MonitoringState, Retrain, due, key_of
from headrace.monitoring.record import DriftVerdict
from headrace.storage.ledger.protocol import Entry

LEAST_ROWS = 50  # below this a monitor's limit is not judged
NAMED_FEATURES = 5


@dataclass(frozen=True)
class Evaluated:
    """Hold what a monitor found; `holds` is None where it could not be decided, `evidence` every number."""

    key: str
    holds: bool | None
    found: str
    evidence: Mapping[str, Any]


def evaluate(
    monitor: Monitor,
    now: int,
    *,
    live: LiveWindow,
    drift: DriftWatch | None,
    scope: Scope = EVERYTHING,
) -> Evaluated:
    """Evaluate a monitor's condition at an instant, over `scope`'s version and beginning."""
    key, condition = key_of(monitor), monitor.condition
    if isinstance(condition, UnusualDrift):
        if drift is None:
            return Evaluated(key, None, "no training profile yet", {})
        verdict = drift.verdict(k=condition.k, n=condition.n)
        return Evaluated(key, verdict.unusual, _drift_text(verdict), verdict.to_dict())
    if not isinstance(condition.quantity, LiveQuantity):
        raise DefinitionError(
            "a monitor over something that is not live",
            where=monitor.location,
            got=condition.quantity,
            expected='hr.live("auc", over="14d", matured="2d")',
            next_step="use hr.metric in gates and hr.live in monitors",
        )
    return _evaluate_limit(key, condition, condition.quantity, now, live, scope)


def _evaluate_limit(
    key: str, limit: Limit, quantity: LiveQuantity, now: int, live: LiveWindow, scope: Scope
) -> Evaluated:
    measured = live.measure(quantity, now, scope)
    evidence = measured.to_dict()
    if measured.value is None:
        return Evaluated(key, None, measured.why or "not measured", evidence)
    rows = "labelled rows" if quantity.name in METRICS else "rows"
    if measured.n < LEAST_ROWS:
        return Evaluated(key, None, f"{measured.n} {rows}, {LEAST_ROWS} are needed", evidence)
    shown = format_duration(round(measured.value)) if quantity.unit == "duration" else f"{measured.value:.4g}"
    return Evaluated(key, limit.holds(measured.value), f"{shown} over {measured.n} {rows}", evidence)


def _drift_text(verdict: DriftVerdict) -> str:
    if not verdict.findings:
        return f"0 of {verdict.judged} features"
    names = list(dict.fromkeys(finding.feature for finding in verdict.findings))
    more = f" and {len(names) - NAMED_FEATURES} more" if len(names) > NAMED_FEATURES else ""
    worst = verdict.findings[0]
    figures = f"{worst.distance} {worst.recent[-1]:.3g} against a limit of {worst.limit:.3g}"
    return f"{len(names)} of {verdict.judged} features: {', '.join(names[:NAMED_FEATURES])}{more}; {figures}"


class Monitoring:
    """Drive the monitors of one pipeline; its owner calls `tick` as time passes and starts what it asks for.

    What was served and the drift windows are kept by their own parts and shared with the caller.
    """

    def __init__(
        self,
        monitors: Sequence[Monitor],
        triggers: Sequence[Trigger],
        *,
        pipeline: str,
        live: LiveWindow,
        incidents: Incidents,
        drift: DriftWatch | None = None,
        state: MonitoringState | None = None,
        cool_down: int = COOL_DOWN,
    ) -> None:
        self.monitors, self.triggers, self.pipeline = tuple(monitors), tuple(triggers), pipeline
        self.live, self.incidents, self.drift, self.cool_down = live, incidents, drift, cool_down
        self.state = state if state is not None else MonitoringState()

    def tick(self, now: int, scope: Scope = EVERYTHING) -> list[Retrain | Held]:
        """Evaluate what is due at `now`, write one ledger record for all of it, keep incidents, and return what follows.

        The caller starts a `Retrain` and says so with `state.retraining_began`; a `Held` was reported here.
        """
        asked = due(self.monitors, self.triggers, self.state, now, cool_down=self.cool_down)
        monitors = [action.monitor for action in asked if isinstance(action, Evaluate)]
        evaluated = [(m, evaluate(m, now, live=self.live, drift=self.drift, scope=scope)) for m in monitors]
        if evaluated:
            # Recorded first: if the ledger is gone this raises, and the next tick evaluates again.
            self._record(evaluated, now)
        for _, found in evaluated:
            # What cannot be decided asks for no retraining, but leaves an open incident open.
            self.state = self.state.evaluated_at(found.key, now, found.found if found.holds else None)
        follows = [
            action
            for action in due(self.monitors, self.triggers, self.state, now, cool_down=self.cool_down)
            if not isinstance(action, Evaluate)
        ]
        for action in follows:
            if isinstance(action, Held):
                self._report(action)
        return follows

    def _record(self, evaluated: Sequence[tuple[Monitor, Evaluated]], now: int) -> None:
        body = {found.key: {"holds": found.holds, "found": found.found, **found.evidence} for _, found in evaluated}
        seen = [
            Observation(found.key, found.holds, found.found, monitor.channels, found.evidence)
            for monitor, found in evaluated
        ]
        self.incidents.observe(
            seen, now, also=[Entry("monitors.evaluated", self.pipeline, {"at": now, "monitors": body})]
        )

    def _report(self, held: Held) -> None:
        body = {"causes": [asdict(cause) for cause in held.causes], "why": held.why}
        self.incidents.append([Entry("retrain.held", self.pipeline, body)])
        self.state = self.state.reported(held)

    def dump(self) -> dict[str, Any]:
        """Return the state of monitors, retraining and incidents as plain JSON values."""
        return {"state": self.state.to_dict(), "incidents": self.incidents.book.to_dict()}

    def restore(self, body: Mapping[str, Any]) -> None:
        """Take over what `dump` wrote."""
        self.state = MonitoringState.from_dict(body["state"])
        self.incidents.book = IncidentBook.from_dict(body["incidents"])
