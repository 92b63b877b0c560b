"""Name the online state by what reads can see of it, whatever the order in which it came to be."""

from __future__ import annotations

import hashlib
import struct

import numpy as np

from headrace.core.time import civil_time
from headrace.features.events import head_keys
from headrace.features.plan import FeaturePlan
from headrace.features.record import OK
from headrace.features.snapshots import COPIES, Held
from headrace.features.stream import DATABASE, StreamPath
from headrace.features.windows import OnlineLane
from headrace.storage.keyvalue import Snapshot


def state_digest(snapshot: Snapshot, plan: FeaturePlan) -> str:
    """Return the SHA-256 of every key's events and values, as reads at the newest applied arrival find them.

    Equal sets of applied reveals give equal digests, streamed, rebuilt or filled from history. How events lie in blocks,
    and rows that nothing needs any more, do not count.

    Raises:
        Corrupt: stored bytes are damaged.
    """
    get, found = snapshot.getter(DATABASE), hashlib.sha256()
    newest = StreamPath.newest(get) or 0
    for group in sorted(plan.groups, key=lambda group: group.hash):
        for lane in group.lanes:
            online = OnlineLane(lane.lane, lane.outputs)
            if lane.dated:
                copies = Held.load(get(COPIES + lane.source.name.encode()))
                online.hold_from(copies.newest(newest + 1, state=lane.lane.state))
            newest_values = np.array([output.window is None for output in lane.outputs])
            for key in head_keys(key for key, _ in snapshot.items(DATABASE, lane.prefix)):
                kept = [e for e in online.events(get, key) if e.moment >= newest - lane.lane.keep]
                online.read(get, key, newest + 1, None if lane.zone is None else civil_time(newest + 1, lane.zone))
                values = _values(online)
                if kept or (online.status[newest_values] == OK).any():
                    found.update(struct.pack("<I", len(key)) + key + repr(kept).encode() + values)
    return found.hexdigest()


def _values(online: OnlineLane) -> bytes:
    """Return what the last read found; of a fold, the values that it takes."""
    words, taken = online.words.copy(), online.folds()
    for place in taken:
        words[place] = 0
    return words.tobytes() + online.status.tobytes() + b"".join(values.tobytes() for values in taken.values())
