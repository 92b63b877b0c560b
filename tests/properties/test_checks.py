"""One pass over blocks finds what a row-by-row reading in plain Python finds, wherever the blocks are cut."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import headrace as hr
from headrace.core.time import DAY, Instant
from headrace.sources.definition import definition_of
from headrace.stats.distances import FLOOR
from headrace.validation.baseline import baseline_of
from headrace.validation.examine import validate
from headrace.validation.record import Findings

NOW = Instant.parse("2026-01-11T00:00:00Z")
START = Instant.parse("2026-01-01T00:00:00Z")
BIG = 2**53 + 1
SHARES = {"a": 0.5, "b": 0.3, "c": 0.2}


class Shops(hr.Source):
    name: hr.Column[str] = hr.row_id()
    opened: hr.Column[hr.Instant] = hr.event_time()


class Sales(hr.Source):
    sale: hr.Column[int] = hr.row_id()
    at: hr.Column[hr.Instant] = hr.event_time()
    shop: hr.Column[str | None] = hr.column()
    kind: hr.Column[str | None] = hr.column(isin=["a", "b", "c"])
    code: hr.Column[str] = hr.column(matches=r"[A-Z]{2}\d*")
    count: hr.Column[int | None] = hr.column(ge=-5, le=2**53)
    price: hr.Column[float | None] = hr.column(ge=0, le=100, due=at + "1d")
    cost: hr.Column[float | None] = hr.column(allow_nan=True)

    checks = hr.Checks(
        hr.unique(sale),
        hr.unique(kind, code),
        hr.foreign_key(shop, Shops.name),
        hr.warn(hr.foreign_key(kind, Shops.name)),
        price >= cost,
        hr.check_rows("length(code) < 4", code, name="short codes"),
        hr.null_rate(price) <= 0.2,
        hr.null_rate(shop) <= 0.2,
        hr.mean(price).between(20, 60),
        hr.sum(count) <= 2**53,
        hr.max(count) <= 2**53,
        hr.min(price, where=price > 1) >= 0,
        hr.stddev(price) <= 30,
        hr.rate(price > 50) <= 0.5,
        hr.count(where=price > 50) <= 10,
        hr.quantile(price, 0.5) <= 50,
        hr.quantile(price, 0.9).between(10, 90),
        hr.psi(kind, against=SHARES) <= 0.2,
        hr.kl(kind, against=SHARES) <= 0.2,
        hr.ks(price) <= 0.2,
        hr.missing("1d") <= 1,
        hr.freshness() <= "2d",
        hr.known_at_honest(price, within="1h") >= 0.9,
        hr.measure("select count(*) from data where kind is null") <= 3,
        max_bad=1.0,
    )


WARNED = "foreign_key(Sales.kind, Shops.name)"
MAYBE = st.none()
PRICES = st.sampled_from([0.0, -0.0, 0.1, 50.0, 50.1, 99.9, 100.0, 101.0, -1.0, math.nan, math.inf]) | MAYBE
ROWS = st.fixed_dictionaries(
    {
        "sale": st.integers(0, 12) | st.integers(BIG, BIG + 3),
        "at": st.integers(0, 9 * 24).map(lambda hour: START + hour * DAY // 24),
        "shop": st.sampled_from(["north", "south", "ghost", ""]) | MAYBE,
        "kind": st.sampled_from(["a", "b", "c", "x"]) | MAYBE,
        "code": st.sampled_from(["AB", "AB1", "ab", "", "AB12", "AB\n"]) | MAYBE,
        "count": st.sampled_from([0, -5, -6, 7, 2**53, BIG, -(2**63), 2**63 - 1]) | MAYBE,
        "price": PRICES,
        "cost": PRICES,
        "_arrival": st.integers(0, 10 * 24).map(lambda hour: START + hour * DAY // 24),
    }
)
TYPES = {"sale": pa.int64(), "at": pa.timestamp("us", "UTC"), "shop": pa.string(), "kind": pa.string()}
TYPES |= {"code": pa.string(), "count": pa.int64(), "price": pa.float64(), "cost": pa.float64()}
TYPES |= {"_arrival": pa.timestamp("us", "UTC")}


def table(rows: list[dict[str, Any]], *, coded: bool) -> pa.Table:
    found = {
        name: pa.array([row[name] for row in rows], pa.int64() if "us" in str(kind) else kind)
        for name, kind in TYPES.items()
    }
    made = pa.table({name: values.cast(TYPES[name]) for name, values in found.items()})
    return made.set_column(3, "kind", made["kind"].dictionary_encode()) if coded else made


BASE = pa.table({"price": [float(i % 101) for i in range(500)]})
BASELINE = baseline_of(definition_of(Sales), BASE, only=Sales.price)


def bad_rows(rows: list[dict[str, Any]]) -> Counter[str]:
    """Return how many rows break each check of single rows, one row and one check at a time."""
    found: Counter[str] = Counter()
    seen: dict[str, set[Any]] = {"sale": set(), "pair": set()}
    for row in rows:
        price, cost, count, code = row["price"], row["cost"], row["count"], row["code"]
        found["Sales.kind is one of a, b, c"] += row["kind"] is not None and row["kind"] not in "abc"
        found["Sales.code is not null"] += code is None
        found["Sales.code matches [A-Z]{2}\\d*"] += code is not None and not re.fullmatch(r"[A-Z]{2}[0-9]*", code)
        found["Sales.count >= -5"] += count is not None and count < -5
        found[f"Sales.count <= {2**53}"] += count is not None and count > 2**53
        found["Sales.price is finite"] += price is not None and not math.isfinite(price)
        found["Sales.price >= 0"] += price is not None and price < 0
        found["Sales.price <= 100"] += price is not None and price > 100
        found["Sales.price >= Sales.cost"] += price is not None and cost is not None and not price >= cost
        found["short codes"] += code is not None and not len(code) < 4
        found["foreign_key(Sales.shop, Shops.name)"] += row["shop"] not in (None, "north", "south")
        found[WARNED] += row["kind"] is not None
        found["unique(Sales.sale)"] += row["sale"] in seen["sale"]
        seen["sale"].add(row["sale"])
        if row["kind"] is not None and code is not None:
            found["unique(Sales.kind, Sales.code)"] += (row["kind"], code) in seen["pair"]
            seen["pair"].add((row["kind"], code))
    return found


def measured(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return each measure's value, None where it is undefined, NaN where it cannot be a number."""
    prices = [r["price"] for r in rows if r["price"] is not None]
    counts = [r["count"] for r in rows if r["count"] is not None]
    due = [r for r in rows if r["at"] + DAY <= NOW]
    above = [r["price"] > 1 for r in rows if r["price"] is not None]
    kept = [p for p, more in zip(prices, above, strict=True) if more]
    days = {r["at"] // DAY for r in rows}
    arrived = [r["_arrival"] - r["at"] <= DAY // 24 for r in rows if r["price"] is not None]
    return {
        "null_rate(Sales.price)": sum(r["price"] is None for r in due) / len(due) if due else None,
        "null_rate(Sales.shop)": sum(r["shop"] is None for r in rows) / len(rows) if rows else None,
        "mean(Sales.price)": _guard(lambda: math.fsum(prices) / len(prices), prices),
        "sum(Sales.count)": sum(counts),
        "max(Sales.count)": max(counts, default=None),
        "min(Sales.price, where": min(kept, default=None),
        "stddev(Sales.price)": _guard(lambda: statistics.stdev(prices), prices, least=2),
        "rate(": sum(p > 50 for p in prices) / len(prices) if prices else None,
        "count(where": sum(p > 50 for p in prices),
        "missing(1d)": max(0, NOW // DAY - min(days) - len(days)) if days else None,
        "freshness()": NOW - max(r["_arrival"] for r in rows) if rows else None,
        "known_at_honest": sum(arrived) / len(arrived) if arrived else None,
        "measure(": sum(r["kind"] is None for r in rows) if rows else None,
        "psi(": _psi(rows),
        "kl(": _kl(rows),
        "ks(": _ks(prices),
    }


def _guard(compute: Callable[[], float], values: list[float], least: int = 1) -> float | None:
    if len(values) < least:
        return None
    found: float = compute() if all(map(math.isfinite, values)) else math.nan
    return found


def _shares(rows: list[dict[str, Any]]) -> list[tuple[float, float]]:
    counts = Counter("null" if r["kind"] is None else r["kind"] for r in rows)
    before = [*SHARES.values(), 0.0, 0.0]
    now = [counts[name] / len(rows) for name in ("a", "b", "c", "x", "null")]
    return [(max(b, FLOOR), max(n, FLOOR)) for b, n in zip(before, now, strict=True)]


def _psi(rows: list[dict[str, Any]]) -> float | None:
    return sum((n - b) * math.log(n / b) for b, n in _shares(rows)) if rows else None


def _kl(rows: list[dict[str, Any]]) -> float | None:
    return max(0.0, sum(n * math.log(n / b) for b, n in _shares(rows))) if rows else None


def _ks(prices: list[float]) -> float | None:
    held = [p for p in prices if p == p]
    if not held:
        return None
    base = BASE["price"].to_pylist()
    edges = BASELINE["price"].edges
    gaps: list[float] = [
        abs(sum(p < e for p in held) / len(held) - sum(p < e for p in base) / len(base)) for e in edges
    ]
    return max(gaps)


def asked(rows: list[dict[str, Any]], block_rows: int, *, coded: bool, threads: int) -> Findings:
    return validate(
        Sales,
        table(rows, coded=coded),
        references={Shops.name: pa.array(["north", "south"])},
        baseline=BASELINE,
        as_of="2026-01-11T00:00:00Z",
        block_rows=block_rows,
        threads=threads,
    )


@settings(deadline=None, max_examples=40)
@given(st.lists(ROWS, max_size=40), st.integers(1, 45), st.booleans())
def test_the_pass_equals_a_reading_row_by_row(rows: list[dict[str, Any]], block_rows: int, coded: bool) -> None:
    found = asked(rows, block_rows, coded=coded, threads=1)
    assert found.rows == len(rows)
    reasons = Counter(name for text in found.quarantined["reason"].to_pylist() for name in text.split("\n"))
    assert reasons == +Counter({n: c for n, c in bad_rows(rows).items() if n != WARNED})
    assert found["bad rows"].failing == found.quarantined.num_rows
    for name, failing in bad_rows(rows).items():
        assert found[name].failing == failing, name
        assert (found[name].status == "failed") == (failing > 0), name
    for name, value in measured(rows).items():
        result = found[name]
        if value is None:
            assert result.status == "undefined", name
        elif not math.isfinite(value):
            assert result.value is None, name
            assert result.status == "failed" or math.isinf(value), name
        else:
            assert result.value == pytest.approx(value, rel=1e-12, abs=1e-12), name


@settings(deadline=None, max_examples=20)
@given(st.lists(PRICES.filter(lambda p: p is None or p == p), min_size=1, max_size=60), st.integers(1, 9))
def test_a_quantile_is_judged_exactly(prices: list[float | None], block_rows: int) -> None:
    rows = [_row(i, price=p) for i, p in enumerate(prices)]
    found, held = asked(rows, block_rows, coded=False, threads=1), sorted(p for p in prices if p is not None)
    if not held:
        assert found["quantile(Sales.price, 0.5)"].status == "undefined"
        return
    half, high = (held[math.ceil(q * len(held)) - 1] for q in (0.5, 0.9))
    assert (found["quantile(Sales.price, 0.5)"].status == "passed") == (half <= 50)
    assert (found["quantile(Sales.price, 0.9)"].status == "passed") == (10 <= high <= 90)
    shown = found["quantile(Sales.price, 0.5)"].value
    assert shown is None if math.isinf(half) else shown == pytest.approx(half, rel=0.005, abs=1e-300)


@settings(deadline=None, max_examples=6)
@given(st.lists(ROWS, min_size=1, max_size=30))
def test_cuts_and_threads_change_nothing(rows: list[dict[str, Any]]) -> None:
    whole = asked(rows, 1_000, coded=False, threads=1)
    for block_rows, threads in ((1, 2), (7, 2)):
        cut = asked(rows, block_rows, coded=True, threads=threads)
        assert cut.action == whole.action
        kept = [
            f.quarantined.sort_by("id").select(["id", "reason", "payload", "arrival"]).to_pylist() for f in (cut, whole)
        ]
        assert kept[0] == kept[1]
        for one, other in zip(cut.results, whole.results, strict=True):
            assert (one.name, one.status, one.rows, one.failing) == (
                other.name,
                other.status,
                other.rows,
                other.failing,
            )


def _row(sale: int, **more: Any) -> dict[str, Any]:
    fixed = {"sale": sale, "at": START, "shop": None, "kind": None, "code": f"AB{sale}", "count": None, "cost": None}
    return fixed | {"_arrival": START} | more
