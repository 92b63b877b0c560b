"""Say what would run and why, from definitions alone."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from headrace.core.settings import SourceSettings
from headrace.core.time import format_duration
from headrace.features.plan import DatasetPlan
from headrace.pipelines.definition import Pipeline
from headrace.pipelines.graph import columns_of_output, columns_read
from headrace.pipelines.impact import impact_of, impact_table
from headrace.pipelines.project import Project
from headrace.pipelines.view import Table, View
from headrace.sources.definition import describe


def describe_plan(project: Project, *, state: str | None = None) -> View:
    """Return the pipeline's steps, sources, features and policies, and what a changed definition would touch.

    Reads no rows and starts nothing; of a state folder, where there is one, records and counts.
    """
    pipeline, plan = project.pipeline, project.plan
    steps = _steps(pipeline, plan)
    sources = [
        {"source": s.name, "row_id": [c.name for c in s.id_columns], "columns": [_column(s, c) for c in s.columns]}
        for s in plan.sources
    ]
    columns = [[f"{s.name}.{c.name}", c.dtype, str(s.moments[c])] for s in plan.sources for c in s.columns]
    reads = columns_read(plan)
    features = [{"feature": c.name, "type": c.dtype, "computed": c.origin, "known": known} for c, known in _known(plan)]
    told = [feature | {"reads": reads[feature["feature"]]} for feature in features]
    queries = _queries(plan)
    policies, streams = _policies(pipeline), _streams(project)
    data: dict[str, Any] = {"pipeline": project.target, "dataset": plan.hash, "steps": steps, "sources": sources}
    tables = [
        Table("Steps, in order", ["step", "what it does", "why"], [[s["step"], s["what"], s["why"]] for s in steps]),
        Table(
            "Columns and the moment at which each is known",
            ["column", "type", "known at"],
            columns,
        ),
        Table(
            "Features", ["feature", "type", "computed", "from values known at"], [list(f.values()) for f in features]
        ),
        *([Table("Features by SQL", ["group", "written at", "reads"], queries)] if queries else []),
        Table("Policies", ["policy", "limit"], policies),
        Table(
            "Streams that `up` follows",
            ["source", "stream", "codec", "late after"],
            [list(s.values()) for s in streams],
        ),
    ]
    impact = impact_of(project, state)
    if impact:
        tables.append(impact_table(impact))
    data["groups"] = [asdict(one) for one in impact]
    asked = ", ".join(c.name for c in plan.direct)
    notes = (f"A request brings: {asked}.", f"Run it: headrace run {project.typed}")
    return View(
        f"Plan of {project.target}",
        data | {"features": told, "policies": policies, "streams": streams},
        tables,
        notes,
    )


def _queries(plan: DatasetPlan) -> list[list[str]]:
    """Return each group that a query fills, where its text stands, and the columns of the tables that it reads."""
    found = []
    for group in plan.groups:
        lane = group.lanes[0]
        if lane.source.query is not None:
            outputs = [(one, i) for one in group.lanes for i in range(len(one.outputs))]
            columns = {str(c) for one, i in outputs for c in columns_of_output(one, i)}
            own = {str(c) for c in lane.source.columns}
            read = ", ".join(sorted(columns - own))
            found.append([group.definition.name, lane.source.query.location, read])
    return found


def _streams(project: Project) -> list[dict[str, str]]:
    found = []
    for source in project.plan.sources:
        where = project.settings.sources.get(source.name, SourceSettings())
        late = format_duration(where.lateness) if where.lateness else "any older event"
        found.append({"source": source.name, "stream": where.stream or source.name, "codec": where.codec, "late": late})
    return found


def _column(source: Any, column: Any) -> dict[str, Any]:
    return describe(column) | {"known_at": str(source.moments[column])}


def _known(plan: DatasetPlan) -> list[tuple[Any, str]]:
    moments = {i: str(plan.rows.moments[c]) for i, c in plan.row_columns}
    for binding in plan.bindings:
        at = binding.offset
        for lane in binding.lanes:
            for _ in lane.outputs:
                moments[at] = str(lane.moment)
                at += 1
    return [(c, moments.get(i, "the prediction's moment")) for i, c in enumerate(plan.columns)]


def _steps(pipeline: Pipeline, plan: DatasetPlan) -> list[dict[str, str]]:
    lanes = sum(len(g.lanes) for g in plan.groups)
    search = pipeline.model.search
    trials = f"{search.trials} trials on {search.metric}, then the best" if search else "one fit"
    rows = [
        ("ingest", f"read {', '.join(s.name for s in plan.sources)} as reveals", "the dataset reads them"),
        ("validate", "check every row and delivery; quarantine or stop", "nothing unchecked goes on"),
        ("features", f"{len(plan.columns)} features from {lanes} windowed lanes, offline and online", "one definition"),
        (
            "train",
            f"{pipeline.model.name}: {trials}, beside a {pipeline.model.baseline} baseline",
            f"rows matured after {format_duration(plan.mature)}",
        ),
        ("evaluate", f"{len(pipeline.gates)} gates on the test rows", "a model is promoted for reasons that are kept"),
        ("register", "a version with manifest, hashes and lineage", "rollback needs it"),
        (
            "roll out",
            " → ".join(str(s) for s in pipeline.rollout.steps) if pipeline.rollout else "at once",
            "limits the harm",
        ),
    ]
    return [dict(zip(("step", "what", "why"), row, strict=True)) for row in rows]


def _policies(pipeline: Pipeline) -> list[list[str]]:
    rows = [["gate", str(gate)] for gate in pipeline.gates]
    if pipeline.rollout:
        rows += [["abort the rollout if", str(rule)] for rule in pipeline.rollout.abort_if]
    rows += [[f"watch every {format_duration(m.every)}", str(m.condition)] for m in pipeline.monitors]
    return rows + [["retrain on", str(trigger)] for trigger in pipeline.retrain_on]
