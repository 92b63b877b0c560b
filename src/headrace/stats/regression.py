"""Score numeric predictions; None means undefined, never NaN. Checked against scikit-learn where it has the metric."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from headrace.stats.binning import Floats


def errors(actual: ArrayLike, predicted: ArrayLike) -> Floats:
    """Return each row's prediction less its actual value: positive where the model is too high."""
    return np.asarray(predicted, dtype=np.float64) - np.asarray(actual, dtype=np.float64)


def mean(values: ArrayLike, weights: ArrayLike | None = None) -> float | None:
    """Return the (weighted) mean; None without rows or weight.

    >>> mean([1.0, 4.0], [2, 1])
    2.0
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        return None
    if weights is None:
        return float(data.mean())
    weight = np.asarray(weights, dtype=np.float64)
    total = float(weight.sum())
    return float(np.sum(data * weight)) / total if total > 0 else None


def r2(actual: ArrayLike, predicted: ArrayLike, weights: ArrayLike | None = None) -> float | None:
    """Return the share of the variance that the prediction explains; None where the actual values do not vary.

    Source: Wright (1921); checked against `sklearn.metrics.r2_score`.

    >>> r2([1, 2, 3], [1, 2, 3])
    1.0
    """
    truth = np.asarray(actual, dtype=np.float64)
    centre = mean(truth, weights)
    if centre is None:
        return None
    residual, total = mean(errors(truth, predicted) ** 2, weights), mean((truth - centre) ** 2, weights)
    return 1.0 - residual / total if residual is not None and total else None


def wape(actual: ArrayLike, predicted: ArrayLike, weights: ArrayLike | None = None) -> float | None:
    """Return the summed absolute error over the summed absolute actuals; None where all actuals are zero.

    Source: Kolassa and Schuetz (2007), the MAD/mean ratio.

    >>> wape([10, 0], [8, 1])
    0.3
    """
    wrong = mean(np.abs(errors(actual, predicted)), weights)
    size = mean(np.abs(np.asarray(actual, dtype=np.float64)), weights)
    return wrong / size if wrong is not None and size else None


def pinball_losses(actual: ArrayLike, predicted: ArrayLike, quantile: float = 0.5) -> Floats:
    """Return each row's quantile loss: `quantile` x what it fell short, (1 - quantile) x what it overshot.

    Source: Koenker and Bassett (1978); checked against `sklearn.metrics.mean_pinball_loss`.

    >>> pinball_losses([10.0, 10.0], [8.0, 12.0], 0.9).round(6).tolist()
    [1.8, 0.2]
    """
    short = -errors(actual, predicted)
    return np.maximum(quantile * short, (quantile - 1.0) * short)
