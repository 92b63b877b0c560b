"""Fill keys of the online store from offline: those whose latest values only history knows, and new groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

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
from headrace.features.stream import DATABASE, StreamPath
from headrace.features.windows import OnlineLane
from headrace.sources.record import ROW_ID
from headrace.storage.keyvalue import Get, KeyValue, Transaction

KEYS_AT_ONCE = 10_000  # to a commit
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
        _Living.of(lane, history).refill(transaction, [key for key in waiting if key.startswith(lane.prefix)])
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
    fillings = [
        (_Living.of(lane, history), texts_by_id(lane, history))
        for lane, history in _with_histories(lanes, read(), newest)
    ]
    total, done = sum(len(living.numbers) for living, _ in fillings), 0
    for living, texts in fillings:
        with store.write() as transaction:
            access = transaction.access(DATABASE)
            for identity, text in sorted(texts.items()):
                access.put(text_key(identity), text.encode())
        for part in _parts(sorted(living.lane.prefix + key for key in living.numbers)):
            with store.write() as transaction:
                living.refill(transaction, part)
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


def _parts(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
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
    """Hold a lane's events that hold now, as they are stored: key `numbers[k]` has those from `bounds[k]` on.

    Event i follows from the row whose id is `ids[rows[i]]`.
    """

    lane: LanePlan
    numbers: Mapping[bytes, int]
    bounds: Sequence[int]
    events: bytes
    rows: NDArray[np.int64]
    ids: pa.ChunkedArray

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
        hashes = history.row_hashes(history.lasts)
        by_hash = np.argsort(hashes)
        rows = by_hash[np.searchsorted(hashes, events.row[order], sorter=by_hash)]
        ids = history.table[ROW_ID].take(pa.array(history.order[history.lasts]))
        return cls(lane, numbers, bounds.tolist(), stored.tobytes(), rows, ids)

    @cached_property
    def maker(self) -> EventMaker:
        """Return what makes an event of a row."""
        return EventMaker(self.lane)

    @cached_property
    def codec(self) -> RowCodec:
        """Return what reads stored rows."""
        return RowCodec(self.lane.source.name, [c.dtype for c in self.lane.source.columns])

    def refill(self, transaction: Transaction, keys: Sequence[bytes]) -> None:
        """Give keys exactly their living events: history's, but for rows that a stream has changed since, and the stream's."""
        access, online = transaction.access(DATABASE), OnlineLane(self.lane.lane, self.lane.outputs)
        size, spans = online.chunks.event, [self._span(key) for key in keys]
        rows = iter(transaction.get_many(DATABASE, self._row_keys(spans)))
        heads = transaction.get_many(DATABASE, keys)
        for key, (first, end), head in zip(keys, spans, heads, strict=True):
            found = (self.events[at * size : (at + 1) * size] for at in range(first, end))
            held = zip(found, islice(rows, end - first), strict=True)
            events = [event for event, row in held if row is None or self._follows(event, row, key)]
            if head is not None:
                merged = {ORDER.unpack_from(event): event for event in events}
                merged |= dict(_stored(online, access.get, key))
                events = [merged[order] for order in sorted(merged)]
                online.clear(access, key)
            online.fill(access, key, b"".join(events))
            StreamPath.repaired(access, key)

    def _span(self, key: bytes) -> tuple[int, int]:
        number = self.numbers.get(key[len(self.lane.prefix) :])
        return (0, 0) if number is None else (self.bounds[number], self.bounds[number + 1])

    def _row_keys(self, spans: Iterable[tuple[int, int]]) -> list[bytes]:
        """Return under which keys of the store the rows of some spans of events stand."""
        places = np.concatenate([np.arange(first, end) for first, end in spans])
        prefix = b"R" + self.lane.source.name.encode() + b"\0"
        return [prefix + row for row in self.ids.take(pa.array(self.rows[places])).to_pylist()]

    def _follows(self, event: bytes, row: bytes, key: bytes) -> bool:
        """Tell whether an event still follows from its row as it is stored now."""
        now = self.maker.event(self.codec.decode(row), ORDER.unpack_from(event)[2])
        return now is not None and now.key == key and ORDER.pack(*now[1:4]) + now.packed == event
