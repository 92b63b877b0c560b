"""Hold what is kept of a training run: enough to say what was done, with what, and to do it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from headrace.core.identity import content_hash
from headrace.storage.ledger.protocol import Entry

KIND = "run"
EXCLUDED_FROM_DIGEST = ("code", "environment", "hardware", "measured")


@dataclass(frozen=True)
class Trial:
    """Hold one finished trial of a search; a search goes on from a list of these."""

    number: int
    params: Mapping[str, Any]
    distributions: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Facts:
    """Hold what surrounds a run: the code's commit and local changes, versions, the machine."""

    code: Mapping[str, str | None] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    hardware: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunRecord:
    """Describe a run completely, as plain JSON.

    `started` and `ended` are the clock's, microseconds UTC; `metrics` and `baseline` hold each part's metrics
    (`metrics["test"]["auc"]`); `importance` is the rise of the loss on validation rows when a feature is shuffled;
    `warnings` names suspected leaks. `measured` holds measured times and, like everything that differs between two
    machines, stands outside `digest`.
    """

    id: str
    model: str
    status: str
    started: int
    ended: int
    definition: str
    data: Mapping[str, Any]
    split: Mapping[str, Any]
    seed: int
    params: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, float | None]]
    baseline: Mapping[str, Any]
    importance: Mapping[str, float]
    warnings: Sequence[str]
    trials: Sequence[Mapping[str, Any]]
    manifest: str | None
    error: Mapping[str, Any] | None = None
    code: Mapping[str, str | None] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    hardware: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Read a record back."""
        return cls(**body)

    @property
    def digest(self) -> str:
        """Return the hash of what the run determined: equal for a repeated run, wherever it ran."""
        body = self.to_json()
        return content_hash({name: value for name, value in body.items() if name not in EXCLUDED_FROM_DIGEST})

    def entry(self) -> Entry:
        """Return the run as one ledger record; the trials' values and the metrics are its series."""
        series = {
            f"{part}/{name}": [(0, value)]
            for part, names in self.metrics.items()
            for name, value in names.items()
            if value is not None
        }
        points = [(int(trial["number"]), float(trial["value"])) for trial in self.trials]
        return Entry(KIND, self.id, self.to_json(), series=series | ({"search": points} if points else {}))
