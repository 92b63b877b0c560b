"""What was served is measured over exactly the rows that a quantity names, with the labels that had matured."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

import headrace as hr
from headrace.core.errors import Corrupt
from headrace.core.time import DAY, HOUR
from headrace.monitoring.evidence import exact_share, percentile, psi_of_profile, psi_of_scores
from headrace.monitoring.labels import NEVER, LabelBook
from headrace.monitoring.performance import LiveWindow, Scope
from headrace.serving.record import ERROR, FALLBACK
from headrace.stats.profiles import profile

NOW = 1_000 * DAY
AUC = hr.live("auc", over="14d", matured="2d")


def filled(
    days: int = 30, per_day: int = 40, *, keep: int = 60 * DAY
) -> tuple[LiveWindow, list[tuple[int, float, float]]]:
    """Return a window and its rows (t, score, label); the label arrives six hours after the prediction."""
    live, rng, rows = LiveWindow(keep=keep), np.random.default_rng(3), []
    for i in range(days * per_day):
        t = NOW - days * DAY + i * DAY // per_day
        score = float(rng.random())
        label = float(rng.random() < score)
        live.append(f"row {i}".encode(), t, score, version="v1" if i % 3 else "v2", latency=float(i))
        live.label(f"row {i}".encode(), label, arrived=t + 6 * HOUR)
        rows.append((t, score, label))
    return live, rows


def test_a_metric_is_taken_over_matured_predictions_of_its_period() -> None:
    live, rows = filled()
    inside = [(score, label) for t, score, label in rows if NOW - 16 * DAY <= t < NOW - 2 * DAY]
    found = live.measure(AUC, NOW)
    assert found.n == len(inside) == 14 * 40
    assert found.value == pytest.approx(roc_auc_score([y for _, y in inside], [s for s, _ in inside]), abs=1e-12)
    assert found.low is not None and found.value is not None and found.high is not None
    assert found.low < found.value < found.high


def test_a_label_counts_only_from_its_arrival() -> None:
    live = LiveWindow()
    for i, score in enumerate([0.1, 0.9, 0.2, 0.8]):
        live.append(bytes([i]), NOW, score, version="v1")
        live.label(bytes([i]), float(score > 0.5), arrived=NOW + (i + 1) * HOUR)
    assert live.metric("auc", NOW, NOW + 1, now=NOW + 2 * HOUR).n == 2
    assert live.metric("auc", NOW, NOW + 1, now=NOW + 5 * HOUR).n == 4
    assert live.matured_labels(NOW, NOW + 1, now=NOW + 3 * HOUR) == 3


def test_an_undefined_metric_says_why() -> None:
    live = LiveWindow()
    live.append(b"a", NOW - 3 * DAY, 0.5, version="v1")
    assert live.measure(AUC, NOW).why == "0 rows, 2 needed"
    live.label(b"a", 1.0, arrived=NOW)
    assert (live.measure(AUC, NOW).value, live.measure(AUC, NOW).basis) == (None, "1 labelled of 1 predictions")


def test_each_version_is_measured_by_what_it_answered_and_scored_in_the_shadow() -> None:
    live = LiveWindow()
    for i in range(200):
        good, bad = (0.9, 0.1) if i % 2 else (0.1, 0.9)
        if i < 100:
            live.append(bytes([i]), NOW + i, good, version="good", shadows=[("bad", bad)])
        else:
            live.append(bytes([i]), NOW + i, bad, version="bad", shadows=[("good", good)])
        live.label(bytes([i]), float(i % 2), arrived=NOW + i)
    span = NOW, NOW + 200
    assert live.metric("auc", *span, now=NOW + 200, version="good").value == 1.0
    assert live.metric("auc", *span, now=NOW + 200, version="bad").value == 0.0
    assert live.metric("auc", *span, now=NOW + 200).value == 0.5
    assert live.metric("auc", NOW, NOW + 100, now=NOW + 200).value == 1.0
    assert live.metric("auc", *span, now=NOW + 200, version="nobody").n == 0
    assert live.rows_of("bad", since=NOW + 50, now=NOW + 200) == 150
    assert live.traffic(*span) == {"good": 100, "bad": 100}


def test_errors_are_those_of_the_version_that_was_asked_also_in_the_shadow() -> None:
    live = LiveWindow()
    for i in range(100):
        failed = i < 5
        shadows = [("v1", 0.4)] if failed else [("v3", math.nan if i < 25 else 0.5)]
        live.append(bytes([i]), NOW, 0.4, version="v2", flags=ERROR | FALLBACK if failed else 0, shadows=shadows)
    errors, fallbacks = hr.live("error_rate"), hr.live("fallback_rate", over="1d")
    scope = {name: Scope(name, since=NOW) for name in ("v1", "v2", "v3")}
    assert live.measure(errors, NOW + 1, scope["v2"]).value == 0.05
    assert live.measure(errors, NOW + 1, scope["v3"]).value == pytest.approx(20 / 95)
    assert live.measure(errors, NOW + 1, scope["v1"]).value == 0.0
    assert live.measure(fallbacks, NOW + 1).value == 0.05
    assert live.measure(hr.live("prediction_mean"), NOW + 1, scope["v2"]).n == 95


def test_served_quantities_are_taken_over_their_own_period() -> None:
    live, _ = filled()
    assert live.measure(hr.live("latency_p99", over="2d"), NOW).n == 80
    assert live.measure(hr.live("latency_p50"), NOW).n == 40
    assert live.measure(hr.live("latency_p50"), NOW, Scope("v2", since=NOW - 3 * DAY)).n == 40
    assert live.measure(hr.live("error_rate", over="1d"), NOW, Scope(since=NOW - 3 * DAY)).n == 40
    assert live.measure(hr.live("latency_p50", over="1d"), NOW + 2 * DAY).why == "no rows in the period"


def test_scores_are_compared_with_another_version_or_with_the_training_set() -> None:
    live, rng = LiveWindow(), np.random.default_rng(1)
    for i in range(1_000):
        score = float(rng.random())
        live.append(i.to_bytes(2, "big"), NOW, score, version="v1", shadows=[("v2", score), ("v3", score**3)])
    quantity = hr.live("prediction_psi", against="champion")
    same, other = (live.measure(quantity, NOW + 1, Scope(v, NOW, {"champion": "v1"})) for v in ("v2", "v3"))
    assert (same.value, same.low, same.basis) == (0.0, 0.0, "10 quantile bins of the reference, 1000 rows")
    assert other.low is not None and other.low > 0.2
    training = Scope("v1", NOW, {"training": profile(rng.random(5_000))})
    drifted = live.measure(hr.live("prediction_psi"), NOW + 1, training)
    assert drifted.value is not None and drifted.value < 0.05
    assert live.measure(quantity, NOW + 1, Scope("v2", NOW)).why == "nothing stands for 'champion' here"


@given(st.integers(0, 2**32 - 1), st.integers(40, 300), st.integers(40, 3_000))
def test_equal_distributions_are_seldom_far_apart_beyond_chance(seed: int, few: int, many: int) -> None:
    rng = np.random.default_rng(seed)
    found = psi_of_scores("psi", rng.beta(1, 4, many), rng.beta(1, 4, few))
    assert found.low is not None and found.low < 0.05
    assert psi_of_scores("psi", rng.random(many), rng.random(39)).value is None


def test_intervals_cover_the_true_value() -> None:
    rng = np.random.default_rng(5)
    draws = rng.binomial(40, 0.01, 2_000)
    ends = [exact_share(int(k), 40, 0.9) for k in draws]
    assert np.mean([low <= 0.01 <= high for low, high in ends]) >= 0.9
    true = -math.log(0.01)
    found = [percentile("p99", rng.exponential(size=1_500), 0.99) for _ in range(400)]
    assert all(f.low is not None and f.low <= true and (f.high is None or f.high >= true) for f in found)
    assert percentile("p99", [7.0], 0.99).value == 7.0


def test_old_predictions_and_their_labels_are_dropped_and_the_rest_still_measured() -> None:
    live, _ = filled(keep=20 * DAY)
    for i in range(100):
        live.append(f"late {i}".encode(), NOW, 0.5, version="v1", shadows=[("v4", 0.25)])
    live.label(b"never predicted", 1.0, arrived=NOW - 21 * DAY)
    before = live.measure(AUC, NOW)
    assert live.drop_old(NOW) == 10 * 40
    assert live.measure(AUC, NOW) == before
    assert len(live.labels) == 20 * 40 + 100 + 10  # ten dropped rows have labels that arrived within the period
    assert live.scores("v4", NOW, NOW + 1).tolist() == [0.25] * 100
    live.append(b"after", NOW, 0.5, version="v1", shadows=[("v4", 0.75)])
    assert live.scores("v4", NOW, NOW + 1)[-1] == 0.75
    assert live.drop_old(NOW) == 0
    assert live.drop_old(NOW + 300 * DAY) == 20 * 40 + 101
    assert live.measure(hr.live("error_rate"), NOW).n == 0


def test_predictions_that_came_out_of_order_keep_their_shadows_when_old_ones_are_dropped() -> None:
    live = LiveWindow(keep=DAY)
    for i, t in enumerate([NOW - 2 * DAY, NOW, NOW - 3 * DAY, NOW]):
        live.append(bytes([i]), t, i / 10, version="v1", shadows=[("v2", i / 10)])
    assert live.drop_old(NOW) == 1
    assert live.scores("v2", NOW, NOW + 1).tolist() == live.scores("v1", NOW, NOW + 1).tolist() == [0.1, 0.3]


def test_the_range_of_a_psi_covers_that_of_the_populations_and_is_centred_on_it() -> None:
    rng, shares = np.random.default_rng(11), np.array([0.4, 0.3, 0.2, 0.1])
    true = float(np.sum((shares - shares[::-1]) * np.log(shares / shares[::-1])))
    reference = profile(np.repeat([0.0, 1.0, 2.0, 3.0], (4_000, 3_000, 2_000, 1_000)), bins=4)
    edged = replace(reference, edges=(0.5, 1.5, 2.5), counts=(4_000, 3_000, 2_000, 1_000))
    found = [psi_of_profile("psi", edged, rng.choice(4, 200, p=shares[::-1]).astype(float)) for _ in range(400)]
    ends = np.array([(f.low, f.high) for f in found], dtype=float)
    assert np.mean((ends[:, 0] <= true) & (true <= ends[:, 1])) > 0.98
    assert ends.mean() == pytest.approx(true, abs=0.01)


def test_delays_say_what_was_late_and_what_is_missing() -> None:
    live = LiveWindow()
    for i, delay in enumerate([1, 2, 3, 30, 60, None]):
        live.append(bytes([i]), NOW + i, 0.5, version="v1")
        if delay is not None:
            live.label(bytes([i]), 1.0, arrived=NOW + i + delay * HOUR)
    live.append(b"young", NOW + 6 * DAY, 0.5, version="v1")
    found = live.delays(NOW + 7 * DAY, matured=2 * DAY, over=30 * DAY)
    assert (found.rows, found.arrived, found.late, found.missing) == (6, 5, 1, 1)
    assert found.quantiles[2] == 3 * HOUR
    assert sum(found.counts) == 5


def test_a_window_survives_its_checkpoint() -> None:
    live, _ = filled(days=5)
    live.append(b"x", NOW, 0.5, version="v9", variant="candidate", shadows=[("v1", 0.1)])
    live.drop_old(NOW)
    again = LiveWindow.load(live.dump())
    for window in (live, again):
        window.append(b"y", NOW, 0.7, version="v9", shadows=[("v1", 0.2)])
        window.label(b"x", 1.0, arrived=NOW)
    assert again.measure(AUC, NOW) == live.measure(AUC, NOW)
    assert again.scores("v1", NOW, NOW + 1).tolist() == [0.1, 0.2]
    assert again.dump() == live.dump()
    with pytest.raises(Corrupt, match="not a live window"):
        LiveWindow.load(live.dump()[:-40])


statements = st.lists(
    st.tuples(st.binary(max_size=2), st.sampled_from([0.0, 1.0, math.nan]), st.integers(0, 5)), max_size=30
)


@given(statements, st.integers(0, 30))
def test_the_newest_label_holds_whatever_is_read_between(said: list[tuple[bytes, float, int]], read_at: int) -> None:
    book = LabelBook()
    expected: dict[bytes, tuple[float, int]] = {}
    for i, (row, label, arrived) in enumerate(said):
        book.state(row, label, arrived=arrived)
        if row not in expected or arrived >= expected[row][1]:
            expected[row] = (label, arrived)
        if i == read_at:
            assert book.labels.size == len(book)
    book = LabelBook.from_arrays(book.arrays())
    for row, (label, arrived) in expected.items():
        place = book.place(row)
        assert book.arrived[place] == arrived
        np.testing.assert_equal(book.labels[place], label)
    fresh = book.place(b"a new row")
    assert book.arrived[fresh] == NEVER


def test_forgotten_rows_leave_what_a_window_without_them_would_hold() -> None:
    """Shadows and labels of the others stay with their rows, also after a beginning was dropped and after a reload."""
    windows = LiveWindow(keep=20 * DAY), LiveWindow(keep=20 * DAY)
    gone = {f"row {i}".encode() for i in range(0, 900, 7)}
    for i in range(900):
        row = f"row {i % 600}".encode()
        for window in windows if row not in gone else windows[:1]:
            t = NOW - 30 * DAY + i * DAY // 30
            shadows = [("v2", i / 900)] if i % 2 else []
            window.append(row, t, 1 - i / 900, version="v1", shadows=shadows)
            window.label(row, float(i % 3 == 0), arrived=t + HOUR)
    for window in windows:
        window.drop_old(NOW)
    assert windows[0].forget(gone) > 50
    for held in (windows[0], LiveWindow.load(windows[0].dump())):
        for version in ("v1", "v2"):
            found = [w.scores(version, 0, NOW).tolist() for w in (held, windows[1])]
            assert found[0] == found[1] != []
        assert held.measure(AUC, NOW) == windows[1].measure(AUC, NOW)
        assert held.traffic(0, NOW) == windows[1].traffic(0, NOW)
        assert not any(row in held.dump() for row in (b"row 7row", b"row 14row"))
    assert windows[0].forget({b"nobody"}) == 0
