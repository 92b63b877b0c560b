"""Say what a changed definition would touch: groups to fill, versions that pin the old one, and what filling costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headrace.core.time import SECOND, SystemClock, rough_duration
from headrace.features.events import head_keys
from headrace.features.lane_plan import GroupPlan
from headrace.features.stream import COVERED, DATABASE
from headrace.pipelines.catalogue import staged
from headrace.pipelines.materialize import MATERIALIZED
from headrace.pipelines.project import Project
from headrace.pipelines.reveals import reveals_table
from headrace.pipelines.stores import Stores, open_stores, state_path
from headrace.pipelines.view import Table
from headrace.registry.run import Registry
from headrace.storage.ledger import Ledger
from headrace.storage.state import PASSPORT


@dataclass(frozen=True)
class GroupImpact:
    """Hold what stands of a group: "materialized", or "new" or "changed" with what filling it costs; "by query" never is filled.

    `pinned_by` are the versions that were trained on another definition of it; `seconds` is None where no earlier filling
    tells how fast this machine is, `keys` where no state tells how many there are.
    """

    group: str
    version: str
    status: str
    before: str | None
    pinned_by: tuple[str, ...]
    rows: int
    keys: int | None
    seconds: float | None


def impact_of(project: Project, state: str | None) -> list[GroupImpact]:
    """Return what stands of every group of the project; nothing where there is no state folder yet.

    Reads records and counts, no rows.
    """
    if not (state_path(project, state) / PASSPORT).is_file():
        return []
    with open_stores(project, state, clock=SystemClock(), write=False) as stores:
        before, speed = _materialized(stores.ledger, project.name)
        versions = [v for v in Registry(stores.ledger, stores.blobs, project.name).versions() if v.stage != "archived"]
        found = []
        for group in project.plan.groups:
            pinned = [
                v for v in versions if v.data.get("groups", {}).get(group.definition.name, group.hash) != group.hash
            ]
            found.append(_impact(group, stores, before, speed, tuple(staged(v) for v in pinned)))
    return found


def _materialized(ledger: Ledger, pipeline: str) -> tuple[dict[str, str], float | None]:
    """Return each group's definition that was materialized last, and how many rows a second were read then."""
    before: dict[str, str] = {}
    speed = None
    for record in ledger.read(kinds=[MATERIALIZED], subject=pipeline, newest_first=True):
        for name, digest in record.body["groups"].items():
            before.setdefault(name, digest)
        seconds = record.body["measured"]["seconds"]
        if speed is None and record.body["rows"] and seconds:
            speed = record.body["rows"] / seconds
    return before, speed


def _impact(
    group: GroupPlan, stores: Stores, before: Mapping[str, str], speed: float | None, pinned: tuple[str, ...]
) -> GroupImpact:
    name, old = group.definition.name, before.get(group.definition.name)
    if group.lanes[0].source.query is not None:
        return GroupImpact(name, group.hash[:12], "by query", None, pinned, 0, None, None)
    with stores.online.read() as snapshot:
        whole = snapshot.get(DATABASE, COVERED + bytes.fromhex(group.hash)) is not None
        keys = None
        if whole or old is not None:
            lane = b"L" + bytes.fromhex((group.hash if whole else str(old))[:16]) + b"\0\0"
            keys = sum(1 for _ in head_keys(key for key, _ in snapshot.items(DATABASE, lane)))
    described = stores.tables.describe(reveals_table(group.lanes[0].source.name))
    rows = 0 if described is None else described.rows
    status = "materialized" if whole else "new" if old is None else "changed" if old != group.hash else "left out"
    seconds = None if whole or speed is None else rows / speed
    other = old if old != group.hash else None
    return GroupImpact(name, group.hash[:12], status, other and other[:12], pinned, rows, keys, seconds)


def impact_table(found: list[GroupImpact]) -> Table:
    """Return the impact as people read it."""
    names = ["group", "definition", "online", "to fill", "about", "versions that pin another one"]
    rows: list[list[Any]] = []
    for one in found:
        known = "" if one.keys is None else f", {one.keys:,} keys"
        cost = "nothing" if one.status in ("materialized", "by query") else f"{one.rows:,} reveals{known}"
        took = "–" if one.seconds is None else rough_duration(max(int(one.seconds * SECOND), SECOND))
        changed = f"{one.status}, was {one.before}" if one.before else one.status
        rows.append([one.group, one.version, changed, cost, took, ", ".join(one.pinned_by) or "none"])
    return Table("What stands of the groups, and what a backfill would cost", names, rows)
