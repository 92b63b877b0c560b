from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pytest
from lightgbm import LGBMClassifier
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from headrace.core.errors import DataError
from headrace.features.record import FeatureVector
from headrace.models.convert import make_servable
from headrace.models.definition import model
from headrace.models.encoder import Encoder
from headrace.models.servable import Servable

GBM: dict[str, Any] = {"n_estimators": 30, "verbose": -1, "n_jobs": 1}


class Rows(Protocol):
    table: pa.Table
    encoder: Encoder
    matrix: NDArray[np.float32]
    label: NDArray[np.int64]


@pytest.fixture(scope="module", params=["onnx", "lightgbm"])
def servable(request: pytest.FixtureRequest, rows: Rows) -> Servable:
    estimator = LGBMClassifier(**GBM).fit(rows.matrix, rows.label)
    return make_servable(model(estimator, format=request.param), rows.encoder, rows.matrix[:200])


def random_vector(vector: FeatureVector, random: np.random.Generator) -> FeatureVector:
    vector.words.view(np.float64)[4:] = random.normal(10, 20, 4)
    vector.words[3] = random.integers(0, 60)
    vector.texts[0] = str(random.choice(["UA", "AA", "new"]))
    return vector


def test_one_row_scores_as_the_batch_does(servable: Servable, vector: FeatureVector) -> None:
    random = np.random.default_rng(5)
    for _ in range(100):
        random_vector(vector, random)
        plain = {name: [value] for name, value in vector.to_dict().items()}
        matrix = servable.encoder.encode(pa.table(plain))
        assert servable.score_one(vector) == servable.score(matrix)[0]


def test_each_thread_has_a_servable_of_its_own(servable: Servable, rows: Rows, vector: FeatureVector) -> None:
    expected = servable.score_one(vector)

    def work(seed: int) -> set[float]:
        mine, random = servable.another(), np.random.default_rng(seed)
        other = FeatureVector(vector.columns, vector.words.copy(), vector.status.copy(), list(vector.texts))
        found = set()
        for _ in range(200):
            mine.score_one(
                random_vector(FeatureVector(other.columns, other.words.copy(), other.status, ["AA"]), random)
            )
            found.add(mine.score_one(other))
        return found

    with ThreadPoolExecutor(4) as pool:
        assert set().union(*pool.map(work, range(4))) == {expected}


def test_no_rows_give_no_scores(servable: Servable, rows: Rows) -> None:
    assert servable.score(rows.matrix[:0]).shape == (0,)


def test_a_row_without_a_number_is_an_error(rows: Rows, vector: FeatureVector) -> None:
    estimator = LogisticRegression(max_iter=20).fit(np.nan_to_num(rows.matrix), rows.label)
    servable = make_servable(model(estimator), rows.encoder, rows.matrix)
    assert 0 <= servable.score_one(vector) <= 1
    vector.words.view(np.float64)[4], vector.status[4] = np.nan, 1
    with pytest.raises(DataError) as caught:
        servable.score_one(vector)
    assert "the model gave no number" in str(caught.value)
    assert "expected: features without null" in str(caught.value)
    with pytest.raises(DataError, match="the model gave no number"):
        servable.score(rows.matrix)
    assert np.isnan(servable.score_or_nan(rows.matrix)).any()
