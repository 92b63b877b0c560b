"""Hold what a replay's report shows, as plain values: whoever replays fills it in, the report only draws it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

# Instants are microseconds UTC throughout; `None` is what is not known, never 0.


@dataclass(frozen=True)
class Headline:
    """Hold one of the figures at the top: what it is, the figure as text, and a short note below it."""

    label: str
    value: str
    note: str = ""
    tone: Literal["plain", "good", "bad"] = "plain"


@dataclass(frozen=True)
class Week:
    """Hold one period's metric of the managed system and of the frozen model, on the same `n` labelled rows."""

    start: int
    managed: float | None
    frozen: float | None
    n: int

    @property
    def gap(self) -> float | None:
        """Return managed less frozen; None where one of them is unknown."""
        return None if self.managed is None or self.frozen is None else self.managed - self.frozen


@dataclass(frozen=True)
class TrafficDay:
    """Hold how many requests each version answered on a day; "" stands for the fallback without a model."""

    day: int
    answered: Mapping[str, int]


@dataclass(frozen=True)
class Version:
    """Describe a version: when its training began and why, its rows, its test metric, and what became of it."""

    name: str
    trained: int
    why: str
    rows: int
    metric: float | None
    outcome: str


@dataclass(frozen=True)
class RolloutPart:
    """Hold one step of a version's rollout: `kind` is shadow, canary, promoted or aborted; `end` None while it lasts."""

    version: str
    kind: Literal["shadow", "canary", "promoted", "aborted"]
    label: str
    start: int
    end: int | None
    reason: str = ""


@dataclass(frozen=True)
class DriftDay:
    """Hold how many features were unusual on a day, of how many, and which was furthest out."""

    day: int
    unusual: int
    judged: int
    worst: str = ""


@dataclass(frozen=True)
class IncidentRow:
    """Hold an incident; `fault` names the planted fault that caused it, if one did; `closed` is None while open."""

    key: str
    what: str
    opened: int
    closed: int | None
    flaps: int = 0
    fault: str = ""


@dataclass(frozen=True)
class GateRow:
    """Hold one gate's decision about one version; `measured` and `threshold` are texts in the gate's own unit."""

    version: str
    at: int
    gate: str
    measured: str
    threshold: str
    passed: bool
    reason: str = ""


@dataclass(frozen=True)
class Delays:
    """Hold how long labels took: counts between edges in microseconds, the first and last bin open."""

    edges: tuple[int, ...]
    counts: tuple[int, ...]
    matured: int
    rows: int
    late: int
    missing: int
    median: int | None


@dataclass(frozen=True)
class Retraining:
    """Hold one retraining: when, for which causes, the version that came of it ("" for none), and how it ended."""

    at: int
    causes: tuple[str, ...]
    version: str
    outcome: str


@dataclass(frozen=True)
class PlantedFault:
    """Hold a fault that was planted on purpose: what it was and what the system did about it."""

    name: str
    day: int
    what: str
    response: str = ""


@dataclass(frozen=True)
class ReportData:
    """Hold everything a report shows. `metric` names the metric of `weeks`; `frozen_since` is when it was frozen."""

    title: str
    start: int
    end: int
    metric: str
    frozen_since: str
    headlines: tuple[Headline, ...] = ()
    weeks: tuple[Week, ...] = ()
    traffic: tuple[TrafficDay, ...] = ()
    versions: tuple[Version, ...] = ()
    rollouts: tuple[RolloutPart, ...] = ()
    drift: tuple[DriftDay, ...] = ()
    incidents: tuple[IncidentRow, ...] = ()
    gates: tuple[GateRow, ...] = ()
    delays: Delays | None = None
    retrainings: tuple[Retraining, ...] = ()
    faults: tuple[PlantedFault, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)
    reproduce: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return asdict(self)
