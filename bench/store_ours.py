"""Measure Headrace's side of `feature_store.py`: each workload is a context that gives a function of one repeat.

A repeat returns figures by case. Everything before the first repeat is set-up and not measured.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import redis
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

from headrace.features.asked import asked_of
from headrace.features.buckets import Spread, lanes_of
from headrace.features.history import History
from headrace.features.keys import Keys
from headrace.features.moment import open_read
from headrace.features.offline import OfflineFeatures, lane_events
from headrace.features.online import OnlineFeatures
from headrace.features.plan import FeaturePlan
from headrace.features.repair import backfill
from headrace.features.scan import scan
from headrace.features.stock import WholeStock
from headrace.features.stream import DATABASE, StreamPath
from headrace.pipelines.reveals import late_source, read_source, stream_reveals
from headrace.sources.plan import reveal_of
from headrace.sources.record import ARRIVAL, Reveal
from headrace.sources.run import batch_of
from headrace.storage.keyvalue import KeyValue, open_keyvalue
from headrace.storage.tables import Tables
from headrace.testing.servers import redis_server

Repeat = Callable[[], Mapping[str, float]]
EVER = 2**62
TABLES = FOLDER.parent / "headrace"
READS, LISTS, WARM, IN_WINDOW, KEYS = 10_000, 500, 200, 333, 300  # the first reads warm up, as in the peers' scripts
EVENTS = {"event": 2_000, "durable": 200, "batch": 10_000, "bulk": 40_000}  # of a repeat
PREFIX = "bench"
AHEAD = 120  # reads of every key's windows, six hours apart, that offline must repeat


def median_us(call: Callable[[Any], object], arguments: list[Any]) -> float:
    """Return the median microseconds of a call, when some have been made."""
    spent = []
    for argument in arguments[:WARM]:
        call(argument)
    for argument in arguments[WARM:]:
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
def store_url(kind: str) -> Iterator[str]:
    """Give the URL of an empty store: of LMDB, or of a Redis server of its own on loopback that syncs nothing."""
    with tempfile.TemporaryDirectory() as folder:
        if kind == "lmdb":
            yield f"lmdb:{folder}"
            return
        with redis_server(Path(folder), durable=False) as port:
            yield f"redis://127.0.0.1:{port}/0?prefix={PREFIX}&timeout=30s&commit=300s"


def view_plans() -> tuple[FeaturePlan, FeaturePlan]:
    """Return the plans of one view and of all three."""
    groups = [view(name, n) for name, n in VIEWS.items()]
    return plan_of(groups[-1]), plan_of(*groups)


def fill_views(store: KeyValue, plan: FeaturePlan) -> None:
    """Fill a store with the three views."""
    groups = {name: view(name, n) for name, n in VIEWS.items()}
    reveals = {source_of(g).name: reveals_of(g, pq.read_table(written(n)), True).table for n, g in groups.items()}
    sources = [source_of(group) for group in groups.values()]
    backfill(store, plan.groups, END, lambda: WholeStock(sources, reveals, END), lambda done, total: None)


def read_one(store: KeyValue, reader: OnlineFeatures[Any], key: int, t: int) -> Any:
    """Read one key's features as serving does; the vector is valid until the next read."""
    row = (key,)
    with store.read() as snapshot:
        get, at = open_read(store, snapshot, reader, [row], t, now=t)
        return reader.read(get, row, at)


def read_hundred(store: KeyValue, reader: OnlineFeatures[Any], keys: list[int], t: int) -> object:
    """Read many keys' features as arrays."""
    rows = [(key,) for key in keys]
    with store.read() as snapshot:
        get, at = open_read(store, snapshot, reader, rows, t, now=t)
        return reader.read_many(get, rows, at)


