"""Keep streams as Redis Streams: an entry's field `data` holds the record, its id tells arrival and position.

Ids are written by a script from the writer's clock, or by other producers with `XADD … *` from the server's; Redis keeps
them ascending. A position is the id as one number, `milliseconds << 64 | sequence`. Consumer groups of Redis hand out
entries one by one and keep positions of their own; members here share whole partitions through leases instead.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, ClassVar, Self

import orjson
import redis

from headrace.core.errors import BadUrl, DataError, Unavailable
from headrace.core.failpoints import reach
from headrace.core.identity import row_hash
from headrace.core.time import Clock, Instant
from headrace.storage.streams.location import read_location
from headrace.storage.streams.protocol import (
    READ_BYTES,
    Appended,
    Bounds,
    Capabilities,
    Cursor,
    Everything,
    Membership,
    Message,
    ensure_name,
    ensure_small,
    not_kept,
)

FIELD = b"data"
TIMEOUT = 5.0  # seconds without an answer until the server counts as unavailable
LEASE_SECONDS = 10  # without a sign of life until a member's partitions go to others
CHUNK = 100  # entries asked for at a time
MILLISECOND = 1_000
SEQUENCE_BITS = 64
SEQUENCES = 2**SEQUENCE_BITS - 1
PREFIX = "headrace:"

APPEND = """
local ms, seq = tonumber(ARGV[1]), 0
if redis.call('EXISTS', KEYS[1]) == 1 then
  local info = redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      local last_ms, last_seq = string.match(info[i + 1], '(%d+)-(%d+)')
      if tonumber(last_ms) >= ms then ms, seq = tonumber(last_ms), tonumber(last_seq) + 1 end
    end
  end
end
for i = 2, #ARGV do
  redis.call('XADD', KEYS[1], string.format('%.0f-%.0f', ms, seq + i - 2), 'data', ARGV[i])
end
return string.format('%.0f-%.0f', ms, seq)
"""
HELD = """
if redis.call('EXISTS', KEYS[1]) == 0 then return {} end
local info, first = redis.call('XINFO', 'STREAM', KEYS[1]), redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)
local found = {'0-0', '', redis.call('HGET', KEYS[2], KEYS[1]) or ''}
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' then found[1] = info[i + 1] end
  if info[i] == 'max-deleted-entry-id' then found[2] = info[i + 1] end
end
if first[1] then found[4] = first[1][1] end
return found
"""
DROP = """
redis.call('XTRIM', KEYS[1], 'MINID', ARGV[1])
redis.call('HSET', KEYS[2], KEYS[1], ARGV[1])
"""
LEASE = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[2]))
return redis.call('ZRANGE', KEYS[1], 0, -1)
"""


