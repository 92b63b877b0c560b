"""Metrics equal scikit-learn's, say why where they are undefined, and comparisons decide rightly."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise, permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn import metrics as peer
from sklearn.calibration import calibration_curve

from headrace.core.errors import DataError, DefinitionError
from headrace.evaluation.metrics import METRICS, compare_models, measure
from headrace.stats import classification
from headrace.stats.intervals import bootstrap
from headrace.stats.ranking import average_precision_of_query, reciprocal_rank_of_query
from headrace.stats.scores import LOSSES, SCORES

BINARY = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 8).map(lambda i: i / 8) | st.floats(0, 1), st.integers(1, 5)),
    min_size=1,
    max_size=60,
)
NUMERIC = st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100), st.integers(1, 5)), min_size=2, max_size=60)


def columns(rows: list[Any], weighted: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    labels, scores, weights = (np.asarray(column, dtype=np.float64) for column in zip(*rows, strict=True))
    return labels, scores, weights if weighted else None


def at_half(metric: Any) -> Any:
    return lambda y, p, sample_weight: metric(y, p >= 0.5, sample_weight=sample_weight)


SCIKIT_BINARY = {
    "auc": peer.roc_auc_score,
    "pr_auc": peer.average_precision_score,
    "log_loss": lambda y, p, sample_weight: peer.log_loss(y, p, sample_weight=sample_weight, labels=[0, 1]),
    "brier": peer.brier_score_loss,
    "accuracy": at_half(peer.accuracy_score),
    "precision": at_half(peer.precision_score),
    "recall": at_half(peer.recall_score),
    "f1": at_half(peer.f1_score),
}
SCIKIT_NUMERIC = {
    "mae": peer.mean_absolute_error,
    "rmse": peer.root_mean_squared_error,
    "r2": peer.r2_score,
    "pinball": lambda y, p, sample_weight: peer.mean_pinball_loss(y, p, alpha=0.5, sample_weight=sample_weight),
}


@pytest.mark.parametrize("name", SCIKIT_BINARY)
@settings(max_examples=60, deadline=None)
@given(rows=BINARY, weighted=st.booleans())
def test_binary_metrics_equal_scikit_learn(name: str, rows: list[Any], weighted: bool) -> None:
    labels, scores, weights = columns(rows, weighted)
    found = measure(name, labels, scores, weights=weights)
    assume(found.value is not None)
    expected = SCIKIT_BINARY[name](labels.astype(int), scores, sample_weight=weights)
    assert found.value == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", SCIKIT_NUMERIC)
@settings(max_examples=60, deadline=None)
@given(rows=NUMERIC, weighted=st.booleans())
def test_numeric_metrics_equal_scikit_learn(name: str, rows: list[Any], weighted: bool) -> None:
    labels, predicted, weights = columns(rows, weighted)
    assume(name != "r2" or labels.std() > 1e-3)
    found = measure(name, labels, predicted, weights=weights)
    expected = SCIKIT_NUMERIC[name](labels, predicted, sample_weight=weights)
    assert found.value == pytest.approx(expected, rel=1e-6, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(BINARY)
def test_unweighted_auc_is_the_exact_fraction(rows: list[Any]) -> None:
    labels, scores, _ = columns(rows, False)
    positive, negative = scores[labels == 1], scores[labels == 0]
    assume(positive.size and negative.size)
    doubled = sum(2 * int(a > b) + int(a == b) for a in positive for b in negative)
    assert measure("auc", labels, scores).value == doubled / (2 * positive.size * negative.size)


@settings(max_examples=60, deadline=None)
@given(BINARY)
def test_calibration_equals_scikit_learn(rows: list[Any]) -> None:
    labels, scores, _ = columns(rows, False)
    curve = classification.reliability(labels, scores, bins=10)
    truth, predicted = calibration_curve(labels, scores, n_bins=10)
    assert curve.observed == pytest.approx(truth)
    assert curve.predicted == pytest.approx(predicted)
    assert measure("ece", labels, scores).value == pytest.approx(float(np.sum(curve.share * abs(truth - predicted))))


@settings(max_examples=40, deadline=None)
@given(BINARY)
def test_whole_weights_equal_repeated_rows(rows: list[Any]) -> None:
    labels, scores, weights = columns(rows, True)
    assert weights is not None
    times = weights.astype(int)
    for name, metric in METRICS.items():
        if metric.task == "binary":
            repeated = measure(name, labels.repeat(times), scores.repeat(times)).value
            if repeated is not None and labels.size >= metric.min_rows:
                assert measure(name, labels, scores, weights=weights).value == pytest.approx(repeated, abs=1e-12), name


RANKING = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=6)


def over_all_orders(rows: list[tuple[int, int]], measured: Any) -> float:
    """Return the mean over every order in which the tied documents may be shown."""
    orders = [order for order in permutations(rows) if all(a[1] >= b[1] for a, b in pairwise(order))]
    return float(np.mean([measured([relevance > 0 for relevance, _ in order]) for order in orders]))


def precision_mean(hits: list[bool]) -> float:
    return sum(sum(hits[: rank + 1]) / (rank + 1) for rank, hit in enumerate(hits) if hit) / sum(hits)


@settings(max_examples=40, deadline=None)
@given(RANKING)
def test_rankings_average_over_ties(rows: list[tuple[int, int]]) -> None:
    relevance, scores = (np.asarray(column, dtype=np.float64) for column in zip(*rows, strict=True))
    assume(relevance.any())
    assert average_precision_of_query(relevance, scores) == pytest.approx(over_all_orders(rows, precision_mean))
    first = over_all_orders(rows, lambda hits: 1 / (hits.index(True) + 1))
    assert reciprocal_rank_of_query(relevance, scores) == pytest.approx(first)
    for k in (None, 2):
        expected = peer.ndcg_score([relevance], [scores], k=k)
        assert measure("ndcg", relevance, scores, k=k).value == pytest.approx(expected)


def test_queries_are_averaged_and_empty_ones_left_out() -> None:
    labels, scores, queries = [0, 1, 1, 0, 0, 0], [0.9, 0.5, 0.7, 0.1, 0.3, 0.2], ["a", "a", "b", "b", "c", "c"]
    assert measure("mrr", labels, scores, queries=queries).value == pytest.approx((0.5 + 1.0) / 2)
    assert measure("map", [0, 0], [0.1, 0.2]).reason == "needs a relevant row"


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(
    ("labels", "scores"),
    [([], []), ([1], [0.5]), ([1, 1], [0.5, 0.5]), ([0, 0], [0.1, 0.1]), ([0, 1], [float("nan"), 0.2])],
)
def test_undefined_is_none_with_a_reason(name: str, labels: list[int], scores: list[float]) -> None:
    found = measure(name, labels, scores)
    assert (found.value is None) == (found.reason is not None)
    assert found.value is None or np.isfinite(found.value)
    assert found.rows == len(labels)


@pytest.mark.parametrize(
    ("name", "labels", "scores", "reason"),
    [
        ("auc", [1, 1], [0.1, 0.2], "needs rows of both classes"),
        ("auc", [], [], "0 rows, 2 needed"),
        ("precision", [0, 1], [0.1, 0.2], "needs a positive decision"),
        ("recall", [0, 0], [0.9, 0.2], "needs a positive row"),
        ("log_loss", [0, 1], [0.5, float("inf")], "1 of 2 predictions are null or not finite"),
        ("brier", [0, 1], [0.5, 1.5], "predictions are not probabilities"),
        ("auc", [0, 2], [0.5, 0.5], "labels are not 0 or 1"),
        ("r2", [3, 3], [1, 2], "needs labels that vary"),
        ("wape", [0, 0], [1, 2], "needs a label that is not zero"),
        ("ndcg", [-1, 2], [1, 2], "relevances must not be negative"),
    ],
)
def test_reasons(name: str, labels: list[float], scores: list[float], reason: str) -> None:
    assert measure(name, labels, scores).reason == reason


def test_decisions_follow_the_threshold() -> None:
    assert measure("recall", [1, 1, 0], [0.35, 0.3, 0.9], threshold=0.35).value == 0.5
    assert measure("positive_rate", [1, 1, 0], [0.35, 0.3, 0.9], threshold=0.35).value == pytest.approx(2 / 3)
    assert measure("pinball", [10.0, 10.0], [8.0, 12.0], quantile=0.9).value == pytest.approx((1.8 + 0.2) / 2)
    assert measure("bias", [1.0, 2.0], [2.0, 4.0]).value == 1.5


def test_misuse_is_refused() -> None:
    with pytest.raises(DefinitionError, match="unknown metric") as unknown:
        measure("acu", [0], [0.1])
    assert unknown.value.next_step == "did you mean auc?"
    with pytest.raises(DataError, match="do not fit"):
        measure("auc", [0, 1], [0.1])
    with pytest.raises(DataError, match="do not fit"):
        measure("auc", [0, 1], [[0.9, 0.1], [0.2, 0.8]])
    with pytest.raises(DataError, match="do not fit"):
        measure("auc", ["no", "yes"], [0.1, 0.9])
    with pytest.raises(DefinitionError, match="no weighted form"):
        measure("ndcg", [0, 1], [0.1, 0.2], weights=[1, 1])
    assert measure("auc", [0, 1], [0.1, 0.2], weights=[0, 0]).reason == "weights must not be negative, nor all zero"


def test_the_catalogue_is_whole() -> None:
    assert METRICS.keys() == SCORES.keys()
    assert LOSSES.keys() <= METRICS.keys()
    assert METRICS["auc"].improves(0.8, on=0.7)
    assert not METRICS["positive_rate"].improves(0.8, on=0.7)


def fresh(code: str) -> str:
    """Run code in a new interpreter and return what it prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_the_catalogue_loads_without_numpy_and_measuring_without_scikit_learn() -> None:
    named = "import sys, headrace.evaluation.metrics; print('numpy' in sys.modules)"
    assert fresh(named) == "False"
    measured = (
        "import sys; from headrace.evaluation.metrics import METRICS, measure\n"
        "values = [measure(name, [0, 1, 1], [0.2, 0.7, 0.4]).value for name in METRICS]\n"
        "print(None in values, 'sklearn' in sys.modules, 'scipy.stats' in sys.modules)"
    )
    assert fresh(measured) == "False False False"


