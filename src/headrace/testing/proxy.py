"""Stand between a client and a real server on loopback, and break what is said between them."""

from __future__ import annotations

import select
import socket
import ssl
import struct
import threading
from contextlib import suppress


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
