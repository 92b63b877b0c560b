"""Training sets hold what was known at each row's moment, labels that could have come, and no row more or less."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import headrace as hr
from headrace.core.time import DAY, HOUR
from headrace.features.plan import plan_dataset
from headrace.features.training_set import training_set
from headrace.sources.definition import definition_of
from headrace.sources.record import Reveal
from headrace.sources.run import batch_of
from headrace.testing.oracle import reveal


class Sales(hr.Source):
    sale: hr.Column[str] = hr.row_id()
    at: hr.Column[hr.Instant] = hr.event_time()
    shop: hr.Column[str] = hr.entity()
    paid: hr.Column[bool | None] = hr.column(known_at=at + "1h")
    gain: hr.Column[float | None] = hr.column(known_at=at + "2d")


class Returns(hr.Source):
    number: hr.Column[str] = hr.row_id()
    sale: hr.Column[str] = hr.foreign_key(Sales.sale)
    back: hr.Column[hr.Instant] = hr.event_time()


class Shop(hr.FeatureGroup, of=Sales, entity=Sales.shop):
    gains = hr.count(Sales.gain).over("30d")


SALES, RETURNS = definition_of(Sales), definition_of(Returns)
DATASET = hr.Dataset(
    rows=Sales,
    at=Sales.at,
    features=[Shop],
    label=hr.exists(Returns, on=Returns.sale).within("3d"),
    labelled_if=Sales.paid,
)
PLAN = plan_dataset(DATASET)


def sale(number: int, at: int, *, paid: bool | None = True, gain: float | None = 1.0, late: int = 0) -> list[Reveal]:
    """Return the reveals of a sale, each value arriving at its moment and so much later."""
    who = {Sales.sale: str(number), Sales.at: at}
    found = [reveal(SALES, who | {Sales.shop: "s"}, at)]
    found.append(reveal(SALES, who | {Sales.paid: paid}, at + HOUR + late))
    return [*found, reveal(SALES, who | {Sales.gain: gain}, at + 2 * DAY + late)]


def back(number: int, sale_: int, at: int, *, late: int = 0) -> Reveal:
    return reveal(RETURNS, {Returns.number: str(number), Returns.sale: str(sale_), Returns.back: at}, at + late)


def built(
    sales: list[Reveal], returns: list[Reveal], as_of: int, plan: Any = PLAN
) -> dict[str, tuple[float, int, float]]:
    """Return each row's label, feature and weight by its id."""
    reveals = {"Sales": batch_of(SALES, sales).table, "Returns": batch_of(RETURNS, returns).table}
    found = training_set(plan, reveals, as_of=as_of)
    weight = found.weight if found.weight is not None else np.ones(len(found))
    gains = found.features["Shop.gains[30d]"].to_pylist()
    rows = zip(
        found.rows["sale"].to_pylist(), zip(found.label.tolist(), gains, weight.tolist(), strict=True), strict=True
    )
    return dict(rows)


def test_only_rows_whose_label_could_have_come_are_there() -> None:
    sales = sale(1, 10 * DAY) + sale(2, 11 * DAY) + sale(3, 11 * DAY + 1)
    returns = [back(1, 1, 12 * DAY), back(2, 3, 11 * DAY + 2)]
    assert built(sales, returns, 14 * DAY) == {"1": (1.0, 0, 1.0), "2": (0.0, 0, 1.0)}
    assert built(sales, returns, 14 * DAY - 1) == {"1": (1.0, 0, 1.0)}
    assert set(built(sales, returns, 14 * DAY + 1)) == {"1", "2", "3"}


def test_a_label_counts_inside_its_window_and_only_when_it_was_known() -> None:
    sales = [r for n, day in enumerate((10, 10, 10, 10), 1) for r in sale(n, day * DAY)]
    returns = [back(1, 1, 10 * DAY), back(2, 2, 13 * DAY), back(3, 3, 13 * DAY - 1), back(4, 4, 11 * DAY, late=5 * DAY)]
    labels = {row: found[0] for row, found in built(sales, returns, 14 * DAY).items()}
    assert labels == {"1": 1.0, "2": 0.0, "3": 1.0, "4": 0.0}
    assert built(sales, returns, 16 * DAY - 1)["4"][0] == 0.0
    assert built(sales, returns, 16 * DAY)["4"][0] == 1.0


def test_rows_without_a_possible_label_are_kept_and_censored() -> None:
    sales = (
        sale(1, 10 * DAY, paid=False)
        + sale(2, 10 * DAY, paid=None)
        + sale(3, 10 * DAY)
        + sale(4, 10 * DAY, late=9 * DAY)
    )
    found = {row: found[0] for row, found in built(sales, [], 15 * DAY).items()}
    assert [np.isnan(found[n]) for n in "1234"] == [True, True, False, True]


def test_a_value_that_arrived_after_the_row_is_in_no_feature() -> None:
    """Promise R9, with both clocks: the gain of the first sale is known after two days, and here arrives after five."""
    sales = sale(1, 10 * DAY, late=3 * DAY) + sale(2, 13 * DAY) + sale(3, 15 * DAY + 1)
    found = {row: values[1] for row, values in built(sales, [], 30 * DAY).items()}
    assert found == {"1": 0, "2": 0, "3": 2}


def test_a_sample_depends_on_ids_alone_and_weighs_what_it_keeps() -> None:
    options: dict[str, Any] = {"rows": Sales, "at": Sales.at, "features": [Shop], "label": DATASET.label}
    plan = plan_dataset(hr.Dataset(**options, sample=hr.downsample(False, 0.25)))
    light = plan_dataset(hr.Dataset(**options, sample=hr.downsample(False, 0.25, weight=False)))
    sales = [r for n in range(400) for r in sale(n, 10 * DAY + n)]
    returns = [back(n, n, 11 * DAY) for n in range(0, 400, 20)]
    found = built(sales, returns, 30 * DAY, plan)
    assert {row: w for row, (label, _, w) in found.items() if label == 1.0} == {str(n): 1.0 for n in range(0, 400, 20)}
    assert {w for label, _, w in found.values() if label == 0.0} == {4.0}
    assert 60 < len(found) - 20 < 130
    more = built(sales + [r for n in range(400, 500) for r in sale(n, 11 * DAY + n)], returns, 30 * DAY, plan)
    assert set(found) == {row for row in more if int(row) < 400}
    assert {w for _, _, w in built(sales, returns, 30 * DAY, light).values()} == {1.0}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_rows_and_labels_are_those_of_the_plain_definition(seed: int) -> None:
    r = Random(seed)
    moments = {n: r.randrange(20) * DAY // 2 for n in range(12)}
    lateness = {n: r.choice([0, 0, DAY]) for n in moments}
    sales = [x for n, at in moments.items() for x in sale(n, at, paid=r.choice([True, True, False]), late=lateness[n])]
    backs = [(k, r.randrange(14), r.randrange(24) * DAY // 2, r.choice([0, DAY, 9 * DAY])) for k in range(10)]
    returns = [back(k, n, at, late=late) for k, n, at, late in backs]
    as_of = r.randrange(30) * DAY // 2
    found = built(sales, returns, as_of)
    assert set(found) == {str(n) for n, at in moments.items() if at + 3 * DAY <= as_of}
    for row, (label, _, _) in found.items():
        at = moments[int(row)]
        seen = any(
            n == int(row) and at <= when < at + 3 * DAY and when < as_of and when + late <= as_of
            for _, n, when, late in backs
        )
        assert np.isnan(label) or label == float(seen)
