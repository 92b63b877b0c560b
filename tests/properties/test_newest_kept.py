"""Of latest values that are kept whatever their age, a read tells the newest or that only history knows it, never another.

Values come late, are corrected, and the newest are taken back many at a time, while older ones are dropped.
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import headrace as hr
from headrace.core.time import DAY, HOUR, Instant
from headrace.features.digest import state_digest
from headrace.features.lanes import HEAD, REBUILD
from headrace.features.plan import plan_features
from headrace.features.record import OK
from headrace.features.record import REBUILD as ONLY_HISTORY_KNOWS
from headrace.features.stream import DATABASE, StreamPath
from headrace.features.windows import Lane, OnlineLane, Output, ValueType
from headrace.sources.definition import definition_of
from headrace.storage.keyvalue import KeyValue, open_keyvalue
from headrace.testing.oracle import reveal

START = int(Instant.parse("2024-01-01T00:00:00Z"))
KEY = b"k"


class Memory(dict[bytes, bytes]):
    put, delete = dict.__setitem__, dict.__delitem__


class Life:
    """Change one key's events at random, and know which of them hold."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        self.columns = random.choice([1, 2, 3])
        kinds, keep = (ValueType.FLOAT,) * self.columns, random.choice([5, 20, 60])
        self.lane = Lane(kinds, (), keep=keep, latest=True, state=random.random() < 0.3)
        outputs = [Output(i, "latest", None, None) for i in range(self.columns)]
        self.online = OnlineLane(self.lane, outputs, seal=random.choice([4, 6, 8]))
        self.late, self.corrected = random.choice([0.05, 0.3, 0.6]), random.choice([0, 0.1, 0.4])
        self.taken_back = random.choice([0.0, 0.0, 0.5, 1.0])  # of a burst; the others are corrected
        self.stays = random.choice([0.3, 1.0])  # of those; the others move to an older moment
        self.nulls = random.choice([0.1, 0.6, 0.9])
        self.store, self.held = Memory(), dict[tuple[int, int, int], list[float | None]]()
        self.now = self.row = self.burst = 0

    def step(self) -> None:
        random = self.random
        self.now += random.randrange(3)
        if not self.burst and random.random() < 0.01:
            self.burst = random.randrange(5, 30)
        if self.held and random.random() < self.corrected:
            old = random.choice(sorted(self.held)[-9:])
            moment = old[0] if random.random() < 0.6 else random.randrange(self.now + 1)
            self.move(old, (moment, self.now, old[2]), self.values())
        elif self.held and self.burst and random.random() < 0.9:
            self.burst -= 1
            old = random.choice(sorted(self.held)[-3:])
            gone = random.random() < self.taken_back
            moment = old[0] if random.random() < self.stays else random.randrange(old[0] + 1)
            self.move(old, None if gone else (moment, self.now, old[2]), self.values())
        else:
            self.row += 1
            moment = self.now if random.random() > self.late else random.randrange(self.now + 1)
            self.move(None, (moment, self.now, self.row), self.values())

    def values(self) -> list[float | None]:
        return [None if self.random.random() < self.nulls else self.random.random() for _ in range(self.columns)]

    def move(
        self, old: tuple[int, int, int] | None, new: tuple[int, int, int] | None, values: list[float | None]
    ) -> None:
        if new is not None and not self.lane.state and not any(v is not None for v in values):
            new = None
        if old is not None:
            del self.held[old]
        if new is not None:
            self.held[new] = values
        if old is not None or new is not None:
            self.online.change(self.store, KEY, None if new is None else (*new, self.lane.pack(values)), old)

    def newest(self, column: int) -> float | None:
        values = [self.held[order][column] for order in sorted(self.held)]
        there = values if self.lane.state else [v for v in values if v is not None]
        return there[-1] if there else None


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32))
@example(56)
@example(218)
def test_a_latest_value_is_the_newest_or_said_to_be_unknown(seed: int) -> None:
    life = Life(seed)
    for _ in range(400):
        life.step()
        life.online.read(life.store.get, KEY, life.now + 1)
        for column in range(life.columns):
            status = int(life.online.status[column])
            found = float(life.online.values[column]) if status == OK else None
            assert status == ONLY_HISTORY_KNOWS or found == life.newest(column)


