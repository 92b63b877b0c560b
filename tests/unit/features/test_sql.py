"""Features by SQL: known when they say so, the same every time, refused where they cannot be, wrong texts at their line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import headrace as hr
from headrace.core.errors import DataError, DefinitionError
from headrace.core.time import DAY, HOUR, Instant
from headrace.features.lane_plan import plan_group
from headrace.features.offline import OfflineFeatures, histories_of
from headrace.features.online import OnlineFeatures
from headrace.features.plan import plan_dataset, plan_features
from headrace.features.stream import StreamPath
from headrace.features.training_set import training_set
from headrace.sources.connections import over_tables
from headrace.sources.definition import definition_of
from headrace.sources.plan import expand
from headrace.sources.run import batch_of
from headrace.testing.oracle import reveal

START = int(Instant.parse("2024-03-01T00:00:00Z"))


class Shops(hr.Source):
    shop: hr.Column[str] = hr.entity()
    opened: hr.Column[hr.Instant] = hr.event_time()
    town: hr.Column[str] = hr.column()


class Towns(hr.FeatureGroup, of=Shops, entity=Shops.shop):
    town = hr.latest(Shops.town)


DAILY = """
    SELECT shop, date_trunc('day', placed) + INTERVAL 1 DAY AS day, sum(amount) AS spent, count(*) AS orders,
           max(number) AS highest, any_value(kind ORDER BY placed) AS first_kind
    FROM Orders GROUP BY 1, 2
"""


class Orders(hr.Source):
    order: hr.Column[str] = hr.row_id()
    placed: hr.Column[hr.Instant] = hr.event_time()
    shop: hr.Column[str] = hr.entity()
    amount: hr.Column[float | None] = hr.column()
    number: hr.Column[int | None] = hr.column()
    kind: hr.Column[str | None] = hr.column()
    due: hr.Column[hr.Date | None] = hr.column()


def daily(
    text: str = DAILY, *, known_at: str | None = None, tables: Sequence[type[hr.Source]] = (Orders,), **more: Any
) -> Any:
    """Return a group of daily sums, known `known_at` after the day's end."""

    class Daily(hr.Source):
        shop: hr.Column[str] = hr.entity()
        day: hr.Column[hr.Instant] = hr.event_time()
        spent: hr.Column[float | None] = hr.column()
        orders: hr.Column[int] = hr.column()
        highest: hr.Column[int | None] = hr.column()
        first_kind: hr.Column[str | None] = hr.column()

    moment = Daily.day if known_at is None else Daily.day + known_at
    return hr.sql(text, Daily, tables=tables, entity=Daily.shop, known_at=moment, **more)


