"""Projects that the end-to-end tests run: a generated one, small, and the flights of January."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.cli.template import write_project
from headrace.core.time import Instant, VirtualClock
from headrace.pipelines.project import Project, load_project
from headrace.pipelines.run import run
from headrace.pipelines.view import Silent

FLIGHTS = Path(__file__).parents[2] / "examples" / "flights"


@pytest.fixture(scope="session")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return the project that `headrace new` writes."""
    folder = tmp_path_factory.mktemp("orders") / "project"
    write_project(str(folder))
    return load_project("orders:pipeline", folder=folder)


@pytest.fixture(scope="session")
def flights() -> Project:
    """Return the flights project with its data prepared, once by whichever process comes first."""
    with (FLIGHTS / "prepare.py").open() as script:
        fcntl.flock(script, fcntl.LOCK_EX)
        if not (FLIGHTS / "data" / "weather.parquet").is_file():
            subprocess.run([sys.executable, str(FLIGHTS / "prepare.py")], check=True)
    return load_project("flights:pipeline", folder=FLIGHTS)


@pytest.fixture(scope="session")
def trained_shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the generated project after one run in May 2024; do not change it."""
    folder = tmp_path_factory.mktemp("trained") / "project"
    write_project(str(folder))
    file = folder / "orders.py"
    file.write_text(file.read_text().replace("trials=5", "trials=1"))
    project = load_project("orders:pipeline", folder=folder)
    run(project, state=None, seed=1, progress=Silent(), clock=VirtualClock(Instant.parse("2024-05-02T12:00:00Z")))
    return folder


@pytest.fixture
def shop(trained_shop: Path, tmp_path: Path) -> Path:
    """Return a copy of that folder."""
    return shutil.copytree(trained_shop, tmp_path / "project")
