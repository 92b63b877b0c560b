"""Measure the feature kernel in LMDB and on tables, beside NumPy: python bench/kernel_lmdb.py [--json] [--events N].

Offline: 100,000 labels, 4 windows, 7 aggregates, events in order of time over 90 days. NumPy sorts by key and answers from
prefix sums and `reduceat` in floats; `differ` is the share of its sums whose bits are not those of the exact sum.
Online: microseconds to append to a key in LMDB, or to read 25 outputs of it, when each key holds so many events; NumPy
keeps a key as one array of moments and values, and a commit stands behind every 1,000 appends of both.
Every time is the least of some repetitions, every ratio is of the same run; nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.features.scan import scan
from headrace.features.windows import Lane, LaneEvents, OnlineLane, Output, ValueType
from headrace.storage.keyvalue import Access, KeyValue, open_keyvalue

DAY = 86_400_000_000
WINDOWS = (DAY // 24, DAY, 7 * DAY, 30 * DAY)
SPAN, KEYS, LABELS = 90 * DAY, 10_000, 100_000
AGGREGATES = ("count", "sum", "mean", "min", "max", "stddev")
LANE = Lane((ValueType.FLOAT,), WINDOWS, keep=31 * DAY, latest=True)
OUTPUTS = [*[Output(0, a, w, None) for w in WINDOWS for a in AGGREGATES], Output(0, "latest", None, None)]
SUMS = [i for i, o in enumerate(OUTPUTS) if o.aggregate == "sum"]
NEVER = 2**63 - 1
START = 1_700_000_000_000_000
BATCH, BATCHES = 1_000, 5
DATABASE = "online"
PAIR = np.dtype([("moment", "<i8"), ("value", "<f8")])

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Row = dict[str, Any]


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def draw_events(n: int, zipf: bool, r: np.random.Generator) -> LaneEvents:
    """Return n events in order of time; keys uniform, or by Zipf's law with exponent 1.1."""
    law = np.cumsum(1.0 / np.arange(1, KEYS + 1) ** 1.1)
    key = np.searchsorted(law, r.random(n) * law[-1]) if zipf else r.integers(0, KEYS, n)
    moment = np.sort(r.integers(0, SPAN, n))
    words = np.round(r.lognormal(3, 1, n), 2).view(np.int64).reshape(n, 1)
    nulls = np.zeros((n, 1), np.bool_)
    return LaneEvents(key.astype(np.int64), moment, moment, np.full(n, NEVER), np.arange(n), words, nulls)


def plain_offline(events: LaneEvents, key: Ints, t: Ints) -> list[Floats]:
    """Answer the outputs of all labels in floats, in the order of OUTPUTS; rounding enters with every prefix sum."""
    order, labels = np.argsort(events.key, kind="stable"), np.lexsort((t, key))
    key, t = key[labels], t[labels]  # in order, or `reduceat` would go over the whole table between any two labels
    values = np.append(events.words.view(np.float64)[order, 0], np.nan)
    place = events.key[order] * SPAN + events.moment[order]
    sums, squares = (np.concatenate([[0.0], np.cumsum(v)]) for v in (values[:-1], values[:-1] ** 2))
    end, first = np.searchsorted(place, key * SPAN + t), np.searchsorted(place, key * SPAN)
    found: list[Floats] = []
    for window in WINDOWS:
        start = np.searchsorted(place, key * SPAN + np.maximum(t - window, 0))
        n, total = end - start, sums[end] - sums[start]
        edges = np.stack([start, end], axis=1).ravel()
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = np.sqrt(np.maximum(squares[end] - squares[start] - total * total / n, 0.0) / (n - 1))
            found += [n.astype(np.float64), total, total / n]
        for extreme in (np.minimum, np.maximum):
            found.append(np.where(n > 0, extreme.reduceat(values, edges)[::2], np.nan))
        found.append(spread)
    found.append(np.where(end > first, values[end - 1], np.nan))
    back = np.argsort(labels)
    return [column[back] for column in found]


def share_that_differs(words: Ints, plain: list[Floats]) -> float:
    """Return the share of windows with events whose float sum has other bits than the exact one."""
    exact, rough = words.view(np.float64)[:, SUMS], np.stack([plain[i] for i in SUMS], axis=1)
    filled = ~np.isnan(exact)
    return float((exact != rough)[filled].mean())


def offline(name: str, events: LaneEvents, key: Ints, t: Ints, repeats: int) -> Row:
    """Measure one scan of all labels, and NumPy's answer to the same."""
    ours = min(seconds(lambda: scan(LANE, OUTPUTS, events, key, t)) for _ in range(repeats))
    answers: list[list[Floats]] = []
    plain = seconds(lambda: answers.append(plain_offline(events, key, t)))
    words = scan(LANE, OUTPUTS, events, key, t).words
    differ = share_that_differs(words, answers[0])
    case = f"offline, {name}, {len(events.key):,} events"
    return {"case": case, "unit": "s", "ours": ours, "numpy": plain, "differ": differ}


def offline_cases(n: int) -> list[Row]:
    """Measure uniform keys, keys by Zipf's law, and one hot key."""
    r, rows = np.random.default_rng(0), []
    for name in ("uniform", "zipf"):
        events = draw_events(n, name == "zipf", r)
        key = events.key[r.integers(0, n, LABELS)] if name == "zipf" else r.integers(0, KEYS, LABELS)
        rows.append(offline(f"{name} keys", events, key, r.integers(30 * DAY, SPAN, LABELS), 3))
        del events
    hot = draw_events(LABELS, False, r)
    hot = LaneEvents(np.zeros(LABELS, np.int64), *list(vars(hot).values())[1:])
    return [*rows, offline("one key", hot, np.zeros(LABELS, np.int64), r.integers(30 * DAY, SPAN, LABELS), 3)]


