"""The kernel, lane by lane: any order of changes, a scan and exact fractions give the same words and statuses.

Rows have histories: versions at a key with a moment, an arrival and values, replaced, moved and taken out again. What is
stored is reached by changes in any order between rows. Damaged bytes are read in a process of their own, whose crash
would be seen.
"""

from __future__ import annotations

import math
import random
import struct
import subprocess
import sys
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.errors import Corrupt
from headrace.features.scan import scan
from headrace.features.windows import Lane, LaneEvents, OnlineLane, Output, ValueType
from headrace.testing.sketches import distinct_estimate, quantile_estimate

FLOAT, INT, BOOL, REF = ValueType
NEVER = 2**63 - 1
FOR_EVER = 2**62
NAN_WORD = 0x7FF8000000000000
OK, NULL, EXPIRED, OVERFLOW, REBUILD = 0, 1, 2, 3, 6
WINDOWED = ("count", "sum", "mean", "min", "max", "stddev", "quantile")


class Memory(dict[bytes, bytes]):
    put = dict.__setitem__

    def delete(self, key: bytes) -> None:
        self.pop(key, None)


@dataclass(frozen=True)
class Version:
    """What a row is from `arrival` on; without a key it is taken out."""

    row: int
    arrival: int
    key: int | None
    moment: int
    values: tuple[Any, ...]

    @property
    def order(self) -> tuple[int, int, int]:
        return self.moment, self.arrival, self.row


Histories = list[list[Version]]


def word_of(value: Any) -> int:
    if not isinstance(value, float):
        return int(value)
    return NAN_WORD if value != value else int(struct.unpack("<q", struct.pack("<d", value))[0])


def rounded(value: Fraction) -> float:
    try:
        return float(value) if value else 0.0
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def deviation(values: list[Any]) -> float:
    n, exact = len(values), [Fraction(v) for v in values]
    mean = sum(exact, Fraction(0)) / n
    return math.sqrt(rounded(sum(((x - mean) ** 2 for x in exact), Fraction(0)) / (n - 1)))


def total(aggregate: str, values: list[Any]) -> tuple[Any, int]:
    if aggregate == "stddev" and len(values) < 2:
        return math.nan, NULL
    if not all(map(math.isfinite, values)):
        return (math.nan if aggregate == "stddev" else sum(v for v in values if not math.isfinite(v))), OK
    if aggregate == "stddev":
        return deviation(values), OK
    exact = sum(map(Fraction, values), Fraction(0))
    if aggregate == "mean":
        return rounded(exact / len(values)), OK
    if isinstance(values[0], float):
        return rounded(exact), OK
    return (int(exact), OK) if -(2**63) <= exact < 2**63 else (0, OVERFLOW)


def ranked(aggregate: str, share: float | None, values: list[Any]) -> Any:
    """Return the least value that at least the share of all values does not exceed: NaN last, -0.0 before 0.0."""
    ordered = sorted(values, key=lambda v: (v != v, 0 if v != v else v, math.copysign(1, v)))
    if aggregate in ("min", "max"):
        return ordered[0 if aggregate == "min" else -1]
    assert share is not None
    return next(v for i, v in enumerate(ordered, 1) if Fraction(i, len(ordered)) >= Fraction(share))


def equal(value: Any) -> Any:
    """Return what stands for all values that equal one: zeros have no sign, every NaN is the same."""
    return math.nan if value != value else value + 0.0 if isinstance(value, float) else value


