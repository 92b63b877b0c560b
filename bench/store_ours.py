"""Measure Headrace's side of `feature_store.py`: each workload is a context that gives a function of one repeat.

A repeat returns figures by case. Everything before the first repeat is set-up and not measured.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from store_data import (
    DAY,
    END,
    ENTITIES,
    FOLDER,
    START,
    VIEWS,
    joined,
    plan_of,
    reveals_of,
    source_of,
    stored,
    view,
    windows,
    written,
)
from store_http import served

from headrace.features.history import History
from headrace.features.keys import Keys
from headrace.features.offline import OfflineFeatures, lane_events
from headrace.features.online import OnlineFeatures
from headrace.features.plan import FeaturePlan
from headrace.features.repair import backfill
from headrace.features.stream import DATABASE, StreamPath
from headrace.features.windows import scan
from headrace.sources.plan import reveal_of
from headrace.sources.record import ARRIVAL, Reveal
from headrace.storage.keyvalue import KeyValue, open_keyvalue

Repeat = Callable[[], Mapping[str, float]]
EVER = 2**62
TABLES = FOLDER.parent / "headrace"
READS, LISTS, IN_WINDOW, KEYS = 1_000, 60, 333, 300


def median_us(call: Callable[[Any], object], arguments: list[Any]) -> float:
    """Return the median microseconds of a call."""
    spent = []
    for argument in arguments:
        began = time.perf_counter_ns()
        call(argument)
        spent.append(time.perf_counter_ns() - began)
    return float(np.median(spent)) / 1_000


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


@contextmanager
def filled_views() -> Iterator[tuple[str, FeaturePlan, FeaturePlan]]:
    """Fill an LMDB store with the three views; give its URL with the plans of one view and of all."""
    groups = {name: view(name, n) for name, n in VIEWS.items()}
    few, many = plan_of(groups["vc"]), plan_of(*groups.values())
    with tempfile.TemporaryDirectory() as folder:
        reveals = {source_of(g).name: reveals_of(g, pq.read_table(written(n)), True).table for n, g in groups.items()}
        with open_keyvalue(f"lmdb:{folder}", databases=[DATABASE]) as store:
            backfill(store, many.groups, END, lambda: reveals, lambda done, total: None)
        yield f"lmdb:{folder}", few, many


@contextmanager
def online() -> Iterator[Repeat]:
    """Read 10 features of one view, and 50 of three, as a dictionary, and 50 of a hundred entities as arrays."""
    r = random.Random(7)
    with filled_views() as (url, few, many), open_keyvalue(url, databases=[DATABASE], read_only=True) as store:
        reader_10, reader_50 = OnlineFeatures(few), OnlineFeatures(many)

        def one(reader: OnlineFeatures[Any], key: int) -> dict[str, Any]:
            with store.read() as snapshot:
                return reader.read(snapshot.getter(DATABASE), (key,), END).to_dict()

        def hundred(keys: list[int]) -> object:
            with store.read() as snapshot:
                return reader_50.read_many(snapshot.getter(DATABASE), [(key,) for key in keys], END)

        def repeat() -> Mapping[str, float]:
            keys = [r.randrange(ENTITIES) for _ in range(READS)]
            lists = [[r.randrange(ENTITIES) for _ in range(100)] for _ in range(LISTS)]
            return {
                "1x10": median_us(lambda key: one(reader_10, key), keys),
                "1x50": median_us(lambda key: one(reader_50, key), keys),
                "100x50": median_us(hundred, lists),
            }

        yield repeat


@contextmanager
def over_http() -> Iterator[Repeat]:
    """Ask a bare ASGI application for 50 features of one entity on one connection."""
    with filled_views() as (url, _, many):

        @contextmanager
        def opened() -> Iterator[Callable[[bytes], bytes]]:
            reader = OnlineFeatures(many)
            with open_keyvalue(url, databases=[DATABASE], read_only=True) as store:

                def answer(body: bytes) -> bytes:
                    with store.read() as snapshot:
                        key = orjson.loads(body)["entity_id"]
                        return orjson.dumps(reader.read(snapshot.getter(DATABASE), (key,), END).to_dict())

                yield answer

        with served(opened) as repeat:
            yield repeat


def asked(name: str, group: type) -> tuple[pa.Table, NDArray[np.int64]]:
    """Return rows that bring a group's keys, and their moments."""
    labels = pq.read_table(written(name))
    return labels.select(["entity_id"]), labels["event_timestamp"].cast(pa.int64()).to_numpy()


@contextmanager
def join(size: str) -> Iterator[Repeat]:
    """Join ten features to labels, from Parquet files and the stored table to Arrow; both clocks."""
    group = joined()
    tables, plan, name = stored(TABLES, f"feats_{size}", group), plan_of(group), source_of(group).name

    def go() -> pa.Table:
        rows, t = asked(f"labels_{size}", group)
        histories = {name: History.build(source_of(group), tables.read(f"feats_{size}"), EVER)}
        return OfflineFeatures(plan, histories).compute(rows, t).table(plan)

    yield lambda: {f"join_{size}": seconds(go)}


def asked_of(kind: str) -> tuple[pa.Table, NDArray[np.int64]]:
    """Return the labels of windows; for Zipf's law their keys are drawn from the events'."""
    rows, t = asked("labels_s", windows())
    if kind == "u":
        return rows, t
    keys = pq.read_table(written("events_z"), columns=["entity_id"])["entity_id"].combine_chunks()
    return pa.table({"entity_id": keys.take(pa.array(np.random.default_rng(11).integers(0, len(keys), len(t))))}), t


