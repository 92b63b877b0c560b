"""Measure the bare limits beside `store_ours.py`: what the storage or a query engine alone takes for the same answers.

Online: packed rows in LMDB, one read transaction each, decoded with `struct` or NumPy. Joins: DuckDB's ASOF join of the same
Parquet files, by event time alone. Windows: NumPy, float prefix sums and `reduceat`, keys sorted each time, not exact. Events:
a key's array of moments and values in LMDB, which grows behind. Materialize: DuckDB finds the newest row of each entity, NumPy
packs, LMDB takes sorted keys, Redis an MSET of 10,000. Reads of Redis: redis-py's MGET of the very bytes that ours reads.
"""

from __future__ import annotations

import random
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import duckdb
import lmdb
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import redis
from numpy.typing import NDArray
from store_data import DAY, END, ENTITIES, START, written
from store_http import served
from store_ours import (
    EVENTS,
    IN_WINDOW,
    KEYS,
    PREFIX,
    READS,
    Events,
    Repeat,
    asked_keys,
    fill_views,
    labels_of,
    median_us,
    read_one,
    seconds,
    size_of,
    store_url,
    view_plans,
)

from headrace.features.online import OnlineFeatures
from headrace.features.stream import DATABASE, NEWEST
from headrace.storage.keyvalue import KeyValue, open_keyvalue

