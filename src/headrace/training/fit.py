"""Fit an estimator on a dataset from a notebook: split, baseline, metrics and warnings as in a pipeline, nothing kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headrace.core.time import Clock, Instant, SystemClock
from headrace.features.dataset import Dataset
from headrace.models.definition import Model, model
from headrace.training.data import Frame, TrainingData
from headrace.training.definition import Baseline, ByTime, Params, Training, by_time

if TYPE_CHECKING:
    from headrace.training.run import Trained

SPLIT = by_time(valid="14d", test="14d")
THREADS = 2


@dataclass(frozen=True, eq=False, repr=False)
class Fit:
    """Hold a fitted estimator, the parts that it was fitted and judged on, and how it did beside the baseline.

    `metrics` and `baseline` hold `{"valid": {"auc": …}, "test": {…}}`, None where a metric is undefined. `model` is the
    fitted estimator; `score(X)` gives what a deployed version would answer.
    """

    model: Any
    data: TrainingData
    metrics: Mapping[str, Mapping[str, float | None]]
    baseline: Mapping[str, Mapping[str, float | None]]
    importance: Mapping[str, float]
    warnings: tuple[str, ...]
    trained: Trained

    def score(self, features: Frame) -> Any:
        """Return the scores of rows, shape (rows,): what the converted model answers, as float64."""
        return self.trained.servable.score(features)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(part):,} {name}" for name, part in self._parts())
        lines = [f"{type(self.model).__name__} on {len(self.data.columns)} features; rows: {sizes}"]
        for name in self.metrics["test"]:
            ours, theirs = self.metrics["test"][name], self.baseline["test"][name]
            lines.append(f"  test {name:<9} {_shown(ours)}   baseline {_shown(theirs)}")
        best = sorted(self.importance.items(), key=lambda item: -item[1])[:5]
        lines.append("  matters most: " + ", ".join(f"{name} {value:.4f}" for name, value in best))
        return "\n".join([*lines, *(f"  warning: {text}" for text in self.warnings)])

    def _parts(self) -> list[tuple[str, Any]]:
        return [("train", self.data.train), ("valid", self.data.valid), ("test", self.data.test)]


def fit(
    dataset: Dataset,
    estimator: Any,
    *,
    split: ByTime = SPLIT,
    baseline: Baseline = "logistic",
    as_of: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    env: str | None = None,
    clock: Clock | None = None,
) -> Fit:
    """Fit a copy of a scikit-learn or LightGBM estimator on a dataset, without a pipeline; nothing is written.

    Rows are read, split by time and judged as a pipeline's training would: the estimator sees the training part alone,
    the converted model is judged on the others, a baseline beside it. `limit` keeps the newest matured rows.

        >>> from sklearn.linear_model import LogisticRegression         # doctest: +SKIP
        >>> hr.fit(dataset, LogisticRegression())                       # doctest: +SKIP

    Raises:
        DataError: the sources cannot be read, or hold too few rows for the split.
        UserCodeError: the estimator raised, or its model cannot be kept.
    """
    from sklearn.base import clone

    from headrace.features.retrieval import dataset_rows
    from headrace.training.run import train

    clock = clock or SystemClock()
    fitted = []

    def function(data: TrainingData, params: Params) -> Model:
        fitted.append(clone(estimator).fit(data.train.X, data.train.y))
        return model(fitted[-1])

    training = Training(repr(estimator), function, dataset, split, None, baseline)
    moment = None if as_of is None else int(Instant.parse(as_of))
    rows = dataset_rows(dataset, clock=clock, as_of=moment, limit=limit, env=env)
    trained = train(training, rows.training_set(), seed=seed, threads=THREADS, clock=clock)
    record = trained.record
    beside = {name: record.baseline[name] for name in record.metrics}
    warnings = tuple(record.warnings)
    return Fit(fitted[-1], trained.data, record.metrics, beside, record.importance, warnings, trained)


def _shown(value: float | None) -> str:
    return "     –" if value is None else f"{value:.4f}"