@contextmanager
def windows_in_memory(kind: str) -> Iterator[Repeat]:
    """Answer 28 windows of 100,000 labels from a lane's events in memory."""
    group, (rows, t) = windows(), asked_of(kind)
    lane = plan_of(group).groups[0].lanes[0]
    history = History.build(source_of(group), stored(TABLES, f"events_{kind}", group).read(f"events_{kind}"), EVER)
    events, known = lane_events(lane, history)
    del history
    query = Keys.of([rows["entity_id"]]).among(known)
    yield lambda: {f"windows_{kind}": seconds(lambda: scan(lane.lane, lane.outputs, events, query, t))}


@contextmanager
def windows_from_tables(kind: str) -> Iterator[Repeat]:
    """Answer 28 windows of 100,000 labels from the stored table to Arrow."""
    group, (rows, t) = windows(), asked_of(kind)
    tables, plan, name = stored(TABLES, f"events_{kind}", group), plan_of(group), source_of(group).name

    def go() -> pa.Table:
        histories = {name: History.build(source_of(group), tables.read(f"events_{kind}"), EVER)}
        return OfflineFeatures(plan, histories).compute(rows, t).table(plan)

    yield lambda: {f"tables_{kind}": seconds(go)}


def reveals_at(first: int, n: int, moments: list[int], r: random.Random) -> list[Reveal]:
    """Return n events of random keys as a stream's reader makes them."""
    source, found = source_of(windows()), []
    for i in range(n):
        event = {"event_id": first + i, "ts": moments[i], "entity_id": r.randrange(KEYS), "amount": r.expovariate(0.02)}
        found += reveal_of(source, event | {ARRIVAL: moments[i]})
    return found


@contextmanager
def events() -> Iterator[Repeat]:
    """Apply events to keys that hold 333 each in 30 days, in transactions of several sizes, and read windows."""
    group, r = windows(), random.Random(7)
    plan, source, past = plan_of(group), source_of(group).name, KEYS * IN_WINDOW
    with tempfile.TemporaryDirectory() as folder, open_keyvalue(f"lmdb:{folder}", databases=[DATABASE]) as store:
        path, reader, held = StreamPath([plan]), OnlineFeatures(plan), [0]

        def apply(reveals: list[Reveal], at_once: int) -> float:
            began = time.perf_counter()
            for i in range(0, len(reveals), at_once):
                with store.write() as transaction:
                    access = transaction.access(DATABASE)
                    for reveal in reveals[i : i + at_once]:
                        path.apply(access, source, reveal)
                    path.commit(access, reveals[min(i + at_once, len(reveals)) - 1].arrival, {source: i})
            return (time.perf_counter() - began) / len(reveals)

        def next_reveals(n: int) -> list[Reveal]:
            held[0] += n
            return reveals_at(held[0], n, [END + held[0] * 1_000 + i for i in range(n)], r)

        def no_commit(n: int) -> float:
            reveals = next_reveals(n)
            with store.write() as transaction:
                access = transaction.access(DATABASE)
                return median_us(lambda reveal: path.apply(access, source, reveal), reveals)

        apply(reveals_at(10**9, past, [START + 61 * DAY + i * 30 * DAY // past for i in range(past)], r), 10_000)

        def repeat() -> Mapping[str, float]:
            return {
                "event": no_commit(1_000),
                "durable": apply(next_reveals(100), 1) * 1e6,
                "batch": 1 / apply(next_reveals(5_000), 1_000),
                "bulk": 1 / apply(next_reveals(20_000), 10_000),
                "read": median_us(read_now(store, reader), [r.randrange(KEYS) for _ in range(READS)]),
            }

        yield repeat


def read_now(store: KeyValue, reader: OnlineFeatures[Any]) -> Callable[[int], object]:
    """Return a function that reads a key's windows at the newest arrival."""
    with store.read() as snapshot:
        t = StreamPath.newest(snapshot.getter(DATABASE)) or END

    def read(key: int) -> object:
        with store.read() as snapshot:
            return reader.read(snapshot.getter(DATABASE), (key,), t)

    return read


@contextmanager
def materialize(name: str) -> Iterator[Repeat]:
    """Fill an empty store from the stored table with the newest row of every entity."""
    group = view("vm", 10)
    plan, tables = plan_of(group), stored(TABLES, name, group)
    rows = pq.ParquetFile(written(name)).metadata.num_rows

    def repeat() -> Mapping[str, float]:
        with tempfile.TemporaryDirectory() as folder, open_keyvalue(f"lmdb:{folder}", databases=[DATABASE]) as store:
            began = time.perf_counter()
            source = source_of(group).name
            backfill(store, plan.groups, END, lambda: {source: tables.read(name)}, lambda done, total: None)
            return {"materialize": rows / (time.perf_counter() - began)}

    yield repeat


WORKLOADS: dict[str, Callable[[], AbstractContextManager[Repeat]]] = {
    "online": online,
    "http": over_http,
    "join_s": lambda: join("s"),
    "join_l": lambda: join("l"),
    **{f"windows_{kind}": lambda kind=kind: windows_in_memory(kind) for kind in "uz"},  # type: ignore[misc]
    **{f"tables_{kind}": lambda kind=kind: windows_from_tables(kind) for kind in "uz"},  # type: ignore[misc]
    "events": events,
    "materialize": lambda: materialize("vm"),
}
