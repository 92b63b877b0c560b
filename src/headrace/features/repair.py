"""Fill keys of the online store from offline: those whose latest values only history knows, and new groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.core.expressions import columns_of
from headrace.features.events import EventMaker, head_keys, text_keys
from headrace.features.heads import heads_of, holds_at_once
from headrace.features.history import NEVER, History, row_prefix
from headrace.features.lane_plan import GroupPlan, LanePlan
from headrace.features.lanes import ORDER
from headrace.features.offline import bare_versions, lane_versions, numbered_texts, values_on
from headrace.features.plan import FeaturePlan
from headrace.features.rows import RowCodec
from headrace.features.snapshots import note_copies
from headrace.features.stream import DATABASE, StreamPath
from headrace.features.windows import LaneEvents, OnlineLane
from headrace.sources.record import ROW_ID
from headrace.storage.keyvalue import Get, KeyValue, Transaction

KEYS_AT_ONCE = 10_000  # to a commit
PUTS_AT_ONCE = 50_000  # to a commit of what is only written
Ints = NDArray[np.int64]
S = TypeVar("S", list[bytes], Ints)
Read = Callable[[], Mapping[str, pa.Table]]


def repair(transaction: Transaction, plan: FeaturePlan, read: Read) -> int:
    """Refill every waiting key from the reveals that `read` returns by source; return how many there were.

    Nothing is read while no key waits. Reveals that arrived after the newest applied one are left out, so that the
    state stays that of what was applied.

    Raises:
        DataError: a source has no reveals.
    """
    waiting = StreamPath.waiting(transaction)
    if not waiting:
        return 0
    newest, reveals = StreamPath.newest(transaction.access(DATABASE).get) or 0, read()
    lanes = [lane for group in plan.groups for lane in group.lanes if any(k.startswith(lane.prefix) for k in waiting)]
    for lane, history in _with_histories(lanes, reveals, newest):
        living, keys = _Living.of(lane, history), [key for key in waiting if key.startswith(lane.prefix)]
        asked = pa.array([key[len(lane.prefix) :] for key in keys], pa.binary())
        places = pc.index_in(asked, value_set=living.keys).to_pylist()
        living.refill(transaction, list(zip(keys, places, strict=True)), settled=False)
    return len(waiting)


def backfill(
    store: KeyValue,
    groups: Sequence[GroupPlan],
    newest: int,
    read: Read,
    told: Callable[[int, int], None],
    filled: Callable[[GroupPlan], None] = lambda group: None,
) -> int:
    """Fill groups with every key's events that had arrived by `newest`; return how many keys there were.

    What a killed backfill left is dropped first; what a stream applies while `read` and the filling go on stays, and is
    never overwritten by what history said of the same row before. `told(done, total)` is called as it goes on, with
    reveals: a source counts once for each lane that reads it; `filled(group)` when a group is there whole.

    Raises:
        DataError: a source has no reveals.
    """
    lanes = [lane for group in groups for lane in group.lanes]
    for lane in lanes:
        _drop_old(store, lane, newest)
    with store.read() as snapshot:
        before = StreamPath.commits(snapshot.getter(DATABASE))
        empty = {lane.prefix for lane in lanes if next(iter(snapshot.items(DATABASE, lane.prefix)), None) is None}
    histories = list(_with_histories(lanes, read(), newest))
    total, done, keys = sum(len(history) for _, history in histories), 0, 0
    for lane, history in histories:
        for rows in _text_rows(lane, history):
            with store.write() as transaction:
                transaction.put_many(DATABASE, rows)
        if lane.dated and len(history):
            with store.write() as transaction:
                arrival, moments = int(history.arrival.max()), history.copies.moments.tolist()
                note_copies(transaction.access(DATABASE), lane.source.name, arrival, moments)
        living, end = _Living.of(lane, history), 0
        while end < len(living.keys):
            begin = end
            with store.write() as transaction:
                get = transaction.access(DATABASE).get
                settled = StreamPath.commits(get) == before and (StreamPath.newest(get) or newest) <= newest
                end = min(begin + (PUTS_AT_ONCE if settled else KEYS_AT_ONCE), len(living.keys))
                if settled and lane.prefix in empty:
                    living.fill(transaction, begin, end)
                else:
                    numbered = zip(living.named(begin, end), range(begin, end), strict=True)
                    living.refill(transaction, list(numbered), settled=settled)
            told(done + len(history) * end // len(living.keys), total)
        done, keys = done + len(history), keys + len(living.keys)
        for group in groups:
            if lane is group.lanes[-1]:
                filled(group)
    return keys


def _text_rows(lane: LanePlan, history: History) -> Iterator[Iterator[tuple[bytes, bytes]]]:
    """Yield, in parts, under which keys the texts of a lane stand, and these, value by value in the order of the keys."""
    for ids, texts in numbered_texts(lane, history):
        for part in _parts(np.argsort(ids), PUTS_AT_ONCE):
            stored = texts.take(pa.array(part)).cast(pa.binary())
            yield zip(text_keys(ids[part]), stored.to_pylist(), strict=True)


def _with_histories(
    lanes: Sequence[LanePlan], reveals: Mapping[str, pa.Table], newest: int
) -> Iterator[tuple[LanePlan, History]]:
    """Yield each lane with the history of its source, one for all lanes of a source."""
    sources = {lane.source.name: lane.source for lane in lanes}
    histories = {name: History.build(source, reveals[name], newest) for name, source in sources.items()}
    return ((lane, histories[lane.source.name]) for lane in lanes)


def _parts(items: S, size: int) -> Iterator[S]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _drop_old(store: KeyValue, lane: LanePlan, newest: int) -> None:
    """Drop a lane's events that had arrived by `newest`: history has them, where they still hold."""
    online = OnlineLane(lane.lane, lane.outputs)
    with store.read() as snapshot:
        keys = list(head_keys(key for key, _ in snapshot.items(DATABASE, lane.prefix)))
    for part in _parts(keys, KEYS_AT_ONCE):
        with store.write() as transaction:
            access = transaction.access(DATABASE)
            transaction.get_many(DATABASE, part)  # of a store over a network: in one round trip
            for key in part:
                kept = [event for order, event in _stored(online, access.get, key) if order[1] > newest]
                online.clear(access, key)
                online.fill(access, key, b"".join(kept))