@contextmanager
def online(kind: str, prefix: str = "") -> Iterator[Repeat]:
    """Read 10 features of one view, and 50 of three, as a dictionary, and 50 of a hundred entities as arrays."""
    r, (few, many) = random.Random(7), view_plans()
    with store_url(kind) as url:
        with open_keyvalue(url, databases=[DATABASE]) as store:
            fill_views(store, many)
        with open_keyvalue(url, databases=[DATABASE], read_only=True) as store:
            reader_10, reader_50 = OnlineFeatures(few), OnlineFeatures(many)

            def repeat() -> Mapping[str, float]:
                keys, lists = asked_keys(r)
                found = {
                    "1x10": median_us(lambda key: read_one(store, reader_10, key, END).to_dict(), keys),
                    "1x50": median_us(lambda key: read_one(store, reader_50, key, END).to_dict(), keys),
                    "100x50": median_us(lambda keys: read_hundred(store, reader_50, keys, END), lists),
                }
                return {prefix + case: value for case, value in found.items()}

            yield repeat


def asked_keys(r: random.Random) -> tuple[list[int], list[list[int]]]:
    """Return the entities that a repeat asks for one by one, and those a hundred at a time."""
    keys = [r.randrange(ENTITIES) for _ in range(READS)]
    return keys, [[r.randrange(ENTITIES) for _ in range(100)] for _ in range(LISTS)]


@contextmanager
def over_http() -> Iterator[Repeat]:
    """Ask a bare ASGI application for 50 features of one entity, on one connection and on eight."""
    _, many = view_plans()
    with store_url("lmdb") as url:
        with open_keyvalue(url, databases=[DATABASE]) as store:
            fill_views(store, many)

        @contextmanager
        def opened() -> Iterator[Callable[[bytes], bytes]]:
            reader = OnlineFeatures(many)
            with open_keyvalue(url, databases=[DATABASE], read_only=True) as store:

                def answer(body: bytes) -> bytes:
                    return orjson.dumps(read_one(store, reader, orjson.loads(body)["entity_id"], END).to_dict())

                yield answer

        with served(opened) as repeat:
            yield repeat


def asked(name: str, group: type) -> tuple[pa.Table, NDArray[np.int64]]:
    """Return rows that bring a group's keys, and their moments."""
    labels = pq.read_table(written(name))
    return labels.select(["entity_id"]), labels["event_timestamp"].cast(pa.int64()).to_numpy()


def from_history(tables: Tables, plan: FeaturePlan, rows: pa.Table, t: NDArray[np.int64]) -> pa.Table:
    """Return rows' features as training and batch prediction compute them where buckets are as large as the table."""
    reveals = stream_reveals(tables, plan.sources, asked=asked_of(plan))
    with Spread(bucket_rows=EVER).past(plan.read, lanes_of(plan), reveals, EVER) as past:
        return OfflineFeatures(plan, past).compute(rows, t).table(plan)


@contextmanager
def join(size: str) -> Iterator[Repeat]:
    """Join ten features to labels, from Parquet files and the stored table to Arrow; both clocks."""
    group = joined()
    tables, plan = stored(TABLES, f"feats_{size}", group), plan_of(group)

    def go() -> pa.Table:
        return from_history(tables, plan, *asked(f"labels_{size}", group))

    yield lambda: {f"join_{size}": seconds(go)}


def labels_of(kind: str) -> tuple[pa.Table, NDArray[np.int64]]:
    """Return the labels of windows; for Zipf's law their keys are drawn from the events'."""
    rows, t = asked("labels_s", windows())
    if kind == "u":
        return rows, t
    keys = pq.read_table(written("events_z"), columns=["entity_id"])["entity_id"].combine_chunks()
    return pa.table({"entity_id": keys.take(pa.array(np.random.default_rng(11).integers(0, len(keys), len(t))))}), t


@contextmanager
def windows_in_memory(kind: str) -> Iterator[Repeat]:
    """Answer 28 windows of 100,000 labels from a lane's events in memory."""
    group, (rows, t) = windows(), labels_of(kind)
    lane = plan_of(group).groups[0].lanes[0]
    source = source_of(group)
    history = History.build(source, read_source(stored(TABLES, f"events_{kind}", group), source), EVER)
    events, known = lane_events(lane, history)
    del history
    query = Keys.of([rows["entity_id"]]).among(known)
    yield lambda: {f"windows_{kind}": seconds(lambda: scan(lane.lane, lane.outputs, events, query, t))}


