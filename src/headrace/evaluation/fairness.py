"""Measure a metric group by group, and how far apart the groups lie. Groups too small to judge are listed, not judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headrace.core.errors import DataError
from headrace.evaluation.metrics import Measured, Metric, as_rows, known, measure_rows
from headrace.stats.classification import Confusion, confusion, false_positive_rate, positive_rate, recall


@dataclass(frozen=True)
class Gap:
    """Hold the largest difference between groups, the smallest ratio, and every group behind them.

    `value` is largest less smallest, `ratio` smallest over largest. Both are None with a reason where fewer than two
    groups could be judged; the ratio also where the largest value is not positive.
    """

    name: str
    value: float | None
    ratio: float | None
    lowest: str | None
    highest: str | None
    groups: dict[str, Measured]
    reason: str | None = None


@dataclass(frozen=True)
class Odds:
    """Hold how far true and false positive rates lie apart between groups.

    `difference` is the larger of both gaps (equalized odds), `ratio` the smaller of both ratios; None where either is
    undefined. The gap of `true_positive_rate` alone is equal opportunity.
    """

    difference: float | None
    ratio: float | None
    true_positive_rate: Gap
    false_positive_rate: Gap


def by_group(
    name: str,
    labels: ArrayLike,
    predictions: ArrayLike,
    groups: ArrayLike,
    *,
    min_rows: int = 1,
    weights: ArrayLike | None = None,
    threshold: float = 0.5,
    queries: ArrayLike | None = None,
) -> dict[str, Measured]:
    """Measure a metric on each group, by name; a group with fewer than `min_rows` rows has a reason instead of a value.

    >>> found = by_group("recall", [1, 1, 1], [0.9, 0.1, 0.8], ["a", "a", "b"], min_rows=2)
    >>> found["a"].value, found["b"].reason
    (0.5, '1 rows, 2 needed')

    Raises:
        DefinitionError: no such metric.
        DataError: columns of different lengths.
    """
    metric = known(name)
    rows = as_rows(labels, predictions, weights, threshold, queries)

    def one(chosen: NDArray[np.int64]) -> Measured:
        return measure_rows(metric, rows.take(chosen))

    return each_group(metric.name, groups, rows.labels.size, min_rows, one)


def gap(
    name: str,
    labels: ArrayLike,
    predictions: ArrayLike,
    groups: ArrayLike,
    *,
    min_rows: int = 30,
    weights: ArrayLike | None = None,
    threshold: float = 0.5,
) -> Gap:
    """Return how far a metric lies apart between the groups that have `min_rows` rows.

    >>> gap("recall", [1, 1, 1, 1], [0.9, 0.1, 0.8, 0.7], ["a", "a", "b", "b"], min_rows=2).value
    0.5
    """
    found = by_group(name, labels, predictions, groups, min_rows=min_rows, weights=weights, threshold=threshold)
    return spread(name, found)


def demographic_parity(decisions: ArrayLike, groups: ArrayLike, *, min_rows: int = 1) -> Gap:
    """Return how far the share of positive decisions lies apart between groups.

    Source: Agarwal et al. (2018), definition 1; checked against fairlearn 0.15.

    >>> demographic_parity([1, 0, 1, 1], ["a", "a", "b", "b"]).ratio
    0.5
    """
    chosen = np.asarray(decisions).astype(bool)
    return rate_gap("positive_rate", positive_rate, np.zeros(chosen.shape), chosen, groups, min_rows)


def equalized_odds(labels: ArrayLike, decisions: ArrayLike, groups: ArrayLike, *, min_rows: int = 1) -> Odds:
    """Return how far true and false positive rates lie apart between groups.

    A group without positives has no true positive rate and takes no part in that gap (fairlearn calls the rate 0).

    Source: Hardt, Price and Srebro (2016), definitions 2.1 and 2.2; checked against fairlearn 0.15.

    >>> equalized_odds([1, 0, 1, 0], [1, 0, 1, 1], ["a", "a", "b", "b"]).difference
    1.0
    """
    label, chosen = np.asarray(labels, dtype=np.float64), np.asarray(decisions).astype(bool)
    hits = rate_gap("true_positive_rate", recall, label, chosen, groups, min_rows)
    alarms = rate_gap("false_positive_rate", false_positive_rate, label, chosen, groups, min_rows)
    gaps = [found.value for found in (hits, alarms) if found.value is not None]
    ratios = [found.ratio for found in (hits, alarms) if found.ratio is not None]
    difference = max(gaps) if len(gaps) == 2 else None
    return Odds(difference, min(ratios) if len(ratios) == 2 else None, hits, alarms)


def rate_gap(
    name: str,
    rate: Callable[[Confusion], float | None],
    labels: NDArray[np.float64],
    decisions: NDArray[np.bool_],
    groups: ArrayLike,
    min_rows: int,
) -> Gap:
    """Return how far a rate of the confusion counts lies apart between groups."""

    def one(chosen: NDArray[np.int64]) -> Measured:
        value = rate(confusion(labels[chosen], decisions[chosen]))
        return Measured(name, value, chosen.size, None if value is not None else "no row that the rate counts")

    return spread(name, each_group(name, groups, decisions.size, min_rows, one))


def each_group(
    name: str, groups: ArrayLike, size: int, min_rows: int, one: Callable[[NDArray[np.int64]], Measured]
) -> dict[str, Measured]:
    """Apply a measurement to the positions of each group, in the order of their names; null is the group "null".

    Raises:
        DataError: there are not as many groups as rows.
    """
    names = ["null" if value is None or value != value else str(value) for value in np.asarray(groups).tolist()]
    if len(names) != size:
        raise DataError(
            "groups and rows differ in length",
            where="evaluation.fairness",
            got=f"{len(names)} groups, {size} rows",
            expected="one group for each row",
            next_step="read the grouping column from the same rows",
        )
    labels, place = np.unique(np.asarray(names, dtype=object).astype(str), return_inverse=True)
    rows = np.split(np.argsort(place, kind="stable"), np.cumsum(np.bincount(place))[:-1]) if size else []
    found: dict[str, Measured] = {}
    for label, chosen in zip(labels.tolist(), rows, strict=True):
        short = chosen.size < min_rows
        found[label] = (
            Measured(name, None, chosen.size, f"{chosen.size} rows, {min_rows} needed") if short else one(chosen)
        )
    return found


def spread(name: str, groups: dict[str, Measured]) -> Gap:
    """Return the gap between the groups that have a value."""
    values: dict[str, float] = {group: found.value for group, found in groups.items() if found.value is not None}
    if len(values) < 2:
        return Gap(name, None, None, None, None, groups, f"{len(values)} of {len(groups)} groups can be judged")
    lowest, highest = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    low, high = values[lowest], values[highest]
    return Gap(name, high - low, low / high if high > 0 else None, lowest, highest, groups)


def worst_group(metric: Metric, groups: dict[str, Measured]) -> tuple[str, Measured] | None:
    """Return the group with the worst value of a metric; None where no group has one or nothing is worse.

    >>> from headrace.evaluation.metrics import METRICS
    >>> found = by_group("recall", [1, 1, 1], [0.9, 0.1, 0.8], ["a", "a", "b"])
    >>> worst_group(METRICS["recall"], found)[0]
    'a'
    """
    judged: list[tuple[str, Any]] = [(group, found) for group, found in groups.items() if found.value is not None]
    if not judged or metric.better == "neither":
        return None
    worst = judged[0]
    for candidate in judged[1:]:
        if metric.improves(worst[1].value, on=candidate[1].value):
            worst = candidate
    return worst
