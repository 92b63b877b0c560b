"""Dead letters: kept as received, shown without what is private, ingested once after a fix, given up with a reason."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headrace.core.errors import SchemaConflict, UsageError
from headrace.core.time import HOUR, Instant, VirtualClock
from headrace.features.stream import DATABASE, StreamPath
from headrace.pipelines.dead_letters import drop_letters, list_letters, refused_anew, replay_letters, show_letter
from headrace.pipelines.doctor import examine
from headrace.pipelines.feed import Feed, open_project_streams
from headrace.pipelines.gatekeeper import Gatekeeper
from headrace.pipelines.plan import describe_plan
from headrace.pipelines.project import Project, load_project
from headrace.pipelines.stores import Stores, open_stores
from headrace.sources.batch import load
from headrace.sources.letters import letters_table
from tests.online import applied_digest

FILE = Path(__file__).parents[1] / "faults" / "orders.py"
NOON = Instant.parse("2026-01-01T12:00:00Z")
BAD = [b"not JSON", b'{"order_id": "b", "placed": "2026-01-01T10:00:00Z", "shop": "shop-1", "items": "2"}']
GOOD = b'{"order_id": "a", "placed": "2026-01-01T11:00:00Z", "shop": "shop-1", "items": 2}'
LOCAL = b'{"order_id": "c", "placed": "2026-01-01T10:30:00", "shop": "shop-1", "items": 3}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a project whose stream holds two good events, one in local time, and two that cannot be read."""
    (tmp_path / "orders.py").write_text(FILE.read_text())
    project = load_project("orders:pipeline", folder=tmp_path)
    feed(project, [GOOD, LOCAL, *BAD, GOOD.replace(b'"a"', b'"d"')])
    return tmp_path


def feed(project: Project, events: list[bytes]) -> None:
    clock = VirtualClock(NOON)
    with open_stores(project, None, clock=clock, write=True) as stores:
        path = StreamPath([project.plan])
        with stores.online.write() as transaction:
            path.begin(transaction)
        with open_project_streams(project, stores, clock) as streams:
            if events:
                streams.append("Orders", events)
            gatekeeper = Gatekeeper(project, stores.ledger, stores.tables, streaming=True)
            feed = Feed(project, stores, streams, clock, sources=project.plan.sources, gatekeeper=gatekeeper, path=path)
            feed.drain(lambda _: None)


def settings(folder: Path, text: str) -> Project:
    (folder / "headrace.toml").write_text(text)
    return load_project("orders:pipeline", folder=folder)


def later() -> VirtualClock:
    return VirtualClock(Instant(NOON + 5 * HOUR))


def state_of(project: Project) -> tuple[str, int, list[str], int]:
    with open_stores(project, None, clock=later(), write=False) as stores:
        return (
            applied_digest(stores.online),
            stores.tables.read("reveals_orders").num_rows,
            sorted(stores.tables.read("dead_letters_orders")["status"].to_pylist()),
            newest(stores),
        )


def newest(stores: Stores) -> int:
    with stores.online.read() as snapshot:
        return StreamPath.newest(snapshot.getter(DATABASE)) or 0


def test_letters_are_listed_with_place_and_reason_and_shown_with_their_payload(folder: Path) -> None:
    project = load_project("orders:pipeline", folder=folder)
    view = list_letters(project, None, status="open", limit=2, state=None)
    assert (view["total"], len(view["letters"])) == (3, 2)
    assert view["letters"][0]["place"] == "stream Orders, partition 0, position 1"
    assert view["letters"][0]["reason"].startswith("placed: expected instant")
    assert view["letters"][0]["arrival"] == "2026-01-01T12:00:00Z"
    shown = show_letter(project, view["letters"][0]["id"], payload=False, state=None)
    assert shown["payload"] == LOCAL.decode()
    with pytest.raises(UsageError, match="no such dead letter"):
        show_letter(project, "absent", payload=False, state=None)
    with pytest.raises(UsageError, match="no such source"):
        list_letters(project, "Order", status="open", limit=2, state=None)
    with pytest.raises(UsageError, match="no such status"):
        list_letters(project, None, status="opened", limit=2, state=None)


