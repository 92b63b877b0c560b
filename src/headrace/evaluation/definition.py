"""Declare gates: what a model must show before it may be promoted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from headrace.core.errors import DefinitionError, did_you_mean
from headrace.core.expressions import Column
from headrace.core.limits import DurationQuantity, Limit, Quantity, SizeQuantity
from headrace.core.location import user_location
from headrace.evaluation.metrics import METRICS


@dataclass(frozen=True)
class MetricQuantity(Quantity):
    """Measure a metric on the test rows, or with `by` the worst of its slices that has `min_rows` rows."""

    name: str
    by: Column[Any] | None = None
    min_rows: int = 0

    def beats_champion(self, *, confidence: float = 0.95) -> BeatsChampion:
        """Demand to be better than the champion on the same rows, by a paired one-sided comparison at this confidence.

        Where there is no champion yet, the gate holds and says so.
        """
        return BeatsChampion(self.name, confidence)

    def __str__(self) -> str:
        by = f", by={self.by}, min_rows={self.min_rows}" if self.by is not None else ""
        return f'metric("{self.name}"{by})'


@dataclass(frozen=True)
class GapQuantity(Quantity):
    """Measure the largest difference of a metric between two slices that have `min_rows` rows."""

    name: str
    by: Column[Any]
    min_rows: int

    def __str__(self) -> str:
        return f'gap("{self.name}", by={self.by})'


@dataclass(frozen=True)
class LatencyQuantity(DurationQuantity):
    """Measure a percentile of the time that one prediction takes, features included."""

    percentile: str

    def __str__(self) -> str:
        return f'latency("{self.percentile}")'


@dataclass(frozen=True)
class ModelSize(SizeQuantity):
    """Measure the size of a model's files."""

    def __str__(self) -> str:
        return "model_size()"


@dataclass(frozen=True)
class SkewQuantity(Quantity):
    """Measure which share of served feature values differs in any bit from what history gives for the same moment."""

    sample: int

    def __str__(self) -> str:
        return "skew()"


@dataclass(frozen=True)
class BeatsChampion:
    """Demand to be better than the champion on the same rows."""

    name: str
    confidence: float
    location: str = field(default_factory=user_location, compare=False)

    def __str__(self) -> str:
        return f'metric("{self.name}").beats_champion(confidence={self.confidence:g})'


Gate = Limit | BeatsChampion


def known_metric(name: str) -> str:
    """Return a metric's name.

    Raises:
        DefinitionError: no such metric.
    """
    if name not in METRICS:
        raise DefinitionError(
            "unknown metric",
            where=user_location(),
            got=name,
            next_step=did_you_mean(name, METRICS) or "see the reference",
        )
    return name


def metric(name: str, *, by: Column[Any] | None = None, min_rows: int = 0) -> MetricQuantity:
    """Measure a metric on the test rows; with `by`, of the worst slice with at least `min_rows` rows."""
    return MetricQuantity(known_metric(name), by, min_rows)


def gap(name: str, *, by: Column[Any], min_rows: int = 30) -> GapQuantity:
    """Measure how far a metric lies apart between slices: a fairness range."""
    return GapQuantity(known_metric(name), by, min_rows)


def latency(percentile: str) -> LatencyQuantity:
    """Measure prediction latency: "p50", "p95" or "p99".

    Raises:
        DefinitionError: another percentile.
    """
    if percentile not in ("p50", "p95", "p99"):
        raise DefinitionError("unknown percentile", where=user_location(), got=percentile, expected="p50, p95 or p99")
    return LatencyQuantity(percentile)


def model_size() -> ModelSize:
    """Measure the size of a model's files: `hr.model_size() <= "20MB"`."""
    return ModelSize()


def skew(*, sample: int = 200) -> SkewQuantity:
    """Measure which share of feature values that production served differs from history: `hr.skew() <= 0`.

    `sample` predictions, chosen by a hash of the row's id, are computed anew at their own moment from what had been
    applied then, and compared bit for bit. Where nothing was served with these features yet, the gate holds and says so.

    Raises:
        DefinitionError: a sample of nothing.
    """
    if sample < 1:
        raise DefinitionError("a sample of nothing", where=user_location(), got=sample, expected="1 or more")
    return SkewQuantity(sample)
