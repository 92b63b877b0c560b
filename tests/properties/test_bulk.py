"""A store that was filled in bulk and then streamed to ends as one that was streamed to from the start."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import headrace as hr
from headrace.core.time import DAY
from headrace.features import bulk, repair
from headrace.features.aggregates import FOR_EVER
from headrace.features.bulk import store_rows
from headrace.features.plan import FeaturePlan, plan_features
from headrace.features.repair import backfill
from headrace.features.stock import Stock
from headrace.features.stream import DATABASE, StreamPath
from headrace.sources.definition import SourceDefinition, definition_of
from headrace.sources.record import ROW_ID, Reveal
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
    Shop,
    Sold,
    Till,
)
from tests.properties.test_refilled import Prepared, Streamed, digest
from tests.properties.test_snapshots import PLAN as COPIED
from tests.properties.test_snapshots import Customers, Ranks, made, rankings
from tests.stock import stock_of


class Brief(hr.FeatureGroup, of=Orders, entity=Orders.shop):
    spent = hr.sum(Orders.amount).over("1h", "6h")
    kinds = hr.count_distinct(Orders.kind).over("3h")
    now = hr.latest(Orders.items, Orders.kind)


class Soon(hr.FeatureGroup, of=Plans, entity=Plans.shop):
    days = hr.count().ahead("2d")
    last = hr.latest(Plans.discount, max_age="1h")


class Lately(hr.FeatureGroup, of=Days, entity=Days.shop):
    units = hr.sum(Days.sold).over("6h")


PLANS = {
    "brief": plan_features([Brief], ""),
    "orders": plan_features([Brief, Shop, Placed, Till], ""),
    "prices": plan_features([Price, Prepared], ""),
    "plans": plan_features([Planned, Soon], ""),
    "soon": plan_features([Soon], ""),
    "days": plan_features([Sold], ""),
    "lately": plan_features([Lately], ""),
    "copies": COPIED,
    "several": plan_features([Brief, Price, Soon, Lately], ""),
}
Log = list[tuple[str, Reveal]]


def log_of(plan: FeaturePlan, random: Random) -> Log:
    found: Log = []
    for source in plan.sources:
        if source is definition_of(Customers):
            found += [("Customers", one) for _, told in made(random, 12) for one in told]
        elif source is definition_of(Ranks):
            found += [("Ranks", one) for one in rankings(random, 8)]
        else:
            values = next(values for definition, values in LOGS if definition is source)
            rows, reveals = random.choice([(30, 120), (60, 90), (3, 150)])
            found += made_log(source, values, rows=rows, reveals=reveals, span=(START, START + SPAN), random=random)
    return sorted(found, key=lambda one: one[1].arrival)


def tables_of(sources: Sequence[SourceDefinition], log: Log) -> dict[str, pa.Table]:
    return {s.name: batch_of(s, [reveal for name, reveal in log if name == s.name]).table for s in sources}


def rows_of(store: KeyValue) -> dict[bytes, bytes]:
    with store.read() as snapshot:
        return dict(snapshot.items(DATABASE, b"R"))


def expire_to_the_moment(store: KeyValue, path: StreamPath, now: int) -> int:
    """Drop every row whose time is over, not just those whose day has come."""
    dropped = 0
    with store.write() as transaction:
        for state in path.sources.values():
            for key in [key for key, _ in transaction.items(DATABASE, state.prefix)]:
                dropped += state.expire(transaction.access(DATABASE), key, now)
    return dropped


def fill(store: KeyValue, path: StreamPath, stock: Stock, newest: int) -> None:
    for name in path.sources:
        store_rows(store, path, name, stock, newest, lambda done: None)
    backfill(store, path.groups, newest, lambda: stock, lambda done, total: None)
    with store.write() as transaction:
        access = transaction.access(DATABASE)
        path.whole(access)
        path.commit(access, newest, {})


def repaired(store: KeyValue, plan: FeaturePlan, log: Log) -> str:
    with store.write() as transaction:
        tables = tables_of(plan.sources, log)
        repair.repair(transaction, plan, lambda lane, keys: tables[lane.source.name])
    return digest(store, plan)


def due_days(store: KeyValue) -> Iterator[tuple[bytes, int]]:
    with store.read() as snapshot:
        for key, _ in snapshot.items(DATABASE, b"E"):
            yield key[5:], int.from_bytes(key[1:5], "big")


@pytest.mark.parametrize("name", PLANS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), late=st.booleans(), buckets=st.booleans())
def test_what_comes_after_a_bulk_fill_ends_as_if_all_was_streamed(
    name: str, seed: int, late: bool, buckets: bool
) -> None:
    random, plan = Random(seed), PLANS[name]
    log, path = log_of(plan, random), StreamPath([plan])
    if late:
        random.shuffle(log)
    cut = random.randrange(1, len(log))
    with (
        open_keyvalue("memory:", databases=[DATABASE]) as straight,
        open_keyvalue("memory:", databases=[DATABASE]) as filled,
        pytest.MonkeyPatch.context() as patched,
        TemporaryDirectory() as folder,
    ):
        patched.setattr(bulk, "REVEALS_AT_ONCE", random.choice([1, 10, 20_000]))
        whole = Streamed(straight, log, path)
        whole.put(cut)
        whole.apply()
        expire_to_the_moment(straight, path, whole.newest())
        sources, tables = [state.definition for state in path.sources.values()], tables_of(plan.sources, log[:cut])
        stock = stock_of(sources, path.groups, tables, whole.newest(), folder if buckets else None)
        fill(filled, path, stock, whole.newest())
        assert rows_of(filled) == rows_of(straight)
        assert repaired(filled, plan, log) == repaired(straight, plan, log)
        days, rows = dict(due_days(filled)), rows_of(filled)
        for state in path.sources.values():
            for key in [key for key in rows if key.startswith(state.prefix) and state.keep < FOR_EVER]:
                assert days[key] == state.expires(state.codec.decode(rows[key])) // DAY + 1
        beside = Streamed(filled, log, path)
        beside.stored, beside.applied = log[:cut], cut
        for one in (whole, beside):
            one.put(len(log))
            one.apply()
        assert rows_of(filled) == rows_of(straight)
        assert repaired(filled, plan, log) == repaired(straight, plan, log)


def test_rows_whose_time_is_over_are_left_out_and_others_not() -> None:
    """The property above would hold of a fill that kept nothing, or all, if its logs had no such rows."""
    random, plan = Random(1), PLANS["brief"]
    log, path = log_of(plan, random), StreamPath([plan])
    with (
        open_keyvalue("memory:", databases=[DATABASE]) as store,
        open_keyvalue("memory:", databases=[DATABASE]) as other,
    ):
        whole = Streamed(store, log, path)
        whole.put(len(log))
        whole.apply()
        dropped = expire_to_the_moment(store, path, whole.newest() + 2 * DAY)
        told: list[int] = []
        later, tables = whole.newest() + 2 * DAY, tables_of(plan.sources, log)
        stock = stock_of([path.sources["Orders"].definition], [], tables, later)
        assert store_rows(other, path, "Orders", stock, later, told.append) == len(rows_of(store))
        assert dropped > 0 < len(rows_of(store)) and rows_of(other) == rows_of(store)
        assert told[-1] == tables["Orders"].num_rows


@pytest.mark.parametrize("name", ["orders", "prices", "copies", "several"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), late=st.booleans(), buckets=st.booleans())
def test_a_stream_that_goes_on_during_a_bulk_fill_is_neither_lost_nor_overwritten(
    name: str, seed: int, late: bool, buckets: bool
) -> None:
    random, plan = Random(seed), PLANS[name]
    log, path = log_of(plan, random), StreamPath([plan])
    for state in path.sources.values():
        state.keep = FOR_EVER  # a stream beside takes a row whose time is over for a new one, whatever fills the store
    if late:
        random.shuffle(log)
    with (
        open_keyvalue("memory:", databases=[DATABASE]) as straight,
        open_keyvalue("memory:", databases=[DATABASE]) as filled,
        pytest.MonkeyPatch.context() as patched,
        TemporaryDirectory() as folder,
    ):
        patched.setattr(bulk, "REVEALS_AT_ONCE", 5)
        patched.setattr(repair, "KEYS_AT_ONCE", 1)
        patched.setattr(repair, "PUTS_AT_ONCE", 1)
        whole = Streamed(straight, log, path)
        whole.put(len(log))
        whole.apply()
        beside = Streamed(filled, log, path)
        beside.put(random.randrange(1, len(log)))
        beside.applied = random.randrange(len(beside.stored) + 1)  # what was applied before the store was emptied
        newest = max(reveal.arrival for _, reveal in beside.stored)
        sources = [state.definition for state in path.sources.values()]

        def stored() -> Stock:
            tables = tables_of(plan.sources, beside.stored)
            return stock_of(sources, path.groups, tables, newest, folder if buckets else None)

        stock = stored()

        def goes_on(*_: int) -> None:
            if random.random() < 0.3:
                beside.put(random.randrange(6))
                beside.apply()

        def read() -> Stock:
            with filled.read() as snapshot:
                alone = path.commits(snapshot.getter(DATABASE)) == 0
            return stock if alone else stored()

        goes_on()
        for source in path.sources:
            store_rows(filled, path, source, stock, newest, goes_on)
        covered: list[str] = []
        backfill(filled, path.groups, newest, read, goes_on, lambda group: covered.append(group.hash))
        assert covered == [group.hash for group in path.groups]
        with filled.write() as transaction:
            access = transaction.access(DATABASE)
            path.whole(access)
            path.commit(access, max(path.newest(access.get) or 0, newest), {})
        beside.put(len(log))
        beside.apply()
        assert rows_of(filled) == rows_of(straight)
        assert repaired(filled, plan, log) == repaired(straight, plan, log)


def test_pieces_of_rows_follow_each_other_so_that_a_store_is_written_in_the_order_of_its_keys(tmp_path: Path) -> None:
    plan = PLANS["orders"]
    log, source = log_of(plan, Random(3)), plan.sources[0]
    tables = tables_of(plan.sources, log)
    stock = stock_of([source], [], tables, 2**62, tmp_path)
    parts = [sorted(set(history.table[ROW_ID].to_pylist())) for history in stock.histories(source)]
    assert len(parts) == stock.pieces > 2 and sum(map(bool, parts)) > 2
    assert [row for part in parts for row in part] == sorted(set(tables[source.name][ROW_ID].to_pylist()))