def orders(*rows: tuple[str, int, float | None], number: int = 2**53 + 1) -> dict[str, pa.Table]:
    """Return reveals of orders: (shop, moment, amount)."""
    n, whole = len(rows), pa.int64()
    table = pa.table(
        {
            "order": [f"o{i}" for i in range(n)],
            "placed": pa.array([START + at for _, at, _ in rows], whole),
            "shop": [shop for shop, _, _ in rows],
            "amount": pa.array([amount for _, _, amount in rows], pa.float64()),
            "number": pa.array([number] * n, whole),
            "kind": [f"k{i}" for i in range(n)],
            "due": pa.array([START // DAY * DAY] * n, whole),
        }
    )
    return {"Orders": expand(definition_of(Orders), table).table}


def values(group: Any, reveals: dict[str, pa.Table], shop: str, at: Sequence[int], as_of: int = 2**62) -> Any:
    """Return a group's features of a shop at moments after START."""
    plan = plan_features([group], "")
    keys = pa.table({"shop": [shop] * len(at)})
    moments = np.array([START + t for t in at], np.int64)
    histories = histories_of(plan, reveals, as_of)
    return OfflineFeatures(plan, histories).compute(keys, moments).table(plan).to_pylist()


REVEALS = orders(("s", 9 * HOUR, 1.5), ("s", 20 * HOUR, 2.25), ("t", HOUR, 8.0), ("s", DAY + HOUR, 4.0))
NOTHING = {"Daily.spent": None, "Daily.orders": None, "Daily.highest": None, "Daily.first_kind": None}
FIRST = {"Daily.spent": 3.75, "Daily.orders": 2, "Daily.highest": 2**53 + 1, "Daily.first_kind": "k0"}


def test_a_row_is_used_from_its_moment_on_and_not_at_it() -> None:
    found = values(daily(), REVEALS, "s", [DAY - 1, DAY, DAY + 1, 2 * DAY + 1])
    assert found[:3] == [NOTHING, NOTHING, FIRST]
    assert found[3]["Daily.spent"] == 4.0


def test_known_at_moves_the_moment_and_max_age_ends_it() -> None:
    found = values(
        daily(known_at="6h", max_age="1d"), REVEALS, "s", [30 * HOUR, 30 * HOUR + 1, 54 * HOUR + 1, 90 * HOUR]
    )
    assert [row["Daily.spent"] for row in found] == [None, 3.75, 4.0, None]
    assert values(daily(), REVEALS, "nobody", [9 * DAY]) == [NOTHING]


def test_what_had_not_arrived_by_as_of_is_in_no_table() -> None:
    found = values(daily(), REVEALS, "s", [5 * DAY], as_of=START + 10 * HOUR)
    assert found == [NOTHING]  # the day's row is known only later, at its end
    late = values(daily(), REVEALS, "s", [5 * DAY], as_of=START + DAY + 2 * HOUR)
    assert late[0]["Daily.spent"] == 3.75


def test_only_the_newest_reveal_of_a_row_counts() -> None:
    source = definition_of(Orders)
    plain = {Orders.order: "o", Orders.placed: START + HOUR, Orders.shop: "s", Orders.amount: 1.0}
    log = [reveal(source, plain, START + HOUR), reveal(source, plain | {Orders.amount: 7.0}, START + 2 * HOUR)]
    found = values(daily(), {"Orders": batch_of(source, log).table}, "s", [DAY + 1])
    assert (found[0]["Daily.spent"], found[0]["Daily.orders"], found[0]["Daily.highest"]) == (7.0, 1, None)


def test_the_same_rows_give_the_same_bits_in_whatever_order_they_came() -> None:
    r = np.random.default_rng(4)
    rows = [("s", int(t), float(x)) for t, x in zip(r.integers(0, DAY, 5_000), r.lognormal(0, 9, 5_000), strict=True)]
    table = orders(*rows)["Orders"]
    found = {
        repr(values(daily(), {"Orders": table.take(pa.array(r.permutation(len(table))))}, "s", [DAY + 1]))
        for _ in range(4)
    }
    assert len(found) == 1


def test_queries_run_in_one_thread() -> None:
    with over_tables({}, repeatable=True) as connection:
        assert [b.to_pylist() for b in connection.batches("SELECT current_setting('threads') AS n", (), 1)] == [
            [{"n": 1}]
        ]


def test_instants_are_utc_and_days_are_dates() -> None:
    text = """SELECT shop, placed + INTERVAL 1 HOUR AS day, date_diff('day', due, CAST(placed AS DATE)) + amount AS spent,
        1 AS orders, hour(placed) AS highest, strftime(placed, '%Y-%m-%d %H:%M %Z') || typeof(due) AS first_kind FROM Orders;"""
    found = values(daily(text), orders(("s", DAY + 9 * HOUR, 0.5)), "s", [DAY + 11 * HOUR])
    assert found[0] == {
        "Daily.spent": 1.5,
        "Daily.orders": 1,
        "Daily.highest": 9,
        "Daily.first_kind": "2024-03-02 09:00 UTCDATE",
    }


def test_several_tables_are_joined() -> None:
    class Sums(hr.Source):
        town: hr.Column[str] = hr.entity()
        day: hr.Column[hr.Instant] = hr.event_time()
        spent: hr.Column[float | None] = hr.column()

    text = """SELECT town, date_trunc('day', placed) + INTERVAL 1 DAY AS day, sum(amount) AS spent
        FROM Orders JOIN Shops USING (shop) GROUP BY ALL"""
    group = hr.sql(text, Sums, tables=[Orders, Shops], entity=Sums.town, known_at=Sums.day)
    plan = plan_features([group], "")
    assert [s.name for s in plan.sources] == ["Orders", "Shops"]
    shops = pa.table({"shop": ["s", "t"], "opened": pa.array([0, 0], pa.int64()), "town": ["x", "x"]})
    reveals = REVEALS | {"Shops": expand(definition_of(Shops), shops).table}
    history = histories_of(plan, reveals, 2**62)["Sums"]
    assert history.table["spent"].to_pylist() == [11.75, 4.0]


def test_a_training_set_takes_the_rows_of_queries_as_of_its_own_as_of() -> None:
    dataset = hr.Dataset(rows=Orders, at=Orders.placed, features=[daily()], label=Orders.amount > 2, mature="1h")
    plan = plan_dataset(dataset)
    assert [s.name for s in plan.sources] == ["Orders"]
    found = training_set(plan, REVEALS, as_of=START + 3 * DAY)
    assert found.features["Daily.spent"].to_pylist() == [None, None, None, 3.75]
    assert found.features.column_names == list(NOTHING)


def message(group: Any) -> str:
    with pytest.raises(DefinitionError) as error:
        plan_features([group], "")
    assert "test_sql.py" in str(error.value.where)
    assert error.value.next_step == "correct the text of hr.sql(…)"
    return str(error.value)


SHOWN = "SELECT shop, placed AS day, amount AS spent, 1 AS orders, number AS highest, kind AS first_kind FROM Orders"
WRONG = {
    "no table": (SHOWN.replace("Orders", "Ordres"), 'Table with name Ordres does not exist! Did you mean "Orders"'),
    "another source's table": (SHOWN.replace("Orders", "Shops"), "Table with name Shops does not exist"),
    "no column": (SHOWN.replace("amount", "amuont"), 'Referenced column "amuont" not found'),
    "no SQL": ("SELECT FROM WHERE", "syntax error"),
    "a file": (SHOWN + ", read_csv('/etc/passwd')", "file system operations are disabled"),
    "a Python variable": (SHOWN.replace("Orders", "REVEALS"), "Table with name REVEALS does not exist"),
    "a setting": ("SET threads = 4", "does more than read"),
    "two statements": (SHOWN + "; DROP TABLE Orders", "does more than read"),
    "a change": ("DELETE FROM Orders", "does more than read"),
    "a clock": (SHOWN.replace("placed AS", "now() AS"), "would not give the same rows again"),
    "a clock without parentheses": (SHOWN.replace("placed AS", "CURRENT_TIMESTAMP AS"), "would not give the same rows again"),
    "chance": (SHOWN.replace("amount", "random ( )"), "would not give the same rows again"),
    "a sample": (SHOWN + " USING SAMPLE 10%", "would not give the same rows again"),
    "no such declared column": (SHOWN.replace("kind AS first_kind", "kind"), "Daily.first_kind was removed"),
    "another type": (SHOWN.replace("amount AS", "kind AS"), "Daily.spent was retyped"),
    "a column twice": (SHOWN.replace("kind AS", "kind AS spent, kind AS"), "spent twice"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_text_is_refused_before_any_data_is_read(name: str) -> None:
    text, told = WRONG[name]
    assert told in message(daily(text))


@pytest.mark.parametrize("text", [SHOWN.replace("kind AS", "'now(); random()' AS"), SHOWN + " -- now()\n"])
def test_what_stands_in_quotes_and_comments_does_nothing(text: str) -> None:
    plan_features([daily(text)], "")


def test_rows_that_cannot_be_placed_stop_with_an_example() -> None:
    text = SHOWN.replace("SELECT shop", "SELECT nullif(shop, 't') AS shop")
    with pytest.raises(DataError, match="its query gives 1 rows that cannot be placed") as error:
        values(daily(text), REVEALS, "s", [DAY])
    assert "WHERE … IS NOT NULL" in str(error.value)
    failing = SHOWN.replace("number AS", "CAST(kind AS INTEGER) AS")
    with pytest.raises(DataError, match="its query failed") as error:
        values(daily(failing), REVEALS, "s", [DAY])
    assert "Could not convert string 'k" in str(error.value)
    assert "test_sql.py" in str(error.value)


def test_the_text_is_part_of_the_version_and_its_indentation_is_not() -> None:
    version = plan_group(daily()).hash
    assert plan_group(daily("\n" + DAILY.replace("\n    ", "\n"))).hash == version
    assert plan_group(daily(DAILY.replace("sum(amount)", "avg(amount)"))).hash != version
    assert plan_group(daily(known_at="1h")).hash != version
    assert plan_group(daily(tables=[Orders, Shops])).hash != version


def test_definitions_that_cannot_be_meant_are_refused() -> None:
    class Said(hr.Source):
        shop: hr.Column[str] = hr.entity()
        day: hr.Column[hr.Instant] = hr.event_time()
        spent: hr.Column[float | None] = hr.column()
        known_at = day

    class Plain(hr.Source):
        shop: hr.Column[str] = hr.entity()
        day: hr.Column[hr.Instant] = hr.event_time()
        spent: hr.Column[float | None] = hr.column()

    with pytest.raises(DefinitionError, match="two say when its rows are known"):
        hr.sql("SELECT 1", Said, tables=[Orders], entity=Said.shop, known_at=Said.day)
    with pytest.raises(DefinitionError, match="not an instant of this source"):
        hr.sql("SELECT 1", Plain, tables=[Orders], entity=Plain.shop, known_at=Orders.placed)
    with pytest.raises(DefinitionError, match="not a moment"):
        hr.sql("SELECT 1", Plain, tables=[Orders], entity=Plain.shop, known_at=Plain.day == Plain.day)
    with pytest.raises(DefinitionError, match="a query reads the tables of sources"):
        hr.sql("SELECT 1", Plain, tables=[], entity=Plain.shop, known_at=Plain.day)
    assert definition_of(Plain).query is None
    hr.sql(SHOWN, Plain, tables=[Orders], entity=Plain.shop, known_at=Plain.day)
    with pytest.raises(DefinitionError, match="a query reads the tables of sources") as error:
        daily(tables=[Plain])
    assert "WITH … AS (SELECT …)" in str(error.value)


def test_nothing_that_lives_from_key_to_key_computes_them() -> None:
    group = daily()
    for ask in (
        lambda: group.test([{"shop": "s", "day": "2024-03-01T00:00Z"}], at="2024-03-02T00:00:00Z"),
        lambda: OnlineFeatures(plan_features([group], "")),
    ):
        with pytest.raises(DefinitionError, match="Daily is computed by a query over whole tables") as error:
            ask()
        assert "hr.precomputed(Daily, …)" in str(error.value.next_step)
    assert StreamPath([plan_features([group, Towns], "")]).sources.keys() == {"Shops"}
