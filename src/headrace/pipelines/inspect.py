"""List what the ledger and the definitions say: models, runs, features, incidents, records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headrace.core.time import Instant, SystemClock
from headrace.features.plan import DatasetPlan
from headrace.pipelines.project import Project
from headrace.pipelines.stores import open_stores
from headrace.pipelines.view import Table, View
from headrace.registry.run import Registry
from headrace.storage.ledger import Ledger, Record

# What says most of a model of any kind, first; of those that models were judged by two are listed.
TELLING = ("auc", "log_loss", "mae", "r2", "ndcg", "mrr")


def list_models(project: Project, *, state: str | None) -> View:
    """Return the registered versions with stage, gates and test metrics."""
    with open_stores(project, state, clock=SystemClock(), write=False) as stores:
        registry = Registry(stores.ledger, stores.blobs, project.name)
        champion = registry.champion()
        found: list[dict[str, Any]] = []
        for version in registry.versions():
            gates = registry.gates(version.name)
            found.append(
                {
                    "version": version.name,
                    "stage": version.stage,
                    "champion": champion is not None and champion.name == version.name,
                    "registered": Instant(version.registered).isoformat(),
                    "gates": None if gates is None else gates.passed,
                    "failed_gates": [] if gates is None else [str(g) for g in gates.failed],
                    "metrics": dict(version.metrics.get("test", {})),
                    "run": version.run,
                    "bytes": version.size,
                    "manifest": version.manifest,
                }
            )
    shown = _shown([version["metrics"] for version in found])
    rows = [[_name(v), v["registered"], _gates(v), *map(v["metrics"].get, shown), v["bytes"]] for v in found]
    names = ["version", "registered", "gates", *(f"test {name}" for name in shown), "bytes"]
    table = Table("Versions", names, rows)
    note = f"Next: headrace promote {project.typed} VERSION --why …" if found else f"Next: headrace run {project.typed}"
    return View(f"Models of {project.name}", {"versions": found}, [table], (note,))


def _name(version: dict[str, Any]) -> str:
    role = "champion" if version["champion"] else version["stage"]
    return f"{version['version'].rsplit('/', 1)[-1]} ({role})"


def _gates(version: dict[str, Any]) -> str:
    return {None: "not evaluated", True: "passed"}.get(version["gates"], f"{len(version['failed_gates'])} failed")


def _shown(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the two metrics that say most of models of their kind, of those that any was judged by."""
    return [name for name in TELLING if any(name in judged for judged in metrics)][:2]


def list_runs(project: Project, *, state: str | None) -> View:
    """Return the training runs, the newest first."""
    with open_stores(project, state, clock=SystemClock(), write=False) as stores:
        records = stores.ledger.read(kinds=["run"], newest_first=True)
    found = [{"run": r.subject, "at": Instant(r.at).isoformat(), **r.body} for r in records]
    judged = [r["metrics"].get("test", {}) for r in found]
    shown = _shown(judged)
    rows = [
        [r["run"], r["at"], r["status"], r["split"].get("rows", {}).get("train"), *map(metrics.get, shown)]
        + [", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in r["params"].items())]
        for r, metrics in zip(found, judged, strict=True)
    ]
    names = ["run", "started", "status", "rows", *(f"test {name}" for name in shown), "parameters"]
    table = Table("Runs", names, rows)
    return View(f"Training runs of {project.name}", {"runs": found}, [table])


def describe_features(plan: DatasetPlan) -> list[dict[str, Any]]:
    """Return each feature with what it is computed from, its key and its moment."""
    told: dict[int, dict[str, Any]] = {}
    for place, column in plan.row_columns:
        told[place] = {"from": str(column), "by": "the row itself", "known_at": str(plan.rows.moments[column])}
    for binding in plan.bindings:
        place = binding.offset
        for lane in binding.lanes:
            for output in lane.outputs:
                value = "rows" if output.column is None else str(lane.values[output.column])
                key = ", ".join(map(str, binding.key))
                told[place] = {"from": f"{output.aggregate} of {value}", "by": key, "known_at": str(lane.moment)}
                place += 1
    for function in plan.functions:
        arguments = ", ".join(str(b) for b in function.function.bound.values())
        told[function.index] = {"from": f"{function.function.name}({arguments})", "by": "", "known_at": "the request"}
    return [{"feature": c.name, "type": c.dtype, **told[i]} for i, c in enumerate(plan.columns)]


def list_incidents(project: Project, *, state: str | None) -> View:
    """Return incidents, the newest first."""
    with open_stores(project, state, clock=SystemClock(), write=False) as stores:
        opened = stores.ledger.read(kinds=["incident.opened"], newest_first=True)
        closed = {r.subject: r for r in stores.ledger.read(kinds=["incident.closed"], newest_first=True)}
    found = []
    for record in opened:
        end = closed.get(record.subject)
        body = {"incident": record.subject, "opened": Instant(record.at).isoformat(), "what": record.body["what"]}
        body |= {"key": record.body["key"], "closed": Instant(end.at).isoformat() if end else None}
        found.append(body)
    rows = [[f["opened"], f["closed"] or "open", f["key"], f["what"]] for f in found]
    table = Table("Incidents", ["opened", "closed", "watched", "what"], rows)
    return View(f"Incidents of {project.name}", {"incidents": found}, [table])


def verify_ledger(project: Project, *, state: str | None) -> View:
    """Check the ledger's chain, pointers and series."""
    with open_stores(project, state, clock=SystemClock(), write=False) as stores:
        found = stores.ledger.verify()
    problems = [{"record": p.seq, "what": p.what} for p in found.problems]
    data = {"ok": found.ok, "records": found.records, "head": found.head.hash, "problems": problems}
    title = f"The ledger is whole: {found.records} records" if found.ok else "The ledger was changed"
    tables = [Table("Problems", ["record", "what"], [[p["record"], p["what"]] for p in problems])] if problems else []
    note = f"Keep this head elsewhere to notice a cut-off end: {found.head.seq} {found.head.hash}"
    return View(title, data, tables, (note,))


def list_records(project: Project, *, kind: str | None, limit: int, state: str | None) -> View:
    """Return ledger records, the newest first."""
    with open_stores(project, state, clock=SystemClock(), write=False) as stores:
        kinds = None if kind is None else [kind]
        found = stores.ledger.read(kinds=kinds, limit=limit, newest_first=True)
    rows = [[r.seq, Instant(r.at).isoformat(), r.kind, r.subject, r.actor, r.hash[:12]] for r in found]
    table = Table("Records", ["record", "at", "kind", "subject", "by", "hash"], rows)
    data = {
        "records": [
            {"seq": r.seq, "at": r.at, "kind": r.kind, "subject": r.subject, "body": dict(r.body)} for r in found
        ]
    }
    return View(f"Ledger of {project.name}", data, [table])


def read_all(ledger: Ledger) -> list[Record]:
    """Return every record, the oldest first."""
    found: list[Record] = []
    while page := ledger.read(after=found[-1].seq if found else 0):
        found += page
    return found
