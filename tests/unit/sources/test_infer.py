"""A table in hand becomes a source: inferred, usable at once, and written down as code that means the same."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import duckdb
import pandas
import polars
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import headrace as hr
from headrace.core.errors import DataError, DefinitionError, UsageError
from headrace.core.settings import Settings
from headrace.sources.batch import load
from headrace.sources.definition import definition_of, describe

START = datetime(2024, 1, 1, tzinfo=UTC)
ROWS = 12
COLUMNS: dict[str, Any] = {
    "order_id": [f"o{n}" for n in range(ROWS)],
    "updated": [START + timedelta(days=n) if n else None for n in range(ROWS)],
    "placed": [START + timedelta(hours=n) for n in range(ROWS)],
    "shop": [f"s{n % 3}" for n in range(ROWS)],
    "Size (km)": [n / 2 for n in range(ROWS)],
    "late": [n % 2 == 0 if n else None for n in range(ROWS)],
    "day": [date(2024, 1, 1)] * ROWS,
}
TABLE = pa.table(COLUMNS | {"price": pa.array([Decimal("1.10")] * ROWS), "tags": pa.array([["a"]] * ROWS)})


def same(code: str, made: type[hr.Source]) -> None:
    """Run code and compare what it defines."""
    space: dict[str, Any] = {"hr": hr}
    exec(code, space)  # noqa: S102  # what is tested is what this code defines
    written, inferred = definition_of(space[made.__name__]), definition_of(made)
    assert written.hash == inferred.hash
    told = [[describe(c) | {"renamed": c.renamed} for c in d.columns] for d in (written, inferred)]
    assert told[0] == told[1]
    assert [c.name for c in written.id_columns] == [c.name for c in inferred.id_columns]


def test_types_keys_and_nullability_are_inferred_and_written_down() -> None:
    made = hr.source(TABLE, "Orders")
    assert made.to_code().splitlines() == [
        "class Orders(hr.Source):",
        '    """Inferred from 12 rows. Review what names a row, the types, and when each value is known (known_at=)."""',
        "",
        "    order_id: hr.Column[str] = hr.row_id()",
        "    updated: hr.Column[hr.Instant | None] = hr.column()",
        "    placed: hr.Column[hr.Instant] = hr.event_time()",
        "    shop: hr.Column[str] = hr.entity()",
        '    size_km: hr.Column[float] = hr.column(name="Size (km)")',
        "    late: hr.Column[bool | None] = hr.column()",
        "    day: hr.Column[hr.Date] = hr.column()",
        "    price: hr.Column[float] = hr.column()",
    ]
    same(made.to_code(), made)


@pytest.mark.parametrize("library", ["pandas", "polars", "arrow", "duckdb", "reader"])
def test_any_library_that_speaks_arrow_is_taken(library: str) -> None:
    table = TABLE.select(list(COLUMNS))
    tables: dict[str, Callable[[], Any]] = {
        "pandas": lambda: table.to_pandas(),
        "polars": lambda: polars.from_arrow(table),
        "arrow": lambda: table,
        "duckdb": lambda: duckdb.from_arrow(table),
        "reader": lambda: table.to_reader(),
    }
    made = hr.source(tables[library](), "Orders", row_id="order_id", event_time="placed")
    found = load(definition_of(made), Settings(), None)  # type: ignore[arg-type]  # nothing is looked for anywhere
    assert found.rows == ROWS
    assert sorted(found.batch.table["shop"].to_pylist()) == sorted(COLUMNS["shop"])
    assert found.batch.table["size_km"].to_pylist() == COLUMNS["Size (km)"]


def test_what_is_said_counts_more_than_what_is_guessed() -> None:
    made = hr.source(TABLE, row_id=("shop", "placed"), event_time="day", entity="order_id", columns=["late"])
    definition = definition_of(made)
    assert made.__name__ == "Rows"
    assert [c.name for c in definition.id_columns] == ["shop", "placed"]
    assert (definition.time.name, definition.time.dtype) == ("day", "date")
    assert [c.name for c in definition.columns if c.role == "entity"] == ["order_id"]
    assert {c.name for c in definition.columns} == {"shop", "placed", "day", "order_id", "late"}
    same(made.to_code(), made)


def test_two_columns_together_may_name_a_row() -> None:
    made = hr.source(TABLE.drop_columns(["order_id"]), "Orders")
    assert [c.name for c in definition_of(made).id_columns] == ["shop", "placed"]
    same(made.to_code(), made)


def test_a_table_without_keys_or_times_says_what_to_name() -> None:
    doubled = pa.concat_tables([TABLE, TABLE])
    with pytest.raises(DefinitionError, match="no column names a row") as error:
        hr.source(doubled)
    assert "shop: 3 values" in str(error.value)
    assert 'row_id="…"' in str(error.value)
    with pytest.raises(DefinitionError, match="no column tells when a row happened"):
        hr.source(TABLE.drop_columns(["placed", "day"]))
    with pytest.raises(UsageError, match="no such column") as wrong:
        hr.source(TABLE, row_id="order")
    assert wrong.value.next_step == "did you mean order_id?"
    with pytest.raises(UsageError, match="a table that speaks no Arrow"):
        hr.source([1, 2])
    with pytest.raises(DefinitionError, match="more columns than a source can have"):
        hr.source(pa.table({f"c{n}": [n] for n in range(10_001)}))


def test_local_timestamps_need_a_zone() -> None:
    local = pandas.DataFrame({"id": [1, 2], "at": pandas.to_datetime(["2024-07-01 12:00", "2024-07-01 13:00"])})
    with pytest.raises(DataError, match="timestamps without a zone"):
        load(definition_of(hr.source(local)), Settings(), None)  # type: ignore[arg-type]
    found = load(definition_of(hr.source(local, zone="Europe/Paris")), Settings(), None)  # type: ignore[arg-type]
    assert found.batch.table["at"].to_pylist()[0] == hr.Instant.parse("2024-07-01T10:00:00Z")


def test_nan_stays_nan_where_it_was_there() -> None:
    table = polars.DataFrame({"id": [1, 2], "at": [START, START], "x": [float("nan"), 1.0]})
    made = hr.source(table)
    assert "x: hr.Column[float] = hr.column(allow_nan=True)" in made.to_code()
    same(made.to_code(), made)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12),
        min_size=1,
        max_size=8,
        unique=True,
    )
)
def test_no_name_of_the_data_becomes_code(names: list[str]) -> None:
    wicked = [
        '"""',
        "x: int = __import__('os')",
        "hr",
        "str",
        "class",
        "_arrival",
        "known_at",
        "a b",
        "A-B",
        "\n",
        "mro",
    ]
    chosen = [n for n in dict.fromkeys([*names, *wicked]) if n not in ("", "the id", "the time")]
    columns: dict[str, Any] = {"the id": [1, 2], "the time": [START, START]}
    made = hr.source(pa.table(columns | {n: pa.array([0.5, 1.5]) for n in chosen}), row_id="the id")
    same(made.to_code(), made)
    kept = {c.renamed or c.name for c in definition_of(made).columns}
    assert kept == {*columns, *chosen} - {"_row_id", "_arrival", "_stated", "_content"}


def test_features_of_a_table_in_hand_need_no_files() -> None:
    orders = hr.source(TABLE, "Orders")

    class Shop(hr.FeatureGroup, of=orders, entity=orders.shop):
        size = hr.mean(orders.size_km).over("1d")

    dataset = hr.Dataset(rows=orders, at=orders.placed, features=[Shop], label=orders.size_km > 3, mature="1h")
    assert dataset.frame().to_polars()["Shop.size[1d]"].to_list()[-1] == pytest.approx((1.0 + 2.5 + 4.0) / 3)
    mine = polars.DataFrame({"shop": ["s0", "new"], "at": [START + timedelta(days=1)] * 2})
    assert hr.training_set(mine, [Shop]).to_polars()["Shop.size[1d]"].to_list() == [2.25, None]
    assert (
        Shop.test(
            [{"order_id": "x", "placed": "2024-01-01T00:00:00Z", "shop": "a", "size_km": 2.0}],
            at="2024-01-01T01:00:00Z",
        )["Shop.size[1d]"]
        == 2.0
    )
