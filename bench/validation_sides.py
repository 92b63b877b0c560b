"""Run the 40 checks with one engine, and print what it took and found as JSON: python validation_sides.py SIDE FOLDER."""

from __future__ import annotations

import datetime as dt
import json
import math
import resource
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")
CURRENCIES = ["EUR", "USD", "GBP", "JPY", "CHF"]
SHARES = dict(zip(CURRENCIES, [0.5, 0.3, 0.1, 0.06, 0.04], strict=True))
STATES = ["new", "paid", "shipped", "returned"]
COUNTRIES = [f"{a}{b}" for a in "ABDEFGINPU" for b in "ABDEKLRST"][:60]
EMAIL = r"^[a-z0-9]+@[a-z]+\.com$"
KEPT = ["order_id", "user_id", "amount", "qty", "email", "created_at"]
RANGES: dict[str, tuple[int, int]] = {
    "amount": (0, 10_000),
    "qty": (1, 100),
    "f0": (-8, 8),
    "f1": (-8, 10),
    "f2": (-8, 12),
}
SETS = {"currency": CURRENCIES, "status": STATES, "country": COUNTRIES}
FRESH = dt.datetime(2026, 11, 20)
Found = tuple[dict[str, Any], list[str]]


def divergence(counts: dict[str, int]) -> float:
    """Return the KL divergence of the known currencies' shares from their reference."""
    total = sum(counts.values())
    return sum(n / total * math.log(n / total / SHARES[name]) for name, n in counts.items() if n)


def ours(folder: Path) -> Callable[[], Found]:
    """Return our side."""
    import headrace as hr
    from headrace.core.settings import SourceSettings

    validate = hr.validate  # imports what it needs, as the peers do before they are timed

    class Users(hr.Source):
        user_id: hr.Column[int] = hr.row_id()
        since: hr.Column[hr.Instant] = hr.event_time()

    class Orders(hr.Source):
        order_id: hr.Column[int] = hr.row_id()
        user_id: hr.Column[int] = hr.column()
        amount: hr.Column[float] = hr.column(ge=0, le=10_000)
        qty: hr.Column[int] = hr.column(ge=1, le=100)
        currency: hr.Column[str | None] = hr.column(isin=CURRENCIES)
        status: hr.Column[str | None] = hr.column(isin=STATES)
        country: hr.Column[str | None] = hr.column(isin=COUNTRIES)
        email: hr.Column[str] = hr.column(matches=r"[a-z0-9]+@[a-z]+\.com")
        created_at: hr.Column[hr.Instant] = hr.event_time()
        updated_at: hr.Column[hr.Instant | None] = hr.column()
        is_gift: hr.Column[bool | None] = hr.column()
        f0: hr.Column[float | None] = hr.column(ge=-8, le=8)
        f1: hr.Column[float | None] = hr.column(ge=-8, le=10)
        f2: hr.Column[float | None] = hr.column(ge=-8, le=12)
        f3: hr.Column[float | None] = hr.column()
        f4: hr.Column[float | None] = hr.column()
        f5: hr.Column[float | None] = hr.column()
        f6: hr.Column[float | None] = hr.column()
        f7: hr.Column[float | None] = hr.column()
        f8: hr.Column[float | None] = hr.column()

        checks = hr.Checks(
            hr.unique(order_id),
            hr.foreign_key(user_id, Users.user_id),
            hr.freshness() <= "1d",
            hr.mean(amount).between(20, 40),
            hr.kl(currency, against=SHARES) <= 0.01,
        )

    def run() -> Found:
        found = validate(
            Orders,
            folder / "orders.parquet",
            references={Users.user_id: folder / "users.parquet"},
            settings=SourceSettings(zone="UTC"),
            as_of="2026-11-21T00:00:00Z",
        )
        fails = {r.name: r.failing or r.measured for r in found.failed}
        return fails | {"rows in quarantine": found.quarantined.num_rows}, []

    return run


