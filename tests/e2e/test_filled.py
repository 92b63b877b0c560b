"""A fresh state is filled from the tables in bulk: the same state as event by event, also where that was cut off."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from headrace.core.errors import Conflict, DataError, Unavailable
from headrace.core.failpoints import VARIABLE, armed
from headrace.core.time import SystemClock
from headrace.features import bulk
from headrace.features.digest import state_digest
from headrace.features.stream import COVERED, DATABASE, StreamPath
from headrace.pipelines.materialize import MATERIALIZED, Materialized, Materializer, materialize, rebuild_online
from headrace.pipelines.project import Project, load_project
from headrace.pipelines.reveals import read_source, reveals_table
from headrace.pipelines.stores import CONTROL, REBUILD, WORK, Stores, applied_versions, open_stores
from headrace.pipelines.view import Silent
from headrace.sources.record import ARRIVAL
from headrace.storage.keyvalue import drop_rows


class Told:
    """Keep what is told of progress."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int, int, str]] = []

    def step(self, name: str, done: int, total: int, note: str = "") -> None:
        """Keep a step."""
        self.steps.append((name, done, total, note))


def loaded(folder: Path) -> Project:
    return load_project("orders:pipeline", folder=folder)


def emptied(folder: Path) -> Project:
    """Take everything from the online store, as if the project had only been ingested."""
    project = loaded(folder)
    with open_stores(project, None, clock=SystemClock(), write=True) as stores:
        drop_rows(stores.online, DATABASE)
    return project


def state_of(stores: Stores, project: Project) -> tuple[str, str, dict[str, int] | None, bytes | None]:
    with stores.online.read() as snapshot:
        get = snapshot.getter(DATABASE)
        versions = applied_versions(get, [source.name for source in project.plan.sources])
        return (
            stores.online.digest(DATABASE),
            state_digest(snapshot, project.plan),
            versions,
            snapshot.get(CONTROL, REBUILD),
        )


def filled(folder: Path) -> tuple[Any, ...]:
    """Return what the state is after a fill that nothing disturbed."""
    project = emptied(folder)
    materialize(project, groups=[], state=None, progress=Silent())
    with open_stores(project, None, clock=SystemClock(), write=False) as stores:
        return state_of(stores, project)


def in_buckets(folder: Path, rows: int) -> None:
    """Let the project look at so many reveals at a time."""
    file = folder / "headrace.toml"
    file.write_text(f"{file.read_text()}\n[engines]\nbucket_rows = {rows}\n")


def test_tables_larger_than_a_bucket_are_filled_bucket_by_bucket_to_the_same_bytes(shop: Path) -> None:
    whole = filled(shop)
    in_buckets(shop, 200)
    project, told = emptied(shop), Told()
    materialize(project, groups=[], state=None, progress=told)
    with open_stores(project, None, clock=SystemClock(), write=False) as stores:
        assert state_of(stores, project) == whole
        assert list((stores.state.path / WORK).iterdir()) == []
    events = [(done, total) for _, done, total, note in told.steps if note == "sorting events of Orders"]
    assert len(events) > 5 and events[-1] == (len(events), len(events))
    with open_stores(project, None, clock=SystemClock(), write=True) as stores:
        group = project.plan.groups[0]
        Materializer(project, stores, Silent()).refill(group)
    with open_stores(project, None, clock=SystemClock(), write=False) as stores:
        assert state_of(stores, project)[1:] == whole[1:]


def test_a_fresh_state_is_filled_as_event_by_event(shop: Path) -> None:
    project, told = emptied(shop), Told()
    with open_stores(project, None, clock=SystemClock(), write=True) as stores:
        work = Materializer(project, stores, Silent())
        with stores.online.write() as transaction:
            work.path.begin(transaction)
        for source in project.plan.sources:
            work.apply(source.name, 0, read_source(stores.tables, source).sort_by(ARRIVAL))
        with stores.online.write() as transaction:
            work.path.whole(transaction.access(DATABASE))
        with stores.online.read() as snapshot:
            wanted, newest = state_digest(snapshot, project.plan), work.newest()
            kept = {key for key, _ in snapshot.items(DATABASE, b"R")}
        drop_rows(stores.online, DATABASE)
        done = Materializer(project, stores, told).bring_up()
        described = {s.name: stores.tables.describe(reveals_table(s.name)) for s in project.plan.sources}
        total = sum(one.rows for one in described.values() if one is not None)
        names = tuple(group.definition.name for group in project.plan.groups)
        assert done == Materialized(total, done.keys, names, newest, total) and done.keys > 0
        _, digest, versions, mark = state_of(stores, project)
        assert (digest, mark) == (wanted, None)
        assert versions == {name: one.version for name, one in described.items() if one is not None}
        with stores.online.read() as snapshot:
            get = snapshot.getter(DATABASE)
            assert all(get(COVERED + bytes.fromhex(group.hash)) is not None for group in project.plan.groups)
            rows = {key for key, _ in snapshot.items(DATABASE, b"R")}
            assert rows and rows < kept  # those of the first weeks are over
            assert StreamPath.newest(get) == newest
        record = next(iter(stores.ledger.read(kinds=[MATERIALIZED], subject=project.name, newest_first=True)))
        assert (record.body["reveals"], record.body["rows"], record.body["filled"]) == (total, total, list(names))
        assert Materializer(project, stores, Silent()).bring_up() == Materialized(0, 0, (), newest, 0)
    assert {name for name, *_ in told.steps} == {"online features"}
    assert all(0 <= done <= total for _, done, total, _ in told.steps) and told.steps[-1][1] == told.steps[-1][2]


