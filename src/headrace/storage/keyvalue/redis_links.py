"""Keep connections to one Redis server: every call ends by its deadline, and a connection that failed is never used again.

redis-py counts its timeout anew for every piece of a reply, so a server that drips would hold a caller for minutes; here
one deadline holds for all of a call: waiting for a connection, opening it, sending, and the whole reply.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hiredis import pack_command
from redis.connection import Connection, SSLConnection
from redis.exceptions import AuthenticationError, ConnectionError, NoPermissionError, RedisError, ResponseError

from headrace.core.errors import ConfigurationError, HeadraceError, InternalError, Unavailable
from headrace.storage.keyvalue.errors import closed
from headrace.storage.keyvalue.location import Address

FAILURES = (RedisError, OSError, ValueError)
SENT_AT_ONCE = 1 << 16  # bytes of commands that are joined before they are sent
Command = tuple[bytes | str | int, ...]


class _BoundedSocket:
    """Pass everything on to a socket, with the time that is left until the deadline as its timeout."""

    def __init__(self, wrapped: socket.socket, deadline: _Deadline) -> None:
        self._wrapped, self._deadline = wrapped, deadline

    def recv(self, size: int) -> bytes:
        self._wrapped.settimeout(self._deadline.left())
        return self._wrapped.recv(size)

    def recv_into(self, buffer: Any, *more: Any) -> int:
        self._wrapped.settimeout(self._deadline.left())
        return self._wrapped.recv_into(buffer, *more)

    def sendall(self, data: bytes) -> None:
        self._wrapped.settimeout(self._deadline.left())
        self._wrapped.sendall(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)


class _Deadline:
    """Hold until when the call that uses a connection must end."""

    def __init__(self) -> None:
        self.at = 0.0

    def left(self) -> float:
        """Return the seconds that are left.

        Raises:
            TimeoutError: none.
        """
        left = self.at - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time for the call is over")
        return left


class _Bounded(Connection):
    """Open the connection and talk over it within the deadline."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self.deadline = _Deadline()
        super().__init__(*arguments, **settings)  # type: ignore[no-untyped-call]

    def _connect(self) -> Any:
        self._socket_connect_timeout = self._socket_timeout = self.deadline.left()
        return _BoundedSocket(super()._connect(), self.deadline)  # type: ignore[no-untyped-call]


class _BoundedTls(_Bounded, SSLConnection):
    """Do the same with TLS inside."""


class Link:
    """Talk over one connection; after a failure it is closed for good."""

    def __init__(self, connection: _Bounded) -> None:
        self._connection: Any = connection  # its methods are untyped
        self.used = False

    def call(self, commands: Sequence[Command], deadline: float) -> list[Any]:
        """Send commands in one go and return their replies; a reply may be a ResponseError of the command.

        Raises:
            RedisError, OSError, ValueError: the connection failed, in time; it is closed.
        """
        connection = self._connection
        connection.deadline.at = deadline
        whole = False
        try:
            packed = [pack_command(command) for command in commands]  # type: ignore[arg-type]  # the stub takes one part alone
            parts = [b"".join(packed)] if sum(map(len, packed)) < SENT_AT_ONCE else packed
            connection.send_packed_command(parts, check_health=False)
            replies = [self._reply() for _ in commands]
            whole = True
        finally:
            if not whole:
                self.close()
        self.used = True
        return replies

    def _reply(self) -> Any:
        try:
            return self._connection.read_response()
        except ResponseError as error:
            return error

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()

    @property
    def open(self) -> bool:
        """Tell whether the connection is there."""
        return bool(self._connection.is_connected)


