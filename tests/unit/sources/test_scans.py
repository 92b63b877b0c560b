"""What a query is said to read is what changes its rows: no column too few on made-up data, and none too many in known texts."""

from __future__ import annotations

import random
from typing import Any

import pyarrow as pa
import pytest

import headrace as hr
from headrace.sources.connections import over_tables
from headrace.sources.definition import definition_of
from headrace.sources.scans import columns_queried, columns_scanned

ORDERS = pa.schema(
    {"id": pa.string(), "shop": pa.string(), "kind": pa.string(), "amount": pa.int64(), "number": pa.int64()}
)
SHOPS = pa.schema({"shop": pa.string(), "town": pa.string(), "size": pa.int64()})
TABLES = (("Orders", ORDERS), ("Shops", SHOPS))
QUERIES = {
    "SELECT shop AS k, amount AS v FROM Orders": "Orders: amount shop",
    "SELECT shop AS k, count(*) AS v FROM Orders GROUP BY 1": "Orders: shop",
    "SELECT 1 AS k, count(*) AS v FROM Orders": "Orders: amount id kind number shop",
    "SELECT 1 AS k, 2 AS v FROM Orders, Shops WHERE size > 3": "Orders: amount id kind number shop; Shops: size",
    "SELECT shop AS k, max(amount) AS v FROM Orders WHERE kind = 'a' GROUP BY 1": "Orders: amount kind shop",
    "SELECT o.shop AS k, s.size AS v FROM Orders o JOIN Shops s USING (shop)": "Orders: shop; Shops: shop size",
    "SELECT o.shop AS k, o.amount AS v FROM Orders o LEFT JOIN Shops s ON s.town = o.kind": (
        "Orders: amount kind shop; Shops: town"
    ),
    "SELECT * RENAME (shop AS k, size AS v) FROM Shops": "Shops: shop size",
    "SELECT k, v FROM (SELECT *, shop AS k, number AS v FROM Orders)": "Orders: number shop",
    "SELECT k, v FROM (SELECT DISTINCT *, shop AS k, number AS v FROM Orders)": "Orders: amount id kind number shop",
    "WITH a AS (SELECT * FROM Orders), b AS (SELECT * FROM a JOIN Shops USING (shop)) SELECT town AS k, amount AS v FROM b": (
        "Orders: amount shop; Shops: shop town"
    ),
    "WITH a AS MATERIALIZED (SELECT * FROM Orders) SELECT x.shop AS k, y.amount AS v FROM a x JOIN a y ON x.id = y.kind": (
        "Orders: amount id kind shop"
    ),
    "WITH Orders AS (SELECT shop, town AS amount FROM Shops) SELECT shop AS k, amount AS v FROM Orders": "Shops: shop town",
    "SELECT shop AS k, v FROM (SELECT shop, number AS amount, kind AS v FROM Orders) WHERE amount > 4": (
        "Orders: kind number shop"
    ),
    "SELECT kind AS shop, amount AS v, id AS k FROM Orders ORDER BY shop LIMIT 3": "Orders: amount id kind",
    "SELECT shop AS k, row_number() OVER (PARTITION BY kind ORDER BY amount, id) AS v FROM Orders": (
        "Orders: amount id kind shop"
    ),
    "SELECT k, v FROM (SELECT shop AS k, amount AS v, row_number() OVER (ORDER BY kind) AS r FROM Orders)": (
        "Orders: amount shop"
    ),
    "SELECT shop AS k, amount AS v FROM Orders QUALIFY row_number() OVER (PARTITION BY shop ORDER BY number) = 1": (
        "Orders: amount number shop"
    ),
    "SELECT shop AS k, amount AS v FROM Orders o WHERE amount > (SELECT avg(number) FROM Orders p WHERE p.kind = o.kind)": (
        "Orders: amount kind number shop"
    ),
    "SELECT shop AS k, amount AS v FROM Orders o WHERE EXISTS (SELECT 1 FROM Shops s WHERE s.town = o.kind)": (
        "Orders: amount kind shop; Shops: town"
    ),
    "SELECT shop AS k, amount AS v FROM Orders WHERE shop NOT IN (SELECT town FROM Shops)": (
        "Orders: amount shop; Shops: town"
    ),
    "SELECT s.shop AS k, m AS v FROM Shops s, LATERAL (SELECT max(amount) AS m FROM Orders o WHERE o.shop = s.shop)": (
        "Orders: amount shop; Shops: shop"
    ),
    "SELECT shop AS k, number AS v FROM Orders UNION SELECT town, size FROM Shops": "Orders: number shop; Shops: size town",
    "SELECT shop AS k, size AS v FROM (FROM Shops UNION FROM Shops)": "Shops: shop size town",
    "SELECT shop AS k, 1 AS v FROM Orders EXCEPT SELECT town, size FROM Shops": "Orders: shop; Shops: size town",
    "WITH RECURSIVE r AS (SELECT shop, number FROM Orders WHERE amount = 1 UNION SELECT s.town, s.size FROM r JOIN Shops s "
    "USING (shop)) SELECT shop AS k, number AS v FROM r": "Orders: amount number shop; Shops: shop size town",
    "SELECT DISTINCT ON (shop) shop AS k, amount AS v FROM Orders ORDER BY shop, number, id": "Orders: amount id number shop",
    "SELECT shop AS k, sum(amount) FILTER (WHERE kind = 'b') AS v FROM Orders GROUP BY shop HAVING max(number) > 2": (
        "Orders: amount kind number shop"
    ),
    "FROM (PIVOT (SELECT shop, kind, amount FROM Orders) ON kind IN ('a', 'b') USING sum(amount)) SELECT shop AS k, a AS v": (
        "Orders: amount kind shop"
    ),
    "SELECT shop AS k, value AS v FROM (UNPIVOT (FROM Orders SELECT shop, amount, number) ON amount, number)": (
        "Orders: amount number shop"
    ),
    "SELECT shop AS k, COLUMNS('amo.*') AS v FROM Orders": "Orders: amount shop",
    "SELECT o.shop AS k, o::VARCHAR AS v FROM Orders o": "Orders: amount id kind number shop",
    "SELECT shop AS k, first(amount ORDER BY number, id) AS v FROM Orders GROUP BY ALL": "Orders: amount id number shop",
    "SELECT shop AS k, any_value(amount) AS v FROM (FROM Orders ORDER BY number, id) GROUP BY ALL": (
        "Orders: amount id number shop"
    ),
    "select SHOP as K, aMount as V from orders where KIND = 'a'": "Orders: amount kind shop",
    "SELECT shop AS k, amount AS v FROM query_table('Orders')": "Orders: amount shop",
}  # fmt: skip


