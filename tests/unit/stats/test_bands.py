"""A history band keeps quiet for a year of normal days, and finds a small shift within two windows."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from headrace.core.errors import DefinitionError
from headrace.stats.bands import band, unusual, unusual_drift
from headrace.stats.profiles import compare, profile

DAYS, COLUMNS, HISTORY, ROWS = 305, 50, 60, 1000


def drawn(rng: np.random.Generator, column: int, rows: int, shift: float = 0.0) -> np.ndarray:
    """Draw rows of a column: five families in turn, 1 % nulls; `shift` is in standard deviations."""
    if column % 5 == 4:
        shares = 1 / np.arange(1, column + 2)
        return rng.choice(column + 1, rows, p=shares / shares.sum()).astype(object)
    values = (
        rng.normal(50 + 10 * shift, 10, rows),
        rng.uniform(0, 1, rows) + shift / np.sqrt(12),
        rng.poisson(7, rows).astype(np.float64),
        rng.lognormal(0, 1, rows),
    )[column % 5]
    values[rng.random(rows) < 0.01] = np.nan
    return values


@cache
def year(column: int) -> list[dict[str, float]]:
    """Return the daily distances of a column that never changes, after a training set of the same distribution."""
    rng = np.random.default_rng([11, column])
    reference = profile(drawn(rng, column, 50_000))
    return [compare(reference, drawn(rng, column, ROWS)).distances for _ in range(DAYS + HISTORY)]


def test_a_normal_year_of_fifty_columns_gives_at_most_three_alarm_days() -> None:
    alarms = set()
    for column in range(COLUMNS):
        days = year(column)
        for today in range(HISTORY, DAYS + HISTORY):
            history, recent = days[max(0, today - HISTORY) : today - 2], days[today - 2 : today + 1]
            if any(verdict.unusual for verdict in unusual_drift(history, recent, k=2, n=3).values()):
                alarms.add(today)
    assert len(alarms) <= 3


def test_a_shift_of_a_fifth_of_a_deviation_is_found_within_two_windows() -> None:
    for column in (column for column in range(COLUMNS) if column % 5 < 2):
        rng = np.random.default_rng([11, column])
        reference = profile(drawn(rng, column, 50_000))
        shifted = [compare(reference, drawn(rng, column, ROWS, 0.2)).distances for _ in range(2)]
        recent = [year(column)[-1], *shifted]
        verdicts = unusual_drift(year(column)[-HISTORY:-1], recent, k=2, n=3)
        assert any(verdict.unusual for verdict in verdicts.values()), column


def test_the_numbers_that_decided_are_told() -> None:
    verdict = unusual([0.01, 0.03] * 10, [0.5, 0.02, 0.4], k=2, n=3, minimum_effect=0.1)
    assert verdict.unusual
    assert (verdict.flagged, verdict.judged, verdict.needed) == (2, 3, 2)
    assert verdict.centre == pytest.approx(0.02)
    assert verdict.spread == pytest.approx(0.01 * 1.4826 * (1 + 1.5 / np.sqrt(20)), rel=1e-4)
    assert verdict.limit == pytest.approx(0.02 + max(5 * (verdict.spread or 0), 0.1))
    assert verdict.recent == (0.5, 0.02, 0.4)


@pytest.mark.parametrize(("recent", "expected"), [([9, 9, 0], True), ([9, 0, 0], False), ([9, 9, 0, 0, 9], False)])
def test_only_the_newest_n_windows_count(recent: list[float], expected: bool) -> None:
    assert unusual([1.0, 1.1] * 10, recent, k=2, n=3, minimum_effect=0.5).unusual is expected


def test_what_is_too_small_to_matter_is_not_unusual() -> None:
    assert not unusual([0.0] * 20, [0.004] * 3, k=2, n=3, minimum_effect=0.005).unusual
    assert unusual([0.0] * 20, [0.006] * 3, k=2, n=3, minimum_effect=0.005).unusual


def test_a_past_incident_does_not_widen_the_band() -> None:
    calm = [0.01, 0.02, 0.015] * 10
    before, after = band(calm, minimum_effect=0.0), band([*calm, *[5.0] * 4], minimum_effect=0.0)
    assert before is not None
    assert after is not None
    assert after.limit < 2 * before.limit


def test_a_short_history_decides_nothing_and_says_so() -> None:
    verdict = unusual([0.01] * 13, [9.0] * 3, k=2, n=3, minimum_effect=0.01)
    assert not verdict.unusual
    assert verdict.reason == "history has 13 windows, 14 are needed"
    assert unusual([float("nan")] * 30, [9.0] * 3, k=1, n=1, minimum_effect=0.01).reason is not None


@pytest.mark.parametrize(("k", "n"), [(0, 3), (4, 3)])
def test_impossible_rules_are_refused(k: int, n: int) -> None:
    with pytest.raises(DefinitionError, match="k of n"):
        unusual([], [], k=k, n=n, minimum_effect=0.0)
