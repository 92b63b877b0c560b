"""State how sure a measured number is: intervals, and paired comparisons on the same rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from headrace.core.errors import DataError, DefinitionError
from headrace.stats.binning import Floats

Decision = Literal["first", "second", "undecided"]


class Interval(NamedTuple):
    """Hold a confidence interval."""

    low: float
    high: float


class Estimate(NamedTuple):
    """Hold a measured value with its confidence interval."""

    value: float
    low: float
    high: float


class Bootstrap(NamedTuple):
    """Hold a bootstrap interval and how many resamples gave a value."""

    low: float
    high: float
    resamples: int


class Difference(NamedTuple):
    """Hold first less second, its interval, the two-sided p-value of no difference, and which side is decided better.

    `mean` is None with fewer than two rows (or clusters); the decision is then "undecided".
    """

    mean: float | None
    low: float | None
    high: float | None
    p_value: float | None
    rows: int
    decision: Decision


def quantile_of(confidence: float) -> float:
    """Return the standard normal quantile of a two-sided interval.

    Raises:
        DefinitionError: the confidence does not lie between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise DefinitionError(
            "not a confidence",
            where="stats.intervals",
            got=confidence,
            expected="a number between 0 and 1",
            next_step="write 0.95 for 95 %",
        )
    return float(ndtri(0.5 + confidence / 2))


def wilson(successes: float, rows: float, confidence: float = 0.95) -> Interval:
    """Return the score interval of a share; it stays inside [0, 1] and is (0, 1) without rows.

    Source: Wilson (1927); checked against the textbook's closed form and its coverage.

    >>> tuple(round(end, 4) for end in wilson(0, 10))
    (0.0, 0.2775)
    """
    if rows <= 0:
        return Interval(0.0, 1.0)
    z2 = quantile_of(confidence) ** 2
    share = successes / rows
    centre = (share + z2 / (2 * rows)) / (1 + z2 / rows)
    half = np.sqrt(z2 * (share * (1 - share) / rows + z2 / (4 * rows * rows))) / (1 + z2 / rows)
    return Interval(max(0.0, float(centre - half)), min(1.0, float(centre + half)))


def newcombe(first: tuple[float, float], second: tuple[float, float], confidence: float = 0.95) -> Interval:
    """Return the interval of the first share less the second; each side is (successes, rows).

    Source: Newcombe (1998), method 10; checked against `statsmodels.stats.proportion.confint_proportions_2indep`.

    >>> tuple(round(end, 5) for end in newcombe((62, 1010), (45, 1000)))
    (-0.00336, 0.03635)
    """
    shares = [successes / rows for successes, rows in (first, second)]
    ends = [wilson(*side, confidence) for side in (first, second)]
    below = np.hypot(shares[0] - ends[0].low, ends[1].high - shares[1])
    above = np.hypot(ends[0].high - shares[0], shares[1] - ends[1].low)
    gap = shares[0] - shares[1]
    return Interval(float(gap - below), float(gap + above))


def bootstrap(
    statistic: Callable[..., float | None],
    *samples: ArrayLike,
    rng: np.random.Generator,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> Bootstrap | None:
    """Return the percentile interval of a statistic of rows; all samples are resampled together, so they stay paired.

    A resample for which the statistic is None (one class only, say) is left out; None if all are.

    Source: Efron (1979); the percentile interval as in Efron and Tibshirani (1993), chapter 13.

    >>> found = bootstrap(np.mean, np.zeros(5), rng=np.random.default_rng(1), resamples=9)
    >>> found.low, found.high, found.resamples
    (0.0, 0.0, 9)

    Raises:
        DataError: the samples have different lengths.
    """
    columns = [np.asarray(values) for values in samples]
    same_rows(*columns)
    quantile_of(confidence)
    rows = columns[0].shape[0]
    if rows == 0:
        return None
    drawn = (rng.integers(0, rows, rows) for _ in range(resamples))
    values = [
        value for value in (statistic(*(column[row] for column in columns)) for row in drawn) if value is not None
    ]
    if not values:
        return None
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Bootstrap(float(low), float(high), len(values))


def paired_difference(
    loss_first: ArrayLike, loss_second: ArrayLike, confidence: float = 0.95, *, clusters: ArrayLike | None = None
) -> Difference:
    """Compare two models by their losses on the same rows; the lower mean loss wins once the interval excludes zero.

    Student's interval of the mean difference. Rows that share a fate (one day, one customer) are not independent: with
    `clusters` the variance is the cluster-robust one of Liang and Zeger (1986), with (clusters - 1) degrees of freedom.

    Source: Diebold and Mariano (1995) for loss differences; Student (1908).

    >>> paired_difference([0.1, 0.2, 0.1, 0.2], [0.9, 0.8, 0.8, 0.9]).decision
    'first'

    Raises:
        DataError: the losses are not of the same rows.
    """
    first, second = np.asarray(loss_first, dtype=np.float64), np.asarray(loss_second, dtype=np.float64)
    same_rows(first, second)
    gaps = first - second
    parts = gaps if clusters is None else summed(gaps - gaps.mean(), clusters)
    units = parts.size
    if units < 2:
        return Difference(None, None, None, None, gaps.size, "undecided")
    if clusters is None:
        error = float(np.std(gaps, ddof=1) / np.sqrt(units))
    else:
        error = float(np.sqrt(np.sum(parts**2) * units / (units - 1)) / gaps.size)
    return decided(float(gaps.mean()), error, units - 1, gaps.size, confidence, lower_wins=True)


def auc_interval(labels: ArrayLike, scores: ArrayLike, confidence: float = 0.95) -> Estimate | None:
    """Return the AUC with DeLong's interval, cut to [0, 1]; None without two rows of each class.

    Source: DeLong, DeLong and Clarke-Pearson (1988), by the midranks of Sun and Xu (2014).

    >>> [round(end, 3) for end in auc_interval([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])]
    [0.75, 0.057, 1.0]
    """
    found = delong(labels, np.asarray(scores, dtype=np.float64)[None, :])
    if found is None:
        return None
    value, half = float(found[0][0]), quantile_of(confidence) * float(np.sqrt(found[1][0, 0]))
    return Estimate(value, max(0.0, value - half), min(1.0, value + half))


def auc_difference(labels: ArrayLike, first: ArrayLike, second: ArrayLike, confidence: float = 0.95) -> Difference:
    """Compare the AUCs of two models on the same rows; the higher wins once the interval excludes zero.

    Source: DeLong, DeLong and Clarke-Pearson (1988), equation 2.
    """
    scores = np.stack([np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)])
    found = delong(labels, scores)
    if found is None:
        return Difference(None, None, None, None, scores.shape[1], "undecided")
    areas, cov = found
    error = float(np.sqrt(max(0.0, cov[0, 0] + cov[1, 1] - 2 * cov[0, 1])))
    return decided(float(areas[0] - areas[1]), error, None, scores.shape[1], confidence, lower_wins=False)


