"""Bad rows wait in quarantine; a decision takes effect once, also when it is killed anywhere; verdicts and page show it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headrace.cli.template import write_project
from headrace.core.errors import DataError, UsageError
from headrace.core.time import SystemClock
from headrace.features.stream import DATABASE
from headrace.pipelines import quarantine
from headrace.pipelines.baselines import set_baseline, show_baseline
from headrace.pipelines.dead_letters import list_letters
from headrace.pipelines.materialize import rebuild_online
from headrace.pipelines.project import Project, load_project
from headrace.pipelines.quarantine import Selection, decide, list_quarantine, show_quarantined
from headrace.pipelines.run import _Run
from headrace.pipelines.stores import applied_key, open_stores
from headrace.pipelines.verdicts import list_checks, read_verdicts
from headrace.pipelines.view import Silent
from headrace.storage.tables import Tables
from headrace.web.checks import render_checks

ITEMS = "Orders.items <= 100"
WHOLESALE = ("o007101", "o007150", "o007190")  # of the last days, so that the online features keep them


def spoil(folder: Path) -> None:
    """Plant rows that break a rule, a row that cannot be read, and a value that is no number."""
    path = folder / "data" / "orders.csv"
    rows = list(csv.reader(path.open()))
    for row in rows:
        if row[0] in WHOLESALE:
            row[3] = "500"
    rows[300][2], rows[400][5], rows[700][5] = '<b>"no" shop</b>', "NaN", "abc"
    csv.writer(path.open("w", newline="")).writerows(rows)


def ingest(project: Project) -> int:
    """Ingest as `headrace run` does, without training; return how many reveals are accepted in all."""
    clock = SystemClock()
    with open_stores(project, None, clock=clock, write=True) as stores:
        _Run(project, stores, clock, 0, Silent()).ingest(project.plan.sources[0], 0, 1)
        return int(stores.tables.read("reveals_orders").num_rows)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    folder = tmp_path / "project"
    write_project(str(folder))
    spoil(folder)
    return load_project("orders:pipeline", folder=folder)


def waiting(project: Project) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = list_quarantine(project, "Orders", everything=False, limit=50, state=None)["rows"]
    return found


def letters(project: Project) -> list[str]:
    found = list_letters(project, None, status="open", limit=50, state=None)["letters"]
    return [letter["reason"] for letter in found]


def reveals(project: Project) -> list[dict[str, Any]]:
    with open_stores(project, None, clock=SystemClock(), write=False) as stores:
        rows: list[dict[str, Any]] = stores.tables.read("reveals_orders").to_pylist()
    return rows


def test_a_bad_row_waits_once_however_often_it_comes(project: Project) -> None:
    accepted = ingest(project)
    first = waiting(project)
    assert sorted(r for row in first for r in row["reasons"]) == [
        "Orders.hours is finite",
        *[ITEMS] * 3,
        "Orders.shop matches shop-[0-9]+",
    ]
    assert letters(project) == ["hours: expected float, got 'abc'"]
    assert ingest(project) == accepted
    assert (waiting(project), len(letters(project))) == (first, 1)


def test_released_rows_enter_once_with_the_arrival_they_had(project: Project) -> None:
    accepted = ingest(project)
    view = decide(project, "Orders", "release", Selection(check=ITEMS), why="wholesale", state=None)
    assert view["rows"] == 3
    entered = [r for r in reveals(project) if r["order_id"] in WHOLESALE and r["items"] == 500]
    assert sorted(r["order_id"] for r in entered) == sorted(WHOLESALE)
    assert all(r["_arrival"] == r["placed"] for r in entered)
    assert ingest(project) == accepted + 3
    told = list_quarantine(project, "Orders", everything=True, limit=50, state=None)["rows"]
    assert sorted(r["status"] for r in told) == ["open"] * 2 + ["released"] * 3
    assert {r["why"] for r in told if r["status"] == "released"} == {"wholesale"}
    with pytest.raises(UsageError, match="no open row of Orders is selected"):
        decide(project, "Orders", "release", Selection(check=ITEMS), why="again", state=None)


def test_dropped_rows_stay_out_and_are_not_asked_about_again(project: Project) -> None:
    accepted = ingest(project)
    decide(project, "Orders", "drop", Selection(everything=True), why="broken", state=None)
    assert (waiting(project), ingest(project)) == ([], accepted)
    with open_stores(project, None, clock=SystemClock(), write=False) as stores:
        (intent,) = stores.ledger.read(kinds=["quarantine.decided"])
        (done,) = stores.ledger.read(kinds=["quarantine.done"])
        assert stores.ledger.verify().ok
    assert (intent.body["why"], intent.body["rows"], done.body["intent"]) == ("broken", 5, intent.seq)


def test_a_value_that_is_no_number_is_released_as_it_was(project: Project) -> None:
    ingest(project)
    decide(project, "Orders", "release", Selection(check="Orders.hours is finite"), why="as it is", state=None)
    assert sum(r["hours"] is not None and r["hours"] != r["hours"] for r in reveals(project)) == 1


POINTS = [
    "quarantine.intent:kill",
    "tables.before_commit:kill:1",
    "ingest.stored:kill",
    "ingest.applied:kill",
    "tables.before_commit:kill:2",
    "quarantine.decided:kill",
]


def release(project: Project, failpoint: str) -> subprocess.CompletedProcess[bytes]:
    """Release the large orders in a process of its own."""
    return command(project, failpoint, "release", "--check", ITEMS)


def command(project: Project, failpoint: str, verb: str, *chosen: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "headrace.cli", "quarantine", verb, "Orders", *chosen, "--why", "because"],
        cwd=project.folder,
        env=os.environ | {"HEADRACE_FAILPOINTS": failpoint},
        capture_output=True,
        check=False,
    )


def online(project: Project) -> dict[bytes, bytes]:
    """Return the rows and lanes of the online features."""
    with open_stores(project, None, clock=SystemClock(), write=False) as stores, stores.online.read() as snapshot:
        return {key: value for key, value in snapshot.items(DATABASE) if key[:1] in b"LR"}


@pytest.mark.parametrize("online_first", [False, True])
@pytest.mark.parametrize("point", POINTS)
def test_a_killed_release_is_finished_by_the_next_run(project: Project, point: str, online_first: bool) -> None:
    accepted = ingest(project)
    before = fill_online(project) if online_first else {}
    done = release(project, point)
    assert done.returncode == -9, done.stderr
    assert ingest(project) == accepted + 3
    assert ingest(project) == accepted + 3
    told = list_quarantine(project, "Orders", everything=True, limit=50, state=None)["rows"]
    assert sum(r["status"] == "released" for r in told) == 3
    if online_first:
        found = online(project)
        rebuild_online(project, state=None, progress=Silent())
        assert found == online(project) != before


def fill_online(project: Project) -> dict[bytes, bytes]:
    """Apply what was accepted to the online state, as `headrace run` does before it trains."""
    with open_stores(project, None, clock=SystemClock(), write=True) as stores:
        work = _Run(project, stores, SystemClock(), 0, Silent())
        work.materialize([work.ingest(project.plan.sources[0], 0, 1)])
    return online(project)


def applied(project: Project) -> tuple[str, int]:
    """Return up to which version of the table the online state is whole, and the version at which the table is."""
    with open_stores(project, None, clock=SystemClock(), write=False) as stores:
        described = stores.tables.describe("reveals_orders")
        assert described is not None
        with stores.online.read() as snapshot:
            return (snapshot.get(DATABASE, applied_key("Orders")) or b"").decode(), described.version


def test_released_rows_are_online_at_once_and_a_run_need_not_apply_the_table_again(project: Project) -> None:
    ingest(project)
    before = fill_online(project)
    decide(project, "Orders", "release", Selection(check=ITEMS), why="wholesale", state=None)
    found, (noted, version) = online(project), applied(project)
    assert noted == str(version)
    rebuild_online(project, state=None, progress=Silent())
    assert found == online(project) != before


def test_rows_that_are_not_online_yet_are_not_noted_as_applied(project: Project) -> None:
    ingest(project)
    fill_online(project)
    before = applied(project)
    with (project.folder / "data" / "orders.csv").open("a") as file:
        file.write("x1,2024-04-30T01:00:00Z,shop-1,3,,\n")
    ingest(project)
    decide(project, "Orders", "release", Selection(check=ITEMS), why="wholesale", state=None)
    assert applied(project) == ("", before[1] + 2)  # unknown until the online state is brought up to the table
    assert not any(key.endswith(b"x1") for key in online(project))
    assert any(key.endswith(b"x1") for key in fill_online(project))


def test_a_killed_release_is_finished_also_after_the_class_gained_a_column(project: Project) -> None:
    accepted = ingest(project)
    fill_online(project)
    assert release(project, "quarantine.intent:kill").returncode == -9
    code = project.folder / "orders.py"
    code.write_text(
        code.read_text().replace("    checks =", "    note: hr.Column[str | None] = hr.column()\n\n    checks =")
    )
    changed = load_project("orders:pipeline", folder=project.folder)
    with open_stores(changed, None, clock=SystemClock(), write=True) as stores:
        _Run(changed, stores, SystemClock(), 0, Silent())
    assert len(reveals(changed)) == accepted + 3
    found = online(changed)
    rebuild_online(changed, state=None, progress=Silent())
    assert found == online(changed)


def test_a_row_that_comes_while_a_decision_is_made_waits_for_the_next(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server quarantines what comes from streams at any time."""
    ingest(project)
    choose, calls = quarantine._chosen, 0

    def chosen_then_another_comes(tables: Tables, *arguments: Any) -> pa.Table:
        nonlocal calls
        found, calls = choose(tables, *arguments), calls + 1
        if calls == 1:
            another = found.slice(0, 1).drop_columns(["id"]).append_column("id", pa.array(["f" * 64]))
            tables.append("quarantine", another)
        return found

    monkeypatch.setattr(quarantine, "_chosen", chosen_then_another_comes)
    assert decide(project, "Orders", "drop", Selection(everything=True), why="broken", state=None)["rows"] == 5
    assert [row["id"] for row in waiting(project)] == ["f" * 64]


