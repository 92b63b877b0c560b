"""Follow data both ways: from a column to features, datasets and models, and from a model back to columns, tables and runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from headrace.core.errors import HeadraceError, UnknownColumn, did_you_mean
from headrace.core.time import Instant, SystemClock
from headrace.pipelines.catalogue import (
    CatalogueEntry,
    Uses,
    catalogue,
    dataset_name,
    reads_of,
    staged,
    uses_of,
)
from headrace.pipelines.graph import columns_read
from headrace.pipelines.project import Project
from headrace.pipelines.stores import open_stores
from headrace.pipelines.view import Table, View
from headrace.registry.record import Version
from headrace.registry.run import Registry
from headrace.sources.scans import columns_of_text
from headrace.storage.ledger import Record

_VERSION = re.compile(r"(?:.*/)?v\d+")


def lineage(project: Project, name: str, *, state: str | None) -> View:
    """Return what a version, a feature or group, or a column or source follows from, and what follows from it.

    Raises:
        UnknownColumn: the project has nothing of that name.
        DataError: no such version.
    """
    if _VERSION.fullmatch(name):
        return _of_version(project, name, state)
    uses = uses_of(project, state)
    entries = catalogue(project, uses)
    features = [e for e in entries if name in (e.feature, e.group, e.feature.split("[")[0], *e.columns)]
    texts, notes = _texts(project)
    columns = [str(c) for s in project.plan.sources for c in s.columns if name in (s.name, str(c))]
    columns += [own for own, raw in texts.items() if own not in columns and name in _named(raw)]
    if columns and not any(e.feature == name and e.group for e in features):
        return _followed(_of_columns(project, name, columns, entries, uses), columns, texts, notes)
    if features:
        found = _of_features(project, name, features)
        return _followed(found, found["upstream"]["columns"], texts, notes)
    known = [str(c) for s in project.plan.sources for c in s.columns] + [e.feature for e in entries]
    known += [*texts, *(one for raw in texts.values() for one in raw), *(v.name for v in uses.versions)]
    known += [e.feature.split("[")[0] for e in entries]
    raise UnknownColumn(
        "nothing of that name",
        got=name,
        expected="a column, source, feature, group or version",
        next_step=did_you_mean(name, known),
    )


def _texts(project: Project) -> tuple[dict[str, list[str]], list[str]]:
    """Return what the columns of sources that settings fill by SQL follow from, and notes on what cannot be told now."""
    found: dict[str, list[str]] = {}
    notes = []
    for source in project.plan.sources:
        try:
            found |= columns_of_text(source, project.settings, project.folder)
        except HeadraceError as error:  # lineage is told without the files, too
            told = f"{error.what} ({error.got}); {error.next_step}"
            notes.append(f"What [sources.{source.name}] sql reads cannot be told: {told}")
    return found, notes


def _named(columns: Sequence[str]) -> set[str]:
    """Return columns and the tables that they belong to."""
    return {*columns, *(column.partition(".")[0] for column in columns)}


def _followed(view: View, columns: Sequence[str], texts: Mapping[str, Sequence[str]], notes: Sequence[str]) -> View:
    """Return a view with what some columns follow from in turn, through the SQL of settings."""
    behind = {column: list(texts[column]) for column in columns if column in texts}
    if not behind:
        return view.noted(*notes)
    upstream = view.data.get("upstream", {}) | {"texts": behind}
    rows = [[column, ", ".join(raw)] for column, raw in behind.items()]
    table = Table("What the SQL of settings makes them of", ["column", "reads"], rows)
    return View(view.title, view.data | {"upstream": upstream}, [*view.tables, table], (*view.notes, *notes))


def _of_columns(
    project: Project, name: str, columns: Sequence[str], entries: Sequence[CatalogueEntry], uses: Uses
) -> View:
    """Return what follows from some columns."""
    reads = columns_read(project.plan)
    label, decided = set(reads["label"]), set(reads["rows"])
    features = [e for e in entries if set(e.reads) & set(columns)]
    used = [e for e in features if e.columns]
    datasets = [dataset_name(project)] if used or (label | decided) & set(columns) else []
    models = list(dict.fromkeys(version for column in columns for version in uses.of_column(column)))
    rows = [["feature", e.feature, ", ".join(sorted(set(e.reads) & set(columns))), _users(e)] for e in features]
    if label & set(columns):
        rows.append(["label", str(project.plan.label), ", ".join(sorted(label & set(columns))), "the dataset"])
    if decided & set(columns):
        rows.append(["rows", "which there are", ", ".join(sorted(decided & set(columns))), "the dataset"])
    rows += [["dataset", dataset, "", ""] for dataset in datasets] + [["model", model, "", ""] for model in models]
    down = {"features": [e.feature for e in features], "label": bool(label & set(columns))}
    down |= {"rows": bool(decided & set(columns)), "datasets": datasets}
    data = {"node": name, "kind": "column", "columns": list(columns), "downstream": down | {"models": models}}
    title = f"{name}: {len(features)} features, {len(datasets)} datasets and {len(models)} versions follow from it"
    return View(title, data, [Table("What follows from it", ["kind", "name", "reads", "used by"], rows)])


def _users(entry: CatalogueEntry) -> str:
    return ", ".join([*(["the dataset"] if entry.columns else []), *entry.models]) or "nobody"


def _of_features(project: Project, name: str, features: Sequence[CatalogueEntry]) -> View:
    """Return what some features follow from and who uses them."""
    columns = sorted({column for e in features for column in e.reads})
    models = list(dict.fromkeys(model for e in features for model in e.models))
    datasets = [dataset_name(project)] if any(e.columns for e in features) else []
    names = ["feature", "definition", "computed", "known at", "reads", "used by"]
    rows = [[e.feature, e.version, e.computed, e.known_at, ", ".join(e.reads), _users(e)] for e in features]
    up = {"columns": columns, "sources": sorted({e.source for e in features})}
    down = {"datasets": datasets, "models": models}
    data = {"node": name, "kind": "feature", "features": [e.feature for e in features], "upstream": up}
    title = f"{name}: from {len(columns)} columns, used by {len(datasets)} datasets and {len(models)} versions"
    return View(title, data | {"downstream": down}, [Table("Features", names, rows)])


def _of_version(project: Project, name: str, state: str | None) -> View:
    """Return what a version was made of, as it was recorded when it was trained."""
    with open_stores(project, state, clock=SystemClock(), write=False) as stores:
        registry = Registry(stores.ledger, stores.blobs, project.name)
        version = registry.version(name)
        runs = stores.ledger.read(kinds=["run"], subject=version.run, limit=1)
    reads = reads_of(version)
    columns = sorted({column for found in reads.values() for column in found})
    facts = _facts(version, runs)
    tables = [{"source": source, **found} for source, found in version.data.get("sources", {}).items()]
    rows = [[feature, ", ".join(found)] for feature, found in reads.items()]
    shown = [
        Table("Version", ["", ""], [[k, v] for k, v in facts.items()]),
        Table(
            "Tables", ["source", "version", "reveals"], [[t["source"], t.get("version"), t["reveals"]] for t in tables]
        ),
        Table("Features and the columns that they follow from", ["feature", "columns"], rows),
    ]
    up = {"tables": tables, "columns": columns, "features": dict(reads), "groups": version.data.get("groups", {})}
    data = {"node": version.name, "kind": "version", "stage": version.stage, "upstream": up | facts}
    features = len(set(reads) - {"label", "rows"})
    title = f"{staged(version)}: from {features} features and {len(columns)} columns of {len(tables)} tables"
    note = f"Next: headrace reproduce {project.typed} {version.name.rsplit('/', 1)[-1]} builds its training set again"
    return View(title, data, shown, (note,))


def _facts(version: Version, runs: Sequence[Record]) -> dict[str, Any]:
    body = runs[0].body if runs else {}
    return {
        "run": version.run,
        "dataset": version.data.get("definition"),
        "data as of": Instant(version.data["as_of"]).isoformat() if "as_of" in version.data else None,
        "rows": version.data.get("rows"),
        "content": version.data.get("content"),
        "commit": (body.get("code") or {}).get("commit"),
        "registered": Instant(version.registered).isoformat(),
        "manifest": version.manifest,
    }
