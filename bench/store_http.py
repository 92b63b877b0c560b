"""Serve one function over HTTP in a process of its own, and ask it on one keep-alive connection or on eight."""

from __future__ import annotations

import asyncio
import http.client
import os
import signal
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import uvicorn
import uvloop

Repeat = Callable[[], Mapping[str, float]]
ASKED, CONNECTIONS, ASKED_AT_ONCE = 500, 8, 5_000


def application(answer: Callable[[bytes], bytes]) -> Any:
    """Return an ASGI application without a framework that answers every body."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        found = answer(body)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(found)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": found})

    return app


@contextmanager
def served(opened: Callable[[], AbstractContextManager[Callable[[bytes], bytes]]]) -> Iterator[Repeat]:
    """Serve what `opened` gives in a forked process, which alone opens it; give a repeat: median us of an answer, answers a second."""
    listening = socket.create_server(("127.0.0.1", 0))
    port, child = listening.getsockname()[1], os.fork()
    if child == 0:
        try:
            with opened() as answer:
                config = uvicorn.Config(application(answer), log_level="error", access_log=False, lifespan="off")
                uvicorn.Server(config).run(sockets=[listening])
        finally:
            os._exit(0)
    listening.close()
    try:
        yield lambda: {"http": ask(port), "http_rate": rate(port)}
    finally:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)


def ask(port: int) -> float:
    """Return the median microseconds of an answer on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    spent = []
    for i in range(ASKED):
        began = time.perf_counter_ns()
        connection.request("POST", "/", b'{"entity_id": %d}' % (i * 7 % 10_000), {"content-type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200 or not answer.read():
            raise RuntimeError(f"the server answered {answer.status}")
        spent.append(time.perf_counter_ns() - began)
    connection.close()
    return statistics.median(spent[50:]) / 1_000


class _Asking(asyncio.Protocol):
    """Send a request, and the next as soon as an answer is there, until a shared number of them is used up."""

    def __init__(self, entities: Iterator[int], ended: asyncio.Future[None]) -> None:
        self.entities, self.ended, self.received = entities, ended, b""

    def connection_made(self, transport: Any) -> None:
        """Send the first."""
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        """Send the next."""
        entity = next(self.entities, None)
        if entity is None:
            self.transport.close()
            return
        body = b'{"entity_id": %d}' % (entity * 7 % 10_000)
        self.transport.write(b"POST / HTTP/1.1\r\nhost: bench\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    def data_received(self, data: bytes) -> None:
        """Go on where the answer is whole; any other than 200 ends the measurement."""
        self.received += data
        head, found, body = self.received.partition(b"\r\n\r\n")
        if found and len(body) >= int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]):
            if not head.startswith(b"HTTP/1.1 200"):
                self.ended.set_exception(RuntimeError(f"the server answered {head[:40]!r}"))
            self.received = b""
            self.ask()

    def connection_lost(self, error: Exception | None) -> None:
        """End."""
        if not self.ended.done():
            self.ended.set_result(None)


def rate(port: int) -> float:
    """Return the answers of a second on several connections."""

    async def go() -> float:
        loop, entities = asyncio.get_running_loop(), iter(range(ASKED_AT_ONCE))
        ends = [loop.create_future() for _ in range(CONNECTIONS)]
        began = time.perf_counter()
        for end in ends:
            await loop.create_connection(partial(_Asking, entities, end), "127.0.0.1", port)
        await asyncio.gather(*ends)
        return ASKED_AT_ONCE / (time.perf_counter() - began)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(go())
