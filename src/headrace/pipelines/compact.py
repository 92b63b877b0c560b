"""Keep tables small and quick to read: merge files, lay what belongs together side by side, drop what is past retention."""

from __future__ import annotations

from headrace.core.time import Clock, SystemClock, format_duration
from headrace.features.stream import DATABASE
from headrace.pipelines.gatekeeper import QUARANTINE
from headrace.pipelines.loads import LOADS
from headrace.pipelines.project import Project
from headrace.pipelines.quarantine import DECISIONS, finish
from headrace.pipelines.reveals import reveals_table
from headrace.pipelines.stores import applied_key, open_stores
from headrace.pipelines.view import Progress, Table, View
from headrace.sources.letters import letters_table
from headrace.sources.record import ARRIVAL


def compact(project: Project, *, state: str | None, progress: Progress, clock: Clock | None = None) -> View:
    """Compact every table; versions of the last `[offline] retention` read as before.

    Raises:
        Unavailable: another process writes to the state folder.
    """
    retain, rows = project.settings.offline.retention, []
    with open_stores(project, state, clock=clock or SystemClock(), write=True, create=False) as stores:
        finish(project, stores, alone=True)  # it reads the versions that its decision names
        for place, source in enumerate(project.plan.sources):
            name = reveals_table(source.name)
            progress.step("compacting", place, len(project.plan.sources), source.name)
            before = stores.tables.describe(name)
            if before is None:
                continue
            keys = [c.name for c in source.columns if c.role == "entity"]
            removed = stores.tables.compact(name, retain=retain, cluster_by=[*keys, ARRIVAL])
            after = stores.tables.describe(name)
            assert after is not None
            with stores.online.write() as transaction:
                # The same rows under another number: what was applied is still all of it.
                if transaction.get(DATABASE, applied_key(source.name)) == str(before.version).encode():
                    transaction.put(DATABASE, applied_key(source.name), str(after.version).encode())
            rows.append([name, before.version, after.version, after.rows, removed])
        letters = [letters_table(source.name) for source in project.plan.sources]
        for name in (QUARANTINE, DECISIONS, LOADS, *letters):
            if stores.tables.describe(name) is not None:
                stores.tables.compact(name, retain=retain)
        progress.step("compacting", len(project.plan.sources), len(project.plan.sources))
    names = ["table", "version before", "version", "rows", "files removed"]
    data = {"retention": retain, "tables": [dict(zip(names, row, strict=True)) for row in rows]}
    note = f"Versions of the last {format_duration(retain)} can still be read; [offline] retention says how long."
    return View("Compacted the tables", data, [Table("Tables", names, rows)], (note,))
