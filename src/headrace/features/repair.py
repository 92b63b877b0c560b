"""Fill keys of the online store from offline: those whose latest values only history knows, and new groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from headrace.core.identity import row_hash, text_id
from headrace.features.events import EventMaker, LaneEvent, text_key
from headrace.features.history import History
from headrace.features.plan import FeaturePlan, GroupPlan, LanePlan
from headrace.features.rows import ABSENT, RowCodec, StoredRow
from headrace.features.stream import DATABASE, StreamPath
from headrace.features.windows import OnlineLane
from headrace.sources.definition import SourceDefinition
from headrace.sources.record import ROW_ID
from headrace.storage.keyvalue import Access, KeyValue, Transaction

KEYS_AT_ONCE = 1_000  # to a commit
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
    access = transaction.access(DATABASE)
    newest, reveals = StreamPath.newest(access.get) or 0, read()
    wanted = [lane for group in plan.groups for lane in group.lanes if any(k.startswith(lane.prefix) for k in waiting)]
    for filling in _fillings(wanted, reveals, newest):
        for key in [key for key in waiting if key.startswith(filling.lane.prefix)]:
            filling.refill(access, key)
    return len(waiting)


def backfill(
    store: KeyValue, groups: Sequence[GroupPlan], newest: int, read: Read, told: Callable[[int, int], None]
) -> int:
    """Fill groups with every key's events that had arrived by `newest`; return how many keys there were.

    What a killed backfill left is dropped first; what a stream applied since `newest` stays. `told(done, total)` is called
    as keys are filled.

    Raises:
        DataError: a source has no reveals.
    """
    fillings = list(_fillings([lane for group in groups for lane in group.lanes], read(), newest))
    total, done = sum(len(filling.events) for filling in fillings), 0
    for filling in fillings:
        keys = sorted(filling.events)
        for start in range(0, len(keys), KEYS_AT_ONCE):
            part = keys[start : start + KEYS_AT_ONCE]
            with store.write() as transaction:
                access = transaction.access(DATABASE)
                for key in part:
                    filling.refill(access, key)
            done += len(part)
            told(done, total)
    return total


@dataclass(frozen=True, eq=False)
class _Filling:
    """Hold a lane's events as history has them: by key, each with the key of its row in the store."""

    lane: LanePlan
    maker: EventMaker
    codec: RowCodec
    online: OnlineLane
    newest: int
    events: Mapping[bytes, Sequence[tuple[bytes, LaneEvent, tuple[str, ...]]]]

    def refill(self, access: Access, key: bytes) -> None:
        """Give a key exactly its living events: history's, but for rows that a stream has changed since, and the stream's."""
        living = {
            (event.moment, event.arrival, event.row): self.lane.lane.pack(event.values)
            for event in self.online.events(access.get, key)
            if event.arrival >= self.newest
        }
        for row, event, texts in self.events.get(key, ()):
            stored = access.get(row)
            if stored is None or self.maker.event(self.codec.decode(stored), event.row) == event:
                living[event[1:4]] = event.packed
                for text in texts:
                    access.put(text_key(text_id(text)), text.encode())
        self.online.clear(access, key)
        for order in sorted(living):
            self.online.change(access, key, (*order, living[order]), None)
        StreamPath.repaired(access, key)


def _fillings(lanes: Sequence[LanePlan], reveals: Mapping[str, pa.Table], newest: int) -> Iterator[_Filling]:
    """Yield what fills each lane, from the reveals that had arrived by `newest`."""
    by_source: dict[str, list[LanePlan]] = defaultdict(list)
    for lane in lanes:
        by_source[lane.source.name].append(lane)
    for name, group in by_source.items():
        source = group[0].source
        history = History.build(source, reveals[name], newest)
        makers = [EventMaker(lane) for lane in group]
        found: list[dict[bytes, list[tuple[bytes, LaneEvent, tuple[str, ...]]]]] = [defaultdict(list) for _ in group]
        for key, row in _rows(source, group, history):
            identity = row_hash(key)
            for maker, events in zip(makers, found, strict=True):
                event = maker.event(row, identity)
                if event is not None:
                    events[event.key].append((key, event, tuple(maker.texts(row)) if maker.references else ()))
        for lane, maker, events in zip(group, makers, found, strict=True):
            yield _Filling(lane, maker, RowCodec(source), OnlineLane(lane.lane, lane.outputs), newest, events)


def _rows(source: SourceDefinition, lanes: Sequence[LanePlan], history: History) -> Iterator[tuple[bytes, StoredRow]]:
    """Yield each row's key in the store and its newest cells, as far as the lanes read them."""
    last = np.append(history.starts[1:], len(history)) - 1 if len(history) else np.zeros(0, np.int64)
    n, values, arrivals = len(source.columns), {}, {}
    for place in sorted({source.index[column] for lane in lanes for column in lane.reads}):
        origin = history.origin(source.columns[place])[last]
        arrived = np.where(origin >= 0, history.arrival[np.maximum(origin, 0)], ABSENT)
        values[place] = history.cells(source.columns[place]).take(pa.array(last)).to_pylist()
        arrivals[place] = arrived.tolist()
    ids = history.table[ROW_ID].take(pa.array(history.order[last])).to_pylist()
    prefix, contents = b"R" + source.name.encode() + b"\0", [0] * n
    for i, row_id in enumerate(ids):
        row = StoredRow([ABSENT] * n, contents, [None] * n)
        for place, column in values.items():
            row.values[place], row.arrivals[place] = column[i], arrivals[place][i]
        yield prefix + row_id, row
