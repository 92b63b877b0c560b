"""Score binary predictions. Labels are 0/1, scores are probabilities of 1; None means undefined, never NaN.

Everything is plain numpy, so that a monitor computes it without loading a training library. Ties are exact: rows of
one score are one point of a curve, whatever their order. All of it is checked against scikit-learn.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from headrace.stats.binning import Floats


class Confusion(NamedTuple):
    """Hold the four (weighted, or expected) counts of a binary decision."""

    tp: float
    fp: float
    fn: float
    tn: float


class Reliability(NamedTuple):
    """Hold, for each bin that has rows, the mean label, the mean score and the share of the rows."""

    observed: Floats
    predicted: Floats
    share: Floats


def ratio(part: float, whole: float) -> float | None:
    """Return part / whole, None where the whole is zero."""
    return float(part) / float(whole) if whole else None


def tied(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> tuple[Floats, Floats]:
    """Return the weight of positives and of negatives at each distinct score, by ascending score."""
    score = np.asarray(scores, dtype=np.float64)
    order = np.argsort(score)
    ordered = score[order]
    ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), ordered.size - 1)
    label = np.asarray(labels, dtype=np.float64)[order]
    weight = np.ones(ordered.size) if weights is None else np.asarray(weights, dtype=np.float64)[order]
    positive = np.diff(np.cumsum(label * weight)[ends], prepend=0.0)
    negative = np.diff(np.cumsum((1.0 - label) * weight)[ends], prepend=0.0)
    return positive, negative


def roc_auc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float | None:
    """Return the chance that a positive scores above a negative, ties counted half; None with one class only.

    Without weights every count is a whole number, so the result is the exact fraction, rounded once.

    Source: Hanley and McNeil (1982); checked against `sklearn.metrics.roc_auc_score`.

    >>> roc_auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.75
    """
    if np.size(np.asarray(scores)) == 0:
        return None
    positive, negative = tied(labels, scores, weights)
    below = np.cumsum(negative) - negative
    return ratio(float(np.sum(positive * (2.0 * below + negative))), 2.0 * float(positive.sum() * negative.sum()))


def average_precision(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float | None:
    """Return the area under the precision-recall curve as a step function; None without a positive.

    Sum over distinct thresholds of (recall gained) x precision, without interpolation.

    Source: Davis and Goadrich (2006) on why not to interpolate; checked against
    `sklearn.metrics.average_precision_score`.

    >>> round(average_precision([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]), 6)
    0.833333
    """
    if np.size(np.asarray(scores)) == 0:
        return None
    positive, negative = (side[::-1] for side in tied(labels, scores, weights))
    hits, found = np.cumsum(positive), np.cumsum(positive + negative)
    held = found > 0
    return ratio(float(np.sum(positive[held] * hits[held] / found[held])), float(positive.sum()))


def log_losses(labels: ArrayLike, scores: ArrayLike) -> Floats:
    """Return each row's negative log-likelihood in nats; scores are kept 2.2e-16 away from 0 and 1.

    Source: Good (1952); the clipping is scikit-learn's.
    """
    tiny = np.finfo(np.float64).eps
    score = np.clip(np.asarray(scores, dtype=np.float64), tiny, 1 - tiny)
    label = np.asarray(labels, dtype=np.float64)
    return -(label * np.log(score) + (1.0 - label) * np.log1p(-score))


def squared_errors(labels: ArrayLike, scores: ArrayLike) -> Floats:
    """Return each row's squared difference: its Brier score, or its squared error.

    Source: Brier (1950).
    """
    return (np.asarray(labels, dtype=np.float64) - np.asarray(scores, dtype=np.float64)) ** 2


def confusion(labels: ArrayLike, decisions: ArrayLike, weights: ArrayLike | None = None) -> Confusion:
    """Count the four outcomes of yes/no decisions.

    A label may also be a probability: then the counts are expected ones.

    >>> confusion([1, 1, 0, 0], [True, False, True, False])
    Confusion(tp=1.0, fp=1.0, fn=1.0, tn=1.0)
    """
    label = np.asarray(labels, dtype=np.float64)
    chosen = np.asarray(decisions, dtype=bool)
    weight = np.ones(label.size) if weights is None else np.asarray(weights, dtype=np.float64)
    positive, negative = label * weight, (1.0 - label) * weight
    tp, fp = float(positive[chosen].sum()), float(negative[chosen].sum())
    return Confusion(tp, fp, float(positive[~chosen].sum()), float(negative[~chosen].sum()))


def accuracy(counts: Confusion) -> float | None:
    """Return the share of right decisions."""
    return ratio(counts.tp + counts.tn, sum(counts))


def precision(counts: Confusion) -> float | None:
    """Return the share of positives among those decided positive; None if none was."""
    return ratio(counts.tp, counts.tp + counts.fp)


def recall(counts: Confusion) -> float | None:
    """Return the share of positives that were found (the true positive rate); None without a positive."""
    return ratio(counts.tp, counts.tp + counts.fn)


def false_positive_rate(counts: Confusion) -> float | None:
    """Return the share of negatives that were decided positive; None without a negative."""
    return ratio(counts.fp, counts.fp + counts.tn)


def f1(counts: Confusion) -> float | None:
    """Return the harmonic mean of precision and recall; None if nothing is positive and nothing was decided so."""
    return ratio(2.0 * counts.tp, 2.0 * counts.tp + counts.fp + counts.fn)


def positive_rate(counts: Confusion) -> float | None:
    """Return the share that was decided positive (the selection rate)."""
    return ratio(counts.tp + counts.fp, sum(counts))


def reliability(
    labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None, *, bins: int = 10
) -> Reliability:
    """Return the calibration curve over equal-width bins of [0, 1]; a score on an edge belongs to the lower bin.

    Source: Niculescu-Mizil and Caruana (2005); checked against `sklearn.calibration.calibration_curve`.

    >>> reliability([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], bins=2).observed.tolist()
    [0.3333333333333333, 1.0]
    """
    score, label = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    weight = np.ones(score.size) if weights is None else np.asarray(weights, dtype=np.float64)
    place = np.searchsorted(np.linspace(0.0, 1.0, bins + 1)[1:-1], score)
    mass = np.bincount(place, weights=weight, minlength=bins)
    held = mass > 0
    observed = np.bincount(place, weights=label * weight, minlength=bins)[held] / mass[held]
    predicted = np.bincount(place, weights=score * weight, minlength=bins)[held] / mass[held]
    return Reliability(observed, predicted, mass[held] / mass.sum())


def calibration_error(
    labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None, *, bins: int = 10
) -> float | None:
    """Return the expected calibration error: the mean gap of label and score over equal-width bins, by rows.

    Source: Naeini, Cooper and Hauskrecht (2015), as Guo et al. (2017), equation 3.

    >>> round(calibration_error([0, 1], [0.25, 0.75]), 6)
    0.25
    """
    if np.size(np.asarray(scores)) == 0:
        return None
    curve = reliability(labels, scores, weights, bins=bins)
    return float(np.sum(curve.share * np.abs(curve.observed - curve.predicted)))
