"""Measure the feature kernel beside plain float arithmetic in NumPy: python bench/kernel.py [--json] [--events N].

Offline: 100,000 labels, 4 windows, 7 aggregates, events of 10,000 keys over 90 days in order of time, keys uniform or by
Zipf's law; NumPy's answer (stable sort by key, prefix sums, `reduceat`) is not exact and is the limit to compare with.
Online: microseconds a call on one key's bytes in a dictionary; NumPy's answer comes from arrays that are already there.
Every figure is the least of some repetitions; ratios are of the same run.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.features.scan import scan
from headrace.features.windows import Lane, LaneEvents, OnlineLane, Output, ValueType

DAY = 86_400_000_000
WINDOWS = (DAY // 24, DAY, 7 * DAY, 30 * DAY)
SPAN, KEYS, LABELS = 90 * DAY, 10_000, 100_000
AGGREGATES = ("count", "sum", "mean", "min", "max", "stddev")
LANE = Lane((ValueType.FLOAT,), WINDOWS, keep=31 * DAY, latest=True)
OUTPUTS = [*[Output(0, a, w, None) for w in WINDOWS for a in AGGREGATES], Output(0, "latest", None, None)]
NEVER = 2**63 - 1
Ints = NDArray[np.int64]


class Memory(dict[bytes, bytes]):
    """Stand for a transaction: a dictionary with the store's three methods."""

    put = dict.__setitem__

    def delete(self, key: bytes) -> None:
        """Remove a value."""
        self.pop(key, None)


def least_seconds(call: Callable[[], object], repeats: int = 3) -> float:
    """Return the least duration of some calls."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)


def draw_events(n: int, zipf: bool, r: np.random.Generator) -> LaneEvents:
    """Return n events in order of time; keys uniform, or of Zipf's law with exponent 1.1."""
    weights = 1.0 / np.arange(1, KEYS + 1) ** 1.1
    law = np.cumsum(weights) / weights.sum()
    key = np.searchsorted(law, r.random(n)) if zipf else r.integers(0, KEYS, n)
    moment = np.sort(r.integers(0, SPAN, n))
    words = np.round(r.lognormal(3, 1, n), 2).view(np.int64).reshape(n, 1)
    never = np.full(n, NEVER)
    return LaneEvents(key.astype(np.int64), moment, moment, never, r.integers(0, 2**62, n), words, words != words)


def plain_numpy(events: LaneEvents, query_key: Ints, query_t: Ints) -> list[NDArray[np.float64]]:
    """Answer the same questions with float prefix sums; rounding errors of the whole key enter every window."""
    order = np.argsort(events.key, kind="stable")
    values = events.words.view(np.float64)[order, 0]
    place = events.key[order] * SPAN + events.moment[order]
    sums, squares = (np.concatenate([[0.0], np.cumsum(v)]) for v in (values, values * values))
    asked = np.lexsort((query_t, query_key))  # in order, or `reduceat` would run from each label to the next
    query_key, query_t = query_key[asked], query_t[asked]
    end = np.searchsorted(place, query_key * SPAN + query_t)
    found = []
    for window in WINDOWS:
        start = np.searchsorted(place, query_key * SPAN + np.maximum(query_t - window, 0))
        n, total = end - start, sums[end] - sums[start]
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = np.sqrt(np.maximum(squares[end] - squares[start] - total * total / n, 0.0) / (n - 1))
            found += [n.astype(float), total, total / n, spread]
        edges = np.minimum(np.stack([start, end], axis=1).ravel(), len(values) - 1)
        found += [np.minimum.reduceat(values, edges)[::2], np.maximum.reduceat(values, edges)[::2]]
    return [*found, values[np.maximum(end - 1, 0)]]


def offline(n: int) -> list[dict[str, Any]]:
    """Measure scans of n events."""
    r, rows = np.random.default_rng(0), []
    for name in ("uniform", "zipf"):
        events = draw_events(n, name == "zipf", r)
        key = events.key[r.integers(0, n, LABELS)] if name == "zipf" else r.integers(0, KEYS, LABELS)
        t = r.integers(30 * DAY, SPAN, LABELS)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        ours = least_seconds(lambda e=events, k=key, t=t: scan(LANE, OUTPUTS, e, k, t))  # type: ignore[misc]
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        plain = least_seconds(lambda e=events, k=key, t=t: plain_numpy(e, k, t), 1)  # type: ignore[misc]
        given = sum(a.nbytes for a in vars(events).values()) / 2**20
        case = f"offline, {name} keys, {n:,} events"
        rows.append({"case": case, "unit": "s", "ours": ours, "numpy": plain, "given_mb": given, "more_mb": memory})
    hot = draw_events(100_000, False, r)
    hot = LaneEvents(np.zeros(100_000, np.int64), *list(vars(hot).values())[1:])
    key, t = np.zeros(LABELS, np.int64), r.integers(30 * DAY, SPAN, LABELS)
    medians = [Output(0, "quantile", w, 0.5) for w in WINDOWS[1:3]]
    ours = least_seconds(lambda: scan(LANE, OUTPUTS, hot, key, t))
    rows.append(
        {"case": "offline, one key, 100,000 events", "unit": "s", "ours": ours}
        | {"numpy": least_seconds(lambda: plain_numpy(hot, key, t), 1)}
    )
    ours = least_seconds(lambda: scan(LANE, medians, hot, key, t))
    return [*rows, {"case": "the same, 2 medians (of 1,100 and 7,800 values)", "unit": "s", "ours": ours}]


