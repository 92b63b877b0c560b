"""A group of any kind that is filled from history while a stream goes on ends as one that was streamed from the start."""

from __future__ import annotations

from random import Random
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import headrace as hr
from headrace.features import repair
from headrace.features.digest import state_digest
from headrace.features.plan import FeaturePlan, plan_features
from headrace.features.repair import backfill
from headrace.features.stock import Stock
from headrace.features.stream import DATABASE, StreamPath
from headrace.sources.definition import definition_of
from headrace.sources.record import Reveal
from headrace.sources.run import batch_of
from headrace.storage.keyvalue import KeyValue, open_keyvalue
from headrace.testing.oracle import made_log
from tests.properties.test_oracle_windows import (
    LOGS,
    SPAN,
    START,
    Days,
    Orders,
    Placed,
    Planned,
    Plans,
    Price,
    Prices,
    Shop,
    Sold,
    Till,
)
from tests.stock import stock_of

Prepared = hr.precomputed(Prices, entity=Prices.shop, max_age="3d")
GROUPS = {Shop: Orders, Placed: Orders, Till: Orders, Price: Prices, Prepared: Prices, Planned: Plans, Sold: Days}


class Streamed:
    """Store reveals in a table and then apply them, as every stream does, in whatever order they come."""

    def __init__(self, store: KeyValue, log: list[tuple[str, Reveal]], path: StreamPath) -> None:
        self.store, self.log, self.path = store, list(log), path
        self.stored: list[tuple[str, Reveal]] = []
        self.applied = 0

    def put(self, number: int) -> None:
        self.stored += self.log[len(self.stored) : len(self.stored) + number]

    def apply(self) -> None:
        with self.store.write() as transaction:
            access = transaction.access(DATABASE)
            newest = self.path.newest(access.get) or 0
            for source, reveal in self.stored[self.applied :]:
                self.path.apply(access, source, reveal)
                newest = max(newest, reveal.arrival)
            self.path.commit(access, newest, {})
        self.applied = len(self.stored)

    def newest(self) -> int:
        with self.store.read() as snapshot:
            return self.path.newest(snapshot.getter(DATABASE)) or 0


def log_of(source: type[hr.Source], random: Random) -> list[tuple[str, Reveal]]:
    definition, values = next(log for log in LOGS if log[0] is definition_of(source))
    made = made_log(definition, values, rows=30, reveals=160, span=(START, START + SPAN), random=random)
    return sorted(made, key=lambda one: one[1].arrival)


def digest(store: KeyValue, plan: FeaturePlan) -> str:
    with store.read() as snapshot:
        return state_digest(snapshot, plan)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32), late=st.booleans(), buckets=st.booleans())
def test_a_group_filled_beside_a_stream_is_as_if_streamed(
    group: type[hr.FeatureGroup], seed: int, late: bool, buckets: bool
) -> None:
    random, source = Random(seed), GROUPS[group]
    log, plan = log_of(source, random), plan_features([group], "")
    if late:
        random.shuffle(log)  # of several partitions one may lie far behind
    with open_keyvalue("memory:", databases=[DATABASE]) as straight:
        whole = Streamed(straight, log, StreamPath([plan]))
        whole.put(len(log))
        whole.apply()
        wanted = digest(straight, plan)
    with (
        open_keyvalue("memory:", databases=[DATABASE]) as store,
        pytest.MonkeyPatch.context() as patched,
        TemporaryDirectory() as folder,
    ):
        patched.setattr(repair, "KEYS_AT_ONCE", 1)
        beside = Streamed(store, log, StreamPath([plan]))
        for path in (StreamPath([plan]), StreamPath([plan_rows(source)])):  # then the group was left out for a while
            beside.path = path
            beside.put(random.randrange(10, 50))
            beside.apply()
        beside.path = StreamPath([plan])

        def read() -> Stock:
            beside.put(random.randrange(20))
            beside.apply()
            beside.put(random.randrange(5))  # stored, and not applied yet
            defined = definition_of(source)
            table = batch_of(defined, [reveal for _, reveal in beside.stored]).table
            return stock_of([defined], plan.groups, {source.__name__: table}, newest, folder if buckets else None)

        def told(done: int, total: int) -> None:
            beside.put(random.randrange(15))
            beside.apply()

        newest = beside.newest()
        backfill(store, plan.groups, newest, read, told)
        beside.put(len(log))
        beside.apply()
        assert digest(store, plan) == wanted
        newest = beside.newest()
        backfill(store, plan.groups, newest, read, told)
        assert digest(store, plan) == wanted


def plan_rows(source: type[hr.Source]) -> FeaturePlan:
    """Return features of another group of a source, so that its rows are stored."""

    class Counted(hr.FeatureGroup, of=source, entity=source.shop):
        rows = hr.count().over("1d")

    return plan_features([Counted], "")
