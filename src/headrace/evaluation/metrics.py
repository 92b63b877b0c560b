"""Know every metric: what it reads, which direction is better, and why it may be undefined; measure and compare models.

Importing this module loads no numpy: project files name metrics, and importing them takes milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from headrace.core.errors import DataError, DefinitionError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

    from headrace.stats.intervals import Difference
    from headrace.stats.scores import Rows

Task = Literal["binary", "regression", "ranking"]
Better = Literal["higher", "lower", "zero", "neither"]


@dataclass(frozen=True)
class Metric:
    """Describe a metric. `undefined` says what its value needs; `weighted` whether sample weights mean anything."""

    name: str
    summary: str
    task: Task
    better: Better
    undefined: str = "needs a row"
    min_rows: int = 1
    weighted: bool = True
    decides: bool = False

    def improves(self, value: float, on: float) -> bool:
        """Tell whether `value` is strictly better than `on`.

        >>> METRICS["log_loss"].improves(0.4, on=0.5), METRICS["bias"].improves(-0.1, on=0.5)
        (True, True)
        """
        gains = {"higher": value > on, "lower": value < on, "zero": abs(value) < abs(on), "neither": False}
        return gains[self.better]


@dataclass(frozen=True)
class Measured:
    """Hold a metric's value on some rows; None with the reason where it is undefined."""

    name: str
    value: float | None
    rows: int
    reason: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Hold how a challenger compares with the champion on the same rows, and everything that decided.

    `difference` is challenger less champion, of the mean loss for `method` "paired losses", else of the metric.
    """

    name: str
    method: Literal["paired losses", "DeLong", "paired bootstrap"]
    challenger: Measured
    champion: Measured
    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None
    confidence: float
    better: bool
    reason: str | None = None


BOTH = "needs rows of both classes"
CATALOGUE = (
    Metric("auc", "chance that a positive scores above a negative", "binary", "higher", BOTH, 2),
    Metric("pr_auc", "average precision over all thresholds", "binary", "higher", "needs a positive row"),
    Metric("log_loss", "negative log-likelihood a row, in nats", "binary", "lower"),
    Metric("brier", "mean squared error of the probability", "binary", "lower"),
    Metric("accuracy", "share of right decisions", "binary", "higher", decides=True),
    Metric(
        "precision",
        "share of positives among positive decisions",
        "binary",
        "higher",
        "needs a positive decision",
        decides=True,
    ),
    Metric("recall", "share of positives found", "binary", "higher", "needs a positive row", decides=True),
    Metric(
        "f1",
        "harmonic mean of precision and recall",
        "binary",
        "higher",
        "needs a positive row or decision",
        decides=True,
    ),
    Metric("ece", "mean gap of probability and outcome over ten bins", "binary", "lower"),
    Metric("positive_rate", "share decided positive", "binary", "neither", decides=True),
    Metric("mae", "mean absolute error", "regression", "lower"),
    Metric("rmse", "root of the mean squared error", "regression", "lower"),
    Metric("r2", "share of the variance explained", "regression", "higher", "needs labels that vary", 2),
    Metric("wape", "absolute error over absolute labels", "regression", "lower", "needs a label that is not zero"),
    Metric("bias", "mean of prediction less label", "regression", "zero"),
    Metric("pinball", "quantile loss", "regression", "lower"),
    Metric(
        "ndcg", "discounted gain over the best possible", "ranking", "higher", "needs a relevant row", weighted=False
    ),
    Metric("map", "mean average precision", "ranking", "higher", "needs a relevant row", weighted=False),
    Metric("mrr", "mean reciprocal rank of the first hit", "ranking", "higher", "needs a relevant row", weighted=False),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in CATALOGUE}


def measure(
    name: str,
    labels: ArrayLike,
    predictions: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    threshold: float = 0.5,
    queries: ArrayLike | None = None,
    quantile: float = 0.5,
    k: int | None = None,
) -> Measured:
    """Measure a metric on rows of shape (n,).

    Binary labels are 0 or 1 and predictions probabilities of 1; a row is decided positive at or above `threshold`.
    Regression reads `quantile` for pinball only. Ranking labels are relevances, `queries` groups the rows into lists.

    >>> measure("auc", [0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]).value
    0.75
    >>> measure("auc", [1, 1], [0.2, 0.3])
    Measured(name='auc', value=None, rows=2, reason='needs rows of both classes')

    Raises:
        DefinitionError: no such metric, or weights for a metric that has none.
        DataError: columns of different lengths, or a column that is no list of numbers.
    """
    metric = known(name)
    if weights is not None and not metric.weighted:
        raise DefinitionError(
            f"{name} has no weighted form", where="evaluation.metrics", next_step="measure it without weights"
        )
    rows = as_rows(labels, predictions, weights, threshold, queries, quantile, k)
    return measure_rows(metric, rows)


def compare_models(
    name: str,
    labels: ArrayLike,
    challenger: ArrayLike,
    champion: ArrayLike,
    *,
    rng: np.random.Generator,
    confidence: float = 0.95,
    threshold: float = 0.5,
    champion_threshold: float | None = None,
    queries: ArrayLike | None = None,
    quantile: float = 0.5,
    clusters: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    resamples: int = 500,
) -> Comparison:
    """Decide whether a challenger is better than the champion on the same rows, at this two-sided confidence.

    Metrics that are a mean of losses compare row by row, with `clusters` robust against rows that share a fate (a day,
    say); AUC by DeLong; all others, and rows of different weights, by resampling rows (queries for a ranking), for which
    alone `rng` is used.

    >>> import numpy as np
    >>> rng = np.random.default_rng(1)
    >>> compare_models("brier", [0, 1, 0, 1], [0.1, 0.9, 0.2, 0.8], [0.5, 0.5, 0.5, 0.5], rng=rng).better
    True

    Raises:
        DefinitionError: no such metric, or one without a better direction.
        DataError: columns of different lengths.
    """
    metric = known(name)
    if metric.better == "neither":
        raise DefinitionError(
            f"{name} has no better direction", where="evaluation.metrics", next_step="compare another metric"
        )
    other = threshold if champion_threshold is None else champion_threshold
    first = as_rows(labels, challenger, weights, threshold, queries, quantile)
    second = as_rows(labels, champion, weights, other, queries, quantile)
    sides = measure_rows(metric, first), measure_rows(metric, second)
    method = "paired bootstrap" if weights is not None else method_of(metric, clusters)
    reason = sides[0].reason or sides[1].reason
    if reason is not None:
        return Comparison(name, method, *sides, None, None, None, None, confidence, False, reason)
    found = difference_of(metric, method, first, second, confidence, clusters, rng, resamples)
    reason = None if found.mean is not None else "needs more rows"
    numbers = (found.mean, found.low, found.high, found.p_value)
    return Comparison(name, method, *sides, *numbers, confidence, found.decision == "first", reason)


def known(name: str) -> Metric:
    """Return a metric by its name.

    Raises:
        DefinitionError: no such metric.
    """
    if name not in METRICS:
        raise DefinitionError(
            "unknown metric", where="evaluation.metrics", got=name, next_step=did_you_mean(name, METRICS)
        )
    return METRICS[name]


def as_rows(
    labels: ArrayLike,
    predictions: ArrayLike,
    weights: ArrayLike | None = None,
    threshold: float = 0.5,
    queries: ArrayLike | None = None,
    quantile: float = 0.5,
    k: int | None = None,
) -> Rows:
    """Return columns as one value, checked for their shape.

    Raises:
        DataError: columns of different lengths, or one that is no list of numbers.
    """
    import numpy as np

    from headrace.stats.scores import Rows

    try:
        columns = [np.asarray(column, dtype=np.float64) for column in (labels, predictions)]
        weight = None if weights is None else np.asarray(weights, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise bad_columns(str(error)) from error
    query = None if queries is None else np.asarray(queries)
    shapes = [column.shape for column in (*columns, weight, query) if column is not None]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1:
        raise bad_columns(f"shapes {shapes}")
    return Rows(columns[0], columns[1], weight, threshold, query, quantile, k)


def bad_columns(got: str) -> DataError:
    """Return the error for columns that are not lists of numbers of one length."""
    return DataError(
        "labels and predictions do not fit",
        where="evaluation.metrics",
        got=got,
        expected="one number a row in every column, shape (n,)",
        next_step="for a classifier pass the probability of the positive class only",
    )


def measure_rows(metric: Metric, rows: Rows) -> Measured:
    """Measure a metric on prepared rows; undefined is None with its reason."""
    from headrace.stats.scores import SCORES

    size = int(rows.labels.size)
    reason = unfit(metric, rows)
    value = None if reason else SCORES[metric.name](rows)
    if value is None:
        return Measured(metric.name, None, size, reason or metric.undefined)
    return Measured(metric.name, value, size)


def unfit(metric: Metric, rows: Rows) -> str | None:
    """Return why these rows cannot be measured; None if they can."""
    import numpy as np

    size = rows.labels.size
    if size < metric.min_rows:
        return f"{size} rows, {metric.min_rows} needed"
    for what, column in (("labels", rows.labels), ("predictions", rows.predictions), ("weights", rows.weights)):
        bad = 0 if column is None else int(np.count_nonzero(~np.isfinite(column)))
        if bad:
            return f"{bad} of {size} {what} are null or not finite"
    if rows.weights is not None and (rows.weights.min() < 0 or rows.weights.sum() <= 0):
        return "weights must not be negative, nor all zero"
    if metric.task == "binary":
        return unfit_binary(metric, rows)
    if metric.task == "ranking" and rows.labels.min() < 0:
        return "relevances must not be negative"
    return None


def unfit_binary(metric: Metric, rows: Rows) -> str | None:
    """Return why rows are no binary labels with scores; None if they are."""
    import numpy as np

    if np.any((rows.labels != 0) & (rows.labels != 1)):
        return "labels are not 0 or 1"
    outside = (rows.predictions < 0) | (rows.predictions > 1)
    if metric.name in ("log_loss", "brier", "ece") and np.any(outside):
        return "predictions are not probabilities"
    return None


def method_of(metric: Metric, clusters: ArrayLike | None) -> Literal["paired losses", "DeLong", "paired bootstrap"]:
    """Return how two models are compared by this metric."""
    from headrace.stats.scores import LOSSES

    if metric.name in LOSSES:
        return "paired losses"
    return "DeLong" if metric.name == "auc" and clusters is None else "paired bootstrap"


def difference_of(
    metric: Metric,
    method: str,
    first: Rows,
    second: Rows,
    confidence: float,
    clusters: ArrayLike | None,
    rng: np.random.Generator,
    resamples: int,
) -> Difference:
    """Compare two models' rows by the given method."""
    from headrace.stats.intervals import auc_difference, paired_difference
    from headrace.stats.scores import LOSSES

    if method == "paired losses":
        losses = LOSSES[metric.name]
        return paired_difference(losses(first), losses(second), confidence, clusters=clusters)
    if method == "DeLong":
        return auc_difference(first.labels, first.predictions, second.predictions, confidence)
    return resampled_difference(metric, first, second, confidence, clusters, rng, resamples)


