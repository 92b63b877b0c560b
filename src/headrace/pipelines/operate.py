"""Operate a pipeline by hand: promote, approve, roll back, rebuild; every move is a ledger record."""

from __future__ import annotations

import getpass

from headrace.core.time import SystemClock
from headrace.features.stream import DATABASE, StreamPath
from headrace.pipelines.pinned import refuse_other_features
from headrace.pipelines.project import Project
from headrace.pipelines.reveals import read_reveals, reveals_table
from headrace.pipelines.stores import CONTROL, applied_key, open_registry, open_stores
from headrace.pipelines.view import Progress, View
from headrace.sources.record import ARRIVAL, RevealBatch
from headrace.storage.ledger import Entry

APPLY_AT_ONCE = 10_000


def promote(project: Project, version: str, *, why: str, force: bool, state: str | None) -> View:
    """Make a version the champion.

    Raises:
        GateRefused: its gates failed, and `force` is not set.
        Refused: it was trained on other features than the project describes.
        Refused, Conflict: as `Registry.promote`.
    """
    with open_registry(project, state, clock=SystemClock()) as registry:
        refuse_other_features(project, registry.version(version))
        record = registry.promote(version, why=why, actor=getpass.getuser(), force=force)
    data = {"champion": record.subject, "replaced": record.body["replaced"], "record": record.seq}
    return View(f"{record.subject} is the champion", data, (), (f"It replaced {data['replaced'] or 'nothing'}.",))


def approve(project: Project, version: str, *, why: str, state: str | None) -> View:
    """Record that a person approves a version."""
    with open_registry(project, state, clock=SystemClock()) as registry:
        found, actor = registry.version(version), getpass.getuser()
        body = {"why": why, "manifest": found.manifest}
        (record,) = registry.ledger.append([Entry("approval", found.name, body, actor)])
    return View(f"{actor} approved {found.name}", {"version": found.name, "actor": actor, "record": record.seq})


def rollback(project: Project, *, to: str | None, why: str, state: str | None) -> View:
    """Make an earlier champion the champion again.

    Raises:
        Refused: there is none, or it was trained on other features than the project describes.
    """
    with open_registry(project, state, clock=SystemClock()) as registry:
        refuse_other_features(project, registry.version(registry.rollback_target(to)))
        record = registry.rollback(to, why=why, actor=getpass.getuser())
    data = {"champion": record.subject, "replaced": record.body["replaced"], "record": record.seq}
    return View(f"Rolled back: {record.subject} is the champion", data, (), (f"It replaced {data['replaced']}.",))


def rebuild_online(project: Project, *, state: str | None, progress: Progress) -> View:
    """Empty the online store and fill it again from the offline tables.

    Raises:
        DataError: nothing was ingested yet.
    """
    path, applied, newest = StreamPath([project.plan]), 0, 0
    with open_stores(project, state, clock=SystemClock(), write=True) as stores:
        reveals = read_reveals(stores.tables, project.plan.sources)
        total = sum(table.num_rows for table in reveals.values())
        with stores.online.write() as transaction:
            access = transaction.access(DATABASE)
            for key in [key for key, _ in transaction.items(DATABASE)]:
                access.delete(key)
            path.begin(transaction)
            for source in project.plan.sources:  # killed from here on, `run` fills the store
                transaction.delete(CONTROL, applied_key(source.name))
        for source in project.plan.sources:
            table = reveals[source.name].sort_by(ARRIVAL)
            for start in range(0, table.num_rows, APPLY_AT_ONCE):
                piece = RevealBatch(source, table.slice(start, APPLY_AT_ONCE))
                with stores.online.write() as transaction:
                    batch = list(piece.reveals())
                    if stores.online.capabilities.remote:
                        path.fetch(transaction, source.name, batch)
                    for reveal in batch:
                        path.apply(transaction.access(DATABASE), source.name, reveal)
                        newest = max(newest, reveal.arrival)
                    path.commit(transaction.access(DATABASE), newest, {})
                applied += len(piece)
                progress.step("rebuilding", applied, total, source.name)
        with stores.online.write() as transaction:
            path.expire(transaction, newest)
            for source in project.plan.sources:
                described = stores.tables.describe(reveals_table(source.name))
                version = 0 if described is None else described.version
                transaction.put(CONTROL, applied_key(source.name), str(version).encode())
    return View(f"Rebuilt the online store from {applied:,} reveals", {"reveals": applied, "newest": newest})