def _stored(online: OnlineLane, get: Get, key: bytes) -> Iterator[tuple[tuple[int, int, int], bytes]]:
    """Yield a key's events in their order: moment, arrival, row; and the bytes of each."""
    for event in online.events(get, key):
        yield event[:3], ORDER.pack(*event[:3]) + online.lane.pack(event.values)


@dataclass(frozen=True, eq=False)
class _Living:
    """Hold a lane's events that hold now, as `order` puts them: key by key, and then as they follow each other.

    The events of `keys[i]`, which are sorted and stand without the lane's prefix, are from `bounds[i]` to `bounds[i + 1]`.
    `versions` says from which version of the history each event is. Where these are enough to have its values, `events`
    holds none.
    """

    lane: LanePlan
    history: History
    keys: pa.Array
    bounds: Ints
    order: Ints
    events: LaneEvents
    versions: Ints

    @classmethod
    def of(cls, lane: LanePlan, history: History) -> _Living:
        """Put a lane's events in order."""
        bare = history.single and lane.on is None
        events, keys, versions = bare_versions(lane, history) if bare else lane_versions(lane, history)
        pa.default_memory_pool().release_unused()  # what numbering the keys took
        ascending = pc.sort_indices(keys)
        rank = np.empty(len(keys), np.int64)
        rank[ascending.to_numpy()] = np.arange(len(keys))
        living = np.flatnonzero(events.until == NEVER)
        key = rank[events.key[living]]
        counts = np.bincount(key, minlength=len(keys))
        if counts.max(initial=0) > 1:
            rows = history.row_hashes(versions[living])
            order = np.lexsort((rows, events.arrival[living], events.moment[living], key))
        else:
            order = np.argsort(key)
        bounds = np.concatenate([[0], np.cumsum(counts)])
        return cls(lane, history, keys.take(ascending), bounds, living[order], events, versions)

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
                merged |= dict(_stored(online, access.get, key))
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
        events, versions = self.events, self.versions[places]
        if events.words.shape[1] or not self.lane.values:
            words, nulls = events.words[places], events.nulls[places]
        else:
            reads = tuple(dict.fromkeys(c for value in self.lane.values for c in columns_of(value)))
            words, nulls = values_on(self.lane, self.history.rows(reads, versions))
        found = np.empty((len(places), 4 + words.shape[1]), np.int64)
        found[:, 0], found[:, 1] = events.moment[places], events.arrival[places]
        found[:, 2] = self.history.row_hashes(versions)
        found[:, 3] = nulls @ (np.int64(1) << np.arange(words.shape[1]))
        found[:, 4:] = words
        return found

    def _row_keys(self, places: Ints) -> list[bytes]:
        """Return under which keys of the store the rows of some events stand."""
        history = self.history
        ids = history.table[ROW_ID].take(pa.array(history.order[self.versions[places]]))
        prefix = row_prefix(self.lane.source.name)
        return [prefix + row for row in ids.to_pylist()]

    def _follows(self, event: bytes, row: bytes, key: bytes) -> bool:
        """Tell whether an event still follows from its row as it is stored now."""
        now = self.maker.event(self.codec.decode(row), ORDER.unpack_from(event)[2])
        return now is not None and now.key == key and ORDER.pack(*now[1:4]) + now.packed == event
