"""The online store is a function of the tables: killed, damaged, emptied or filled late, it ends in the same state."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from headrace.core.errors import ConfigurationError, Corrupt, GateRefused, Unavailable, UsageError
from headrace.core.failpoints import armed
from headrace.core.time import DAY, Instant, SystemClock, VirtualClock
from headrace.features.digest import state_digest
from headrace.features.stream import DATABASE
from headrace.pipelines.materialize import Materializer, materialize, rebuild_online
from headrace.pipelines.project import Project, load_project
from headrace.pipelines.reveals import reveals_table
from headrace.pipelines.run import run
from headrace.pipelines.serve import PipelineService
from headrace.pipelines.stores import applied_floor, applied_versions, open_stores
from headrace.pipelines.up import Controller
from headrace.pipelines.view import Silent
from headrace.storage.streams import open_streams
from headrace.storage.tables.protocol import Description

HEADRACE = [sys.executable, "-m", "headrace.cli"]
NOW = Instant.parse("2024-05-02T12:00:00Z")


@pytest.fixture
def folder(shop: Path) -> Path:
    return shop


def loaded(folder: Path) -> Project:
    return load_project("orders:pipeline", folder=folder)


def digests(folder: Path) -> tuple[str, str]:
    """Return the digest of the online store's bytes, and of what reads see of them."""
    project = loaded(folder)
    with open_stores(project, None, clock=SystemClock(), write=False) as stores, stores.online.read() as snapshot:
        return stores.online.digest(DATABASE), state_digest(snapshot, project.plan)


