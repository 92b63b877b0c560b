"""Windows: stored bytes, offline scans and a naive reference give the same bits for any log of changes, in any order."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from headrace.features.scan import scan
from headrace.features.windows import Lane, LaneEvents, OnlineLane, Output, ValueType

NEVER = 2**63 - 1
FLOATS = [0.1, 0.2, 0.3, 1e16, -1e16, 1.0, -0.0, 0.0, 5e-324, -5e-324, 2.3e-308, 1e300, -1e308, 1.7e308, 2.0**53, -1.0]
ODD = [math.inf, -math.inf, math.nan]
INTS = [0, 1, -1, 7, 2**53 + 1, 2**62, 2**63 - 1, -(2**63), -(2**62)]
AGGREGATES = ("count", "sum", "mean", "min", "max", "stddev", "quantile")


class Memory(dict[bytes, bytes]):
    put = dict.__setitem__

    def delete(self, key: bytes) -> None:
        self.pop(key, None)


@dataclass(frozen=True)
class Version:
    """What one reveal says of a row: its key (None: it has no event), moment and values."""

    row: int
    arrival: int
    key: int | None
    moment: int
    values: tuple[Any, ...]

    @property
    def rank(self) -> tuple[int, bytes]:
        return self.arrival, repr((self.key, self.moment, self.values)).encode()


def newest_versions(log: list[Version], t: int) -> list[Version]:
    held: dict[int, Version] = {}
    for v in log:
        if v.arrival <= t and (v.row not in held or v.rank > held[v.row].rank):
            held[v.row] = v
    return list(held.values())


def naive(lane: Lane, outputs: list[Output], log: list[Version], key: int, t: int) -> list[Any]:
    edge = t + 1 if lane.state else t
    events = sorted(
        ((v.moment, v.arrival, v.row, v.values) for v in newest_versions(log, t) if v.key == key and v.moment < edge),
        key=lambda e: e[:3],
    )
    found: list[Any] = []
    for o in outputs:
        mine = [e for e in events if o.window is None or e[0] >= edge - o.window]
        if o.column is None:
            found.append(len(mine))
        elif o.aggregate == "latest":
            kept = [(e[0], e[3][o.column]) for e in mine if lane.state or e[3][o.column] is not None]
            stale = kept and o.parameter is not None and t - kept[-1][0] > o.parameter
            found.append("EXPIRED" if stale else kept[-1][1] if kept else None)
        else:
            found.append(aggregate(o, [e[3][o.column] for e in mine if e[3][o.column] is not None]))
    return found


def aggregate(o: Output, values: list[Any]) -> Any:
    n = len(values)
    if o.aggregate == "count" or n == 0:
        return n if o.aggregate == "count" else None
    if o.aggregate in ("min", "max", "quantile"):
        values = sorted(values, key=lambda v: (v != v, v if v == v else 0, math.copysign(1, v)))
        place = {"min": 0, "max": n - 1, "quantile": max(math.ceil((o.parameter or 0) * n), 1) - 1}
        return values[place[o.aggregate]]
    odd = [v for v in values if not math.isfinite(v)]
    if o.aggregate == "stddev" and n < 2:
        return None
    if odd:
        return math.nan if o.aggregate == "stddev" else sum(odd)
    exact = [Fraction(v) for v in values]
    total = sum(exact, Fraction(0))
    if o.aggregate == "sum":
        if isinstance(values[0], int):
            return int(total) if -(2**63) <= total < 2**63 else "OVERFLOW"
        return rounded(total)
    if o.aggregate == "mean":
        return rounded(total / n)
    return math.sqrt(rounded((n * sum((x * x for x in exact), Fraction(0)) - total * total) / (n * (n - 1))))


def rounded(value: Fraction) -> float:
    try:
        return float(value) if value else 0.0
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def shown(lane: Lane, o: Output, word: int, status: int) -> Any:
    """Return a result in the reference's terms."""
    if status:
        return {1: None, 2: "EXPIRED", 3: "OVERFLOW"}[status]
    kind = ValueType.INT if o.column is None or o.aggregate == "count" else lane.values[o.column]
    real = o.aggregate in ("mean", "stddev") or kind is ValueType.FLOAT
    return struct.unpack("<d", struct.pack("<q", word))[0] if real else word


def bits(values: list[Any]) -> list[Any]:
    return ["nan" if v != v else struct.pack("<d", v) if isinstance(v, float) else v for v in values]


def answers(lane: Lane, outputs: list[Output], words: Any, status: Any) -> list[Any]:
    found = zip(outputs, words.tolist(), status.tolist(), strict=True)
    return bits([shown(lane, o, word, code) for o, word, code in found])


