"""Windows: edges, ages, nulls, types and statuses one by one; damaged bytes and wrong calls are named."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.core.errors import ConfigurationError, Corrupt, DataError, DefinitionError, InternalError
from headrace.features.scan import scan
from headrace.features.windows import (
    STATUS_EXPIRED,
    STATUS_NULL,
    STATUS_OK,
    STATUS_OVERFLOW,
    STATUS_REBUILD,
    Lane,
    LaneEvents,
    OnlineLane,
    Output,
    ValueType,
    _Kernel,
)

FLOAT, INT, BOOL, REF = ValueType
NEVER = 2**63 - 1
KEY = b"lane-key"


class Memory(dict[bytes, bytes]):
    put = dict.__setitem__

    def delete(self, key: bytes) -> None:
        self.pop(key, None)


def filled(
    lane: Lane, outputs: list[Output], events: list[tuple[int, Any]], seal: int = 96
) -> tuple[OnlineLane, Memory]:
    """Return a lane with events (moment, values), which arrive at their moments."""
    online, store = OnlineLane(lane, outputs, seal=seal), Memory()
    for row, (moment, values) in enumerate(events):
        online.change(store, KEY, (moment, moment, row, lane.pack(values)), None)
    return online, store


def read(online: OnlineLane, store: Memory, t: int) -> list[Any]:
    online.read(store.get, KEY, t)
    found = []
    for i, o in enumerate(online.outputs):
        kind = INT if o.column is None or o.aggregate == "count" else online.lane.values[o.column]
        real = o.aggregate in ("mean", "stddev") or kind is FLOAT
        value = (online.values if real else online.words)[i].item()
        found.append({1: "null", 2: "expired", 3: "overflow"}.get(int(online.status[i]), value))
    return found


def test_a_window_of_events_reaches_from_its_lower_edge_to_just_before_t() -> None:
    lane = Lane((FLOAT,), (10,), keep=100)
    online, store = filled(lane, [Output(0, "sum", 10, None)], [(90, [1.0]), (99, [2.0]), (100, [4.0])])
    assert [read(online, store, t) for t in (100, 101, 109, 110, 111)] == [[3.0], [6.0], [6.0], [4.0], ["null"]]


def test_a_window_of_state_reaches_from_just_after_its_lower_edge_to_t() -> None:
    lane = Lane((FLOAT,), (10,), state=True, keep=100)
    online, store = filled(lane, [Output(0, "sum", 10, None)], [(90, [1.0]), (99, [2.0]), (100, [4.0])])
    assert [read(online, store, t) for t in (100, 108, 109, 110)] == [[6.0], [6.0], [4.0], ["null"]]


def test_nothing_counts_zero_and_is_null_otherwise() -> None:
    lane = Lane((FLOAT, INT), (10,), keep=100)
    names = ("count", "sum", "mean", "min", "max", "stddev")
    outputs = [Output(None, "count", 10, None)] + [Output(c, a, 10, None) for c in (0, 1) for a in names]
    outputs += [Output(0, "quantile", 10, 0.5), Output(0, "latest", None, None)]
    online = OnlineLane(lane, outputs)
    assert read(online, Memory(), 5) == [0, 0, *["null"] * 5, 0, *["null"] * 7]
    blanks = {o.aggregate: online.words[i] for i, o in enumerate(outputs) if o.column == 0}
    assert math.isnan(struct.unpack("<d", struct.pack("<q", blanks["min"]))[0])
    assert online.words[[8, 10]].tolist() == [0, 0]


def test_the_latest_value_expires_one_microsecond_after_its_greatest_age() -> None:
    lane = Lane((FLOAT,), (), keep=100, latest=True)
    online, store = filled(lane, [Output(0, "latest", None, 30)], [(100, [7.0])])
    assert [read(online, store, t) for t in (100, 101, 130, 131)] == [["null"], [7.0], [7.0], ["expired"]]


def test_latest_skips_nulls_of_events_and_keeps_nulls_of_state() -> None:
    outputs = [Output(0, "latest", None, None), Output(1, "latest", None, None)]
    events: list[tuple[int, Any]] = [(1, [1.0, 5]), (2, [2.0, None]), (3, [None, None])]
    for state, wanted in ((False, [2.0, 5]), (True, ["null", "null"])):
        online, store = filled(Lane((FLOAT, REF), (), state, 9, True), outputs, events)
        assert read(online, store, 9) == wanted


def test_ties_of_moment_go_by_arrival_then_row() -> None:
    lane = Lane((INT,), (), keep=100, latest=True)
    online, store = OnlineLane(lane, [Output(0, "latest", None, None)]), Memory()
    for arrival, row, value in ((7, 1, 71), (5, 9, 59), (7, 3, 73), (7, 2, 72)):
        online.change(store, KEY, (4, arrival, row, lane.pack([value])), None)
    assert read(online, store, 8) == [73]
    assert [e[:3] for e in online.events(store.get, KEY)] == [(4, 5, 9), (4, 7, 1), (4, 7, 2), (4, 7, 3)]


def test_integers_stay_integers_and_overflow_is_said() -> None:
    lane = Lane((INT,), (10,), keep=100)
    outputs = [Output(0, a, 10, None) for a in ("sum", "mean", "max")]
    top = 2**63 - 1
    online, store = filled(lane, outputs, [(1, [top]), (2, [-1]), (3, [1])])
    assert read(online, store, 5) == [top, float(top / 3), top]
    online, store = filled(lane, outputs, [(1, [top]), (2, [1])])
    assert read(online, store, 5) == ["overflow", 2.0**62, top]
    assert online.status.tolist() == [STATUS_OVERFLOW, STATUS_OK, STATUS_OK]
    assert online.words[0] == 0
    online, store = filled(lane, outputs, [(1, [-(2**63)]), (2, [0])])
    assert read(online, store, 5)[0] == -(2**63)


def test_a_rate_is_the_mean_of_a_bool() -> None:
    lane = Lane((BOOL,), (10,), keep=100)
    online, store = filled(lane, [Output(0, "mean", 10, None)], [(1, [True]), (2, [False]), (3, [None]), (4, [True])])
    assert read(online, store, 9) == [2 / 3]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([1e16, 1.0, -1e16], [1.0, 1 / 3]),
        ([0.1] * 10, [1.0, 0.1]),
        ([1e308, 1e308, -1e308], [1e308, 1e308 / 3]),
        ([1e308, 1e308], [math.inf, 1e308]),
        ([-0.0, -0.0], [0.0, 0.0]),
        ([5e-324, 0.0], [5e-324, 0.0]),
        ([-5e-324, 0.0], [-5e-324, -0.0]),
        ([math.inf, 1.0], [math.inf, math.inf]),
        ([math.inf, -math.inf], [math.nan, math.nan]),
    ],
)
def test_sums_and_means_round_once(values: list[float], wanted: list[float]) -> None:
    outputs = [Output(0, "sum", 50, None), Output(0, "mean", 50, None)]
    lane = Lane((FLOAT,), (50,), keep=100)
    for seal in (2, 96):
        online, store = filled(lane, outputs, [(i, [v]) for i, v in enumerate(values)], seal)
        assert struct.pack("<2d", *read(online, store, 40)) == struct.pack("<2d", *wanted)


def test_the_mean_is_not_the_rounded_sum_divided() -> None:
    values = [0.1, 0.7, 0.3]
    online, store = filled(
        Lane((FLOAT,), (9,), keep=9), [Output(0, "mean", 9, None)], [(i, [v]) for i, v in enumerate(values)]
    )
    exact = sum(int(v * 2**60) for v in values) / (3 * 2**60)
    assert read(online, store, 5) == [exact]


def test_min_and_max_know_the_sign_of_zero_and_put_nan_last() -> None:
    outputs = [Output(0, "min", 9, None), Output(0, "max", 9, None)]
    for values in ([0.0, -0.0], [-0.0, 0.0]):
        online, store = filled(Lane((FLOAT,), (9,), keep=9), outputs, [(i, [v]) for i, v in enumerate(values)])
        assert [math.copysign(1, v) for v in read(online, store, 5)] == [-1, 1]
    negative_nan = -math.nan
    online, store = filled(Lane((FLOAT,), (9,), keep=9), outputs, [(1, [negative_nan]), (2, [math.inf])])
    low, high = read(online, store, 5)
    assert low == math.inf
    assert math.isnan(high)


def test_a_quantile_is_a_value_of_the_inverse_distribution() -> None:
    shares = [0.0, 0.2, 0.21, 0.5, 0.99, 1.0]
    outputs = [Output(0, "quantile", 99, q) for q in shares]
    online, store = filled(
        Lane((FLOAT,), (99,), keep=99), outputs, [(i, [v]) for i, v in enumerate([5.0, 1.0, 4.0, 2.0, 3.0])], 2
    )
    assert read(online, store, 50) == [1.0, 1.0, 2.0, 3.0, 5.0, 5.0]


def test_moments_before_1970_and_at_the_ends_of_time_work() -> None:
    lane = Lane((INT,), (10,), keep=100)
    ends = [-(2**63), -5, 2**63 - 2]
    events = [Output(None, "count", 10, None)]
    for moment in ends:
        online, store = filled(lane, events, [(moment, [1])])
        assert [read(online, store, t) for t in (moment, moment + 1)] == [[0], [1]]


def test_a_correction_replaces_and_a_removal_of_nothing_is_no_error() -> None:
    lane = Lane((FLOAT,), (100,), keep=100)
    online, store = filled(lane, [Output(0, "sum", 100, None)], [(1, [1.0]), (2, [2.0])])
    online.change(store, KEY, (1, 9, 0, lane.pack([8.0])), (1, 1, 0))
    assert read(online, store, 50) == [10.0]
    online.change(store, KEY, (2, 2, 1, lane.pack([3.0])), (2, 2, 1))
    assert read(online, store, 50) == [11.0]
    online.change(store, KEY, None, (77, 77, 77))
    online.change(store, b"other", None, (77, 77, 77))
    assert read(online, store, 50) == [11.0]
    assert list(store) == [KEY]
    assert online.version(store.get, KEY) == 5
    assert online.version(store.get, b"other") == 0


def test_old_events_go_but_the_newest_values_of_each_column_stay() -> None:
    lane = Lane((FLOAT, FLOAT), (10,), keep=20, latest=True)
    rare: list[tuple[int, Any]] = [(0, [0.0, 42.0])]
    online, store = filled(
        lane, [Output(1, "latest", None, None)], rare + [(i, [1.0, None]) for i in range(1, 2000)], seal=4
    )
    assert read(online, store, 5000) == [42.0]
    assert not online.needs_rebuild(store.get, KEY)
    assert len(online.events(store.get, KEY)) < 80
    assert len(store) < 20
    online.change(store, KEY, None, (0, 0, 0))
    assert read(online, store, 5000) == ["null"]


def test_a_latest_value_that_only_history_knows_is_none_and_says_so_until_it_is_rebuilt() -> None:
    lane = Lane((INT,), (10,), keep=20, latest=True)
    online, store = filled(lane, [Output(0, "latest", None, None)], [(i, [i]) for i in range(100)], seal=4)
    online.change(store, KEY, (2, 200, 7, lane.pack([777])), None)  # late, and older than much that was dropped
    lost = [online.change(store, KEY, None, (i, i, i)) for i in range(99, 39, -1)]
    assert lost.count(True) == 1
    assert online.needs_rebuild(store.get, KEY)
    online.read(store.get, KEY, 500)
    assert online.status.tolist() == [STATUS_REBUILD]
    online.change(store, KEY, (300, 300, 8, lane.pack([8])), None)
    assert read(online, store, 500) == [8]  # newer than all that was dropped
    online.clear(store, KEY)
    assert not store
    for i in range(40):
        online.change(store, KEY, (i, i, i, lane.pack([i])), None)
    assert read(online, store, 500) == [39]


def test_values_that_come_after_removals_are_trusted_again() -> None:
    lane = Lane((INT,), (10,), keep=20, latest=True)
    online, store = filled(lane, [Output(0, "latest", None, None)], [(i, [i]) for i in range(100)], seal=4)
    for start in range(100, 1000, 50):
        for i in range(start, start + 50):
            online.change(store, KEY, (i, i, i, lane.pack([i])), None)
        assert not any(online.change(store, KEY, None, (i, i, i)) for i in range(start + 45, start + 50))


def test_a_hot_key_keeps_a_small_head() -> None:
    lane = Lane((FLOAT,), (10**6,), keep=10**6)
    online, store = filled(lane, [Output(0, "sum", 10**6, None)], [(i, [0.1]) for i in range(20_000)])
    assert read(online, store, 20_000) == [2000.0]
    assert max(map(len, store.values())) < 10_000
    asked: list[bytes] = []

    def get(key: bytes) -> bytes | None:
        asked.append(key)
        return store.get(key)

    online.read(get, KEY, 20_000)
    assert asked == [KEY]


def test_announced_events_count_from_their_moment_also_out_of_blocks() -> None:
    lane = Lane((FLOAT,), (50,), keep=100)
    online, store = OnlineLane(lane, [Output(0, "sum", 50, None)], seal=4), Memory()
    for moment in range(1, 41):
        online.change(store, KEY, (moment, 0, moment, lane.pack([float(moment)])), None)
    assert [read(online, store, t) for t in (1, 2, 11, 41)] == [["null"], [1.0], [55.0], [820.0]]


def test_a_latest_value_keeps_its_own_age_inside_a_block() -> None:
    lane, outputs = Lane((FLOAT, INT), (), keep=100, latest=True), [Output(0, "latest", None, 30)]
    events: list[tuple[int, Any]] = [(0, [1.0, 0])] + [(i, [None, i]) for i in range(1, 24)]
    online, store = filled(lane, outputs, events, seal=4)
    assert [read(online, store, t) for t in (30, 31)] == [[1.0], ["expired"]]


def test_results_go_straight_into_a_callers_row() -> None:
    lane = Lane((FLOAT,), (10,), keep=10)
    online, store = filled(lane, [Output(0, "sum", 10, None), Output(0, "count", 10, None)], [(1, [0.5])])
    words, status = np.full(5, -1, np.int64), np.full(5, 9, np.uint8)
    assert online.read_into(store.get, KEY, 5, words, status, 2) is True
    assert words.view(np.float64)[2] == 0.5
    assert words[[0, 1, 3, 4]].tolist() == [-1, -1, 1, -1]
    assert status.tolist() == [9, 9, STATUS_OK, STATUS_OK, 9]
    assert online.read_into(store.get, b"unknown", 5, words, status, 0) is False
    assert status[:2].tolist() == [STATUS_NULL, STATUS_OK]
    for bad_words, bad_status, at in (
        (words, status, 4),
        (words, status, -1),
        (words.view(np.float64), status, 0),
        (np.zeros(10, np.int64)[::2], status, 0),
        (np.zeros(9, np.int64), status, 0),
    ):
        with pytest.raises(InternalError):
            online.read_into(store.get, KEY, 5, bad_words, bad_status, at)  # type: ignore[arg-type]


def test_packing_and_unpacking_are_inverse() -> None:
    lane = Lane((FLOAT, INT, BOOL, REF), (1,))
    for values in ((0.5, -(2**63), True, 7), (None, None, None, None), (None, 1, None, 2**63 - 1)):
        assert lane.unpack(lane.pack(values)) == values
    for bad in ((0.5, 2**63, True, 7), (0.5, "1", True, 7), (0.5, 1, True)):
        with pytest.raises(DataError, match="does not fit"):
            lane.pack(bad)


def damaged_heads() -> dict[str, bytes]:
    lane = Lane((FLOAT,), (100,), keep=100)
    head = filled(lane, [], [(i, [1.0]) for i in range(40)], seal=4)[1][KEY]
    return {
        "short": head[:30],
        "no whole event": head[:-8],
        "another format": b"\x02" + head[1:],
        "another number of columns": head[:1] + b"\x02" + head[2:],
        "too many entries": head[:4] + b"\xff\xff" + head[6:],
    }


@pytest.mark.parametrize("name", damaged_heads())
def test_damaged_heads_are_named(name: str) -> None:
    lane, head = Lane((FLOAT,), (100,), keep=100), damaged_heads()[name]
    online = OnlineLane(lane, [Output(0, "sum", 100, None)])
    calls: list[Callable[[Memory], object]] = [
        lambda s: online.read(s.get, KEY, 50),
        lambda s: online.change(s, KEY, (999, 999, 9, lane.pack([1.0])), None),
        lambda s: online.events(s.get, KEY),
    ]
    for call in calls:
        with pytest.raises(Corrupt, match="stored windows are damaged") as error:
            call(Memory({KEY: head}))
        assert "lane-key" in str(error.value)
        assert error.value.next_step == "headrace online rebuild"


def test_a_lost_block_is_named() -> None:
    lane = Lane((FLOAT,), (37,), keep=100)
    online, store = filled(lane, [Output(0, "sum", 37, None)], [(i, [1.0]) for i in range(40)], seal=4)
    for key in [k for k in store if k != KEY]:
        del store[key]
    with pytest.raises(Corrupt, match="absent"):
        online.read(store.get, KEY, 40)
    with pytest.raises(Corrupt, match="absent"):
        online.change(store, KEY, (3, 50, 99, lane.pack([1.0])), None)


MISTAKES: dict[str, tuple[Lane, Output]] = {
    "unknown aggregate": (Lane((FLOAT,), (5,)), Output(0, "median", 5, None)),
    "unknown column": (Lane((FLOAT,), (5,)), Output(1, "sum", 5, None)),
    "unknown window": (Lane((FLOAT,), (5,)), Output(0, "sum", 6, None)),
    "no window": (Lane((FLOAT,), (5,)), Output(0, "sum", None, None)),
    "latest of a window": (Lane((FLOAT,), (5,)), Output(0, "latest", 5, None)),
    "latest row": (Lane((FLOAT,), (5,)), Output(None, "latest", None, None)),
    "sum of rows": (Lane((FLOAT,), (5,)), Output(None, "sum", 5, None)),
    "sum of texts": (Lane((REF,), (5,)), Output(0, "sum", 5, None)),
    "no share": (Lane((FLOAT,), (5,)), Output(0, "quantile", 5, None)),
    "share beyond one": (Lane((FLOAT,), (5,)), Output(0, "quantile", 5, 1.5)),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_an_impossible_output_is_refused(name: str) -> None:
    lane, output = MISTAKES[name]
    with pytest.raises(DefinitionError):
        OnlineLane(lane, [output])


def test_impossible_lanes_and_foreign_events_are_refused() -> None:
    for windows in ((5, 5), (7, 5), (0,), (-1,)):
        with pytest.raises(DefinitionError, match="windows must be"):
            Lane((FLOAT,), windows)
    with pytest.raises(DefinitionError, match="too many values"):
        Lane((FLOAT,) * 65, (5,))
    online = OnlineLane(Lane((FLOAT,), (5,)), [])
    with pytest.raises(InternalError, match="another lane"):
        online.change(Memory(), KEY, (1, 1, 1, b"\0" * 8), None)


def test_a_missing_kernel_names_the_way_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="kernel is missing") as error:
        _Kernel(tmp_path / "_kernel.so")
    assert "pip install -e ." in str(error.value)


def table(rows: list[tuple[int, int, int, int, int, float | None]]) -> LaneEvents:
    """Return versions (key, moment, arrival, until, row, value) of a lane of one float."""
    fixed = [np.array([r[i] for r in rows], np.int64) for i in range(5)]
    values = np.array([[r[5] if r[5] is not None else 0.0] for r in rows], np.float64).reshape(len(rows), 1)
    nulls = np.array([[r[5] is None] for r in rows], bool).reshape(len(rows), 1)
    key, moment, arrival, until, row = fixed
    return LaneEvents(key, moment, arrival, until, row, values.view(np.int64), nulls)


@pytest.mark.parametrize("method", ["plain", "sweep", "auto"])
def test_offline_an_event_counts_from_its_arrival_until_it_is_superseded(method: Any) -> None:
    lane = Lane((FLOAT,), (100,), keep=100)
    events = table([(0, 10, 30, 60, 1, 1.0), (0, 10, 60, NEVER, 1, 8.0), (1, 0, 0, NEVER, 2, 4.0)])
    t = np.array([29, 30, 59, 60, 110, 111, 30], np.int64)
    words, status, _ = scan(lane, [Output(0, "sum", 100, None)], events, np.array([0] * 6 + [1]), t, method=method)
    assert words.view(np.float64)[:, 0][status[:, 0] == 0].tolist() == [1.0, 1.0, 8.0, 8.0, 4.0]
    assert status[:, 0].tolist() == [STATUS_NULL, 0, 0, 0, 0, STATUS_NULL, 0]


@pytest.mark.parametrize("method", ["plain", "sweep", "auto"])
@pytest.mark.parametrize("odd", [math.inf, -math.inf, math.nan])
def test_offline_infinities_and_nan_leave_with_their_window(method: Any, odd: float) -> None:
    lane, outputs = Lane((FLOAT,), (2,)), [Output(0, a, 2, None) for a in ("sum", "stddev", "max")]
    events = table([(0, i, i, NEVER, i, v) for i, v in enumerate([1.0, odd, 3.0, 5.0, 9.0])])
    t = np.array([2, 3, 4, 5])
    words, _, _ = scan(lane, outputs, events, np.zeros(4, np.int64), t, method=method)
    found = words.view(np.float64)
    assert [math.isfinite(v) for v in found[:, 0]] == [False, False, True, True]
    assert found[2:].tolist() == [[8.0, math.sqrt(2), 5.0], [14.0, math.sqrt(8), 9.0]]


@pytest.mark.parametrize("method", ["plain", "sweep", "auto"])
def test_offline_extremes_that_are_superseded_are_gone(method: Any) -> None:
    lane, outputs = Lane((FLOAT,), (5000,)), [Output(0, a, 5000, None) for a in ("min", "max")]
    rows: list[tuple[int, int, int, int, int, float | None]]
    rows = [(0, i, i, NEVER, i, float(abs(i - 500))) for i in range(1000)]
    rows[500], rows[0] = (0, 500, 500, 1100, 500, -9.0), (0, 0, 0, 1200, 0, 999.0)
    t = np.array([1099, 1100, 1199, 1200])
    words, _, _ = scan(lane, outputs, table(rows), np.zeros(4, np.int64), t, method=method)
    assert words.view(np.float64).tolist() == [[-9.0, 999.0], [1.0, 999.0], [1.0, 999.0], [1.0, 499.0]]


@pytest.mark.parametrize("method", ["plain", "sweep", "auto"])
def test_offline_unknown_keys_and_empty_tables_count_nothing(method: Any) -> None:
    lane, outputs = Lane((FLOAT,), (100,), keep=100), [Output(0, "count", 100, None), Output(0, "latest", None, 5)]
    for events in (table([]), table([(3, 10, 10, NEVER, 1, 1.0), (-1, 10, 10, NEVER, 1, 1.0)])):
        keys, t = np.array([-1, 0, 2, 99, 3]), np.array([50, 50, 50, 50, 5])
        words, status, _ = scan(lane, outputs, events, keys, t, method=method)
        assert words[:, 0].tolist() == [0] * 5
        assert status.tolist() == [[STATUS_OK, STATUS_NULL]] * 5
    words, status, _ = scan(
        lane, outputs, table([(0, 1, 1, NEVER, 1, 1.0)]), np.array([0]), np.array([50]), method=method
    )
    assert status.tolist() == [[STATUS_OK, STATUS_EXPIRED]]
    assert scan(lane, outputs, table([]), np.zeros(0, np.int64), np.zeros(0, np.int64), method=method).words.shape == (
        0,
        2,
    )
    assert scan(lane, [], table([]), keys, t, method=method).words.shape == (5, 0)


@pytest.mark.parametrize("method", ["plain", "sweep"])
def test_sixty_four_columns_have_sixty_four_nulls(method: Any) -> None:
    lane = Lane((INT,) * 64, (10,), keep=10)
    outputs = [Output(c, "sum", 10, None) for c in (0, 62, 63)]
    nulls = [[c == 63 for c in range(64)], [c == 0 for c in range(64)]]
    online, store = filled(lane, outputs, [(i, [None if x else 5 for x in row]) for i, row in enumerate(nulls)], seal=2)
    assert read(online, store, 5) == [5, 10, 5]
    two = np.arange(2)
    words = np.where(np.array(nulls), 0, 5)
    events = LaneEvents(np.zeros(2, np.int64), two, two, np.full(2, NEVER), two, words, np.array(nulls))
    found, _, _ = scan(lane, outputs, events, np.array([0]), np.array([5]), method=method)
    assert found.tolist() == [[5, 10, 5]]


def test_offline_columns_of_different_lengths_are_refused() -> None:
    events = table([(0, 1, 1, NEVER, 1, 1.0)])
    broken = LaneEvents(**{**vars(events), "until": np.zeros(0, np.int64)})
    with pytest.raises(InternalError, match="differ in length"):
        scan(Lane((FLOAT,), (5,)), [Output(0, "sum", 5, None)], broken, np.array([0]), np.array([5]))
