"""A training set is built again from what was recorded of it, also after more data, corrections and compaction."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from headrace.core.errors import DataError, GateRefused, Refused, UsageError
from headrace.core.settings import OfflineSettings
from headrace.core.time import DAY, Instant, VirtualClock
from headrace.pipelines.compact import compact
from headrace.pipelines.project import Project, load_project
from headrace.pipelines.reproduce import reproduce
from headrace.pipelines.run import run
from headrace.pipelines.stores import open_stores
from headrace.pipelines.view import Silent

NOW = Instant.parse("2024-05-02T12:00:00Z")


def loaded(folder: Path) -> Project:
    return load_project("orders:pipeline", folder=folder)


def more(folder: Path, number: int) -> None:
    """Let history change: orders that nobody had heard of, with moments long past."""
    with (folder / "data" / "orders.csv").open("a") as file:
        for i in range(50):
            placed = Instant(NOW - 40 * DAY + i).isoformat()
            file.write(f"l{number}-{i},{placed},shop-{i % 3},5,{placed},{i}.5\n")
    with suppress(GateRefused):
        run(loaded(folder), state=None, seed=1, progress=Silent(), clock=VirtualClock(NOW))


def files(folder: Path) -> int:
    return len(list((folder / ".headrace" / "tables" / "reveals_orders").glob("*.parquet")))


def test_a_training_set_is_the_same_after_late_data_and_compaction(shop: Path, tmp_path: Path) -> None:
    for number in range(2):
        more(shop, number)
    project = loaded(shop)
    written = tmp_path / "set.parquet"
    first = reproduce(project, "v1", to=str(written), state=None)
    assert first["same"] and first["tables"] == {"Orders": 1}
    assert pq.read_table(written).num_rows == first["rows"]
    assert reproduce(project, "v2", to=None, state=None)["tables"] == {"Orders": 2}
    before = files(shop)
    view = compact(project, state=None, progress=Silent())
    assert files(shop) == before + 1 and view["tables"][0]["files removed"] == 0
    for version in ("v1", "v2"):
        assert reproduce(project, version, to=None, state=None)["same"]
    with open_stores(project, None, clock=VirtualClock(NOW), write=False) as stores:
        runs = len(stores.ledger.read(kinds=["run.finished"]))
    again = compact(project, state=None, progress=Silent())
    assert files(shop) == before + 1 and again["tables"][0]["files removed"] == 0  # nothing new, nothing written
    more_view = run(loaded(shop), state=None, seed=1, progress=Silent(), clock=VirtualClock(NOW))
    assert "nothing new" in more_view.notes[0]  # the same rows under another version are no new data
    with open_stores(project, None, clock=VirtualClock(NOW), write=False) as stores:
        assert len(stores.ledger.read(kinds=["run.finished"])) == runs


def test_past_retention_a_set_is_refused_and_never_built_from_other_rows(shop: Path) -> None:
    more(shop, 0)
    settings = loaded(shop).settings.model_copy(update={"offline": OfflineSettings(retention=1)})
    project = replace(loaded(shop), settings=settings)
    removed = compact(project, state=None, progress=Silent())["tables"][0]["files removed"]
    assert removed >= 2 and files(shop) == 1
    with pytest.raises(DataError, match="no such version") as gone:
        reproduce(project, "v1", to=None, state=None)
    assert "[offline] retention" in str(gone.value)


def test_another_definition_is_refused(shop: Path) -> None:
    file = shop / "orders.py"
    file.write_text(file.read_text().replace('mature="4d"', 'mature="5d"'))
    with pytest.raises(Refused, match="another definition") as refused:
        reproduce(loaded(shop), "v1", to=None, state=None)
    assert "headrace lineage" in str(refused.value)
    with pytest.raises(UsageError, match="Parquet"):
        reproduce(loaded(shop), "v1", to="set.csv", state=None)


def test_changed_bytes_are_another_set(shop: Path) -> None:
    project = loaded(shop)
    with open_stores(project, None, clock=VirtualClock(NOW), write=True) as stores:
        body = dict(stores.ledger.read(kinds=["version"])[0].body)
    assert len(body["data"]["content"]) == 64
    table = shop / ".headrace" / "tables" / "reveals_orders"
    (data,) = table.glob("*.parquet")
    found = pq.read_table(data)
    place = found.column_names.index("hours")
    pq.write_table(found.set_column(place, "hours", pc.add(found["hours"], 1e-9)), data)
    view = reproduce(project, "v1", to=None, state=None)
    assert not view["same"] and "ANOTHER ONE" in view.title
