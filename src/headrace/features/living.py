"""Hold a lane's events that hold now, key by key, as the online store shall have them; from memory or from a bucket."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.core.expressions import Column, columns_of
from headrace.core.memory import give_back
from headrace.features.bucket_work import stored_events
from headrace.features.equal import hashed_ids
from headrace.features.events import EventMaker
from headrace.features.heads import heads_of, holds_at_once
from headrace.features.history import NEVER, History, row_prefix
from headrace.features.keys import ascending
from headrace.features.lane_plan import LanePlan
from headrace.features.lanes import ORDER
from headrace.features.offline import bare_versions, lane_versions, numbered_texts, values_on
from headrace.features.rows import RowCodec
from headrace.features.stream import DATABASE, StreamPath
from headrace.features.texts import Numbered, longer_texts
from headrace.features.windows import LaneEvents, OnlineLane
from headrace.sources.record import ROW_ID
from headrace.storage.keyvalue import Get, Transaction

Ints = NDArray[np.int64]


class Told(Protocol):
    """Tell of a lane's events, by their places, what they were told by."""

    def ids(self, places: Ints) -> pa.ChunkedArray:
        """Return the ids of the rows that some events are of."""
        ...

    def values(self, places: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """Return some events' values, (n, values), and where they are null."""
        ...

    def texts(self) -> Iterator[Numbered]:
        """Yield the texts that events refer to and no id spells, for each value that is one."""
        ...


@dataclass(frozen=True, eq=False)
class ByHistory:
    """Tell of events from the history that they follow from: the places of their versions in it are `versions`.

    Their `words` and `nulls` may have no columns; then values are read from history.
    """

    lane: LanePlan
    history: History
    words: Ints
    nulls: NDArray[np.bool_]
    versions: Ints

    def ids(self, places: Ints) -> pa.ChunkedArray:
        """Return the ids of the rows that some events are of."""
        return self._held.row_ids(self.versions[places])

    def values(self, places: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """Return some events' values; where there are none in hand, only theirs are read."""
        if self.words.shape[1] or not self.lane.values:
            return self.words[places], self.nulls[places]
        return values_on(self.lane, self._held.rows(self._reads, self.versions[places]))

    def texts(self) -> Iterator[Numbered]:
        """Yield the texts that there are and no id spells, for each value that is one."""
        return numbered_texts(self.lane, self.history if self.words.shape[1] else self._held)

    @cached_property
    def _reads(self) -> tuple[Column[Any], ...]:
        return tuple(dict.fromkeys(c for value in self.lane.values for c in columns_of(value)))

    @cached_property
    def _held(self) -> History:
        """Return the history with what is asked for part by part in hand."""
        return self.history.holding([ROW_ID, *(column.name for column in self._reads)])


@dataclass(frozen=True, eq=False)
class ByBucket:
    """Tell of events from a bucket of them."""

    lane: LanePlan
    stored: pa.Table
    events: LaneEvents

    def ids(self, places: Ints) -> pa.ChunkedArray:
        """Return the ids of the rows that some events are of."""
        return self.stored["row"].take(pa.array(places))

    def values(self, places: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """Return some events' values."""
        return self.events.words[places], self.events.nulls[places]

    def texts(self) -> Iterator[Numbered]:
        """Yield the bucket's texts that no id spells, for each value that is one."""
        for name in self.stored.column_names:
            if name.startswith("x"):
                yield longer_texts(self.stored[name])


@dataclass(frozen=True, eq=False)
class Living:
    """Hold a lane's events that hold now, as `order` puts them: key by key, and then as they follow each other.

    The events of `keys[i]`, which are sorted and stand without the lane's prefix, are from `bounds[i]` to `bounds[i + 1]`.
    """

    lane: LanePlan
    keys: pa.Array
    bounds: Ints
    order: Ints
    moment: Ints
    arrival: Ints
    told: Told

    @classmethod
    def of_history(cls, lane: LanePlan, history: History) -> Living:
        """Put a lane's events in order; where a single history is enough to have their values, none are read yet."""
        bare = history.single and lane.on is None
        events, keys, versions = bare_versions(lane, history) if bare else lane_versions(lane, history)
        return cls._ordered(lane, events, keys, ByHistory(lane, history, events.words, events.nulls, versions))

    @classmethod
    def of_bucket(cls, lane: LanePlan, stored: pa.Table) -> Living:
        """Put a bucket's events in order."""
        encoded = stored["key"].combine_chunks().dictionary_encode()
        events = stored_events(lane, stored, encoded.indices.to_numpy().astype(np.int64))
        return cls._ordered(lane, events, encoded.dictionary, ByBucket(lane, stored, events))

    @classmethod
    def _ordered(cls, lane: LanePlan, events: LaneEvents, keys: pa.Array, told: Told) -> Living:
        give_back(keys.nbytes)  # what numbering the keys took
        order = ascending(keys)
        rank = np.empty(len(keys), np.int64)
        rank[order] = np.arange(len(keys))
        keys, living = keys.take(pa.array(order)), np.flatnonzero(events.until == NEVER)
        key = rank[events.key[living]]
        del order, rank  # as large as the keys, and there is more to come
        counts = np.bincount(key, minlength=len(keys))
        if counts.max(initial=0) > 1:
            rows = hashed_ids(row_prefix(lane.source.name), told.ids(living))
            order = np.lexsort((rows, events.arrival[living], events.moment[living], key))
        else:
            order = np.argsort(key)
        bounds = np.concatenate([[0], np.cumsum(counts)])
        return cls(lane, keys, bounds, living[order], events.moment, events.arrival, told)

    def named(self, begin: int, end: int) -> list[bytes]:
        """Return under which keys of the store some heads stand."""
        prefix = self.lane.prefix
        return [prefix + key for key in self.keys[begin:end].to_pylist()]

    def fill(self, transaction: Transaction, begin: int, end: int) -> None:
        """Give keys that the store does not hold their events, all with one call."""
        online, counts = OnlineLane(self.lane.lane, self.lane.outputs), np.diff(self.bounds[begin : end + 1])
        events = self._stored(self.order[self.bounds[begin] : self.bounds[end]])
        heads, keys = heads_of(online.chunks, events, counts), self.named(begin, end)
        pairs = zip(keys, heads, strict=True)
        transaction.put_many(DATABASE, [(key, head) for key, head in pairs if head])
        access, bounds = transaction.access(DATABASE), self.bounds[begin : end + 1] - self.bounds[begin]
        for i in np.flatnonzero(counts > holds_at_once(online.chunks)).tolist():
            online.fill(access, keys[i], events[bounds[i] : bounds[i + 1]].tobytes())
        for key in set(keys).intersection(StreamPath.waiting(transaction)):
            StreamPath.repaired(access, key)

    def refill(self, transaction: Transaction, keys: Sequence[tuple[bytes, int | None]], *, settled: bool) -> None:
        """Give keys exactly their living events: history's, but for rows that a stream has changed since, and the stream's.

        Each key comes with its place among `keys`, None if history does not know it. `settled` says that no stream has
        changed a row since.
        """
        access, online = transaction.access(DATABASE), OnlineLane(self.lane.lane, self.lane.outputs)
        size, waiting = online.chunks.event, set(StreamPath.waiting(transaction))
        heads = transaction.get_many(DATABASE, [key for key, _ in keys])
        spans = [
            np.zeros(0, np.int64) if i is None else self.order[self.bounds[i] : self.bounds[i + 1]] for _, i in keys
        ]
        rows = [] if settled else self._row_keys(np.concatenate([np.zeros(0, np.int64), *spans]))
        stored = iter(transaction.get_many(DATABASE, rows))
        for (key, _), span, head in zip(keys, spans, heads, strict=True):
            found = self._stored(span).tobytes()
            if not settled:
                each = (found[at : at + size] for at in range(0, len(found), size))
                held = zip(each, islice(stored, len(span)), strict=True)
                found = b"".join(event for event, row in held if row is None or self._follows(event, row, key))
            if head is None:
                online.fill(access, key, found)
            else:
                merged = {ORDER.unpack_from(found, at): found[at : at + size] for at in range(0, len(found), size)}
                merged |= dict(stored_under(online, access.get, key))
                online.clear(access, key)
                online.fill(access, key, b"".join(merged[order] for order in sorted(merged)))
            if key in waiting:
                StreamPath.repaired(access, key)

    @cached_property
    def maker(self) -> EventMaker:
        """Return what makes an event of a row."""
        return EventMaker(self.lane)

    @cached_property
    def codec(self) -> RowCodec:
        """Return what reads stored rows."""
        return RowCodec(self.lane.source.name, [c.dtype for c in self.lane.source.columns])

    def _stored(self, places: Ints) -> Ints:
        """Return some events as they are stored, a row each."""
        words, nulls = self.told.values(places)
        found = np.empty((len(places), 4 + words.shape[1]), np.int64)
        found[:, 0], found[:, 1] = self.moment[places], self.arrival[places]
        found[:, 2] = hashed_ids(row_prefix(self.lane.source.name), self.told.ids(places))
        found[:, 3] = nulls @ (np.int64(1) << np.arange(words.shape[1]))
        found[:, 4:] = words
        return found

    def _row_keys(self, places: Ints) -> list[bytes]:
        """Return under which keys of the store the rows of some events stand."""
        prefix = row_prefix(self.lane.source.name)
        return [prefix + row for row in self.told.ids(places).to_pylist()]

    def _follows(self, event: bytes, row: bytes, key: bytes) -> bool:
        """Tell whether an event still follows from its row as it is stored now."""
        now = self.maker.event(self.codec.decode(row), ORDER.unpack_from(event)[2])
        return now is not None and now.key == key and ORDER.pack(*now[1:4]) + now.packed == event


def stored_under(online: OnlineLane, get: Get, key: bytes) -> Iterator[tuple[tuple[int, int, int], bytes]]:
    """Yield a key's events in their order: moment, arrival, row; and the bytes of each."""
    for event in online.events(get, key):
        yield event[:3], ORDER.pack(*event[:3]) + online.lane.pack(event.values)