def answer(lane: Lane, o: Output, events: list[Version], t: int) -> tuple[Any, int]:
    """Return the word and status of an output over visible events, which are in order."""
    if o.window is not None:
        lowest = t - o.offset - o.window + lane.state
        if o.hop:
            lowest = lowest // o.hop * o.hop
        events = [e for e in events if lowest <= e.moment < t - o.offset + lane.state]
    if o.column is None:
        return len(events), OK
    real = o.aggregate in ("mean", "stddev") or lane.values[o.column] is FLOAT
    missing = NAN_WORD if real and o.aggregate != "count" else 0
    values = [e.values[o.column] for e in events if e.values[o.column] is not None]
    if o.bits and o.aggregate == "distinct":
        return distinct_estimate(values, o.bits), OK
    if o.bits:
        return (word_of(quantile_estimate(values, o.parameter or 0.0, o.bits)), OK) if values else (NAN_WORD, NULL)
    if o.aggregate in ("count", "distinct"):
        return len(values if o.aggregate == "count" else set(map(equal, values))), OK
    if o.aggregate == "fold":
        return (tuple(map(word_of, values)), OK) if values else ((), NULL)
    if o.aggregate == "latest":
        kept = [e for e in events if lane.state or e.values[o.column] is not None]
        if lane.state and kept and o.until is not None and (ends := kept[-1].values[o.until]) is not None and ends <= t:
            late = o.parameter is not None and t - kept[-1].moment > o.parameter
            return missing, EXPIRED if late else NULL
        if kept and o.parameter is not None and t - kept[-1].moment > o.parameter:
            return missing, EXPIRED
        return (
            (word_of(kept[-1].values[o.column]), OK)
            if kept and kept[-1].values[o.column] is not None
            else (missing, NULL)
        )
    if not values:
        return missing, NULL
    if o.aggregate in ("last", "first"):
        k = int(o.parameter or 0)
        there = 1 <= k <= len(values)
        return (word_of(values[-k] if o.aggregate == "last" else values[k - 1]), OK) if there else (missing, NULL)
    if o.aggregate == "mode":
        groups = [equal(v) for v in values]
        most = max(map(groups.count, groups))
        return word_of(ranked("min", None, [g for g in groups if groups.count(g) == most])), OK
    if o.aggregate in ("min", "max", "quantile"):
        return word_of(ranked(o.aggregate, o.parameter, values)), OK
    value, status = total(o.aggregate, values)
    return (word_of(value) if status == OK else missing), status


def known(lane: Lane, v: Version) -> int:
    found: int = v.values[-1] if lane.placed else v.moment
    return found


def by_definition(lane: Lane, outputs: list[Output], rows: Histories, key: int, t: int) -> list[tuple[Any, int]]:
    held = [[v for v in row if v.arrival <= t] for row in rows]
    live = [row[-1] for row in held if row and row[-1].key == key]
    seen = sorted((v for v in live if known(lane, v) < t + lane.state), key=lambda v: v.order)
    return [answer(lane, o, seen, t) for o in outputs]


def by_scan(lane: Lane, outputs: list[Output], rows: Histories, asked: list[tuple[int, int]], how: Any) -> list[Any]:
    found: list[tuple[Version, int]] = []
    for row in rows:
        ends = [v.arrival for v in row[1:]] + [NEVER]
        found += [(v, end) for v, end in zip(row, ends, strict=True) if v.key is not None]
    # Rows may come in any order; moments in order with ties the wrong way round look sorted already.
    found.sort(key=lambda f: (f[0].moment, -f[0].arrival, -f[0].row), reverse=how == "sweep")
    n, m = len(found), len(lane.values)
    plain = np.array([(v.key, *v.order, end) for v, end in found], np.int64).reshape(n, 5)
    words = [[word_of(0 if x is None else x) for x in v.values] for v, _ in found]
    events = LaneEvents(
        key=plain[:, 0],
        moment=plain[:, 1],
        arrival=plain[:, 2],
        row=plain[:, 3],
        until=plain[:, 4],
        words=np.array(words, np.int64).reshape(n, m),
        nulls=np.array([[x is None for x in v.values] for v, _ in found], bool).reshape(n, m),
    )
    keys, moments = (np.array(column, np.int64) for column in zip(*asked, strict=True))
    got = scan(lane, outputs, events, keys, moments, method=how)
    results: list[list[tuple[Any, int]]]
    results = [list(zip(w, s, strict=True)) for w, s in zip(got.words.tolist(), got.status.tolist(), strict=True)]
    for place, (taken, stops) in got.folds.items():
        for query, part in enumerate(np.split(taken, stops[:-1])):
            results[query][place] = tuple(part.tolist()), results[query][place][1]
    return results


