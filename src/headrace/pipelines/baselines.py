"""Set and show baselines: a source's distributions as a blob, and which version holds as a pointer of the ledger."""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from headrace.core.errors import DataError
from headrace.core.time import Clock, Instant, SystemClock
from headrace.pipelines.given import given
from headrace.pipelines.project import Project
from headrace.pipelines.quarantine import source_named
from headrace.pipelines.reveals import read_source, reveals_table
from headrace.pipelines.stores import open_stores
from headrace.pipelines.view import Table, View
from headrace.sources.batch import load
from headrace.sources.definition import SourceDefinition
from headrace.sources.record import ROW_ID
from headrace.sources.stated import Stated
from headrace.storage.blobs import Blobs
from headrace.storage.ledger import Entry, Ledger
from headrace.validation.baseline import (
    Baseline,
    ColumnBaseline,
    baseline_from_dict,
    baseline_of,
    baseline_to_dict,
)

SET = "baseline.set"


def pointer(source: str) -> str:
    """Return the name of the ledger's pointer to a source's baseline."""
    return f"baseline/{source}"


def load_baselines(ledger: Ledger, blobs: Blobs, sources: Sequence[SourceDefinition]) -> dict[str, Baseline]:
    """Return the baselines that hold now, by source; sources without one are left out."""
    held = ledger.pointers("baseline/")
    return {
        s.name: baseline_from_dict(orjson.loads(blobs.get(held[pointer(s.name)])))
        for s in sources
        if pointer(s.name) in held
    }


def set_baseline(
    project: Project,
    name: str,
    *,
    why: str,
    since: str | None = None,
    until: str | None = None,
    state: str | None = None,
    clock: Clock | None = None,
) -> View:
    """Make the distributions of a source's accepted rows its baseline, of those that happened in a span or of all.

    Before anything was accepted, the rows are read from where settings say they lie.

    Raises:
        DataError: no row lies in the span.
    """
    source, now = source_named(project, name), clock or SystemClock()
    first = None if since is None else int(given("--from", since, Instant.parse))
    end = None if until is None else int(given("--to", until, Instant.parse))
    with open_stores(project, state, clock=now, write=True) as stores:
        if stores.tables.describe(reveals_table(name)) is not None:
            table = read_source(stores.tables, source)
        else:
            table = load(source, project.settings, project.folder).batch.table
        columns, rows = _profiled(source, table, first, end)
        if not rows:
            raise DataError(
                f"{name}: no rows for a baseline",
                where=f"{since or 'the beginning'} to {until or 'the end'}",
                expected="rows whose event time lies in the span",
                next_step=f"headrace run {project.typed}",
            )
        blob = stores.blobs.put(orjson.dumps(baseline_to_dict(columns)))
        before = stores.ledger.pointers("baseline/").get(pointer(name))
        version = 1 + len(stores.ledger.read(kinds=[SET], subject=name))
        body = {"version": version, "digest": blob.digest, "replaced": before, "rows": rows, "why": why}
        body |= {"columns": sorted(columns), "since": since, "until": until}
        entry = Entry(SET, name, body, getpass.getuser())
        stores.ledger.append([entry], pointers={pointer(name): blob.digest}, expect={pointer(name): before})
    lines = [_described(column, held) for column, held in sorted(columns.items())]
    note = f"Next: headrace run {project.typed}, whose checks compare with it"
    table_ = Table("Columns", ["column", "kind", "rows", "nulls", "mean or commonest"], lines)
    return View(f"Baseline {version} of {name}: {rows:,} rows", {"source": name, **body}, [table_], (note,))


def show_baseline(project: Project, name: str, *, state: str | None) -> View:
    """Return a source's baseline and the versions before it."""
    source = source_named(project, name)
    with open_stores(project, state, clock=SystemClock(), write=False) as stores:
        columns = load_baselines(stores.ledger, stores.blobs, [source]).get(name, {})
        records = stores.ledger.read(kinds=[SET], subject=name, newest_first=True)
    versions = [{"at": Instant(r.at).isoformat(), "by": r.actor, **r.body} for r in records]
    lines = [[v["version"], v["at"], v["by"], v["rows"], v["why"]] for v in versions]
    tables = [Table("Versions", ["version", "set", "by", "rows", "why"], lines)]
    described = [_described(column, held) for column, held in sorted(columns.items())]
    tables.append(Table("Columns", ["column", "kind", "rows", "nulls", "mean or commonest"], described))
    note = f"Next: headrace baseline set {name} --why … --pipeline {project.typed}"
    data = {"source": name, "versions": versions, "columns": baseline_to_dict(columns)["columns"]}
    return View(f"Baseline of {name}" if versions else f"{name} has no baseline", data, tables, (note,))


def _profiled(
    source: SourceDefinition, table: pa.Table, first: int | None, end: int | None
) -> tuple[dict[str, ColumnBaseline], int]:
    stated, kept = Stated.of(table), pc.is_valid(table[source.time.name])
    for bound, compare in ((first, pc.greater_equal), (end, pc.less)):
        if bound is not None:
            kept = pc.and_(kept, pc.fill_null(compare(table[source.time.name], bound), False))
    ids = table[ROW_ID].filter(kept).unique()
    inside = pc.is_in(table[ROW_ID], value_set=ids).to_numpy()
    found: dict[str, ColumnBaseline] = {}
    for place, column in enumerate(source.columns):
        found |= baseline_of(source, table.filter(pa.array(stated.says(place) & inside)), only=column)
    return found, len(ids)


def _described(column: str, held: ColumnBaseline) -> list[Any]:
    profile = held.profile
    top = profile.mean
    if profile.kind == "categorical" and profile.counts:
        return [column, profile.kind, profile.rows, profile.nulls, _commonest(profile.categories, profile.counts)]
    return [column, profile.kind, profile.rows, profile.nulls, top]


def _commonest(categories: Sequence[str], counts: Sequence[int]) -> str:
    ordered = sorted(zip(counts, categories, strict=True), reverse=True)[:3]
    return ", ".join(name for _, name in ordered)
