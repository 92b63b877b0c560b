"""Profiles find what moved, keep quiet about what did not, and survive JSON and merging."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.errors import DataError
from headrace.stats.profiles import MAX_CATEGORIES, Profile, compare, profile, profile_counts

ROWS = 60_000
VALUES = st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")) | st.sampled_from([0.0, 1.0]), max_size=80)
NAMES = st.lists(st.sampled_from(["a", "b", "c", None]), max_size=40)


def normal(rng: np.random.Generator, shift: float = 0.0) -> np.ndarray:
    return rng.normal(50 + 10 * shift, 10, ROWS)


def lognormal(rng: np.random.Generator, sigma: float = 1.0) -> np.ndarray:
    return rng.lognormal(0, sigma, ROWS)


def nulled(rng: np.random.Generator, share: float = 0.01) -> np.ndarray:
    values = rng.poisson(7, ROWS).astype(np.float64)
    values[rng.random(ROWS) < share] = np.nan
    return values


def categories(rng: np.random.Generator, swap: float = 0.0, new: float = 0.0) -> np.ndarray:
    shares = 1 / np.arange(1, 31)
    shares /= shares.sum()
    shares[:2] += (-swap, swap)
    codes = rng.choice(30, ROWS, p=shares).astype(object)
    codes[rng.random(ROWS) < new] = "NEW"
    return codes


PLANTED: dict[str, tuple[Callable[..., np.ndarray], dict[str, float]]] = {
    "mean +0.1 sd": (normal, {"shift": 0.1}),
    "sigma +10 %": (lognormal, {"sigma": 1.1}),
    "nulls 1 % to 6 %": (nulled, {"share": 0.06}),
    "two categories swap 5 points": (categories, {"swap": 0.05}),
    "a new category with 3 %": (categories, {"new": 0.03}),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_drift_is_found_and_nothing_else(name: str) -> None:
    make, change = PLANTED[name]
    reference = profile(make(np.random.default_rng(1)))
    assert compare(reference, make(np.random.default_rng(2), **change)).drifted()
    assert not compare(reference, make(np.random.default_rng(3))).drifted()


def test_score_says_what_moved() -> None:
    reference = profile(normal(np.random.default_rng(1)))
    shifted = compare(reference, normal(np.random.default_rng(2), 0.5))
    assert shifted.mean_shift == pytest.approx(0.5, abs=0.02)
    assert shifted.ks == pytest.approx(0.1974, abs=0.01)  # 2 Phi(0.25) - 1, at the middle of both
    lost = compare(profile(nulled(np.random.default_rng(1))), nulled(np.random.default_rng(2), 0.06))
    assert lost.null_shift == pytest.approx(0.05, abs=0.003)
    fresh = compare(profile(categories(np.random.default_rng(1))), categories(np.random.default_rng(2), new=0.03))
    assert fresh.new_categories == ("NEW",)
    assert fresh.new_share == pytest.approx(0.03, abs=0.003)


def test_a_constant_column_that_leaves_its_value_drifts() -> None:
    reference = profile(np.full(5000, 3.0))
    assert not compare(reference, np.full(5000, 3.0)).drifted()
    assert compare(reference, np.full(5000, 3.5)).drifted()
    assert compare(reference, np.full(5000, 2.5)).drifted()


def test_chance_is_not_drift_in_small_windows() -> None:
    rng = np.random.default_rng(7)
    reference = profile(normal(rng))
    scores = [compare(reference, rng.normal(50, 10, 100)) for _ in range(400)]
    assert not any(score.drifted() for score in scores)
    noise = float(np.mean([score.psi for score in scores]))
    assert noise == pytest.approx(scores[0].noise, rel=0.2)


@settings(max_examples=80, deadline=None)
@given(VALUES, VALUES)
def test_merging_equals_profiling_together(first: list[float], second: list[float]) -> None:
    reference = profile(np.asarray(first + second))
    left, right = (profile(np.asarray(part, dtype=np.float64), like=reference) for part in (first, second))
    merged = left.merge(right)
    assert (merged.rows, merged.nulls, merged.finite) == (reference.rows, reference.nulls, reference.finite)
    assert (merged.counts, merged.minimum, merged.maximum) == (reference.counts, reference.minimum, reference.maximum)
    assert (merged.mean is None, merged.sd is None) == (reference.mean is None, reference.sd is None)
    assert (merged.mean or 0.0) == pytest.approx(reference.mean or 0.0, rel=1e-9, abs=1e-6)
    assert (merged.sd or 0.0) == pytest.approx(reference.sd or 0.0, rel=1e-6, abs=1e-6)


@given(NAMES, NAMES)
def test_merging_categories_equals_profiling_together(first: list[str | None], second: list[str | None]) -> None:
    whole = profile(np.asarray(first + second, dtype=object))
    merged = profile(np.asarray(first, dtype=object)).merge(profile(np.asarray(second, dtype=object)))
    assert dict(zip(merged.categories, merged.counts, strict=True)) == dict(
        zip(whole.categories, whole.counts, strict=True)
    )
    assert (merged.rows, merged.nulls) == (whole.rows, whole.nulls)


def test_unlike_profiles_do_not_merge_or_compare() -> None:
    numbers, other, text = profile([1.0, 2.0]), profile([5.0, 9.0]), profile(["a"])
    for wrong in (other, text):
        with pytest.raises(DataError, match="cannot be merged"):
            numbers.merge(wrong)
        with pytest.raises(DataError, match="cannot be compared"):
            compare(numbers, wrong)
    with pytest.raises(DataError, match="cannot be compared"):
        compare(numbers, np.empty(0))
    many = profile([str(i) for i in range(MAX_CATEGORIES + 50)])
    with pytest.raises(DataError, match="cannot be merged"):
        many.merge(profile(["new"]))


def test_categories_are_bounded_and_the_rest_counted() -> None:
    column = [str(i) for i in range(MAX_CATEGORIES + 50)] + ["0"] * 5
    found = profile(column)
    assert (len(found.categories), found.other, found.categories[0]) == (MAX_CATEGORIES, 50, "0")
    later = profile(["0", "fresh"], like=found)
    assert later.counts[found.categories.index("0")] == 1
    assert "fresh" in later.categories
    assert compare(found, later).new_categories == ()  # it may have been among the 50 unnamed


@settings(max_examples=50, deadline=None)
@given(VALUES)
def test_profiles_survive_json(values: list[float]) -> None:
    for column in (profile(np.asarray(values, dtype=np.float64)), profile([str(value) for value in values])):
        assert Profile.from_dict(json.loads(json.dumps(column.to_dict(), allow_nan=False))) == column


def test_a_broken_record_is_named() -> None:
    with pytest.raises(DataError, match="not a profile"):
        Profile.from_dict({"kind": "numeric"})


def test_kinds_follow_the_type() -> None:
    assert profile([True, False, True]).categories == ("true", "false")
    assert profile([1, 2, 3]).kind == "numeric"
    assert profile([1.0, None], like=profile([1.0, 2.0])).nulls == 1
    assert profile_counts({"x": 2, float("nan"): 1, None: 1}).nulls == 2
    with pytest.raises(DataError, match="numeric column"):
        profile(["a"], like=profile([1.0, 2.0]))


def test_infinities_are_counted_but_not_averaged() -> None:
    found = profile([1.0, 3.0, float("inf"), float("-inf"), float("nan")], like=profile([1.0, 2.0, 3.0], bins=2))
    assert found.counts == (2, 2)
    assert (found.mean, found.finite, found.nulls, found.maximum) == (2.0, 2, 1, 3.0)