def two_proportions(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    """Return z and the two-sided p-value of the first share less the second; each side is (successes, rows).

    Source: the pooled z test, as `statsmodels.stats.proportion.proportions_ztest`.

    >>> tuple(round(value, 4) for value in two_proportions((45, 1000), (62, 1010)))
    (-1.6362, 0.1018)
    """
    shared = (first[0] + second[0]) / (first[1] + second[1])
    spread = np.sqrt(shared * (1 - shared) * (1 / first[1] + 1 / second[1]))
    gap = first[0] / first[1] - second[0] / second[1]
    if spread == 0:
        return 0.0, 1.0
    z = float(gap / spread)
    return z, float(2 * ndtr(-abs(z)))


def decided(gap: float, error: float, dof: int | None, rows: int, confidence: float, *, lower_wins: bool) -> Difference:
    """Put an interval around a difference and name the winner; a zero error decides by the sign alone."""
    normal = quantile_of(confidence)
    width = error * (normal if dof is None else float(stdtrit(dof, 0.5 + confidence / 2)))
    low, high = gap - width, gap + width
    if error > 0:
        p_value = 2 * float(ndtr(-abs(gap) / error) if dof is None else stdtr(dof, -abs(gap) / error))
    else:
        p_value = 0.0 if gap else 1.0
    decision: Decision = "undecided"
    if high < 0:
        decision = "first" if lower_wins else "second"
    elif low > 0:
        decision = "second" if lower_wins else "first"
    return Difference(gap, low, high, p_value, rows, decision)


def delong(labels: ArrayLike, scores: Floats) -> tuple[Floats, Floats] | None:
    """Return the AUC of each row of scores and their covariance matrix; None without two rows of each class."""
    label = np.asarray(labels).astype(bool)
    same_rows(label, scores.T)
    positive, negative = scores[:, label], scores[:, ~label]
    hits, misses = positive.shape[1], negative.shape[1]
    if min(hits, misses) < 2:
        return None
    above = np.stack([share_below(row, other) for row, other in zip(positive, negative, strict=True)])
    under = np.stack([1.0 - share_below(row, other) for row, other in zip(negative, positive, strict=True)])
    return above.mean(axis=1), _covariance(above) / hits + _covariance(under) / misses


def _covariance(rows: Floats) -> Floats:
    """Return the sample covariances (n - 1) of rows of values, without BLAS, whose sums depend on its threads."""
    apart = rows - rows.mean(axis=1, keepdims=True)
    found: Floats = np.array([[(a * b).sum() for b in apart] for a in apart]) / (rows.shape[1] - 1)
    return found


def share_below(values: Floats, others: Floats) -> Floats:
    """Return for each value the share of the others below it, ties counted half."""
    ordered = np.sort(others)
    left, right = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return (left + right) / (2.0 * ordered.size)


def summed(values: Floats, clusters: ArrayLike) -> Floats:
    """Return the sum of the values of each cluster."""
    labels = np.asarray(clusters)
    same_rows(values, labels)
    _, place = np.unique(labels, return_inverse=True)
    sums: Floats = np.bincount(place, weights=values).astype(np.float64)
    return sums


def same_rows(*columns: NDArray[Any]) -> None:
    """Refuse columns of different lengths.

    Raises:
        DataError: they differ.
    """
    lengths = [column.shape[0] for column in columns]
    if len(set(lengths)) > 1:
        raise DataError(
            "columns of different lengths",
            where="stats.intervals",
            got=lengths,
            expected="one value for each row in every column",
            next_step="score both models on the same rows",
        )
