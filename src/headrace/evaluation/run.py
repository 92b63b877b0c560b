"""Evaluate a candidate against its gates on test rows, beside the champion on the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from headrace.core.errors import DataError
from headrace.core.limits import Limit
from headrace.evaluation.definition import (
    BeatsChampion,
    GapQuantity,
    Gate,
    LatencyQuantity,
    MetricQuantity,
    SkewQuantity,
)
from headrace.evaluation.fairness import by_group, gap
from headrace.evaluation.metrics import METRICS, Metric, as_rows, compare_models, measure_rows
from headrace.evaluation.plan import TASKS, Task, plan_gates
from headrace.evaluation.record import Evaluation, GateResult
from headrace.evaluation.slices import slice_names, slice_table, worst
from headrace.stats.intervals import auc_interval, bootstrap, paired_difference, wilson
from headrace.stats.scores import LOSSES, SCORES, Rows

if TYPE_CHECKING:
    import pyarrow as pa

    from headrace.features.record import TrainingSet
    from headrace.models.servable import Servable

Scores = NDArray[np.float64]
CONFIDENCE = 0.95
RESAMPLES = 200


@dataclass(frozen=True)
class JudgedRows:
    """Hold the rows that judge: labels, both models' scores, and the rows' own columns for slices.

    `clusters` groups rows that share a fate (a day, say), for a comparison that is robust against it; `weights` say for
    how many rows each stands, where they are a sample.
    """

    labels: Scores
    candidate: Scores
    champion: Scores | None
    columns: pa.Table
    threshold: float = 0.5
    champion_threshold: float | None = None
    clusters: NDArray[Any] | None = None
    weights: Scores | None = None


@dataclass(frozen=True)
class SkewFact:
    """Hold how served features compare with history: the share of values that differ, None where none was compared.

    `nothing_served` tells that nothing was served with these features yet; `why` what was left out.
    """

    share: float | None
    compared: int
    nothing_served: bool
    why: str | None


@dataclass(frozen=True)
class Footprint:
    """Hold facts that only the stages above can measure: latency percentiles in microseconds, the model's bytes, skew."""

    size: int
    latency: Mapping[str, float] = field(default_factory=dict)
    latency_source: Literal["measured", "modelled"] = "measured"
    skew: SkewFact | None = None


def score_rows(servable: Servable, training_set: TrainingSet, rows: NDArray[np.int64]) -> Scores:
    """Return a model's scores on rows of a training set, encoded by its own encoder."""
    return servable.score(servable.encoder.encode(training_set.features.take(rows)))


def evaluate(
    gates: Sequence[Gate], rows: JudgedRows, footprint: Footprint, *, task: Task, rng: np.random.Generator
) -> Evaluation:
    """Judge every gate and return all results; none stops at the first failure.

    A gate that cannot be measured does not pass; a comparison without a champion does, and says so. `rng` resamples
    where no exact interval or comparison is known.

    Raises:
        DefinitionError: a gate does not fit the task.
        DataError: a slice column is missing, or columns differ in length.
    """
    needs = plan_gates(gates, task)
    names = {column: slice_names(rows.columns, column) for column in needs.columns}
    judge = _Judge(rows, footprint, names, rng)
    results = tuple(judge.gate(gate) for gate in gates)
    champion = None if rows.champion is None else judge.all_metrics(task, judge.champion_rows())
    return Evaluation(len(rows.labels), results, judge.all_metrics(task, judge.rows), champion)