def test_a_private_payload_is_kept_and_shown_only_when_asked_for_and_that_is_recorded(folder: Path) -> None:
    file = folder / "orders.py"
    file.write_text(file.read_text().replace('hr.entity(matches=r"shop-[0-9]+")', "hr.entity(pii=True)"))
    project = load_project("orders:pipeline", folder=folder)
    view = list_letters(project, None, status="open", limit=9, state=None)
    assert "shop-1" not in json.dumps(view.data)
    identity = view["letters"][0]["id"]
    assert "shop-1" not in json.dumps(show_letter(project, identity, payload=False, state=None).data)
    assert "shop-1" in show_letter(project, identity, payload=True, state=None)["payload"]
    with open_stores(project, None, clock=later(), write=False) as stores:
        assert [r.subject for r in stores.ledger.read(kinds=["dead_letters.shown"])] == [identity]


def test_after_a_fix_letters_become_events_with_their_own_arrival_and_the_others_stay(folder: Path) -> None:
    broken = load_project("orders:pipeline", folder=folder)
    before = state_of(broken)
    assert before[1:3] == (2, ["open"] * 3)
    fixed = settings(folder, '[sources.Orders]\nzone = "UTC"\n')
    view = replay_letters(fixed, None, [], state=None, clock=later())
    assert [(one["replayed"], one["left"]) for one in view["sources"]] == [(1, 2)]
    after = state_of(fixed)
    assert after[1:] == (3, ["open", "open", "replayed"], NOON)
    with open_stores(fixed, None, clock=later(), write=False) as stores:
        rows = stores.tables.read("reveals_orders").to_pylist()
        assert [r["_arrival"] for r in rows if r["order_id"] == "c"] == [NOON]
        (record,) = stores.ledger.read(kinds=["dead_letters.replayed"])
        assert (record.subject, record.body["letters"], record.body["left"]) == ("Orders", 1, 2)
    assert replay_letters(fixed, "Orders", [], state=None, clock=later())["sources"][0]["replayed"] == 0
    assert state_of(fixed) == after


def test_the_online_state_is_that_of_a_stream_that_was_right_from_the_start(folder: Path, tmp_path: Path) -> None:
    fixed = settings(folder, '[sources.Orders]\nzone = "UTC"\n')
    replay_letters(fixed, None, [], state=None, clock=later())
    other = tmp_path / "right"
    other.mkdir()
    (other / "orders.py").write_text(FILE.read_text())
    right = settings(other, '[sources.Orders]\nzone = "UTC"\n')
    feed(right, [GOOD, *BAD, GOOD.replace(b'"a"', b'"d"'), LOCAL])
    assert state_of(fixed)[0] == state_of(right)[0]


@pytest.mark.parametrize("step", ["ingest.stored", "ingest.applied", "letters.recorded"])
def test_a_replay_that_is_killed_ingests_each_letter_once_when_it_is_run_again(folder: Path, step: str) -> None:
    fixed = settings(folder, '[sources.Orders]\nzone = "UTC"\n')
    command = [sys.executable, "-m", "headrace.cli", "dead-letters", "replay", "orders:pipeline", "--json"]
    environment = {**os.environ, "HEADRACE_FAILPOINTS": f"{step}:kill"}
    killed = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    view = replay_letters(fixed, None, [], state=None, clock=later())
    assert view["sources"][0]["replayed"] == 1
    assert state_of(fixed)[1:] == (3, ["open", "open", "replayed"], NOON)


def test_letters_are_not_ingested_into_rows_of_other_columns(folder: Path) -> None:
    changed = (
        (folder / "orders.py")
        .read_text()
        .replace("hr.Column[int] = hr.column(ge=1, le=100)", "hr.Column[str] = hr.column()")
    )
    (folder / "orders.py").write_text(changed)
    project = load_project("orders:pipeline", folder=folder)
    before = state_of(project)
    with pytest.raises(SchemaConflict, match="was stored otherwise than it is declared now"):
        replay_letters(project, None, [], state=None, clock=later())
    assert state_of(project) == before


