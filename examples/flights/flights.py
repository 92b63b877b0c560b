"""Predict, an hour before departure, whether a flight will arrive over 15 minutes late."""

from lightgbm import LGBMClassifier

import headrace as hr


# Tables are classes. A column says its type, its valid values, and when its value becomes known.
class Flights(hr.Source):
    flight_id: hr.Column[str] = hr.row_id()
    sched_dep: hr.Column[hr.Instant] = hr.event_time()
    carrier: hr.Column[str] = hr.entity(matches=r"[A-Z0-9]{2}")
    origin: hr.Column[str] = hr.entity(matches=r"[A-Z]{3}")
    dest: hr.Column[str] = hr.entity(matches=r"[A-Z]{3}")
    distance_km: hr.Column[float] = hr.column(ge=20, le=20_000, unit="km")
    tail: hr.Column[str | None] = hr.entity(known_at=sched_dep - "12h")  # assumption: assigned the evening before
    actual_dep: hr.Column[hr.Instant | None] = hr.column()  # named in known_at: known at its own value
    actual_arr: hr.Column[hr.Instant | None] = hr.column()
    dep_delay: hr.Column[float | None] = hr.column(unit="min", known_at=actual_dep, due=sched_dep + "24h")
    arr_delay: hr.Column[float | None] = hr.column(unit="min", known_at=actual_arr, due=sched_dep + "48h")

    known_at = sched_dep - "30d"  # the timetable; columns that say otherwise override it
    checks = hr.Checks(
        hr.null_rate(dep_delay) <= 0.10,  # counts only rows past `due`
        hr.row_count().within(0.5, of="7d"),
        bad_rows="quarantine",
    )


class Weather(hr.Source):
    origin: hr.Column[str] = hr.entity()
    hour: hr.Column[hr.Instant] = hr.event_time()
    temp: hr.Column[float | None] = hr.column(ge=-40, le=50, unit="degC")
    wind_speed: hr.Column[float | None] = hr.column(ge=0, le=150, unit="km/h")
    visibility: hr.Column[float | None] = hr.column(ge=0, le=20, unit="km")
    precip: hr.Column[float | None] = hr.column(ge=0, le=100, unit="mm")
    pressure: hr.Column[float | None] = hr.column(ge=900, le=1100, unit="hPa")
    humidity: hr.Column[float | None] = hr.column(ge=0, le=100, unit="%")

    row_id = hr.row_id(origin, hour)
    known_at = hour + "1h"  # an observation is published when its hour is over
    checks = hr.Checks(hr.foreign_key(origin, Flights.origin), hr.freshness() <= "3h")


# One definition per feature. Backfill, stream update and online read are derived from it.
class Origin(hr.FeatureGroup, of=Flights, entity=Flights.origin):
    dep_delay = hr.mean(Flights.dep_delay).over("1h", "3h", "24h")  # Origin.dep_delay["1h"]
    late = hr.rate(Flights.arr_delay > 15).over("24h", "7d")
    departures = hr.count(Flights.dep_delay).over("1h", "24h")


class Carrier(hr.FeatureGroup, of=Flights, entity=Flights.carrier):
    late = hr.rate(Flights.arr_delay > 15).over("24h", "7d")
    delay_p90 = hr.quantile(Flights.arr_delay, 0.9).over("24h", "7d")


class Dest(hr.FeatureGroup, of=Flights, entity=Flights.dest):
    late = hr.rate(Flights.arr_delay > 15).over("6h", "24h", "7d")
    arr_delay = hr.mean(Flights.arr_delay).over("6h", "24h")


class Desk(hr.FeatureGroup, of=Flights, entity=(Flights.carrier, Flights.origin)):
    dep_delay = hr.mean(Flights.dep_delay).over("3h")
    waiting = hr.max(Flights.dep_delay).over("3h")


