"""Hold where a rollout stands and what was decided; all of it plain JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from headrace.monitoring.record import Measurement

Status = Literal["shadow", "canary", "promoted", "aborted"]
Variant = Literal["champion", "candidate"]
DecisionKind = Literal["hold", "next", "promote", "abort"]
RUNNING: tuple[Status, ...] = ("shadow", "canary")


@dataclass(frozen=True)
class RolloutState:
    """Hold where a rollout stands.

    `share` of the units get the candidate's answer; 0 in the shadow. `rows` were seen in this step, the last new ones at
    `seen`. Instants are microseconds UTC.
    """

    id: str
    candidate: str
    champion: str | None
    status: Status
    step: int
    share: float
    started: int
    step_started: int
    rows: int
    seen: int
    ended: int | None = None

    @property
    def running(self) -> bool:
        """Tell whether the rollout still goes on."""
        return self.status in RUNNING

    def to_dict(self) -> dict[str, Any]:
        """Return the state as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Self:
        """Return the state that `to_dict` wrote."""
        return cls(**body)


@dataclass(frozen=True)
class Observed:
    """Hold what a step has shown so far: the candidate's rows in it, and each rule's measurement by `str(quantity)`."""

    rows: int
    measurements: Mapping[str, Measurement] = field(default_factory=dict)


@dataclass(frozen=True)
class RuleResult:
    """Say how an abort rule stands.

    `fine`: the limit does not hold. `doubtful`: it holds for what was measured, but chance could have done that.
    `violated`: it holds for everything that the true value may be. `undefined`: it could not be measured yet.
    """

    rule: str
    verdict: Literal["fine", "doubtful", "violated", "undefined"]
    measured: Mapping[str, Any]


@dataclass(frozen=True)
class Decision:
    """Say what happens next and why, with every rule's numbers."""

    kind: DecisionKind
    reason: str
    step: str
    rows: int
    rules: tuple[RuleResult, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the decision as plain JSON values."""
        return asdict(self)
