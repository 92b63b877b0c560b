"""Fill keys of the online store from offline: those whose latest values only history knows, and new groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.features.events import text_key
from headrace.features.history import NEVER, History
from headrace.features.lane_plan import GroupPlan, LanePlan
from headrace.features.offline import lane_events, texts_by_id
from headrace.features.plan import FeaturePlan
from headrace.features.stream import DATABASE, StreamPath
from headrace.features.windows import LaneEvents, OnlineLane
from headrace.storage.keyvalue import Access, KeyValue, Transaction

KEYS_AT_ONCE = 1_000  # to a commit


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
            events, numbers = lane_events(lane, history)
            _refill(access, lane, keys, events, numbers, _living(events))
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
    reveals = read()
    work = []
    for lane in (lane for group in groups for lane in group.lanes):
        history = History.build(lane.source, reveals[lane.source.name], newest)
        work.append((lane, *lane_events(lane, history), texts_by_id(lane, history)))
    total, done = sum(len(numbers) for _, _, numbers, _ in work), 0
    for lane, events, numbers, texts in work:
        with store.write() as transaction:
            access = transaction.access(DATABASE)
            for identity, text in texts.items():
                access.put(text_key(identity), text.encode())
        order = _living(events)
        keys = [lane.prefix + key for key in numbers]
        for start in range(0, len(keys), KEYS_AT_ONCE):
            with store.write() as transaction:
                part = keys[start : start + KEYS_AT_ONCE]
                _refill(transaction.access(DATABASE), lane, part, events, numbers, order)
            done += len(part)
            told(done, total)
    return total


def _refill(
    access: Access,
    lane: LanePlan,
    keys: Iterable[bytes],
    events: LaneEvents,
    numbers: dict[bytes, int],
    order: NDArray[np.int64],
) -> None:
    """Give keys exactly their living events; `order` has those of all keys, by key and then as they follow each other."""
    online, sorted_keys = OnlineLane(lane.lane, lane.outputs), events.key[order]
    for key in keys:
        online.clear(access, key)
        number = numbers.get(key[len(lane.prefix) :], -1)
        first, end = np.searchsorted(sorted_keys, [number, number + 1])
        for i in order[first:end].tolist():
            mask = sum(1 << c for c, null in enumerate(events.nulls[i].tolist()) if null)
            packed = mask.to_bytes(8, "little") + events.words[i].tobytes()
            online.change(
                access, key, (int(events.moment[i]), int(events.arrival[i]), int(events.row[i]), packed), None
            )
        StreamPath.repaired(access, key)


def _living(events: LaneEvents) -> NDArray[np.int64]:
    """Return the places of the events that hold now, by key and then in their order."""
    order = np.lexsort((events.row, events.arrival, events.moment, events.key))
    living: NDArray[np.int64] = order[events.until[order] == NEVER]
    return living
