"""Scans that gather keys in several ranges, and lanes that ask for the last value alone, answer as any other."""

from __future__ import annotations

import math

import numpy as np
import pytest

from headrace.features.scan import scan
from headrace.features.windows import Lane, LaneEvents, OnlineLane, Output, ValueType

NEVER = 2**63 - 1
LANE = Lane((ValueType.FLOAT,), (50, 5_000), keep=10_000)
LAST = [Output(0, "last", w, 1) for w in LANE.windows]
OUTPUTS = [*[Output(0, a, w, None) for a in ("count", "sum", "max", "stddev") for w in LANE.windows], *LAST]


def draw(n: int, keys: int, r: np.random.Generator) -> LaneEvents:
    key, moment = r.integers(0, keys, n), r.integers(0, 20_000, n)
    words = r.integers(-9, 9, n).astype(np.float64).view(np.int64).reshape(n, 1)
    nulls = r.random((n, 1)) < 0.2
    return LaneEvents(key, moment, moment + r.integers(0, 90, n), np.full(n, NEVER), np.arange(n), words, nulls)


def of_key(events: LaneEvents, key: int) -> LaneEvents:
    return LaneEvents(*(column[events.key == key] for column in vars(events).values()))


def test_keys_that_do_not_fit_into_memory_together_are_gathered_in_turn() -> None:
    """Only 2.8M rows of six words are gathered at a time: one key alone has more, some have no events, others no labels."""
    r = np.random.default_rng(1)
    events = draw(5_000_000, 9, r)
    events.key[events.key == 4] = 3
    events.key[:100], events.key[100:300] = 2, -1
    events.key[-3_000_000:] = 5
    asked = r.choice([-1, 0, 1, 2, 4, 5, 7, 8, 9], 600)
    t = r.integers(0, 21_000, 600)
    found = scan(LANE, OUTPUTS, events, asked, t)
    for key in range(-1, 10):
        mine = asked == key
        alone = scan(LANE, OUTPUTS, of_key(events, key), asked[mine], t[mine])
        assert (found.words[mine] == alone.words).all()
        assert (found.status[mine] == alone.status).all()


@pytest.mark.parametrize("n", [0, 1, 1_023, 1_024, 1_025, 5_000])
def test_events_of_other_keys_are_passed_over(n: int) -> None:
    """Every key of one scan has labels, of the other only some: blocks of events end where they like."""
    r = np.random.default_rng(n)
    events, t = draw(n, 40, r), r.integers(0, 21_000, 400)
    events.key[::7] = -5
    asked = r.integers(-1, 42, 400)
    found = scan(LANE, OUTPUTS, events, asked, t)
    for part in (asked % 3 == 0, asked == 41, asked == 0):
        alone = scan(LANE, OUTPUTS, events, asked[part], t[part])
        assert (found.words[part] == alone.words).all()
        assert (found.status[part] == alone.status).all()
    counts = found.words[:, 1]
    live = [(events.key == k) & (events.arrival <= at) & (events.moment < at) for k, at in zip(asked, t, strict=True)]
    inside = [m & (events.moment >= at - 5_000) & ~events.nulls[:, 0] for m, at in zip(live, t, strict=True)]
    assert counts.tolist() == [int(m.sum()) if k >= 0 else 0 for m, k in zip(inside, asked, strict=True)]


@pytest.mark.parametrize("overlap", [0, 300])
@pytest.mark.parametrize("runs", [2, 3, 10])
def test_events_in_order_may_come_newest_part_first(runs: int, overlap: int) -> None:
    """Parts that lie wholly before each other are only moved; what has one moment stands in the order of arrival."""
    r = np.random.default_rng(runs)
    events, asked, t = draw(9_000, 4, r), r.integers(0, 4, 300), r.integers(0, 21_000, 300)
    first = [Output(0, a, w, k) for a in ("first", "last") for w in LANE.windows for k in (1, 2, 3)]
    order = np.lexsort((events.row, events.arrival, events.moment))
    parts = np.array_split(order, runs)
    late = np.concatenate([p[:overlap] for p in parts])
    newest_first = [np.concatenate([p[overlap:], late]) if p is parts[0] else p[overlap:] for p in parts][::-1]
    found = [
        scan(LANE, first, LaneEvents(*(c[places] for c in vars(events).values())), asked, t)
        for places in (order, np.concatenate(newest_first))
    ]
    assert found[0].words.tobytes() == found[1].words.tobytes()
    assert found[0].status.tobytes() == found[1].status.tobytes()
    assert (found[0].status == 0).any(axis=0).all()