class Aircraft(hr.FeatureGroup, of=Flights, entity=Flights.tail):
    arrived = hr.latest(Flights.arr_delay, max_age="1d")
    departed = hr.latest(Flights.dep_delay, max_age="1d")
    departures = hr.count(Flights.dep_delay).over("3h", "6h", "12h")
    arrivals = hr.count(Flights.arr_delay).over("1h", "3h", "6h")


class Sky(hr.FeatureGroup, of=Weather, entity=Weather.origin):
    now = hr.latest(
        Weather.temp,
        Weather.wind_speed,
        Weather.visibility,
        Weather.precip,
        Weather.pressure,
        Weather.humidity,
        max_age="3h",
    )
    rain = hr.max(Weather.precip).over("6h")


# Computations are functions of columns, bound explicitly. One function for history, stream and request.
@hr.on_demand(sched_dep=Flights.sched_dep)
def dep_hour(sched_dep: hr.Instant) -> int:
    return sched_dep.in_zone("America/New_York").hour


@hr.on_demand(sched_dep=Flights.sched_dep)
def weekday(sched_dep: hr.Instant) -> int:
    return sched_dep.in_zone("America/New_York").weekday()


dataset = hr.Dataset(  # one row per prediction, holding only what was known at that moment
    rows=Flights,
    at=Flights.sched_dep - "1h",
    features=[
        Flights.carrier,
        Flights.dest,
        Flights.distance_km,
        Origin,
        Carrier,
        Dest,
        Desk,
        Aircraft,
        Sky.on(Flights.origin),
        dep_hour,
        weekday,
    ],
    label=Flights.arr_delay > 15,
    mature="2d",  # a row trains only when this much has passed; what has no label by then is censored, and counted
)


@hr.train(
    dataset, split=hr.by_time(valid="14d", test="14d"), search=hr.Search(trials=20, metric="log_loss"), refit=True
)
def late_risk(data: hr.TrainingData, p: hr.Params) -> hr.Model:
    model = LGBMClassifier(
        n_estimators=200,
        num_leaves=p.int("num_leaves", 15, 127),
        learning_rate=p.float("learning_rate", 0.02, 0.2, log=True),
        min_child_samples=100,  # rows of one day share a fate: small leaves and whole rows learn days by heart
        colsample_bytree=0.5,
        subsample=0.7,
        subsample_freq=1,
        random_state=p.seed,
        n_jobs=p.threads,
        deterministic=True,
        verbose=-1,
    )
    return hr.model(model.fit(data.train.X, data.train.y))


# Policies are values. Every limit reads as a sentence: quantity, comparison, threshold.
pipeline = hr.Pipeline(
    model=late_risk,
    decision=hr.threshold(0.35),
    gates=[
        hr.metric("auc") >= 0.66,
        hr.metric("log_loss").beats_champion(confidence=0.95),
        hr.metric("auc", by=Flights.carrier, min_rows=500) >= 0.58,
        hr.gap("recall", by=Flights.origin) <= 0.20,
        hr.latency("p99") <= "15ms",
        hr.model_size() <= "20MB",
    ],
    endpoint=hr.Endpoint(cache="30s", fallback=0.2),
    rollout=hr.Rollout(
        unit=Flights.flight_id,
        steps=[hr.shadow("1d"), hr.canary(0.05, "1d", min_rows=40), hr.canary(0.25, "1d", min_rows=200)],
        abort_if=[
            hr.live("error_rate") > 0.001,
            hr.live("latency_p99") > "40ms",
            hr.live("prediction_psi", against="champion") > 0.2,
        ],
    ),
    monitors=[
        hr.when(hr.drift(dataset).unusual(windows="1d", k=2, n=3), every="1d").alert("ops"),
        hr.when(hr.live("auc", over="14d", matured="2d") < 0.68, every="1d").alert("ops").retrain(),
    ],
    retrain_on=[hr.every("45d"), hr.new_labels(40_000)],
)