def write(online: OnlineLane, store: Memory, old: Version | None, new: Version, split: bool) -> None:
    """Let `new` take the place of `old`, in one change where they are neighbours unless they are to be `split`."""
    pack = online.lane.pack
    gone = None if old is None or old.key is None else old.order
    add = None if new.key is None else (*new.order, pack(new.values))
    if gone and old is not None and old.key == new.key and not split:
        online.change(store, b"%d" % (new.key or 0), add, gone)
        return
    if gone and old is not None:
        online.change(store, b"%d" % (old.key or 0), None, gone)
    if add:
        online.change(store, b"%d" % (new.key or 0), add, None)


def stored(online: OnlineLane, store: Memory, key: int, t: int) -> list[tuple[Any, int]]:
    online.read(store.get, b"%d" % key, t)
    found: list[tuple[Any, int]] = list(zip(online.words.tolist(), online.status.tolist(), strict=True))
    for place, values in online.folds().items():
        found[place] = tuple(values.tolist()) if found[place][1] == OK else (), found[place][1]
    return found


def all_outputs(lane: Lane, shares: tuple[float, ...]) -> list[Output]:
    """Return every output; without shares no quantile makes reads go down to events where summaries would do."""
    found = [Output(None, "count", w, None) for w in lane.windows]
    for c, kind in enumerate(lane.values[: len(lane.values) - lane.placed]):
        found += [Output(c, "latest", None, age) for age in (None, 0, 3, 20)] if lane.latest and not lane.placed else []
        names = ("count",) if kind is REF else WINDOWED
        for w in lane.windows:
            found += [Output(c, a, w, q) for a in names for q in (shares if a == "quantile" else (None,))]
            if shares:
                found += [Output(c, a, w, None) for a in ("distinct", "mode", "fold")]
                found += [Output(c, a, w, k) for a in ("last", "first") for k in (1, 2, 9)]
                found += [Output(c, "distinct", w, None, bits=bits) for bits in (4, 7)]
                found += [Output(c, "quantile", w, q, bits=b) for q in shares for b in (1, 6) if kind is not REF]
            moved = [(3, 0), (0, 4), (5, 7), *([(-w, 0), (-w - 6, 0)] if lane.placed else [])]
            found += [Output(c, "count", w, None, offset, hop) for offset, hop in moved]
            if shares or kind is not REF:
                found += [Output(c, "fold" if shares else "max", w, None, offset, hop) for offset, hop in moved[2:]]
    if lane.latest and lane.state and not lane.placed and lane.values[-1] is INT:
        found += [Output(0, "latest", None, age, until=len(lane.values) - 1) for age in (None, 9)]
    return found


PALETTES: list[st.SearchStrategy[float]] = [
    st.integers(-30, 30).map(lambda i: i * 0.1),
    st.sampled_from([1e16, -1e16, 1.0, -1.0, 0.1, -0.0, 0.0]),
    st.sampled_from([5e-324, -5e-324, 2.2250738585072014e-308, -2.225073858507201e-308, -0.0]),
    st.sampled_from([1.7e308, 1.7e308, -1.7e308, 1e292, 1.0]),
    st.sampled_from([math.inf, -math.inf, math.nan, 1.5, -1.7e308]),
    st.floats(),
]
# Shares that are exact in binary: others have two meanings where share * n is nearly an integer.
SHARES: st.SearchStrategy[tuple[float, ...]] = st.sampled_from([(), (0.0, 0.25, 0.5, 0.875, 1.0)])
EDGES = [2**63 - 1, 2**63 - 2, -(2**63), -(2**63) + 1, 2**62, -(2**62), 1, -1, 0]


