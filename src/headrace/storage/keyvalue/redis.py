"""Keep keys and values in one Redis server (6.2 or newer), the same bytes under the same keys as in LMDB.

In Redis, for `prefix=NAME` (`headrace` unless said):

    NAME:v:DATABASE:KEY   a value
    NAME:k:DATABASE       the keys of a database, a sorted set of equal scores: they walk in the order of bytes
    NAME:format           which layout this is
    NAME:lease            who writes now; it expires when its writer dies
    NAME:fence            who wrote or writes last; a commit watches it, so a writer that lost its lease commits nothing
"""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from redis.exceptions import ExecAbortError, ResponseError

from headrace.core.errors import BadUrl, ConfigurationError, Conflict, Unavailable
from headrace.core.failpoints import reach
from headrace.storage.keyvalue.errors import absent, closed, damaged, other_format, other_writer, unknown_database
from headrace.storage.keyvalue.lease import Keeper
from headrace.storage.keyvalue.location import WHERE, Address, Option, read_address, read_options
from headrace.storage.keyvalue.pending import Changes, PendingTransaction
from headrace.storage.keyvalue.protocol import Capabilities, Get, digest_rows
from headrace.storage.keyvalue.redis_links import FAILURES, Command, Link, Links, plural

FORMAT = b"headrace keyvalue 1"
PORT = 6379
PAGE = 1_000  # rows of one step of a walk
GROUP_KEYS, GROUP_BYTES = 5_000, 8 << 20  # at most so much in one command
RENEWALS = 3  # of a lease in its own length
RETRY_SECONDS = 0.001, 0.05  # a waiting writer asks again after the first, then after longer and longer
OPTIONS = {
    option.name: option
    for option in (
        Option("prefix", "text", "headrace"),
        Option("timeout", "duration", 0.25, 0.001, 60),
        Option("commit", "duration", 30.0, 0.01, 3_600),
        Option("lease", "duration", 10.0, 0.05, 3_600),
        Option("wait", "duration", 30.0, 0.001, 3_600),
        Option("pool", "number", 16, 2, 10_000),
        Option("ca", "text", ""),
    )
}
CAPABILITIES = Capabilities(snapshot=False, transactions=True, durable=True, processes=True, remote=True)
_PREFIX = re.compile(r"[A-Za-z0-9_.-]{1,64}")

TAKE = """
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('SET', KEYS[2], ARGV[1])
return 1
"""
RENEW = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0"
RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
# One page of a walk is of one moment: keys and values are read by one script.
WALK = """
local keys = redis.call('ZRANGEBYLEX', KEYS[1], ARGV[1], ARGV[2], 'LIMIT', 0, ARGV[3])
local values = {}
for i, key in ipairs(keys) do values[i] = redis.call('GET', ARGV[4] .. key) end
return {keys, values}
"""


