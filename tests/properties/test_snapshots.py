"""Tables that come in whole copies: as of t the newest copy that had arrived holds, and a key that it lacks has no value.

The reference keeps the copies as they were made up; nothing of it knows of reveals, lanes or events.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import headrace as hr
from headrace.core.errors import DefinitionError
from headrace.core.time import DAY, HOUR, Instant
from headrace.engines.local import LocalEngine
from headrace.features.buckets import Spread, lanes_of
from headrace.features.digest import state_digest
from headrace.features.explain import explain_feature
from headrace.features.offline import OfflineFeatures, histories_of
from headrace.features.online import OnlineFeatures
from headrace.features.plan import plan_features
from headrace.features.repair import backfill
from headrace.features.snapshots import NONE_YET, Held
from headrace.features.stream import DATABASE, StreamPath
from headrace.sources.definition import definition_of
from headrace.sources.plan import reveal_of
from headrace.sources.record import Reveal
from headrace.sources.run import batch_of
from headrace.storage.keyvalue import KeyValue, open_keyvalue
from headrace.testing.oracle import parity
from tests.stock import stock_of

START = int(Instant.parse("2024-03-29T00:00:00Z"))  # clocks in Paris go forward on the 31st
KEYS = ("a", "b", "c", "d")


class Customers(hr.Source, history="snapshots"):
    customer: hr.Column[str] = hr.entity()
    household: hr.Column[str | None] = hr.entity()
    taken: hr.Column[hr.Instant] = hr.event_time()
    plan: hr.Column[str | None] = hr.column()
    spent: hr.Column[float | None] = hr.column()
    known_at = taken + "2h"


class Ranks(hr.Source, history="snapshots"):
    client: hr.Column[str] = hr.entity()
    day: hr.Column[hr.Date] = hr.event_date(tz="Europe/Paris", known_after="3h")
    rank: hr.Column[int | None] = hr.column()


class Customer(hr.FeatureGroup, of=Customers, entity=Customers.customer):
    now = hr.latest(Customers.plan, Customers.spent)
    young = hr.latest(Customers.spent, max_age="30h")
    premium = hr.latest(Customers.spent, where=Customers.spent > 1)
    since = hr.latest(Customers.taken)
    copies = hr.count(Customers.spent).over("3d")
    highest = hr.max(Customers.spent).over("2d", "lifetime")


class Household(hr.FeatureGroup, of=Customers, entity=Customers.household):
    some = hr.latest(Customers.customer)


class Rank(hr.FeatureGroup, of=Ranks, entity=Ranks.client):
    now = hr.latest(Ranks.rank)
    best = hr.min(Ranks.rank).over("3d")


PLAN = plan_features([Customer, Household, Rank], "")
NAMES = [column.name for column in PLAN.columns]


@dataclass(frozen=True)
class Copy:
    """Hold a copy of a table: when it is known, when it arrived, and its rows by key."""

    known: int
    arrival: int
    rows: Mapping[str, Mapping[str, Any]]


def made(random: Random, count: int) -> list[tuple[Copy, list[Reveal]]]:
    """Make up copies of which each has some of the keys; some arrive late, some after newer ones."""
    found = []
    for number in range(count):
        taken = START + number * DAY // 2
        arrival = taken + random.choice([0, HOUR, 2 * HOUR, 5 * HOUR, 20 * HOUR])
        rows = {
            key: {"plan": random.choice(["x", "y", None]), "spent": random.choice([0.5, 1.5, -0.0, None])}
            for key in random.sample(KEYS, random.randint(1, len(KEYS)))
        }
        told = [
            reveal
            for key, cells in rows.items()
            for reveal in reveal_of(
                definition_of(Customers),
                {
                    "customer": key,
                    "household": random.choice(["h1", "h2", None]),
                    "taken": taken,
                    **cells,
                    "_arrival": arrival,
                },
            )
        ]
        found.append((Copy(taken + 2 * HOUR, arrival, rows), told))
    return found


def rankings(random: Random, count: int) -> list[Reveal]:
    """Make up copies of the other table; their rows arrive one by one, and some are corrected."""
    found = []
    for number in range(count):
        day = (START // DAY + number) * DAY
        for key in random.sample(KEYS, random.randint(1, len(KEYS))):
            for _ in range(random.choice([1, 1, 2])):
                event = {"client": key, "day": day, "rank": random.choice([1, 2, None])}
                event["_arrival"] = day + random.choice([0, 27 * HOUR, 30 * HOUR])
                found += reveal_of(definition_of(Ranks), event)
    return found


def expected(copies: list[Copy], key: str, t: int) -> Mapping[str, Any]:
    """Return the row of a key in the newest copy that is known at `t`, or nothing."""
    known = [copy for copy in copies if copy.known <= t and copy.arrival <= t]
    return max(known, key=lambda copy: copy.known).rows.get(key, {}) if known else {}


def asked_moments(random: Random, copies: list[Copy]) -> list[int]:
    edges = [edge for copy in copies for edge in (copy.known, copy.arrival)]
    near = [edge + random.choice([-1, 0, 1]) for edge in edges]
    return [*near, *(random.randint(START, START + 6 * DAY) for _ in range(8))]


def log_of(random: Random, count: int) -> tuple[list[Copy], list[tuple[str, Reveal]]]:
    found = made(random, count)
    log = [("Customers", reveal) for _, told in found for reveal in told]
    return [copy for copy, _ in found], log + [("Ranks", reveal) for reveal in rankings(random, count // 2 + 1)]


def tables_of(log: list[tuple[str, Reveal]]) -> dict[str, pa.Table]:
    return {
        source.name: batch_of(source, [reveal for name, reveal in log if name == source.name]).table
        for source in PLAN.sources
    }


def rows_of(asked: list[tuple[list[Any], int]]) -> tuple[pa.Table, np.ndarray[Any, Any]]:
    columns = {c.name: [row[i] for row, _ in asked] for i, c in enumerate(PLAN.row)}
    return pa.table(columns), np.array([t for _, t in asked], np.int64)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 3))
def test_every_path_agrees_with_the_definition(seed: int, count: int, partitions: int) -> None:
    random = Random(seed)
    copies, log = log_of(random, count)
    row = {"customer": KEYS, "client": KEYS, "household": ("h1", "h2", "h3", None)}
    asked = [([random.choice(row[c.name]) for c in PLAN.row], t) for t in asked_moments(random, copies)]
    assert parity(PLAN, log, asked, random=random, partitions=partitions) > 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 9), st.booleans())
def test_as_of_t_the_newest_copy_that_had_arrived_holds(seed: int, count: int, bucketed: bool) -> None:
    random = Random(seed)
    copies, log = log_of(random, count)
    key_place = next(i for i, c in enumerate(PLAN.row) if c is Customers.customer)
    asked: list[tuple[list[Any], int]] = []
    for t in asked_moments(random, copies):
        row: list[Any] = [None] * len(PLAN.row)
        row[key_place] = random.choice(KEYS)
        asked.append((row, t))
    rows, moments = rows_of(asked)
    with TemporaryDirectory() as folder:
        spread = Spread(LocalEngine(), Path(folder), bucket_rows=7 if bucketed else 10_000)
        with spread.past(PLAN.sources, lanes_of(PLAN), tables_of(log), START + 99 * DAY) as past:
            table = OfflineFeatures(PLAN, past).compute(
                rows.cast(pa.schema([(c.name, pa.string()) for c in PLAN.row])), moments
            )
    found = table.table(PLAN).to_pylist()
    for (row, moment), values in zip(asked, found, strict=True):
        held = expected(copies, row[key_place], moment)
        assert values["Customer.now[plan]"] == held.get("plan"), (row, moment)
        assert repr(values["Customer.now[spent]"]) == repr(held.get("spent")), (row, moment)
        rich = held.get("spent") is not None and held["spent"] > 1
        assert values["Customer.premium"] == (held["spent"] if rich else None), (row, moment)


def applied(store: KeyValue, log: list[tuple[str, Reveal]], *, in_parts: bool = False) -> None:
    path = StreamPath([PLAN], in_parts=in_parts)
    with store.write() as transaction:
        access = transaction.access(DATABASE)
        for source, reveal in log:
            path.apply(access, source, reveal)
        path.commit(access, max(reveal.arrival for _, reveal in log), {})
        path.whole(access)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 9))
def test_state_is_the_same_in_any_order_again_in_parts_and_filled_from_history(seed: int, count: int) -> None:
    random = Random(seed)
    _, log = log_of(random, count)
    digests = set()
    for way in ("in order", "shuffled", "twice", "in parts"):
        told = list(log) if way == "in order" else random.sample(log, len(log))
        with open_keyvalue("memory:", databases=[DATABASE]) as store:
            applied(store, told + told[: len(told) // 2] if way == "twice" else told, in_parts=way == "in parts")
            with store.read() as snapshot:
                digests.add((state_digest(snapshot, PLAN), *(v for k, v in snapshot.items(DATABASE, b"S"))))
    with open_keyvalue("memory:", databases=[DATABASE]) as store:
        newest = max(reveal.arrival for _, reveal in log)
        with store.write() as transaction:
            StreamPath([PLAN]).commit(transaction.access(DATABASE), newest, {})
        backfill(
            store,
            PLAN.groups,
            newest,
            lambda: stock_of(PLAN.sources, PLAN.groups, tables_of(log), newest),
            lambda done, total: None,
        )
        with store.read() as snapshot:
            digests.add((state_digest(snapshot, PLAN), *(v for k, v in snapshot.items(DATABASE, b"S"))))
    assert len(digests) == 1


def test_what_a_copy_lacks_holds_until_all_of_the_copy_is_applied() -> None:
    """A large copy takes many transactions; between them nobody is told that the rest of the table is gone."""
    definition, first, second = definition_of(Customers), START, START + DAY
    told = [
        ("Customers", reveal)
        for taken, keys in ((first, "ab"), (second, "a"))
        for key in keys
        for reveal in reveal_of(
            definition,
            {"customer": key, "household": None, "taken": taken, "plan": key, "spent": 1.0, "_arrival": taken},
        )
    ]
    with open_keyvalue("memory:", databases=[DATABASE]) as store:
        applied(store, told[:2], in_parts=True)
        path = StreamPath([PLAN], in_parts=True)
        with store.write() as transaction:
            access = transaction.access(DATABASE)
            path.apply(access, *told[2])
            path.commit(access, second, {})
        assert read(store, "b", second + 3 * HOUR)["Customer.now[plan]"] == "b"
        assert read(store, "a", second + 3 * HOUR)["Customer.since"] == second
        with store.write() as transaction:
            path.whole(transaction.access(DATABASE))
        assert read(store, "b", second + 3 * HOUR)["Customer.now[plan]"] is None
        assert read(store, "b", second + 1)["Customer.now[plan]"] == "b"  # the newer copy is known two hours later


def read(store: KeyValue, key: str, t: int) -> dict[str, Any]:
    row = [key if c is Customers.customer else None for c in PLAN.row]
    with store.read() as snapshot:
        return dict(OnlineFeatures(PLAN).read(snapshot.getter(DATABASE), row, t).to_dict())


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=8), st.randoms())
def test_what_is_kept_of_copies_does_not_depend_on_order(told: list[tuple[int, int]], random: Random) -> None:
    """Each is (moment, arrival); reads are never older than the newest arrival."""
    one, other = Held(NONE_YET, ()), Held(NONE_YET, ())
    for moment, arrival in told:
        one = one.with_copies(arrival, [moment])
    for moment, arrival in random.sample(told, len(told)):
        other = other.with_copies(arrival, [moment])
    assert one == other == Held.load(one.dump())
    for t in range(max(arrival for _, arrival in told), 12):
        for state in (False, True):
            known = [moment for moment, _ in told if moment < t + state]
            assert one.newest(t, state=state) == max(known, default=NONE_YET)


def test_columns_of_a_copy_are_known_together() -> None:
    with pytest.raises(DefinitionError, match="all of a snapshot is known at one moment"):

        class Wrong(hr.Source, history="snapshots"):
            customer: hr.Column[str] = hr.entity()
            taken: hr.Column[hr.Instant] = hr.event_time()
            later: hr.Column[hr.Instant] = hr.column()
            plan: hr.Column[str] = hr.column(known_at=later)


def test_the_reason_is_told_and_what_a_read_needs_is_asked_for() -> None:
    copies = {START: "ab", START + DAY: "b"}
    log = [
        ("Customers", reveal)
        for taken, keys in copies.items()
        for key in keys
        for reveal in reveal_of(
            definition_of(Customers), {"customer": key, "household": "h", "taken": taken, "plan": key, "spent": 2.0}
        )
    ]
    histories = histories_of(PLAN, tables_of(log), START + 9 * DAY)
    (told,) = explain_feature(PLAN, histories, "Customer.premium", ["a"], START + 2 * DAY)
    assert (told.value, told.used, told.events[0].why) == (None, 0, "a newer snapshot is without it")
    (told,) = explain_feature(PLAN, histories, "Customer.premium", ["a"], START + DAY)
    assert (told.value, told.used) == (2.0, 1)
    heads = OnlineFeatures(PLAN).heads([["a"] * len(PLAN.row)])
    assert {b"SCustomers", b"SRanks"} <= set(heads)  # a store without snapshots reads these with the rest
