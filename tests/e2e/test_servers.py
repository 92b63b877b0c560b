"""A project whose online state lives on a server: run, answer, replay and recover as on LMDB, bit for bit."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headrace.cli.template import write_project
from headrace.core.errors import ConfigurationError
from headrace.core.time import Instant, SystemClock, VirtualClock
from headrace.pipelines.operate import rebuild_online
from headrace.pipelines.project import Project, load_project
from headrace.pipelines.replay import ReplayPlan, replay
from headrace.pipelines.run import run
from headrace.pipelines.serve import PipelineService
from headrace.pipelines.stores import open_stores
from headrace.pipelines.view import Silent
from headrace.serving.core import Answer

NOW = Instant.parse("2024-05-01T12:00:00Z")
SERVERS = ["redis"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("servers") / "project"
    write_project(str(found))
    file = found / "orders.py"
    file.write_text(file.read_text().replace("trials=5", "trials=1"))
    return found


def on(folder: Path, url: str | None) -> Project:
    """Return the project with its online state at a URL."""
    project = load_project("orders:pipeline", folder=folder)
    stores = project.settings.stores.model_copy(update={"keyvalue": url})
    return replace(project, settings=project.settings.model_copy(update={"stores": stores}))


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Return a URL of its own on a server of a kind."""

    def find(kind: str) -> str:
        server = request.getfixturevalue(kind)
        return f"{server.address}?prefix={uuid.uuid4().hex}"

    return find


@pytest.fixture(scope="module")
def embedded(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Any]]:
    """Return what a run leaves in LMDB, and the features that it answers with."""
    return ran(on(folder, None), str(tmp_path_factory.mktemp("embedded") / "state"))


def ran(project: Project, state: str) -> tuple[str, list[Any]]:
    run(project, state=state, seed=1, progress=Silent(), clock=VirtualClock(NOW))
    return answered(project, state)


def answered(project: Project, state: str) -> tuple[str, list[Any]]:
    with open_stores(project, state, clock=SystemClock(), write=True) as stores:
        service = PipelineService(project, stores, VirtualClock(NOW))
        found = [(a.score, a.vector.to_dict()) for a in asked(service)]
        service.log.close()
        return stores.online.digest("online"), found


def asked(service: PipelineService, shops: int = 20) -> list[Answer]:
    rows = [
        {"order_id": f"n{shop}", "placed": service.clock.now().isoformat(), "shop": f"shop-{shop}", "items": 3}
        for shop in range(shops)
    ]
    found = service.predict(rows)
    assert all(isinstance(answer, Answer) for answer in found)
    return [answer for answer in found if isinstance(answer, Answer)]


@pytest.mark.parametrize("kind", SERVERS)
def test_a_run_and_its_answers_equal_those_on_lmdb(
    folder: Path, embedded: tuple[str, list[Any]], place: Callable[[str], str], tmp_path: Path, kind: str
) -> None:
    project, state = on(folder, place(kind)), str(tmp_path / "state")
    assert ran(project, state) == embedded
    rebuild_online(project, state=state, progress=Silent())
    assert answered(project, state)[1] == embedded[1]


@pytest.mark.parametrize("kind", SERVERS)
def test_a_replay_decides_and_answers_as_on_lmdb(
    folder: Path, place: Callable[[str], str], tmp_path: Path, kind: str
) -> None:
    plan = ReplayPlan.parse("2024-01-01", "2024-02-10", seed=3, faults=[], freeze=None)
    results = [
        replay(on(folder, url), plan, state=str(tmp_path / name), progress=Silent())
        for name, url in (("embedded", None), ("served", place(kind)))
    ]
    assert results[0].digests == results[1].digests
    assert results[0].predictions == 40 * 60


def test_a_replay_does_not_touch_a_store_with_live_features(
    folder: Path, place: Callable[[str], str], tmp_path: Path
) -> None:
    project = on(folder, place("redis"))
    run(project, state=str(tmp_path / "live"), seed=1, progress=Silent(), clock=VirtualClock(NOW))
    plan = ReplayPlan.parse("2024-01-01", "2024-01-02", seed=3, faults=[], freeze=None)
    with pytest.raises(ConfigurationError, match="holds live features"):
        replay(project, plan, state=str(tmp_path / "replay"), progress=Silent())