@st.composite
def histories(draw: st.DrawFn) -> tuple[Lane, Histories]:
    kinds = draw(st.lists(st.sampled_from([FLOAT, FLOAT, INT, BOOL, REF]), min_size=1, max_size=3))
    windows = tuple(sorted(draw(st.sets(st.integers(1, 30), min_size=1, max_size=3))))
    placed = draw(st.booleans())
    lane = Lane(
        (*kinds, *([INT] if placed else [])), windows, draw(st.booleans()), FOR_EVER, latest=True, placed=placed
    )
    pools: dict[ValueType, st.SearchStrategy[Any]] = {
        FLOAT: draw(st.sampled_from(PALETTES)),
        INT: st.sampled_from(EDGES) | st.integers(-9, 9),
        BOOL: st.integers(0, 1),
        REF: st.integers(0, 2**63 - 1),
    }
    last = [st.integers(-15, 25)] if placed else []
    values = st.tuples(*(st.none() | pools[k] | pools[k] for k in kinds), *last)
    version = st.tuples(st.integers(-5, 20), st.sampled_from([0, 0, 0, 1, None]), st.integers(-15, 25), values)
    drawn = draw(st.lists(st.lists(version, min_size=1, max_size=3), max_size=16))
    # Blocks begin beyond some 16 events of a key, more than would be drawn one by one.
    drawn += [[(a, k, w + 1, x) for a, k, w, x in history] for history in drawn * draw(st.sampled_from([0, 3]))]
    rows = []
    for i, history in enumerate(drawn):
        arrivals = sorted(v[0] for v in history)
        hashed = (i * 0x9E3779B97F4A7C15) % 2**63
        rows.append([Version(hashed, a, *v[1:]) for a, v in zip(arrivals, history, strict=True)])
    return lane, rows


def shuffled(rows: Histories, order: random.Random) -> list[tuple[Version | None, Version]]:
    """Return every step of every row, each row's in order, rows mixed anyhow."""
    turns = [i for i, row in enumerate(rows) for _ in row]
    order.shuffle(turns)
    at, steps = [0] * len(rows), []
    for i in turns:
        steps.append((rows[i][at[i] - 1] if at[i] else None, rows[i][at[i]]))
        at[i] += 1
    return steps


@settings(max_examples=200)
@given(histories(), st.sampled_from([1, 2, 3, 96]), SHARES, st.randoms(use_true_random=False))
def test_any_order_of_changes_is_the_scan_and_the_definition(
    case: tuple[Lane, Histories], seal: int, shares: tuple[float, ...], order: random.Random
) -> None:
    lane, rows = case
    outputs = all_outputs(lane, shares)
    newest = max([v.arrival for row in rows for v in row], default=0)
    final = [(k, newest + d) for d in (0, 1, 7, 30) for k in (0, 1, 2)]
    asked = [(k, t) for t in order.sample(range(-10, 30), 6) for k in (0, 1)] + final
    wanted = [by_definition(lane, outputs, rows, k, t) for k, t in asked]
    for how in ("plain", "sweep", "auto"):
        assert by_scan(lane, outputs, rows, asked, how) == wanted
    for _ in range(2):
        online, store = OnlineLane(lane, outputs, seal=seal), Memory()
        for old, new in shuffled(rows, order):
            write(online, store, old, new, split=order.random() < 0.3)
            if order.random() < 0.1:
                online.change(store, b"0", None, (new.moment, new.arrival, new.row ^ 1))
        assert [stored(online, store, k, t) for k, t in final] == wanted[-len(final) :]
        for k in (0, 1):
            live = sorted(row[-1].order for row in rows if row[-1].key == k)
            assert [e[:3] for e in online.events(store.get, b"%d" % k)] == live


def long_log(r: random.Random, lane: Lane, n: int) -> list[tuple[Version | None, Version]]:
    """Make steps in order of arrival: mostly in time, some late, far too late, tied, ahead, corrected or taken out."""
    held: list[Version] = []
    steps: list[tuple[Version | None, Version]] = []
    missing = [r.choice([0.2, 0.98]) for _ in lane.values]  # a rare value must outlive its window as the latest
    for i in range(n):
        arrival, lateness = i // 2, r.choice([0, 0, 0, 1, 2, 7, -r.randrange(100), r.randrange(2 * lane.keep)])
        value = r.choice([0.1 * r.randrange(99), 1e16, -1e16, 1.7e308, -0.0])
        values: list[Any] = [r.choice(EDGES) if kind is INT else value for kind in lane.values]
        values = [None if r.random() < rare else x for x, rare in zip(values, missing, strict=True)]
        if lane.placed:
            values[-1] = arrival - r.choice([0, 0, 1, 30, -4])
        # Half of what changes is recent, so that windows notice.
        place = (
            (r.randrange(max(len(held) - 20, 0), len(held)) if r.random() < 0.5 else r.randrange(len(held)))
            if held
            else 0
        )
        old = held.pop(place) if held and r.random() < 0.2 else None
        row, key = (r.randrange(2**63), 0) if old is None else (old.row, r.choice([0, 0, None]))
        new = Version(row, arrival, key, arrival - lateness, tuple(values))
        steps.append((old, new))
        if key is not None:
            held.append(new)
    return steps


