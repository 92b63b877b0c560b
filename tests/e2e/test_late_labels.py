"""Labels that another table decides reach the monitors when rows mature, and are those that training would see."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import headrace as hr
from headrace.core.errors import DefinitionError
from headrace.core.identity import encode_key
from headrace.core.time import DAY, HOUR, Instant, SystemClock
from headrace.features.plan import plan_dataset
from headrace.features.training_set import training_set
from headrace.monitoring.performance import LiveWindow
from headrace.pipelines.inspect import read_all
from headrace.pipelines.labelling import RowLabels, refuse_unfollowed
from headrace.pipelines.project import Project, load_project
from headrace.pipelines.replay import LIVE, ReplayPlan, replay
from headrace.pipelines.reveals import read_reveals
from headrace.pipelines.stores import CONTROL, open_stores
from headrace.pipelines.view import Silent
from headrace.sources.record import Reveal

START, DAYS, A_DAY = Instant.parse("2025-01-01"), 70, 40
PROJECT = """
from lightgbm import LGBMClassifier

import headrace as hr


class Orders(hr.Source):
    order_id: hr.Column[str] = hr.row_id()
    placed: hr.Column[hr.Instant] = hr.event_time()
    shop: hr.Column[str] = hr.entity()
    amount: hr.Column[float] = hr.column(ge=0)
    paid: hr.Column[bool | None] = hr.column(known_at=placed + "2s")


class Returns(hr.Source):
    return_id: hr.Column[str] = hr.row_id()
    order_id: hr.Column[str] = hr.foreign_key(Orders.order_id)
    reported: hr.Column[hr.Instant] = hr.event_time()


class Shop(hr.FeatureGroup, of=Orders, entity=Orders.shop):
    amount = hr.mean(Orders.amount).over("7d")


dataset = hr.Dataset(
    rows=Orders,
    where=Orders.amount > 5,
    at=Orders.placed,
    features=[Orders.amount, Shop],
    label=hr.exists(Returns, on=Returns.order_id).within("9d"),
    labelled_if=Orders.paid,
)


@hr.train(dataset, split=hr.by_time(valid="7d", test="7d"))
def returned(data: hr.TrainingData, p: hr.Params) -> hr.Model:
    model = LGBMClassifier(n_estimators=20, num_leaves=7, random_state=p.seed, n_jobs=1, deterministic=True, verbose=-1)
    return hr.model(model.fit(data.train.X, data.train.y))


pipeline = hr.Pipeline(
    model=returned,
    decision=hr.threshold(0.5),
    gates=[hr.metric("auc") >= 0.6],
    endpoint=hr.Endpoint(fallback=0.1),
    retrain_on=[hr.every("30d")],
    monitors=[hr.when(hr.live("auc", over="14d", matured="9d") < 0.6, every="1d").alert("ops")],
)
"""


def write_data(folder: Path) -> None:
    """Draw orders of which dear ones come back more often, up to twelve days later; one in ten is never paid."""
    rng, orders, returns = random.Random(5), [], []
    for n in range(DAYS * A_DAY):
        at, amount = START + n // A_DAY * DAY + n % A_DAY * HOUR // 2, round(rng.uniform(1, 100), 2)
        orders.append({"order_id": f"o{n}", "placed": at, "shop": f"s{n % 7}", "amount": amount, "paid": n % 10 != 3})
        if rng.random() < amount / 150:
            reported = at + rng.randrange(HOUR, 12 * DAY)
            returns.append({"return_id": f"r{n}", "order_id": f"o{n}", "reported": reported})
    instant = pa.timestamp("us", "UTC")
    for name, rows, column in (("orders", orders, "placed"), ("returns", returns, "reported")):
        table = pa.Table.from_pylist(rows)
        place = table.schema.get_field_index(column)
        pq.write_table(table.set_column(place, column, table[column].cast(instant)), folder / f"{name}.parquet")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("returns")
    write_data(folder)
    (folder / "returns.py").write_text(PROJECT)
    places = "".join(f'[sources.{name}]\npath = "{name.lower()}.parquet"\n' for name in ("Orders", "Returns"))
    (folder / "headrace.toml").write_text(f'[project]\nmodules = ["returns"]\n{places}')
    return load_project("returns:pipeline", folder=folder)


def test_matured_labels_are_those_of_a_training_set_of_that_day(project: Project, tmp_path: Path) -> None:
    span = ReplayPlan.parse("2025-01-01", "2025-03-12", seed=3, faults=[], freeze=None)
    result = replay(project, span, state=str(tmp_path / "state"), progress=Silent())
    assert result.by_model > 500
    with open_stores(project, str(tmp_path / "state"), clock=SystemClock(), write=False) as stores:
        with stores.online.read() as snapshot:
            live = LiveWindow.load(snapshot.get(CONTROL, LIVE) or b"")
        reveals = read_reveals(stores.tables, project.plan.sources)
        performance = [r.body for r in read_all(stores.ledger) if r.kind == "performance"]
    end = span.end
    wanted = training_set(project.plan, reveals, as_of=end)
    truth = {
        encode_key([row]): label for row, label in zip(wanted.rows["order_id"].to_pylist(), wanted.label, strict=True)
    }
    told = {}
    for row in (encode_key([f"o{n}"]) for n in range(DAYS * A_DAY)):
        assert row is not None
        place = live.labels.place(row)
        told[row] = live.labels.labels[place]
    kept = [
        row
        for n in range(DAYS * A_DAY)
        if (row := encode_key([f"o{n}"])) and START + n // A_DAY * DAY > end - live.keep
    ]
    labelled = [row for row in kept if not np.isnan(told[row])]
    assert len(labelled) > 600
    assert all(told[row] == truth[row] for row in labelled)
    assert {row for row in kept if row in truth and not np.isnan(truth[row])} == set(labelled)
    assert 0.2 < np.mean([told[row] for row in labelled]) < 0.5
    measured = performance[-1]["managed"]
    assert measured["value"] > 0.6
    assert measured["n"] > 100


class Parcels(hr.Source):
    parcel: hr.Column[str] = hr.row_id()
    sent: hr.Column[hr.Instant] = hr.event_time()
    hours: hr.Column[float | None] = hr.column()
    insured: hr.Column[bool | None] = hr.column()


def test_a_label_of_the_row_counts_only_where_it_can_be_seen() -> None:
    dataset = hr.Dataset(
        rows=Parcels,
        at=Parcels.sent,
        features=[Parcels.sent],
        label=Parcels.hours > 24,
        labelled_if=Parcels.insured,
        mature="9d",
    )
    labels = RowLabels(plan_dataset(dataset))
    rows = [("a", 0, hours, insured) for hours in (30.0, 3.0, None) for insured in (True, False, None)]
    nan = [math.nan] * 2
    assert repr([labels.of(row) for row in rows]) == repr([1.0, *nan, 0.0, *nan, math.nan, *nan])
    stated = {place: labels.stated("Parcels", Reveal(0, b"a", (0, place), ("a", None), 1)) for place in (1, 2, 3)}
    assert stated == {1: False, 2: True, 3: True}
    assert not labels.stated("Orders", Reveal(0, b"a", (0, 2), ("a", None), 1))


def test_labels_that_no_request_could_be_followed_up_by_are_refused(project: Project) -> None:
    refuse_unfollowed(project.plan)
    demand = Path(__file__).parents[2] / "examples" / "demand"
    with pytest.raises(DefinitionError, match="cannot be followed up by its labels"):
        refuse_unfollowed(load_project("demand:pipeline", folder=demand).plan)
