"""The notebook's door on a generated project: what it shows is what training, serving and the reference see."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars
import pyarrow as pa
import pytest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import headrace as hr
from headrace.core.errors import DataError, DefinitionError, MissingExtra, UnknownColumn, UsageError
from headrace.core.time import DAY, Instant, VirtualClock
from headrace.features.training_set import training_set
from headrace.pipelines.project import Project, import_file
from headrace.pipelines.reveals import read_reveals
from headrace.pipelines.run import run
from headrace.pipelines.stores import open_stores
from headrace.pipelines.view import Silent

NOON = "2024-02-10T12:00:00Z"


@pytest.fixture(scope="module")
def module(orders: Project) -> ModuleType:
    return import_file(orders.folder / "orders.py")


@pytest.fixture(scope="module")
def state(orders: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("state") / "state"
    run(orders, state=str(folder), seed=3, progress=Silent())
    return folder


@pytest.fixture(scope="module")
def frame(module: ModuleType) -> Any:
    return module.dataset.frame()


def test_a_frame_holds_the_rows_and_bits_that_a_run_trains_on(
    orders: Project, state: Path, frame: Any, module: ModuleType
) -> None:
    with open_stores(orders, str(state), clock=VirtualClock(Instant(0)), write=False) as stores:
        reveals = read_reveals(stores.tables, orders.plan.sources)
    expected = training_set(orders.plan, reveals, as_of=frame.manifest["as_of"])
    assert len(frame) == len(expected) > 5_000
    assert frame.values.table(frame.plan).equals(expected.features)
    assert np.array_equal(frame.label, expected.label, equal_nan=True)
    assert frame.manifest["censored"] == np.isnan(expected.label).sum()
    assert "rows x 6 features" in repr(frame) and ".to_pandas()" in repr(frame)


def test_a_frame_shows_its_rows_in_every_form(frame: Any) -> None:
    table = frame.arrow()
    assert table.column_names[:2] == ["order_id", "at"] and table.column_names[-1] == "label"
    assert table.schema.field("at").type == pa.timestamp("us", "UTC")
    pandas, polar, matrix = frame.to_pandas(), frame.to_polars(), frame.numpy()
    assert len(pandas) == len(polar) == len(matrix) == len(frame)
    place = frame.columns.index("Shop.hours[1d]")
    assert np.array_equal(pandas["Shop.hours[1d]"].to_numpy(), matrix[:, place], equal_nan=True)
    assert np.array_equal(frame.torch().numpy(), matrix.astype(np.float32), equal_nan=True)
    assert polar["Shop.hours[1d]"].null_count() == np.isnan(matrix[:, place]).sum() > 0
    assert frame.statuses()["Shop.hours[1d]"]["NULL"] == np.isnan(matrix[:, place]).sum()


def test_a_library_that_is_not_there_is_named(frame: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match="torch is not installed"):
        frame.torch()


def test_a_limit_keeps_the_newest_rows_and_as_of_hides_later_ones(module: ModuleType, frame: Any) -> None:
    few = module.dataset.frame(limit=50)
    assert np.array_equal(few.numpy(), frame.numpy()[-50:], equal_nan=True)
    early = module.dataset.frame(as_of="2024-02-10")
    assert early.t.max() + 4 * DAY <= Instant.parse("2024-02-10") < frame.t.max()
    assert np.array_equal(early.numpy(), frame.numpy()[: len(early)], equal_nan=True)


def test_the_caller_gets_its_own_rows_with_features_in_order(module: ModuleType, frame: Any) -> None:
    chosen = [700, 3, 700, 5_000]
    rows = frame.rows.take(chosen)
    rows = rows.append_column("when", pa.array(frame.t[chosen], pa.timestamp("us", "UTC")))
    rows = rows.append_column("shop", frame.keys["shop"].take(chosen))
    for given in (rows, rows.to_pandas(), polars.from_arrow(rows)):
        found = hr.training_set(given, [module.Shop], at="when")
        assert found.arrow()["order_id"].to_pylist() == rows["order_id"].to_pylist()
        ours = [frame.columns.index(name) for name in found.columns]
        assert np.array_equal(found.numpy(), frame.numpy()[np.ix_(chosen, ours)], equal_nan=True)


def test_rows_of_keys_that_nothing_is_known_of_count_nothing(module: ModuleType) -> None:
    rows = pa.table({"shop": ["shop-none", None], "at": pa.array([0, 0], pa.timestamp("us", "UTC"))})
    found = hr.training_set(rows, [module.Shop])
    assert found.statuses()["Shop.hours[1d]"] == {"NO_KEY": 1, "NULL": 1}
    assert found.to_dict(0)["Shop.orders[1d]"] == 0 and found.to_dict(1)["Shop.orders[1d]"] is None


@pytest.mark.parametrize(
    ("rows", "error", "text"),
    [
        ({"shp": ["a"], "at": [0]}, UsageError, "did you mean shp"),
        ({"shop": ["a"]}, UsageError, "lack columns"),
        ({"shop": [1], "at": [0]}, DataError, "another type"),
        ({"shop": ["a"], "at": pa.array([None], pa.timestamp("us", "UTC"))}, DataError, "without a moment"),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    module: ModuleType, rows: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        hr.training_set(pa.table(rows), [module.Shop])


def test_online_values_are_the_frames_own_at_the_same_moment(module: ModuleType, state: Path, frame: Any) -> None:
    at = Instant(int(frame.histories["Orders"].arrival.max()) + 1).isoformat()
    keys = ["shop-1", "shop-2", "shop-none"]
    online = module.Shop.online(keys, at=at, state=state)
    rows = pa.table({"shop": keys, "at": pa.array([Instant.parse(at)] * 3, pa.timestamp("us", "UTC"))})
    offline = hr.training_set(rows, [module.Shop])
    assert online.arrow()["shop"].to_pylist() == keys
    assert np.array_equal(online.numpy(), offline.numpy(), equal_nan=True)
    assert online.to_dict(0)["Shop.hours[7d]"] > 0 and online.to_dict(2)["Shop.hours[7d]"] is None
    now = module.Shop.online(["shop-1"], state=state, clock=VirtualClock(Instant.parse(at)))
    assert now.to_dict(0) == online.to_dict(0)


def test_an_online_question_about_the_past_is_refused(module: ModuleType, state: Path) -> None:
    with pytest.raises(DataError, match="older than what the online features have seen"):
        module.Shop.online(["shop-1"], at=NOON, state=state)
    with pytest.raises(UsageError, match="another number of parts"):
        module.Shop.online([("shop-1", 2)], state=state)
    with pytest.raises(UsageError, match="another type"):
        module.Shop.online([7], state=state)


def test_an_explanation_names_the_events_that_make_the_value(module: ModuleType, frame: Any) -> None:
    place = len(frame) - 1
    named = frame.rows["order_id"][place].as_py()
    found = module.dataset.explain(named)
    by_name = {feature.name: feature for feature in found.features}
    week = by_name["Shop.hours[7d]"]
    used = [event.values[0] for event in week.events if event.used]
    assert week.used == len(used) > 3 and week.value == pytest.approx(np.mean(used))
    assert found.values["Shop.hours[7d]"] == week.value == frame.to_dict(place)["Shop.hours[7d]"]
    assert {event.why for event in week.events if not event.used} >= {"is older than 7d"}
    assert f"order_id={named}" in str(found) and "weekday = " in str(found) and "refused" in str(found)
    only = frame.explain(place, "Shop.hours[7d]")
    assert [feature.name for feature in only.features] == ["Shop.hours[7d]"]


def test_a_row_that_no_source_holds_can_be_explained(module: ModuleType, frame: Any) -> None:
    place = len(frame) - 1
    shop, t = frame.keys["shop"][place].as_py(), Instant(int(frame.t[place])).isoformat()
    asked = {"order_id": "new", "placed": t, "shop": shop, "items": 3}
    found = module.dataset.explain(asked)
    assert found.values["Orders.items"] == 3
    assert found.values["Shop.hours[7d]"] == frame.to_dict(place)["Shop.hours[7d]"]


def test_explaining_what_is_not_there_says_so(module: ModuleType, state: Path, frame: Any) -> None:
    with pytest.raises(UsageError, match="no such row"):
        module.dataset.explain("order-none")
    with pytest.raises(UnknownColumn, match=r"did you mean Shop\.hours\[7d\]"):
        frame.explain(0, "Shop.huors[7d]")
    with pytest.raises(UsageError, match="expected: 0 to"):
        frame.explain(len(frame))
    with pytest.raises(DataError, match="placed: null"):
        module.dataset.explain({"order_id": "new", "placed": None, "shop": "shop-1"})
    with pytest.raises(UsageError, match="does not tell its moment"):
        module.dataset.explain({"order_id": "new", "shop": "shop-1"})
    with pytest.raises(UsageError, match="keeps no events"):
        module.Shop.online(["shop-1"], state=state).explain(0)


def test_a_feature_is_tested_with_a_few_events(module: ModuleType) -> None:
    events = [
        {"order_id": "a", "placed": "2024-02-09T10:00Z", "shop": "shop-1", "items": 1, "delivered": "2024-02-10T10:00Z", "hours": 24.0},
        {"order_id": "b", "placed": "2024-02-10T09:00Z", "shop": "shop-1", "items": 1, "delivered": "2024-02-10T12:00Z", "hours": 3.0},
        {"order_id": "c", "placed": "2024-02-10T10:00Z", "shop": "shop-2", "items": 1, "delivered": "2024-02-10T11:00Z", "hours": 1.0},
    ]  # fmt: skip
    found = module.Shop.test(events, at=NOON, key="shop-1")
    # The second order's delivery is at noon itself: not before the moment, so its hours do not count yet.
    assert found["Shop.hours[1d]"] == 24.0 and found["Shop.orders[1d]"] == 1 and found["Shop.late[7d]"] == 0.0
    assert module.Shop.test(events[2:], at=NOON)["Shop.hours[1d]"] == 1.0
    late = [events[2] | {"_arrival": "2024-02-11T00:00Z"}]
    assert module.Shop.test(late, at=NOON, key="shop-2")["Shop.hours[1d]"] is None


def test_events_that_are_no_rows_are_refused(module: ModuleType) -> None:
    with pytest.raises(UsageError, match="several keys"):
        module.Shop.test([{"order_id": i, "placed": NOON, "shop": f"shop-{i}"} for i in ("1", "2")], at=NOON)
    with pytest.raises(UsageError, match="did you mean shop"):
        module.Shop.test([{"order_id": "a", "placed": NOON, "shp": "shop-1"}], at=NOON)
    with pytest.raises(UsageError, match="placed"):
        module.Shop.test([{"order_id": "a", "placed": "2024-02-10T12:00:00", "shop": "shop-1"}], at=NOON)
    with pytest.raises(DefinitionError, match="naive"):
        module.Shop.test([], at="2024-02-10T12:00:00", key="shop-1")


def test_an_estimator_is_fitted_and_judged_without_a_pipeline(module: ModuleType) -> None:
    estimator = make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression())
    found = hr.fit(module.dataset, estimator, as_of="2024-04-20")
    assert set(found.metrics) == {"valid", "test"}
    assert 0.5 < (found.metrics["test"]["auc"] or 0) <= 1
    assert not hasattr(estimator[-1], "coef_") and hasattr(found.model[-1], "coef_")
    assert found.score(found.data.test.X).shape == (len(found.data.test),)
    assert "baseline" in repr(found) and "Pipeline on 6 features" in repr(found)
    again = hr.fit(module.dataset, estimator, as_of="2024-04-20")
    assert again.metrics == found.metrics
