"""The oracle for every kind of window and aggregate: online, offline and the definition agree to the bit.

Logs are made up by seed: partial, late, doubled, corrected, moved reveals; instants around changes of the clock in Paris.
"""

from __future__ import annotations

import itertools
import math
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import headrace as hr
from headrace.core.expressions import Column
from headrace.core.time import DAY, HOUR, Instant
from headrace.features.plan import FeaturePlan, plan_features
from headrace.sources.definition import SourceDefinition, definition_of
from headrace.testing.oracle import Values, definition_of_row, made_log, parity

START = int(Instant.parse("2024-03-28T00:00:00Z"))  # clocks go forward in Paris on the 31st
SPAN = 7 * DAY


class Orders(hr.Source):
    order: hr.Column[str] = hr.row_id()
    ordered: hr.Column[hr.Instant] = hr.event_time()
    shop: hr.Column[str | None] = hr.entity()
    till: hr.Column[int | None] = hr.entity()
    paid: hr.Column[hr.Instant | None] = hr.column()
    due: hr.Column[hr.Instant | None] = hr.column()
    amount: hr.Column[float | None] = hr.column(known_at=paid)
    items: hr.Column[int | None] = hr.column(known_at=paid)
    card: hr.Column[bool | None] = hr.column(known_at=paid)
    kind: hr.Column[str | None] = hr.column(known_at=paid)


class Prices(hr.Source, history="scd2"):
    shop: hr.Column[str] = hr.entity()
    since: hr.Column[hr.Instant] = hr.valid_from()
    until: hr.Column[hr.Instant | None] = hr.valid_to()
    price: hr.Column[float | None] = hr.column()
    label: hr.Column[str | None] = hr.column()


class Plans(hr.Source):
    shop: hr.Column[str] = hr.entity()
    number: hr.Column[int] = hr.column()
    day: hr.Column[hr.Date] = hr.event_date(tz="Europe/Paris")
    announced: hr.Column[hr.Instant] = hr.column()
    discount: hr.Column[float | None] = hr.column()
    row_id = hr.row_id(shop, number)
    known_at = announced


class Days(hr.Source):
    shop: hr.Column[str] = hr.entity()
    day: hr.Column[hr.Date] = hr.event_date(tz="Europe/Paris", known_after="6h")
    sold: hr.Column[int | None] = hr.column()
    row_id = hr.row_id(shop, day)


@hr.aggregate
def drift(values: list[float]) -> float | None:
    """Depend on the order of values: a sum of differences, later ones weighing more."""
    steps = [b - a for a, b in itertools.pairwise(values)]
    return sum(i * step for i, step in enumerate(steps, 1)) if steps else None


@hr.aggregate
def joined(values: list[str]) -> int:
    return len("".join(values))


class Shop(hr.FeatureGroup, of=Orders, entity=Orders.shop):
    spent = hr.sum(Orders.amount).over("3h", "1d", "lifetime")
    before = hr.sum(Orders.amount).over("6h", "1d", offset="1d")
    weeks = hr.mean(Orders.items).over("12h", offset=[0, 1, 2])
    stepped = hr.max(Orders.amount).over("2h", "1d", hop="4h")
    even = hr.count(Orders.card).over("1d", hop="1d")
    kinds = hr.count_distinct(Orders.kind).over("6h", "2d")
    prices = hr.count_distinct(Orders.amount).over("1d", "lifetime")
    usual = hr.most_frequent(Orders.kind).over("1d", "3d")
    common = hr.most_frequent(Orders.amount).over("1d")
    newest = hr.last(Orders.items, n=3).over("18h", "2d")
    oldest = hr.first(Orders.kind).over("1d", "lifetime")
    firsts = hr.first(Orders.amount, n=2).over("2d", offset="12h")
    moved = drift(Orders.amount).over("6h", "2d")
    words = joined(Orders.kind, where=Orders.items > 2).over("1d")
    large = hr.stddev(Orders.amount, where=Orders.items >= 1).over("2d", fill=0)
    middle = hr.quantile(Orders.amount, 0.5).over("1d", offset="6h")
    cards = hr.rate(Orders.card).over("lifetime")
    about = hr.count_distinct(Orders.kind, approx=0.2).over("6h", "2d")
    sizes = hr.count_distinct(Orders.items, approx=0.02).over("1d", "lifetime")
    high = hr.quantile(Orders.amount, 0.9, approx=0.01).over("6h", "1d", offset="6h")
    most = hr.quantile(Orders.items, 0.75, approx=0.001, where=Orders.items > -9).over("2d", "lifetime")


class Placed(hr.FeatureGroup, of=Orders, entity=Orders.shop):
    by_event = hr.sum(Orders.amount).over("6h", "1d", on=Orders.ordered)
    local = hr.count(Orders.amount).over("1d", "2d", on=Orders.ordered, tz="Europe/Paris", hop="1d")
    mean = hr.mean(Orders.items).over("1d", "lifetime", on=Orders.due, offset="6h")
    coming = hr.count(Orders.items).ahead("6h", "2d", on=Orders.due)
    expected = hr.sum(Orders.amount).ahead("1d", on=Orders.due, offset=["12h", "1d"])
    next = hr.first(Orders.kind).ahead("3d", on=Orders.due)
    order = drift(Orders.amount).over("2d", on=Orders.due)
    amounts = hr.count_distinct(Orders.amount, approx=0.05).ahead("2d", on=Orders.due)
    dear = hr.quantile(Orders.amount, 0.5, approx=0.02).over("2d", on=Orders.ordered, tz="Europe/Paris", hop="1d")


class Till(hr.FeatureGroup, of=Orders, entity=(Orders.shop, Orders.till)):
    orders = hr.count().over("1d", "lifetime")
    ordered = hr.max(Orders.paid).over("2d")
    last = hr.latest(Orders.paid, Orders.kind, max_age="1d")


