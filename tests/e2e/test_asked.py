"""Commands that compute features from history read no column that these do not ask for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headrace.core.time import Instant, VirtualClock
from headrace.pipelines.explain import explain_feature
from headrace.pipelines.materialize import Materializer
from headrace.pipelines.predict import predict
from headrace.pipelines.project import Project, load_project
from headrace.pipelines.reproduce import reproduce
from headrace.pipelines.reveals import APART, reveals_table
from headrace.pipelines.stores import open_stores
from headrace.pipelines.view import Silent
from headrace.storage.tables import Pinned
from headrace.storage.tables.delta import DeltaTables

NOW = Instant.parse("2024-05-02T12:00:00Z")
CLOCK = VirtualClock(NOW)


def predicted(project: Project, folder: Path) -> None:
    row = {"order_id": "new", "placed": NOW.isoformat(), "shop": "shop-1", "items": 4}
    (folder / "rows.jsonl").write_text(json.dumps(row))
    options: dict[str, Any] = {"to": None, "version": None, "as_of": NOW.isoformat(), "clock": CLOCK}
    predict(project, str(folder / "rows.jsonl"), state=None, progress=Silent(), **options)


def refilled(project: Project, folder: Path) -> None:
    with open_stores(project, None, clock=CLOCK, write=True) as stores:
        Materializer(project, stores, Silent()).refill(project.plan.groups[0])


def explained(project: Project, folder: Path) -> None:
    explain_feature(project, "Shop.hours", "shop-1", NOW.isoformat(), state=None)


def rebuilt(project: Project, folder: Path) -> None:
    assert reproduce(project, "orders/v1", to=None, state=None).data["same"]


COMMANDS: dict[Callable[[Project, Path], None], bool] = {
    predicted: False,
    refilled: False,
    explained: False,
    rebuilt: True,
}


@pytest.mark.parametrize(("bucket_rows", "apart"), [(500, APART), (2_000_000, APART), (2_000_000, 0)])
@pytest.mark.parametrize("command", COMMANDS)
def test_an_id_column_is_read_only_where_rows_are_part_of_the_result(
    shop: Path, command: Callable[[Project, Path], None], bucket_rows: int, apart: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, seen = shop / "headrace.toml", set[str]()
    settings.write_text(f"{settings.read_text()}\n[engines]\nbucket_rows = {bucket_rows}\n")
    read, scan, pin, table = DeltaTables.read, DeltaTables.scan, DeltaTables.pin, reveals_table("Orders")

    def watched_read(self: DeltaTables, name: str, **asked: Any) -> pa.Table:
        found = read(self, name, **asked)
        seen.update(found.column_names if name == table else [])
        return found

    def watched_scan(self: DeltaTables, name: str, **asked: Any) -> Iterator[pa.Table]:
        for piece in scan(self, name, **asked):
            seen.update(piece.column_names if name == table else [])
            yield piece

    def watched_pin(self: DeltaTables, name: str, **asked: Any) -> Pinned:
        found = pin(self, name, **asked)

        def watched(names: Sequence[str]) -> pa.Table:
            seen.update(names if name == table else [])
            return found.read(names)

        return replace(found, read=watched)

    monkeypatch.setattr("headrace.pipelines.reveals.APART", apart)
    monkeypatch.setattr(DeltaTables, "pin", watched_pin)
    monkeypatch.setattr(DeltaTables, "read", watched_read)
    monkeypatch.setattr(DeltaTables, "scan", watched_scan)
    command(load_project("orders:pipeline", folder=shop), shop)
    assert seen >= {"_row_id", "_arrival", "_stated", "shop", "hours", "placed", "delivered"}
    assert ("order_id" in seen) == COMMANDS[command]