@settings(max_examples=40)
@given(
    st.integers(0, 2**32),
    st.sampled_from([(10,), (3, 40), (1, 20, 60)]),
    st.booleans(),
    st.sampled_from(["latest", "windows", "placed"]),
    st.sampled_from([2, 3, 8]),
    st.sampled_from([(FLOAT,), (FLOAT, INT), (INT, FLOAT, FLOAT)]),
    SHARES,
)
def test_dropping_old_events_changes_no_read_from_the_newest_arrival_on(
    seed: int,
    windows: tuple[int, ...],
    state: bool,
    what: str,
    seal: int,
    kinds: tuple[ValueType, ...],
    shares: tuple[float, ...],
) -> None:
    r = random.Random(seed)
    placed, latest = what == "placed", what == "latest"
    kinds += (INT,) if placed else ()
    # The longest offset and hop of `all_outputs` are kept too.
    lane = Lane(kinds, windows, state, windows[-1] + 5 + 7 + r.randrange(3), latest, placed)
    outputs = all_outputs(lane, shares)
    thrifty = OnlineLane(lane, outputs, seal=seal)
    hoarding = OnlineLane(Lane(kinds, windows, state, FOR_EVER, latest, placed), outputs, seal=seal)
    small, large = Memory(), Memory()
    histories: dict[int, list[Version]] = {}
    for i, (old, new) in enumerate(long_log(r, lane, 500)):
        for online, store in ((thrifty, small), (hoarding, large)):
            write(online, store, old, new, split=False)
        histories.setdefault(new.row, []).append(new)
        if i % 50 != 49:
            continue
        for t in (new.arrival, new.arrival + 1, new.arrival + r.randrange(90)):
            wanted = by_definition(lane, outputs, list(histories.values()), 0, t)
            assert stored(hoarding, large, 0, t) == wanted
            got = stored(thrifty, small, 0, t)
            # A value that only history knows is said to be one; it is never another.
            unknown = [status == REBUILD for _, status in got]
            assert not any(u and o.aggregate != "latest" for u, o in zip(unknown, outputs, strict=True))
            assert not any(unknown) or thrifty.needs_rebuild(small.get, b"0")
            assert [w if u else g for g, w, u in zip(got, wanted, unknown, strict=True)] == wanted
    asked = [(0, r.randrange(-20, 320)) for _ in range(8)]
    wanted_then = [by_definition(lane, outputs, list(histories.values()), k, t) for k, t in asked]
    for how in ("plain", "sweep"):
        assert by_scan(lane, outputs, list(histories.values()), asked, how) == wanted_then
    kept = [e[:3] for e in thrifty.events(small.get, b"0")]
    everything = [e[:3] for e in hoarding.events(large.get, b"0")]
    assert set(kept) < set(everything)
    assert kept == sorted(kept)