@pytest.mark.parametrize("how", ["to null", "to an older moment"])
def test_corrections_that_take_newest_values_away_are_counted(how: str) -> None:
    """A late value is older than what was dropped, and would pass for the newest once all kept ones are corrected."""
    lane = Lane((ValueType.INT, ValueType.INT), (10,), keep=20, latest=True)
    online, store = OnlineLane(lane, [Output(1, "latest", None, None)], seal=4), Memory()
    for i in range(100):
        online.change(store, KEY, (i, i, i, lane.pack([i, i])), None)
    online.change(store, KEY, (2, 200, 7, lane.pack([777, 777])), None)
    for i in range(99, 39, -1):
        moment, values = (i, [i, None]) if how == "to null" else (1, [i, i])
        online.change(store, KEY, (moment, 200 + i, i, lane.pack(values)), (i, i, i))
    online.read(store.get, KEY, 500)
    assert online.status.tolist() == [ONLY_HISTORY_KNOWS]


def test_corrections_that_keep_newest_values_are_not() -> None:
    lane = Lane((ValueType.INT,), (10,), keep=20, latest=True)
    online, store = OnlineLane(lane, [Output(0, "latest", None, None)], seal=4), Memory()
    for i in range(100):
        online.change(store, KEY, (i, i, i, lane.pack([i])), None)
    assert not any(online.change(store, KEY, (i, 200 + i, i, lane.pack([-i])), (i, i, i)) for i in range(80, 100))
    online.read(store.get, KEY, 500)
    assert (online.status.tolist(), online.words.tolist()) == ([OK], [-99])


class Orders(hr.Source):
    order: hr.Column[int] = hr.row_id()
    at: hr.Column[hr.Instant] = hr.event_time()
    shop: hr.Column[str] = hr.entity()
    amount: hr.Column[float] = hr.column()


class Shop(hr.FeatureGroup, of=Orders, entity=Orders.shop):
    last = hr.latest(Orders.amount)
    total = hr.sum(Orders.amount).over("2d")


PLAN = plan_features([Shop], "")


def applied(store: KeyValue, log: list[Any]) -> None:
    """Apply reveals, and drop the rows that nothing needs any more."""
    path, newest = StreamPath([PLAN]), max(one.arrival for one in log)
    with store.write() as transaction:
        access = transaction.access(DATABASE)
        for one in log:
            path.apply(access, "Orders", one)
        path.commit(access, newest, {})
        assert path.expire(transaction, newest) > 100


def test_a_table_applied_again_after_rows_expired_gives_the_same_answers() -> None:
    """Rows that are gone are taken for new ones: their events come once more, and are dropped once more.

    What counts changes (`version`, block numbers, the floor, up to which dropping went) goes on; what is told does not change,
    and no key has to wait for history because of it.
    """
    random, source, log = Random(0), definition_of(Orders), []
    for i in range(400):
        at = START + i * 6 * HOUR
        cells: dict[Any, Any] = {Orders.order: i, Orders.at: at, Orders.shop: "s", Orders.amount: random.random()}
        log.append(reveal(source, cells, at))
        if random.random() < 0.3:
            log.append(reveal(source, {Orders.order: i, Orders.amount: random.random()}, at + DAY))
    with (
        open_keyvalue("memory:", databases=[DATABASE]) as store,
        open_keyvalue("memory:", databases=[DATABASE]) as rebuilt,
    ):
        for _ in range(3):
            applied(store, log)
        applied(rebuilt, log)
        with store.read() as snapshot, rebuilt.read() as other:
            assert state_digest(snapshot, PLAN) == state_digest(other, PLAN)
            kept, wanted = dict(snapshot.items(DATABASE)), dict(other.items(DATABASE))
            differing = [key for key in kept.keys() | wanted.keys() if kept.get(key) != wanted.get(key)]
            lane = PLAN.groups[0].lanes[0].prefix
            assert {key[:1] for key in differing if key != b"Fcommits"} <= {lane[:1]}
            heads = [HEAD.unpack_from(blob) for key, blob in kept.items() if key[:1] == b"L" and b"c" not in key[10:]]
            assert heads
            assert all(marks >> 24 & 255 == 0 and not marks >> 16 & REBUILD for marks, *_ in heads)