def models(rows: int = 1500) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels, a good and a poor model's probabilities."""
    rng = np.random.default_rng(21)
    truth = rng.normal(size=rows)
    labels = (rng.random(rows) < 1 / (1 + np.exp(-2 * truth))).astype(float)
    good, poor = (1 / (1 + np.exp(-2 * (truth + rng.normal(0, noise, rows)))) for noise in (0.2, 1.5))
    return labels, good, poor


@pytest.mark.parametrize("name", ["auc", "pr_auc", "log_loss", "brier", "accuracy", "f1", "ece"])
def test_the_better_model_is_recognised_and_only_it(name: str) -> None:
    labels, good, poor = models()

    def compared(first: np.ndarray, second: np.ndarray) -> Any:
        return compare_models(name, labels, first, second, rng=np.random.default_rng(1), resamples=200)

    forward = compared(good, poor)
    assert forward.better
    assert forward.challenger.value == measure(name, labels, good).value
    assert not compared(poor, good).better
    assert not compared(good, good).better
    assert compared(good, good).difference == 0
    sign = 1 if METRICS[name].better == "higher" and forward.method != "paired losses" else -1
    assert forward.difference * sign > 0


@pytest.mark.parametrize("name", ["mae", "rmse", "r2", "wape", "bias", "pinball"])
def test_regressions_compare(name: str) -> None:
    rng = np.random.default_rng(2)
    labels = rng.normal(10, 3, 400)
    good, poor = labels + rng.normal(0.1, 0.5, 400), labels + rng.normal(-1.0, 2, 400)
    assert compare_models(name, labels, good, poor, rng=rng, resamples=200).better
    assert not compare_models(name, labels, poor, good, rng=rng, resamples=200).better


