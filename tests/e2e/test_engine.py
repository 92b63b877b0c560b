"""A pipeline trains the same model whatever engine computes its training set, and says early what is wrong with one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headrace.cli.template import write_project
from headrace.core.errors import BadUrl
from headrace.pipelines.project import load_project
from headrace.pipelines.run import run
from headrace.pipelines.view import Silent, View

SETTINGS = "\n[engines]\nbucket_rows = 1500\n\n[env.apart.engines]\nfeatures = 'local:processes=2'\n"


class Steps(Silent):
    """Remember what was told of the training set."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, int]] = []

    def step(self, name: str, done: int, total: int, note: str = "") -> None:
        """Remember a step."""
        if name == "training set":
            self.told.append((note, done, total))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "project"
    write_project(str(found))
    with (found / "headrace.toml").open("a") as settings:
        settings.write(SETTINGS)
    return found


def ran(folder: Path, state: str, steps: Steps, env: str | None = None, engine: str | None = None) -> View:
    project = load_project("orders:pipeline", folder=folder, env=env)
    return run(project, state=str(folder / state), seed=0, progress=steps, engine=engine)


def test_the_model_is_the_same_on_any_engine(folder: Path) -> None:
    steps = [Steps(), Steps()]
    here = ran(folder, "here", steps[0])
    apart = ran(folder, "apart", steps[1], env="apart")
    assert {**here.data, "next": ""} == {**apart.data, "next": ""}
    assert here.data["outcome"] == "promoted"
    assert all(("events of Orders", total, total) in one.told for one in steps for total in [one.told[0][2]])
    assert os.listdir(folder / "apart" / "work") == []


def test_a_mistaken_engine_is_refused_before_anything_is_read(folder: Path) -> None:
    (folder / "data" / "orders.csv").unlink()
    with pytest.raises(BadUrl, match="no engine is called sparc"):
        ran(folder, "state", Steps(), engine="sparc:")
