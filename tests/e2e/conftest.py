"""Projects that the end-to-end tests run: a generated one, small, and the flights of January."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from headrace.cli.template import write_project
from headrace.pipelines.project import Project, load_project

FLIGHTS = Path(__file__).parents[2] / "examples" / "flights"


@pytest.fixture(scope="session")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return the project that `headrace new` writes."""
    folder = tmp_path_factory.mktemp("orders") / "project"
    write_project(str(folder))
    return load_project("orders:pipeline", folder=folder)


@pytest.fixture(scope="session")
def flights() -> Project:
    """Return the flights project with its data prepared."""
    if not (FLIGHTS / "data" / "weather.parquet").is_file():
        subprocess.run([sys.executable, str(FLIGHTS / "prepare.py")], check=True)
    return load_project("flights:pipeline", folder=FLIGHTS)
