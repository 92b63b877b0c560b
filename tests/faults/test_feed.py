"""Streams taken in under faults end in the state of an undisturbed run: kills, zombies, rebalances, a broker that is gone.

The events are thousands of good, partial, doubled, reordered and late ones, mixed with those that cannot be read (R11).
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from headrace.core.errors import Conflict
from headrace.core.time import HOUR, MINUTE, Instant, SystemClock
from headrace.features.online import OnlineFeatures
from headrace.features.stream import COMMITS, DATABASE, StreamPath
from headrace.pipelines.project import Project
from headrace.pipelines.stores import APART, APPLIED, CONTROL, Stores, open_stores
from headrace.sources.record import ARRIVAL, CONTENT, ROW_ID
from headrace.storage.streams import open_streams
from headrace.testing.servers import free_port, kafka_broker, redis_server
from tests.online import applied_digest

WORKER = Path(__file__).with_name("feed_worker.py")
_SPEC = importlib.util.spec_from_file_location("feed_worker", WORKER)
assert _SPEC is not None
assert _SPEC.loader is not None
worker = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(worker)

START = Instant.parse("2026-01-01")
ORDERS = 800
BAD = [b"", b"{", b"[1]", b"\xff\xfe", b'{"items": 3}', b'{"order_id": 7, "placed": "2026-01-01T00:00:00Z"}', b"null"]
STEPS = ("begun", "stored", "lettered", "applied")


def events(seed: int) -> tuple[list[tuple[bytes, bytes]], int]:
    """Return records with their keys, and how many of them cannot be read."""
    rng, found, bad = random.Random(seed), [], 0
    for number in range(ORDERS):
        name, placed = f"o{number}", Instant(START + number * MINUTE - rng.randrange(3) * HOUR)
        body: dict[str, Any] = {"order_id": name, "placed": placed.isoformat(), "shop": f"shop-{rng.randrange(9)}"}
        body["items"] = 0 if rng.random() < 0.02 else rng.randint(1, 12)  # 0 breaks a rule: quarantine
        delivered = {"order_id": name, "delivered": Instant(placed + HOUR).isoformat(), "hours": rng.random() * 40}
        found.append((name.encode(), json.dumps(body).encode()))
        found.append((name.encode(), json.dumps(delivered).encode()))
        if rng.random() < 0.1:
            found.append(found[-rng.randint(1, 2)])
        if rng.random() < 0.3:
            found.append((b"%d" % number, rng.choice(BAD)))
            bad += 1
    for place in range(len(found) - 40):  # reordering, up to 40 records away
        other = place + rng.randrange(40)
        found[place], found[other] = found[other], found[place]
    return found, bad


RECORDS, UNREADABLE = events(5)


class Proxy:
    """Stand between clients and a server, so that the server can disappear and come back."""

    def __init__(self) -> None:
        self.port, self.target = free_port(), 0
        self.listening: socket.socket | None = None
        self.pairs: list[socket.socket] = []

    def open(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self.listening,), daemon=True).start()

    def cut(self) -> None:
        assert self.listening is not None
        self.listening.shutdown(socket.SHUT_RDWR)
        self.listening.close()
        for one in self.pairs:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self.pairs.clear()

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                near, _ = listening.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                return
            self.pairs += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=_pump, args=(one, other), daemon=True).start()


def _pump(one: socket.socket, other: socket.socket) -> None:
    try:
        while data := one.recv(1 << 16):
            other.sendall(data)
    except OSError:
        return


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    found = Proxy()
    found.open()
    yield found
    found.cut()


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory, proxy: Proxy) -> Iterator[str]:
    """Return the URL of a broker that holds the records in four partitions, behind the proxy."""
    with kafka_broker(tmp_path_factory.mktemp("kafka"), advertised=proxy.port) as port:
        proxy.target = port
        url = f"kafka://127.0.0.1:{proxy.port}"
        fill(f"{url}?partitions=4", worker.TOPIC)
        fill(f"{url}?partitions=1", worker.ORDERED)
        yield f"{url}?partitions=4"


def fill(url: str, stream: str) -> None:
    with open_streams(url, clock=SystemClock()) as streams:
        for start in range(0, len(RECORDS), 500):
            part = RECORDS[start : start + 500]
            streams.append(stream, [data for _, data in part], keys=[key for key, _ in part])


@pytest.fixture(scope="module")
def undisturbed(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what a run without faults leaves."""
    return drained(worker.streaming(kafka), tmp_path_factory.mktemp("undisturbed") / "state")