def test_rankings_compare_by_query() -> None:
    rng = np.random.default_rng(3)
    queries = np.repeat(np.arange(80), 5)
    relevance = (rng.random(400) < 0.4).astype(float)
    good, poor = relevance + rng.normal(0, 0.5, 400), rng.normal(size=400)
    found = compare_models("ndcg", relevance, good, poor, rng=rng, queries=queries, resamples=100)
    assert found.better
    assert found.method == "paired bootstrap"


def test_a_query_drawn_twice_counts_twice() -> None:
    rng = np.random.default_rng(5)
    queries = np.repeat(np.arange(12), 4)
    relevance = np.tile([1.0, 0.0, 0.0, 1.0], 12)
    first, second = rng.normal(size=48), rng.normal(size=48)
    found = compare_models("map", relevance, first, second, rng=np.random.default_rng(9), queries=queries)
    sides = [
        [average_precision_of_query(relevance[queries == query], scores[queries == query]) for query in range(12)]
        for scores in (first, second)
    ]
    gaps = np.subtract(*np.asarray(sides, dtype=np.float64))
    direct = bootstrap(np.mean, gaps, rng=np.random.default_rng(9), resamples=500)
    assert direct is not None
    assert (found.low, found.high) == pytest.approx((direct.low, direct.high))
    alone = compare_models("map", relevance[:4], first[:4], second[:4], rng=rng, queries=queries[:4])
    assert alone.reason == "needs more rows"


def test_clusters_widen_a_comparison() -> None:
    rng = np.random.default_rng(4)
    days = np.repeat(np.arange(30), 40)
    labels = np.zeros(days.size)
    champion = labels + 1.0
    challenger = labels + 1.0 + rng.normal(0, 0.3, 30)[days]
    plain = compare_models("mae", labels, challenger, champion, rng=rng)
    robust = compare_models("mae", labels, challenger, champion, rng=rng, clusters=days)
    assert plain.low is not None
    assert plain.high is not None
    assert robust.low is not None
    assert robust.high is not None
    assert robust.high - robust.low > 3 * (plain.high - plain.low)
    labels[::2] = 1
    clustered = compare_models("auc", labels, challenger, champion, rng=rng, clusters=days, resamples=50)
    assert clustered.method == "paired bootstrap"


def test_what_cannot_be_compared_says_so() -> None:
    rng = np.random.default_rng(1)
    found = compare_models("auc", [1, 1], [0.1, 0.2], [0.3, 0.4], rng=rng)
    assert (found.better, found.reason) == (False, "needs rows of both classes")
    assert compare_models("brier", [1], [0.9], [0.1], rng=rng).reason == "needs more rows"
    with pytest.raises(DefinitionError, match="no better direction"):
        compare_models("positive_rate", [1, 0], [0.1, 0.2], [0.3, 0.4], rng=rng)


def test_models_keep_their_own_thresholds() -> None:
    labels, good, _ = models(300)
    halved = compare_models(
        "accuracy", labels, good, good / 2, rng=np.random.default_rng(1), threshold=0.5, champion_threshold=0.25
    )
    assert halved.difference == 0
