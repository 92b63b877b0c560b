"""Gaps count only groups that can be judged, and list the others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.errors import DataError
from headrace.evaluation.fairness import by_group, demographic_parity, equalized_odds, gap, worst_group
from headrace.evaluation.metrics import METRICS, measure

ROWS = st.lists(st.tuples(st.integers(0, 1), st.booleans(), st.sampled_from("abc")), min_size=1, max_size=60)


@given(ROWS)
def test_groups_are_measured_apart(rows: list[tuple[int, bool, str]]) -> None:
    labels, chosen, groups = (np.asarray(column) for column in zip(*rows, strict=True))
    found = by_group("recall", labels, chosen.astype(float), groups)
    assert found == {
        name: measure("recall", labels[groups == name], chosen[groups == name]) for name in sorted({*groups})
    }


@given(ROWS)
def test_parity_is_the_gap_of_selection(rows: list[tuple[int, bool, str]]) -> None:
    _, chosen, groups = (np.asarray(column) for column in zip(*rows, strict=True))
    rates = [float(chosen[groups == name].mean()) for name in {*groups}]
    found = demographic_parity(chosen, groups)
    if len(rates) < 2:
        assert found.value is None
        assert found.reason == "1 of 1 groups can be judged"
    else:
        assert found.value == pytest.approx(max(rates) - min(rates))
        assert found.ratio == (pytest.approx(min(rates) / max(rates)) if max(rates) else None)


def test_a_group_without_positives_takes_no_part() -> None:
    labels, chosen, groups = [1, 1, 1, 0, 0], [1, 0, 1, 1, 0], ["a", "a", "b", "c", "c"]
    odds = equalized_odds(labels, chosen, groups)
    assert odds.true_positive_rate.value == 0.5
    assert odds.true_positive_rate.groups["c"].reason == "no row that the rate counts"
    assert odds.difference is None  # only c has negatives
    assert odds.false_positive_rate.reason == "1 of 3 groups can be judged"


def test_small_groups_are_listed_not_judged() -> None:
    labels, scores = [1] * 12, [0.9] * 10 + [0.1] * 2
    groups = ["a"] * 5 + ["b"] * 5 + ["tiny"] * 2
    found = gap("recall", labels, scores, groups, min_rows=5)
    assert found.value == 0.0
    assert (found.groups["tiny"].rows, found.groups["tiny"].reason) == (2, "2 rows, 5 needed")
    assert gap("recall", labels, scores, groups, min_rows=2).value == 1.0
    assert gap("recall", labels, scores, groups, min_rows=2).lowest == "tiny"


def test_null_is_a_group_of_its_own() -> None:
    found = by_group("accuracy", [1, 1, 0], [0.9, 0.2, 0.1], np.array(["x", None, "x"], dtype=object))
    assert found["null"].value == 0.0
    assert found["x"].value == 1.0
    assert by_group("accuracy", [1, 1], [0.9, 0.2], [1.0, float("nan")])["null"].rows == 1


def test_the_worst_group_follows_the_direction() -> None:
    labels, scores, groups = [1, 1, 0, 0], [0.9, 0.8, 0.6, 0.7], ["a", "a", "b", "b"]
    for name in ("accuracy", "brier"):
        worst = worst_group(METRICS[name], by_group(name, labels, scores, groups))
        assert worst is not None
        assert worst[0] == "b"
    assert worst_group(METRICS["auc"], by_group("auc", labels, scores, groups)) is None


def test_weights_and_thresholds_reach_the_groups() -> None:
    found = by_group("recall", [1, 1], [0.3, 0.1], ["a", "a"], weights=[3, 1], threshold=0.2)
    assert found["a"].value == 0.75


def test_groups_of_another_length_are_refused() -> None:
    with pytest.raises(DataError, match="differ in length"):
        demographic_parity([1, 0], ["a"])
    assert gap("auc", [], [], []).reason == "0 of 0 groups can be judged"
