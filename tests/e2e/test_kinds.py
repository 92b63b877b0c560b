"""The catalogue, backfills, rebuilds, reproduction and erasure treat every kind of source, feature, row and label.

Fraud has rows of a table with a condition and a sample, labels of another table, and a table whose rows change; demand has
a grid, civil days, windows ahead over announced rows, and labels of windows ahead.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from headrace.core.errors import GateRefused
from headrace.core.time import DAY, Instant, SystemClock
from headrace.features.digest import state_digest
from headrace.pipelines.catalogue import list_features
from headrace.pipelines.erase import erase
from headrace.pipelines.lineage import lineage
from headrace.pipelines.materialize import rebuild_online
from headrace.pipelines.project import Project, load_project
from headrace.pipelines.ranges import materialize_range
from headrace.pipelines.reproduce import reproduce
from headrace.pipelines.run import run
from headrace.pipelines.stores import open_stores
from headrace.pipelines.view import Silent
from tests.e2e.test_examples import prepared

SIZES: dict[str, dict[str, int]] = {"fraud": {"count": 15_000}, "demand": {"stores": 2, "items": 3, "days": 800}}


@pytest.fixture(scope="module", params=SIZES)
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return an example after one run."""
    name = request.param
    folder = prepared(name, tmp_path_factory.mktemp("kinds"), **SIZES[name])
    found = load_project(f"{name}:pipeline", folder=folder)
    with suppress(GateRefused):  # few rows make a poor model, which is registered all the same
        run(found, state=None, seed=1, progress=Silent())
    return load_project(f"{name}:pipeline", folder=folder)


def test_every_feature_is_listed_with_what_it_is_computed_from(project: Project) -> None:
    view = list_features(project, "", state=None, health=True)
    told = {f["feature"]: (f["computed"], f["window"], f["source"]) for f in view["features"]}
    every: dict[str, dict[str, tuple[str, str | None, str]]] = {
        "fraud": {
            "Card.merchants[24h]": ("distinct of Transactions.merchant", "1d", "Transactions"),
            "MerchantProfile.mcc": ("latest of Merchants.mcc", None, "Merchants"),
            "Transactions.amount": ("the row's own column", None, "Transactions"),
        },
        "demand": {
            "Demand.same_week[7d]": ("sum of Sales.units", "7d, 364d back", "Sales"),
            "Planned.promo_days[7d]": (
                "count of rows on Promotions.day in Europe/Paris",
                "7d ahead",
                "Promotions",
            ),
        },
    }
    wanted = every[project.name.split(".")[0]]
    assert {name: told.get(name) for name in wanted} == wanted
    assert {s["source"] for s in view["sources"]} == {s.name for s in project.plan.sources}
    keys = [h["keys"] for f in view["features"] for h in f["health"] if f["group"]]
    assert min(keys) > 0
    assert all(one["applied"] for one in view["freshness"])


def test_data_are_followed_through_labels_rows_and_conditions(project: Project) -> None:
    followed = {
        "fraud": {
            "Chargebacks.txn_id": (True, False),
            "Transactions.approved": (True, False),
            "Merchants.valid_to": (False, False),
            "Transactions.amount": (False, True),
        },
        "demand": {
            "Sales.in_stock": (True, False),
            "Sales.units": (True, False),
            "Sales.store": (True, True),
            "Promotions.day": (False, False),
        },
    }[project.name.split(".")[0]]
    for column, (label, rows) in followed.items():
        down = lineage(project, column, state=None)["downstream"]
        assert (down["label"], down["rows"]) == (label, rows), column
        assert down["datasets"] and down["models"], column
    until = lineage(project, "Merchants.valid_to", state=None) if "Merchants.valid_to" in followed else None
    assert until is None or "MerchantProfile.mcc" in until["downstream"]["features"]
    version = lineage(project, "v1", state=None)
    assert version.title.startswith(f"{version['node']} (") and {"label", "rows"} <= set(
        version["upstream"]["features"]
    )
    assert f"from {len(project.plan.columns)} features" in version.title


def test_training_sets_of_every_kind_are_reproduced_bit_by_bit(project: Project, tmp_path: Path) -> None:
    view = reproduce(project, "v1", to=str(tmp_path / "set.parquet"), state=None)
    assert view["same"] and view["rows"] > 0
    names = pq.read_table(tmp_path / "set.parquet").column_names
    assert ("_weight" in names) == (project.plan.sample is not None)
    assert "_label" in names


def test_a_rebuilt_store_reads_as_the_one_that_was_streamed(project: Project) -> None:
    with open_stores(project, None, clock=SystemClock(), write=False) as stores, stores.online.read() as snapshot:
        before = state_digest(snapshot, project.plan)
    assert rebuild_online(project, state=None, progress=Silent())["digest"] == before
    for group in project.plan.groups:
        filled = rebuild_online(project, group=group.definition.name, state=None, progress=Silent())
        assert filled["digest"] == before and filled["keys"] > 0


def test_rows_of_a_span_are_written_with_features_and_labels(project: Project) -> None:
    with open_stores(project, None, clock=SystemClock(), write=False) as stores:
        source = project.plan.sources[0]
        newest = max(stores.tables.read(f"reveals_{source.name.lower()}", columns=["_arrival"])["_arrival"].to_pylist())
    first, last = (Instant(newest - back * DAY).day() for back in (20, 10))
    view = materialize_range(project, first, last, state=None, progress=Silent())
    assert view["days"] == 10 and view["rows"] > 0
    with open_stores(project, None, clock=SystemClock(), write=False) as stores:
        table = stores.tables.read(view["table"])
    assert {"_day", "_at", "_label", *(c.name for c in project.plan.columns)} <= set(table.column_names)
    assert table.num_rows == view["rows"]


def test_a_key_of_rows_labels_and_features_is_erased(project: Project) -> None:
    column = {"fraud": "Transactions.card", "demand": "Sales.store"}[project.name.split(".")[0]]
    source = column.split(".")[0].lower()
    with open_stores(project, None, clock=SystemClock(), write=False) as stores:
        value = stores.tables.read(f"reveals_{source}", columns=[column.split(".")[1]])[0][0].as_py()
    view = erase(
        project, f"{column}={value}", source=None, group=None, why="asked for", yes=True, state=None, progress=Silent()
    )
    assert view["reveals"] > 0 and not view["left"]["records"]
    with open_stores(project, None, clock=SystemClock(), write=False) as stores:
        assert value not in stores.tables.read(f"reveals_{source}")[column.split(".")[1]].to_pylist()
