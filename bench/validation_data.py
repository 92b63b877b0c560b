"""Write the validation workload: orders.parquet (20 columns, planted faults), users.parquet, truth.json.

python bench/validation_data.py FOLDER ROWS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BLOCK, USERS, SEED, DAYS = 1_000_000, 1_000_000, 11, 20
START = np.datetime64("2026-11-01T00:00:00", "us")
CURRENCIES = ["EUR", "USD", "GBP", "JPY", "CHF"]
STATES = ["new", "paid", "shipped", "returned"]
COUNTRIES = [f"{a}{b}" for a in "ABDEFGINPU" for b in "ABDEKLRST"][:60]


def planted(rng: np.random.Generator, rows: int, share: float, name: str, faults: dict[str, int]) -> Any:
    """Return where a fault is planted, and count it."""
    places = rng.random(rows) < share
    faults[name] += int(places.sum())
    return places


def block(rng: np.random.Generator, start: int, rows: int, total: int, faults: dict[str, int]) -> pa.Table:
    """Return some rows, with faults."""
    ids = np.arange(start, start + rows, dtype=np.int64)
    if start:
        ids[planted(rng, rows, 1e-6, "dup_order_id", faults)] -= 5
    users = rng.integers(0, USERS, rows)
    users[planted(rng, rows, 2e-6, "orphan_user", faults)] += USERS
    amounts = np.round(rng.lognormal(3, 0.8, rows), 2)
    amount = pa.array(amounts, mask=planted(rng, rows, 1e-5, "null_amount", faults))
    quantity = rng.integers(1, 10, rows).astype(np.int32)
    quantity[planted(rng, rows, 1e-6, "neg_qty", faults)] = -1
    currency = np.array(CURRENCIES)[rng.choice(5, rows, p=[0.5, 0.3, 0.1, 0.06, 0.04])].astype(object)
    currency[planted(rng, rows, 1e-6, "bad_currency", faults)] = "XXX"
    email = np.char.add(np.char.add("u", rng.integers(0, 10**9, rows).astype("U10")), "@ex.com").astype(object)
    email[planted(rng, rows, 1e-6, "bad_email", faults)] = "broken"
    created = START + ((ids.astype(np.float64) / total) * DAYS * 86_400e6).astype("timedelta64[us]")
    return pa.table(
        {
            "order_id": ids,
            "user_id": users,
            "amount": amount,
            "qty": quantity,
            "currency": pa.array(currency, pa.string()),
            "status": pa.array(np.array(STATES)[rng.integers(0, 4, rows)], pa.string()),
            "country": pa.array(np.array(COUNTRIES)[rng.integers(0, 60, rows)], pa.string()),
            "email": pa.array(email, pa.string()),
            "created_at": created,
            "updated_at": created + rng.integers(0, 3_600 * 10**6, rows).astype("timedelta64[us]"),
            "is_gift": rng.random(rows) < 0.05,
            **{f"f{i}": rng.normal(i, 1 + i / 10, rows) for i in range(9)},
        }
    )


def main() -> None:
    """Write the files."""
    folder, total = Path(sys.argv[1]), int(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    names = ("null_amount", "neg_qty", "bad_currency", "bad_email", "dup_order_id", "orphan_user")
    faults = dict.fromkeys(names, 0)
    pq.write_table(pa.table({"user_id": np.arange(USERS, dtype=np.int64)}), folder / "users.parquet")
    writer = None
    for start in range(0, total, BLOCK):
        rows = block(rng, start, min(BLOCK, total - start), total, faults)
        writer = writer or pq.ParquetWriter(folder / "orders.parquet", rows.schema, compression="zstd")
        writer.write_table(rows, row_group_size=250_000)
    if writer is not None:
        writer.close()
    (folder / "truth.json").write_text(json.dumps({"rows": total, "seed": SEED, "faults": faults}))


if __name__ == "__main__":
    main()
