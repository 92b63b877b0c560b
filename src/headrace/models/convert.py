"""Turn a fitted estimator into bytes that are safe to keep, and show that they score as the estimator does."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.core.errors import UserCodeError
from headrace.models.definition import Model
from headrace.models.encoder import Encoder
from headrace.models.lightgbm_trees import lightgbm_to_onnx
from headrace.models.record import Conversion, Manifest, ModelFile, Task
from headrace.models.servable import Servable, onnx_session, probe_scores
from headrace.models.sklearn_trees import sklearn_trees_to_onnx
from headrace.models.trees import IR_VERSION, OPSETS

TOLERANCE = 1e-5
CHECKED_ROWS = 2_000
Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Converted:
    """Hold a model's bytes and where in their output the score stands."""

    format: str
    task: Task
    content: bytes
    output: str
    column: int


def make_servable(
    model: Model,
    encoder: Encoder,
    held_out: Matrix,
    *,
    run: str = "",
    decision: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    tolerance: float = TOLERANCE,
) -> Servable:
    """Return a servable of a fitted estimator, after comparing both on held-out rows and on rows with nulls.

    The largest difference goes into the manifest; for a regression it is a share of the largest prediction (at
    least 1).

    Raises:
        UserCodeError: the estimator has no exact form in the wanted format, or the difference exceeds `tolerance`.
    """
    converted = convert(model, len(encoder.columns))
    manifest = Manifest(
        format=converted.format,
        task=converted.task,
        files=(ModelFile.of("model." + {"onnx": "onnx", "lightgbm": "txt"}[converted.format], converted.content),),
        encoder=encoder.to_json(),
        output=converted.output,
        column=converted.column,
        conversion=Conversion(0, 0.0, tolerance, True),
        probe=(),
        run=run,
        decision=dict(decision or {}),
        data=dict(data or {}),
        environment=dict(environment or {}),
    )
    servable = Servable(manifest, converted.content)
    checked = replace(manifest, conversion=compare(model, servable, held_out), probe=probe_scores(servable))
    return Servable(checked, converted.content)


def convert(model: Model, width: int) -> Converted:
    """Convert a fitted estimator that takes `width` float32 features.

    Raises:
        UserCodeError: it is not fitted, is no binary classifier or regressor, or has no such form.
    """
    try:
        task, booster = task_of(model), booster_of(model.estimator)
        if model.format == "lightgbm":
            if booster is None:
                raise unconvertible(model, 'format="lightgbm" keeps LightGBM estimators only')
            return Converted("lightgbm", task, booster.model_to_string().encode(), "", 0)
        content = _to_onnx(model.estimator, width)
    except UserCodeError:
        raise
    except Exception as error:  # converters raise whatever they like; the cause is kept
        raise unconvertible(model, f"{type(error).__name__}: {error}") from error
    output = onnx_session(content).get_outputs()[0]
    return Converted("onnx", task, content, output.name, 1 if output.shape[1] == 2 else 0)


def task_of(model: Model) -> Task:
    """Tell whether a fitted estimator classifies (yes or no) or predicts a number.

    Raises:
        UserCodeError: it is not fitted, or knows more or fewer than two classes.
    """
    estimator = model.estimator
    classes = getattr(estimator, "classes_", None)
    if not hasattr(estimator, "predict_proba"):
        return "regression"
    if classes is None or [float(c) for c in classes] != [0.0, 1.0]:
        raise unconvertible(model, f"a classifier of the classes {None if classes is None else list(classes)}")
    return "classification"


def unconvertible(model: Model, got: str) -> UserCodeError:
    """Return the error for an estimator that cannot be kept as its author wants."""
    return UserCodeError(
        f"{type(model.estimator).__name__} cannot be kept as {model.format}",
        where=model.location,
        got=got,
        expected="a fitted classifier of 0 and 1, or a regressor, that scikit-learn or LightGBM brings",
        next_step='return hr.model(estimator.fit(data.train.X, data.train.y)), or keep LightGBM with format="lightgbm"',
    )


def booster_of(estimator: Any) -> Any | None:
    """Return the LightGBM booster inside an estimator, or None."""
    lightgbm = sys.modules.get("lightgbm")  # whoever made a LightGBM model has imported it
    if lightgbm is None:
        return None
    if isinstance(estimator, lightgbm.Booster):
        return estimator
    return estimator.booster_ if isinstance(estimator, lightgbm.LGBMModel) else None


