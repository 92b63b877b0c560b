"""Estimates: within their declared error, the same however values come and go, and asked for by one word."""

from __future__ import annotations

import math
import random
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

import headrace as hr
from headrace.core.errors import DefinitionError
from headrace.core.identity import text_id
from headrace.features.lane_plan import plan_group
from headrace.features.outputs import error_of, sketch_bits
from headrace.features.scan import scan
from headrace.features.windows import Lane, LaneEvents, OnlineLane, Output, ValueType
from headrace.testing.sketches import distinct_estimate, quantile_estimate

FLOAT, INT, BOOL, REF = ValueType
NEVER = 2**63 - 1
WINDOW = 2**40
Words = NDArray[np.int64]


class Memory(dict[bytes, bytes]):
    put = dict.__setitem__

    def delete(self, key: bytes) -> None:
        self.pop(key, None)


class Requests(hr.Source):
    number: hr.Column[str] = hr.row_id()
    at: hr.Column[hr.Instant] = hr.event_time()
    host: hr.Column[str] = hr.entity()
    user: hr.Column[str | None] = hr.column()
    took: hr.Column[float | None] = hr.column()
    size: hr.Column[int | None] = hr.column()
    cached: hr.Column[bool] = hr.column()


def group(**features: Any) -> Any:
    return type("Host", (hr.FeatureGroup,), features, of=Requests, entity=Requests.host)


def answers(
    kind: ValueType, outputs: list[Output], words: Words, how: Literal["plain", "sweep"] = "plain", keys: int = 1
) -> Words:
    """Return the words of outputs over all values, which are shared out among some keys in turn."""
    n, lane = len(words), Lane((kind,), (WINDOW,), keep=WINDOW)
    moments, never = np.arange(n), np.full(n, NEVER)
    events = LaneEvents(moments % keys, moments, moments, never, moments, words.reshape(n, 1), np.zeros((n, 1), bool))
    return scan(lane, outputs, events, np.arange(keys), np.full(keys, n), method=how).words


SEQUENCES = {
    "numbers in a row": (INT, np.arange(1_000_000)),
    "numbers in steps of 2^32": (INT, np.arange(1_000_000) << 32),
    "integers that doubles do not tell apart": (INT, np.arange(1_000_000) + 2**53),
    "floats": (FLOAT, np.random.default_rng(1).normal(size=1_000_000).view(np.int64)),
    "hundredths": (FLOAT, (np.arange(1_000_000) / 100).view(np.int64)),
    "texts": (REF, np.array([text_id(f"user-{i}") for i in range(100_000)])),
}


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize("bits", [8, 12, 14])
def test_distinct_values_are_estimated_within_a_few_standard_errors(name: str, bits: int) -> None:
    """Of some 30 estimates one is expected beyond 2 errors; none may be beyond 4."""
    kind, words = SEQUENCES[name]
    output = [Output(0, "distinct", WINDOW, None, bits=bits)]
    for n in (1, 2, 10, 100, 1_000, 30_000, len(words)):
        found = int(answers(kind, output, words[:n])[0, 0])
        assert abs(found - n) <= max(4 * error_of("distinct", bits) * n, 0.5), f"{found} of {n}"


@pytest.mark.parametrize("n", [50, 500, 5_000])
def test_the_spread_of_estimates_is_the_declared_standard_error(n: int) -> None:
    """Of 400 sets; of not many more values than registers the estimate is better than declared."""
    words = np.random.default_rng(n).integers(-(2**63), 2**63 - 1, n * 400)
    found = answers(INT, [Output(0, "distinct", WINDOW, None, bits=8)], words, keys=400)[:, 0]
    spread = math.sqrt(float(np.mean((found / n - 1) ** 2))) / error_of("distinct", 8)
    assert 0.85 < spread < 1.15 if n > 1_000 else spread < 0.85
    assert abs(float(np.mean(found)) / n - 1) < 3 * error_of("distinct", 8) / math.sqrt(400)


def test_equal_values_are_counted_once() -> None:
    output = [Output(0, "distinct", WINDOW, None, bits=14)]
    zeros = np.array([0.0, -0.0, math.nan, -math.nan] * 50).view(np.int64)
    assert int(answers(FLOAT, output, zeros)[0, 0]) == 2
    once, often = (np.repeat(np.arange(100) + 2**60, times) for times in (1, 90))
    assert (answers(INT, output, once) == answers(INT, output, often)).all()
    assert int(answers(BOOL, output, np.arange(100) % 2)[0, 0]) == 2


