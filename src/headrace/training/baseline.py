"""Train the baseline beside a model: what the same rows give without any art."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.training.data import Part
from headrace.training.definition import Baseline
from headrace.training.plan import Kind

ROWS = 50_000
CATEGORIES = 32
LARGEST = 1e30


class Prior:
    """Predict the training rows' mean label for every row."""

    def __init__(self, mean: float) -> None:
        self.mean = mean

    def score(self, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the mean, once a row."""
        return np.full(len(matrix), self.mean)


class Linear:
    """Predict by a logistic regression (or a ridge regression for numbers) on imputed, scaled, one-hot features."""

    def __init__(self, kind: Kind, categorical: tuple[int, ...], width: int) -> None:
        from sklearn.compose import make_column_transformer
        from sklearn.impute import SimpleImputer
        from sklearn.linear_model import LogisticRegression, Ridge
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import OneHotEncoder, StandardScaler

        numbers = [i for i in range(width) if i not in categorical]
        scaled = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler())
        coded = OneHotEncoder(max_categories=CATEGORIES, handle_unknown="infrequent_if_exist")
        prepared = make_column_transformer((scaled, numbers), (coded, list(categorical)))
        self.kind = kind
        self.pipeline = make_pipeline(
            prepared, LogisticRegression(max_iter=300) if kind == "classification" else Ridge()
        )

    def fit(self, part: Part) -> Linear:
        """Learn from the newest `ROWS` rows, which keeps the baseline a matter of seconds."""
        weights = {f"{self.pipeline.steps[-1][0]}__sample_weight": part.weight[-ROWS:]}
        self.pipeline.fit(finite(part.X.numpy()[-ROWS:]), part.y[-ROWS:], **weights)
        return self

    def score(self, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the probability of 1, or the predicted number, of each row."""
        estimator: Any = self.pipeline
        if self.kind == "classification":
            return np.asarray(estimator.predict_proba(finite(matrix))[:, 1], np.float64)
        return np.asarray(estimator.predict(finite(matrix)), np.float64)


def finite(matrix: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return a matrix whose infinities are large numbers instead: scikit-learn refuses them."""
    return np.clip(np.asarray(matrix, np.float64), -LARGEST, LARGEST)


def train_baseline(kind: Kind, baseline: Baseline, part: Part, categorical: tuple[int, ...]) -> Prior | Linear:
    """Return a baseline that was fitted on the training part."""
    if baseline == "prior":
        return Prior(float(np.average(part.y, weights=part.weight)))
    return Linear(kind, categorical, part.X.shape[1]).fit(part)
