"""Keys whose newest values were taken back are refilled from history."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import headrace as hr
from headrace.core.time import DAY, HOUR
from headrace.features.history import History
from headrace.features.lane_plan import LanePlan
from headrace.features.offline import OfflineFeatures
from headrace.features.online import OnlineFeatures
from headrace.features.plan import plan_features
from headrace.features.record import REBUILD
from headrace.features.repair import backfill, repair
from headrace.features.stock import Stock
from headrace.features.stream import DATABASE, StreamPath
from headrace.sources.definition import definition_of
from headrace.sources.plan import reveal_of
from headrace.sources.record import ARRIVAL, Reveal
from headrace.sources.run import batch_of
from headrace.storage.keyvalue import KeyValue, open_keyvalue
from tests.stock import stock_of

HOURS, TAKEN_BACK = 400, 150


class Readings(hr.Source):
    reading: hr.Column[str] = hr.row_id()
    at: hr.Column[hr.Instant] = hr.event_time()
    meter: hr.Column[str] = hr.entity()
    level: hr.Column[float | None] = hr.column()
    note: hr.Column[str | None] = hr.column()


class Meter(hr.FeatureGroup, of=Readings, entity=Readings.meter):
    now = hr.latest(Readings.level, Readings.note)
    day = hr.count(Readings.level).over("24h", "36h")


SOURCE, PLAN = definition_of(Readings), plan_features([Meter], "test")


def reveals() -> list[Reveal]:
    """Return hourly readings of two meters, and then, a day later, that of one most of the newest had no level."""
    found: list[Reveal] = []
    for meter in ("a", "b"):
        for i in range(HOURS):
            event: dict[str, Any] = {"reading": f"{meter}{i}", "at": i * HOUR, "meter": meter, "level": float(i)}
            found += reveal_of(
                SOURCE, {**event, "note": ["n{}", "note {} of the meter"][i % 2].format(i), ARRIVAL: i * HOUR}
            )
    end = HOURS * HOUR + DAY
    for i in range(HOURS - TAKEN_BACK, HOURS):
        event = {"reading": f"a{i}", "at": i * HOUR, "meter": "a", "level": None, "note": None, ARRIVAL: end + i}
        found += reveal_of(SOURCE, event)
    return sorted(found, key=lambda r: r.arrival)


@pytest.fixture
def store() -> Iterator[KeyValue]:
    with open_keyvalue("memory:", databases=[DATABASE]) as opened:
        path = StreamPath([PLAN])
        with opened.write() as transaction:
            access = transaction.access(DATABASE)
            for reveal in reveals():
                path.apply(access, "Readings", reveal)
            path.commit(access, max(r.arrival for r in reveals()), {})
        yield opened


def online(store: KeyValue, meter: str, t: int) -> tuple[dict[str, Any], list[int]]:
    with store.read() as snapshot:
        vector = OnlineFeatures(PLAN).read(snapshot.getter(DATABASE), [meter], t)
        return vector.to_dict(), vector.status.tolist()


def test_until_a_key_is_repaired_its_latest_values_are_unknown_and_then_those_of_history(store: KeyValue) -> None:
    batch = batch_of(SOURCE, reveals())
    t = max(r.arrival for r in reveals())
    before, status = online(store, "a", t)
    assert before["Meter.now[level]"] is None and REBUILD in status
    asked: list[tuple[str, int]] = []

    def read(lane: LanePlan, keys: pa.Array) -> pa.Table:
        asked.append((lane.columns[0].name, len(keys)))
        return batch.table

    with store.write() as transaction:
        waiting = repair(transaction, PLAN, read)
    with store.write() as transaction:
        assert repair(transaction, PLAN, read) == 0
    assert sum(keys for _, keys in asked) == waiting > 0
    assert len(asked) == len(set(asked))
    for meter in ("a", "b"):
        after, status = online(store, meter, t)
        keys = pa.table({"meter": [meter]})
        history = {"Readings": History.build(SOURCE, batch.table, t)}
        offline = OfflineFeatures(PLAN, history).compute(keys, np.array([t]))
        wanted = offline.table(PLAN).to_pylist()[0]
        assert after == wanted
        assert status == offline.status[0].tolist()
    assert online(store, "a", t)[0]["Meter.now[level]"] == float(HOURS - TAKEN_BACK - 1)


def test_a_repair_knows_nothing_that_was_not_applied_yet(store: KeyValue) -> None:
    later = reveal_of(
        SOURCE,
        {"reading": "new", "at": HOURS * HOUR, "meter": "a", "level": 7.0, "note": "x", ARRIVAL: 2 * HOURS * HOUR},
    )
    table = batch_of(SOURCE, [*reveals(), *later]).table
    with store.write() as transaction:
        repair(transaction, PLAN, lambda lane, keys: table)
    assert online(store, "a", 3 * HOURS * HOUR)[0]["Meter.now[level]"] == float(HOURS - TAKEN_BACK - 1)


def corrected(number: int, level: float, arrival: int) -> list[Reveal]:
    event = {"reading": f"b{number}", "at": number * HOUR, "meter": "b", "level": level, "note": "c", ARRIVAL: arrival}
    return reveal_of(SOURCE, event)


def stock(table: pa.Table, newest: int) -> Stock:
    return stock_of([SOURCE], PLAN.groups, {"Readings": table}, newest)


def as_offline(store: KeyValue, found: list[Reveal], t: int) -> None:
    """Compare every meter's features with history."""
    table = batch_of(SOURCE, found).table
    meters = pa.table({"meter": ["a", "b", "c"]})
    histories = {"Readings": History.build(SOURCE, table, t)}
    offline = OfflineFeatures(PLAN, histories).compute(meters, np.full(3, t))
    for place, meter in enumerate(meters["meter"].to_pylist()):
        values, status = online(store, meter, t)
        assert values == offline.table(PLAN).to_pylist()[place]
        assert status == offline.status[place].tolist()


