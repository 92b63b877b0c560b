"""Damaged bytes: whatever a store returns, reads and changes end in a value or in `Corrupt`, never in anything else."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.errors import Corrupt
from headrace.features.windows import Lane, OnlineLane, Output, ValueType

LANE = Lane((ValueType.FLOAT, ValueType.INT), (40, 300, 900), keep=1200, latest=True)
NAMES = ("count", "sum", "mean", "min", "max", "stddev", "quantile")
OUTPUTS = [Output(c, a, w, 0.5 if a == "quantile" else None) for c in (0, 1) for a in NAMES[:6] for w in LANE.windows]
QUANTILES = [
    Output(0, a, w, 0.5 if a == "quantile" else 1) for a in ("quantile", "mode", "last") for w in LANE.windows[:2]
]
QUANTILES += [Output(1, "fold", 300, None, 50, 7), Output(0, "distinct", 900, None, -90)]
LATEST = [Output(c, "latest", None, None) for c in (0, 1)] + [Output(None, "count", 40, None)]
KEY, NOW = b"key", 1000


class Memory(dict[bytes, bytes]):
    put = dict.__setitem__

    def delete(self, key: bytes) -> None:
        self.pop(key, None)


@cache
def whole() -> Memory:
    """Return a store with a head, blocks and levels of one key."""
    store, lane, r = Memory(), OnlineLane(LANE, [], seal=4), random.Random(0)
    for i in range(NOW):
        values = [r.choice([0.1, 1e300, None]), r.choice([2**62, None, -1])]
        lane.change(store, KEY, (i, i, i, LANE.pack(values)), None)
    return store


def survives(call: Callable[[], Any]) -> None:
    try:
        call()
    except Corrupt:
        return


def use(store: Memory) -> None:
    """Do everything that can be done with the key; changes go to a copy."""
    for outputs in (OUTPUTS, OUTPUTS + QUANTILES, LATEST):
        lane = OnlineLane(LANE, outputs, seal=4)
        for t in (NOW, 17, -5):
            survives(lambda lane=lane, t=t: lane.read(store.get, KEY, t))  # type: ignore[misc]
    writer, event = OnlineLane(LANE, [], seal=4), LANE.pack([1.0, 2])
    survives(lambda: writer.events(store.get, KEY))
    survives(lambda: writer.needs_rebuild(store.get, KEY))
    for add, remove in (
        ((NOW, NOW, 1, event), None),
        ((3, NOW, 1, event), None),
        (None, (500, 500, 500)),
        ((501, NOW, 3, event), (20, 20, 20)),
        ((NOW * 3, NOW * 3, 1, event), (999, 999, 999)),
    ):
        copy = Memory(store)
        for i in range(4):
            moved = None if add is None else (add[0] + i, *add[1:])
            survives(lambda copy=copy, moved=moved, remove=remove: writer.change(copy, KEY, moved, remove))  # type: ignore[misc]


@settings(max_examples=250)
@given(st.data())
def test_flipped_and_cut_bytes(data: st.DataObject) -> None:
    store = Memory(whole())
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from([KEY, *sorted(store)]))
        blob = bytearray(store[key])
        if data.draw(st.booleans()):
            at = data.draw(st.integers(0, len(blob) - 1))
            blob[at] = data.draw(st.sampled_from([0, 255, 1, 128, blob[at] ^ 1, data.draw(st.integers(0, 255))]))
        else:
            del blob[data.draw(st.integers(1, len(blob))) :]
        store[key] = bytes(blob)
    use(store)


@settings(max_examples=150)
@given(st.data())
def test_whole_words_of_anything(data: st.DataObject) -> None:
    """Put extreme words where counts, references, levels and places of digits stand."""
    store = Memory(whole())
    key = data.draw(st.sampled_from([KEY, KEY, *sorted(store)]))
    blob = bytearray(store[key])
    word = st.one_of(
        st.sampled_from([-1, 0, 2**63 - 1, -(2**63), 2**32, 255, 1 << 8]), st.integers(-(2**63), 2**63 - 1)
    )
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(blob) // 8 - 1)) * 8
        blob[at : at + 8] = data.draw(word).to_bytes(8, "little", signed=True)
    store[key] = bytes(blob)
    use(store)


@settings(max_examples=100)
@given(st.binary(max_size=400), st.booleans())
def test_garbage(blob: bytes, headed: bool) -> None:
    start = b"\x01\x02\0\0" + bytes([len(blob) // 272]) + bytes(35)
    use(Memory({KEY: start + blob if headed else blob}))


def test_blocks_in_each_others_places() -> None:
    r, keys = random.Random(1), sorted(whole())
    for _ in range(60):
        store = Memory(whole())
        for _ in range(3):
            store[r.choice(keys)] = whole()[r.choice(keys)]
        use(store)
