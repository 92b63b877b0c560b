"""Write a replay's report beside its state, and say where it and the ledger are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group

from headrace.core.time import Instant, SystemClock
from headrace.pipelines.inspect import read_all
from headrace.pipelines.project import Project
from headrace.pipelines.stores import open_stores
from headrace.pipelines.view import Progress
from headrace.storage.paths import write_atomically
from headrace.web.assemble import assemble
from headrace.web.report import render, render_terminal

NAME = "report.html"


@dataclass(frozen=True)
class Written:
    """Hold where things lie, as notes, and the report for a terminal."""

    page: Path
    ledger: Path
    terminal: Group

    def __iter__(self) -> Iterator[str]:
        """Yield the notes."""
        yield f"Report: {self.page}"
        yield f"Ledger: {self.ledger}"


def write_report(project: Project, state: str, progress: Progress) -> Written:
    """Write the report of the replay in a state folder, `report.html`."""
    progress.step("report", 0, 1)
    with open_stores(project, state, clock=SystemClock(), write=False) as stores:
        records = read_all(stores.ledger)
        folder = stores.state.path
    begun = next(r.body for r in records if r.kind == "replay.begun")
    span = f"--from {Instant(begun['start']).day()} --to {Instant(begun['end']).day()} --seed {begun['seed']}"
    faults = "".join(f" --fault {fault}" for fault in begun["faults"])
    freeze = f" --freeze {Instant(begun['freeze']).day()}" if begun["freeze"] else ""
    command = f"headrace replay {project.asked} {span}{freeze}{faults} --state again"
    title = f"{project.name}, replayed over {Instant(begun['start']).day()} to {Instant(begun['end']).day()}"
    report = assemble(records, title=title, reproduce=(command, f"headrace audit verify {project.typed}"))
    write_atomically(folder / NAME, render(report).encode(), temporary=folder / f"{NAME}.new", failpoint="report")
    progress.step("report", 1, 1)
    return Written(folder / NAME, folder / "ledger" / "ledger.sqlite", render_terminal(report))