@pytest.mark.parametrize("spread", [0, 1, 40, 300])
def test_sums_of_many_values_are_those_of_values_one_by_one(spread: int) -> None:
    """Sums over a run go by exponent, those of a sweep do not; exponents meet in a bin and digits fill it."""
    r = np.random.default_rng(spread)
    events, asked, t = draw(30_000, 2, r), np.arange(200) % 2, r.integers(0, 21_000, 200)
    odd = np.array([0.0, -0.0, 5e-324, -2e-308, np.inf, -np.inf, np.nan, 1.7e308])
    values = np.ldexp(2.0 - r.integers(0, 3, 30_000) * 2.0**-52, r.integers(-spread, spread + 1, 30_000))
    values *= r.choice([1.0, -1.0] if spread else [1.0], 30_000)
    values[::97] = r.choice(odd[:4], len(values[::97]))
    few = (events.moment < 3_000) & (r.random(30_000) < 0.01)
    values[few] = r.choice(odd, int(few.sum()))
    events.words[:, 0] = values.view(np.int64)
    outputs = [Output(0, a, w, None) for a in ("sum", "mean", "stddev") for w in LANE.windows]
    plain, sweep = (scan(LANE, outputs, events, asked, t, method=m) for m in ("plain", "sweep"))
    assert plain.words.tobytes() == sweep.words.tobytes()
    assert plain.status.tobytes() == sweep.status.tobytes()
    for key, at, word in zip(asked, t, plain.words[:, 1].view(np.float64), strict=True):
        there = (events.key == key) & (events.arrival <= at) & (events.moment < at) & (events.moment >= at - 5_000)
        there &= ~events.nulls[:, 0]
        if np.isfinite(values[there]).all() and np.abs(values[there]).max(initial=0.0) < 1e300 and there.any():
            assert word == math.fsum(values[there].tolist())


@pytest.mark.parametrize("method", ["plain", "sweep"])
def test_the_last_value_alone_is_the_first_of_several(method: str) -> None:
    r = np.random.default_rng(2)
    events, asked, t = draw(3_000, 4, r), r.integers(0, 5, 300), r.integers(0, 21_000, 300)
    several = [*LAST, *[Output(0, "last", w, 2) for w in LANE.windows]]
    alone = scan(LANE, LAST, events, asked, t, method=method)  # type: ignore[arg-type]
    both = scan(LANE, several, events, asked, t, method="sweep")
    assert (alone.words == both.words[:, : len(LAST)]).all()
    assert (alone.status == both.status[:, : len(LAST)]).all()
    assert (alone.status == 0).any()
    assert (alone.status != 0).any()


def test_the_last_value_is_read_from_the_summaries_of_blocks() -> None:
    """No block is opened for a window that holds it whole: only the head is in the store."""
    store, lane = Memory(), OnlineLane(LANE, LAST)
    for i in range(300):
        lane.change(store, b"k", (i, i, i, LANE.pack([None if i % 3 else float(i)])), None)
    head = {b"k": store[b"k"]}
    lane.read(head.get, b"k", 4_000)
    assert (lane.values[1], lane.status.tolist()) == (297.0, [1, 0])


class Memory(dict[bytes, bytes]):
    put = dict.__setitem__

    def delete(self, key: bytes) -> None:
        self.pop(key, None)


@pytest.mark.parametrize("keys", [1, 3, 90])
def test_threads_that_share_queries_answer_as_one_thread(keys: int) -> None:
    """Offsets read on their own and folds are there too; a key without events and unknown keys fall into every part."""
    r = np.random.default_rng(keys)
    events, asked = draw(30_000, keys, r), r.integers(-1, keys + 1, 12_000)
    t, since = r.integers(0, 21_000, 12_000), r.integers(0, 300, 12_000)
    outputs = [*OUTPUTS, Output(0, "sum", 50, None, offset=1_000), Output(0, "fold", 50, None)]
    one, several = (scan(LANE, outputs, events, asked, t, query_since=since, threads=n) for n in (1, 3))
    assert one.words[:, :-1].tobytes() == several.words[:, :-1].tobytes()
    assert one.status.tobytes() == several.status.tobytes()
    assert (one.status == 0).any(axis=0).all()
    for mine, other in zip(one.folds[len(outputs) - 1], several.folds[len(outputs) - 1], strict=True):
        assert mine.tolist() == other.tolist()
