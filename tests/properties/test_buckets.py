"""Features are the same bits in 1, 7 and 64 buckets, in process and on every engine, for any log of reveals."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import headrace as hr
from headrace.engines import Engine
from headrace.engines.local import LocalEngine
from headrace.engines.wire import pack_function
from headrace.features.bucket_work import Scan, Unfold, bare_lane, bare_source
from headrace.features.buckets import BucketedPast, lanes_of
from headrace.features.history import History
from headrace.features.offline import OfflineFeatures, Values
from headrace.features.plan import plan_dataset
from headrace.sources.definition import definition_of
from headrace.sources.run import batch_of
from headrace.sources.values import arrow_type
from tests.properties.test_oracle_windows import PLAN, asked_of, whole_log


def same(found: Values, expected: Values) -> bool:
    """Say whether two sets of values agree in every bit, status and text."""
    assert found.texts.keys() == expected.texts.keys()
    texts = all(found.texts[name].to_pylist() == expected.texts[name].to_pylist() for name in expected.texts)
    return texts and bool((found.words == expected.words).all() and (found.status == expected.status).all())


class Case:
    """Hold a made-up log, what is asked of it, and the answers of one bucket in memory."""

    def __init__(self, seed: int, reveals: int, rows: int) -> None:
        random = Random(seed)
        log, asked = whole_log(random, reveals // 6 + 1, reveals), asked_of(random, rows)
        self.reveals = {s.name: batch_of(s, [r for name, r in log if name == s.name]).table for s in PLAN.sources}
        self.t = np.array([t for _, t in asked], np.int64)
        columns = {c.name: pa.array([row[i] for row, _ in asked], arrow_type(c.dtype)) for i, c in enumerate(PLAN.row)}
        self.rows, self.as_of = pa.table(columns), int(self.t.max(initial=0))
        histories = {s.name: History.build(s, self.reveals[s.name], self.as_of) for s in PLAN.sources}
        self.expected = OfflineFeatures(PLAN, histories).compute(self.rows, self.t)

    def computed(self, engine: Engine, folder: Path, buckets: int, **given: Any) -> Values:
        largest = max(table.num_rows for table in self.reveals.values())
        size = -(-largest // buckets)
        settings: dict[str, Any] = {"as_of": self.as_of, "engine": engine, "folder": folder, "bucket_rows": size}
        past = BucketedPast(PLAN.sources, lanes_of(PLAN), self.reveals, **(settings | given))
        return OfflineFeatures(PLAN, past).compute(self.rows, self.t)


@pytest.mark.parametrize("buckets", [1, 7, 64])
@pytest.mark.parametrize(("seed", "reveals", "rows"), [(1, 1_500, 500), (2, 70, 40)])
def test_buckets_do_not_change_a_bit(tmp_path: Path, seed: int, reveals: int, rows: int, buckets: int) -> None:
    case = Case(seed, reveals, rows)
    assert same(case.computed(LocalEngine(), tmp_path, buckets), case.expected)


def test_lanes_can_be_sent_whatever_was_compiled_for_them() -> None:
    for lane in lanes_of(PLAN):
        lane.lane.pack([None] * len(lane.lane.values))
        assert pack_function(Scan(bare_lane(lane), None, None))


def test_rows_in_hand_and_classes_stay_where_they_are() -> None:
    table = pa.table({"id": ["kept here"], "at": pa.array([0], pa.timestamp("us", "UTC")), "shop": ["s"]})
    held = hr.source(table, row_id="id", event_time="at", entity="shop")
    columns = definition_of(held).by_name

    class Shop(hr.FeatureGroup, of=held, entity=columns["shop"]):
        orders = hr.count().over("2d")

    rows = hr.grid(columns["shop"], every="1d", active=hr.count(held).over("3d") > 0)
    plan = plan_dataset(hr.Dataset(rows=rows, features=[Shop], label=hr.count(columns["id"]).ahead("1d")))
    lanes = tuple(bare_lane(lane) for lane in lanes_of(plan))
    assert len(lanes) == 3
    packed = pack_function(Unfold(bare_source(definition_of(held)), lanes, 0))
    assert b"kept here" not in packed
    assert b"InferredSource" not in packed