def drained(project: Project, state: Path) -> dict[str, Any]:
    clock = SystemClock()
    with open_stores(project, str(state), clock=clock, write=True) as stores:
        feed = worker.feed_of(project, stores, clock)
        assert sum(feed.drain(lambda _: None).values()) == len(RECORDS)
        feed.close()
        feed.streams.close()
        return outcome(stores, project)


def outcome(stores: Stores, project: Project) -> dict[str, Any]:
    """Return everything that a run left.

    The online store's digest is that of the order in which events were applied, the values at some moments are not: of
    several partitions now one is ahead and now another.
    """
    reveals = stores.tables.read("reveals_orders", columns=[ROW_ID, ARRIVAL, CONTENT]).to_pylist()
    letters = stores.tables.read("dead_letters_orders").to_pylist()
    broken = stores.tables.read("quarantine").to_pylist()
    return {
        "online": applied_digest(stores.online),
        "values": values(stores, project),
        "reveals": Counter(tuple(row.values()) for row in reveals),
        "letters": Counter((r["id"], r["reason"], r["payload"], r["arrival"], r["offset"]) for r in letters),
        "quarantine": Counter((r["row_id"], r["arrival"], r["reason"], r["payload"]) for r in broken),
    }


def values(stores: Stores, project: Project) -> list[tuple[Any, ...]]:
    """Return every row, and every shop's features at moments after the last arrival and long before it."""
    features, found = OnlineFeatures(project.plan), []
    with stores.online.read() as snapshot:
        get = snapshot.getter(DATABASE)
        newest = StreamPath.newest(get)
        assert newest is not None
        for shop in range(9):
            for back in (0, 1, 12, 100, 1_000):
                t = newest - back * HOUR
                row = {"order_id": "x", "placed": t, "shop": f"shop-{shop}", "items": 3}
                vector = features.read(get, [row.get(column.name) for column in project.plan.row], t)
                found.append((shop, t, *vector.to_dict().items()))
        rows = [item for item in snapshot.items(DATABASE) if not item[0].startswith((b"L", APPLIED, APART, COMMITS))]
    return [*found, *rows]


def outcome_of(project: Project, state: Path) -> dict[str, Any]:
    with open_stores(project, str(state), clock=SystemClock(), write=False) as stores:
        return outcome(stores, project)


def begun(project: Project, state: Path) -> Path:
    """Create a state folder that several workers then share."""
    with open_stores(project, str(state), clock=SystemClock(), write=True):
        return state


def start(
    state: Path, url: str, failpoints: str = "", *, stream: str = worker.TOPIC, batch: int = worker.BATCH
) -> subprocess.Popen[str]:
    command = [sys.executable, str(WORKER), str(state), url, stream, str(len(RECORDS)), str(batch)]
    environment = {**os.environ, "HEADRACE_FAILPOINTS": failpoints}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def lines(process: subprocess.Popen[str], wanted: str) -> None:
    """Wait until a worker says something that begins so."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(wanted):
            return
    assert process.stderr is not None
    raise AssertionError(process.stderr.read())


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Tell whether two runs over several partitions left the same."""
    return {k: v for k, v in found.items() if k != "online"} == {k: v for k, v in expected.items() if k != "online"}


