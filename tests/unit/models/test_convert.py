"""Conversions decide as the original does: at thresholds, at nulls, for unknown texts; what cannot is refused."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np
import pytest
from lightgbm import LGBMClassifier, LGBMRegressor
from numpy.typing import NDArray
from sklearn.ensemble import (
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from headrace.core.errors import UserCodeError
from headrace.models.convert import booster_of, compare, make_servable, reference_scores
from headrace.models.definition import model
from headrace.models.encoder import Encoder
from headrace.models.servable import Servable
from headrace.models.trees import float32_at_most

GBM: dict[str, Any] = {"n_estimators": 20, "num_leaves": 15, "verbose": -1, "n_jobs": 1}


class Rows(Protocol):
    encoder: Encoder
    matrix: NDArray[np.float32]
    label: NDArray[np.int64]
    number: NDArray[np.float64]


def kept(rows: Rows, estimator: Any, **options: Any) -> Servable:
    return make_servable(model(estimator, **options), rows.encoder, rows.matrix[1_500:])


def at_the_thresholds(rows: Rows, estimator: Any) -> NDArray[np.float32]:
    """Put each split's threshold, and the two float32 values beside it, into otherwise real rows."""
    matrix, found = rows.matrix.copy(), []

    def walk(node: dict[str, Any]) -> None:
        if "split_feature" in node:
            if node["decision_type"] == "<=":
                found.append((node["split_feature"], np.float32(min(node["threshold"], 3e38))))
            walk(node["left_child"])
            walk(node["right_child"])

    booster = booster_of(estimator)
    assert booster is not None
    for tree in booster.dump_model()["tree_info"]:
        walk(tree["tree_structure"])
    assert len(found) > 50
    for i, (feature, value) in enumerate(found):
        beside = [value, np.nextafter(value, np.float32(np.inf)), np.nextafter(value, np.float32(-np.inf))]
        for step in range(3):
            matrix[(3 * i + step) % len(matrix), feature] = beside[step]
    return matrix


@pytest.mark.parametrize(
    "estimator",
    [
        LGBMClassifier(**GBM),
        LGBMClassifier(objective="binary", sigmoid=0.5, **GBM),
        LGBMClassifier(boosting_type="rf", bagging_freq=1, bagging_fraction=0.6, **GBM),
        LGBMRegressor(**GBM),
        LGBMRegressor(objective="poisson", **GBM),
    ],
    ids=["binary", "sigmoid", "forest", "regression", "poisson"],
)
def test_lightgbm_decides_alike_at_every_threshold_and_null(rows: Rows, estimator: Any) -> None:
    label = rows.label if isinstance(estimator, LGBMClassifier) else np.maximum(rows.number, 0)
    estimator.fit(rows.matrix, label)
    servable, matrix = kept(rows, estimator), at_the_thresholds(rows, estimator)
    nulls = matrix.copy()
    nulls[np.random.default_rng(1).random(nulls.shape) < 0.3] = np.nan
    for tried in (matrix, nulls):
        expected, got = reference_scores(estimator, tried), servable.score(tried)
        assert np.max(np.abs(got - expected) / np.maximum(1, np.abs(expected))) < 5e-6


def test_lightgbm_categories_go_where_they_went(rows: Rows) -> None:
    estimator = LGBMClassifier(**GBM, min_data_per_group=5, cat_smooth=1)
    estimator.fit(rows.matrix, rows.label, categorical_feature=list(rows.encoder.categorical))
    text = estimator.booster_.model_to_string()
    assert "num_cat=0" not in text.split("Tree=0")[1].split("Tree=1")[0]
    matrix = rows.matrix.copy()
    matrix[:, 0] = np.arange(len(matrix)) % 6  # codes that training never saw among them
    assert np.max(np.abs(kept(rows, estimator).score(matrix) - reference_scores(estimator, matrix))) < 1e-6


@pytest.mark.parametrize(
    "estimator",
    [
        DecisionTreeClassifier(max_depth=6, random_state=0),
        RandomForestClassifier(10, max_depth=8, random_state=0),
        ExtraTreesRegressor(10, max_depth=8, random_state=0),
        HistGradientBoostingClassifier(max_iter=20),
        HistGradientBoostingRegressor(max_iter=20),
        make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression()),
        make_pipeline(SimpleImputer(strategy="median"), LinearRegression()),
        make_pipeline(SimpleImputer(), LGBMClassifier(**GBM)),
        make_pipeline(SimpleImputer(), GradientBoostingClassifier(n_estimators=10)),
    ],
    ids=lambda estimator: type(estimator.steps[-1][1] if hasattr(estimator, "steps") else estimator).__name__,
)
def test_scikit_learn_scores_alike_nulls_included(rows: Rows, estimator: Any) -> None:
    classifies = hasattr(estimator, "predict_proba")
    estimator.fit(rows.matrix, rows.label if classifies else rows.number)
    conversion = kept(rows, estimator).manifest.conversion
    assert (conversion.rows, conversion.accepts_null) == (1_000, True)
    assert conversion.largest_difference < 5e-6


def test_thresholds_are_never_rounded_up() -> None:
    values = np.random.default_rng(3).normal(0, 1e9, 1_000)
    assert all(
        float32_at_most(v) <= v < np.nextafter(np.float32(float32_at_most(v)), np.float32(np.inf)) for v in values
    )