DRAWN = np.random.default_rng(7)
VALUES: dict[str, NDArray[Any]] = {
    "long tail": DRAWN.lognormal(3, 2, 2_000),
    "even, of both signs": DRAWN.uniform(-5, 5, 2_000),
    "of every size": DRAWN.choice([-1.0, 1.0], 2_000) * 10 ** DRAWN.uniform(-307, 308, 2_000),
    "integers": DRAWN.integers(-40, 1_000, 2_000),
    "integers beyond 2^53": DRAWN.integers(2**53, 2**63 - 1, 2_000),
}
SHARES = (0.0001, 0.01, 0.25, 0.5, 0.9, 0.99, 0.9999, 1.0)


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("bits", [1, 6, 13])
@pytest.mark.parametrize("how", ["plain", "sweep"])
def test_a_quantile_is_within_its_relative_error(name: str, bits: int, how: Literal["plain", "sweep"]) -> None:
    values = VALUES[name]
    kind = FLOAT if values.dtype == np.float64 else INT
    outputs = [Output(0, "quantile", WINDOW, q, bits=b) for b in (0, bits) for q in SHARES]
    found = answers(kind, outputs, values.view(np.int64), how)[0]
    exact = found[: len(SHARES)] if kind is INT else found[: len(SHARES)].view(np.float64)
    for q, wanted, estimate in zip(SHARES, exact.tolist(), found[len(SHARES) :].view(np.float64).tolist(), strict=True):
        assert abs(estimate - wanted) <= error_of("quantile", bits) * abs(wanted), (q, wanted, estimate)
        assert estimate == quantile_estimate(values.tolist(), q, bits)


def test_a_quantile_of_odd_values() -> None:
    """Zeros and what is below the least normal double are 0.0; infinities stay, and NaN is last, as in the exact one."""
    values = [
        -math.inf,
        -1.0,
        -5e-324,
        -0.0,
        2.2e-308,
        2.2250738585072014e-308,
        1.7976931348623157e308,
        math.inf,
        math.nan,
    ]
    words, shares = np.array(values).view(np.int64), [i / 9 for i in range(1, 10)]
    found = (
        answers(FLOAT, [Output(0, "quantile", WINDOW, q, bits=6) for q in shares], words)[0].view(np.float64).tolist()
    )
    assert found[:5] == [-math.inf, -1.0078125, 0.0, 0.0, 0.0]
    assert math.copysign(1, found[2]) == 1
    assert found[5] == pytest.approx(2.2250738585072014e-308, rel=1 / 128)
    assert found[6] == pytest.approx(1.7976931348623157e308, rel=1 / 128)
    assert (found[7], math.isnan(found[8])) == (math.inf, True)
    ends = answers(INT, [Output(0, "quantile", WINDOW, q, bits=6) for q in (0.5, 1)], np.array([-(2**63), 2**63 - 1]))
    assert ends[0].view(np.float64).tolist() == [-(2**63) * (1 + 1 / 128), 2**63 * (1 - 1 / 256)]


def test_what_was_taken_back_leaves_no_trace_in_blocks_of_a_hot_key() -> None:
    r, lane = random.Random(3), Lane((FLOAT, INT), (300, 5_000), keep=10_000)
    outputs = [Output(c, "distinct", w, None, bits=b) for c in (0, 1) for w in lane.windows for b in (6, 12)]
    outputs += [Output(c, "quantile", w, q, bits=7) for c in (0, 1) for w in lane.windows for q in (0.5, 0.95)]
    events = [(i, i, i, lane.pack([r.lognormvariate(0, 3), 2**53 + i % 700])) for i in range(4_000)]
    gone = r.sample(events, 1_500)
    kept = [e for e in events if e not in set(gone)]
    changed, fresh = (OnlineLane(lane, outputs, seal=16) for _ in range(2))
    store, other = Memory(), Memory()
    for event in r.sample(events, len(events)):
        changed.change(store, b"k", event, None)
    for event in gone:
        changed.change(store, b"k", None, event[:3])
    for event in kept:
        fresh.change(other, b"k", event, None)
    changed.read(store.get, b"k", 4_000)
    fresh.read(other.get, b"k", 4_000)
    assert changed.words.tolist() == fresh.words.tolist()
    assert int(changed.words[4]) > 0
    last = [lane.unpack(e[3]) for e in kept if e[0] >= 3_700]
    assert int(changed.words[0]) == distinct_estimate([v[0] for v in last], 6)
    assert float(changed.values[8]) == quantile_estimate([v[0] for v in last], 0.5, 7)


