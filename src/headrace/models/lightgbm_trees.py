"""Read LightGBM's trees as its predictor does (`include/LightGBM/tree.h`, NumericalDecision, CategoricalDecision).

What the usual conversion misses, each shown by a test: a null at a node that saw none in training (`missing_type` None)
counts as 0, so it goes left exactly if 0 does; numbers up to 1e-35 from 0 are read as 0; `sigmoid=` scales the sum; a
random forest averages over as many trees as it has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from headrace.core.errors import UserCodeError
from headrace.models.trees import Link, Node, ensemble, float32_at_most

DUMPED_INFINITY = 1e300  # LightGBM writes an infinite threshold so (Common::AvoidInf)
ZERO = float(np.float32(1e-35))  # kZeroThreshold
BELOW_ZERO = float(np.nextafter(np.float32(-ZERO), np.float32(-np.inf)))
LOGISTIC = ("binary", "cross_entropy")
EXPONENTIAL = ("poisson", "gamma", "tweedie")
IDENTITY = ("regression", "regression_l1", "huber", "fair", "quantile", "mape")


def lightgbm_to_onnx(booster: Any) -> bytes:
    """Return ONNX bytes of a LightGBM booster with one score a row.

    Raises:
        UserCodeError: an objective or kind of tree that ONNX cannot state exactly.
    """
    dump = booster.dump_model()
    link, scale = _link(dump)
    trees = [_nodes(tree["tree_structure"]) for tree in dump["tree_info"]]
    average = len(trees) if dump["average_output"] else 1
    return ensemble(trees, width=dump["max_feature_idx"] + 1, link=link, scale=scale / average)


def _link(dump: Mapping[str, Any]) -> tuple[Link | None, float]:
    """Return the operator after the sum of the trees and the factor before it."""
    name, *options = str(dump.get("objective", "custom")).split()
    settings = dict(option.split(":", 1) for option in options if ":" in option)
    if name in LOGISTIC:
        return "Sigmoid", float(settings.get("sigmoid", 1.0))
    if name in EXPONENTIAL:
        return "Exp", 1.0
    if name in IDENTITY and "sqrt" not in options:
        return None, 1.0
    raise _impossible(f"objective {dump.get('objective', 'custom')}", LOGISTIC + IDENTITY + EXPONENTIAL)


def _impossible(got: str, expected: object) -> UserCodeError:
    return UserCodeError(
        "this LightGBM model has no exact ONNX form",
        where="model conversion",
        got=got,
        expected=expected,
        next_step='keep it as it is: hr.model(…, format="lightgbm")',
    )


def _nodes(root: Mapping[str, Any]) -> list[Node]:
    """Flatten a tree, parents before their children, without recursion: LightGBM's trees may be deep."""
    found: list[Node] = []
    waiting: list[tuple[Mapping[str, Any], list[Node], str]] = [(root, [], "left")]
    while waiting:
        node, parents, side = waiting.pop()
        for parent in parents:
            setattr(parent, side, len(found))
        if "split_feature" not in node:
            found.append(_leaf(node))
            continue
        tests = _categories(node) if node["decision_type"] == "==" else [_number(node)]
        for place, test in enumerate(tests[:-1], len(found) + 1):
            test.right = place
        found += tests
        waiting += [(node["right_child"], tests[-1:], "right"), (node["left_child"], tests, "left")]
    return found


def _leaf(node: Mapping[str, Any]) -> Node:
    if "leaf_coeff" in node:
        raise _impossible("linear_tree=True", "constant leaves")
    return Node("LEAF", weight=float(node["leaf_value"]))


def _number(node: Mapping[str, Any]) -> Node:
    threshold, default_left = _threshold(float(node["threshold"])), bool(node["default_left"])
    zero_left = threshold >= 0.0
    if node["missing_type"] == "Zero" and default_left != zero_left:
        raise _impossible("zero_as_missing=True", "nulls as the only missing values")
    null_left = zero_left if node["missing_type"] == "None" else default_left
    return Node("BRANCH_LEQ", int(node["split_feature"]), threshold, null_left)


def _threshold(written: float) -> float:
    """Return the float32 threshold that decides as LightGBM does."""
    if abs(written) >= DUMPED_INFINITY:
        return math.copysign(math.inf, written)
    if abs(written) <= ZERO:
        return ZERO if written >= 0.0 else BELOW_ZERO
    return float32_at_most(written)


def _categories(node: Mapping[str, Any]) -> list[Node]:
    """Return a chain of tests, one for each category that goes left; the runtime folds it into one set test."""
    values = [float(text) for text in str(node["threshold"]).split("||")]
    return [Node("BRANCH_EQ", int(node["split_feature"]), value) for value in values]
