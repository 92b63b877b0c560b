"""Arithmetic: sums, means and standard deviations have the bits of exact rationals, rounded once, in every path."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.features.scan import scan
from headrace.features.windows import Lane, LaneEvents, OnlineLane, Output, ValueType

WINDOW = 10**6
LANE = Lane((ValueType.FLOAT,), (WINDOW,), keep=WINDOW)
OUTPUTS = [Output(0, name, WINDOW, None) for name in ("sum", "mean", "stddev")]
BIG = 1.7976931348623157e308


class Memory(dict[bytes, bytes]):
    put = dict.__setitem__

    def delete(self, key: bytes) -> None:
        self.pop(key, None)


def rounded(value: Fraction) -> float:
    try:
        return float(value) if value else 0.0
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def by_definition(values: list[float]) -> list[float]:
    n, exact = len(values), [Fraction(v) for v in values]
    total = sum(exact, Fraction(0))
    found = [rounded(total), rounded(total / n)]
    if n > 1:
        found.append(math.sqrt(rounded((n * sum((x * x for x in exact), Fraction(0)) - total**2) / (n * (n - 1)))))
    return found


def offline(values: list[float], method: str) -> list[float]:
    n = len(values)
    moments = np.arange(n, dtype=np.int64)
    words = np.array(values, np.float64).view(np.int64).reshape(n, 1)
    events = LaneEvents(np.zeros(n, np.int64), moments, moments, np.full(n, 2**63 - 1), moments, words, words != words)
    found, status, _ = scan(LANE, OUTPUTS, events, np.array([0]), np.array([n]), method=method)  # type: ignore[arg-type]
    return [v for v, s in zip(found.view(np.float64)[0].tolist(), status[0].tolist(), strict=True) if s == 0]


def online(values: list[float], seal: int) -> list[float]:
    lane, store = OnlineLane(LANE, OUTPUTS, seal=seal), Memory()
    for i, value in enumerate(values):
        lane.change(store, b"k", (i, i, i, LANE.pack([value])), None)
    lane.read(store.get, b"k", len(values))
    return [v for v, s in zip(lane.values.tolist(), lane.status.tolist(), strict=True) if s == 0]


def check(values: list[float]) -> None:
    wanted = by_definition(values)
    layout = struct.Struct(f"<{len(wanted)}d")
    for found in (offline(values, "plain"), offline(values, "sweep"), online(values, 96), online(values, 3)):
        assert len(found) == len(wanted)
        assert layout.pack(*found) == layout.pack(*wanted), (values, found, wanted)


finite = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=400)
@given(st.lists(finite, min_size=1, max_size=40))
def test_any_floats(values: list[float]) -> None:
    check(values)


KINDS: dict[str, Callable[[random.Random], float]] = {
    "tenths": lambda r: r.randrange(-99, 99) * 0.1,
    "cents": lambda r: round(r.expovariate(0.02), 2),
    "1e16 beside 1": lambda r: r.choice([1e16, -1e16, 1.0, 0.1]),
    "half ulps with crumbs": lambda r: r.choice([2.0**53, 1.0, -1.0, 2.0**-52, 2.0**-1074, -(2.0**-1074)]),
    "subnormals": lambda r: r.randrange(-9, 9) * 5e-324,
    "around the smallest normal": lambda r: r.choice([2.2250738585072014e-308, -2.225073858507201e-308, 5e-324]),
    "overflow's edge": lambda r: r.choice([BIG, -BIG, 2.0**970, -(2.0**969), 2.0**971, 1.0]),
    "noise on 1e9": lambda r: 1e9 + r.gauss(0, 1e-3),
    "random exponents": lambda r: math.ldexp(r.uniform(-1, 1), r.randrange(-1073, 1024)),
    "one value": lambda r: 0.1,
    "zeros": lambda r: r.choice([0.0, -0.0]),
    "cancelling": lambda r: r.choice([1e300, -1e300, 1e-300]),
    "integers": lambda r: float(r.randrange(-(2**53), 2**53)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_hard_kinds(kind: str) -> None:
    r = random.Random(kind)
    for n in [1, 2, 2, 2, 3, 3, 3, 3, 5, 5, 8, 8, 13, 60, 250]:
        check([KINDS[kind](r) for _ in range(n)])


@settings(max_examples=60)
@given(st.lists(finite, min_size=2, max_size=12), st.randoms())
def test_what_slides_out_leaves_nothing_behind(values: list[float], order: random.Random) -> None:
    """Slide a window of width 3 over values, the widest of which may be gone: sums are those of what is left."""
    lane, outputs = Lane((ValueType.FLOAT,), (3,)), [Output(0, name, 3, None) for name in ("sum", "mean", "stddev")]
    n = len(values)
    moments = np.arange(n, dtype=np.int64)
    words = np.array(values, np.float64).view(np.int64).reshape(n, 1)
    events = LaneEvents(np.zeros(n, np.int64), moments, moments, np.full(n, 2**63 - 1), moments, words, words != words)
    asked = np.array(order.sample(range(1, n + 3), n + 2), np.int64)
    found, status, _ = scan(lane, outputs, events, np.zeros(len(asked), np.int64), asked, method="sweep")
    for t, row, missing in zip(asked.tolist(), found.view(np.float64).tolist(), status.tolist(), strict=True):
        inside = values[max(t - 3, 0) : t]
        wanted = by_definition(inside) if inside else []
        got = [v for v, s in zip(row, missing, strict=True) if s == 0]
        assert [struct.pack("<d", v) for v in got] == [struct.pack("<d", v) for v in wanted]
