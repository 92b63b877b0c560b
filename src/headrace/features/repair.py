"""Fill keys of the online store from offline: those whose latest values only history knows, and new groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.features.events import EventMaker, head_keys, text_key
from headrace.features.history import NEVER, History
from headrace.features.lane_plan import GroupPlan, LanePlan
from headrace.features.lanes import ORDER
from headrace.features.offline import lane_events, texts_by_id
from headrace.features.plan import FeaturePlan
from headrace.features.rows import RowCodec
from headrace.features.snapshots import note_copies
from headrace.features.stream import DATABASE, StreamPath
from headrace.features.windows import OnlineLane
from headrace.sources.record import ROW_ID
from headrace.storage.keyvalue import Get, KeyValue, Transaction

KEYS_AT_ONCE = 10_000  # to a commit
NO_EVENTS = (0, 0, 0)
Span = tuple[int, int, int]  # where a key's events begin and end, and the newest arrival among them
K = TypeVar("K")
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
        living, skip = _Living.of(lane, history), len(lane.prefix)
        keys = [(key, living.spans.get(key[skip:], NO_EVENTS)) for key in waiting if key.startswith(lane.prefix)]
        living.refill(transaction, keys, settled=False)
    return len(waiting)


def backfill(
    store: KeyValue, groups: Sequence[GroupPlan], newest: int, read: Read, told: Callable[[int, int], None]
) -> int:
    """Fill groups with every key's events that had arrived by `newest`; return how many keys there were.

    What a killed backfill left is dropped first; what a stream applies while `read` and the filling go on stays, and is
    never overwritten by what history said of the same row before. `told(done, total)` is called as keys are filled.

    Raises:
        DataError: a source has no reveals.
    """
    lanes = [lane for group in groups for lane in group.lanes]
    for lane in lanes:
        _drop_old(store, lane, newest)
    with store.read() as snapshot:
        before = StreamPath.commits(snapshot.getter(DATABASE))
    fillings = [
        (_Living.of(lane, history), texts_by_id(lane, history))
        for lane, history in _with_histories(lanes, read(), newest)
    ]
    total, done = sum(len(living.spans) for living, _ in fillings), 0
    for living, texts in fillings:
        with store.write() as transaction:
            access = transaction.access(DATABASE)
            for identity, text in sorted(texts.items()):
                access.put(text_key(identity), text.encode())
            if living.lane.dated and len(living.history):
                history = living.history
                note_copies(access, history.source.name, int(history.arrival.max()), history.copies.moments.tolist())
        for part in _parts(sorted((living.lane.prefix + key, span) for key, span in living.spans.items())):
            with store.write() as transaction:
                get = transaction.access(DATABASE).get
                settled = StreamPath.commits(get) == before and (StreamPath.newest(get) or newest) <= newest
                living.refill(transaction, part, settled=settled)
            done += len(part)
            told(done, total)
    return total


def _with_histories(
    lanes: Sequence[LanePlan], reveals: Mapping[str, pa.Table], newest: int
) -> Iterator[tuple[LanePlan, History]]:
    """Yield each lane with the history of its source, one for all lanes of a source."""
    sources = {lane.source.name: lane.source for lane in lanes}
    histories = {name: History.build(source, reveals[name], newest) for name, source in sources.items()}
    return ((lane, histories[lane.source.name]) for lane in lanes)


def _parts(keys: Sequence[K]) -> Iterator[Sequence[K]]:
    return (keys[start : start + KEYS_AT_ONCE] for start in range(0, len(keys), KEYS_AT_ONCE))


def _drop_old(store: KeyValue, lane: LanePlan, newest: int) -> None:
    """Drop a lane's events that had arrived by `newest`: history has them, where they still hold."""
    online = OnlineLane(lane.lane, lane.outputs)
    with store.read() as snapshot:
        keys = list(head_keys(key for key, _ in snapshot.items(DATABASE, lane.prefix)))
    for part in _parts(keys):
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
    """Hold a lane's events that hold now, as they are stored; `spans` says which are a key's, `hashes` are of their rows."""

    lane: LanePlan
    history: History
    spans: Mapping[bytes, Span]
    events: bytes
    hashes: NDArray[np.int64]

    @classmethod
    def of(cls, lane: LanePlan, history: History) -> _Living:
        """Order a lane's events by key, and then as they follow each other."""
        events, numbers = lane_events(lane, history, hashed=True)
        order = np.lexsort((events.row, events.arrival, events.moment, events.key))
        order = order[events.until[order] == NEVER]
        stored = np.empty((len(order), 4 + events.words.shape[1]), np.int64)
        stored[:, 0], stored[:, 1], stored[:, 2] = events.moment[order], events.arrival[order], events.row[order]
        stored[:, 3] = events.nulls[order] @ (np.int64(1) << np.arange(events.words.shape[1]))
        stored[:, 4:] = events.words[order]
        bounds = np.searchsorted(events.key[order], np.arange(len(numbers) + 1))
        # A key without events gets some neighbour's arrival, which nobody asks for.
        starts = np.minimum(bounds[:-1], max(len(order) - 1, 0))
        arrivals = np.maximum.reduceat(stored[:, 1], starts) if len(order) else np.zeros(len(starts), np.int64)
        held = list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), arrivals.tolist(), strict=True))
        spans = {key: held[number] for key, number in numbers.items()}
        return cls(lane, history, spans, stored.tobytes(), stored[:, 2].copy())

    @cached_property
    def rows(self) -> tuple[NDArray[np.int64], pa.ChunkedArray]:
        """Return, for each event, the place of its row among row ids, and these."""
        history = self.history
        hashes = history.row_hashes(history.lasts)
        by_hash = np.argsort(hashes)
        places = by_hash[np.searchsorted(hashes, self.hashes, sorter=by_hash)]
        return places, history.table[ROW_ID].take(pa.array(history.order[history.lasts]))

    @cached_property
    def maker(self) -> EventMaker:
        """Return what makes an event of a row."""
        return EventMaker(self.lane)

    @cached_property
    def codec(self) -> RowCodec:
        """Return what reads stored rows."""
        return RowCodec(self.lane.source.name, [c.dtype for c in self.lane.source.columns])

    def refill(self, transaction: Transaction, keys: Sequence[tuple[bytes, Span]], *, settled: bool) -> None:
        """Give keys exactly their living events: history's, but for rows that a stream has changed since, and the stream's.

        `settled` says that no stream has changed a row since.
        """
        access, online = transaction.access(DATABASE), OnlineLane(self.lane.lane, self.lane.outputs)
        size, waiting = online.chunks.event, set(StreamPath.waiting(transaction))
        heads = transaction.get_many(DATABASE, [key for key, _ in keys])
        stored = iter([] if settled else transaction.get_many(DATABASE, self._row_keys([span for _, span in keys])))
        for (key, (first, end, newest)), head in zip(keys, heads, strict=True):
            found = self.events[first * size : end * size]
            if not settled:
                each = (found[at : at + size] for at in range(0, len(found), size))
                held = zip(each, islice(stored, end - first), strict=True)
                found = b"".join(event for event, row in held if row is None or self._follows(event, row, key))
            if head is None:
                online.fill(access, key, found, newest if settled else None)
            else:
                merged = {ORDER.unpack_from(found, at): found[at : at + size] for at in range(0, len(found), size)}
                merged |= dict(_stored(online, access.get, key))
                online.clear(access, key)
                online.fill(access, key, b"".join(merged[order] for order in sorted(merged)))
            if key in waiting:
                StreamPath.repaired(access, key)

    def _row_keys(self, spans: Sequence[Span]) -> list[bytes]:
        """Return under which keys of the store the rows of some spans of events stand."""
        rows, ids = self.rows
        places = np.concatenate([np.arange(first, end) for first, end, _ in spans])
        prefix = b"R" + self.lane.source.name.encode() + b"\0"
        return [prefix + row for row in ids.take(pa.array(rows[places])).to_pylist()]

    def _follows(self, event: bytes, row: bytes, key: bytes) -> bool:
        """Tell whether an event still follows from its row as it is stored now."""
        now = self.maker.event(self.codec.decode(row), ORDER.unpack_from(event)[2])
        return now is not None and now.key == key and ORDER.pack(*now[1:4]) + now.packed == event