def _to_onnx(estimator: Any, width: int) -> bytes:
    """Convert by what knows the estimator best; a pipeline that ends in trees is joined from two graphs."""
    steps = getattr(estimator, "steps", [("", estimator)])
    last = steps[-1][1]
    booster = booster_of(last)
    trees = sklearn_trees_to_onnx(last) if booster is None else lightgbm_to_onnx(booster)
    if trees is None:
        return _skl2onnx(estimator, width)
    return trees if len(steps) == 1 else _joined(_skl2onnx(estimator[:-1], width), trees)


def _skl2onnx(estimator: Any, width: int) -> bytes:
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    options = {id(estimator): {"zipmap": False}} if hasattr(estimator, "predict_proba") else None
    inputs = [("x", FloatTensorType([None, width]))]
    made = convert_sklearn(estimator, "model", inputs, options=options, target_opset=dict(OPSETS))
    del made.graph.output[:-1]  # the class itself is not wanted, the runtime drops what computes it
    return bytes(made.SerializeToString())


def _joined(first: bytes, second: bytes) -> bytes:
    """Feed a preprocessing graph's output into a model's input "x"."""
    import onnx
    from onnx import compose

    before = compose.add_prefix(onnx.load_from_string(first), "before_", rename_inputs=False)
    after = compose.add_prefix(onnx.load_from_string(second), "model_")
    before.ir_version = after.ir_version = IR_VERSION
    del before.opset_import[:]  # skl2onnx lists only the versions that it needed; both graphs must name the same
    before.opset_import.extend(after.opset_import)
    joined = compose.merge_models(before, after, io_map=[(before.graph.output[0].name, "model_x")])
    return bytes(joined.SerializeToString())


def checked_rows(held_out: Matrix, encoder: Encoder) -> Matrix:
    """Return the rows on which a conversion is checked: as they are, and again with a null or unknown text in each."""
    rows = np.ascontiguousarray(held_out[:CHECKED_ROWS], np.float32)
    changed = rows.copy()
    for i in range(len(changed)):
        place = i % changed.shape[1]
        changed[i, place] = encoder.other.get(place, np.nan)
    return np.concatenate([rows, changed])


def compare(model: Model, servable: Servable, held_out: Matrix) -> Conversion:
    """Compare an estimator with its servable and return how they agree.

    Raises:
        UserCodeError: the largest difference exceeds the manifest's tolerance.
    """
    rows, tolerance = checked_rows(held_out, servable.encoder), servable.manifest.conversion.tolerance
    try:
        expected, accepts_null = reference_scores(model.estimator, rows), True
    except ValueError:  # scikit-learn's refusal of NaN
        rows = rows[~np.isnan(rows).any(axis=1)]
        if not len(rows):
            raise unconvertible(model, "an estimator that takes no null, and null in every held-out row") from None
        expected, accepts_null = reference_scores(model.estimator, rows), False
    difference = largest_difference(expected, servable.score_or_nan(rows), servable.manifest.task)
    if not difference <= tolerance:
        raise UserCodeError(
            f"{type(model.estimator).__name__} scores differently as {model.format}",
            where=model.location,
            got=f"largest difference {difference:.3g} on {len(rows)} rows",
            expected=f"at most {tolerance:g}",
            next_step='scale features that are huge in float32, or keep LightGBM with format="lightgbm"',
        )
    return Conversion(len(rows), difference, tolerance, accepts_null)


def largest_difference(expected: NDArray[np.float64], got: NDArray[np.float64], task: Task) -> float:
    """Return the largest absolute difference; for a regression as a share of the largest prediction, at least 1."""
    if not len(expected):
        return 0.0
    same_null = np.isnan(expected) & np.isnan(got)
    scale = max(1.0, float(np.nanmax(np.abs(expected)))) if task == "regression" else 1.0
    return float(np.max(np.where(same_null, 0.0, np.abs(expected - got)))) / scale


def reference_scores(estimator: Any, matrix: Matrix) -> NDArray[np.float64]:
    """Return what the estimator itself gives: the probability of 1, or the predicted number."""
    booster = booster_of(estimator)
    if booster is not None:  # past scikit-learn's warning about matrices without column names
        return np.asarray(booster.predict(matrix), np.float64)
    if hasattr(estimator, "predict_proba"):
        return np.asarray(estimator.predict_proba(matrix), np.float64)[:, 1]
    return np.asarray(estimator.predict(matrix), np.float64).reshape(len(matrix))