@pytest.mark.parametrize("killed", ["", "quarantine.intent:kill", "ingest.stored:kill"])
def test_a_row_is_decided_about_once_also_by_two_at_once(
    project: Project, monkeypatch: pytest.MonkeyPatch, killed: str
) -> None:
    """Who comes second carries out what was decided meanwhile, if it was not, and decides about the rest."""
    ingest(project)
    fill_online(project)
    codes: list[int] = []

    def release_meanwhile(name: str) -> None:
        if name == "quarantine.chosen" and not codes:
            codes.append(release(project, killed).returncode)

    monkeypatch.setattr(quarantine, "reach", release_meanwhile)
    view = decide(project, "Orders", "drop", Selection(everything=True), why="late", state=None)
    assert codes == [-9 if killed else 0]
    assert view["rows"] == 2
    told = list_quarantine(project, "Orders", everything=True, limit=50, state=None)["rows"]
    assert sorted(r["status"] for r in told) == ["dropped"] * 2 + ["released"] * 3
    assert sorted(r["order_id"] for r in reveals(project) if r["items"] == 500) == sorted(WHOLESALE)
    with open_stores(project, None, clock=SystemClock(), write=False) as stores:
        intents = stores.ledger.read(kinds=["quarantine.decided"])
        assert [r.body["rows"] for r in intents] == [3, 2]
        assert [r.body["intent"] for r in stores.ledger.read(kinds=["quarantine.done"])] == [r.seq for r in intents]


