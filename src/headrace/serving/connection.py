"""Bound the head of a request: uvicorn bounds no headers, and joins one that comes in pieces in quadratic time."""

from __future__ import annotations

from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


def connection(header_bytes: int) -> type[HttpToolsProtocol]:
    """Return uvicorn's connection, refusing a request whose path and headers pass so many bytes with status 431.

    A head that never ends is cut off at most one read (256 KiB) behind the limit. What is no HTTP is refused with 400. Both
    answers are JSON and close the connection.
    """

    class Connection(HttpToolsProtocol):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.in_head, self.head_read, self.head_size = False, 0, 0

        def data_received(self, data: bytes) -> None:
            continued = self.in_head
            super().data_received(data)
            # A read that begins a head may also end the body before it, so only those that go on with it count.
            if continued and self.in_head and not self.transport.is_closing():
                self.head_read += len(data)
                if self.head_read > header_bytes:
                    self.send_400_response("")

        def on_message_begin(self) -> None:
            self.in_head, self.head_read, self.head_size = True, 0, 0
            super().on_message_begin()

        def on_url(self, url: bytes) -> None:
            super().on_url(url)
            self._grow(len(url))

        def on_header(self, name: bytes, value: bytes) -> None:
            super().on_header(name, value)
            self._grow(len(name) + len(value) + 4)

        def on_headers_complete(self) -> None:
            self.in_head = False
            super().on_headers_complete()

        def _grow(self, size: int) -> None:
            self.head_size += size
            if self.head_size > header_bytes:
                raise ValueError("the head is too large")  # the parser stops, and uvicorn calls send_400_response

        def send_400_response(self, msg: str) -> None:
            if self.head_size > header_bytes or self.head_read > header_bytes:
                line = b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
                told = {"error": "the path and headers are too large", "next": f"at most {header_bytes} bytes"}
            else:
                line, told = b"HTTP/1.1 400 Bad Request\r\n", {"error": "not HTTP/1.1"}
            body = orjson.dumps(told)
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            self.transport.write(line + head + body)
            self.transport.close()

    return Connection
