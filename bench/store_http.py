"""Serve one function over HTTP in a process of its own, and ask it on one keep-alive connection."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import uvicorn

Repeat = Callable[[], Mapping[str, float]]
ASKED = 500


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
    """Serve what `opened` gives in a forked process, which alone opens it; give a repeat: median us of an answer."""
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
        yield lambda: {"http": ask(port)}
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