def plain_append(access: Access, key: bytes, moment: int, value: float) -> None:
    """Put an event behind a key's array."""
    access.put(key, (access.get(key) or b"") + np.array([(moment, value)], PAIR).tobytes())


def plain_read(blob: bytes, t: int) -> list[float]:
    """Answer the outputs of one key from its array, in floats."""
    pairs = np.frombuffer(blob, PAIR)
    moments, values = pairs["moment"], pairs["value"]
    end, found = int(np.searchsorted(moments, t)), []
    for window in WINDOWS:
        inside = values[int(np.searchsorted(moments, t - window)) : end]
        n, total = len(inside), float(inside.sum())
        found += [float(n), total, total / n if n else np.nan]
        found += [float(inside.min()), float(inside.max())] if n else [np.nan, np.nan]
        found.append(float(inside.std(ddof=1)) if n > 1 else np.nan)
    return [*found, float(values[end - 1]) if end else np.nan]


def write_batches(store: KeyValue, batches: list[Any], write: Callable[[Access, Any], object]) -> float:
    """Return microseconds an event of the quickest batch, with its commit."""
    found = []
    for batch in batches:
        start = time.perf_counter()
        with store.write() as transaction:
            access = transaction.access(DATABASE)
            for event in batch:
                write(access, event)
        found.append((time.perf_counter() - start) / len(batch))
    return min(found) * 1e6


def read_batches(store: KeyValue, keys: list[bytes], read: Callable[[Callable[[bytes], Any], bytes], object]) -> float:
    """Return microseconds a read in the quickest of some rounds over the keys, each in one snapshot."""
    found = []
    for _ in range(BATCHES):
        with store.read() as snapshot:
            get = snapshot.getter(DATABASE)
            found.append(seconds(lambda get=get: [read(get, key) for key in keys]) / len(keys))  # type: ignore[misc]
    return min(found) * 1e6


def online(per_key: int, folder: str) -> list[Row]:
    """Measure appends to and reads of keys that hold `per_key` events in 30 days."""
    r, count = np.random.default_rng(1), 400_000 // per_key
    values = np.round(r.lognormal(3, 1, per_key + BATCH * BATCHES), 2).tolist()
    keys, step = [b"k%06d" % i for i in range(count)], 30 * DAY // per_key
    lane, now = OnlineLane(LANE, OUTPUTS), START + 30 * DAY
    plain_keys = {key: b"p" + key for key in keys}

    def append(access: Access, event: tuple[int, bytes, int, float]) -> None:
        row, key, moment, value = event
        lane.change(access, key, (moment, moment, row, LANE.pack((value,))), None)

    def plain(access: Access, event: tuple[int, bytes, int, float]) -> None:
        plain_append(access, plain_keys[event[1]], *event[2:])

    past = [[(i, key, START + i * step, values[i]) for i in range(per_key)] for key in keys]
    chosen = [keys[i] for i in r.integers(0, count, BATCH * BATCHES)]
    later = [(per_key + i, key, now + i, values[per_key + i]) for i, key in enumerate(chosen)]
    batches = [later[i : i + BATCH] for i in range(0, len(later), BATCH)]
    with open_keyvalue(f"lmdb:{folder}/{per_key}", databases=[DATABASE]) as store:
        for write in (append, plain):
            write_batches(store, past, write)
        appended = [write_batches(store, batches, write) for write in (append, plain)]
        words, status, t = np.zeros(len(OUTPUTS), np.int64), np.zeros(len(OUTPUTS), np.uint8), now + DAY // 48
        reads = [
            read_batches(store, chosen, lambda get, key: lane.read_into(get, key, t, words, status, 0)),
            read_batches(store, chosen, lambda get, key: plain_read(get(plain_keys[key]), t)),
        ]
    case = f"online in LMDB, {per_key:,} events a key"
    return [
        {"case": f"{case}: {name}", "unit": "µs", "ours": ours, "numpy": rough}
        for name, (ours, rough) in (("append", appended), (f"read of {len(OUTPUTS)}", reads))
    ]


def peak_megabytes() -> float:
    """Return the most memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def show(rows: list[Row]) -> None:
    """Print rows as a table."""
    print(f"{'case':<48}{'ours':>12}{'numpy, float':>15}{'ratio':>8}{'differ':>9}")
    for row in rows:
        unit = row["unit"]
        differ = f"{row['differ']:.0%}" if "differ" in row else ""
        print(
            f"{row['case']:<48}{row['ours']:>9.3f} {unit:<2}{row['numpy']:>12.3f} {unit:<2}{row['ratio']:>8.2f}"
            f"{differ:>9}"
        )
    print(f"peak memory {peak_megabytes():.0f} MB")


def main() -> None:
    """Measure all, and print a table or JSON."""
    parser = argparse.ArgumentParser(description="Measure the feature kernel beside NumPy.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--events", type=int, default=10_000_000, help="of the offline cases")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for per_key in (333, 2_500) for row in online(per_key, folder)]
    rows += offline_cases(options.events)
    for row in rows:
        row["ratio"] = row["ours"] / row["numpy"]
    if options.json:
        print(json.dumps({"peak_mb": peak_megabytes(), "rows": rows}, indent=2))
    else:
        show(rows)


if __name__ == "__main__":
    main()
