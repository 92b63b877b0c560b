"""Hold what monitoring finds: measurements, label delays, drift, incidents, alerts; all of it plain JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self


@dataclass(frozen=True)
class Measurement:
    """Hold a live quantity's value over `n` rows; None with the reason where it cannot be measured.

    `low` and `high` bound the true value with the window's confidence; None where no interval is known. `noise` is what
    equal things would show on average (a PSI is never 0), `basis` says over what it was measured.
    """

    name: str
    value: float | None
    n: int
    why: str | None = None
    low: float | None = None
    high: float | None = None
    noise: float | None = None
    basis: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the measurement as plain JSON values, what is not known left out."""
        return {name: value for name, value in asdict(self).items() if value is not None and value != ""}


@dataclass(frozen=True)
class LabelDelays:
    """Tell how long labels took after the prediction: of `rows` whose maturity has passed, in microseconds.

    `late` arrived only after the maturity, `missing` not at all so far. `quantiles` are at 5, 25, 50, 75, 95 and 99 %
    of the labels that arrived; `counts` lie between `edges`, the first and last bin open.
    """

    rows: int
    arrived: int
    late: int
    missing: int
    quantiles: tuple[int, ...]
    edges: tuple[int, ...]
    counts: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the delays as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class ColumnWindow:
    """Hold one feature's drift in one window: its distances from the training profile, and what they are made of."""

    psi: float
    noise: float
    p_value: float
    distances: Mapping[str, float]
    null_share: float
    new_categories: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Self:
        """Return what `dataclasses.asdict` wrote, also after a round trip through JSON."""
        return cls(**{**body, "new_categories": tuple(body["new_categories"])})


@dataclass(frozen=True)
class DriftWindow:
    """Hold one window: when it began, its rows, and its drift by feature; a window with too few rows has none."""

    start: int
    rows: int
    columns: Mapping[str, ColumnWindow]

    def to_dict(self) -> dict[str, Any]:
        """Return the window as plain JSON values; its columns' own values are not copied: 90 windows a day are written."""
        columns = {name: dict(vars(column)) for name, column in self.columns.items()}
        return {"start": self.start, "rows": self.rows, "columns": columns}

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Self:
        """Return the window that `to_dict` wrote."""
        columns = {name: ColumnWindow.from_dict(column) for name, column in body["columns"].items()}
        return cls(body["start"], body["rows"], columns)


@dataclass(frozen=True)
class FeatureFinding:
    """Say why a feature is unusual: the distance, how many of the newest windows lie above its own limit, and which."""

    feature: str
    distance: str
    flagged: int
    judged: int
    centre: float
    limit: float
    recent: tuple[float, ...]


@dataclass(frozen=True)
class DriftVerdict:
    """Tell which features are unusual for their own history; `undecided` names those without enough of it."""

    unusual: bool
    findings: tuple[FeatureFinding, ...]
    judged: int
    undecided: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Incident:
    """Hold something wrong, from its opening to its closing; `key` names what is watched, `id` this one occasion.

    `evaluations` counts how often it was seen to hold, `flaps` how often it came back within the cool-down.
    """

    id: str
    key: str
    what: str
    opened: int
    last_held: int
    channels: tuple[str, ...]
    evaluations: int = 1
    quiet: int = 0
    flaps: int = 0
    closed: int | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the incident as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Self:
        """Return the incident that `to_dict` wrote."""
        return cls(**{**body, "channels": tuple(body["channels"])})


@dataclass(frozen=True)
class Alert:
    """Hold one message to one channel; its id is the same however often its sending is tried."""

    id: str
    channel: str
    event: Literal["opened", "closed"]
    key: str
    at: int
    what: str
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the alert as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Self:
        """Return the alert that `to_dict` wrote."""
        return cls(**body)