def microseconds(call: Callable[..., object], arguments: list[tuple[Any, ...]]) -> float:
    """Return microseconds a call: the least of five equal slices."""
    n = len(arguments) // 5
    slices = [arguments[i * n : (i + 1) * n] for i in range(5)]
    return min(least_seconds(lambda s=s: [call(*a) for a in s], 1) / n * 1e6 for s in slices)  # type: ignore[misc]


def numpy_read(moments: Ints, values: NDArray[np.float64], t: int) -> list[Any]:
    """Answer the windows from sorted arrays in floats."""
    end = int(np.searchsorted(moments, t))
    found: list[Any] = []
    for window in WINDOWS:
        inside = values[int(np.searchsorted(moments, t - window)) : end]
        found += [len(inside), inside.sum(), inside.min(initial=np.inf), inside.max(initial=-np.inf)]
        found += [found[-3] / max(len(inside), 1), inside.std(ddof=1) if len(inside) > 1 else None]
    return found


def draw(make: Callable[[int], tuple[Any, ...]], n: int = 1000) -> list[tuple[Any, ...]]:
    """Return n arguments of calls."""
    return [make(i) for i in range(n)]


def online(per_key: int, r: random.Random) -> list[dict[str, Any]]:
    """Measure appends, late events, corrections and reads of keys that have `per_key` events in 30 days."""
    store, lane = Memory(), OnlineLane(LANE, OUTPUTS)
    now, keys = 1_700_000_000_000_000, [b"key%05d" % i for i in range(max(2, min(300, 60_000 // per_key)))]
    packed = [LANE.pack([round(r.expovariate(0.02), 2)]) for _ in range(999)]
    moments = [now - 30 * DAY + i * (30 * DAY // per_key) for i in range(per_key)]
    for i, moment in enumerate(moments):
        for j, key in enumerate(keys):
            lane.change(store, key, (moment, moment, i * 1000 + j, packed[(i + j) % 999]), None)
    row = 10**12
    appended = draw(lambda i: (store, r.choice(keys), (now + i, now + i, row + i, packed[i % 999]), None))
    late = draw(lambda i: (store, r.choice(keys), (now - r.randrange(30 * DAY), now + i, 2 * row + i, packed[0]), None))
    chosen = draw(lambda i: (r.randrange(len(keys)), r.randrange(per_key)))
    corrected = [
        (store, keys[j], (moments[i], now + 9, i * 1000 + j, packed[1]), (moments[i], moments[i], i * 1000 + j))
        for j, i in dict.fromkeys(chosen)
    ]
    case = f"online, {per_key:,} events a key: "
    rows = [
        {"case": case + name, "unit": "µs", "ours": microseconds(lane.change, arguments)}
        for name, arguments in (("append", appended), ("late, anywhere", late), ("correction", corrected))
    ]
    words, status = np.zeros(40, np.int64), np.zeros(40, np.uint8)
    reads = draw(lambda i: (store.get, r.choice(keys), now + DAY // 48, words, status, 5), 2000)
    array, values = np.array(moments), np.array([LANE.unpack(packed[i % 999])[0] for i in range(per_key)])
    plain = microseconds(numpy_read, [(array, values, now)] * 500)
    case += f"read of {len(OUTPUTS)}"
    return [*rows, {"case": case, "unit": "µs", "ours": microseconds(lane.read_into, reads), "numpy": plain}]


def main() -> None:
    """Print a table, or JSON lines."""
    parser = argparse.ArgumentParser(description="Measure the feature kernel.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--events", type=int, default=10_000_000)
    options = parser.parse_args()
    r = random.Random(0)
    rows = [row for n in (10, 333, 2500, 20_000) for row in online(n, r)] + offline(options.events)
    for row in rows:
        row["ratio"] = row["ours"] / row["numpy"] if "numpy" in row else None
        if options.json:
            print(json.dumps(row))
    if options.json:
        return
    print(f"{'case':<52}{'ours':>12}{'numpy, float':>16}{'ratio':>8}{'more memory':>14}")
    for row in rows:
        plain = f"{row['numpy']:.3f} {row['unit']}" if "numpy" in row else ""
        ratio = f"{row['ratio']:.2f}" if row["ratio"] else ""
        memory = f"{row['more_mb']:.0f} MB" if "more_mb" in row else ""
        print(f"{row['case']:<52}{row['ours']:>9.3f} {row['unit']:<2}{plain:>16}{ratio:>8}{memory:>14}")


if __name__ == "__main__":
    main()