class _Judge:
    def __init__(
        self, given: JudgedRows, footprint: Footprint, slices: Mapping[str, NDArray[np.str_]], rng: np.random.Generator
    ) -> None:
        self.given, self.footprint, self.slices, self.rng = given, footprint, slices, rng
        self.rows = as_rows(given.labels, given.candidate, given.weights, given.threshold)
        if given.columns.num_rows != len(given.labels):
            raise DataError(
                "the slice columns are of other rows",
                where="evaluation",
                got=given.columns.num_rows,
                expected=len(given.labels),
            )

    def champion_rows(self) -> Rows:
        assert self.given.champion is not None
        other = self.given.champion_threshold
        threshold = self.given.threshold if other is None else other
        return as_rows(self.given.labels, self.given.champion, self.given.weights, threshold)

    def all_metrics(self, task: Task, rows: Rows) -> dict[str, float | None]:
        return {m.name: measure_rows(m, rows).value for m in METRICS.values() if m.task == TASKS[task]}

    def gate(self, gate: Gate) -> GateResult:
        if isinstance(gate, BeatsChampion):
            return self.beats_champion(gate)
        quantity = gate.quantity
        if isinstance(quantity, GapQuantity):
            return self.gap(gate, quantity)
        if isinstance(quantity, MetricQuantity):
            return self.metric(gate, quantity) if quantity.by is None else self.sliced(gate, quantity)
        if isinstance(quantity, LatencyQuantity):
            return self.latency(gate, quantity)
        if isinstance(quantity, SkewQuantity):
            return self.skew(gate)
        return _judged(gate, "model_size", float(self.footprint.size), None)

    def metric(self, gate: Limit, quantity: MetricQuantity) -> GateResult:
        metric = METRICS[quantity.name]
        found = measure_rows(metric, self.rows)
        result = _judged(gate, "metric", found.value, found.reason)
        return result if found.value is None else replace(result, interval=interval_of(metric, self.rows, self.rng))

    def sliced(self, gate: Limit, quantity: MetricQuantity) -> GateResult:
        assert quantity.by is not None
        groups = self.slices[quantity.by.name]
        given = self.given
        found = by_group(
            quantity.name,
            given.labels,
            given.candidate,
            groups,
            min_rows=quantity.min_rows,
            weights=given.weights,
            threshold=given.threshold,
        )
        table = slice_table(found)
        low = worst(table, gate)
        if low is None:
            reason = f"none of {len(table)} slices has {quantity.min_rows} rows and a defined {quantity.name}"
            return replace(_judged(gate, "slices", None, reason), slices=table)
        result = replace(_judged(gate, "slices", low.value, None), slices=table, evidence={"worst": low.name})
        chosen = self.rows.take(np.flatnonzero(groups == low.name))
        return replace(result, interval=interval_of(METRICS[quantity.name], chosen, self.rng))

    def gap(self, gate: Limit, quantity: GapQuantity) -> GateResult:
        given = self.given
        found = gap(
            quantity.name,
            given.labels,
            given.candidate,
            self.slices[quantity.by.name],
            min_rows=quantity.min_rows,
            weights=given.weights,
            threshold=given.threshold,
        )
        ends = {"lowest": found.lowest, "highest": found.highest, "ratio": found.ratio}
        result = _judged(gate, "gap", found.value, found.reason)
        return replace(result, slices=slice_table(found.groups), evidence=ends)

    def beats_champion(self, gate: BeatsChampion) -> GateResult:
        metric, given = METRICS[gate.name], self.given
        if given.champion is None:
            value = measure_rows(metric, self.rows).value
            return GateResult(str(gate), "beats_champion", True, value, None, reason="no champion yet")
        found = compare_models(
            gate.name,
            given.labels,
            given.candidate,
            given.champion,
            rng=self.rng,
            # "Beats" looks one way only: one-sided confidence c is the upper end of the two-sided interval of 2c - 1.
            confidence=2 * gate.confidence - 1,
            threshold=given.threshold,
            champion_threshold=given.champion_threshold,
            clusters=given.clusters,
            weights=given.weights,
        )
        reason = found.reason or (None if found.better else "not shown to be better than the champion")
        interval = None if found.low is None or found.high is None else (found.low, found.high)
        measured, champion = found.challenger.value, found.champion.value
        evidence = {k: v for k, v in asdict(found).items() if k not in ("challenger", "champion", "low", "high")}
        evidence |= {"champion": champion}
        return GateResult(str(gate), "beats_champion", found.better, measured, champion, interval, (), evidence, reason)

    def latency(self, gate: Limit, quantity: LatencyQuantity) -> GateResult:
        value = self.footprint.latency.get(quantity.percentile)
        reason = None if value is not None else "no latency was measured"
        result = _judged(gate, "latency", value, reason)
        return replace(result, evidence={"source": self.footprint.latency_source})

    def skew(self, gate: Limit) -> GateResult:
        fact = self.footprint.skew
        if fact is not None and fact.nothing_served:
            why = "nothing was served with these features yet"
            return GateResult(str(gate), "skew", True, None, gate.threshold, reason=why)
        share = None if fact is None else fact.share
        reason = None if share is not None else f"no served value could be compared: {fact.why if fact else 'no log'}"
        return replace(_judged(gate, "skew", share, reason), evidence={"compared": fact.compared if fact else 0})


def _judged(gate: Limit, kind: str, value: float | None, reason: str | None) -> GateResult:
    passed = value is not None and gate.holds(value)
    return GateResult(str(gate), kind, passed, value, gate.threshold, reason=reason)


def interval_of(metric: Metric, rows: Rows, rng: np.random.Generator) -> tuple[float, float] | None:
    """Return the 95 % interval of a metric on rows: exact methods where there are any, else the bootstrap."""
    if rows.weights is not None:
        return _resampled(metric, rows, rng)
    if metric.name == "auc":
        estimate = auc_interval(rows.labels, rows.predictions, CONFIDENCE)
        return None if estimate is None else (estimate.low, estimate.high)
    shares = _share(metric.name, rows)
    if shares is not None:
        low, high = wilson(*shares, CONFIDENCE)
        return low, high
    if metric.name in LOSSES:
        losses = LOSSES[metric.name](rows)
        mean = paired_difference(losses, np.zeros(len(losses)), CONFIDENCE)
        if mean.low is None or mean.high is None:
            return None
        ends = (max(0.0, mean.low), max(0.0, mean.high))
        return (float(np.sqrt(ends[0])), float(np.sqrt(ends[1]))) if metric.name == "rmse" else ends
    return _resampled(metric, rows, rng)


def _resampled(metric: Metric, rows: Rows, rng: np.random.Generator) -> tuple[float, float] | None:
    score = SCORES[metric.name]
    places = np.arange(len(rows.labels))
    found = bootstrap(
        lambda drawn: score(rows.take(drawn)), places, rng=rng, resamples=RESAMPLES, confidence=CONFIDENCE
    )
    return None if found is None else (found.low, found.high)


def _share(name: str, rows: Rows) -> tuple[float, float] | None:
    """Return successes and tries of a metric that is a share."""
    counts = rows.confusion
    shares = {
        "accuracy": (counts.tp + counts.tn, sum(counts)),
        "precision": (counts.tp, counts.tp + counts.fp),
        "recall": (counts.tp, counts.tp + counts.fn),
        "positive_rate": (counts.tp + counts.fp, sum(counts)),
    }
    return shares.get(name)