class RedisKeyValue:
    """Implement the store on one Redis server; any number of processes on any hosts may open it.

    Args:
        location: `//[USER:PASSWORD@]HOST[:PORT][/NUMBER][?SETTINGS]`, where the settings are
            prefix: the name under which all keys stand, "headrace" unless said;
            timeout: for a read, from asking for a connection to the whole reply, 250ms;
            commit: for a commit, and for reads inside a transaction, 30s;
            lease: after how long a dead writer's place is free, 10s;
            wait: how long a writer waits for another, 30s;
            pool: connections at most, 16;
            ca: for `rediss:`, a PEM file of the authority that signed the server's certificate; else the system's.
        databases: the names that it holds.
        read_only: refuse to create and to write.
        tls: speak TLS (`rediss:`).
    """

    def __init__(self, location: str, *, databases: Sequence[str], read_only: bool = False, tls: bool = False) -> None:
        scheme = "rediss" if tls else "redis"
        address = read_address(location, scheme, PORT)
        settings = read_options(address.query, OPTIONS, scheme)
        prefix, number = str(settings["prefix"]), _number(address)
        if not _PREFIX.fullmatch(prefix):
            raise BadUrl("not a prefix", where=WHERE, got=prefix, expected="1 to 64 letters, digits, _, . or -")
        self._where = f"{scheme}://{address.host}:{address.port}/{number}?prefix={prefix}"
        self._timeout, self._commit = float(settings["timeout"]), float(settings["commit"])
        self._lease, self._wait = float(settings["lease"]), float(settings["wait"])
        self._read_only = read_only
        self._prefix = prefix.encode()
        self._databases = {name: _Names(self._prefix, name.encode()) for name in databases}
        self._links = Links(
            address,
            database=number,
            tls=tls,
            authority=str(settings["ca"]) or None,
            size=int(settings["pool"]),
            where=self._where,
        )
        self._writing = threading.Lock()
        self._keeper = Keeper("headrace-redis-lease", self._lease / RENEWALS, self._renew)
        self._ensure_fit()

    @property
    def capabilities(self) -> Capabilities:
        """Return what this backend can do."""
        return CAPABILITIES

    def read(self) -> _RedisRead:
        """Open a view for the length of a `with` block; each of its calls sees one moment, a later one a later moment."""
        return _RedisRead(self)

    def write(self) -> _RedisWrite:
        """Open a transaction for the length of a `with` block; it commits unless the block raises."""
        return _RedisWrite(self)

    def _renew(self, token: bytes) -> None:
        milliseconds = int(self._lease * 1_000)
        self._links.ask([("EVAL", RENEW, 1, self._key(b"lease"), token, milliseconds)], self._timeout)

    def digest(self, *databases: str) -> str:
        """Return the SHA-256 of all rows in key order; nobody may write meanwhile."""
        with self.read() as view:
            return digest_rows(view, databases or tuple(self._databases))

    def close(self) -> None:
        """Release the store; later calls raise Unavailable."""
        self._keeper.close()
        self._links.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ensure_fit(self) -> None:
        """Raise unless the server is one that keeps what it is given, and the stored layout is this one."""
        try:
            self._refuse_server(_facts(self._links.ask([("INFO",)], self._commit)[0]))
            name = self._key(b"format")
            mark: list[Command] = [] if self._read_only else [("SET", name, FORMAT, "NX")]
            *_, held = self._links.ask([*mark, ("GET", name)], self._commit)
            if held is None:
                raise absent(self._where)
            if held != FORMAT:
                raise other_format(self._where, str(held), FORMAT.decode(), "choose another prefix=…")
        except BaseException:
            self._links.close()
            raise

    def _refuse_server(self, facts: Mapping[str, str]) -> None:
        version = facts.get("redis_version", "0")
        if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < (6, 2):
            raise ConfigurationError("Redis is too old", where=self._where, got=version, expected="6.2 or newer")
        if facts.get("cluster_enabled") == "1":
            raise ConfigurationError(
                "Redis Cluster cannot apply a transaction over several of its parts",
                where=self._where,
                got="cluster_enabled:1",
                expected="one Redis server, with replicas or without",
                next_step="name another server in [stores] keyvalue",
            )
        if facts.get("maxmemory", "0") != "0" and facts.get("maxmemory_policy", "").startswith("allkeys"):
            raise ConfigurationError(
                "Redis may drop any key when its memory is full, and features would silently be wrong",
                where=self._where,
                got=f"maxmemory-policy {facts['maxmemory_policy']}",
                expected="maxmemory-policy noeviction",
                next_step="redis-cli CONFIG SET maxmemory-policy noeviction",
            )

    def _key(self, name: bytes) -> bytes:
        return self._prefix + b":" + name

    def _names(self, database: str) -> _Names:
        try:
            return self._databases[database]
        except KeyError:
            raise unknown_database(database, self._databases, self._where) from None


def tls_redis(location: str, **settings: Any) -> RedisKeyValue:
    """Open a store over TLS, for `rediss:`; the server's certificate must be one that this machine trusts."""
    return RedisKeyValue(location, tls=True, **settings)


class _Names:
    """Hold under which names a database stands."""

    def __init__(self, prefix: bytes, database: bytes) -> None:
        self.index = prefix + b":k:" + database
        self.value = prefix + b":v:" + database + b":"