@pytest.mark.parametrize("effect", ["keyvalue.before_commit", "keyvalue.after_commit"])
@pytest.mark.parametrize("rows", [1_000, 2_000_000])
def test_a_first_fill_that_is_cut_off_anywhere_goes_on_to_the_same_bytes(
    shop: Path, effect: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_buckets(shop, rows)
    monkeypatch.setattr(bulk, "REVEALS_AT_ONCE", 500)
    whole, project, cut_off = filled(shop), loaded(shop), 0
    for hit in range(1, 100):
        emptied(shop)
        try:
            with armed(f"{effect}:raise:{hit}"):
                materialize(project, groups=[], state=None, progress=Silent())
            break
        except Unavailable:
            cut_off += 1
        go_on = rebuild_online if hit % 2 else materialize
        given: dict[str, Any] = {"group": None} if hit % 2 else {"groups": []}
        go_on(project, state=None, progress=Silent(), **given)
        with open_stores(project, None, clock=SystemClock(), write=False) as stores:
            assert state_of(stores, project) == whole
    assert cut_off > 10


@pytest.mark.parametrize("point", ["before_commit:kill:2", "after_commit:kill:3", "before_commit:kill:5"])
def test_a_process_that_dies_in_its_first_fill_leaves_what_the_next_one_finishes(shop: Path, point: str) -> None:
    in_buckets(shop, 1_000)
    whole, project = filled(shop), emptied(shop)
    command, environment = (
        [sys.executable, "-m", "headrace.cli", "backfill"],
        {**os.environ, VARIABLE: f"keyvalue.{point}"},
    )
    killed = subprocess.run([*command, "--json"], cwd=shop, env=environment, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with open_stores(project, None, clock=SystemClock(), write=False) as stores:
        assert state_of(stores, project) != whole
    done = subprocess.run(command, cwd=shop, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    with open_stores(project, None, clock=SystemClock(), write=False) as stores:
        assert state_of(stores, project) == whole


def test_groups_that_were_filled_whole_are_not_filled_again_unless_the_tables_changed(shop: Path) -> None:
    project = emptied(shop)
    with open_stores(project, None, clock=SystemClock(), write=True) as stores:
        work = Materializer(project, stores, Silent())
        way = work._begun()
        done = project.plan.groups[0]
        filled_one = {**way, "groups": [done.hash]}
        with stores.online.write() as transaction:
            transaction.put(CONTROL, REBUILD, orjson.dumps(filled_one))
        assert done.definition.name not in work.bring_up().filled
        with stores.online.write() as transaction:
            older = {name: version - 1 for name, version in way["versions"].items()}
            transaction.put(CONTROL, REBUILD, orjson.dumps({**filled_one, "versions": older}))
        assert done.definition.name in work.bring_up().filled


def test_of_two_processes_that_fill_one_store_one_gives_way(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = emptied(shop)
    with open_stores(project, None, clock=SystemClock(), write=True) as stores:
        work, other = (Materializer(project, stores, Silent()) for _ in range(2))
        monkeypatch.setattr(work.progress, "step", lambda *_: other._begun() and other.rebuild())
        with pytest.raises(Conflict, match="another process fills") as caught:
            work.bring_up()
        assert "run this again" in str(caught.value.next_step)
        found = state_of(stores, project)
    assert found == filled(shop)


def test_a_source_without_a_table_leaves_the_store_as_it_is(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = loaded(shop)
    with open_stores(project, None, clock=SystemClock(), write=True) as stores:
        before, work = state_of(stores, project), Materializer(project, stores, Silent())
        monkeypatch.setattr(stores.tables, "describe", lambda name: None)
        with pytest.raises(DataError, match="has no rows yet"):
            work.rebuild()
        assert state_of(stores, project) == before
