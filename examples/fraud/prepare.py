"""Generate card transactions, chargebacks up to 90 days late, and merchants whose profiles change, as Parquet files.

    python prepare.py [FOLDER] [--transactions 2000000] [--seed 7]

Nothing here is real. Cards, merchants and devices are as skewed as real ones (few merchants see most of the trade), and
fraud comes in bursts: a card's number leaks at a merchant and is then tried on others, from devices that try many cards.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

INSTANT = pa.timestamp("us", "UTC")
START = 1_672_531_200_000_000  # 2023-01-01
SECOND, DAY = 1_000_000, 86_400_000_000
DAYS = 540
COUNTRIES = np.array(["DE", "FR", "NL", "PL", "ES", "US", "NG"])
CODES = np.array(
    ["5411", "5812", "5732", "4829", "7995", "5999"]
)  # groceries, restaurants, electronics, wires, bets, else
RISK = np.array([0.4, 0.4, 2.0, 3.5, 3.0, 1.0])
Ints = NDArray[np.int64]


def skewed(rng: np.random.Generator, count: int, kinds: int, exponent: float) -> Ints:
    """Draw numbers below `kinds` by Zipf's law, in an order of their own."""
    law = np.cumsum(1.0 / np.arange(1, kinds + 1) ** exponent)
    return rng.permutation(kinds)[np.searchsorted(law / law[-1], rng.random(count))]


def merchants(rng: np.random.Generator, count: int) -> tuple[pa.Table, Ints]:
    """Return merchants as rows that hold from one instant to another, and each one's code when the data begin."""
    code, country = rng.integers(0, len(CODES), count), rng.integers(0, len(COUNTRIES), count)
    changed = np.flatnonzero(rng.random(count) < 0.15)
    moved = START + rng.integers(30, DAYS - 30, len(changed)) * DAY
    ends: list[int | None] = [None] * count
    for merchant, moment in zip(changed.tolist(), moved.tolist(), strict=True):
        ends[merchant] = moment
    who = np.concatenate([np.arange(count), changed])
    codes = np.concatenate([code, rng.integers(0, len(CODES), len(changed))])
    table = {
        "merchant": [f"m{i:05d}" for i in who.tolist()],
        "valid_from": pa.array(np.concatenate([np.full(count, START - 400 * DAY), moved]), INSTANT),
        "valid_to": pa.array(ends + [None] * len(changed), INSTANT),
        "mcc": CODES[codes],
        "country": COUNTRIES[np.concatenate([country, country[changed]])],
    }
    return pa.table(table), code


def transactions(rng: np.random.Generator, count: int, codes: Ints) -> tuple[pa.Table, NDArray[np.bool_]]:
    """Return transactions in order of time, and which of them are fraud."""
    cards, shops = max(count // 40, 50), len(codes)
    card, merchant = skewed(rng, count, cards, 0.6), skewed(rng, count, shops, 1.1)
    daily = rng.normal(13, 4, count) % 24
    ts = START + rng.integers(0, DAYS, count) * DAY + (daily * 3600 * SECOND).astype(np.int64)
    device = card * 3 + rng.integers(0, 2, count)
    amount = np.round(rng.lognormal(3.2, 1.0, count), 2)
    fraud = np.zeros(count, bool)
    stolen = rng.choice(cards, max(cards // 25, 5), replace=False)
    # A stolen card is tried for some hours, on risky merchants, from one of few devices, with rising amounts.
    for number, victim in enumerate(stolen.tolist()):
        size = int(rng.integers(4, 14))
        rows = rng.choice(count, size, replace=False)
        begun = START + int(rng.integers(5, DAYS - 1)) * DAY
        weights = RISK[codes] / RISK[codes].sum()
        card[rows], merchant[rows] = victim, rng.choice(shops, size, p=weights)
        ts[rows] = begun + np.sort(rng.integers(0, 20 * 3600, size)) * SECOND
        device[rows] = 3 * cards + number // 4
        amount[rows] = np.round(rng.lognormal(4.4, 0.8, size), 2)
        fraud[rows] = True
    order = np.argsort(ts, kind="stable")
    approved = (rng.random(count) > 0.03 + 0.35 * fraud) & (amount < 4_000)
    asked = np.where(rng.random(count) < 0.02, -1, device)
    table = {
        "txn_id": [f"t{i:08d}" for i in range(count)],
        "ts": pa.array(ts[order], INSTANT),
        "card": [f"c{i:07d}" for i in card[order].tolist()],
        "merchant": [f"m{i:05d}" for i in merchant[order].tolist()],
        "device": [None if i < 0 else f"d{i:08d}" for i in asked[order].tolist()],
        "amount": amount[order],
        "approved": approved[order],
    }
    return pa.table(table), fraud[order]


def chargebacks(rng: np.random.Generator, table: pa.Table, fraud: NDArray[np.bool_]) -> pa.Table:
    """Return chargebacks: most fraud that was approved, some friendly fraud, reported after days or months."""
    approved, count = table["approved"].to_numpy(), len(fraud)
    chosen = np.flatnonzero(approved & (fraud & (rng.random(count) < 0.95) | (rng.random(count) < 0.0006)))
    delay = np.minimum(rng.lognormal(3.0, 0.7, len(chosen)), 90.0) * DAY
    reported = table["ts"].cast(pa.int64()).to_numpy()[chosen] + delay.astype(np.int64)
    order = np.argsort(reported, kind="stable")
    rows = pa.array(chosen[order])
    return pa.table(
        {
            "chargeback_id": [f"b{i:07d}" for i in range(len(chosen))],
            "txn_id": table["txn_id"].take(rows),
            "merchant": table["merchant"].take(rows),
            "reported": pa.array(reported[order], INSTANT),
        }
    )


def write(folder: Path, count: int, seed: int) -> dict[str, int]:
    """Write the three files; return how many rows each has."""
    rng = np.random.default_rng(seed)
    profile, codes = merchants(rng, max(count // 400, 40))
    rows, fraud = transactions(rng, count, codes)
    tables = {"transactions": rows, "chargebacks": chargebacks(rng, rows, fraud), "merchants": profile}
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    return {name: table.num_rows for name, table in tables.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--transactions", type=int, default=2_000_000)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    print(write(given.folder, given.transactions, given.seed))