@contextmanager
def windows_from_tables(kind: str) -> Iterator[Repeat]:
    """Answer 28 windows of 100,000 labels from the stored table to Arrow."""
    group, (rows, t) = windows(), labels_of(kind)
    tables, plan = stored(TABLES, f"events_{kind}", group), plan_of(group)
    yield lambda: {f"tables_{kind}": seconds(lambda: from_history(tables, plan, rows, t))}


def reveals_at(first: int, n: int, moments: list[int], r: random.Random) -> list[Reveal]:
    """Return n events of random keys as a stream's reader makes them."""
    source, found = source_of(windows()), []
    for i in range(n):
        event = {"event_id": first + i, "ts": moments[i], "entity_id": r.randrange(KEYS), "amount": r.expovariate(0.02)}
        found += reveal_of(source, event | {ARRIVAL: moments[i]})
    return found


class Events:
    """Apply events of windows to a store, in transactions of a stated size."""

    def __init__(self, store: KeyValue) -> None:
        self.store, self.plan, self.source = store, plan_of(windows()), source_of(windows()).name
        self.path, self.held, self.newest, self.r = StreamPath([self.plan]), 0, END, random.Random(7)

    def begin(self) -> list[Reveal]:
        """Give every key its events of 30 days; return them."""
        n = KEYS * IN_WINDOW
        past = reveals_at(10**9, n, [START + 61 * DAY + i * 30 * DAY // n for i in range(n)], self.r)
        self.apply(past, 10_000)
        return past

    def apply(self, reveals: list[Reveal], at_once: int) -> float:
        """Apply reveals and return the seconds of each."""
        began, remote = time.perf_counter(), self.store.capabilities.remote
        for i in range(0, len(reveals), at_once):
            part = reveals[i : i + at_once]
            with self.store.write() as transaction:
                if remote:
                    self.path.fetch(transaction, self.source, part)
                access = transaction.access(DATABASE)
                for reveal in part:
                    self.path.apply(access, self.source, reveal)
                self.newest = max(self.newest, part[-1].arrival)
                self.path.commit(access, self.newest, {self.source: i})
        return (time.perf_counter() - began) / len(reveals)

    def fresh(self, n: int) -> list[Reveal]:
        """Return n events that nobody has seen."""
        first, self.held = self.held, self.held + n
        return reveals_at(first, n, [END + first * 1_000 + i for i in range(n)], self.r)

    def alone(self, n: int) -> float:
        """Return the median microseconds of an event, its commit apart."""
        reveals = self.fresh(n)
        with self.store.write() as transaction:
            access = transaction.access(DATABASE)
            return median_us(lambda reveal: self.path.apply(access, self.source, reveal), reveals)

    def read(self) -> float:
        """Return the median microseconds of a read of one key's windows at the newest arrival."""
        reader, t = OnlineFeatures(self.plan), self.newest
        keys = [self.r.randrange(KEYS) for _ in range(READS)]
        return median_us(lambda key: read_one(self.store, reader, key, t), keys)


@contextmanager
def events() -> Iterator[Repeat]:
    """Apply events to keys that hold 333 each in 30 days, in transactions of several sizes."""
    with store_url("lmdb") as url, open_keyvalue(url, databases=[DATABASE]) as store:
        stream = Events(store)
        stream.begin()

        def repeat() -> Mapping[str, float]:
            return {
                "event": stream.alone(EVENTS["event"]),
                "durable": stream.apply(stream.fresh(EVENTS["durable"]), 1) * 1e6,
                "batch": 1 / stream.apply(stream.fresh(EVENTS["batch"]), 1_000),
                "bulk": 1 / stream.apply(stream.fresh(EVENTS["bulk"]), 10_000),
            }

        yield repeat


@contextmanager
def windowed_reads(kind: str, prefix: str = "") -> Iterator[Repeat]:
    """Read windows of 333 events."""
    with store_url(kind) as url, open_keyvalue(url, databases=[DATABASE]) as store:
        stream = Events(store)
        stream.begin()
        yield lambda: {f"{prefix}read": stream.read()}


@contextmanager
def parity() -> Iterator[Repeat]:
    """Read a million windowed values online, and count those whose bits or status offline does not repeat."""
    group = windows()
    with store_url("lmdb") as url, open_keyvalue(url, databases=[DATABASE]) as store:
        stream = Events(store)
        late = stream.fresh(20_000)
        reveals = stream.begin() + late
        stream.apply(late, 1_000)
        source = source_of(group)
        offline = OfflineFeatures(
            stream.plan, {source.name: History.build(source, batch_of(source, reveals).table, EVER)}
        )
        reader, rows = OnlineFeatures(stream.plan), [(key,) for key in range(KEYS)]
        keys = pa.table({"entity_id": np.tile(np.arange(KEYS), AHEAD)})
        moments = stream.newest + np.arange(AHEAD) * (DAY // 4)

        def repeat() -> Mapping[str, float]:
            expected = offline.compute(keys, np.repeat(moments, KEYS))
            words, status = [], []
            for t in moments.tolist():
                with store.read() as snapshot:
                    found = reader.read_many(snapshot.getter(DATABASE), rows, t)
                    words.append(found.words)
                    status.append(found.status)
            other = (np.concatenate(words) != expected.words) | (np.concatenate(status) != expected.status)
            return {"compared": other.size, "differing": int(other.sum())}

        yield repeat


def size_of(url: str) -> int:
    """Return the bytes that a store takes: of disk, or of Redis' memory."""
    kind, _, place = url.partition(":")
    if kind == "lmdb":
        return sum(os.stat(file).st_blocks * 512 for file in Path(place).iterdir())
    with redis.Redis.from_url(url.partition("?")[0]) as client:
        return int(client.info("memory")["used_memory"])


@contextmanager
def materialize(kind: str, prefix: str = "") -> Iterator[Repeat]:
    """Fill an empty store from the stored table with the newest row of every entity."""
    group = view("vm", 10)
    plan, tables, source = plan_of(group), stored(TABLES, "vm", group), source_of(group)
    rows = pq.ParquetFile(written("vm")).metadata.num_rows

    def repeat() -> Mapping[str, float]:
        with store_url(kind) as url, open_keyvalue(url, databases=[DATABASE]) as store:
            empty = size_of(url)

            def read() -> WholeStock:
                columns = asked_of(plan)[source.name]
                return WholeStock([source], {source.name: late_source(tables, source, columns=columns)}, END)

            took = seconds(lambda: backfill(store, plan.groups, END, read, lambda done, total: None))
            return {f"{prefix}materialize": rows / took, f"{prefix}size": (size_of(url) - empty) / rows}

    yield repeat


WORKLOADS: dict[str, Callable[[], AbstractContextManager[Repeat]]] = {
    "online": lambda: online("lmdb"),
    "redis": lambda: online("redis", "redis_"),
    "http": over_http,
    "join_s": lambda: join("s"),
    "join_l": lambda: join("l"),
    **{f"windows_{kind}": lambda kind=kind: windows_in_memory(kind) for kind in "uz"},  # type: ignore[misc]
    **{f"tables_{kind}": lambda kind=kind: windows_from_tables(kind) for kind in "uz"},  # type: ignore[misc]
    "events": events,
    "reads": lambda: windowed_reads("lmdb"),
    "redis_reads": lambda: windowed_reads("redis", "redis_"),
    "parity": parity,
    "materialize": lambda: materialize("lmdb"),
    "redis_materialize": lambda: materialize("redis", "redis_"),
}
