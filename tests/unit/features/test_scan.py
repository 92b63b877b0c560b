"""Scans that gather keys in several ranges, and lanes that ask for the last value alone, answer as any other."""

from __future__ import annotations

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
    """1.6M rows of six words are more than are gathered at a time; one key alone is more, and one has no events."""
    r = np.random.default_rng(1)
    events = draw(1_600_000, 3, r)
    events.key[events.key > 0] += 3
    events.key[:100] = 2
    asked = r.integers(-1, 8, 600)
    t = r.integers(0, 21_000, 600)
    found = scan(LANE, OUTPUTS, events, asked, t)
    for key in range(-1, 8):
        mine = asked == key
        alone = scan(LANE, OUTPUTS, of_key(events, key), asked[mine], t[mine])
        assert (found.words[mine] == alone.words).all()
        assert (found.status[mine] == alone.status).all()


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
