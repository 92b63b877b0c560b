"""Open an online read: all rows' features from one moment of the store, whatever the store can do.

A store with snapshots needs nothing. Without them everything that the rows need is asked for in one `get_many`, which
sees one moment: first the heads of all lanes, then heads and blocks together, and so on until nothing is missing. No value of
an earlier answer is kept, so a head that changes in between cannot be mixed with older blocks; but which keys a read went on
to is, so the next read of the same key mostly has all with its first question.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace.core.errors import Unavailable
from headrace.features.online import OnlineFeatures
from headrace.features.stream import DATABASE, NEWEST, moment_of_read
from headrace.storage.keyvalue import Get, KeyValue, Snapshot

ROUNDS = 20  # two or three are enough unless the same keys change all the time


def open_read(
    store: KeyValue,
    snapshot: Snapshot,
    features: OnlineFeatures[Any],
    rows: Sequence[Sequence[Any]],
    stated: int | None,
    *,
    now: int,
    also: Sequence[bytes] = (),
) -> tuple[Get, int]:
    """Return the function with which `features.read` reads exactly these rows, and the moment of the read.

    Args:
        store: the online store.
        snapshot: what `store.read()` gave.
        features: the reader.
        rows: the rows, as `features.read` takes them.
        stated: the moment that was asked for, or None for now; microseconds UTC.
        now: the clock's moment.
        also: other keys that the function shall read, as they were at the same moment.

    Raises:
        DataError: the stated moment is older than the newest applied arrival.
        Unavailable: the store cannot be reached, or the rows' keys kept changing.
        Corrupt: stored bytes are damaged.
    """
    if store.capabilities.snapshot:
        get = snapshot.getter(DATABASE)
        return get, moment_of_read(get, stated, now=now)
    keys = dict.fromkeys([NEWEST, *also, *features.guess(rows)])
    for _ in range(ROUNDS):
        held = dict(zip(keys, snapshot.get_many(DATABASE, keys), strict=True))
        t = moment_of_read(held.get, stated, now=now)
        missing = features.missing(held, rows, t)
        if not missing:
            return held.get, t
        keys |= dict.fromkeys(missing)
    raise Unavailable(
        "the rows' features changed all the time while they were read",
        got=f"{ROUNDS} reads, each of a newer state",
        next_step="try again, or let the writer commit less often",
    )
