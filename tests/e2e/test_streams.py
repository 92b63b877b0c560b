"""A project whose orders come from Kafka: `run` trains on them, `up` follows them, what cannot be read is looked after."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pyarrow.csv
import pytest
from confluent_kafka import Producer

from headrace.cli.template import write_project
from headrace.core.time import DAY, Instant, SystemClock, VirtualClock
from headrace.features.stream import DATABASE
from headrace.pipelines.dead_letters import replay_letters
from headrace.pipelines.project import Project, load_project
from headrace.pipelines.run import run
from headrace.pipelines.stores import open_stores
from headrace.pipelines.view import Silent
from headrace.storage.streams import open_streams
from headrace.testing.servers import kafka_broker

NOW = Instant.parse("2024-05-01")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with kafka_broker(tmp_path_factory.mktemp("kafka")) as port:
        yield f"kafka://127.0.0.1:{port}?partitions=3&ahead=52w"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, broker: str) -> Project:
    """Return the generated project, its orders sent to a topic: each when it is placed and again when it is delivered."""
    folder = tmp_path_factory.mktemp("streams") / "project"
    write_project(str(folder))
    file = folder / "orders.py"
    file.write_text(file.read_text().replace("trials=5", "trials=1"))
    (folder / "headrace.toml").write_text(
        f'[sources.Orders]\nstream = "orders"\nlateness = "1h"\n\n[stores]\nstreams = "{broker}"\n'
    )
    rows = pyarrow.csv.read_csv(folder / "data/orders.csv").to_pylist()
    (folder / "data/orders.csv").unlink()
    told: list[tuple[int, bytes, dict[str, Any]]] = []
    for row in rows:
        name, placed = row["order_id"].encode(), instant(row["placed"])
        told.append(
            (placed, name, {"order_id": row["order_id"], "placed": placed, "shop": row["shop"], "items": row["items"]})
        )
        if row["hours"] is not None:
            delivered = instant(row["delivered"])
            told.append((delivered, name, {"order_id": row["order_id"], "delivered": delivered, "hours": row["hours"]}))
    told.sort(key=lambda one: one[:2])
    with open_streams(broker, clock=VirtualClock(Instant(told[0][0]))) as streams:
        streams.append("orders", [b"{", b'{"order_id": "x1", "placed": "soon"}'], keys=[b"a", b"b"])
    producer = Producer({"bootstrap.servers": broker.removeprefix("kafka://").partition("?")[0]})  # as others would
    for stamp, name, body in told:
        producer.produce("orders", json.dumps(body), key=name, timestamp=stamp // 1_000)
        producer.poll(0)
    assert producer.flush(30) == 0
    return load_project("orders:pipeline", folder=folder)


def instant(moment: Any) -> int:
    return int(Instant.parse(moment if isinstance(moment, str) else f"{moment:%Y-%m-%dT%H:%M:%S}Z"))


def test_run_trains_on_a_topic_and_does_nothing_the_second_time(project: Project) -> None:
    clock = VirtualClock(NOW)
    view = run(project, state=None, seed=0, progress=Silent(), clock=clock)
    assert view["outcome"] == "promoted"
    with open_stores(project, None, clock=clock, write=False) as stores:
        digest, rows = stores.online.digest(DATABASE), stores.tables.read("reveals_orders").num_rows
        assert rows > 12_000
        letters = stores.tables.read("dead_letters_orders")
        assert sorted(letters["payload"].to_pylist()) == [b"{", b'{"order_id": "x1", "placed": "soon"}']
    assert run(project, state=None, seed=0, progress=Silent(), clock=clock)["run"] == view["run"]
    with open_stores(project, None, clock=clock, write=False) as stores:
        assert (stores.online.digest(DATABASE), stores.tables.read("reveals_orders").num_rows) == (digest, rows)


def test_up_follows_the_topic_and_shows_how_far_it_is(project: Project, broker: str) -> None:
    command = [sys.executable, "-m", "headrace.cli", "up", "orders:pipeline", "--port", "0", "--json"]
    process = subprocess.Popen(command, cwd=project.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        clock = SystemClock()
        with open_streams(broker, clock=clock) as streams:
            body = {"order_id": "n1", "placed": clock.now().isoformat(), "shop": "shop-3", "items": 4}
            late = body | {"order_id": "n2", "placed": Instant(clock.now() - 2 * DAY).isoformat()}
            for event in (body, late):
                streams.append("orders", [json.dumps(event).encode()], keys=[b"one key"])
        page = wait_for(lambda: metrics(text := get(f"{url}/metrics"), "headrace_stream_late_total") == 1 and text)
        assert metrics(page, "headrace_dead_letters") == 2
        assert metrics(page, "headrace_stream_lag") == 0
        assert metrics(page, "headrace_stream_watermark_seconds") > 1.7e9
        assert metrics(page, "headrace_stream_events_total") > 7_000
        replayed = replay_letters(project, None, [], state=None)  # beside the server
        assert [(one["replayed"], one["left"]) for one in replayed["sources"]] == [(0, 2)]
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors


def wait_for(what: Any) -> Any:
    for _ in range(150):
        if found := what():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not come")


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
        return text


def metrics(page: str, name: str) -> float:
    return sum(float(value) for value in re.findall(rf"^{name}{{.*}} (\S+)$", page, re.MULTILINE))
