"""Estimate performance before labels arrive (confidence-based performance estimation)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from headrace.core.errors import DataError
from headrace.stats.binning import Floats
from headrace.stats.classification import Confusion, confusion, roc_auc


@dataclass(frozen=True)
class Calibration:
    """Map scores to probabilities: a rising function, linear between its points and constant beyond them."""

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]

    def __call__(self, scores: ArrayLike) -> Floats:
        """Return the calibrated probability of each score."""
        return np.interp(np.asarray(scores, dtype=np.float64), self.scores, self.probabilities)


def isotonic(labels: ArrayLike, scores: ArrayLike) -> Calibration:
    """Fit the rising function that is closest to the labels in squares, by pooling adjacent violators.

    Source: Ayer et al. (1955); Zadrozny and Elkan (2002) for calibration. Checked against
    `sklearn.isotonic.IsotonicRegression(out_of_bounds="clip")`.

    >>> isotonic([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4])(0.25).tolist()
    0.5

    Raises:
        DataError: there are no rows.
    """
    points, place = np.unique(np.asarray(scores, dtype=np.float64), return_inverse=True)
    if points.size == 0:
        raise DataError(
            "no rows to calibrate on",
            where="stats.estimation",
            expected="labelled rows with scores",
            next_step="wait until labels have matured",
        )
    weight = np.bincount(place).astype(np.float64)
    target = np.bincount(place, weights=np.asarray(labels, dtype=np.float64)) / weight
    fitted = pooled_adjacent(target, weight)
    # Inside a flat stretch only its ends matter; dropping the rest keeps the record small.
    kept = np.ones(points.size, dtype=bool)
    kept[1:-1] = (fitted[1:-1] != fitted[:-2]) | (fitted[1:-1] != fitted[2:])
    return Calibration(tuple(points[kept].tolist()), tuple(fitted[kept].tolist()))


def pooled_adjacent(target: Floats, weight: Floats) -> Floats:
    """Return the rising sequence closest to `target` in weighted squares."""
    blocks: list[tuple[float, float, int]] = []
    for value, mass in zip(target.tolist(), weight.tolist(), strict=True):
        size = 1
        while blocks and blocks[-1][0] >= value:
            before, other, length = blocks.pop()
            value, mass = (before * other + value * mass) / (other + mass), other + mass
            size += length
        blocks.append((value, mass, size))
    return np.repeat([block[0] for block in blocks], [block[2] for block in blocks])


def expected_confusion(probabilities: ArrayLike, decisions: ArrayLike) -> Confusion:
    """Return the confusion counts to expect of rows whose calibrated probabilities of 1 are known.

    Every metric of a `Confusion` (accuracy, precision, recall, f1) then is its estimate without labels.

    Source: NannyML, confidence-based performance estimation; Kivimaki et al. (2025) on its assumptions: calibrated
    scores, and no concept drift.

    >>> expected_confusion([0.75, 0.25], [True, False])
    Confusion(tp=0.75, fp=0.25, fn=0.25, tn=0.75)
    """
    return confusion(probabilities, decisions)


def expected_auc(probabilities: ArrayLike, scores: ArrayLike) -> float | None:
    """Return the AUC to expect of scores whose calibrated probabilities are known: each row is part 1, part 0.

    >>> round(expected_auc([0.9, 0.1], [0.9, 0.1]), 2)
    0.9
    """
    return roc_auc(probabilities, scores)