DAMAGE = """
import random, sys
from headrace.core.errors import Corrupt
from headrace.features.windows import Lane, OnlineLane, Output, ValueType

class Memory(dict):
    put = dict.__setitem__
    def delete(self, key):
        self.pop(key, None)

seed, rounds = int(sys.argv[1]), int(sys.argv[2])
r = random.Random(seed)
kinds = [ValueType.FLOAT, ValueType.INT, ValueType.BOOL][: 1 + seed % 3]
kinds += [ValueType.INT] * (seed == 1)
lane = Lane(tuple(kinds), (20, 200, 700), bool(seed % 2), 900, True, placed=seed == 1)
names = ("count", "sum", "mean", "min", "max", "stddev", "quantile", "distinct", "mode", "last", "first", "fold")
shares = {"quantile": 0.5, "last": 2, "first": 3}
outputs = [Output(0, a, w, shares.get(a)) for a in names for w in lane.windows]
outputs += [Output(0, a, 200, None, 100, 30) for a in ("sum", "mode", "fold")]
outputs += [Output(len(kinds) - 1, "latest", None, None), Output(None, "count", 200, None)]
sums = [o for o in outputs if o.aggregate in names[:6]]
readers = [OnlineLane(lane, some, seal=3) for some in (outputs, sums, sums[-2:])]
whole = Memory()
for i in range(800):
    values = [r.choice([0.1, 1e300, -5e-324, None]), r.choice([2**62, -1, None]), r.choice([True, None])]
    values = [*values[: len(kinds) - 1], i - 3] if lane.placed else values[: len(kinds)]
    readers[0].change(whole, b"k", (i, i, i, lane.pack(values)), None)
keys, found = sorted(whole), {"value": 0, "corrupt": 0}

def damage(blob):
    what = r.randrange(4)
    if what == 0:
        return blob[: r.randrange(len(blob))]
    blob = bytearray(blob)
    if what == 1:
        for _ in range(r.randrange(1, 4)):
            blob[r.randrange(len(blob))] ^= 1 << r.randrange(8)
    elif what == 2:
        at = r.randrange(len(blob) // 8) * 8
        blob[at : at + 8] = r.choice([b"\\0" * 8, b"\\xff" * 8, b"\\xff" * 7 + b"\\x7f", r.randbytes(8)])
    else:
        blob += r.randbytes(r.choice([1, 8, 40, 160]))
    return bytes(blob)

def tries(call):
    try:
        call()
    except Corrupt:
        found["corrupt"] += 1
    else:
        found["value"] += 1

for _ in range(rounds):
    store = Memory(whole)
    for key in r.choice([[b"k"], [r.choice(keys)], r.sample(keys, 3), keys]):
        store[key] = damage(store[key])
    for reader in readers:
        for t in (800, 150, -3):
            tries(lambda: reader.read(store.get, b"k", t))
    tries(lambda: readers[0].events(store.get, b"k"))
    event = lane.pack([1, 2, 1][: len(kinds)])
    for add, remove in ((800, None), (5, (300, 300, 300)), (301, (799, 799, 799)), (3000, (4, 4, 4))):
        copy = Memory(store)
        tries(lambda: readers[0].change(copy, b"k", (add, 800, 1, event), remove))
print(found["value"], found["corrupt"])
"""


def test_levels_without_end_are_corrupt() -> None:
    lane, store = Lane((INT,), (10_000,), keep=10_000), Memory()
    online = OnlineLane(lane, [Output(0, "quantile", 10_000, 0.5)], seal=4)
    for i in range(21):
        online.change(store, b"0", (i, i, i, lane.pack([i])), None)
    head = store[b"0"]
    entry = head[40 : 40 + 48 + 112]
    for level in range(40, 0, -1):
        below = entry[:32] + (level << 8 | level - 1).to_bytes(8, "little") + entry[40:]
        store[b"0c" + (level + 1).to_bytes(4, "big")] = below
    store[b"0"] = head[:40] + entry[:32] + (41 << 8 | 40).to_bytes(8, "little") + head[80:]
    with pytest.raises(Corrupt):
        online.read(store.get, b"0", 100)


def test_more_entries_than_a_head_has_room_for_are_corrupt() -> None:
    lane, store = Lane((INT,), (10_000,), keep=10_000), Memory()
    online = OnlineLane(lane, [Output(0, "sum", 10_000, None)], seal=4)
    for i in range(25):
        online.change(store, b"0", (i, i, i, lane.pack([i])), None)
    head = store[b"0"]
    entries = int.from_bytes(head[4:8], "little")
    for claimed in [*range(len(head) // 160 + 1, 40), 2**31, 2**32 - 1]:
        assert claimed > entries
        store[b"0"] = head[:4] + claimed.to_bytes(4, "little") + head[8:]
        with pytest.raises(Corrupt):
            online.read(store.get, b"0", 100)
        with pytest.raises(Corrupt):
            online.events(store.get, b"0")


@pytest.mark.parametrize("seed", range(3))
def test_damaged_bytes_give_corrupt_or_a_value_and_never_end_the_process(seed: int) -> None:
    run = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", DAMAGE, str(seed), "250"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    values, corrupt = map(int, run.stdout.split())
    assert values > 500
    assert corrupt > 500
