"""List verdicts as the ledger holds them: each check's newest result with its history, source by source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headrace.core.time import Instant, SystemClock
from headrace.pipelines.baselines import load_baselines
from headrace.pipelines.project import Project
from headrace.pipelines.quarantine import source_named
from headrace.pipelines.stores import open_stores
from headrace.pipelines.view import Table, View
from headrace.storage.ledger import Record
from headrace.validation.baseline import Baseline

SPARKS = "▁▂▃▄▅▆▇█"
WORST = {"failed": 0, "undefined": 1, "passed": 2}


@dataclass(frozen=True)
class CheckHistory:
    """Hold one check's newest result, and the measured value and status of each verdict up to it, the oldest first."""

    newest: dict[str, Any]
    values: tuple[float | None, ...]
    statuses: tuple[str, ...]


@dataclass(frozen=True)
class SourceVerdicts:
    """Hold a source's verdicts, the newest first, its checks' histories, and the baseline that they were compared with."""

    source: str
    verdicts: tuple[dict[str, Any], ...]
    checks: tuple[CheckHistory, ...]
    profiles: dict[str, Any]
    baseline: Baseline


def read_verdicts(project: Project, name: str | None, *, state: str | None, limit: int) -> list[SourceVerdicts]:
    """Return the newest verdicts of one source or of all that have any.

    Raises:
        UsageError: there is no such source.
    """
    names = [s.name for s in project.plan.sources] if name is None else [source_named(project, name).name]
    found = []
    with open_stores(project, state, clock=SystemClock(), write=False) as stores:
        baselines = load_baselines(stores.ledger, stores.blobs, project.plan.sources)
        for source in names:
            records = stores.ledger.read(kinds=["verdict"], subject=source, limit=limit, newest_first=True)
            verdicts = tuple(_verdict(record) for record in records)
            profiles: dict[str, Any] = next((v["profiles"] for v in verdicts if v.get("profiles")), {})
            found.append(SourceVerdicts(source, verdicts, _histories(verdicts), profiles, baselines.get(source, {})))
    return found


def list_checks(project: Project, name: str | None, *, state: str | None, limit: int = 50) -> View:
    """Return each check's newest result and history."""
    found = read_verdicts(project, name, state=state, limit=limit)
    tables = []
    for source in found:
        lines = [_line(check) for check in source.checks]
        columns = ["check", "severity", "status", "measured", "failing", "share", "history"]
        tables.append(Table(f"{source.source}, of {len(source.verdicts)} verdicts", columns, lines))
        told = [
            [v["record"], v["moment"], v["action"], v["rows"], v["quarantined"], v["where"]] for v in source.verdicts
        ]
        tables.append(Table("Verdicts", ["record", "at", "action", "rows", "quarantined", "where"], told[:10]))
    data = {
        "sources": [
            {"source": s.source, "verdicts": [_bare(v) for v in s.verdicts], "checks": [_plain(c) for c in s.checks]}
            for s in found
        ]
    }
    note = f"Next: headrace checks --report checks.html --pipeline {project.typed}"
    return View(f"Checks of {project.name}", data, tables, (note,))


def results_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return every result of a verdict in one form, those that passed too."""
    passed = [
        {"name": name, "severity": severity, "status": "passed", "rows": rows, "value": value}
        for name, severity, rows, value in body["passed"]
    ]
    return [*body["results"], *passed]


def spark(values: Sequence[float | None]) -> str:
    """Return numbers as a line of small bars; an unknown one is a blank.

    >>> spark([0.0, 1.0, None, 2.0])
    '▁▅ █'
    """
    known = [v for v in values if v is not None]
    if not known:
        return ""
    low, span = min(known), (max(known) - min(known)) or 1.0
    return "".join(" " if v is None else SPARKS[round((v - low) / span * (len(SPARKS) - 1))] for v in values)


def _verdict(record: Record) -> dict[str, Any]:
    body: dict[str, Any] = dict(record.body)
    return body | {"record": record.seq, "moment": Instant(body["at"]).isoformat()}


def _histories(verdicts: Sequence[dict[str, Any]]) -> tuple[CheckHistory, ...]:
    """Return the checks of the newest verdict, the failed first, each with its past."""
    by_name: dict[str, list[dict[str, Any] | None]] = {}
    for place, verdict in enumerate(reversed(verdicts)):
        for result in results_of(verdict):
            past = by_name.setdefault(result["name"], [None] * place)
            past.append(result)
        for past in by_name.values():
            past += [None] * (place + 1 - len(past))
    found = []
    for past in by_name.values():
        if past[-1] is not None:  # what the newest verdict did not ask is no check of today
            statuses = tuple("" if r is None else r["status"] for r in past)
            found.append(CheckHistory(past[-1], tuple(map(_value, past)), statuses))
    return tuple(sorted(found, key=lambda c: (WORST[c.newest["status"]], c.newest["name"])))


def _value(result: dict[str, Any] | None) -> float | None:
    """Return what was measured: of a check of single rows that passed, that no row failed."""
    if result is None or result["status"] == "undefined":
        return None
    value: float | None = result.get("value")
    return 0.0 if value is None and result["status"] == "passed" else value


def _line(check: CheckHistory) -> list[Any]:
    r = check.newest
    measured = r.get("measured") or r.get("reason") or ("" if r.get("value") is None else f"{r['value']:.6g}")
    share = r.get("share")
    return [r["name"], r["severity"], r["status"], measured, r.get("failing", 0), share, spark(check.values[-24:])]


def _plain(check: CheckHistory) -> dict[str, Any]:
    return {**check.newest, "history": {"values": list(check.values), "statuses": list(check.statuses)}}


def _bare(verdict: dict[str, Any]) -> dict[str, Any]:
    keys = ("record", "moment", "where", "action", "rows", "accepted", "quarantined")
    return {key: verdict[key] for key in keys if key in verdict}
