"""A model is verified before it is parsed and tried in a child: damage of any kind is a typed error here."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
import pytest
from lightgbm import LGBMClassifier
from numpy.typing import NDArray
from onnx import TensorProto, helper

from headrace.core.errors import Corrupt, DataError
from headrace.models.convert import make_servable
from headrace.models.definition import model
from headrace.models.encoder import Encoder
from headrace.models.record import Manifest, ModelFile
from headrace.models.servable import Servable
from headrace.models.verify import LoadLimits, check_files, load, rehearse, save
from headrace.storage.blobs import open_blobs


class Rows(Protocol):
    encoder: Encoder
    matrix: NDArray[np.float32]
    label: NDArray[np.int64]


@pytest.fixture(scope="module")
def servable(rows: Rows) -> Servable:
    estimator = LGBMClassifier(n_estimators=30, verbose=-1, n_jobs=1).fit(rows.matrix, rows.label)
    return make_servable(model(estimator), rows.encoder, rows.matrix[:200])


def manifest_of(servable: Servable, content: bytes) -> Manifest:
    """Describe other bytes as if they had been registered, so that only the trial can find them out."""
    return dataclasses.replace(servable.manifest, files=(ModelFile.of("model.onnx", content),))


def graph(servable: Servable, nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto]) -> bytes:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, len(servable.encoder.columns)])]
    outputs = [helper.make_tensor_value_info("score", TensorProto.FLOAT, [None, 1])]
    made = helper.make_graph(nodes, "g", inputs, outputs, initializer=tensors)
    return bytes(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())


def test_a_kept_model_comes_back_the_same(servable: Servable, rows: Rows, tmp_path: Path) -> None:
    blobs = open_blobs(f"file:{tmp_path / 'blobs'}")
    digest = save(blobs, servable)
    assert digest == servable.manifest.digest
    loaded = load(blobs, digest)
    assert loaded.manifest == servable.manifest
    assert np.array_equal(loaded.score(rows.matrix), servable.score(rows.matrix))


def test_lightgbm_text_passes_its_trial(rows: Rows, tmp_path: Path) -> None:
    estimator = LGBMClassifier(n_estimators=5, verbose=-1, n_jobs=1).fit(rows.matrix, rows.label)
    kept = make_servable(model(estimator, format="lightgbm"), rows.encoder, rows.matrix[:50])
    blobs = open_blobs(f"file:{tmp_path / 'blobs'}")
    assert np.array_equal(load(blobs, save(blobs, kept)).score(rows.matrix), kept.score(rows.matrix))


def test_flipped_bytes_never_reach_a_parser(servable: Servable, tmp_path: Path) -> None:
    blobs = open_blobs(f"file:{tmp_path}")
    digest = save(blobs, servable)
    path = tmp_path / servable.manifest.files[0].sha256[:2] / servable.manifest.files[0].sha256[2:]
    path.write_bytes(servable.content[:-1] + b"\0")
    with pytest.raises(Corrupt):
        load(blobs, digest)
    path.unlink()
    with pytest.raises(DataError):
        load(blobs, digest)


def test_missing_extra_and_changed_files_are_refused(servable: Servable) -> None:
    good = servable.content
    for contents in ({}, {"model.onnx": good, "weights.bin": b""}, {"other.onnx": good}):
        with pytest.raises(Corrupt, match="files are not those of its manifest"):
            check_files(servable.manifest, contents)
    with pytest.raises(Corrupt, match="is not what was registered") as caught:
        check_files(servable.manifest, {"model.onnx": good[:-1]})
    assert "headrace rollback" in str(caught.value)


def test_a_manifest_that_is_none_is_refused(servable: Servable) -> None:
    for content in (b"", b"[]", b"{}", servable.manifest.to_bytes().replace(b'"manifest":1', b'"manifest":9')):
        with pytest.raises(Corrupt, match="not a model manifest"):
            Manifest.from_bytes(content)


def test_a_parser_that_fails_is_reported(servable: Servable) -> None:
    content = servable.content[:5_000]
    with pytest.raises(Corrupt, match="crashed in its trial"):
        rehearse(manifest_of(servable, content), content)


def test_other_scores_than_the_manifests_are_refused(servable: Servable) -> None:
    other = dataclasses.replace(servable.manifest, probe=tuple(p + 1e-4 for p in servable.manifest.probe))
    with pytest.raises(Corrupt, match="failed its trial"):
        rehearse(other, servable.content)


def test_a_model_that_hangs_is_stopped(servable: Servable) -> None:
    """A loop of 2**62 rounds parses well and never ends."""
    keep = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["again"]), helper.make_node("Identity", ["v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [None, 1]),
        ],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, [None, 1]),
        ],
    )
    tensors = [
        helper.make_tensor("rounds", TensorProto.INT64, [], [2**62]),
        helper.make_tensor("yes", TensorProto.BOOL, [], [True]),
        helper.make_tensor("one", TensorProto.INT64, [1], [1]),
    ]
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["v0"], axes=[1]),
        helper.make_node("Loop", ["rounds", "yes", "v0"], ["score"], body=keep),
    ]
    content = graph(servable, nodes, tensors)
    with pytest.raises(Corrupt, match="hung in its trial"):
        rehearse(manifest_of(servable, content), content, limits=LoadLimits(timeout=3.0))


def test_a_model_that_eats_memory_is_stopped(servable: Servable) -> None:
    tensors = [helper.make_tensor("shape", TensorProto.INT64, [2], [1 << 14, 1 << 15])]
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["much"]),
        helper.make_node("ReduceMax", ["much"], ["v"], axes=[0, 1], keepdims=1),
        helper.make_node("ReduceMax", ["x"], ["m"], axes=[1]),
        helper.make_node("Add", ["m", "v"], ["score"]),
    ]
    content = graph(servable, nodes, tensors)
    with pytest.raises(Corrupt, match="crashed in its trial"):
        rehearse(manifest_of(servable, content), content, limits=LoadLimits(memory=512 * 1024**2))


@pytest.mark.parametrize("place", ["initializer", "attribute", "subgraph"])
def test_data_outside_the_model_is_refused(servable: Servable, place: str) -> None:
    width = len(servable.encoder.columns)
    outside = helper.make_tensor("w", TensorProto.FLOAT, [width, 1], [0.0] * width)
    outside.ClearField("float_data")
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="/etc/hostname")
    if place == "initializer":
        content = graph(servable, [helper.make_node("MatMul", ["x", "w"], ["score"])], [outside])
    else:
        constant = helper.make_node("Constant", [], ["w"], value=outside)
        inner = [constant, helper.make_node("MatMul", ["x", "w"], ["score"])]
        if place == "subgraph":
            then = helper.make_graph(
                inner, "then", [], [helper.make_tensor_value_info("score", TensorProto.FLOAT, None)]
            )
            inner = [helper.make_node("If", ["yes"], ["score"], then_branch=then, else_branch=then)]
        content = graph(servable, inner, [helper.make_tensor("yes", TensorProto.BOOL, [], [True])])
    with pytest.raises(Corrupt, match="failed its trial") as caught:
        rehearse(manifest_of(servable, content), content)
    assert "external data is refused" in str(caught.value)


def test_serving_imports_no_training_library(servable: Servable, tmp_path: Path) -> None:
    digest = save(open_blobs(f"file:{tmp_path}"), servable)
    code = (
        "import sys; from headrace.models.verify import load; from headrace.storage.blobs import open_blobs;"
        f"load(open_blobs('file:{tmp_path}'), '{digest}');"
        "print([m for m in ('sklearn', 'lightgbm', 'onnx', 'optuna', 'skl2onnx', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
