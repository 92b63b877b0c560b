"""Write decision trees as one ONNX operator, deciding for every float32 row exactly as the trained trees do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

OPSETS: Mapping[str, int] = {"": 17, "ai.onnx.ml": 3}
IR_VERSION = 8
Link = Literal["Sigmoid", "Exp"]


@dataclass
class Node:
    """Hold one node: a test with its two successors (places in the tree's list), or a leaf with its weight.

    A test of mode BRANCH_LEQ goes left where x <= value, of BRANCH_EQ where x == value, and for null if `null_left`.
    """

    mode: Literal["BRANCH_LEQ", "BRANCH_EQ", "LEAF"]
    feature: int = 0
    value: float = 0.0
    null_left: bool = False
    left: int = 0
    right: int = 0
    weight: float = 0.0


def float32_at_most(threshold: float) -> float:
    """Return the largest float32 that is not above `threshold`: x <= it decides as x <= threshold for float32 x.

    Rounding to the nearest, as converters do, may round up, and then the next float32 value changes sides.

    >>> float32_at_most(0.1) <= 0.1 < float(np.nextafter(np.float32(float32_at_most(0.1)), np.float32(1)))
    True
    """
    with np.errstate(over="ignore"):
        rounded = np.float32(threshold)
    return float(np.nextafter(rounded, np.float32(-np.inf)) if float(rounded) > threshold else rounded)


def ensemble(
    trees: Sequence[Sequence[Node]], *, width: int, link: Link | None, scale: float = 1.0, base: float = 0.0
) -> bytes:
    """Return ONNX bytes of link(base + scale * sum of the trees), summed in float32.

    The input is "x" [rows, width] float32, the output "score" [rows, 1].
    """
    from onnx import TensorProto, helper

    last = "score" if link is None else "sum"
    tree = helper.make_node(
        "TreeEnsembleRegressor", ["x"], [last], domain="ai.onnx.ml", n_targets=1, **_attributes(trees, scale, base)
    )
    nodes = [tree] if link is None else [tree, helper.make_node(link, ["sum"], ["score"])]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, width])]
    outputs = [helper.make_tensor_value_info("score", TensorProto.FLOAT, [None, 1])]
    opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
    graph = helper.make_graph(nodes, "trees", inputs, outputs)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="headrace")
    return bytes(model.SerializeToString())


def _attributes(trees: Sequence[Sequence[Node]], scale: float, base: float) -> dict[str, Any]:
    """Return the parallel lists of the operator TreeEnsembleRegressor (ONNX ai.onnx.ml, version 3)."""
    places = [(number, i, node) for number, tree in enumerate(trees) for i, node in enumerate(tree)]
    leaves = [(number, i, node) for number, i, node in places if node.mode == "LEAF"]
    return {
        "nodes_treeids": [number for number, _, _ in places],
        "nodes_nodeids": [i for _, i, _ in places],
        "nodes_featureids": [node.feature for _, _, node in places],
        "nodes_modes": [node.mode for _, _, node in places],
        "nodes_values": [node.value for _, _, node in places],
        "nodes_truenodeids": [node.left for _, _, node in places],
        "nodes_falsenodeids": [node.right for _, _, node in places],
        "nodes_missing_value_tracks_true": [int(node.null_left) for _, _, node in places],
        "target_treeids": [number for number, _, _ in leaves],
        "target_nodeids": [i for _, i, _ in leaves],
        "target_ids": [0] * len(leaves),
        "target_weights": [node.weight * scale for _, _, node in leaves],
        "base_values": [base],
    }