def polars(folder: Path) -> Callable[[], Found]:
    """Return the bare limit in Polars: one query, and an anti-join."""
    import polars as pl

    def run() -> Found:
        frame = pl.scan_parquet(folder / "orders.parquet")
        frame.collect_schema()
        asked = [pl.col(c).null_count().alias(f"null {c}") for c in KEPT]
        asked += [(~pl.col(c).is_between(*bounds)).sum().alias(f"range {c}") for c, bounds in RANGES.items()]
        asked += [(~pl.col(c).is_in(members)).sum().alias(f"set {c}") for c, members in SETS.items()]
        asked += [(~pl.col("email").str.contains(EMAIL)).sum().alias("pattern email")]
        asked += [(pl.len() - pl.col("order_id").n_unique()).alias("repeated order_id")]
        told = [pl.col("created_at").max(), pl.col("amount").mean(), pl.col("currency").value_counts().implode()]
        row = frame.select([*asked, *told]).collect(engine="streaming").row(0, named=True)
        users = pl.scan_parquet(folder / "users.parquet")
        orphans = frame.select("user_id").join(users, on="user_id", how="anti").select(pl.len())
        fails = {e.meta.output_name(): row[e.meta.output_name()] for e in asked}
        fails["orphans"] = orphans.collect(engine="streaming").item()
        counts = {x["currency"]: x["count"] for x in row["currency"] if x["currency"] in SHARES}
        assert divergence(counts) < 0.01 and 20 < row["amount"] < 40 and row["created_at"] >= FRESH
        return {name: count for name, count in fails.items() if count}, []

    return run


def duckdb(folder: Path) -> Callable[[], Found]:
    """Return the bare limit in DuckDB SQL: a scan, a distinct count, and an anti-join."""
    import duckdb as duck

    def run() -> Found:
        connection = duck.connect(config={"threads": "2"})
        orders, users = folder / "orders.parquet", folder / "users.parquet"
        asked = {f"null {c}": f"count(*) - count({c})" for c in KEPT}
        asked |= {f"range {c}": f"count(*) filter ({c} < {b[0]} or {c} > {b[1]})" for c, b in RANGES.items()}
        asked |= {
            f"set {c}": f"count(*) filter ({c} not in ({', '.join(map(repr, members))}))" for c, members in SETS.items()
        }
        asked["pattern email"] = f"count(*) filter (not regexp_matches(email, '{EMAIL}'))"
        told = "max(created_at), avg(amount), histogram(currency)"
        row = connection.execute(f"select {', '.join(asked.values())}, {told} from '{orders}'").fetchone()
        assert row is not None
        *counts, fresh, mean, held = row
        fails = dict(zip(asked, counts, strict=True))
        queries = {
            "repeated order_id": f"select count(*) - count(distinct order_id) from '{orders}'",
            "orphans": f"select count(*) from '{orders}' o anti join '{users}' u on o.user_id = u.user_id",
        }
        for name, query in queries.items():
            one = connection.execute(query).fetchone()
            fails[name] = one[0] if one else 0
        assert divergence({k: v for k, v in held.items() if k in SHARES}) < 0.01 and 20 < mean < 40 and fresh >= FRESH
        return {name: count for name, count in fails.items() if count}, []

    return run


def pandera(folder: Path) -> Callable[[], Found]:
    """Return pandera over Polars."""
    import pandera.polars as pa
    import polars as pl

    kinds: dict[str, Any] = {
        "order_id": pl.Int64,
        "user_id": pl.Int64,
        "amount": pl.Float64,
        "qty": pl.Int32,
        "currency": pl.String,
    }
    kinds |= {"status": pl.String, "country": pl.String, "email": pl.String, "created_at": pl.Datetime("us")}
    kinds |= {"updated_at": pl.Datetime("us"), "is_gift": pl.Boolean, **{f"f{i}": pl.Float64 for i in range(9)}}

    def run() -> Found:
        users = pl.read_parquet(folder / "users.parquet")["user_id"]
        checks: dict[str, list[Any]] = {name: [] for name in kinds}
        for name, bounds in RANGES.items():
            checks[name].append(pa.Check.in_range(*bounds))
        for name, members in SETS.items():
            checks[name].append(pa.Check.isin(members))
        checks["email"].append(pa.Check.str_matches(EMAIL))

        def column(data: Any) -> Any:
            return data.lazyframe.select(pl.col(data.key))

        checks["amount"].append(
            pa.Check(lambda d: column(d).select(pl.col(d.key).mean().is_between(20, 40)), name="mean")
        )
        checks["user_id"].append(
            pa.Check(lambda d: column(d).select(pl.col(d.key).is_in(users.implode())), name="foreign key")
        )
        checks["created_at"].append(pa.Check(lambda d: column(d).select(pl.col(d.key).max() >= FRESH), name="fresh"))

        def near(data: Any) -> Any:
            counted = column(data).group_by(data.key).len().collect().rows()
            return data.lazyframe.select(pl.lit(divergence({k: n for k, n in counted if k in SHARES}) < 0.01))

        checks["currency"].append(pa.Check(near, name="kl"))
        columns = {
            name: pa.Column(kind, checks[name], nullable=name not in KEPT, unique=name == "order_id")
            for name, kind in kinds.items()
        }
        try:
            pa.DataFrameSchema(columns, strict=True).validate(pl.read_parquet(folder / "orders.parquet"), lazy=True)
        except pa.errors.SchemaErrors as error:
            cases = error.failure_cases.group_by(["column", "check"]).len("n").to_dicts()
            return {f"{c['column']}: {str(c['check'])[:24]}": c["n"] for c in cases}, []
        return {}, []

    return run


