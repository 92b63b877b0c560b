"""The oracle: offline, online and the naive reference give the same features, bit for bit, for any log of reveals.

A generated log (partial, duplicate, late, tied, null, corrected and moved reveals) is pushed in some order of arrival
through the real online path, with reads in between. The same moments are then asked offline and of the reference.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

import headrace as hr
from headrace.core.expressions import Column
from headrace.core.identity import encode_key
from headrace.features.history import History
from headrace.features.offline import OfflineFeatures
from headrace.features.online import OnlineFeatures
from headrace.features.plan import DatasetPlan, plan_dataset
from headrace.features.record import OK
from headrace.features.stream import DATABASE, StreamPath
from headrace.sources.content import content_of
from headrace.sources.definition import SourceDefinition, definition_of
from headrace.sources.plan import reveal_schema
from headrace.sources.record import Reveal
from headrace.storage.keyvalue import open_keyvalue
from headrace.testing import reference

HOUR = 3_600_000_000
WORDS = ["", "a", "ü", "a word of more characters", "another word of more"]


class Trips(hr.Source):
    trip: hr.Column[str] = hr.row_id()
    start: hr.Column[hr.Instant] = hr.event_time()
    driver: hr.Column[str | None] = hr.entity()
    zone: hr.Column[int | None] = hr.entity()
    ended: hr.Column[hr.Instant | None] = hr.column()
    fare: hr.Column[float | None] = hr.column(known_at=ended)
    stops: hr.Column[int | None] = hr.column(known_at=ended)
    rated: hr.Column[bool | None] = hr.column(known_at=ended)
    note: hr.Column[str | None] = hr.column(known_at=ended)


class Driver(hr.FeatureGroup, of=Trips, entity=Trips.driver):
    fare = hr.mean(Trips.fare).over("1h", "6h", "24h")
    total = hr.sum(Trips.fare).over("6h", fill=0)
    spread = hr.stddev(Trips.fare).over("24h")
    low = hr.min(Trips.fare).over("6h")
    high = hr.max(Trips.fare).over("6h")
    paid = hr.count(Trips.fare).over("1h", "24h")
    liked = hr.rate(Trips.rated).over("24h")
    median = hr.quantile(Trips.fare, 0.5).over("6h", "24h")
    stops = hr.sum(Trips.stops).over("24h")
    long = hr.count(where=Trips.stops > 2).over("24h")
    dear = hr.mean(Trips.stops, where=Trips.fare > 5).over("6h")
    last = hr.latest(Trips.fare, Trips.stops, Trips.note, max_age="3h")


class Zone(hr.FeatureGroup, of=Trips, entity=(Trips.zone, Trips.driver)):
    trips = hr.count().over("6h")
    most = hr.max(Trips.stops).over("24h")
    rated = hr.latest(Trips.rated)


DATASET = hr.Dataset(rows=Trips, at=Trips.start, features=[Driver, Zone], label=Trips.fare > 3, mature="1d")
PLAN: DatasetPlan = plan_dataset(DATASET)
SOURCE: SourceDefinition = definition_of(Trips)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "fare": st.one_of(
        st.none(), st.sampled_from([0.1, 0.2, 0.3, 1e16, -1e16, -0.0, 0.0, 7.25, 5e-324, 1e300]), st.floats(-1e6, 1e6)
    ),
    "stops": st.one_of(st.none(), st.integers(-3, 9), st.sampled_from([2**53 + 1, -(2**61)])),
    "rated": st.one_of(st.none(), st.booleans()),
    "note": st.one_of(st.none(), st.sampled_from(WORDS)),
    "driver": st.one_of(st.none(), st.sampled_from("XY")),
    "zone": st.one_of(st.none(), st.sampled_from([1, 2])),
    "start": st.integers(0, 30).map(lambda h: h * HOUR),
    "ended": st.one_of(st.none(), st.integers(0, 60).map(lambda h: h * HOUR // 2)),
}


@st.composite
def reveals(draw: st.DrawFn) -> Reveal:
    names = draw(st.sets(st.sampled_from(sorted(VALUES)), min_size=1))
    trip = draw(st.sampled_from(["t1", "t2", "t3", "t4", "t5", "t6"]))
    stated: dict[Column[Any], Any] = {SOURCE.by_name[n]: draw(VALUES[n]) for n in sorted(names)}
    stated[SOURCE.by_name["trip"]] = trip
    places = tuple(sorted(SOURCE.index[c] for c in stated))
    values = tuple(stated[SOURCE.columns[p]] for p in places)
    row_id = encode_key([trip])
    assert row_id is not None
    return Reveal(draw(st.integers(0, 40)) * HOUR, row_id, places, values, content_of(places, values))


def bits(value: Any) -> Any:
    return struct.pack("<d", value) if isinstance(value, float) else value


def table_of(log: list[Reveal]) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in reveal_schema(SOURCE).names}
    for reveal in log:
        cells = dict(zip(reveal.places, reveal.values, strict=True))
        fixed = [reveal.row_id, reveal.arrival, sum(1 << p for p in reveal.places), reveal.content]
        for name, value in zip(list(columns)[:4], fixed, strict=True):
            columns[name].append(value)
        for place, column in enumerate(SOURCE.columns):
            columns[column.name].append(cells.get(place))
    return pa.table(columns, schema=reveal_schema(SOURCE))


ROW = {"driver": "X", "zone": 1}


def answers_online(log: list[Reveal], row: list[Any], asked: list[int], random: Any) -> list[list[Any]]:
    """Push what has arrived by each moment in any order, with copies, and read; each moment in a transaction of its own."""
    reader, found, waiting = OnlineFeatures(PLAN), [], sorted(log, key=lambda r: r.arrival)
    with open_keyvalue("memory:", databases=[DATABASE]) as store:
        for t in asked:
            batch = [r for r in waiting if r.arrival <= t]
            waiting = [r for r in waiting if r.arrival > t]
            batch += random.sample(batch, len(batch) // 2)
            random.shuffle(batch)
            path = StreamPath([PLAN])
            with store.write() as transaction:
                for reveal in batch:
                    path.apply(transaction.access(DATABASE), "Trips", reveal)
            with store.read() as snapshot:
                found.append([bits(v) for v in reader.read(snapshot.getter(DATABASE), row, t).to_dict().values()])
    return found


@settings(max_examples=120)
@given(st.lists(reveals(), max_size=40), st.lists(st.integers(0, 45), min_size=1, max_size=4), st.randoms())
def test_offline_online_and_the_reference_agree_to_the_bit(log: list[Reveal], hours: list[int], random: Any) -> None:
    asked = sorted({h * HOUR for h in hours})
    row = [ROW.get(c.name) for c in SOURCE.columns]
    online = answers_online(log, row, asked, random)
    rows = pa.table(
        {
            c.name: pa.array([row[i]] * len(asked), reveal_schema(SOURCE).field(c.name).type)
            for i, c in enumerate(SOURCE.columns)
        }
    )
    histories = {"Trips": History.build(SOURCE, table_of(log), max(asked))}
    values = OfflineFeatures(PLAN, histories).compute(rows, np.array(asked, np.int64)).table(PLAN)
    for t, got, offline in zip(asked, online, values.to_pylist(), strict=True):
        wanted = [bits(v) for v in reference.features(PLAN, [("Trips", r) for r in log], row, t)]
        names = [c.name for c in PLAN.columns]
        assert dict(zip(names, got, strict=True)) == dict(zip(names, wanted, strict=True))
        assert dict(zip(names, [bits(v) for v in offline.values()], strict=True)) == dict(
            zip(names, wanted, strict=True)
        )


def test_status_says_why_a_value_is_missing() -> None:
    vector = OnlineFeatures(PLAN).read(lambda key: None, [None] * len(SOURCE.columns), 0)
    assert (vector.status != OK).all()