@contextmanager
def ended(*processes: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_nothing_good_is_lost_and_everything_bad_is_a_letter(undisturbed: dict[str, Any]) -> None:
    letters, reveals = undisturbed["letters"], undisturbed["reveals"]
    assert letters.total() == UNREADABLE > 200
    assert all(reason and payload in BAD for _, reason, payload, _, _ in letters)
    assert set(letters.values()) == {1}
    assert len({row_id for row_id, _, _ in reveals}) == ORDERS
    assert 10 < undisturbed["quarantine"].total() < 100


def test_workers_killed_between_any_two_steps_leave_the_undisturbed_state_bit_for_bit(
    kafka: str, tmp_path: Path
) -> None:
    project = worker.streaming(kafka, worker.ORDERED)
    expected = drained(project, tmp_path / "undisturbed")
    state = begun(project, tmp_path / "state")
    for hit, step in enumerate(STEPS):
        point = f"feed.{step}:kill:{1 + hit // 2}"
        killed = start(state, kafka, point, stream=worker.ORDERED, batch=worker.BATCH - 70 * hit)
        killed.communicate(timeout=60)
        assert killed.returncode == -signal.SIGKILL, step
    last = start(state, kafka, stream=worker.ORDERED)
    last.communicate(timeout=60)
    assert last.returncode == 0
    assert outcome_of(project, state) == expected


def under_way(stores: Stores, batch: int) -> bool:
    """Tell whether a worker is in its n-th batch."""
    with stores.online.read() as snapshot:
        states = [worker.PartitionState.load(blob) for _, blob in snapshot.items(CONTROL, b"stream/Orders/")]
    return sum(one.batch for one in states) == batch and any(one.count for one in states)


def test_a_zombie_changes_nothing_when_it_wakes(kafka: str, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    """It slept between reading and committing, while another one took its partitions to the end."""
    project = worker.streaming(kafka)
    state = begun(project, tmp_path / "state")
    zombie = start(state, kafka, "feed.lettered:sleep=5:2")
    with ended(zombie):
        lines(zombie, "ready")
        with open_stores(project, str(state), clock=SystemClock(), write=False) as stores:
            while not under_way(stores, 2):
                time.sleep(0.05)
        time.sleep(1)
        zombie.send_signal(signal.SIGSTOP)
        heir = start(state, kafka)
        heir.communicate(timeout=60)
        assert heir.returncode == 0
        zombie.send_signal(signal.SIGCONT)
        assert same(outcome_of(project, state), undisturbed)
        lines(zombie, Conflict.code)
        lines(zombie, "done")
    assert same(outcome_of(project, state), undisturbed)


def test_a_group_that_is_rebalanced_and_loses_a_member_by_kill(
    kafka: str, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    url = f"{kafka}&group=g{os.getpid()}&session.timeout.ms=6000&heartbeat.interval.ms=300"
    project = worker.streaming(url)
    state = begun(project, tmp_path / "state")
    first, second = start(state, url, batch=20), start(state, url, batch=20)
    with ended(first, second):
        lines(first, "took")
        lines(second, "took")
        second.send_signal(signal.SIGKILL)
        third = start(state, url)
        with ended(third):
            lines(first, "done")
            lines(third, "done")
    assert same(outcome_of(project, state), undisturbed)


def test_a_broker_that_disappears_and_comes_back(
    kafka: str, undisturbed: dict[str, Any], proxy: Proxy, tmp_path: Path
) -> None:
    project = worker.streaming(kafka)
    state = begun(project, tmp_path / "state")
    working = start(state, kafka, "feed.begun:sleep=0.5")
    with ended(working):
        with open_stores(project, str(state), clock=SystemClock(), write=False) as stores:
            while not under_way(stores, 3):
                time.sleep(0.05)
        proxy.cut()
        lines(working, "unavailable")
        proxy.open()
        lines(working, "done")
    assert same(outcome_of(project, state), undisturbed)


def test_redis_with_its_server_killed_and_workers_too(tmp_path: Path) -> None:
    """Arrivals are this stream's own, so it has an undisturbed run of its own."""
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    project = worker.streaming(url)
    state = begun(project, tmp_path / "state")
    with redis_server(tmp_path / "redis", port=port):
        fill(url, worker.TOPIC)
        expected = drained(project, tmp_path / "undisturbed")
        clock = SystemClock()
        with open_stores(project, str(state), clock=clock, write=True) as stores:
            feed = worker.feed_of(project, stores, clock)
            feed.take_in()
            feed.streams.close()
    with redis_server(tmp_path / "redis", port=port):
        killed = start(state, url, "feed.stored:kill:1")
        killed.communicate(timeout=60)
        clock = SystemClock()
        with open_stores(project, str(state), clock=clock, write=True) as stores:
            feed = worker.feed_of(project, stores, clock)
            feed.drain(lambda _: None)
            feed.close()
            feed.streams.close()
            assert outcome(stores, project) == expected