def test_two_may_carry_out_one_decision_at_once(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    accepted = ingest(project)
    codes: list[int] = []

    def drop_meanwhile(name: str) -> None:
        if name == "quarantine.decided" and not codes:
            codes.append(command(project, "", "drop", "--everything").returncode)

    monkeypatch.setattr(quarantine, "reach", drop_meanwhile)
    assert decide(project, "Orders", "release", Selection(check=ITEMS), why="wholesale", state=None)["rows"] == 3
    assert codes == [0]
    assert len(reveals(project)) == accepted + 3
    told = list_quarantine(project, "Orders", everything=True, limit=50, state=None)["rows"]
    assert sorted(r["status"] for r in told) == ["dropped"] * 2 + ["released"] * 3
    with open_stores(project, None, clock=SystemClock(), write=False) as stores:
        assert len(stores.ledger.read(kinds=["quarantine.done"])) == 2


def test_one_row_is_shown_with_what_it_stated(project: Project) -> None:
    ingest(project)
    row = next(r for r in waiting(project) if r["reasons"] == ["Orders.shop matches shop-[0-9]+"])
    shown = show_quarantined(project, "Orders", row["id"][:9], state=None)
    assert shown["payload"]["shop"] == '<b>"no" shop</b>'
    with pytest.raises(UsageError, match="no such row"):
        show_quarantined(project, "Orders", "00000000", state=None)
    with pytest.raises(UsageError, match="no source Order"):
        show_quarantined(project, "Order", row["id"], state=None)


def test_verdicts_are_kept_and_listed_with_their_history(project: Project) -> None:
    ingest(project)
    set_baseline(project, "Orders", why="the first quarter", until="2024-04-01T00:00:00Z", state=None)
    more = [f"x{i},2024-04-30T0{i % 9}:10:00Z,shop-1,{3 + 200 * (i == 7)},," for i in range(30)]
    with (project.folder / "data" / "orders.csv").open("a") as file:
        file.write("\n".join(more) + "\n")
    ingest(project)
    (source,) = list_checks(project, "Orders", state=None)["sources"]
    assert [v["quarantined"] for v in source["verdicts"]] == [1, 6]
    items = next(c for c in source["checks"] if c["name"] == ITEMS)
    assert (items["status"], items["failing"], items["samples"]) == ("failed", 1, ["x7"])
    assert items["history"] == {"values": [3.0, 1.0], "statuses": ["failed", "failed"]}
    (found,) = read_verdicts(project, "Orders", state=None, limit=9)
    page = render_checks("orders", [found], at=0)
    assert "shop-1" in page and page.count("<figure>") == len(found.profiles) == 3
    assert len(page) < 1_000_000 and "http" not in page.split("</style>")[1]


def test_baselines_have_versions_and_reasons(project: Project) -> None:
    ingest(project)
    first = set_baseline(project, "Orders", why="first", until="2024-02-01T00:00:00Z", state=None)
    second = set_baseline(project, "Orders", why="second", state=None)
    assert (first["version"], second["version"], second["replaced"]) == (1, 2, first["digest"])
    assert first["columns"] == ["hours", "items", "shop"]
    shown = show_baseline(project, "Orders", state=None)
    assert [v["why"] for v in shown["versions"]] == ["second", "first"]
    assert shown["columns"]["items"]["profile"]["rows"] == second["rows"]
    with pytest.raises(DataError, match="no rows for a baseline"):
        set_baseline(project, "Orders", why="none", since="2030-01-01T00:00:00Z", state=None)


def test_the_verbs_answer_in_json(project: Project) -> None:
    ingest(project)
    for command in (["checks"], ["quarantine", "list", "Orders"], ["contract", "check", "Orders"]):
        done = subprocess.run(
            [sys.executable, "-m", "headrace.cli", *command, "--json"],
            cwd=project.folder,
            capture_output=True,
            check=True,
        )
        assert json.loads(done.stdout)