class Price(hr.FeatureGroup, of=Prices, entity=Prices.shop):
    now = hr.latest(Prices.price, Prices.label)
    fresh = hr.latest(Prices.price, max_age="2d")
    changes = hr.count(Prices.price).over("3d")


class Planned(hr.FeatureGroup, of=Plans, entity=Plans.shop):
    days = hr.count().ahead("2d", "7d")
    best = hr.max(Plans.discount).ahead("2d", offset=1)
    past = hr.mean(Plans.discount).over("3d", on=Plans.day)


class Sold(hr.FeatureGroup, of=Days, entity=Days.shop):
    units = hr.sum(Days.sold).over("1d", "3d", fill=0)
    same = hr.sum(Days.sold).over("1d", offset="2d")
    civil = hr.sum(Days.sold).over("2d", "3d", on=Days.day)


def instant(random: Random) -> int:
    step = random.choice([DAY // 2, DAY // 2, DAY // 4, HOUR, HOUR // 4, 1])  # many ties, and ages to the microsecond
    return START + random.randrange(SPAN // step) * step


def day(random: Random) -> int:
    return (START // DAY + random.randrange(8)) * DAY


def maybe(draw: Any) -> Any:
    return lambda random: None if random.random() < 0.15 else draw(random)


NUMBERS = [0.1, 0.2, 0.3, 1e16, -1e16, -0.0, 0.0, 7.25, 5e-324, 1e300]


def number(random: Random) -> float:
    return random.choice(NUMBERS) if random.random() < 0.7 else random.uniform(-9, 9)


def column(source: type[hr.Source], name: str) -> Column[Any]:
    return definition_of(source).by_name[name]


def values_of(source: type[hr.Source], **draws: Any) -> Values:
    return {column(source, name): draw for name, draw in draws.items()}


WORDS = ["", "a", "bb", "ü", "a b and other letters", "words of more characters"]
LOGS: list[tuple[SourceDefinition, Values]] = [
    (
        definition_of(Orders),
        values_of(
            Orders,
            order=lambda r: f"o{r.random()}",
            ordered=instant,
            shop=maybe(lambda r: r.choice("XY")),
            till=maybe(lambda r: r.choice([1, 2])),
            paid=maybe(instant),
            due=maybe(lambda r: instant(r) + DAY),
            amount=maybe(number),
            items=maybe(lambda r: r.choice([-3, 0, 1, 2, 3, 2**53 + 1, -(2**61)])),
            card=maybe(lambda r: r.random() < 0.5),
            kind=maybe(lambda r: r.choice(WORDS)),
        ),
    ),
    (
        definition_of(Prices),
        values_of(
            Prices,
            shop=lambda r: r.choice("XY"),
            since=instant,
            until=maybe(instant),
            price=maybe(number),
            label=maybe(lambda r: r.choice(WORDS)),
        ),
    ),
    (
        definition_of(Plans),
        values_of(
            Plans,
            shop=lambda r: r.choice("XY"),
            number=lambda r: r.randrange(20),
            day=day,
            announced=instant,
            discount=maybe(number),
        ),
    ),
    (
        definition_of(Days),
        values_of(Days, shop=lambda r: r.choice("XY"), day=day, sold=maybe(lambda r: r.randrange(-5, 99))),
    ),
]
PLAN: FeaturePlan = plan_features(
    [Shop, Placed, Till, Price.on(Orders.shop), Planned.on(Orders.shop), Sold.on(Orders.shop)], ""
)
ROWS: list[dict[str, Any]] = [
    {"shop": "X", "till": 1},
    {"shop": "Y", "till": 2},
    {"shop": "X", "till": None},
    {"shop": "Z", "till": 1},
]


def whole_log(random: Random, rows: int, reveals: int) -> list[tuple[str, Any]]:
    found = []
    for source, values in LOGS:
        span = (START, START + SPAN)
        found += made_log(source, values, rows=rows, reveals=reveals, span=span, random=random)
    return found


def asked_of(random: Random, count: int) -> list[tuple[list[Any], int]]:
    rows = [[row[c.name] for c in PLAN.row] for row in ROWS]
    return [(random.choice(rows), instant(random) + random.choice([0, 0, 1, DAY])) for _ in range(count)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([5, 20, 60]), st.sampled_from([1, 7, 64]))
def test_every_kind_of_window_agrees_to_the_bit(seed: int, reveals: int, partitions: int) -> None:
    random = Random(seed)
    log, asked = whole_log(random, 12, reveals), asked_of(random, 4)
    assert parity(PLAN, log, asked, random=random, partitions=partitions) > 0


@pytest.mark.parametrize("partitions", [1, 7, 64])
def test_long_logs_with_hot_keys_agree_to_the_bit(partitions: int) -> None:
    random = Random(partitions)
    log, asked = whole_log(random, 400, 2_500), asked_of(random, 5_500)
    count = parity(PLAN, log, asked, random=random, partitions=partitions, by_definition=False)
    count += parity(PLAN, log, asked[:6], random=random)
    assert count >= 1_000_000 / 3


def test_the_reference_sees_what_the_windows_are_about() -> None:
    random = Random(5)
    log, asked = whole_log(random, 40, 300), asked_of(random, 60)
    seen: dict[str, set[Any]] = {c.name: set() for c in PLAN.columns}
    for row, t in asked:
        for c, value in zip(PLAN.columns, definition_of_row(PLAN, log, row, t), strict=True):
            seen[c.name].add(value)
    dull = [name for name, found in seen.items() if len({v for v in found if v is not None}) < 2]
    assert not dull
    assert not any(isinstance(v, float) and math.isnan(v) for found in seen.values() for v in found)