def offline(lane: Lane, outputs: list[Output], log: list[Version], asked: list[tuple[int, int]], how: Any) -> list[Any]:
    """Turn the log into event versions, each superseded by its row's next, and scan them."""
    rows: dict[int, list[Version]] = {}
    for v in sorted(set(log), key=lambda v: v.rank):
        rows.setdefault(v.row, []).append(v)
    events = [(v, n.arrival if n else NEVER) for vs in rows.values() for v, n in zip(vs, [*vs[1:], None], strict=True)]
    events = [(v, until) for v, until in events if v.key is not None]
    packed = [lane.layout.unpack(lane.pack(v.values)) for v, _ in events]
    words = np.array([struct.unpack(f"<{len(p) - 1}q", lane.layout.pack(*p)[8:]) for p in packed], np.int64)

    def column(values: Iterable[int | None]) -> NDArray[np.int64]:
        return np.array(list(values), np.int64)

    table = LaneEvents(
        key=column(v.key for v, _ in events),
        moment=column(v.moment for v, _ in events),
        arrival=column(v.arrival for v, _ in events),
        until=column(until for _, until in events),
        row=column(v.row for v, _ in events),
        words=words.reshape(len(events), len(lane.values)),
        nulls=np.array([[x is None for x in v.values] for v, _ in events], bool).reshape(len(events), len(lane.values)),
    )
    found = scan(lane, outputs, table, column(k for k, _ in asked), column(t for _, t in asked), method=how)
    return [answers(lane, outputs, w, s) for w, s in zip(found.words, found.status, strict=True)]


class Writer:
    """Push versions as a row store would: the newest of a row holds, whatever the order."""

    def __init__(self, lane: Lane, outputs: list[Output], seal: int) -> None:
        self.lane, self.online = lane, OnlineLane(lane, outputs, seal=seal)
        self.rows: dict[int, Version] = {}
        self.store = Memory()

    def push(self, v: Version) -> None:
        old = self.rows.get(v.row)
        if old is not None and old.rank >= v.rank:
            return
        self.rows[v.row] = v
        add = (v.moment, v.arrival, v.row, self.lane.pack(v.values))
        remove = None if old is None or old.key is None else (old.moment, old.arrival, old.row)
        if old is not None and old.key == v.key and v.key is not None:
            self.online.change(self.store, b"%d" % v.key, add, remove)
            return
        if old is not None and old.key is not None:
            self.online.change(self.store, b"%d" % old.key, None, remove)
        if v.key is not None:
            self.online.change(self.store, b"%d" % v.key, add, None)

    def read(self, key: int, t: int) -> list[Any]:
        self.online.read(self.store.get, b"%d" % key, t)
        return answers(self.lane, list(self.online.outputs), self.online.words, self.online.status)


def all_outputs(lane: Lane) -> list[Output]:
    found = [Output(None, "count", w, None) for w in lane.windows]
    for c, kind in enumerate(lane.values):
        found += [Output(c, "latest", None, age) for age in (None, 0, 5)]
        names = ("count",) if kind is ValueType.REF else AGGREGATES
        found += [Output(c, a, w, 0.3 if a == "quantile" else None) for a in names for w in lane.windows]
    return found


def values_of(kind: ValueType) -> st.SearchStrategy[Any]:
    plain: dict[ValueType, st.SearchStrategy[Any]] = {
        ValueType.FLOAT: st.one_of(st.sampled_from(FLOATS), st.sampled_from(FLOATS[:6]), st.floats()),
        ValueType.INT: st.one_of(st.sampled_from(INTS), st.integers(-(2**63), 2**63 - 1)),
        ValueType.BOOL: st.integers(0, 1),
        ValueType.REF: st.integers(0, 2**63 - 1),
    }
    return st.one_of(st.none(), plain[kind], plain[kind], plain[kind])


LANES = st.builds(
    Lane,
    values=st.lists(st.sampled_from(list(ValueType)), max_size=3).map(tuple),
    windows=st.sets(st.integers(1, 40), min_size=1, max_size=3).map(lambda w: tuple(sorted(w))),
    state=st.booleans(),
    keep=st.just(60),
    latest=st.just(True),
)


@st.composite
def logs(draw: st.DrawFn) -> tuple[Lane, list[Version]]:
    lane = draw(LANES)
    version = st.builds(
        Version,
        row=st.integers(0, 5),
        arrival=st.integers(-10, 30),
        key=st.sampled_from([0, 1, None]),
        moment=st.integers(-20, 30),
        values=st.tuples(*map(values_of, lane.values)),
    )
    return lane, draw(st.lists(version, max_size=25))