class RedisStreams:
    """Implement the store on a Redis server (6.2 or later); as durable as the server's append-only file is.

    Args:
        location: `//[USER:PASSWORD@]HOST:PORT/DATABASE?OPTIONS`; the options are `partitions` of every stream (stored as
            `NAME:0`, `NAME:1` … where there are several), `group` and `ahead`.
        clock: stamps what is appended here, and tells which stamps lie ahead.
    """

    scheme: ClassVar[str] = "redis"

    def __init__(self, location: str, *, clock: Clock) -> None:
        self._place = read_location(self.scheme, location)
        self._clock = clock
        if self._place.rest:
            raise BadUrl(
                "an unknown option",
                where=f"[stores] streams, {self._place.shown}",
                got=next(iter(self._place.rest)),
                expected="partitions, group or ahead",
                next_step="leave it out",
            )
        url = f"{self.scheme}://{self._place.netloc}/{self._place.path}"
        self._client: Any = redis.Redis.from_url(url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT)
        self._scripts = {text: self._client.register_script(text) for text in (APPEND, HELD, DROP, LEASE)}
        self._closed = False

    @property
    def capabilities(self) -> Capabilities:
        """Return what this backend can do."""
        return Capabilities(
            several_hosts=True, one_writer=False, whole_batches=True, counted=False, distances=False, drops=True
        )

    def append(
        self, stream: str, records: Sequence[bytes], *, keys: Sequence[bytes] | None = None
    ) -> dict[int, Appended]:
        """Write a batch, each partition's part in one step; records without keys go to partition 0."""
        ensure_small(stream, records)
        parts: dict[int, list[bytes]] = {}
        for index, data in enumerate(records):
            partition = 0 if keys is None else row_hash(keys[index]) % self._place.partitions
            parts.setdefault(partition, []).append(data)
        with self._told(stream):
            reach("streams.before_send")
            return {partition: self._append(stream, partition, part) for partition, part in sorted(parts.items())}

    def read(
        self, stream: str, cursors: Mapping[int, Cursor], limit: int = 1_000, size: int = READ_BYTES
    ) -> list[Message]:
        """Return entries from the cursors on."""
        found: list[Message] = []
        with self._told(stream):
            for partition, cursor in sorted(cursors.items()):
                if limit - len(found) > 0 and size > 0:
                    self._refuse_dropped(stream, partition, cursor.position)
                    brought, size = self._read(stream, partition, cursor, limit - len(found), size)
                    found += brought
        return found

    def bounds(self, streams: Sequence[str]) -> dict[str, dict[int, Bounds]]:
        """Return what each partition of each stream holds; positions are ids as numbers."""
        with self._told(", ".join(streams)):
            found: dict[str, dict[int, Bounds]] = {name: {} for name in streams}
            for name in streams:
                for partition in range(self._place.partitions):
                    held = self._held(name, partition)
                    if held is not None:
                        found[name][partition] = Bounds(held[0], held[1])
            if self._place.partitions > 1:  # one that has no entry yet is there as well
                for held_by in [held for held in found.values() if held]:
                    held_by.update({p: Bounds(0, 0) for p in range(self._place.partitions) if p not in held_by})
            return found

    def streams(self) -> list[str]:
        """Return the names of all streams."""
        with self._told("all"):
            keys = [key.decode() for key in self._client.scan_iter(_type="STREAM", count=1_000)]
            several = self._place.partitions > 1
            return sorted({key.rpartition(":")[0] or key if several else key for key in keys})

    def drop(self, stream: str, before: Mapping[int, int]) -> None:
        """Remove the entries before a position."""
        with self._told(stream):
            for partition, position in before.items():
                held = self._held(stream, partition)
                if held is not None:
                    first = _id(min(position, held[1]))
                    self._scripts[DROP](keys=[self._key(stream, partition), f"{PREFIX}dropped"], args=[first])

    def join(self, streams: Sequence[str]) -> Membership:
        """Share the partitions among the members of the URL's group that gave a sign of life lately."""
        if self._place.group is None:
            return Everything(self, streams)
        return _Member(self, streams, f"{PREFIX}group:{self._place.group}")

    def close(self) -> None:
        """Give the connections back; later calls raise Unavailable."""
        self._closed = True
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def members(self, group: str, member: str) -> list[str]:
        """Give a sign of life and return all living members, sorted."""
        with self._told(group):
            return sorted(name.decode() for name in self._scripts[LEASE](keys=[group], args=[member, LEASE_SECONDS]))

    def leave(self, group: str, member: str) -> None:
        """Take a member out of its group."""
        with self._told(group):
            self._client.zrem(group, member)

    @contextmanager
    def _told(self, stream: str) -> Iterator[None]:
        """Raise what the client reports as Unavailable."""
        where = f"stream {stream} at {self._place.shown}"
        if self._closed:
            raise Unavailable("the streams are closed", where=where, next_step="open them again")
        try:
            yield
        except redis.ResponseError as error:
            if "WRONGTYPE" in str(error):
                raise DataError(
                    "a key of Redis that is no stream", where=where, next_step="choose another name"
                ) from error
            raise self._unavailable(where, error) from error
        except (redis.RedisError, OSError) as error:
            raise self._unavailable(where, error) from error

    def _unavailable(self, where: str, error: Exception) -> Unavailable:
        return Unavailable(
            "Redis does not answer as it should; what was sent last is not acknowledged",
            where=where,
            got=error,
            next_step="check the server; the same call may succeed later",
        )

    def _key(self, stream: str, partition: int) -> str:
        name = ensure_name(stream, self._place.shown, also=":")
        return name if self._place.partitions == 1 else f"{name}:{partition}"

    def _append(self, stream: str, partition: int, part: Sequence[bytes]) -> Appended:
        stamp = int(self._clock.now()) // MILLISECOND
        first = self._scripts[APPEND](keys=[self._key(stream, partition)], args=[stamp, *part])
        position = _position(first)
        return Appended(position, position + len(part), _stamp(position))

    def _read(self, stream: str, partition: int, cursor: Cursor, limit: int, size: int) -> tuple[list[Message], int]:
        """Return a partition's entries, and how many bytes are still allowed."""
        found: list[Message] = []
        key, position = self._key(stream, partition), cursor.position
        now = int(self._clock.now())
        while len(found) < limit and size > 0:
            entries = self._client.xrange(key, min=_id(position), count=min(CHUNK, limit - len(found)))
            for name, fields in entries:
                message = _message(_position(name), fields, partition, now, self._place.ahead)
                found.append(message)
                position, size = message.position + 1, size - len(message.data)
                if size <= 0:
                    break
            if not entries:
                break
        return found, size

    def _held(self, stream: str, partition: int) -> tuple[int, int, int | None, int] | None:
        """Return first position, end, newest deleted position (None: not told) and where dropping stopped."""
        found = self._scripts[HELD](keys=[self._key(stream, partition), f"{PREFIX}dropped"])
        if not found:
            return None
        end = _position(found[0]) + 1
        start = _position(found[3]) if len(found) > 3 else end
        deleted = _position(found[1]) if found[1] else None
        return start, end, deleted, _position(found[2]) if found[2] else 0

    def _refuse_dropped(self, stream: str, partition: int, position: int) -> None:
        """Raise if entries from `position` on were dropped.

        Redis before 7 does not tell what others trimmed: there a gap behind the reader counts as a loss.
        """
        held = self._held(stream, partition)
        start, _, deleted, dropped = (0, 0, None, 0) if held is None else held
        trimmed = 0 < position < start and not dropped if deleted is None else position <= deleted < start
        if position < dropped or trimmed or position < 0:
            raise not_kept(stream, partition, position, start)


