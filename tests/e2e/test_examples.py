"""The fraud and demand projects run on small data, and their features are what independently written SQL says they are."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from headrace.core.errors import DataError, UsageError
from headrace.core.time import DAY, HOUR, Instant, VirtualClock
from headrace.pipelines.inspect import list_models, list_runs
from headrace.pipelines.predict import predict
from headrace.pipelines.project import Project, import_file, load_project
from headrace.pipelines.run import run
from headrace.pipelines.serve import PipelineService
from headrace.pipelines.stores import open_stores
from headrace.pipelines.view import Silent, View
from headrace.serving.core import Answer

EXAMPLES = Path(__file__).parents[2] / "examples"


def prepared(name: str, folder: Path, **sizes: int) -> Path:
    """Copy a project and generate its data."""
    target = folder / name
    target.mkdir()
    for file in (f"{name}.py", "headrace.toml"):
        shutil.copy(EXAMPLES / name / file, target)
    write = runpy.run_path(str(EXAMPLES / name / "prepare.py"))["write"]
    write(target / "data", seed=7, **sizes)
    return target


@pytest.fixture(scope="module")
def fraud(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared("fraud", tmp_path_factory.mktemp("examples"), count=30_000)


def transactions(fraud: Path) -> pa.Table:
    return pq.read_table(fraud / "data" / "transactions.parquet")


def fraud_clock(fraud: Path) -> VirtualClock:
    """Return a clock that stands a few seconds after the last transaction, when most chargebacks are to come yet."""
    return VirtualClock(Instant(pc.max(transactions(fraud)["ts"]).cast(pa.int64()).as_py() + 10_000_000))


@pytest.fixture(scope="module")
def fraud_run(fraud: Path) -> View:
    """Return what a run in the fraud project's folder tells."""
    project, clock = load_project(str(fraud / "fraud.py")), fraud_clock(fraud)
    return run(project, state=str(fraud / "state"), seed=1, progress=Silent(), clock=clock)


@pytest.fixture(scope="module")
def demand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared("demand", tmp_path_factory.mktemp("examples"), stores=3, items=6, days=800)


def module(folder: Path) -> ModuleType:
    return import_file(folder / f"{folder.name}.py")


