"""Aggregates, windows, labels, grids and changing tables: what cannot be meant is refused with its line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import headrace as hr
from headrace.core.errors import DefinitionError, UnknownColumn, UserCodeError
from headrace.core.time import DAY, HOUR, Instant
from headrace.features.grid import steps
from headrace.features.label_plan import TableLabel
from headrace.features.lane_plan import plan_group
from headrace.features.plan import plan_dataset, plan_features
from headrace.sources.definition import definition_of


class Orders(hr.Source):
    order: hr.Column[str] = hr.row_id()
    at: hr.Column[hr.Instant] = hr.event_time()
    shop: hr.Column[str] = hr.entity()
    amount: hr.Column[float | None] = hr.column()
    day: hr.Column[hr.Date | None] = hr.column()
    due: hr.Column[hr.Instant | None] = hr.column()


class Returns(hr.Source):
    number: hr.Column[str] = hr.row_id()
    order: hr.Column[str] = hr.foreign_key(Orders.order)
    back: hr.Column[hr.Instant] = hr.event_time()
    shop: hr.Column[int] = hr.entity()


def group(**features: Any) -> Any:
    return type("Group", (hr.FeatureGroup,), features, of=Orders, entity=Orders.shop)


TEXT: Any = Orders.shop
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "no window": (lambda: hr.count().over(), "a feature needs windows"),
    "a window twice": (lambda: hr.count().over("1h", "60m"), "a feature needs windows"),
    "an offset twice": (lambda: hr.count().over("1h", offset=[1, "24h"]), "a feature needs windows"),
    "a window ahead without end": (lambda: hr.count().ahead("lifetime"), "not a duration"),
    "civil time of moments": (lambda: hr.count().over("1d", tz="Europe/Paris"), "civil time needs"),
    "an unknown zone": (lambda: hr.count().over("1d", on=Orders.at, tz="Europe/Pariss"), "unknown time zone"),
    "no number of values": (lambda: hr.last(Orders.amount, n=0), "not a number of values"),
    "a share of all": (lambda: hr.downsample(False, 0.0), "not a share"),
    "a truth value": (lambda: bool(hr.count().over("1h") > 0), "no truth value"),
    "a sum of texts": (lambda: plan_group(group(x=hr.sum(TEXT).over("1h"))), "cannot take str values"),
    "the least text": (lambda: plan_group(group(x=hr.min(TEXT).over("1h"))), "cannot take str values"),
    "placed on a number": (lambda: plan_group(group(x=hr.count().over("1d", on=Orders.amount))), "no instant or date"),
    "ahead of what happens": (lambda: plan_features([group(x=hr.count().ahead("1d"))], ""), "looks ahead at values"),
    "a grid of two tables": (lambda: hr.grid((Orders.shop, Returns.shop), every="1d"), "columns of one table"),
    "a weekday in steps of days": (lambda: hr.grid(Orders.shop, every="1d", on="mon"), "steps of whole weeks"),
    "a table without the reference": (lambda: hr.exists(Returns, on=Orders.order), "a column of the table"),
    "a fold of two": (lambda: hr.aggregate(lambda a, b: 1.0), "takes the list"),  # type: ignore[arg-type, misc]
    "scd2 without an end": (
        lambda: type("T", (hr.Source,), {"__annotations__": {"at": hr.Column[hr.Instant]}, "at": hr.valid_from()}, history="scd2"),
        "need a valid_to",
    ),
    "an unknown history": (
        lambda: type("T", (hr.Source,), {"__annotations__": {"at": hr.Column[hr.Instant]}, "at": hr.valid_from()}, history="log"),
        "unknown history",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_meant_is_refused(name: str) -> None:
    mistake, message = REFUSED[name]
    with pytest.raises(DefinitionError, match=message):
        mistake()


def dataset(label: Any, **more: Any) -> hr.Dataset:
    return hr.Dataset(rows=Orders, at=Orders.at, features=[Orders.amount], label=label, **more)


def test_a_label_lies_ahead_and_matures_after_its_window() -> None:
    with pytest.raises(DefinitionError, match="a window that lies ahead"):
        dataset(group(x=hr.count().over("1d")).x["1d"])
    with pytest.raises(DefinitionError, match="how long a label may take"):
        dataset(Orders.amount > 3)
    with pytest.raises(DefinitionError, match="before its window is over"):
        dataset(hr.exists(Returns, on=Returns.order).within("9d"), mature="8d")
    with pytest.raises(DefinitionError, match="under which key"):
        dataset(hr.sum(Orders.amount).ahead("1d"))
    assert dataset(hr.exists(Returns, on=Returns.order).within("9d")).mature == 9 * DAY


def test_a_label_of_another_table_is_found_by_what_refers_to_the_row() -> None:
    plan = plan_dataset(dataset(hr.exists(Returns, on=Returns.order).within("9d")))
    assert isinstance(plan.label, TableLabel)
    assert plan.label.key == (Orders.order,)
    assert plan.label.boolean
    with pytest.raises(DefinitionError, match="no key leads from a row to its label"):
        plan_dataset(dataset(hr.exists(Returns, on=Returns.shop).within("9d")))


def test_a_group_of_another_table_is_read_under_the_namesake_of_its_key() -> None:
    class Back(hr.FeatureGroup, of=Returns, entity=Returns.order):
        n = hr.count().over("1d")

    class Wrong(hr.FeatureGroup, of=Returns, entity=Returns.shop):
        n = hr.count().over("1d")

    plan = plan_dataset(hr.Dataset(rows=Orders, at=Orders.at, features=[Back], label=Orders.amount > 1, mature="1d"))
    assert plan.bindings[0].key == (Orders.order,)
    with pytest.raises(DefinitionError, match="which no row of Orders has"):  # a number is no text
        plan_dataset(hr.Dataset(rows=Orders, at=Orders.at, features=[Wrong], label=Orders.amount > 1, mature="1d"))


def test_parts_of_windows_are_named_and_found_by_any_spelling() -> None:
    found = group(
        a=hr.sum(Orders.amount).over("7d", "1h", offset=[0, "7d"]),
        b=hr.last(Orders.amount, n=2).over("24h", "lifetime"),
    )
    assert found.a.parts() == ("1h+0d", "1h+7d", "7d+0d", "7d+7d")
    assert found.b.parts() == ("24h:1", "24h:2", "lifetime:1", "lifetime:2")
    assert str(found.b["24h:2"]) == "Group.b[24h:2]"
    assert str(group(c=hr.count().over("24h")).c["1d"]) == "Group.c[24h]"
    with pytest.raises(UnknownColumn, match="has no part 7d"):
        found.a["7d"]


def test_a_fold_that_raises_or_returns_no_number_is_the_authors() -> None:
    @hr.aggregate
    def broken(values: list[float]) -> float | None:
        return values[9]

    @hr.aggregate
    def texts(values: list[float]) -> int:
        return "many"  # type: ignore[return-value]

    event = {"order": "1", "at": "2024-03-01T10:00Z", "shop": "s", "amount": 1.0}
    with pytest.raises(UserCodeError, match="broken raised IndexError") as caught:
        group(x=broken(Orders.amount).over("1d")).test([event], at="2024-03-01T11:00:00Z")
    assert "test_aggregates.py" in str(caught.value.where)
    with pytest.raises(UserCodeError, match="texts returned 'many', not int"):
        group(x=texts(Orders.amount).over("1d")).test([event], at="2024-03-01T11:00:00Z")
    assert group(x=broken(Orders.amount).over("1d")).test([event | {"amount": None}], at="2024-03-01T11:00:00Z") == {
        "Group.x[1d]": None
    }


def test_a_changed_fold_is_another_version_of_its_group() -> None:
    def version(more: bool) -> str:
        if more:

            @hr.aggregate
            def size(values: list[float]) -> int:
                return len(values) + 1

        else:

            @hr.aggregate
            def size(values: list[float]) -> int:
                return len(values)

        return plan_group(group(x=size(Orders.amount).over("1d"))).hash

    assert version(False) == version(False)
    assert version(True) != version(False)


def test_steps_of_a_grid_are_local_midnights_and_leap_with_the_clock() -> None:
    mondays = hr.grid(Orders.shop, every="7d", on="mon", tz="Europe/Paris")
    span = (int(Instant.parse("2024-03-18T00:00Z")), int(Instant.parse("2024-04-09T00:00Z")))
    shown = [Instant(int(t)).isoformat() for t in steps(mondays, span)]
    assert shown == ["2024-03-24T23:00:00Z", "2024-03-31T22:00:00Z", "2024-04-07T22:00:00Z"]
    # 02:00 to 03:00 does not exist on the 31st of March, and comes twice on the 27th of October.
    hours = hr.grid(Orders.shop, every="1h", tz="Europe/Paris")
    for day, count in (("2024-03-31", 23), ("2024-10-27", 24)):
        local = int(Instant.parse(f"{day}T00:00:00", zone="Europe/Paris"))
        ends = int(Instant.parse(f"{day}T23:59:59", zone="Europe/Paris"))
        found = steps(hours, (local, ends))
        assert len(found) == count
        assert set(np.diff(found).tolist()) <= {HOUR, 2 * HOUR}


def test_entities_and_time_name_rows_where_nothing_else_does() -> None:
    class Weather(hr.Source):
        place: hr.Column[str] = hr.entity()
        hour: hr.Column[hr.Instant] = hr.event_time()
        temp: hr.Column[float | None] = hr.column()

    assert [c.name for c in definition_of(Weather).id_columns] == ["place", "hour"]


def test_a_day_is_known_some_time_after_its_local_end() -> None:
    class Sales(hr.Source):
        shop: hr.Column[str] = hr.entity()
        day: hr.Column[hr.Date] = hr.event_date(tz="Europe/Paris", known_after="6h")
        units: hr.Column[int] = hr.column()

    class Sold(hr.FeatureGroup, of=Sales, entity=Sales.shop):
        units = hr.sum(Sales.units).over("2d")

    sold = [{"shop": "s", "day": "2024-03-30", "units": 3}, {"shop": "s", "day": "2024-03-31", "units": 4}]
    # The 31st has 23 hours; it ends at 22:00 UTC and is known at 04:00.
    shown = [
        Sold.test(sold, at=f"2024-{t}Z")["Sold.units[2d]"]
        for t in ("03-31T05:00:01", "04-01T04:00:00", "04-01T04:00:01")
    ]
    assert shown == [3, 3, 7]


def test_precomputed_features_are_the_newest_known_values() -> None:
    class Scores(hr.Source):
        shop: hr.Column[str] = hr.entity()
        made: hr.Column[hr.Instant] = hr.event_time()
        score: hr.Column[float | None] = hr.column()
        tier: hr.Column[str | None] = hr.column()

    found: Any = hr.precomputed(Scores, entity=Scores.shop, max_age="7d")
    rows = [{"shop": "s", "made": "2024-03-01T00:00Z", "score": 0.5, "tier": "a"}]
    assert found.test(rows, at="2024-03-02T00:00:00Z") == {"Scores.score": 0.5, "Scores.tier": "a"}
    assert found.test(rows, at="2024-03-09T00:00:00Z") == {"Scores.score": None, "Scores.tier": None}


def test_a_tie_is_decided_by_when_the_values_arrived_not_the_rest_of_the_row() -> None:
    at = "2024-03-01T10:00:00Z"
    found = group(x=hr.last(Orders.amount).over("30d"))
    events = [
        {"order": "1", "at": at, "shop": "s", "amount": 1.0, "_arrival": "2024-03-01T11:00:00Z"},
        {"order": "2", "at": at, "shop": "s", "amount": 2.0, "_arrival": "2024-03-01T12:00:00Z"},
        {"order": "1", "due": "2024-04-01T00:00:00Z", "_arrival": "2024-03-01T13:00:00Z"},
    ]
    assert found.test(events, at="2024-03-02T00:00:00Z") == {"Group.x[30d]": 2.0}