@settings(max_examples=300)
@given(logs(), st.lists(st.integers(-12, 60), min_size=1, max_size=6), st.sampled_from([1, 2, 4, 96]), st.randoms())
def test_any_log_gives_the_same_bits_online_offline_and_by_definition(
    case: tuple[Lane, list[Version]], moments: list[int], seal: int, order: random.Random
) -> None:
    lane, log = case
    outputs, asked = all_outputs(lane), [(k, t) for t in sorted(moments) for k in (0, 1, 5)]
    wanted = [bits(naive(lane, outputs, log, k, t)) for k, t in asked]
    for how in ("plain", "sweep", "auto"):
        assert offline(lane, outputs, log, asked, how) == wanted
    writer, waiting = Writer(lane, outputs, seal), list(log)
    for (k, t), want in zip(asked, wanted, strict=True):
        arrived = [v for v in waiting if v.arrival <= t]
        waiting = [v for v in waiting if v.arrival > t]
        arrived += order.sample(arrived, len(arrived) // 2)
        order.shuffle(arrived)
        for v in arrived:
            writer.push(v)
        assert writer.read(k, t) == want


def busy_log(r: random.Random, lane: Lane, n: int, spread: int) -> list[Version]:
    """Make n reveals in time, mostly in order: some late, tied, null, corrected, moved or removed."""
    log: list[Version] = []
    floats = r.choice([FLOATS, FLOATS + ODD, [0.1, 0.2, 12.34, -7.7]])
    pool: dict[ValueType, list[Any]] = {
        ValueType.FLOAT: floats,
        ValueType.INT: INTS,
        ValueType.BOOL: [0, 1],
        ValueType.REF: [5, 6, 2**63 - 1],
    }
    for i in range(n):
        arrival = i // 2 - n // 4
        again = bool(log) and r.random() < 0.15
        row = r.choice(log).row if again else r.randrange(2**63)
        moment = arrival - (r.randrange(spread) if r.random() < 0.2 else r.randrange(2)) + (r.random() < 0.05) * 9
        key = None if again and r.random() < 0.2 else 1 if r.random() < 0.1 else 0
        values: list[Any] = [None if r.random() < 0.1 else r.choice(pool[kind]) for kind in lane.values]
        if r.random() < 0.5:
            values = [r.gauss(20, 40) if k is ValueType.FLOAT else x for k, x in zip(lane.values, values, strict=True)]
        log.append(Version(row, arrival, key, moment, tuple(values)))
    return log


@settings(max_examples=40)
@given(st.integers(0, 2**32), LANES, st.sampled_from([4, 5, 16, 96]), st.sampled_from([30, 200, 900]))
def test_blocks_and_levels_of_hot_keys_change_no_bit(seed: int, lane: Lane, seal: int, n: int) -> None:
    r = random.Random(seed)
    lane = Lane(lane.values, lane.windows + (150, 400), lane.state, 420, lane.latest)
    log, outputs = busy_log(r, lane, n, 300), all_outputs(lane)
    asked = [(k, r.randrange(-n // 4, n // 4 + 200)) for k in (0, 0, 0, 0, 0, 0, 1, 1)]
    wanted = [bits(naive(lane, outputs, log, k, t)) for k, t in asked]
    for how in ("plain", "sweep"):
        assert offline(lane, outputs, log, asked, how) == wanted
    newest = max(v.arrival for v in log)
    final = [(k, newest + r.randrange(300)) for k in (0, 0, 1)]
    for shuffled in (False, True):
        writer = Writer(lane, outputs, seal)
        for v in r.sample(log, n) if shuffled else log:
            writer.push(v)
        for k, t in final:
            assert writer.read(k, t) == bits(naive(lane, outputs, log, k, t))


@pytest.mark.parametrize("seal", [3, 96])
def test_reads_in_between_see_what_had_arrived_while_old_events_are_dropped(seal: int) -> None:
    r = random.Random(seal)
    lane = Lane((ValueType.FLOAT, ValueType.INT), (20, 100), keep=150, latest=True)
    log, outputs = busy_log(r, lane, 2400, 40), all_outputs(lane)
    writer, waiting = Writer(lane, outputs, seal), sorted(log, key=lambda v: v.arrival)
    dropped = False
    for t in range(-600, 650, 125):
        while waiting and waiting[0].arrival <= t:
            writer.push(waiting.pop(0))
        for k in (0, 1):
            assert writer.read(k, t) == bits(naive(lane, outputs, log, k, t))
        live = writer.online.events(writer.store.get, b"0")
        held = [v for v in newest_versions(log, t) if v.key == 0]
        dropped |= len(live) < len(held)
        kept = {(e.moment, e.arrival, e.row) for e in live}
        assert kept >= {(v.moment, v.arrival, v.row) for v in held if v.moment >= t - 100}
        assert kept <= {(v.moment, v.arrival, v.row) for v in held}
    assert dropped