@pytest.mark.parametrize("case", ["zero", "null"])
def test_numbers_around_zero_and_infinity_go_where_lightgbm_sends_them(rows: Rows, case: str) -> None:
    """Its predictor reads up to 1e-35 as 0, and a split of null against everything else has no finite threshold."""
    matrix, random = rows.matrix.copy(), np.random.default_rng(2)
    label = np.arange(len(matrix)) % 2
    if case == "zero":
        matrix[:, 4] = np.where(label == 1, random.choice([0.0, 3.0], len(matrix)), -2.0)
    else:
        matrix[:, 4] = np.where(label == 1, np.nan, random.normal(size=len(matrix)))
    estimator = LGBMClassifier(**GBM).fit(matrix, label)
    assert {"zero": "-1.0000000180025095e-35", "null": "1e+300"}[case] in str(estimator.booster_.dump_model())
    servable = make_servable(model(estimator), rows.encoder, matrix)
    near = np.float32(1e-35)
    beside = [np.nextafter(-near, np.float32(-1)), np.nextafter(near, np.float32(1))]
    for value in (near, -near, *beside, -0.0, np.inf, -np.inf, np.nan):
        tried = matrix.copy()
        tried[:, 4] = value
        assert np.max(np.abs(servable.score(tried) - reference_scores(estimator, tried))) < 1e-6


def test_neighbouring_instants_stay_apart(rows: Rows) -> None:
    """Two instants 134 s apart are neighbours in float32; their midpoint must not move to the upper one."""
    matrix = rows.matrix.copy()
    low = np.float32(1.4e15)
    high = np.nextafter(low, np.float32(np.inf))
    matrix[:, 2] = np.where(rows.label == 1, high, low)
    for estimator in (LGBMClassifier(**GBM), DecisionTreeClassifier(), HistGradientBoostingClassifier(max_iter=5)):
        estimator.fit(matrix, rows.label)
        servable = make_servable(model(estimator), rows.encoder, matrix)
        assert np.array_equal(servable.score(matrix) > 0.5, rows.label == 1)


def test_an_estimator_without_nulls_is_kept_and_says_so(rows: Rows) -> None:
    whole = np.nan_to_num(rows.matrix[:, :])
    servable = kept(rows, make_pipeline(StandardScaler(), LogisticRegression()).fit(whole, rows.label))
    assert servable.manifest.conversion.accepts_null is False
    assert 0 < servable.manifest.conversion.rows < 500


def test_lightgbm_text_is_kept_unchanged(rows: Rows) -> None:
    estimator = LGBMClassifier(**GBM).fit(rows.matrix, rows.label)
    servable = kept(rows, estimator, format="lightgbm")
    assert servable.manifest.conversion.largest_difference == 0.0
    assert servable.content == estimator.booster_.model_to_string().encode()


def test_a_difference_above_the_tolerance_is_refused(rows: Rows) -> None:
    first, other = (LGBMClassifier(**GBM, random_state=0).fit(rows.matrix, y) for y in (rows.label, 1 - rows.label))
    servable = kept(rows, first)
    with pytest.raises(UserCodeError) as caught:
        compare(model(other), servable, rows.matrix)
    assert "scores differently as onnx" in str(caught.value)
    assert "expected: at most 1e-05" in str(caught.value)


@pytest.mark.parametrize(
    ("estimator", "label", "said"),
    [
        (LGBMClassifier(zero_as_missing=True, **GBM), "label", "zero_as_missing"),
        (LGBMRegressor(linear_tree=True, **GBM), "number", "linear_tree"),
        (LGBMRegressor(objective="regression", reg_sqrt=True, **GBM), "number", "sqrt"),
        (LGBMClassifier(**GBM), "three", "a classifier of the classes"),
        (DecisionTreeClassifier(max_depth=3), "three", "a classifier of the classes"),
    ],
)
def test_what_has_no_exact_form_is_refused(rows: Rows, estimator: Any, label: str, said: str) -> None:
    matrix, three = np.nan_to_num(rows.matrix), np.arange(len(rows.label)) % 3
    matrix[:, 4:][np.abs(matrix[:, 4:]) < 5] = 0
    estimator.fit(matrix, three if label == "three" else getattr(rows, label))
    with pytest.raises(UserCodeError) as caught:
        kept(rows, estimator)
    assert said in str(caught.value)


@pytest.mark.parametrize("estimator", [LGBMClassifier(), LGBMRegressor(), LogisticRegression(), LinearRegression()])
def test_an_unfitted_estimator_is_refused(rows: Rows, estimator: Any) -> None:
    with pytest.raises(UserCodeError, match="cannot be kept as onnx"):
        kept(rows, estimator)


def test_the_manifest_says_what_it_was_given(rows: Rows) -> None:
    servable = make_servable(
        model(LGBMClassifier(**GBM).fit(rows.matrix, rows.label)),
        rows.encoder,
        rows.matrix,
        run="r1",
        decision={"threshold": 0.35},
        data={"definition": "d1"},
        environment={"python": "3"},
    )
    read = type(servable.manifest).from_bytes(servable.manifest.to_bytes())
    assert read == dataclasses.replace(servable.manifest) and read.digest == servable.manifest.digest
    assert (read.run, read.decision, read.data) == ("r1", {"threshold": 0.35}, {"definition": "d1"})
    assert read.size == len(servable.content) == servable.size