def headrace(folder: Path, *words: str, failpoints: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HEADRACE_FAILPOINTS": failpoints}
    return subprocess.run(
        [*HEADRACE, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def add_orders(folder: Path, number: int) -> None:
    """Add orders, some of which arrived before the newest that is known."""
    rng = random.Random(number)
    with (folder / "data" / "orders.csv").open("a", newline="") as file:
        for i in range(number):
            placed = Instant(Instant.parse("2024-04-25") + rng.randrange(7 * DAY))
            delivered = Instant(placed + rng.randrange(DAY))
            cells = [placed.isoformat(), f"shop-{rng.randrange(20)}", 3, delivered.isoformat(), rng.uniform(1, 40)]
            csv.writer(file).writerow([f"n{i}", *cells])


def refused_to_serve(project: Project) -> bool:
    with open_stores(project, None, clock=SystemClock(), write=True) as stores:
        try:
            PipelineService(project, stores, SystemClock()).log.close()
        except ConfigurationError as error:
            return "headrace online rebuild" in str(error)
    return False


@pytest.mark.parametrize("effect", ["keyvalue.before_commit", "keyvalue.after_commit"])
def test_a_rebuild_that_is_cut_off_anywhere_goes_on_and_ends_in_the_same_bytes(folder: Path, effect: str) -> None:
    before, project, cut_off = digests(folder), loaded(folder), 0
    for hit in range(1, 12):
        with suppress(Unavailable), armed(f"{effect}:raise:{hit}"):
            rebuild_online(project, state=None, progress=Silent())
            break
        cut_off += refused_to_serve(project)
        if hit % 2:
            rebuild_online(project, state=None, progress=Silent())
            assert digests(folder) == before
    assert cut_off >= 3
    assert digests(folder) == before


def test_a_killed_rebuild_is_finished_by_whatever_comes_next(folder: Path) -> None:
    before = digests(folder)
    killed = headrace(folder, "online", "rebuild", failpoints="rebuild.emptying:kill")
    assert killed.returncode == -9, killed.stderr
    assert refused_to_serve(loaded(folder))
    done = headrace(folder, "backfill", "--json")
    assert json.loads(done.stdout)["digest"] == before[1], done.stderr
    assert digests(folder) == before


def test_a_killed_materialization_run_again_gives_the_same_state(folder: Path) -> None:
    add_orders(folder, 300)
    project, expected = loaded(folder), shutil.copytree(folder, folder.parent / "undisturbed")
    with suppress(GateRefused):
        run(loaded(expected), state=None, seed=1, progress=Silent())
    killed = headrace(folder, "run", failpoints="keyvalue.before_commit:kill:3")
    assert killed.returncode == -9, killed.stderr
    for point in ("keyvalue.after_commit:raise:1", "keyvalue.before_commit:raise:2", "keyvalue.after_commit:raise:3"):
        with pytest.raises(Unavailable), armed(point):
            materialize(project, groups=[], state=None, progress=Silent())
    materialize(project, groups=[], state=None, progress=Silent())
    assert digests(folder)[1] == digests(expected)[1]


def damage(folder: Path, kind: str) -> None:
    file = folder / ".headrace" / "online" / "data.mdb"
    content = bytearray(file.read_bytes())
    if kind == "truncated":
        content = content[: len(content) // 2]
    elif kind == "no store":
        content = bytearray(b"nothing of the kind" * 1_000)
    else:
        for page in range(2, len(content) // 4096, 3):
            content[4096 * page + 8 : 4096 * page + 40] = b"\xa5" * 32
    file.write_bytes(content)


@pytest.mark.parametrize("kind", ["flipped", "truncated", "no store"])
def test_a_damaged_store_is_a_typed_error_and_is_rebuilt_to_the_same_state(folder: Path, kind: str) -> None:
    before, project = digests(folder), loaded(folder)
    damage(folder, kind)
    with pytest.raises(Corrupt) as caught, open_stores(project, None, clock=SystemClock(), write=True):
        pass
    assert caught.value.next_step == "headrace online rebuild"
    view = rebuild_online(project, state=None, progress=Silent())
    assert "damaged" in view["damaged"] and any("replaced" in note for note in view.notes)
    assert digests(folder) == before
    with open_stores(project, None, clock=VirtualClock(NOW), write=True) as stores:
        PipelineService(project, stores, VirtualClock(NOW)).log.close()


def test_streaming_rebuilding_and_filling_one_group_give_the_same_state(folder: Path) -> None:
    """Events come in micro-batches, late ones and corrections too, with housekeeping in between."""
    project, clock, rng = loaded(folder), VirtualClock(NOW), random.Random(3)
    with (
        open_stores(project, None, clock=clock, write=True) as stores,
        open_streams(stores.state.url("streams"), clock=clock) as streams,
    ):
        service = PipelineService(project, stores, clock)
        controller = Controller(service, streams, seed=0)
        controller.loop.state = controller.loop.state.__class__(labelled_until=NOW, daily=NOW + 400 * DAY)
        for _ in range(12):
            clock.advance_to(Instant(clock.now() + DAY // 3))
            for number in rng.choices(range(40), k=8):
                placed = Instant(NOW + rng.randrange(3 * DAY)).isoformat()
                event = {"order_id": f"s{number}", "placed": placed, "shop": f"shop-{number % 3}", "items": 2}
                event |= {"delivered": placed, "hours": round(rng.uniform(1, 50), 2)}
                streams.append("Orders", [str(event).replace("'", '"').encode()])
            controller.tick()
        controller.keep()
        service.log.close()
    streamed = digests(folder)[1]
    rebuilt = rebuild_online(project, state=None, progress=Silent())
    assert rebuilt["digest"] == streamed
    filled = rebuild_online(project, group="Shop", state=None, progress=Silent())
    assert (filled["digest"], filled["groups"], filled["reveals"]) == (streamed, ["Shop"], 0)
    again = materialize(project, groups=[], state=None, progress=Silent())
    assert (again["digest"], again["reveals"], again["keys"]) == (streamed, 0, 0)
    with pytest.raises(UsageError, match="no such feature group") as unknown:
        rebuild_online(project, group="Shops", state=None, progress=Silent())
    assert "did you mean Shop?" in str(unknown.value)


def test_only_what_came_since_all_was_applied_is_applied_also_after_a_kill(folder: Path) -> None:
    settings = folder / "headrace.toml"
    settings.write_text(
        settings.read_text() + "\n[limits]\ndelivery_rows = 100\n"
    )  # too few to keep what is new in hand
    before = described(folder)
    add_orders(folder, 400)
    killed = headrace(folder, "run", failpoints="keyvalue.before_commit:kill:4")
    assert killed.returncode == -9, killed.stderr
    stored, project = described(folder), loaded(folder)
    with open_stores(project, None, clock=SystemClock(), write=True) as stores:
        with stores.online.read() as snapshot:
            get = snapshot.getter(DATABASE)
            assert applied_versions(get, ["Orders"]) is None
            assert applied_floor(get, "Orders") == before.version
        assert Materializer(project, stores, Silent()).bring_up().reveals == stored.rows - before.rows > 300
        with stores.online.read() as snapshot:
            assert applied_versions(snapshot.getter(DATABASE), ["Orders"]) == {"Orders": stored.version}
    found = digests(folder)[1]
    rebuild_online(project, state=None, progress=Silent())
    assert digests(folder)[1] == found


def described(folder: Path) -> Description:
    with open_stores(loaded(folder), None, clock=SystemClock(), write=False) as stores:
        found = stores.tables.describe(reveals_table("Orders"))
    assert found is not None
    return found
