"""Supervise a replay in a process of its own: kill it where a crash is planted, and start it again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from headrace.core.errors import InternalError
from headrace.core.time import DAY
from headrace.pipelines.project import Project
from headrace.pipelines.replay import ReplayPlan, ReplayResult, replay
from headrace.pipelines.stores import state_path
from headrace.pipelines.view import Progress, Table, View

CHILD = "import sys; from headrace.pipelines.supervise import child; child(sys.argv[1])"


def supervised_replay(project: Project, plan: ReplayPlan, *, state: str | None, progress: Progress) -> View:
    """Live through the span; where `crash` is planted a child process is killed with SIGKILL in the middle of that day.

    Raises:
        InternalError: the child process failed by itself.
        ConfigurationError, DataError: as `replay`.
    """
    for crash in sorted(f.day for f in plan.faults if f.name == "crash"):
        _live_and_kill(project, plan, crash, state, progress)
    result = replay(project, plan, state=state, progress=progress)
    return view_of(project, plan, result)


def view_of(project: Project, plan: ReplayPlan, result: ReplayResult) -> View:
    """Return a replay's result as an answer."""
    figures = [
        ["days", f"{result.days:,}"],
        ["predictions answered and logged", f"{result.predictions:,}"],
        ["of them by a trained model", f"{result.by_model:,}"],
        ["reveals applied", f"{result.reveals:,}"],
    ]
    digests = [[name, digest] for name, digest in result.digests.items()]
    tables = [Table("What happened", ["", ""], figures), Table("Digests", ["of", "SHA-256"], digests)]
    title = f"Replay of {project.target}, {plan.start.day()} to {plan.end.day()}, seed {plan.seed}"
    return View(title, asdict(result), tables)


def _live_and_kill(project: Project, plan: ReplayPlan, day: int, state: str | None, progress: Progress) -> None:
    """Run a child until it is in the middle of `day`, then kill it."""
    order = {
        "target": project.target,
        "folder": str(project.folder),
        "start": plan.start.isoformat(),
        "end": plan.end.isoformat(),
        "seed": plan.seed,
        "faults": [str(f) for f in plan.faults if f.name != "crash"],
        "freeze": None if plan.freeze is None else plan.freeze.isoformat(),
        "state": str(state_path(project, state)),
    }
    command = [sys.executable, "-c", CHILD, json.dumps(order)]
    total = (plan.end - plan.start) // DAY
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=os.getcwd()) as process:
        assert process.stdout is not None
        for line in process.stdout:
            name, done, note = json.loads(line)
            progress.step(name, done, total, note)
            if name == "replaying" and plan.start + done * DAY >= day:
                process.send_signal(signal.SIGKILL)
                break
        code = process.wait()
    if code not in (0, -signal.SIGKILL):
        raise InternalError("the replay's process failed", got=f"exit code {code}", next_step="read its message above")


class _Pipe:
    """Tell progress on standard output, a JSON line a step."""

    def step(self, name: str, done: int, total: int, note: str = "") -> None:
        """Write a step."""
        sys.stdout.write(json.dumps([name, done, note]) + "\n")
        sys.stdout.flush()


def child(order: str) -> None:
    """Run a replay as a child process: what `_live_and_kill` starts."""
    from pathlib import Path

    from headrace.pipelines.project import load_project

    told: dict[str, Any] = json.loads(order)
    project = load_project(told["target"], folder=Path(told["folder"]))
    plan = ReplayPlan.parse(told["start"], told["end"], seed=told["seed"], faults=told["faults"], freeze=told["freeze"])
    replay(project, plan, state=told["state"], progress=_Pipe())