def resampled_difference(
    metric: Metric,
    first: Rows,
    second: Rows,
    confidence: float,
    clusters: ArrayLike | None,
    rng: np.random.Generator,
    resamples: int,
) -> Difference:
    """Compare two models by resampling whole clusters, queries or rows; bias by its distance from zero."""
    import numpy as np

    from headrace.stats.intervals import Bootstrap, Difference, bootstrap
    from headrace.stats.scores import SCORES

    units = clusters if clusters is not None else first.queries
    place = np.arange(first.labels.size) if units is None else np.unique(np.asarray(units), return_inverse=True)[1]
    members = np.split(np.argsort(place, kind="stable"), np.cumsum(np.bincount(place))[:-1])
    score = SCORES[metric.name]

    def gap(drawn: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> float | None:
        chosen = [members[unit] for unit in drawn]
        values = score(first.draw(chosen)), score(second.draw(chosen))
        if values[0] is None or values[1] is None:
            return None
        return abs(values[0]) - abs(values[1]) if metric.better == "zero" else values[0] - values[1]

    whole = gap(np.arange(len(members)))
    found: Bootstrap | None = bootstrap(
        gap, np.arange(len(members)), rng=rng, resamples=resamples, confidence=confidence
    )
    if whole is None or found is None or len(members) < 2:
        return Difference(None, None, None, None, first.labels.size, "undecided")
    wins, loses = (found.low > 0, found.high < 0) if metric.better == "higher" else (found.high < 0, found.low > 0)
    decision: Literal["first", "second", "undecided"] = "first" if wins else "second" if loses else "undecided"
    return Difference(whole, found.low, found.high, None, first.labels.size, decision)
