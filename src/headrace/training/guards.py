"""Look at what a model was given: features that give the label away, and how much each feature matters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from headrace.stats.classification import log_losses, roc_auc, squared_errors
from headrace.training.data import Part
from headrace.training.plan import Kind

LEAK_AUC = 0.999
LEAK_CORRELATION = 0.999
ROWS_A_CODE = 20  # a text with fewer rows for each value tells rows apart, whatever the label
IMPORTANCE_ROWS = 2_000
Score = Callable[[NDArray[np.float32]], NDArray[np.float64]]


def leak_warnings(part: Part, kind: Kind) -> list[str]:
    """Return a warning for each single feature that all but determines the label on the training rows."""
    found = []
    for i, name in enumerate(part.X.columns):
        values = np.asarray(part.X[:, i], np.float64)
        strength = _strength(values, np.asarray(part.y, np.float64), kind, i in part.X.categorical)
        if strength is not None:
            found.append(f"target leak? {name} alone {strength} on the training rows")
    return found


def _strength(values: NDArray[np.float64], label: NDArray[np.float64], kind: Kind, coded: bool) -> str | None:
    if coded:
        if len(np.unique(values)) * ROWS_A_CODE > len(values):
            return None
        values = _mean_label(values, label)
    if kind == "classification":
        area = _separation(values, label)
        return f"separates the label with AUC {area:.4f}" if area > LEAK_AUC else None
    known = np.isfinite(values)
    if np.count_nonzero(known) < ROWS_A_CODE or np.ptp(values[known]) == 0 or np.ptp(label[known]) == 0:
        return None
    correlation = abs(float(np.corrcoef(values[known], label[known])[0, 1]))
    return f"correlates with the label by {correlation:.4f}" if correlation > LEAK_CORRELATION else None


def _mean_label(codes: NDArray[np.float64], label: NDArray[np.float64]) -> NDArray[np.float64]:
    place = np.unique(codes, return_inverse=True)[1]
    return np.asarray((np.bincount(place, label) / np.bincount(place))[place], np.float64)


def _separation(values: NDArray[np.float64], label: NDArray[np.float64]) -> float:
    """Return the AUC of a feature in its better direction; a null may lie below or above every number."""
    null = np.isnan(values)
    places = [values] if not null.any() else [np.where(null, -np.inf, values), np.where(null, np.inf, values)]
    areas = [area for area in (roc_auc(label, placed) for placed in places) if area is not None]
    return max([0.5, *areas, *(1 - area for area in areas)])


def importance(score: Score, part: Part, kind: Kind, rng: np.random.Generator) -> dict[str, float]:
    """Return for each feature how much the mean loss rises when its values are shuffled among the newest rows.

    The loss is the log loss, for numbers the squared error.

    Source: permutation importance, Breiman, Random Forests (2001), section 10.
    """
    matrix, label = part.X.numpy()[-IMPORTANCE_ROWS:], np.asarray(part.y[-IMPORTANCE_ROWS:], np.float64)
    losses = log_losses if kind == "classification" else squared_errors
    before = float(losses(label, score(matrix)).mean())
    found = {}
    for i, name in enumerate(part.X.columns):
        shuffled = matrix.copy()
        shuffled[:, i] = rng.permutation(shuffled[:, i])
        found[name] = float(losses(label, score(shuffled)).mean()) - before
    return found