def test_doctor_and_plan_say_how_far_streams_were_read(folder: Path) -> None:
    project = load_project("orders:pipeline", folder=folder)
    (check,) = [
        c for c in examine(f"{folder}/orders.py", state=str(folder / ".headrace"))["checks"] if c["check"] == "streams"
    ]
    assert check["found"] == "Orders: 0 events behind, 3 open dead letters"
    with (
        open_stores(project, None, clock=later(), write=True) as stores,
        open_project_streams(project, stores, later()) as streams,
    ):
        streams.append("Orders", [GOOD] * 3)
    (check,) = [
        c for c in examine(f"{folder}/orders.py", state=str(folder / ".headrace"))["checks"] if c["check"] == "streams"
    ]
    assert check["found"].startswith("Orders: 3 events behind")
    assert describe_plan(project)["streams"] == [
        {"source": "Orders", "stream": "Orders", "codec": "json", "late": "any older event"}
    ]


def test_the_good_rows_of_a_batch_that_is_stopped_are_kept_aside(folder: Path) -> None:
    """A file would be delivered again; a stream's events come once."""
    project = load_project("orders:pipeline", folder=folder)
    broken = [GOOD.replace(b'"a"', b'"z%d"' % n).replace(b'"items": 2', b'"items": 0') for n in range(3)]
    feed(project, [*broken, GOOD.replace(b'"a"', b'"kept"')])
    with open_stores(project, None, clock=later(), write=False) as stores:
        rows = stores.tables.read("quarantine").to_pylist()
        assert "kept" not in stores.tables.read("reveals_orders")["order_id"].to_pylist()
    assert [json.loads(r["payload"])["order_id"] for r in rows if r["reason"].startswith("its batch was stopped")] == [
        "kept"
    ]
    assert len(rows) == 4


def test_letters_are_dropped_by_id_or_source_with_a_reason(folder: Path) -> None:
    project = load_project("orders:pipeline", folder=folder)
    first, *_ = list_letters(project, None, status="open", limit=9, state=None)["letters"]
    with pytest.raises(UsageError, match="which dead letters"):
        drop_letters(project, None, [], why="x", state=None)
    assert drop_letters(project, None, [first["id"]], why="a test", state=None, clock=later())["dropped"] == 1
    assert list_letters(project, None, status="dropped", limit=9, state=None)["letters"][0]["why"] == "a test"
    assert drop_letters(project, "Orders", [], why="all of them", state=None)["dropped"] == 2
    assert drop_letters(project, "Orders", [], why="again", state=None)["dropped"] == 0
    with open_stores(project, None, clock=later(), write=False) as stores:
        records = stores.ledger.read(kinds=["dead_letters.dropped"])
        assert [(r.body["letters"], r.body["why"]) for r in records] == [(1, "a test"), (2, "all of them")]


def test_rows_of_files_are_letters_once_and_can_be_replayed(folder: Path) -> None:
    (folder / "orders.csv").write_text(
        "order_id,placed,shop,items,delivered,hours\n"
        "e,2026-01-01T09:00:00Z,shop-2,5,2026-01-01T19:00:00Z,NA\n"
        "f,2026-01-01T09:00:00Z,shop-2,3,,\n"
        "g,2026-01-01T09:00:00Z,shop-2,4,2026-01-01T20:00:00Z,11\n"
    )
    project = settings(folder, '[sources.Orders]\npath = "orders.csv"\n')
    (source,) = project.plan.sources
    with open_stores(project, None, clock=later(), write=True) as stores:
        refused = load(source, project.settings, project.folder).refused
        fresh, letters_found = refused_anew(stores.tables, source, refused, now=NOON)
        assert fresh.num_rows == letters_found.num_rows == 1
        stores.tables.append(letters_table(source.name), letters_found)
        assert [t.num_rows for t in refused_anew(stores.tables, source, refused, now=NOON)] == [0, 0]
    letters: list[dict[str, Any]] = list_letters(project, None, status="open", limit=9, state=None)["letters"]
    (row,) = [letter for letter in letters if letter["format"] == "cells"]
    assert row["place"].endswith("orders.csv, row 1")
    fixed = settings(folder, '[sources.Orders]\npath = "orders.csv"\nnulls = ["", "NA"]\n')
    replay_letters(fixed, None, [row["id"]], state=None, clock=later())
    with open_stores(fixed, None, clock=later(), write=False) as stores:
        rows = [r for r in stores.tables.read("reveals_orders").to_pylist() if r["order_id"] == "e"]
    assert sorted(Instant(r["_arrival"]).isoformat() for r in rows) == ["2026-01-01T09:00:00Z", "2026-01-01T19:00:00Z"]
    assert [r["hours"] for r in rows] == [None, None]