def test_a_row_of_a_filled_group_can_be_corrected(store: KeyValue) -> None:
    """What was filled from history carries its row's identity, else its correction would stand beside it."""
    known = reveals()
    newest = max(r.arrival for r in known)
    backfill(store, PLAN.groups, newest, lambda: stock(batch_of(SOURCE, known).table, newest), lambda done, total: None)
    t = newest + HOUR
    known += corrected(HOURS - 2, -5.0, t) + corrected(HOURS - 1, -7.0, t)
    with store.write() as transaction:
        for reveal in known[-2:]:
            StreamPath([PLAN]).apply(transaction.access(DATABASE), "Readings", reveal)
    as_offline(store, known, t)


def test_a_backfill_never_overwrites_what_a_stream_applied_meanwhile(store: KeyValue) -> None:
    """New events, corrections, a row that changes its key and one that comes back: each lands between two commits."""
    path, before = StreamPath([PLAN]), reveals()
    newest = max(r.arrival for r in before)
    table, later = batch_of(SOURCE, before).table, []
    for i in range(40):
        later += corrected(HOURS - 1 - i, -float(i), newest + i)
    later += reveal_of(SOURCE, {"reading": "b7", "at": HOURS * HOUR, "meter": "c", "level": 1.0, ARRIVAL: newest + 50})
    later += reveal_of(SOURCE, {"reading": "a9", "at": HOURS * HOUR, "meter": "b", "level": 2.0, ARRIVAL: newest + 50})

    def apply(reveals: list[Reveal]) -> None:
        with store.write() as transaction:
            access = transaction.access(DATABASE)
            for reveal in reveals:
                path.apply(access, "Readings", reveal)
            path.commit(access, max(path.newest(access.get) or 0, *(r.arrival for r in reveals)), {})

    def told(done: int, total: int) -> None:
        apply(later[20:])

    def read() -> Stock:
        apply(later[:20])
        return stock(table, newest)

    backfill(store, PLAN.groups, newest, read, told)
    as_offline(store, [*before, *later], newest + HOUR)
    whole = batch_of(SOURCE, [*before, *later]).table  # what is applied was stored before
    backfill(store, PLAN.groups, newest, lambda: stock(whole, newest), lambda done, total: None)
    as_offline(store, [*before, *later], newest + HOUR)


@pytest.mark.parametrize("rows", [3, 60, 700])
def test_a_filled_group_holds_the_bytes_that_the_stream_would_have_left(rows: int) -> None:
    """So a correction finds its row's old event, whoever put it there."""
    found = [r for r in reveals() if int(r.values[0][1:]) < rows]
    table, newest = batch_of(SOURCE, found).table, max(r.arrival for r in found)
    held: list[list[tuple[bytes, bytes]]] = []
    for filled in (True, False):
        with open_keyvalue("memory:", databases=[DATABASE]) as opened:
            path = StreamPath([PLAN])
            if filled:
                assert (
                    backfill(opened, PLAN.groups, newest, lambda: stock(table, newest), lambda done, total: None) == 2
                )
            else:
                living = {(r.row_id, r.places): r for r in found}
                with opened.write() as transaction:
                    for reveal in sorted(living.values(), key=lambda r: (r.values[1], r.arrival)):
                        path.apply(transaction.access(DATABASE), "Readings", reveal)
            with opened.read() as snapshot:
                held.append([row for letter in (b"L", b"T") for row in snapshot.items(DATABASE, letter)])
    assert held[0] == held[1]
