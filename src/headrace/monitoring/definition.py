"""Declare what is watched in production, and what shall happen."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from headrace.core.errors import DefinitionError, did_you_mean
from headrace.core.limits import Limit, Quantity
from headrace.core.location import user_location
from headrace.core.time import duration, format_duration
from headrace.evaluation.metrics import METRICS
from headrace.features.dataset import Dataset

SERVED = (
    "error_rate",
    "latency_p50",
    "latency_p95",
    "latency_p99",
    "prediction_psi",
    "prediction_mean",
    "fallback_rate",
)


@dataclass(frozen=True)
class LiveQuantity(Quantity):
    """Measure what production shows: of the service itself, or a metric once labels have matured."""

    name: str
    over: int | None = None
    matured: int | None = None
    against: str | None = None

    @property
    def unit(self) -> Literal["number", "duration", "size"]:
        """Return "duration" for latencies, "number" for everything else."""
        return "duration" if self.name.startswith("latency") else "number"

    def __str__(self) -> str:
        over = f', over="{format_duration(self.over)}"' if self.over else ""
        matured = f', matured="{format_duration(self.matured)}"' if self.matured else ""
        against = f', against="{self.against}"' if self.against else ""
        return f'live("{self.name}"{over}{matured}{against})'


@dataclass(frozen=True)
class UnusualDrift:
    """Hold when a feature's newest `k` of `n` windows lie outside the band of the feature's own history."""

    dataset: Dataset
    windows: int
    k: int
    n: int

    def __str__(self) -> str:
        return f'drift(dataset).unusual(windows="{format_duration(self.windows)}", k={self.k}, n={self.n})'


@dataclass(frozen=True)
class Drift:
    """Compare the features that production sees with the training profile."""

    dataset: Dataset

    def unusual(self, *, windows: str, k: int, n: int) -> UnusualDrift:
        """Hold when at least `k` of the newest `n` windows are unusual for the feature's own history."""
        if not 1 <= k <= n:
            raise DefinitionError("k of n windows", where=user_location(), got=f"k={k}, n={n}", expected="1 <= k <= n")
        return UnusualDrift(self.dataset, duration(windows), k, n)


Condition = Limit | UnusualDrift


@dataclass(frozen=True)
class Monitor:
    """Evaluate a condition every so often; when it holds, open an incident and do what is asked."""

    condition: Condition
    every: int
    channels: tuple[str, ...] = ()
    retrains: bool = False
    location: str = field(default_factory=user_location, compare=False)

    def alert(self, channel: str) -> Monitor:
        """Send the incident to a channel."""
        return replace(self, channels=(*self.channels, channel))

    def retrain(self) -> Monitor:
        """Start a retraining."""
        return replace(self, retrains=True)


@dataclass(frozen=True)
class Every:
    """Retrain when this much time has passed since the last training."""

    period: int

    def __str__(self) -> str:
        return f'every("{format_duration(self.period)}")'


@dataclass(frozen=True)
class NewLabels:
    """Retrain when this many labels have matured since the last training."""

    count: int

    def __str__(self) -> str:
        return f"new_labels({self.count})"


Trigger = Every | NewLabels


def live(name: str, *, over: str | None = None, matured: str | None = None, against: str | None = None) -> LiveQuantity:
    """Measure production: error_rate, latency_p99, prediction_psi (against="champion") and so on, or any metric.

    A metric needs `over` (the period) and `matured` (how old a prediction must be for its label to count).

    Raises:
        DefinitionError: an unknown name, or a metric without its period.
    """
    if name not in SERVED and name not in METRICS:
        raise DefinitionError(
            "unknown live quantity", where=user_location(), got=name, next_step=did_you_mean(name, (*SERVED, *METRICS))
        )
    if name in METRICS and name not in SERVED and (over is None or matured is None):
        raise DefinitionError(
            f'live("{name}") needs a period and a maturity', where=user_location(), expected='over="14d", matured="2d"'
        )
    read = [None if text is None else duration(text) for text in (over, matured)]
    return LiveQuantity(name, read[0], read[1], against)


def drift(dataset: Dataset) -> Drift:
    """Watch every feature of a dataset for drift."""
    return Drift(dataset)


def when(condition: Condition, *, every: str) -> Monitor:
    """Evaluate a condition every so often: `hr.when(hr.live("auc", …) < 0.68, every="1d").alert("ops").retrain()`.

    Raises:
        DefinitionError: the value is no condition.
    """
    if not isinstance(condition, (Limit, UnusualDrift)):
        raise DefinitionError(
            "not a condition", where=user_location(), got=condition, expected='hr.live("auc", …) < 0.68'
        )
    return Monitor(condition, duration(every))


def every(period: str) -> Every:
    """Retrain when this much time has passed since the last training."""
    return Every(duration(period))


def new_labels(count: int) -> NewLabels:
    """Retrain when this many labels have matured since the last training."""
    return NewLabels(count)