AT_ONCE = 10_000
WINDOWS = (DAY // 24, DAY, 7 * DAY, 30 * DAY)
ROW = struct.Struct("<7sq30d15q" + "8s" * 5)  # nulls, moment, 50 features
NAMES = [f"f{i}" for i in range(50)]
PACKED = np.dtype([("nulls", "S7"), ("at", "<i8"), ("real", "<f8", 30), ("whole", "<i8", 15), ("text", "S8", 5)])
PAIR = np.dtype([("moment", "<i8"), ("value", "<f8")])
Floats = NDArray[np.float64]


def held(transaction: Any, key: int) -> Any:
    """Return an entity's value, which is there."""
    return transaction.get(key_of(key))


def key_of(entity: int) -> bytes:
    """Return an entity's key."""
    return struct.pack(">q", entity)


@contextmanager
def filled() -> Iterator[str]:
    """Fill LMDB with one packed row of 50 features for each entity; give its folder."""
    r = np.random.default_rng(7)
    with tempfile.TemporaryDirectory() as folder:
        with (
            lmdb.open(folder, map_size=1 << 28, sync=False) as environment,
            environment.begin(write=True) as transaction,
        ):
            for i in range(ENTITIES):
                texts = [b"%08x" % x for x in r.integers(0, 1 << 32, 5)]
                numbers = [*r.standard_normal(30).tolist(), *r.integers(0, 1 << 40, 15).tolist()]
                transaction.put(key_of(i), ROW.pack(b"\xff" * 7, END + i, *numbers, *texts))
        yield folder


@contextmanager
def online() -> Iterator[Repeat]:
    """Read packed rows."""
    r = random.Random(7)
    with filled() as folder, lmdb.open(folder, readonly=True, lock=False) as environment:

        def one(key: int, n: int = 50) -> dict[str, Any]:
            with environment.begin(buffers=True) as transaction:
                return dict(zip(NAMES[:n], ROW.unpack(held(transaction, key))[2 : n + 2], strict=True))

        def hundred(keys: list[int]) -> object:
            with environment.begin(buffers=True) as transaction:
                return np.frombuffer(b"".join([held(transaction, key) for key in keys]), PACKED)

        def repeat() -> Mapping[str, float]:
            keys, lists = asked_keys(r)
            of_ten = median_us(lambda key: one(key, 10), keys)
            return {"1x10": of_ten, "1x50": median_us(one, keys), "100x50": median_us(hundred, lists)}

        yield repeat


@contextmanager
def over_http() -> Iterator[Repeat]:
    """Send the packed row of 50 features as JSON."""
    with filled() as folder:

        @contextmanager
        def opened() -> Iterator[Callable[[bytes], bytes]]:
            with lmdb.open(folder, readonly=True, lock=False) as environment:

                def answer(body: bytes) -> bytes:
                    with environment.begin(buffers=True) as transaction:
                        row = ROW.unpack(held(transaction, orjson.loads(body)["entity_id"]))[2:]
                    texts = [text.decode() for text in row[45:]]
                    return orjson.dumps(dict(zip(NAMES, [*row[:45], *texts], strict=True)))

                yield answer

        with served(opened) as repeat:
            yield repeat


@contextmanager
def join(size: str) -> Iterator[Repeat]:
    """Join by DuckDB."""
    labels, rows = written(f"labels_{size}"), written(f"feats_{size}")
    columns = ", ".join(f"f.f{i}" for i in range(10))
    query = (
        f"SELECT l.*, {columns} FROM read_parquet('{labels}') l ASOF LEFT JOIN read_parquet('{rows}') f "
        "ON l.entity_id = f.entity_id AND l.event_timestamp >= f.event_timestamp"
    )
    yield lambda: {f"join_{size}": seconds(lambda: duckdb.connect().sql(query).to_arrow_table())}


def plain_windows(events: pa.Table, key: NDArray[np.int64], t: NDArray[np.int64]) -> list[Floats]:
    """Answer seven aggregates of four windows in floats."""
    base, span = START - 31 * DAY, 200 * DAY
    entity, values = events["entity_id"].to_numpy(), events["amount"].to_numpy()
    order, labels = np.argsort(entity, kind="stable"), np.lexsort((t, key))
    place = entity[order] * span + (events["ts"].cast(pa.int64()).to_numpy() - base)[order]
    key, t, values = key[labels], t[labels] - base, np.append(values[order], np.nan)
    sums, squares = (np.concatenate([[0.0], np.cumsum(v)]) for v in (values[:-1], values[:-1] ** 2))
    end, found = np.searchsorted(place, key * span + t), []
    for window in WINDOWS:
        start = np.searchsorted(place, key * span + t - window)
        n, total = end - start, sums[end] - sums[start]
        edges = np.stack([start, end], axis=1).ravel()
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = np.sqrt(np.maximum(squares[end] - squares[start] - total * total / n, 0.0) / (n - 1))
            found += [n.astype(np.float64), total, total / n, spread]
        for extreme in (np.minimum, np.maximum):
            found.append(np.where(n > 0, extreme.reduceat(values, edges)[::2], np.nan))
        found.append(np.where(n > 0, values[end - 1], np.nan))
    back = np.argsort(labels)
    return [column[back] for column in found]


@contextmanager
def windows(kind: str, case: str, from_file: bool) -> Iterator[Repeat]:
    """Answer windows by NumPy, from the Parquet file or from memory."""
    rows, t = labels_of(kind)
    key, columns = rows["entity_id"].to_numpy(), ["entity_id", "ts", "amount"]
    loaded = None if from_file else pq.read_table(written(f"events_{kind}"), columns=columns).combine_chunks()

    def go() -> object:
        events = loaded or pq.read_table(written(f"events_{kind}"), columns=columns).combine_chunks()
        return plain_windows(events, key, t)

    yield lambda: {f"{case}_{kind}": seconds(go)}


def plain_read(blob: bytes, t: int) -> list[float]:
    """Answer one key's windows from its array, in floats."""
    pairs, found = np.frombuffer(blob, PAIR), []
    moments, values = pairs["moment"], pairs["value"]
    end = int(np.searchsorted(moments, t))
    for window in WINDOWS:
        inside = values[int(np.searchsorted(moments, t - window)) : end]
        n, total = len(inside), float(inside.sum())
        found += [float(n), total, total / max(n, 1), float(inside.min(initial=np.inf))]
        found += [float(inside.max(initial=-np.inf)), float(inside.std(ddof=1)) if n > 1 else np.nan]
        found.append(float(inside[-1]) if n else np.nan)
    return found


@contextmanager
def arrays() -> Iterator[lmdb.Environment]:
    """Fill LMDB with an array of each key's events."""
    with (
        tempfile.TemporaryDirectory() as folder,
        lmdb.open(folder, map_size=1 << 30, metasync=False) as environment,
    ):
        past = np.zeros(IN_WINDOW, PAIR)
        past["moment"] = END - 30 * DAY + np.arange(IN_WINDOW) * (30 * DAY // IN_WINDOW)
        with environment.begin(write=True) as transaction:
            for i in range(KEYS):
                transaction.put(key_of(i), past.tobytes())
        yield environment


@contextmanager
def reads() -> Iterator[Repeat]:
    """Answer windows from arrays."""
    r = random.Random(7)
    with arrays() as environment:

        def read(key: int) -> object:
            with environment.begin() as transaction:
                return plain_read(held(transaction, key), END)

        yield lambda: {"read": median_us(read, [r.randrange(KEYS) for _ in range(READS)])}


@contextmanager
def events() -> Iterator[Repeat]:
    """Put events behind arrays."""
    r, clock = random.Random(7), [END]
    with arrays() as environment:

        def put(transaction: Any, key: int) -> None:
            clock[0] += 1
            transaction.put(key_of(key), held(transaction, key) + struct.pack("<qd", clock[0], 1.5))

        def apply(n: int, at_once: int) -> float:
            keys = [r.randrange(KEYS) for _ in range(n)]

            def go() -> None:
                for i in range(0, n, at_once):
                    with environment.begin(write=True) as transaction:
                        for key in keys[i : i + at_once]:
                            put(transaction, key)

            return seconds(go) / n

        def alone() -> float:
            with environment.begin(write=True) as transaction:
                return median_us(lambda key: put(transaction, key), [r.randrange(KEYS) for _ in range(EVENTS["event"])])

        def repeat() -> Mapping[str, float]:
            return {
                "event": alone(),
                "durable": apply(EVENTS["durable"], 1) * 1e6,
                "batch": 1 / apply(EVENTS["batch"], 1_000),
                "bulk": 1 / apply(EVENTS["bulk"], 10_000),
            }

        yield repeat


@contextmanager
def redis_online() -> Iterator[Repeat]:
    """Ask Redis for the bytes that ours reads, under the same keys, in one MGET; leave them as they are."""
    r, (few, many) = random.Random(7), view_plans()
    with store_url("redis") as url, redis.Redis.from_url(url.partition("?")[0]) as client:
        with open_keyvalue(url, databases=[DATABASE]) as store:
            fill_views(store, many)
            ten, fifty = (names_of(store, OnlineFeatures(plan), ENTITIES, END) for plan in (few, many))

        def repeat() -> Mapping[str, float]:
            keys, lists = asked_keys(r)
            return {
                "redis_1x10": median_us(lambda key: client.mget(ten[key]), keys),
                "redis_1x50": median_us(lambda key: client.mget(fifty[key]), keys),
                "redis_100x50": median_us(
                    lambda keys: client.mget(keys), [[name for key in keys for name in fifty[key]] for keys in lists]
                ),
            }

        yield repeat


@contextmanager
def redis_windows() -> Iterator[Repeat]:
    """Ask Redis for the bytes of a key's windows in one MGET."""
    r = random.Random(7)
    with store_url("redis") as url, redis.Redis.from_url(url.partition("?")[0]) as client:
        with open_keyvalue(url, databases=[DATABASE]) as store:
            stream = Events(store)
            stream.begin()
            names = names_of(store, OnlineFeatures(stream.plan), KEYS, stream.newest)
        yield lambda: {
            "redis_read": median_us(lambda n: client.mget(names[n]), [r.randrange(KEYS) for _ in range(READS)])
        }


def names_of(store: KeyValue, reader: OnlineFeatures[Any], entities: int, t: int) -> list[list[bytes]]:
    """Return under which names of Redis lies what a read of each entity takes."""
    found = []
    for key in range(entities):
        read_one(store, reader, key, t)
        found.append([f"{PREFIX}:v:{DATABASE}:".encode() + name for name in [NEWEST, *reader.guess([(key,)])]])
    return found


LAYOUT = np.dtype([("nulls", "S2"), ("at", "<i8"), ("real", "<f8", 6), ("whole", "<i8", 3), ("text", "S8")])


def newest_rows() -> list[tuple[bytes, bytes]]:
    """Find every entity's newest row by DuckDB, and pack it; keys ascend."""
    query = (
        f"SELECT entity_id, epoch_us(event_timestamp) AS at, columns('vm_.*') FROM read_parquet('{written('vm')}') "
        "QUALIFY row_number() OVER (PARTITION BY entity_id ORDER BY event_timestamp DESC, created DESC) = 1 "
        "ORDER BY entity_id"
    )
    table = duckdb.connect().sql(query).to_arrow_table()
    rows = np.zeros(len(table), LAYOUT)
    rows["at"] = table["at"].to_numpy()
    for i in range(6):
        rows["real"][:, i] = table[f"vm_{i}"].to_numpy()
    for i in range(3):
        rows["whole"][:, i] = table[f"vm_{6 + i}"].to_numpy()
    rows["text"] = np.array(table["vm_9"].to_pylist(), "S8")
    keys, values, size = table["entity_id"].to_numpy().astype(">i8").tobytes(), rows.tobytes(), LAYOUT.itemsize
    return [(keys[8 * i : 8 * i + 8], values[size * i : size * i + size]) for i in range(len(rows))]


@contextmanager
def materialize() -> Iterator[Repeat]:
    """Put the newest rows into LMDB, which takes sorted keys."""

    def repeat() -> Mapping[str, float]:
        rows: list[tuple[bytes, bytes]] = []
        with tempfile.TemporaryDirectory() as folder, lmdb.open(folder, map_size=1 << 32, sync=False) as environment:

            def go() -> None:
                rows.extend(newest_rows())
                with environment.begin(write=True) as transaction:
                    transaction.cursor().putmulti(rows, append=True)
                environment.sync(True)

            took = seconds(go)
            return {"materialize": len(rows) / took, "size": size_of(f"lmdb:{folder}") / len(rows)}

    yield repeat


@contextmanager
def redis_materialize() -> Iterator[Repeat]:
    """Send the newest rows to Redis, 10,000 to an MSET."""

    def repeat() -> Mapping[str, float]:
        rows: list[tuple[bytes, bytes]] = []
        with store_url("redis") as url, redis.Redis.from_url(url.partition("?")[0]) as client:
            empty = size_of(url)

            def go() -> None:
                rows.extend(newest_rows())
                for i in range(0, len(rows), AT_ONCE):
                    client.mset(dict(rows[i : i + AT_ONCE]))

            took = seconds(go)
            return {"redis_materialize": len(rows) / took, "redis_size": (size_of(url) - empty) / len(rows)}

    yield repeat


WORKLOADS: dict[str, Callable[[], AbstractContextManager[Repeat]]] = {
    "online": online,
    "redis": redis_online,
    "http": over_http,
    "join_s": lambda: join("s"),
    "join_l": lambda: join("l"),
    **{f"windows_{k}": lambda k=k: windows(k, "windows", False) for k in "uz"},  # type: ignore[misc]
    **{f"tables_{k}": lambda k=k: windows(k, "tables", True) for k in "uz"},  # type: ignore[misc]
    "events": events,
    "reads": reads,
    "redis_reads": redis_windows,
    "materialize": materialize,
    "redis_materialize": redis_materialize,
}
