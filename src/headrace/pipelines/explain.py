"""Explain a prediction down to its data and decisions, or a feature down to its events."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from headrace.core.errors import UsageError
from headrace.core.time import Instant, SystemClock, format_duration
from headrace.features.asked import asked_by
from headrace.features.explain import FeatureExplanation, find_outputs
from headrace.features.explain import explain_feature as explain_value
from headrace.features.offline import build_histories
from headrace.pipelines.given import given
from headrace.pipelines.inspect import describe_features
from headrace.pipelines.project import Project
from headrace.pipelines.reveals import read_reveals
from headrace.pipelines.stores import Stores, open_stores
from headrace.pipelines.view import Table, View
from headrace.registry.run import Registry
from headrace.serving.log import find

FAR_FUTURE = 2**62


def explain_prediction(project: Project, wanted: str, *, state: str | None) -> View:
    """Return a prediction's answer, features with their moments, model, data and gate decisions.

    Raises:
        UsageError: there is no such prediction.
    """
    with open_stores(project, state, clock=SystemClock(), write=False) as stores:
        found = find(stores.predictions, wanted)
        lineage = _lineage(project, stores, found.version) if found.version else {}
    told = {f["feature"]: f for f in describe_features(project.plan)}
    features = [
        [name, value, found.status.get(name, "OK"), told[name]["from"], told[name]["known_at"]]
        for name, value in found.features.items()
    ]
    answer: list[list[Any]] = [
        ["at", Instant(found.t).isoformat()],
        ["score", f"{found.score:.6f}"],
        ["decision", found.decision],
        ["threshold", found.threshold or "none"],
        ["version", found.version or "none: the fallback answered"],
        ["variant", found.variant],
        ["latency", format_duration(max(int(found.latency_us), 1))],
    ]
    answer += [[f"{s.version} in the shadow", "failed" if s.score is None else f"{s.score:.6f}"] for s in found.shadows]
    tables = [
        Table("Answer", ["", ""], answer),
        Table("Request", ["column", "value"], [[k, _shown(k, v, project)] for k, v in found.request.items()]),
        Table("Features", ["feature", "value", "status", "from", "known at"], features),
    ]
    if lineage:
        tables.append(Table("Model", ["", ""], [[k, v] for k, v in lineage["facts"].items()]))
        tables.append(Table("Gates", ["gate", "measured", "passed"], lineage["gates"]))
    data = asdict(found) | {"row_id": found.row_id.hex(), "lineage": lineage}
    return View(f"Prediction {wanted}", data, tables)


def _shown(name: str, value: Any, project: Project) -> Any:
    column = project.plan.rows.by_name[name]
    return Instant(value).isoformat() if column.dtype == "instant" and value is not None else value


def _lineage(project: Project, stores: Stores, version: str) -> dict[str, Any]:
    registry = Registry(stores.ledger, stores.blobs, project.name)
    chosen, gates = registry.version(version), registry.gates(version)
    runs = stores.ledger.read(kinds=["run"], subject=chosen.run, limit=1)
    body = runs[0].body if runs else {}
    facts = {
        "version": chosen.name,
        "manifest": chosen.manifest,
        "registered": Instant(chosen.registered).isoformat(),
        "run": chosen.run,
        "commit": (body.get("code") or {}).get("commit"),
        "seed": body.get("seed"),
        "parameters": str(body.get("params")),
        "training rows": str((body.get("split") or {}).get("rows")),
        "data as of": Instant(chosen.data["as_of"]).isoformat() if "as_of" in chosen.data else None,
        "data": str(chosen.data.get("sources")),
        "definition": chosen.data.get("definition"),
    }
    rows = [] if gates is None else [[g.gate, g.measured, g.passed] for g in gates.gates]
    return {"facts": facts, "gates": rows}


def explain_feature(
    project: Project, feature: str | None, key: str | None, at: str | None, *, state: str | None
) -> View:
    """Return a feature's value for a key at a moment, with the events that were used and refused.

    Raises:
        UsageError: feature, key or moment is missing, or the key has another number of parts.
        UnknownColumn: no such feature.
    """
    if feature is None or key is None or at is None:
        raise UsageError(
            "what shall be explained?",
            expected="a prediction id, or --feature NAME --key KEY --at INSTANT",
            next_step=f"headrace explain {project.typed} --feature … --key … --at 2013-07-01T12:00:00Z",
        )
    t = given("--at", at, Instant.parse)
    lanes = [lane for lane, _ in find_outputs(project.plan, feature)]
    lane = lanes[0]
    texts = key.split(",")
    if len(texts) != len(lane.entity):
        raise UsageError("the key has another number of parts", got=key, expected=", ".join(map(str, lane.entity)))
    parts = [int(text) if column.dtype == "int" else text for text, column in zip(texts, lane.entity, strict=True)]
    with open_stores(project, state, clock=SystemClock(), write=False) as stores:
        reveals = read_reveals(stores.tables, lane.source.feeds, asked=asked_by(lanes))
    histories = build_histories([lane.source], reveals, FAR_FUTURE)
    found = explain_value(project.plan, histories, feature, parts, t)
    tables = [events_table(one) for one in found]
    values = Table("Values", ["feature", "value", "events used"], [[f.name, f.value, f.used] for f in found])
    data = {"at": int(t), "key": parts, "features": [asdict(f) for f in found]}
    return View(f"{feature} of {key} at {t.isoformat()}", data, [values, *tables])


def events_table(found: FeatureExplanation) -> Table:
    """Return the events behind a feature as a table."""
    rows = [
        [
            e.moment.isoformat(),
            e.arrival.isoformat(),
            ", ".join(map(str, e.values)),
            "used" if e.used else "refused",
            e.why,
        ]
        for e in found.events
    ]
    title = f"{found.name}: {', '.join(found.expressions)}, known at {found.known_at}; {found.used} used, {found.refused} refused"
    return Table(title, ["moment", "arrived", "values", "", "why"], rows)
