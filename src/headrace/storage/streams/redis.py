"""Keep streams as Redis Streams: an entry's field `data` holds the record, its id tells arrival and position.

Ids are written by a script from the writer's clock, or by other producers with `XADD … *` from the server's; Redis keeps
them ascending. A position is the id as one number, `milliseconds << 64 | sequence`. Consumer groups of Redis hand out
entries one by one and keep positions of their own; members here share whole partitions through leases instead.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
local found = {'0-0', '', redis.call('HGET', KEYS[2], KEYS[1]) or '', '', redis.call('HGET', KEYS[3], KEYS[1]) or ''}
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' then found[1] = info[i + 1] end
  if info[i] == 'max-deleted-entry-id' then found[2] = info[i + 1] end
end
if first[1] then found[4] = first[1][1] end
return found
"""
# Where the first entries go, the gap that they leave is noted: `FROM UNTIL`, without UNTIL if no entry is left.
REDACT = """
local function first()
  local found = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)
  return found[1] and found[1][1] or ''
end
local before, count = first(), redis.call('XDEL', KEYS[1], unpack(ARGV, 2))
local after = first()
if before ~= after then
  local held = redis.call('HGET', KEYS[2], KEYS[1])
  local from, till = string.match(held or '', '^(%S+) (%S*)$')
  if not from or (till ~= '' and till ~= before) then from = ARGV[1] ~= '' and ARGV[1] or before end
  redis.call('HSET', KEYS[2], KEYS[1], from .. ' ' .. after)
end
return count
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
        self._scripts = {text: self._client.register_script(text) for text in (APPEND, HELD, DROP, REDACT, LEASE)}
        self._closed = False

    @property
    def capabilities(self) -> Capabilities:
        """Return what this backend can do."""
        return Capabilities(
            several_hosts=True,
            one_writer=False,
            whole_batches=True,
            counted=False,
            distances=False,
            drops=True,
            redacts=True,
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
                        found[name][partition] = Bounds(held.start, held.end)
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
                    first = _id(min(position, held.end))
                    self._scripts[DROP](keys=[self._key(stream, partition), f"{PREFIX}dropped"], args=[first])

    def redact(self, stream: str, chosen: Callable[[bytes], bool]) -> int:
        """Delete the chosen entries; the server's own files lose them with its next rewrite."""
        redacted = 0
        with self._told(stream):
            for partition in range(self._place.partitions):
                held, position = self._held(stream, partition), 0
                # Whoever stands anywhere before the first entry lost nothing, if nothing was ever taken away.
                whole = held is not None and held.deleted == 0 and not held.dropped
                keys = [self._key(stream, partition), f"{PREFIX}redacted"]
                while found := self._client.xrange(keys[0], min=_id(position), count=CHUNK):
                    wanted = [name for name, fields in found if chosen(_data(fields))]
                    reach("streams.redact.before_send")
                    if wanted:
                        redacted += self._scripts[REDACT](keys=keys, args=["0-0" if whole else "", *wanted])
                    position = _position(found[-1][0]) + 1
        return redacted

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

    def _held(self, stream: str, partition: int) -> _Held | None:
        """Return what a partition holds, and what was taken away from it; None where there is none."""
        keys = [self._key(stream, partition), f"{PREFIX}dropped", f"{PREFIX}redacted"]
        found = self._scripts[HELD](keys=keys)
        if not found:
            return None
        newest, deleted, dropped, first, redacted = found
        end = _position(newest) + 1
        since, _, until = redacted.partition(b" ")
        return _Held(
            start=_position(first) if first else end,
            end=end,
            deleted=_position(deleted) if deleted else None,
            dropped=_position(dropped) if dropped else 0,
            redacted=(_position(since), _position(until) if until else None) if since else None,
        )

    def _refuse_dropped(self, stream: str, partition: int, position: int) -> None:
        """Raise if entries from `position` on were dropped; those that were redacted are no loss.

        Redis before 7 does not tell what others trimmed: there a gap behind the reader counts as a loss.
        """
        held = self._held(stream, partition) or _Held(0, 0, None, 0, None)
        seen = held.deleted is None and 0 < position < held.start and not held.dropped
        told = held.deleted is not None and position <= held.deleted < held.start
        if position < held.dropped or ((seen or told) and not held.explains(position)) or position < 0:
            raise not_kept(stream, partition, position, held.start)


@dataclass(frozen=True, slots=True)
class _Held:
    """Hold a partition's first position and end, the newest deleted one (None: not told), and where dropping stopped.

    `redacted` is the gap before the first entry that redacting left, up to None if that took all there was.
    """

    start: int
    end: int
    deleted: int | None
    dropped: int
    redacted: tuple[int, int | None] | None

    def explains(self, position: int) -> bool:
        """Tell whether nothing but redacted entries is missing from a position on."""
        if self.redacted is None:
            return False
        since, until = self.redacted
        return position >= since and (until is None or self.start <= until)


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
    stamp, data = _stamp(position), _data(fields)
    problem = None if FIELD in fields else "an entry without the field data"
    if stamp > now + ahead:
        problem = f"stamped {Instant(stamp).isoformat()}, ahead of this host's clock"
        return Message(position, now, data, partition, problem, stamp)
    return Message(position, stamp, data, partition, problem)


def _data(fields: Mapping[bytes, bytes]) -> bytes:
    """Return an entry's record; of one that has none all its fields, as JSON."""
    if FIELD in fields:
        return fields[FIELD]
    return orjson.dumps({k.decode("utf-8", "replace"): v.decode("utf-8", "replace") for k, v in fields.items()})


def _position(name: bytes) -> int:
    milliseconds, _, sequence = name.partition(b"-")
    return int(milliseconds) << SEQUENCE_BITS | int(sequence)


def _id(position: int) -> str:
    return f"{position >> SEQUENCE_BITS}-{position & SEQUENCES}"


def _stamp(position: int) -> int:
    return (position >> SEQUENCE_BITS) * MILLISECOND
