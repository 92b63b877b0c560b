"""Distances equal scipy's on anything, and keep the laws of their kind."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import spatial
from scipy import stats as peer

from headrace.core.errors import DataError
from headrace.stats import binning, distances

NUMBERS = st.lists(st.integers(-4, 4).map(float) | st.floats(-1e6, 1e6), min_size=1, max_size=60)
COUNTS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=2, max_size=12).filter(
    lambda pairs: all(sum(side) for side in zip(*pairs, strict=True))
)


@settings(max_examples=80, deadline=None)
@given(NUMBERS, NUMBERS)
def test_samples_equal_scipy(a: list[float], b: list[float]) -> None:
    assert distances.ks_statistic(a, b) == pytest.approx(peer.ks_2samp(a, b, method="exact").statistic, abs=1e-12)
    assert distances.wasserstein(a, b) == pytest.approx(peer.wasserstein_distance(a, b), rel=1e-9, abs=1e-9)


@settings(max_examples=80, deadline=None)
@given(COUNTS)
def test_counts_equal_scipy(pairs: list[tuple[int, int]]) -> None:
    p, q = zip(*pairs, strict=True)
    assert distances.js_distance(p, q) == pytest.approx(spatial.distance.jensenshannon(p, q, base=2), abs=1e-7)
    assert distances.kl_divergence(p, q) == pytest.approx(peer.entropy(p, q), abs=1e-12)
    filled = np.array([pair for pair in pairs if sum(pair)]).T
    expected = peer.chi2_contingency(filled, correction=False) if filled.shape[1] > 1 else None
    found = distances.chi_square([p, q])
    assert found.statistic == pytest.approx(0.0 if expected is None else expected.statistic, rel=1e-9, abs=1e-12)
    assert found.p_value == pytest.approx(1.0 if expected is None else expected.pvalue, rel=1e-9)


@given(COUNTS)
def test_psi_is_symmetric_and_zero_for_equals(pairs: list[tuple[int, int]]) -> None:
    p, q = zip(*pairs, strict=True)
    assert distances.psi(p, q) == pytest.approx(distances.psi(q, p), abs=1e-12)
    assert distances.psi(p, q) >= 0
    assert distances.psi(p, p) == 0


def test_psi_noise_is_what_equal_samples_show() -> None:
    rng = np.random.default_rng(3)
    shares = np.full(10, 0.1)
    found = [distances.psi(rng.multinomial(4000, shares), rng.multinomial(1000, shares)) for _ in range(2000)]
    assert float(np.mean(found)) == pytest.approx(distances.psi_noise(10, 4000, 1000), rel=0.05)


def test_chi_square_fit_equals_scipy() -> None:
    found = distances.chi_square_fit([10, 20, 30], [1, 1, 2])
    expected = peer.chisquare([10, 20, 30], [15, 15, 30])
    assert (found.statistic, found.p_value) == pytest.approx((expected.statistic, expected.pvalue))


def test_kl_is_infinite_where_mass_meets_none() -> None:
    assert distances.kl_divergence([0.5, 0.5], [1, 0]) == float("inf")
    assert np.isfinite(distances.kl_divergence([0.5, 0.5], [1, 0], floor=1e-4))


@pytest.mark.parametrize("bad", [[], [0, 0], [1, -1], [1, float("nan")]])
def test_no_distribution_is_refused(bad: list[float]) -> None:
    with pytest.raises(DataError, match="not a distribution"):
        distances.psi(bad, bad)


def test_different_bins_are_refused() -> None:
    with pytest.raises(DataError, match="different bins"):
        distances.psi([1, 2], [1, 2, 3])
    with pytest.raises(DataError, match="empty sample"):
        distances.ks_statistic([float("nan")], [1.0])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-5, 5).map(float), min_size=0, max_size=3000), st.lists(st.integers(-6, 6), max_size=6))
def test_bin_counts_equal_searchsorted(values: list[float], edges: list[int]) -> None:
    cuts = np.unique(np.asarray(edges, dtype=np.float64))
    plain = np.bincount(np.searchsorted(cuts, values, side="right"), minlength=cuts.size + 1)
    assert binning.bin_counts(values, cuts).tolist() == plain.tolist()


def test_long_columns_are_counted_in_chunks_like_short_ones() -> None:
    values = np.random.default_rng(5).normal(size=40_000).round(1)
    values[::7], values[::11], values[::13] = np.nan, np.inf, -np.inf
    cuts = np.array([-1.0, 0.0, 1.5])
    kept = values[~np.isnan(values)]
    plain = np.bincount(np.searchsorted(cuts, kept, side="right"), minlength=4)
    assert binning.bin_counts(values, cuts).tolist() == plain.tolist()


def test_a_value_that_fills_a_bin_gets_its_own() -> None:
    values = np.concatenate([np.zeros(450), np.arange(1.0, 551.0)])
    edges = binning.quantile_edges(values)
    counts = dict(zip([-np.inf, *edges], binning.bin_counts(values, edges).tolist(), strict=True))
    assert counts[0.0] == 450
    assert counts[-np.inf] == 0
