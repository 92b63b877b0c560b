"""Sequential tests keep their error while one looks, sample sizes reach their power, drafts are fair."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as peer
from scipy.stats import false_discovery_control
from sklearn.isotonic import IsotonicRegression

from headrace.core.errors import DataError, DefinitionError
from headrace.stats import estimation, experiments, sequential, streams


@pytest.mark.parametrize("bounds", [sequential.pocock_bounds(4), sequential.obrien_fleming_bounds(4)])
def test_bounds_keep_their_error_in_simulation(bounds: list[float]) -> None:
    steps = np.random.default_rng(1).normal(size=(200_000, 4))
    z = np.cumsum(steps, axis=1) / np.sqrt(np.arange(1, 5))
    assert float((np.abs(z) > bounds).any(axis=1).mean()) == pytest.approx(0.05, abs=0.002)


def test_a_path_ends_at_either_bound() -> None:
    z = np.cumsum(np.random.default_rng(3).normal(size=(200_000, 3)), axis=1) / np.sqrt(np.arange(1, 4))
    either, upper = (np.abs(z) > 0.6).any(axis=1).mean(), (z > 0.6).any(axis=1).mean()
    assert 2 * float(sequential.exit_probabilities([0.6] * 3).sum()) == pytest.approx(float(either), abs=0.004)
    one_sided = sequential.exit_probabilities([0.6] * 3, symmetric=False)
    assert float(one_sided.sum()) == pytest.approx(float(upper), abs=0.004)


def test_power_of_a_design_in_simulation() -> None:
    bounds = sequential.spending_bounds([0.3, 0.7, 1.0], "obrien_fleming")
    rng, times = np.random.default_rng(2), np.array([0.3, 0.7, 1.0])
    path = np.cumsum(rng.normal(size=(200_000, 3)) * np.sqrt(np.diff(times, prepend=0)), axis=1) + 2.8 * times
    crossed = (path / np.sqrt(times) > bounds).any(axis=1).mean()
    planned = sequential.exit_probabilities(bounds, information=times.tolist(), drift=2.8).sum()
    assert float(crossed) == pytest.approx(float(planned), abs=0.004)


@pytest.mark.parametrize("times", [[], [0.5, 0.5], [0.6, 0.3], [0.5, 1.2], [0.0, 1.0]])
def test_looks_out_of_order_are_refused(times: list[float]) -> None:
    with pytest.raises(DefinitionError, match="looks must lie in order"):
        sequential.spending_bounds(times, "pocock")


def test_peeking_at_an_always_valid_p_value_keeps_the_error() -> None:
    rng, wrong = np.random.default_rng(3), 0
    for _ in range(500):
        means = np.cumsum(rng.normal(size=2000)) / np.arange(1, 2001)
        looks = range(10, 2000, 10)
        ratios = [sequential.msprt_ratio(n, float(means[n - 1]), null=0.0, variance=1.0, mixing=0.1) for n in looks]
        wrong += sequential.always_valid_p(ratios) <= 0.05
    assert wrong / 500 <= 0.05


def test_the_confidence_sequence_and_its_p_value_agree() -> None:
    control = sequential.Sample(2000, 0.0, 1.0)
    for mean in np.linspace(0.0, 0.4, 30):
        found = sequential.sequential_difference(control, sequential.Sample(2000, float(mean), 1.0))
        assert (found.low > 0) == (found.p_value < 0.05)


def test_cusum_run_length_in_simulation() -> None:
    rng = np.random.default_rng(6)
    lengths = []
    for _ in range(400):
        path = sequential.cusum(rng.normal(1.0, 1, 400), target=0.0, sd=1.0, slack=0.5, limit=4.0)
        assert path.signal is not None
        lengths.append(path.signal + 1)
    planned = sequential.cusum_run_length(slack=0.5, limit=4.0, shift=1.0)
    assert float(np.mean(lengths)) == pytest.approx(planned, rel=0.06)


def test_sample_sizes_reach_their_power() -> None:
    rows = round(experiments.rows_for_means(0.4))
    rng = np.random.default_rng(4)
    p = peer.ttest_ind(rng.normal(size=(rows, 4000)), rng.normal(0.4, 1, size=(rows, 4000))).pvalue
    assert float((p < 0.05).mean()) == pytest.approx(0.8, abs=0.02)
    rows = round(experiments.rows_for_shares(0.2, 0.26))
    a, b = rng.binomial(rows, 0.2, 20_000) / rows, rng.binomial(rows, 0.26, 20_000) / rows
    pooled = (a + b) / 2
    z = np.abs(a - b) / np.sqrt(2 * pooled * (1 - pooled) / rows)
    assert float((z > 1.96).mean()) == pytest.approx(0.8, abs=0.01)


def test_plans_that_no_sample_fulfils_are_refused() -> None:
    with pytest.raises(DefinitionError, match="no sample size"):
        experiments.rows_for_means(0.0)
    with pytest.raises(DefinitionError, match="no sample size"):
        experiments.rows_for_shares(0.1, 0.2, power=1.0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_corrections_equal_scipy(p_values: list[float]) -> None:
    expected = false_discovery_control(p_values)
    assert experiments.adjusted_p_values(p_values) == pytest.approx(expected)
    expected = false_discovery_control(p_values, method="by")
    assert experiments.adjusted_p_values(p_values, "fdr_by") == pytest.approx(expected)


def test_sample_ratio_by_plan() -> None:
    assert experiments.sample_ratio_p([900, 100], [0.9, 0.1]) == 1.0
    assert experiments.sample_ratio_p([900, 100]) < 1e-100


@given(st.permutations("abcde"), st.permutations("abcde"), st.integers(1, 5), st.lists(st.booleans(), min_size=5))
def test_drafts_have_no_copies_and_fair_teams(
    first: list[str], second: list[str], length: int, coins: list[bool]
) -> None:
    drafted = experiments.team_draft(first, second, length, coins)
    assert len(set(drafted.shown)) == len(drafted.shown) == length
    assert abs(2 * len(drafted.first) - length) <= 1


def test_a_draft_ends_with_its_lists() -> None:
    assert experiments.team_draft("ab", "ab", 5, [True] * 5).shown == ("a", "b")


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 1)), min_size=1, max_size=60))
def test_isotonic_equals_scikit_learn(rows: list[tuple[int, int]]) -> None:
    scores, labels = (np.asarray(column, dtype=np.float64) / 8 for column in zip(*rows, strict=True))
    labels *= 8
    where = np.linspace(-0.2, 1.2, 57)
    expected = IsotonicRegression(out_of_bounds="clip").fit(scores, labels).predict(where)
    assert estimation.isotonic(labels, scores)(where) == pytest.approx(expected, abs=1e-9)


def test_isotonic_needs_rows() -> None:
    with pytest.raises(DataError, match="no rows"):
        estimation.isotonic([], [])


@pytest.mark.parametrize(
    "make",
    [
        streams.Adwin,
        lambda: streams.PageHinkley(threshold=20),
        streams.HoeffdingMean,
        lambda: streams.KolmogorovWindow(1, alpha=1e-4),
    ],
)
def test_detectors_find_a_change_soon_and_start_anew(make: type[streams.Adwin]) -> None:
    rng = np.random.default_rng(12)
    calm, worse = (rng.random(1500) < 0.1).astype(float), (rng.random(500) < 0.6).astype(float)
    detector = make()
    assert not any(detector.update(value) for value in calm.tolist())
    found = [row for row, value in enumerate(worse.tolist()) if detector.update(value)]
    assert found
    assert found[0] < 120
    assert len(found) == 1


def test_page_hinkley_looks_the_asked_way() -> None:
    drop = [1.0] * 100 + [0.0] * 100
    assert not any(streams.PageHinkley(threshold=5, direction="up").update(value) for value in drop)
    down = streams.PageHinkley(threshold=5, direction="down")
    assert any(down.update(value) for value in drop)
    up = streams.PageHinkley(threshold=5, direction="up")
    assert not any(up.update(value) for value in drop)


def test_the_error_rate_detector_finds_a_worse_model() -> None:
    rng = np.random.default_rng(0)
    calm, worse = (rng.random(1500) < 0.3).astype(float), (rng.random(300) < 0.7).astype(float)
    detector = streams.ErrorRate()
    assert not any(detector.update(value) for value in calm.tolist())
    assert next(row for row, value in enumerate(worse.tolist()) if detector.update(value)) < 150


RIVER = {  # what river 0.26.1 signals on the streams of seeds 1 to 4
    "Adwin": [[799, 1311, 1855, 2431], [735, 1311, 1823, 2431], [639, 1247, 1855, 2431], [799, 1279, 1823, 2431]],
    "PageHinkley": [[746, 1302, 1845, 2415], [703, 1330, 1843, 2421], [641, 1286, 1879, 2438], [720, 1264, 1835, 2440]],
    "ErrorRate": [[2214], [112, 699, 1887], [766, 1934, 2346], [723, 1889]],
    "HoeffdingMean": [[746, 1828], [736, 1823], [603, 1897], [747, 1824]],
}


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
@pytest.mark.parametrize("name", RIVER)
def test_detectors_signal_where_river_does(name: str, seed: int) -> None:
    rng = random.Random(seed)
    stream = [float(rng.random() < rate) for rate in (0.3, 0.45, 0.2, 0.6, 0.1) for _ in range(600)]
    makers: dict[str, Callable[[], streams.Detector]] = {
        "Adwin": lambda: streams.Adwin(0.05),
        "PageHinkley": lambda: streams.PageHinkley(threshold=25),
        "ErrorRate": streams.ErrorRate,
        "HoeffdingMean": streams.HoeffdingMean,
    }
    detector = makers[name]()
    assert [row for row, value in enumerate(stream) if detector.update(value)] == RIVER[name][seed - 1]
