"""Drift is judged by a feature's own history: what always moves is usual, what never moved is found."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from headrace.core.errors import DataError
from headrace.core.time import DAY
from headrace.features.record import NULL, OK, FeatureColumn, FeatureVector, TrainingSet
from headrace.monitoring.drift import SCORE, DriftWatch, VectorBlock, reference_profiles, training_history
from headrace.stats.profiles import compare

START = 1_000 * DAY
COLUMNS = (
    FeatureColumn("distance", "float", "row"),
    FeatureColumn("count", "int", "window"),
    FeatureColumn("carrier", "str", "row"),
    FeatureColumn("late", "bool", "latest"),
    FeatureColumn("dest", "str", "row"),
)
ROWS = 300


def day(
    rng: np.random.Generator, number: int, *, shift: float = 0.0, nulls: float = 0.05, new: bool = False
) -> VectorBlock:
    """Return one day's vectors; `distance` has a weekly rhythm, which is usual."""
    floats = rng.normal(5 + (number % 7 >= 5) + shift, 1, ROWS)
    words = np.zeros((ROWS, 5), dtype=np.int64)
    words[:, 0] = floats.view(np.int64)
    words[:, 1] = rng.poisson(20, ROWS)
    words[:, 3] = rng.random(ROWS) < 0.3
    status = np.full((ROWS, 5), OK, dtype=np.uint8)
    status[rng.random(ROWS) < nulls, 1] = NULL
    status[rng.random(ROWS) < 0.1, 3] = NULL
    words[status != OK] = 0
    carriers = list(rng.choice(["AA", "UA", "B6"], ROWS))
    dests: list[str | None] = list(rng.choice(["BOS", "SFO"], ROWS))
    if new:
        dests[: ROWS // 10] = ["XXX"] * (ROWS // 10)
    dests[-1] = None
    return VectorBlock(COLUMNS, words, status, [carriers, dests], rng.random(ROWS) ** (1 + 3 * shift))


def training(days: int = 28) -> TrainingSet:
    rng = np.random.default_rng(0)
    blocks = [day(rng, number) for number in range(days)]

    def column(i: int, dtype: pa.DataType, values: np.ndarray) -> pa.Array:
        return pa.array(values, mask=np.concatenate([b.status[:, i] != OK for b in blocks]), type=dtype)

    words = np.concatenate([block.words for block in blocks])
    features = pa.table(
        {
            "distance": column(0, pa.float64(), np.ascontiguousarray(words[:, 0]).view(np.float64)),
            "count": column(1, pa.int64(), words[:, 1]),
            "carrier": pa.array([text for block in blocks for text in block.texts[0]]),
            "late": column(3, pa.bool_(), words[:, 3].astype(bool)),
            "dest": pa.array([text for block in blocks for text in block.texts[1]]),
        }
    )
    t = np.repeat(START + np.arange(days) * DAY, ROWS)
    return TrainingSet(COLUMNS, features, features, t, np.zeros(t.size), START + days * DAY, {})


TRAINING = training()
REFERENCE = reference_profiles(TRAINING, np.random.default_rng(1).random(8_000))
HISTORY = training_history(TRAINING, REFERENCE)


def watched(days: int, **change: float) -> DriftWatch:
    """Return a watch after `days` usual days and three that are changed."""
    watch, rng = DriftWatch(REFERENCE, HISTORY), np.random.default_rng(2)
    for number in range(28, 28 + days + 3):
        extra = change if number >= 28 + days else {}
        watch.close_window(START + number * DAY, day(rng, number, **extra))  # type: ignore[arg-type]
    return watch


def test_served_vectors_and_training_columns_give_the_same_profile() -> None:
    rng = np.random.default_rng(0)
    served = dict(day(rng, 0).profiles(REFERENCE))
    chosen = np.arange(ROWS)
    for name in ("distance", "count", "carrier", "late", "dest"):
        trained = TRAINING.features[name].take(chosen)
        assert served[name].rows == ROWS
        assert served[name].nulls == trained.null_count
        assert compare(REFERENCE[name], served[name]).psi < 0.5
    assert served["late"].counts == (
        TRAINING.features["late"].take(chosen).to_pylist().count(False),
        TRAINING.features["late"].take(chosen).to_pylist().count(True),
    )
    assert len(HISTORY) == 27  # the newest day may not be whole


def test_usual_days_are_not_unusual_also_on_weekends() -> None:
    for days in (0, 4, 25):
        verdict = watched(days).verdict(k=2, n=3)
        assert not verdict.unusual, verdict.findings
    assert watched(20).verdict(k=2, n=3).undecided == {}


@pytest.mark.parametrize(
    ("change", "feature"), [({"shift": 3.0}, "distance"), ({"nulls": 0.4}, "count"), ({"new": True}, "dest")], ids=str
)
def test_a_changed_feature_is_found_with_its_numbers(change: dict[str, float], feature: str) -> None:
    verdict = watched(20, **change).verdict(k=2, n=3)
    assert verdict.unusual
    found = {finding.feature for finding in verdict.findings}
    assert feature in found and found <= {feature, SCORE}
    finding = next(f for f in verdict.findings if f.feature == feature)
    assert finding.flagged >= 2 and finding.recent[-1] > finding.limit > finding.centre
    json.dumps(verdict.to_dict(), allow_nan=False)


def test_a_moved_score_is_found() -> None:
    verdict = watched(20, shift=3.0).verdict(k=2, n=3)
    assert SCORE in {finding.feature for finding in verdict.findings}


def test_new_categories_are_named() -> None:
    assert watched(3, new=True).windows[-1].columns["dest"].new_categories == ("XXX",)


def test_one_bad_day_is_not_yet_unusual_and_training_days_are_never_judged() -> None:
    rng = np.random.default_rng(4)
    watch = DriftWatch(REFERENCE, HISTORY)
    assert not watch.verdict(k=1, n=3).unusual
    watch.close_window(START + 28 * DAY, day(rng, 28, shift=4.0))
    assert not watch.verdict(k=2, n=3).unusual
    assert watch.verdict(k=1, n=3).unusual


def test_without_history_nothing_is_decided_and_it_says_so() -> None:
    watch = DriftWatch(REFERENCE)
    watch.close_window(START, day(np.random.default_rng(1), 0, shift=9.0))
    verdict = watch.verdict(k=1, n=1)
    assert not verdict.unusual
    assert verdict.undecided["distance"] == "history has 0 windows, 14 are needed"


def test_a_window_with_few_rows_says_nothing() -> None:
    block = day(np.random.default_rng(1), 0, shift=9.0)
    few = VectorBlock(COLUMNS, block.words[:9], block.status[:9], [t[:9] for t in block.texts], block.scores[:9])
    watch = DriftWatch(REFERENCE, HISTORY)
    assert watch.close_window(START, few).columns == {}
    assert not watch.verdict(k=1, n=1).unusual


def test_a_watch_survives_its_checkpoint() -> None:
    watch = watched(5, shift=2.0)
    again = DriftWatch.load(json.loads(json.dumps(watch.dump())))
    assert again.verdict(k=2, n=3) == watch.verdict(k=2, n=3)
    assert again.dump() == watch.dump()


def test_vectors_without_a_trained_column_are_refused() -> None:
    block = day(np.random.default_rng(1), 0)
    short = VectorBlock(COLUMNS[:2], block.words[:, :2], block.status[:, :2], [], block.scores)
    with pytest.raises(DataError, match="lack columns"):
        DriftWatch(REFERENCE).close_window(START, short)


def test_single_vectors_are_copied_into_a_block() -> None:
    block = day(np.random.default_rng(1), 0)
    vectors = [
        FeatureVector(COLUMNS, block.words[i].copy(), block.status[i].copy(), [text[i] for text in block.texts])
        for i in range(ROWS)
    ]
    again = VectorBlock.of(COLUMNS, vectors, block.scores)
    vectors[0].words[:] = 0
    assert dict(again.profiles(REFERENCE)) == dict(block.profiles(REFERENCE))
