"""Compute every metric of the catalogue by its name, and the per-row losses behind those that have them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from headrace.stats import classification as binary
from headrace.stats import ranking, regression
from headrace.stats.binning import Floats


@dataclass(frozen=True)
class Rows:
    """Hold what a metric reads: labels and predictions of the same rows, and the metric's parameters."""

    labels: Floats
    predictions: Floats
    weights: Floats | None = None
    threshold: float = 0.5
    queries: NDArray[Any] | None = None
    quantile: float = 0.5
    k: int | None = None

    @property
    def decisions(self) -> NDArray[np.bool_]:
        """Return which rows are decided positive: those at or above the threshold."""
        return np.asarray(self.predictions >= self.threshold)

    @property
    def confusion(self) -> binary.Confusion:
        """Return the four counts of the decisions."""
        return binary.confusion(self.labels, self.decisions, self.weights)

    @property
    def of_queries(self) -> NDArray[Any]:
        """Return each row's query; one query for all rows unless told."""
        return np.zeros(self.labels.size, dtype=np.int8) if self.queries is None else self.queries

    def take(self, chosen: NDArray[Any]) -> Rows:
        """Return the chosen rows (a mask or positions)."""
        weights = None if self.weights is None else self.weights[chosen]
        queries = None if self.queries is None else self.queries[chosen]
        kept = (self.labels[chosen], self.predictions[chosen], weights, self.threshold, queries)
        return Rows(*kept, self.quantile, self.k)

    def draw(self, units: Sequence[NDArray[np.int64]]) -> Rows:
        """Return the rows of all units one after the other; what is drawn twice brings its queries as new ones."""
        drawn = self.take(np.concatenate(units))
        if self.queries is None:
            return drawn
        turn = np.repeat(np.arange(len(units)), [unit.size for unit in units])
        _, query = np.unique(drawn.of_queries, return_inverse=True)
        return replace(drawn, queries=turn * (int(query.max()) + 1) + query)


Score: TypeAlias = Callable[[Rows], float | None]
Losses: TypeAlias = Callable[[Rows], Floats]

LOSSES: dict[str, Losses] = {
    "log_loss": lambda rows: binary.log_losses(rows.labels, rows.predictions),
    "brier": lambda rows: binary.squared_errors(rows.labels, rows.predictions),
    "accuracy": lambda rows: (rows.decisions != (rows.labels > 0.5)).astype(np.float64),
    "mae": lambda rows: np.abs(regression.errors(rows.labels, rows.predictions)),
    "rmse": lambda rows: binary.squared_errors(rows.labels, rows.predictions),
    "pinball": lambda rows: regression.pinball_losses(rows.labels, rows.predictions, rows.quantile),
}


def mean_loss(name: str) -> Score:
    """Return the metric that is the mean of a per-row loss."""
    return lambda rows: regression.mean(LOSSES[name](rows), rows.weights)


def root_mean_square(rows: Rows) -> float | None:
    """Return the root of the mean squared error."""
    square = regression.mean(LOSSES["rmse"](rows), rows.weights)
    return None if square is None else float(np.sqrt(square))


SCORES: dict[str, Score] = {
    "auc": lambda rows: binary.roc_auc(rows.labels, rows.predictions, rows.weights),
    "pr_auc": lambda rows: binary.average_precision(rows.labels, rows.predictions, rows.weights),
    "log_loss": mean_loss("log_loss"),
    "brier": mean_loss("brier"),
    "accuracy": lambda rows: binary.accuracy(rows.confusion),
    "precision": lambda rows: binary.precision(rows.confusion),
    "recall": lambda rows: binary.recall(rows.confusion),
    "f1": lambda rows: binary.f1(rows.confusion),
    "ece": lambda rows: binary.calibration_error(rows.labels, rows.predictions, rows.weights),
    "positive_rate": lambda rows: binary.positive_rate(rows.confusion),
    "mae": mean_loss("mae"),
    "rmse": root_mean_square,
    "r2": lambda rows: regression.r2(rows.labels, rows.predictions, rows.weights),
    "wape": lambda rows: regression.wape(rows.labels, rows.predictions, rows.weights),
    "bias": lambda rows: regression.mean(regression.errors(rows.labels, rows.predictions), rows.weights),
    "pinball": mean_loss("pinball"),
    "ndcg": lambda rows: ranking.ndcg(rows.labels, rows.predictions, rows.of_queries, rows.k),
    "map": lambda rows: ranking.mean_average_precision(rows.labels, rows.predictions, rows.of_queries),
    "mrr": lambda rows: ranking.mean_reciprocal_rank(rows.labels, rows.predictions, rows.of_queries),
}
