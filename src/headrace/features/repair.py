"""Fill keys of the online store from offline: those whose latest values only history knows, and new groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from headrace.features.events import text_key
from headrace.features.history import NEVER, History
from headrace.features.lane_plan import GroupPlan, LanePlan
from headrace.features.offline import lane_events, texts_by_id
from headrace.features.plan import FeaturePlan
from headrace.features.stream import DATABASE, StreamPath
from headrace.features.windows import OnlineLane
from headrace.storage.keyvalue import Access, KeyValue, Transaction

KEYS_AT_ONCE = 10_000  # to a commit


def repair(transaction: Transaction, plan: FeaturePlan, read: Callable[[], Mapping[str, pa.Table]]) -> int:
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
    for lane in (lane for group in plan.groups for lane in group.lanes):
        keys = [key for key in waiting if key.startswith(lane.prefix)]
        if keys:
            history = History.build(lane.source, reveals[lane.source.name], newest)
            _Living.of(lane, history).refill(access, keys)
    return len(waiting)


def backfill(
    store: KeyValue,
    groups: Sequence[GroupPlan],
    newest: int,
    read: Callable[[], Mapping[str, pa.Table]],
    told: Callable[[int, int], None],
) -> int:
    """Fill groups with every key's events that had arrived by `newest`; return how many keys there were.

    What a killed backfill left is dropped first. `told(done, total)` is called as keys are filled.

    Raises:
        DataError: a source has no reveals.
    """
    fillings = _fillings([lane for group in groups for lane in group.lanes], read(), newest)
    total, done = sum(len(living.numbers) for living, _ in fillings), 0
    for living, texts in fillings:
        with store.write() as transaction:
            access = transaction.access(DATABASE)
            for identity, text in sorted(texts.items()):
                access.put(text_key(identity), text.encode())
        keys = sorted(living.lane.prefix + key for key in living.numbers)
        for start in range(0, len(keys), KEYS_AT_ONCE):
            part = keys[start : start + KEYS_AT_ONCE]
            with store.write() as transaction:
                living.refill(transaction.access(DATABASE), part)
            done += len(part)
            told(done, total)
    return total


def _fillings(
    lanes: Sequence[LanePlan], reveals: Mapping[str, pa.Table], newest: int
) -> list[tuple[_Living, dict[int, str]]]:
    """Return what fills each lane, with the texts that it refers to."""
    sources = {lane.source.name: lane.source for lane in lanes}
    histories = {name: History.build(source, reveals[name], newest) for name, source in sources.items()}
    found = []
    for lane in lanes:
        history = histories[lane.source.name]
        found.append((_Living.of(lane, history), texts_by_id(lane, history)))
    return found


@dataclass(frozen=True, eq=False)
class _Living:
    """Hold a lane's events that hold now, as they are stored: key `numbers[k]` has those from `bounds[k]` on."""

    lane: LanePlan
    numbers: Mapping[bytes, int]
    bounds: Sequence[int]
    events: bytes

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
        return cls(lane, numbers, bounds.tolist(), stored.tobytes())

    def refill(self, access: Access, keys: Iterable[bytes]) -> None:
        """Give keys exactly their living events."""
        online, skip = OnlineLane(self.lane.lane, self.lane.outputs), len(self.lane.prefix)
        size, bounds = online.chunks.event, self.bounds
        for key in keys:
            online.clear(access, key)
            number = self.numbers.get(key[skip:])
            if number is not None:
                online.fill(access, key, self.events[bounds[number] * size : bounds[number + 1] * size])
            StreamPath.repaired(access, key)
