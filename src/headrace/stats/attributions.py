"""Attribute a prediction to its inputs where that has a closed form."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from headrace.stats.binning import Floats


def linear_shapley(weights: ArrayLike, rows: ArrayLike, background: ArrayLike) -> Floats:
    """Return the Shapley values of a linear model, shape (rows, features): weight x (value - background's mean).

    Each row's values sum to its prediction less the mean prediction of the background; features count as independent.

    Source: Strumbelj and Kononenko (2014); Lundberg and Lee (2017), corollary 1. Equals `shap.LinearExplainer`.

    >>> linear_shapley([2.0], [[3.0]], [[1.0], [2.0]]).tolist()
    [[3.0]]
    """
    centre = np.asarray(background, dtype=np.float64).mean(axis=0)
    values: Floats = np.asarray(weights, dtype=np.float64) * (np.asarray(rows, dtype=np.float64) - centre)
    return values