@pytest.mark.parametrize("bits", [5, 12])
def test_registers_fall_back_when_windows_slide(bits: int) -> None:
    """A sweep takes out of registers what leaves the window; a scan of each window fills them anew."""
    n, lane, r = 6_000, Lane((INT,), (40, 900), keep=1_000), np.random.default_rng(bits)
    moments = np.arange(n)
    until = np.where(r.random(n) < 0.3, moments + r.integers(0, 1_200, n), NEVER)
    words, nulls = r.integers(0, 300, (n, 1)) ** 3, r.random((n, 1)) < 0.1
    events = LaneEvents(np.zeros(n, np.int64), moments, moments + r.integers(0, 60, n), until, moments, words, nulls)
    outputs = [Output(0, "distinct", w, None, bits=b) for w in lane.windows for b in (4, bits)]
    asked = np.sort(r.integers(0, n + 1_000, 2_000))
    found = [scan(lane, outputs, events, asked * 0, asked, method=how).words for how in ("plain", "sweep")]
    assert (found[0] == found[1]).all()
    assert len(np.unique(found[0][:, 3])) > 20


def test_an_estimate_is_asked_for_beside_the_exact_result() -> None:
    host = group(
        users=hr.count_distinct(Requests.user).over("1d"),
        about=hr.count_distinct(Requests.user, approx=0.02).over("1h", "1d"),
        roughly=hr.count_distinct(Requests.user, approx=0.2).over("1d"),
        slow=hr.quantile(Requests.took, 0.5, approx=0.01).over("1d"),
        large=hr.quantile(Requests.size, 1.0, approx=0.01, where=Requests.took > 1).over("1d", fill=0),
        none=hr.quantile(Requests.size, 0.5, approx=0.01).over("1h"),
    )
    rows = [
        {"number": str(i), "at": f"2024-03-01T{i:02d}:00Z", "host": "h", "user": user, "took": took, "size": size}
        for i, (user, took, size) in enumerate([("a", 1.0, 5), ("b", 2.0, 2**62), ("a", 4.0, None), (None, None, 7)])
    ]
    found = host.test([row | {"cached": False} for row in rows], at="2024-03-01T12:00:00Z")
    assert found == {
        "Host.users[1d]": 2,
        "Host.about[1h]": 0,
        "Host.about[1d]": 2,
        "Host.roughly[1d]": 2,
        "Host.slow[1d]": 2.015625,
        "Host.large[1d]": 2.0**62 * (1 + 1 / 128),
        "Host.none[1h]": None,
    }
    assert isinstance(found["Host.about[1d]"], int)


REFUSED: dict[str, Any] = {
    "no number": lambda: hr.count_distinct(Requests.user, approx=True),
    "too fine for registers": lambda: hr.count_distinct(Requests.user, approx=0.004),
    "coarser than useful": lambda: hr.quantile(Requests.took, 0.5, approx=0.3),
    "nothing": lambda: hr.quantile(Requests.took, 0.5, approx=0.0),
    "not a number": lambda: hr.quantile(Requests.took, 0.5, approx=math.nan),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_error_that_no_sketch_keeps_is_refused_at_its_line(name: str) -> None:
    with pytest.raises(DefinitionError, match="not a relative error") as error:
        REFUSED[name]()
    assert "test_sketches.py" in str(error.value)
    assert "leave approx out for the exact result" in str(error.value)


def test_conditions_have_no_estimated_quantile() -> None:
    host = group(x=hr.quantile(Requests.cached, 0.5, approx=0.01).over("1d"))
    with pytest.raises(DefinitionError, match=r"hr\.quantile cannot take bool values, with approx="):
        plan_group(host)


def test_the_allowed_error_is_part_of_a_groups_version() -> None:
    def version(approx: float | None) -> str:
        return plan_group(group(x=hr.count_distinct(Requests.user, approx=approx).over("1d"))).hash

    assert len({version(None), version(0.02), version(0.1)}) == 3
    assert version(0.02) == version(0.02)


@pytest.mark.parametrize("aggregate", ["distinct", "quantile"])
def test_every_allowed_error_is_kept_by_the_coarsest_sketch(aggregate: str) -> None:
    for error in (0.005, 0.01, 0.0163, 0.02, 0.1, 0.25):
        bits = sketch_bits(aggregate, error)
        assert error_of(aggregate, bits) <= error < error_of(aggregate, bits - 1)


@pytest.mark.parametrize(
    "output", [Output(0, "sum", WINDOW, None, bits=6), Output(0, "distinct", WINDOW, None, bits=17)]
)
def test_a_lane_refuses_a_sketch_that_there_is_not(output: Output) -> None:
    with pytest.raises(DefinitionError, match="an estimate that no sketch gives"):
        OnlineLane(Lane((INT,), (WINDOW,)), [output])
