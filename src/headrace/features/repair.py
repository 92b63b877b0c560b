"""Fill keys of the online store from offline: those whose latest values only history knows, and new groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.features.events import head_keys, text_keys
from headrace.features.history import History
from headrace.features.lane_plan import GroupPlan, LanePlan
from headrace.features.living import Living, stored_under
from headrace.features.plan import FeaturePlan
from headrace.features.snapshots import note_copies
from headrace.features.stock import Stock
from headrace.features.stream import DATABASE, StreamPath
from headrace.features.windows import OnlineLane
from headrace.storage.keyvalue import KeyValue, Transaction

KEYS_AT_ONCE = 10_000  # to a commit
PUTS_AT_ONCE = 25_000  # to a commit of what is only written
Ints = NDArray[np.int64]
S = TypeVar("S", list[bytes], Ints)
Read = Callable[[LanePlan, pa.Array], pa.Table]


def repair(transaction: Transaction, plan: FeaturePlan, read: Read) -> int:
    """Refill every waiting key from history; return how many there were.

    `read` returns, for a lane and some keys without its prefix, the reveals of every row that ever had one of them; others do
    no harm. Nothing is read while no key waits. Reveals that arrived after the newest applied one are left out, so that
    the state stays that of what was applied.
    """
    waiting = StreamPath.waiting(transaction)
    newest = StreamPath.newest(transaction.access(DATABASE).get) or 0
    for lane in [lane for group in plan.groups for lane in group.lanes]:
        keys = [key for key in waiting if key.startswith(lane.prefix)]
        if not keys:
            continue
        asked = pa.array([key[len(lane.prefix) :] for key in keys], pa.binary())
        living = Living.of_history(lane, History.build(lane.source, read(lane, asked), newest))
        places = pc.index_in(asked, value_set=living.keys).to_pylist()
        living.refill(transaction, list(zip(keys, places, strict=True)), settled=False)
    return len(waiting)


def backfill(
    store: KeyValue,
    groups: Sequence[GroupPlan],
    newest: int,
    read: Callable[[], Stock],
    told: Callable[[int, int], None],
    filled: Callable[[GroupPlan], None] = lambda group: None,
) -> int:
    """Fill groups with every key's events that had arrived by `newest`; return how many keys there were.

    `read` gives what the groups' sources say of everything that had arrived by `newest`.
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
    stock = read()
    total, done, keys = sum(stock.reveals(lane.source) for lane in lanes), 0, 0
    for lane in lanes:
        reveals = stock.reveals(lane.source)
        noted = stock.copies(lane.source) if lane.dated else None
        if noted is not None:
            with store.write() as transaction:
                note_copies(transaction.access(DATABASE), lane.source.name, *noted)
        for piece, living in enumerate(stock.living(lane)):
            for rows in _text_rows(living):
                with store.write() as transaction:
                    transaction.put_many(DATABASE, rows)
            end = 0
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
                told(done + int(reveals * (piece + end / len(living.keys)) / stock.pieces), total)
            keys += len(living.keys)
        done += reveals
        for group in groups:
            if lane is group.lanes[-1]:
                filled(group)
    return keys


def _text_rows(living: Living) -> Iterator[Iterator[tuple[bytes, bytes]]]:
    """Yield, in parts, under which keys the texts of a lane stand, and these, value by value in the order of the keys."""
    for ids, texts in living.told.texts():
        for part in _parts(np.argsort(ids), PUTS_AT_ONCE):
            stored = texts.take(pa.array(part)).cast(pa.binary())
            yield zip(text_keys(ids[part]), stored.to_pylist(), strict=True)


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
                kept = [event for order, event in stored_under(online, access.get, key) if order[1] > newest]
                online.clear(access, key)
                online.fill(access, key, b"".join(kept))
