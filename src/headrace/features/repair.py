"""Repair keys of the online store whose latest values only history knows: refill them from offline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import pyarrow as pa

from headrace.features.history import NEVER, History
from headrace.features.offline import lane_events
from headrace.features.plan import FeaturePlan, LanePlan
from headrace.features.stream import DATABASE, StreamPath
from headrace.features.windows import LaneEvents, OnlineLane
from headrace.storage.keyvalue import Access, Transaction


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
            _refill(access, lane, keys, *lane_events(lane, history))
    return len(waiting)


def _refill(
    access: Access, lane: LanePlan, keys: Iterable[bytes], events: LaneEvents, numbers: dict[bytes, int]
) -> None:
    online = OnlineLane(lane.lane, lane.outputs)
    for key in keys:
        online.clear(access, key)
        mine = np.flatnonzero((events.key == numbers.get(key[len(lane.prefix) :], -1)) & (events.until == NEVER))
        for i in mine[np.lexsort((events.row[mine], events.arrival[mine], events.moment[mine]))].tolist():
            mask = sum(1 << c for c, null in enumerate(events.nulls[i]) if null)
            packed = mask.to_bytes(8, "little") + events.words[i].tobytes()
            online.change(
                access, key, (int(events.moment[i]), int(events.arrival[i]), int(events.row[i]), packed), None
            )
        StreamPath.repaired(access, key)