def rows(schema: pa.Schema, r: random.Random) -> pa.Table:
    """Return a few rows whose values meet those of other columns and of the texts."""
    columns = {
        name: [f"i{i}" for i in range(12)]
        if name == "id"
        else [r.choice("abcd") if kind == pa.string() else r.randrange(8) for _ in range(12)]
        for name, kind in zip(schema.names, schema.types, strict=True)
    }
    return pa.table(columns, schema)


def answer(text: str, tables: dict[str, pa.Table]) -> list[dict[str, Any]]:
    with over_tables(tables, repeatable=True) as connection:
        asked = f"SELECT k, v FROM ({text})"
        found = [row for batch in connection.batches(asked, (), 1_000) for row in batch.to_pylist()]
    return sorted(found, key=str)


@pytest.mark.parametrize("text", QUERIES)
def test_a_known_text_reads_what_it_reads(text: str) -> None:
    found = columns_scanned(text, frozenset({"k", "v"}), TABLES)
    told = QUERIES[text]
    assert "; ".join(f"{name}: {' '.join(sorted(kept))}".strip() for name, kept in found.items()) == told


@pytest.mark.parametrize("text", QUERIES)
def test_no_column_that_changes_the_rows_is_missed(text: str) -> None:
    found = columns_scanned(text, frozenset({"k", "v"}), TABLES)
    for seed in range(12):
        r = random.Random(seed)
        tables = {name: rows(schema, r) for name, schema in TABLES}
        before = answer(text, tables)
        for name, schema in TABLES:
            other = rows(schema, r)
            for place, column in enumerate(schema.names):
                turned = other[column].slice(1).to_pylist() + other[column].slice(0, 1).to_pylist()
                moved = tables[name].set_column(place, schema.field(place), pa.array(turned, schema.types[place]))
                if answer(text, tables | {name: moved}) != before:
                    assert column in found.get(name, ()), (seed, name)


def test_only_the_columns_that_are_asked_for_count() -> None:
    text = "SELECT shop AS k, sum(amount) AS v, any_value(kind) AS w FROM Orders WHERE number > 1 GROUP BY ALL"
    assert columns_scanned(text, frozenset({"k", "v"}), TABLES)["Orders"] == {"shop", "amount", "number"}
    assert columns_scanned(text, frozenset({"w"}), TABLES)["Orders"] == {"shop", "kind", "number"}


def test_all_columns_count_where_there_is_no_plan() -> None:
    text = "SELECT TOP 3 shop AS k, [amount] AS v FROM Orders"  # of another database
    assert columns_scanned(text, frozenset({"k", "v"}), TABLES) == {"Orders": {*ORDERS.names}, "Shops": {*SHOPS.names}}


class Visits(hr.Source):
    visit: hr.Column[str] = hr.row_id()
    came: hr.Column[hr.Instant] = hr.event_time()
    left: hr.Column[hr.Instant | None] = hr.column()
    guest: hr.Column[str] = hr.entity()
    bill: hr.Column[float | None] = hr.column(known_at=left)
    note: hr.Column[str | None] = hr.column()


class Guests(hr.Source):
    guest: hr.Column[str] = hr.entity()
    joined: hr.Column[hr.Instant] = hr.event_time()
    town: hr.Column[str] = hr.column()


class Bills(hr.Source):
    guest: hr.Column[str] = hr.entity()
    day: hr.Column[hr.Instant] = hr.event_time()
    spent: hr.Column[float | None] = hr.column()
    visits: hr.Column[int] = hr.column()
    town: hr.Column[str | None] = hr.column()


hr.sql(
    """
    SELECT guest, date_trunc('day', came) + INTERVAL 1 DAY AS day, sum(bill) AS spent, count(*) AS visits,
           any_value(town) AS town
    FROM Visits LEFT JOIN Guests USING (guest) GROUP BY ALL
    """,
    Bills,
    tables=[Visits, Guests],
    entity=Bills.guest,
    known_at=Bills.day,
)


def test_rows_and_moments_belong_to_what_is_read() -> None:
    def reads(*columns: Any) -> str:
        found = columns_queried(definition_of(Bills), [Bills.guest, Bills.day, *columns])
        return " ".join(sorted(map(str, found)))

    always = "Guests.guest Guests.joined Visits.came Visits.guest"
    assert reads() == reads(Bills.visits) == f"{always} Visits.visit"
    assert (
        reads(Bills.spent) == "Guests.guest Guests.joined Visits.bill Visits.came Visits.guest Visits.left Visits.visit"
    )
    assert reads(Bills.town) == "Guests.guest Guests.joined Guests.town Visits.came Visits.guest Visits.visit"
