"""Intervals cover what they promise, and paired comparisons decide as rarely wrong as they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as peer
from sklearn.metrics import roc_auc_score

from headrace.core.errors import DataError, DefinitionError
from headrace.stats import intervals


@settings(deadline=None)
@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_wilson_equals_scipy(counts: tuple[int, int], confidence: float) -> None:
    expected = peer.binomtest(*counts).proportion_ci(confidence, method="wilson")
    assert intervals.wilson(*counts, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_without_rows_knows_nothing() -> None:
    assert intervals.wilson(0, 0) == (0.0, 1.0)


def test_paired_difference_equals_the_t_test() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=40), rng.normal(0.3, 1, 40)
    found, expected = intervals.paired_difference(a, b, 0.9), peer.ttest_rel(a, b)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.9)))


def test_lower_loss_wins_and_swapping_swaps() -> None:
    better, worse = np.full(30, 0.2), np.linspace(0.3, 0.5, 30)
    assert intervals.paired_difference(better, worse).decision == "first"
    assert intervals.paired_difference(worse, better).decision == "second"
    assert intervals.paired_difference(worse, worse).decision == "undecided"
    assert intervals.paired_difference([0.1], [0.2]).mean is None


def wrong_decisions(clustered: bool) -> float:
    """Return how often equal models are told apart where rows of a day share their fate."""
    rng = np.random.default_rng(4)
    days = np.repeat(np.arange(40), 25)
    wrong = 0
    for _ in range(400):
        gaps = rng.normal(size=40)[days] + rng.normal(size=days.size)
        found = intervals.paired_difference(gaps, np.zeros(days.size), clusters=days if clustered else None)
        wrong += found.decision != "undecided"
    return wrong / 400


def test_clusters_keep_the_promised_error() -> None:
    assert wrong_decisions(clustered=True) == pytest.approx(0.05, abs=0.025)
    assert wrong_decisions(clustered=False) > 0.3


def test_single_row_clusters_change_nothing() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=50), rng.normal(size=50)
    assert intervals.paired_difference(a, b, clusters=np.arange(50)) == pytest.approx(intervals.paired_difference(a, b))


def drawn(rng: np.random.Generator, rows: int, skill: float) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(rows) % 2
    return labels, rng.normal(skill * labels).round(1)


def test_delong_covers_the_true_area() -> None:
    rng = np.random.default_rng(8)
    truth = roc_auc_score(*drawn(rng, 400_000, 1.0))
    covered = 0
    for _ in range(500):
        found = intervals.auc_interval(*drawn(rng, 120, 1.0))
        assert found is not None
        covered += found.low <= truth <= found.high
    assert covered / 500 == pytest.approx(0.95, abs=0.03)


def test_delong_compares_paired_models() -> None:
    rng = np.random.default_rng(9)
    labels, good = drawn(rng, 600, 1.2)
    poor = good + rng.normal(0, 2, 600)
    found = intervals.auc_difference(labels, good, poor)
    assert found.mean == pytest.approx(roc_auc_score(labels, good) - roc_auc_score(labels, poor))
    assert found.decision == "first"
    assert intervals.auc_difference(labels, poor, good).decision == "second"
    assert intervals.auc_difference(labels, good, good).decision == "undecided"
    assert intervals.auc_difference([1, 1, 0], [1, 2, 3], [1, 2, 3]).mean is None


def test_delong_knows_that_paired_models_err_together() -> None:
    rng = np.random.default_rng(10)
    gaps, widths = [], []
    for _ in range(300):
        labels, good = drawn(rng, 200, 1.0)
        found = intervals.auc_difference(labels, good, good + rng.normal(0, 0.5, 200))
        assert found.mean is not None
        assert found.high is not None
        gaps.append(found.mean)
        widths.append(found.high - found.mean)
    assert float(np.mean(widths)) == pytest.approx(1.96 * float(np.std(gaps)), rel=0.15)


def test_bootstrap_is_seeded_paired_and_close_to_theory() -> None:
    values = np.random.default_rng(1).normal(size=400)
    first, second = (intervals.bootstrap(np.mean, values, rng=np.random.default_rng(5)) for _ in range(2))
    assert first is not None
    assert first == second
    half = 1.96 * values.std(ddof=1) / 20
    assert (first.low, first.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
    same = intervals.bootstrap(lambda a, b: float((a - b).mean()), values, values, rng=np.random.default_rng(5))
    assert same is not None
    assert (same.low, same.high) == (0.0, 0.0)


def test_bootstrap_counts_the_resamples_that_had_a_value() -> None:
    rng = np.random.default_rng(1)
    found = intervals.bootstrap(
        lambda a: float(a.mean()) if a.min() < a.max() else None, [0, 1], rng=rng, resamples=200
    )
    assert found is not None
    assert 60 < found.resamples < 140
    assert intervals.bootstrap(lambda a: None, [1.0], rng=rng) is None
    assert intervals.bootstrap(np.mean, [], rng=rng) is None


def test_misuse_is_refused() -> None:
    with pytest.raises(DataError, match="different lengths"):
        intervals.paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(DefinitionError, match="not a confidence"):
        intervals.wilson(1, 2, 95)