def pointblank(folder: Path) -> Callable[[], Found]:
    """Return pointblank over Polars."""
    import pointblank as pb
    import polars as pl

    def run() -> Found:
        asked = pb.Validate(data=pl.read_parquet(folder / "orders.parquet"))
        asked = asked.col_exists(columns=list(asked.data.columns)).col_vals_not_null(columns=KEPT)
        for name, (low, high) in RANGES.items():
            asked = asked.col_vals_between(columns=name, left=low, right=high, na_pass=True)
        for name, members in SETS.items():
            asked = asked.col_vals_in_set(columns=name, set=members)
        asked = asked.col_vals_regex(columns="email", pattern=EMAIL).rows_distinct(columns_subset="order_id")
        asked = asked.col_avg_ge(columns="amount", value=20).col_avg_le(columns="amount", value=40)
        told = asked.interrogate(collect_extracts=False).validation_info
        return {f"{x.assertion_type} {x.column}": x.n_failed for x in told if x.n_failed}, [
            "foreign key",
            "fresh",
            "kl",
        ]

    return run


def great_expectations(folder: Path) -> Callable[[], Found]:
    """Return Great Expectations over pandas."""
    import great_expectations as gx
    import pandas as pd

    def run() -> Found:
        expect, context = gx.expectations, gx.get_context(mode="ephemeral")
        frame = pd.read_parquet(folder / "orders.parquet")
        asset = context.data_sources.add_pandas("p").add_dataframe_asset("a")
        batch = asset.add_batch_definition_whole_dataframe("b")
        suite = gx.ExpectationSuite(name="s")
        asked = [expect.ExpectColumnToExist(column=c) for c in frame.columns]
        asked += [expect.ExpectColumnValuesToNotBeNull(column=c) for c in KEPT]
        asked += [
            expect.ExpectColumnValuesToBeBetween(column=c, min_value=b[0], max_value=b[1]) for c, b in RANGES.items()
        ]
        asked += [expect.ExpectColumnValuesToBeInSet(column=c, value_set=members) for c, members in SETS.items()]
        asked += [expect.ExpectColumnValuesToBeUnique(column="order_id")]
        asked += [expect.ExpectColumnValuesToMatchRegex(column="email", regex=EMAIL)]
        asked += [expect.ExpectColumnMeanToBeBetween(column="amount", min_value=20, max_value=40)]
        for one in asked:
            suite.add_expectation(one)
        definition = gx.ValidationDefinition(data=batch, suite=context.suites.add(suite), name="v")
        found = definition.run(batch_parameters={"dataframe": frame}, result_format="SUMMARY")
        failed = [x for x in found.results if not x.success]
        named = {f"{x.expectation_config.type}": x.result.get("unexpected_count") for x in failed}
        return named, ["foreign key", "fresh", "kl"]

    return run


SIDES: dict[str, tuple[Callable[[Path], Callable[[], Found]], list[str]]] = {
    "headrace": (ours, ["headrace", "pyarrow", "duckdb"]),
    "polars": (polars, ["polars"]),
    "duckdb": (duckdb, ["duckdb"]),
    "pandera-polars": (pandera, ["pandera", "polars"]),
    "pointblank": (pointblank, ["pointblank", "polars"]),
    "great-expectations": (great_expectations, ["great-expectations", "pandas"]),
}


def main() -> None:
    """Prepare a side, run it once, and print what it took and found."""
    prepare, packages = SIDES[sys.argv[1]]
    run = prepare(Path(sys.argv[2]))
    began, used = time.perf_counter(), time.process_time()
    fails, skipped = run()
    told: dict[str, Any] = {"wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - used}
    told["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    told |= {"fails": fails, "skipped": skipped, "versions": {name: version(name) for name in packages}}
    print(json.dumps(told, default=str))


if __name__ == "__main__":
    main()
