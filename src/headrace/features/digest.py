"""Name the online state by what reads can see of it, whatever the order in which it came to be."""

from __future__ import annotations

import hashlib
import struct

import numpy as np

from headrace.features.plan import FeaturePlan
from headrace.features.record import OK
from headrace.features.stream import DATABASE, StreamPath
from headrace.features.windows import OnlineLane
from headrace.storage.keyvalue import Snapshot

BLOCK_KEY = 5  # a lane's blocks stand behind their key, with `c` and a number of 4 bytes


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
            online, last = OnlineLane(lane.lane, lane.outputs), b""
            newest_values = np.array([output.window is None for output in lane.outputs])
            for key, _ in snapshot.items(DATABASE, lane.prefix):
                if last and key.startswith(last) and len(key) == len(last) + BLOCK_KEY:
                    continue
                last = key
                kept = [e for e in online.events(get, key) if e.moment >= newest - lane.lane.keep]
                online.read(get, key, newest + 1)
                values = online.words.tobytes() + online.status.tobytes()
                if kept or (online.status[newest_values] == OK).any():
                    found.update(struct.pack("<I", len(key)) + key + repr(kept).encode() + values)
    return found.hexdigest()
