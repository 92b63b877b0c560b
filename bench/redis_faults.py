"""Measure reads while Redis fails: python bench/redis_faults.py [--json] [--reads N] [--timeout MS].

A Redis server of its own runs on loopback behind a proxy that breaks its replies. Under each fault reads of 20 keys are timed:
how they end, their p50 and p99, and by how much the p99 is over the timeout. Then the fault ends, and the time to the first
right read is taken. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from headrace.core.errors import Unavailable
from headrace.storage.keyvalue import KeyValue, open_keyvalue
from headrace.testing.proxy import Proxy
from headrace.testing.servers import redis_server

KEYS = [b"key %d" % i for i in range(20)]
FAULTS = {
    "pass": "no fault",
    "refuse": "down: nobody listens",
    "delay": "slow: replies after 0.3 s",
    "reset": "reset in a reply",
    "half": "half a reply, then silence",
    "drip": "a byte every 5 ms",
    "cut": "cut before a reply",
}


def read(store: KeyValue) -> tuple[str, float]:
    """Return how a read of all keys ended, and what it took in milliseconds."""
    began = time.perf_counter()
    try:
        with store.read() as snapshot:
            values = snapshot.get_many("d", KEYS)
        ended = "right" if values == KEYS else "WRONG"
    except Unavailable:
        ended = "unavailable"
    return ended, (time.perf_counter() - began) * 1_000


def measure(store: KeyValue, proxy: Proxy, fault: str, reads: int, timeout: float) -> dict[str, Any]:
    """Return how reads went under a fault, and how long after its end the first right one was there."""
    proxy.spoil(fault)
    found = [read(store) for _ in range(reads)]
    proxy.spoil("pass")
    began, attempts = time.perf_counter(), 1
    while read(store)[0] != "right":
        attempts += 1
    back = time.perf_counter() - began
    took = [ms for _, ms in found]
    p99 = statistics.quantiles(took, n=100)[98]
    row = {"fault": FAULTS[fault], "reads": reads, **Counter(ended for ended, _ in found)}
    times = {
        "p50_ms": statistics.median(took),
        "p99_ms": p99,
        "max_ms": max(took),
        "p99_over_timeout_ms": p99 - timeout,
    }
    return (
        row | {n: round(v, 2) for n, v in times.items()} | {"back_after_ms": round(back * 1_000, 1), "tries": attempts}
    )


def main() -> None:
    """Run every fault and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--reads", type=int, default=200)
    parser.add_argument("--timeout", type=int, default=50, help="of a read, in milliseconds")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as port:
        proxy = Proxy(port)
        try:
            url = f"redis://127.0.0.1:{proxy.port}/0?prefix=bench&timeout={options.timeout}ms"
            with open_keyvalue(url, databases=["d"]) as store:
                with store.write() as transaction:
                    for key in KEYS:
                        transaction.put("d", key, key)
                rows = [measure(store, proxy, fault, options.reads, options.timeout) for fault in FAULTS]
        finally:
            proxy.close()
    if options.json:
        print(json.dumps({"timeout_ms": options.timeout, "faults": rows}))
        return
    print(f"timeout {options.timeout} ms, {options.reads} reads of {len(KEYS)} keys under each fault")
    for row in rows:
        print("  ".join(f"{name}={value}" for name, value in row.items()))


if __name__ == "__main__":
    main()
