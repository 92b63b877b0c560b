"""Generate the daily sales of stores and items, and promotions announced weeks ahead, as Parquet files.

    python prepare.py [FOLDER] [--stores 500] [--items 200] [--days 1095] [--seed 7]

Nothing here is real. Demand has weekdays, seasons, a trend for each store and the lift of promotions; items come and go,
and where stock ran out sales were lower than demand. A store is written at a time, so memory stays small.
"""

from __future__ import annotations

import argparse
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

START = (date(2021, 1, 4) - date(1970, 1, 1)).days  # a Monday
DAY = 86_400_000_000
WEEKDAYS = np.array([0.9, 0.85, 0.9, 1.0, 1.25, 1.4, 0.7])
SALES = pa.schema(
    [
        ("store", pa.string()),
        ("item", pa.string()),
        ("day", pa.date32()),
        ("units", pa.int64()),
        ("in_stock", pa.bool_()),
    ]
)
PROMOTIONS = pa.schema(
    [
        ("store", pa.string()),
        ("item", pa.string()),
        ("day", pa.date32()),
        ("announced", pa.timestamp("us", "UTC")),
        ("discount", pa.float64()),
    ]
)


def one_store(rng: np.random.Generator, store: int, items: int, days: int) -> tuple[pa.Table, pa.Table]:
    """Return a store's sales and promotions."""
    day = np.arange(days)
    season = 1 + 0.25 * np.sin(2 * np.pi * (day / 364 + rng.random(items)[:, None]))
    base = rng.lognormal(1.2, 0.9, items)[:, None] * rng.lognormal(0, 0.3)
    trend = np.exp(rng.normal(0, 0.15) * day / 365)
    discount = np.zeros((items, days))
    announced = np.zeros((items, days), np.int64)
    for item in range(items):
        for begin in rng.choice(max(days - 14, 1), max(days // 60, 1), replace=False).tolist():
            length, depth = int(rng.integers(3, 10)), round(float(rng.choice([0.1, 0.2, 0.3, 0.5])), 2)
            span = slice(begin, min(begin + length, days))
            discount[item, span] = depth
            announced[item, span] = (START + begin - int(rng.integers(7, 29))) * DAY
    demand = rng.poisson(base * season * trend * WEEKDAYS[day % 7] * (1 + 2.5 * discount))
    listed = rng.integers(0, days // 2 + 1, items) * (rng.random(items) < 0.3)
    in_stock = rng.random((items, days)) > 0.03
    units = np.where(in_stock, demand, demand // 3)
    there = day[None, :] >= listed[:, None]
    names = np.array([f"i{i:03d}" for i in range(items)])
    place, when = np.nonzero(there)
    sales = {"item": names[place], "day": START + when, "units": units[there], "in_stock": in_stock[there]}
    promoted, on = np.nonzero(discount * there)
    promotions = {
        "item": names[promoted],
        "day": START + on,
        "announced": announced[promoted, on],
        "discount": discount[promoted, on],
    }
    return _table(store, sales, SALES), _table(store, promotions, PROMOTIONS)


def _table(store: int, columns: dict[str, np.ndarray], schema: pa.Schema) -> pa.Table:
    count = len(columns["item"])
    arrays = [pa.array([f"s{store:03d}"] * count)]
    for field in list(schema)[1:]:
        values = pa.array(columns[field.name])
        arrays.append(
            values.cast(pa.int32()).cast(field.type) if field.type == pa.date32() else values.cast(field.type)
        )
    return pa.Table.from_arrays(arrays, schema=schema)


def write(folder: Path, *, stores: int, items: int, days: int, seed: int) -> dict[str, int]:
    """Write both files; return how many rows each has."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = {"sales": 0, "promotions": 0}
    with (
        pq.ParquetWriter(folder / "sales.parquet", SALES) as sales,
        pq.ParquetWriter(folder / "promotions.parquet", PROMOTIONS) as promotions,
    ):
        for store in range(stores):
            sold, promoted = one_store(np.random.default_rng([seed, store]), store, items, days)
            sales.write_table(sold)
            promotions.write_table(promoted)
            counts["sales"] += sold.num_rows
            counts["promotions"] += promoted.num_rows
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--stores", type=int, default=500)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--days", type=int, default=1095)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    print(write(given.folder, stores=given.stores, items=given.items, days=given.days, seed=given.seed))