class _RedisView:
    """Read the store as it is; each call sees one moment.

    With a `link` all goes over that connection, a transaction's own: with another one its watch would be lost.
    """

    def __init__(self, store: RedisKeyValue, link: Link | None = None) -> None:
        self._store, self._link = store, link

    def get(self, database: str, key: bytes) -> bytes | None:
        """Return the value of a key, or None."""
        return self.get_many(database, [key])[0]

    def get_many(self, database: str, keys: Iterable[bytes]) -> list[bytes | None]:
        """Return the values of keys, in their order, all as they were at one moment: one MGET."""
        prefix = self._store._names(database).value
        names = [prefix + key for key in keys]
        if not names:
            return []
        return plural(self._replies([("MGET", *names)], self._store._timeout)[0], len(names), self._store._where)

    def getter(self, database: str) -> Get:
        """Return the function that reads one database, a round trip a key; ask `get_many` for several."""
        self._store._names(database)
        return lambda key: self.get_many(database, [key])[0]

    def items(self, database: str, prefix: bytes = b"", after: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Walk the rows whose key begins with `prefix`, in key order, those above `after` only; a page is of one moment."""
        names = self._store._names(database)
        low = b"(" + after if after is not None and after >= prefix else b"[" + prefix
        high = _end(prefix)
        while True:
            command: Command = ("EVAL", WALK, 1, names.index, low, high, PAGE, names.value)
            keys, values = plural(self._replies([command], self._store._commit)[0], 2, self._store._where)
            for key, value in zip(keys, values, strict=True):
                if value is None:
                    raise damaged(self._store._where, f"no value for key {key[:80]!r}")
                yield key, value
            if len(keys) < PAGE:
                return
            low = b"(" + keys[-1]

    def count(self, database: str) -> int:
        """Return the number of rows."""
        (found,) = self._replies([("ZCARD", self._store._names(database).index)], self._store._timeout)
        return int(found)

    def _replies(self, commands: list[Command], seconds: float) -> list[Any]:
        links = self._store._links
        if self._link is None:
            return links.ask(commands, seconds)
        try:
            return links.checked(self._link.call(commands, time.monotonic() + max(seconds, self._store._commit)))
        except FAILURES as error:
            raise links.translated(error) from error


class _RedisRead:
    """Open a view; it holds nothing on the server."""

    def __init__(self, store: RedisKeyValue) -> None:
        self._store = store

    def __enter__(self) -> _RedisView:
        if self._store._links.closed:
            raise closed(self._store._where)
        return _RedisView(self._store)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave nothing behind: the view holds nothing."""


class _RedisWrite:
    """Take the writer's lease, and commit when the block ends well and nobody took it over."""

    def __init__(self, store: RedisKeyValue) -> None:
        self._store = store
        self._token = uuid.uuid4().hex.encode()

    def __enter__(self) -> PendingTransaction:
        store = self._store
        if store._read_only:
            raise Unavailable("the store was opened for reading only", where=store._where)
        deadline = time.monotonic() + store._wait
        if not store._writing.acquire(timeout=store._wait):
            raise self._busy("another thread's transaction is open")
        try:
            self._link = store._links.take(deadline)
            try:
                self._take_lease(deadline)
            except BaseException:
                store._links.give_back(self._link)
                raise
        except BaseException:
            store._writing.release()
            raise
        store._keeper.hold(self._token)
        self._transaction = PendingTransaction(_RedisView(store, self._link), store._where)
        return self._transaction

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        store, committed = self._store, False
        try:
            if kind is None:
                reach("keyvalue.before_commit")
                if any(self._transaction.changes.values()):
                    self._commit()
                    committed = True
                reach("keyvalue.after_commit")
        except OSError as failure:
            raise Unavailable("the store could not be written", where=store._where, got=failure) from failure
        finally:
            store._keeper.let_go()
            store._links.give_back(self._link)
            try:
                if not committed:
                    self._release()
            finally:
                store._writing.release()

    def _take_lease(self, deadline: float) -> None:
        """Wait until no other writer is there; from here on a commit of another one is noticed."""
        store = self._store
        lease, fence = store._key(b"lease"), store._key(b"fence")
        take: Command = ("EVAL", TAKE, 2, lease, fence, self._token, int(store._lease * 1_000))
        commands: list[Command] = [("UNWATCH",), take, ("WATCH", fence), ("GET", fence)]
        pause, longest = RETRY_SECONDS
        while True:
            until = max(min(time.monotonic() + store._commit, deadline), time.monotonic() + store._timeout)
            try:
                _, taken, _, held = store._links.checked(self._link.call(commands, until))
            except FAILURES as error:
                if store._links.stale(self._link, error):
                    store._links.give_back(self._link)
                    self._link = store._links.take(deadline)
                    continue
                raise store._links.translated(error) from error
            if taken and held == self._token:
                return
            if time.monotonic() + pause > deadline:
                raise self._busy("another process writes")
            time.sleep(pause)
            pause = min(pause * 2, longest)

    def _busy(self, got: str) -> Unavailable:
        return other_writer(self._store._where, got, self._store._wait)

    def _commit(self) -> None:
        """Send all changes as one MULTI; the server applies them all at once, or none if the fence has moved."""
        store = self._store
        commands: list[Command] = [("MULTI",)]
        for database, changed in self._transaction.changes.items():
            commands += _writes(store._names(database), changed)
        commands += [("DEL", store._key(b"lease")), ("EXEC",)]
        try:
            *queued, applied = self._link.call(commands, time.monotonic() + store._commit)
        except FAILURES as error:
            failure = store._links.translated(error)
            failure.next_step = "run it again: the transaction was applied as a whole, or not at all"
            raise failure from error
        if isinstance(applied, ExecAbortError):
            refused = next((reply for reply in queued if isinstance(reply, ResponseError)), applied)
            raise store._links.translated(refused) from refused
        if applied is None:
            raise Conflict(
                "another writer took over while this transaction was open; nothing was written",
                where=store._where,
                got=f"no renewal of the lease within {store._lease:g} s",
                next_step="run it again; if processes pause for so long, raise lease=… in the URL",
            )
        for reply in plural(applied, len(commands) - 2, store._where):
            if isinstance(reply, ResponseError):
                raise damaged(store._where, str(reply)) from reply

    def _release(self) -> None:
        """Free the lease for the next writer; where the server cannot be reached, it expires by itself."""
        store = self._store
        with suppress(Unavailable):
            store._links.ask([("EVAL", RELEASE, 1, store._key(b"lease"), self._token)], store._timeout)


def _writes(names: _Names, changed: Changes) -> Iterator[Command]:
    """Return the commands that apply changes to a database, each of a bounded size."""
    puts = [(key, value) for key, value in changed.items() if value is not None]
    for group in _groups(puts):
        yield ("MSET", *[part for key, value in group for part in (names.value + key, value)])
        yield ("ZADD", names.index, *[part for key, _ in group for part in (0, key)])
    gone = [(key, b"") for key, value in changed.items() if value is None]
    for group in _groups(gone):
        yield ("UNLINK", *[names.value + key for key, _ in group])
        yield ("ZREM", names.index, *[key for key, _ in group])


def _groups(rows: list[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    """Yield rows in parts that fit into one command each."""
    for start in range(0, len(rows), GROUP_KEYS):
        yield from _fitting(rows[start : start + GROUP_KEYS])


def _fitting(rows: list[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    """Yield rows in halves of halves until each part has few enough bytes, or is a single row."""
    if len(rows) > 1 and sum([len(key) + len(value) for key, value in rows]) > GROUP_BYTES:
        yield from _fitting(rows[: len(rows) // 2])
        yield from _fitting(rows[len(rows) // 2 :])
    else:
        yield rows


def _end(prefix: bytes) -> bytes:
    """Return the end of the range of keys that begin with `prefix`, as ZRANGEBYLEX takes it."""
    stem = prefix.rstrip(b"\xff")
    return b"(" + stem[:-1] + bytes([stem[-1] + 1]) if stem else b"+"


def _number(address: Address) -> int:
    """Return Redis's own number of the database, from the URL's path."""
    text = address.path.strip("/")
    if text and not text.isdecimal():
        raise BadUrl("not a number of a Redis database", where=WHERE, got=text, expected="redis://HOST:PORT/0")
    return int(text or 0)


def _facts(about: Any) -> dict[str, str]:
    """Read the reply to INFO."""
    lines = about.decode(errors="replace").splitlines() if isinstance(about, bytes) else []
    return {name: value for name, _, value in (line.partition(":") for line in lines) if value}