class SecureRedisStreams(RedisStreams):
    """Implement the store on a Redis server behind TLS."""

    scheme = "rediss"


class _Member:
    """Hold a lease in a group; every member computes the same shares from the same list."""

    def __init__(self, store: RedisStreams, streams: Sequence[str], group: str) -> None:
        self._store, self._streams, self._group = store, tuple(streams), group
        self._name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"

    def assigned(self) -> Mapping[str, frozenset[int]]:
        """Return every n-th partition, where n members live."""
        members = self._store.members(self._group, self._name)
        place = members.index(self._name)
        return {
            name: frozenset(p for p in held if (p + row_hash(name.encode())) % len(members) == place)
            for name, held in self._store.bounds(self._streams).items()
        }

    def close(self) -> None:
        """Leave the group, so that others take over at once."""
        self._store.leave(self._group, self._name)


def _message(position: int, fields: Mapping[bytes, bytes], partition: int, now: int, ahead: int) -> Message:
    stamp, problem, data = _stamp(position), None, fields.get(FIELD)
    if data is None:
        problem = "an entry without the field data"
        texts = {k.decode("utf-8", "replace"): v.decode("utf-8", "replace") for k, v in fields.items()}
        data = orjson.dumps(texts)
    if stamp > now + ahead:
        problem = f"stamped {Instant(stamp).isoformat()}, ahead of this host's clock"
        return Message(position, now, data, partition, problem, stamp)
    return Message(position, stamp, data, partition, problem)


def _position(name: bytes) -> int:
    milliseconds, _, sequence = name.partition(b"-")
    return int(milliseconds) << SEQUENCE_BITS | int(sequence)


def _id(position: int) -> str:
    return f"{position >> SEQUENCE_BITS}-{position & SEQUENCES}"


def _stamp(position: int) -> int:
    return (position >> SEQUENCE_BITS) * MILLISECOND