class Links:
    """Lend connections to one server, at most `size` at a time.

    Args:
        address: where it listens.
        database: Redis's own database number.
        tls: whether TLS is spoken.
        authority: a PEM file of who signs the server's certificate, None for those that the system trusts.
        size: connections at most; who asks for one more waits, inside its deadline.
        where: names the store in errors, without a password.
    """

    def __init__(
        self, address: Address, *, database: int, tls: bool, authority: str | None, size: int, where: str
    ) -> None:
        self.where = where
        self._kind = _BoundedTls if tls else _Bounded
        self._settings: dict[str, Any] = {
            "host": address.host,
            "port": address.port,
            "db": database,
            "username": address.username,
            "password": address.password,
            "protocol": 2,
            "driver_info": None,
        } | ({"ssl_ca_certs": authority} if tls else {})
        self._free: list[Link] = []
        self._guard = threading.Lock()
        self._room = threading.BoundedSemaphore(size)
        self._size = size
        self.closed = False

    def ask(self, commands: Sequence[Command], seconds: float) -> list[Any]:
        """Return the replies to commands that may safely be sent twice.

        A connection that the server has closed since its last use is replaced once, within the same time.

        Raises:
            Unavailable: the server cannot be reached, or the time was over.
            ConfigurationError: it refuses this user, or a command of this store.
        """
        deadline = time.monotonic() + seconds
        while True:
            with self.lent(deadline) as link:
                try:
                    return self.checked(link.call(commands, deadline))
                except FAILURES as error:
                    if not self.stale(link, error):
                        raise self.translated(error) from error

    def stale(self, link: Link, error: Exception) -> bool:
        """Tell whether a failure only says that the server has closed the connection since its last use: try another.

        The other free connections are forgotten, so this is the case once in a call.
        """
        if not link.used or not isinstance(error, ConnectionError) or isinstance(error, AuthenticationError):
            return False
        self._drop_free()
        return True

    def checked(self, replies: list[Any]) -> list[Any]:
        """Return replies, none of which is an error.

        Raises:
            Unavailable, ConfigurationError: as `translated`.
        """
        for reply in replies:
            if isinstance(reply, ResponseError):
                raise self.translated(reply) from reply
        return replies

    def translated(self, error: Exception) -> HeadraceError:
        """Return our own error for one of redis-py or of the socket."""
        if isinstance(error, (AuthenticationError, NoPermissionError)):
            return ConfigurationError(
                "Redis refuses this user", where=self.where, got=error, next_step="check user, password and its ACL"
            )
        if isinstance(error, (ConnectionError, OSError)) or "imeout" in type(error).__name__:
            what, step = "Redis cannot be reached", "start it, or wait until it is back"
        else:
            what, step = "Redis failed", "look into Redis's log, then try again"
        return Unavailable(what, where=self.where, got=error, next_step=step)

    @contextmanager
    def lent(self, deadline: float) -> Iterator[Link]:
        """Lend a connection for the length of a `with` block; it comes back only if it is whole.

        Raises:
            Unavailable: the store is closed, or no connection came free in time.
        """
        link = self.take(deadline)
        try:
            yield link
        finally:
            self.give_back(link)

    def take(self, deadline: float) -> Link:
        """Lend a connection until `give_back`.

        Raises:
            Unavailable: the store is closed, or no connection came free in time.
        """
        if self.closed:
            raise closed(self.where)
        if not self._room.acquire(timeout=max(deadline - time.monotonic(), 0)):
            raise Unavailable(
                "every connection is in use",
                where=self.where,
                got=f"{self._size} connections",
                next_step="raise pool=… in the URL",
            )
        with self._guard:
            if self._free:
                return self._free.pop()
        return Link(self._kind(**self._settings))

    def give_back(self, link: Link) -> None:
        """Take a connection back; a failed one is forgotten."""
        with self._guard:
            if link.open and not self.closed:
                self._free.append(link)
            else:
                link.close()
        self._room.release()

    def _drop_free(self) -> None:
        with self._guard:
            for link in self._free:
                link.close()
            self._free.clear()

    def close(self) -> None:
        """Close every connection; those that are lent close when they come back."""
        self.closed = True
        self._drop_free()


def plural(replies: Any, count: int, where: str) -> list[Any]:
    """Return a reply that must be a list of `count` values.

    Raises:
        InternalError: it is none.
    """
    if not isinstance(replies, list) or len(replies) != count:
        raise InternalError("Redis answered something else than was asked", where=where, got=replies, expected=count)
    return replies