def asked(database: duckdb.DuckDBPyConnection, sql: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = database.sql(sql).to_arrow_table().to_pydict()
    return found


def same(ours: dict[str, list[Any]], theirs: dict[str, list[Any]], names: dict[str, str]) -> int:
    """Compare columns; plain SQL adds floats in any order, so sums may differ in their last digits."""
    count = 0
    for name, theirs_name in names.items():
        for a, b in zip(ours[name], theirs[theirs_name], strict=True):
            assert (a is None) == (b is None), f"{name}: {a}, {b}"
            close = a is None or (a == pytest.approx(b, rel=1e-9, abs=1e-9) if isinstance(a, float) else a == b)
            assert close, f"{name}: {a}, {b}"
            count += 1
    return count


FRAUD_SQL = """
WITH tx AS (SELECT * FROM 'data/transactions.parquet'),
rows AS (SELECT r.* FROM tx r JOIN asked USING (txn_id)),
card AS (
  SELECT r.txn_id,
    count(e.ts) FILTER (e.ts >= r.ts - INTERVAL 1 MINUTE) AS n_1m,
    count(e.ts) FILTER (e.ts >= r.ts - INTERVAL 1 HOUR) AS n_1h,
    count(e.ts) FILTER (e.ts >= r.ts - INTERVAL 24 HOUR) AS n_24h,
    sum(e.amount) FILTER (e.ts >= r.ts - INTERVAL 1 HOUR) AS spend_1h,
    sum(e.amount) FILTER (e.ts >= r.ts - INTERVAL 24 HOUR) AS spend_24h,
    sum(e.amount) AS spend_30d, avg(e.amount) AS avg_30d,
    count(DISTINCT e.merchant) FILTER (e.ts >= r.ts - INTERVAL 24 HOUR) AS merchants
  FROM rows r LEFT JOIN tx e ON e.card = r.card AND e.ts < r.ts AND e.ts >= r.ts - INTERVAL 30 DAY GROUP BY ALL),
device AS (
  SELECT r.txn_id, CASE WHEN r.device IS NULL THEN NULL ELSE count(DISTINCT e.card) END AS cards
  FROM rows r LEFT JOIN tx e ON e.device = r.device AND e.ts < r.ts AND e.ts >= r.ts - INTERVAL 24 HOUR
  GROUP BY r.txn_id, r.device),
risk AS (
  SELECT r.txn_id, count(c.reported) AS chargebacks
  FROM rows r LEFT JOIN 'data/chargebacks.parquet' c
    ON c.merchant = r.merchant AND c.reported < r.ts AND c.reported >= r.ts - INTERVAL 90 DAY GROUP BY ALL),
profile AS (
  SELECT r.txn_id, m.mcc, m.country FROM rows r LEFT JOIN 'data/merchants.parquet' m
    ON m.merchant = r.merchant AND m.valid_from <= r.ts AND (m.valid_to IS NULL OR m.valid_to > r.ts)),
label AS (
  SELECT r.txn_id, CASE WHEN r.approved THEN (count(c.reported) > 0)::DOUBLE END AS fraud
  FROM rows r LEFT JOIN 'data/chargebacks.parquet' c
    ON c.txn_id = r.txn_id AND c.reported >= r.ts AND c.reported < r.ts + INTERVAL 90 DAY GROUP BY r.txn_id, r.approved)
SELECT * FROM asked JOIN card USING (txn_id) JOIN device USING (txn_id) JOIN risk USING (txn_id)
JOIN profile USING (txn_id) JOIN label USING (txn_id) ORDER BY place
"""


def test_fraud_features_and_labels_are_what_sql_says(fraud: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = module(fraud).dataset.frame()
    kept = np.unique(
        np.concatenate([np.flatnonzero(frame.label == 1), np.random.default_rng(1).choice(len(frame), 900)])
    )
    ours = frame.arrow().take(kept).to_pydict()
    monkeypatch.chdir(fraud)
    database = duckdb.connect()
    database.register("asked", frame.rows.take(kept).append_column("place", [np.arange(len(kept))]))
    theirs = asked(database, FRAUD_SQL)
    names = {"Card.n[1m]": "n_1m", "Card.n[1h]": "n_1h", "Card.n[24h]": "n_24h", "Card.spend[1h]": "spend_1h"}
    names |= {"Card.spend[24h]": "spend_24h", "Card.spend[30d]": "spend_30d", "Card.avg[30d]": "avg_30d"}
    names |= {"Card.merchants[24h]": "merchants", "Device.cards[24h]": "cards", "label": "fraud"}
    names |= {"MerchantRisk.chargebacks[90d]": "chargebacks", "MerchantProfile.mcc": "mcc"}
    names["MerchantProfile.country"] = "country"
    assert same(ours, theirs, names) > 10_000
    assert sum(v == 1.0 for v in ours["label"]) > 50


def test_a_sample_keeps_every_rare_row_and_weighs_the_others(fraud: Path) -> None:
    from headrace.features.plan import plan_dataset
    from headrace.features.retrieval import dataset_rows

    project = module(fraud)
    found = dataset_rows(project.dataset, clock=_Now(), as_of=None, limit=None, env=None)
    whole = plan_dataset(project.dataset)
    assert whole.sample is not None
    label, weight = found.found.label, found.found.weight
    asked_for = found.facts["sampled_from"]
    assert len(label) < asked_for / 4
    assert set(weight[label == 0].tolist()) == {20.0}
    assert set(weight[label != 0].tolist()) == {1.0}
    negatives = asked_for - np.count_nonzero(label == 1) - np.count_nonzero(np.isnan(label))
    assert weight[label == 0].sum() == pytest.approx(negatives, rel=0.15)


class _Now:
    def now(self) -> Any:
        from headrace.core.time import Instant

        return Instant.parse("2026-01-01")


def test_fraud_trains_on_labels_of_another_table(fraud_run: View) -> None:
    assert fraud_run["outcome"] == "promoted"
    assert fraud_run["passed"]  # its gates: auc >= 0.6, recall >= 0.1


def test_fraud_answers_a_transaction_from_what_happened_just_before(fraud: Path, fraud_run: View) -> None:
    rows, now = transactions(fraud), fraud_clock(fraud)
    card, month = rows["card"][-1].as_py(), pa.scalar(now.now() - 30 * DAY).cast(pa.timestamp("us", "UTC"))
    asked = {"txn_id": "new", "merchant": "m00000", "amount": 25.0, "device": None}
    with open_stores(load_project(str(fraud / "fraud.py")), str(fraud / "state"), clock=now, write=True) as stores:
        service = PipelineService(load_project(str(fraud / "fraud.py")), stores, now)
        known, stranger = service.predict([asked | {"card": one} for one in (card, "nobody")])
        service.log.close()
    assert isinstance(known, Answer) and isinstance(stranger, Answer)
    for one in (known, stranger):
        assert (one.version, one.decision) == (fraud_run["version"], one.score >= 0.1)
    there, absent = known.vector.to_dict(), stranger.vector.to_dict()
    assert (absent["Card.n[24h]"], absent["amount_ratio"]) == (0, None)
    assert there["Card.n[24h]"] >= 1
    spent = rows.filter((pc.field("card") == card) & (pc.field("ts") >= month))["amount"]
    assert there["Card.spend[30d]"] == pytest.approx(pc.sum(spent).as_py())


FLIGHTS_SQL = """
WITH fl AS (SELECT * FROM 'data/flights.parquet'),
late AS (SELECT carrier, origin, dest, tail, actual_arr AS m, arr_delay AS d, (arr_delay > 15)::INT AS late
  FROM fl WHERE arr_delay IS NOT NULL AND actual_arr IS NOT NULL),
left_ AS (SELECT carrier, origin, tail, actual_dep AS m, dep_delay AS d
  FROM fl WHERE dep_delay IS NOT NULL AND actual_dep IS NOT NULL),
origin AS (
  SELECT r.place, avg(e.d) FILTER (e.m >= r.t - INTERVAL 1 HOUR) AS d1, avg(e.d) FILTER (e.m >= r.t - INTERVAL 3 HOUR) AS d3,
    avg(e.d) AS d24, count(e.d) FILTER (e.m >= r.t - INTERVAL 1 HOUR) AS n1, count(e.d) AS n24
  FROM asked r LEFT JOIN left_ e ON e.origin = r.origin AND e.m < r.t AND e.m >= r.t - INTERVAL 24 HOUR GROUP BY ALL),
carrier AS (
  SELECT r.place, avg(e.late) FILTER (e.m >= r.t - INTERVAL 24 HOUR) AS l24, avg(e.late) AS l7,
    list_sort(list(e.d) FILTER (e.m >= r.t - INTERVAL 24 HOUR)) AS s24, list_sort(list(e.d) FILTER (e.d IS NOT NULL)) AS s7
  FROM asked r LEFT JOIN late e ON e.carrier = r.carrier AND e.m < r.t AND e.m >= r.t - INTERVAL 168 HOUR GROUP BY ALL),
p90 AS (SELECT place, l24, l7, s24[ceil(0.9::DOUBLE * len(s24))::INT] AS q24, s7[ceil(0.9::DOUBLE * len(s7))::INT] AS q7
  FROM carrier),
dest AS (
  SELECT r.place, avg(e.late) FILTER (e.m >= r.t - INTERVAL 6 HOUR) AS t6, avg(e.late) FILTER (e.m >= r.t - INTERVAL 24 HOUR) AS t24,
    avg(e.late) AS t7, avg(e.d) FILTER (e.m >= r.t - INTERVAL 6 HOUR) AS a6, avg(e.d) FILTER (e.m >= r.t - INTERVAL 24 HOUR) AS a24
  FROM asked r LEFT JOIN late e ON e.dest = r.dest AND e.m < r.t AND e.m >= r.t - INTERVAL 168 HOUR GROUP BY ALL),
desk AS (
  SELECT r.place, avg(e.d) AS desk, max(e.d) AS waiting FROM asked r LEFT JOIN left_ e
    ON e.carrier = r.carrier AND e.origin = r.origin AND e.m < r.t AND e.m >= r.t - INTERVAL 3 HOUR GROUP BY ALL),
aircraft AS (
  SELECT r.place,
    (SELECT arg_max(e.d, e.m) FROM late e WHERE e.tail = r.tail AND e.m < r.t AND e.m >= r.t - INTERVAL 24 HOUR) AS arrived,
    (SELECT arg_max(e.d, e.m) FROM left_ e WHERE e.tail = r.tail AND e.m < r.t AND e.m >= r.t - INTERVAL 24 HOUR) AS departed,
    (SELECT count(*) FROM left_ e WHERE e.tail = r.tail AND e.m < r.t AND e.m >= r.t - INTERVAL 3 HOUR) AS dep3,
    (SELECT count(*) FROM left_ e WHERE e.tail = r.tail AND e.m < r.t AND e.m >= r.t - INTERVAL 12 HOUR) AS dep12,
    (SELECT count(*) FROM late e WHERE e.tail = r.tail AND e.m < r.t AND e.m >= r.t - INTERVAL 6 HOUR) AS arr6
  FROM asked r),
wx AS (SELECT *, hour + INTERVAL 1 HOUR AS m FROM 'data/weather.parquet'),
sky AS (
  SELECT r.place,
    arg_max(w.temp, w.m) FILTER (w.temp IS NOT NULL AND w.m >= r.t - INTERVAL 3 HOUR) AS temp,
    arg_max(w.humidity, w.m) FILTER (w.humidity IS NOT NULL AND w.m >= r.t - INTERVAL 3 HOUR) AS humidity,
    arg_max(w.pressure, w.m) FILTER (w.pressure IS NOT NULL AND w.m >= r.t - INTERVAL 3 HOUR) AS pressure, max(w.precip) AS rain
  FROM asked r LEFT JOIN wx w ON w.origin = r.origin AND w.m < r.t AND w.m >= r.t - INTERVAL 6 HOUR GROUP BY ALL)
SELECT asked.place, origin.* EXCLUDE place, p90.* EXCLUDE place, dest.* EXCLUDE place, desk.* EXCLUDE place, sky.* EXCLUDE place,
  arrived, departed, CASE WHEN asked.tail IS NOT NULL THEN dep3 END AS dep3, CASE WHEN asked.tail IS NOT NULL THEN dep12 END AS dep12,
  CASE WHEN asked.tail IS NOT NULL THEN arr6 END AS arr6, hour(t AT TIME ZONE 'America/New_York' + INTERVAL 1 HOUR) AS h,
  isodow(t AT TIME ZONE 'America/New_York' + INTERVAL 1 HOUR) - 1 AS weekday, label_.late::DOUBLE AS label
FROM asked JOIN origin USING (place) JOIN p90 USING (place) JOIN dest USING (place) JOIN desk USING (place)
JOIN aircraft USING (place) JOIN sky USING (place)
JOIN (SELECT flight_id, CASE WHEN actual_arr IS NOT NULL THEN arr_delay > 15 END AS late FROM fl) label_ USING (flight_id)
ORDER BY place
"""


def test_flights_features_and_labels_are_what_sql_says(flights: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = import_file(flights.folder / "flights.py").dataset.frame(limit=60_000)
    kept = np.sort(np.random.default_rng(2).choice(len(frame), 1_000, replace=False))
    ours = frame.arrow().take(kept).to_pydict()
    monkeypatch.chdir(flights.folder)
    database = duckdb.connect()
    database.sql("SET TimeZone = 'UTC'")
    given = frame.rows.take(kept).select(["flight_id"]).append_column("place", [np.arange(len(kept))])
    database.register("given", given)
    database.sql(
        "CREATE TABLE asked AS SELECT place, f.*, f.sched_dep - INTERVAL 1 HOUR AS t "
        "FROM given JOIN 'data/flights.parquet' f USING (flight_id)"
    )
    theirs = asked(database, FLIGHTS_SQL)
    names = {"Origin.dep_delay[1h]": "d1", "Origin.dep_delay[3h]": "d3", "Origin.dep_delay[24h]": "d24"}
    names |= {"Origin.departures[1h]": "n1", "Origin.departures[24h]": "n24", "Carrier.late[24h]": "l24"}
    names |= {"Carrier.late[7d]": "l7", "Carrier.delay_p90[24h]": "q24", "Carrier.delay_p90[7d]": "q7"}
    names |= {"Dest.late[6h]": "t6", "Dest.late[24h]": "t24", "Dest.late[7d]": "t7", "Dest.arr_delay[6h]": "a6"}
    names |= {"Dest.arr_delay[24h]": "a24", "Desk.dep_delay[3h]": "desk", "Desk.waiting[3h]": "waiting"}
    names |= {"Aircraft.arrived": "arrived", "Aircraft.departed": "departed", "Aircraft.departures[3h]": "dep3"}
    names |= {"Aircraft.departures[12h]": "dep12", "Aircraft.arrivals[6h]": "arr6", "dep_hour": "h", "label": "label"}
    names |= {"weekday": "weekday", "Sky.rain[6h]": "rain"} | {
        f"Sky.now[{n}]": n for n in ("temp", "humidity", "pressure")
    }
    assert same(ours, theirs, names) == len(names) * 1_000
    filled = {name: sum(value is not None for value in ours[name]) for name in names}
    assert min(filled.values()) > 300, filled


DEMAND_SQL = """
WITH sales AS (SELECT * FROM 'data/sales.parquet'), promotions AS (SELECT * FROM 'data/promotions.parquet'),
known AS (  -- a day's sales are known six hours after its end in Paris
  SELECT *, ((day + 1)::TIMESTAMP AT TIME ZONE 'Europe/Paris') + INTERVAL 6 HOUR AS moment FROM sales),
units AS (
  SELECT r.place,
    coalesce(sum(e.units) FILTER (e.moment >= r.at - INTERVAL 168 HOUR), 0) AS u7,
    coalesce(sum(e.units) FILTER (e.moment >= r.at - INTERVAL 672 HOUR), 0) AS u28,
    coalesce(sum(e.units) FILTER (e.moment >= r.at - INTERVAL 8736 HOUR), 0) AS u364,
    coalesce(sum(e.units) FILTER (e.moment < r.at - INTERVAL 8736 HOUR AND e.moment >= r.at - INTERVAL 8904 HOUR), 0) AS same
  FROM asked r LEFT JOIN known e USING (store, item) WHERE e.moment < r.at OR e.moment IS NULL GROUP BY r.place),
planned AS (
  SELECT r.place, count(p.day) AS days, max(p.discount) AS discount
  FROM asked r LEFT JOIN promotions p ON p.store = r.store AND p.item = r.item AND p.announced < r.at
    AND p.day >= (r.at AT TIME ZONE 'Europe/Paris')::DATE AND p.day < (r.at AT TIME ZONE 'Europe/Paris')::DATE + 7
  GROUP BY r.place),
label AS (
  SELECT r.place, {labels}
  FROM asked r LEFT JOIN sales e ON e.store = r.store AND e.item = r.item
    AND e.day >= (r.at AT TIME ZONE 'Europe/Paris')::DATE AND e.day < (r.at AT TIME ZONE 'Europe/Paris')::DATE + 28
  GROUP BY r.place)
SELECT * FROM asked JOIN units USING (place) JOIN planned USING (place) JOIN label USING (place) ORDER BY place
"""
WEEK = """CASE WHEN count(*) FILTER ({inside} AND NOT in_stock) = 0 THEN coalesce(sum(units) FILTER ({inside}), 0)::DOUBLE END AS w{week}"""
INSIDE = "e.day >= (r.at AT TIME ZONE 'Europe/Paris')::DATE + {low} AND e.day < (r.at AT TIME ZONE 'Europe/Paris')::DATE + {high}"


def test_demand_rows_features_and_labels_are_what_sql_says(demand: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = module(demand).dataset.frame()
    monkeypatch.chdir(demand)
    database = duckdb.connect()
    database.sql("SET TimeZone = 'UTC'")
    database.register(
        "asked", frame.arrow().select(["store", "item", "at"]).append_column("place", [np.arange(len(frame))])
    )
    weeks = [WEEK.format(inside=INSIDE.format(low=7 * w, high=7 * w + 7), week=w) for w in range(4)]
    theirs = asked(database, DEMAND_SQL.format(labels=", ".join(weeks)))
    names = {"Demand.units[7d]": "u7", "Demand.units[28d]": "u28", "Demand.units[364d]": "u364"}
    names |= {"Demand.same_week[7d]": "same", "Planned.promo_days[7d]": "days", "Planned.discount[7d]": "discount"}
    names |= {f"label[7d+{7 * w}d]": f"w{w}" for w in range(4)}
    ours = frame.arrow().to_pydict()
    assert same(ours, theirs, names) == 10 * len(frame)
    mondays = asked(
        database,
        "SELECT DISTINCT dayname(a.at AT TIME ZONE 'Europe/Paris') d, hour(a.at AT TIME ZONE 'Europe/Paris') h FROM asked a",
    )
    assert (mondays["d"], mondays["h"]) == (["Monday"], [0])
    active = asked(
        database,
        """
        SELECT count(*) AS n FROM (
          SELECT store, item, m.at FROM (SELECT DISTINCT a.at FROM asked a) m, 'data/sales.parquet' e
          WHERE ((day + 1)::TIMESTAMP AT TIME ZONE 'Europe/Paris') + INTERVAL 6 HOUR < m.at
            AND ((day + 1)::TIMESTAMP AT TIME ZONE 'Europe/Paris') + INTERVAL 6 HOUR >= m.at - INTERVAL 1344 HOUR
          GROUP BY ALL)""",
    )
    assert active["n"] == [len(frame)]


def test_demand_trains_on_a_grid_and_forecasts_its_last_monday(demand: Path) -> None:
    project, state = load_project(str(demand / "demand.py")), str(demand / "state")
    view = run(project, state=state, seed=1, progress=Silent())
    assert view["outcome"] == "promoted"
    assert view["passed"]  # its gate: wape <= 0.5
    for listed in (list_models(project, state=state), list_runs(project, state=state)):
        (table,) = listed.tables
        named = dict(zip(table.columns, table.rows[0], strict=True))
        assert named["test mae"] > 0.1 and 0.5 < named["test r2"] < 1
        assert "test auc" not in named
    frame = module(demand).next_week.frame()
    monday = int(frame.t[-1])

    def forecast(moment: int) -> list[dict[str, Any]]:
        as_of = Instant(moment).isoformat()
        found = predict(project, None, to=None, version=None, as_of=as_of, state=state, progress=Silent())
        answers: list[dict[str, Any]] = found["predictions"]
        return answers

    answers, last = forecast(monday + 5 * HOUR), np.flatnonzero(frame.t == monday)
    rows = frame.rows.take(last)
    keys = [{"store": a["store"], "item": a["item"]} for a in answers]
    assert keys == rows.select(["store", "item"]).to_pylist()
    assert {a["t"] for a in answers} == {Instant(monday).isoformat()}
    assert len({a["score"] for a in answers}) > 3
    assert {a["t"] for a in forecast(monday - 1)} == {Instant(int(frame.t[frame.t < monday][-1])).isoformat()}
    with pytest.raises(UsageError, match="the rows of a grid are made, not given"):
        predict(
            project,
            str(demand / "data" / "sales.parquet"),
            to=None,
            version=None,
            as_of=None,
            state=state,
            progress=Silent(),
        )
    with pytest.raises(DataError, match="no row of the grid is active") as error:
        forecast(monday + 400 * DAY)
    assert str(error.value.next_step).endswith(f"or {view['next']}")
    command, newest = str(view["next"]).split(" --as-of ")
    assert command == f"headrace predict {project.typed}"
    assert forecast(int(Instant.parse(newest)))[0]["t"] >= answers[0]["t"]
    with pytest.raises(DataError, match="no row of the grid is active") as error:
        forecast(monday - 4_000 * DAY)
    assert str(error.value.next_step).endswith("--as-of with an earlier moment")
