"""Operate a pipeline by hand: promote, approve, roll back; every move is a ledger record."""

from __future__ import annotations

import getpass

from headrace.core.time import SystemClock
from headrace.pipelines.pinned import refuse_other_features
from headrace.pipelines.project import Project
from headrace.pipelines.stores import open_registry
from headrace.pipelines.view import View
from headrace.storage.ledger import Entry


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
