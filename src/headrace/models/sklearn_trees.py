"""Read scikit-learn's trees and forests as its predictors do, nulls included.

skl2onnx 1.20 leaves out where a null goes in trees and forests (differences up to 0.7 in a probability) and fails on
histogram gradient boosting with onnx 1.23; what is not listed here is left to it.
"""

from __future__ import annotations

from typing import Any

from headrace.models.trees import Link, Node, ensemble, float32_at_most

TREES = ("DecisionTreeClassifier", "DecisionTreeRegressor", "ExtraTreeClassifier", "ExtraTreeRegressor")
FORESTS = ("RandomForestClassifier", "RandomForestRegressor", "ExtraTreesClassifier", "ExtraTreesRegressor")
BOOSTED = ("HistGradientBoostingClassifier", "HistGradientBoostingRegressor")
LINKS: dict[str, Link | None] = {"LogitLink": "Sigmoid", "LogLink": "Exp", "IdentityLink": None}


def sklearn_trees_to_onnx(estimator: Any) -> bytes | None:
    """Return ONNX bytes of a fitted tree, forest or histogram gradient boosting; None for anything else."""
    name, width = type(estimator).__name__, getattr(estimator, "n_features_in_", 0)
    if not type(estimator).__module__.startswith("sklearn.") or getattr(estimator, "n_outputs_", 1) != 1:
        return None
    if name in TREES:
        return ensemble([_tree(estimator.tree_)], width=width, link=None)
    if name in FORESTS:
        trees = [_tree(member.tree_) for member in estimator.estimators_]
        return ensemble(trees, width=width, link=None, scale=1 / len(trees))
    if name in BOOSTED:
        return _boosted(estimator, width)
    return None


def _tree(tree: Any) -> list[Node]:
    """Read `sklearn.tree._tree.Tree`; a classifier's leaf weighs its share of the class 1."""
    values = tree.value[:, 0, :]
    weights = values[:, 1] / values.sum(axis=1) if values.shape[1] == 2 else values[:, 0]
    found = []
    for i, (left, right) in enumerate(zip(tree.children_left.tolist(), tree.children_right.tolist(), strict=True)):
        if left == -1:
            found.append(Node("LEAF", weight=float(weights[i])))
            continue
        threshold, null_left = float32_at_most(float(tree.threshold[i])), bool(tree.missing_go_to_left[i])
        found.append(Node("BRANCH_LEQ", int(tree.feature[i]), threshold, null_left, left, right))
    return found


def _boosted(estimator: Any, width: int) -> bytes | None:
    if estimator.is_categorical_ is not None and estimator.is_categorical_.any():
        return None
    link = type(estimator._loss.link).__name__
    if link not in LINKS or estimator._baseline_prediction.size != 1:
        return None
    trees = [_histogram_tree(stage[0].nodes) for stage in estimator._predictors]
    return ensemble(trees, width=width, link=LINKS[link], base=float(estimator._baseline_prediction.item()))


def _histogram_tree(nodes: Any) -> list[Node]:
    """Read `sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor`."""
    found = []
    for node in nodes:
        if node["is_leaf"]:
            found.append(Node("LEAF", weight=float(node["value"])))
            continue
        threshold, null_left = float32_at_most(float(node["num_threshold"])), bool(node["missing_go_to_left"])
        places = (int(node["left"]), int(node["right"]))
        found.append(Node("BRANCH_LEQ", int(node["feature_idx"]), threshold, null_left, *places))
    return found
