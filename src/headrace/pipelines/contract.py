"""Write contracts from samples, and tell how a source's class differs from what its data suggest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from headrace.core.errors import UsageError, did_you_mean
from headrace.core.settings import Settings, SourceSettings, load_settings
from headrace.core.time import Instant
from headrace.pipelines.project import Project, load_project
from headrace.pipelines.quarantine import source_named
from headrace.pipelines.view import Table, View
from headrace.sources.batch import LONG_AGO, iter_loads
from headrace.sources.definition import SourceDefinition, definition_of, describe
from headrace.sources.deltas import PREFIX
from headrace.sources.infer import class_name, infer
from headrace.sources.parts import reading_of
from headrace.sources.sample import ROWS, Sample, sample, sample_file, undeclared
from headrace.sources.values import data_names
from headrace.validation.infer import ColumnFacts, contract_of, data_name, facts_of
from headrace.validation.record import Verdict
from headrace.validation.run import KnownKeys, Validator

GLOB = ("*", "?", "[")


def infer_contract(source: str, *, pipeline: str | None, env: str | None, to: str | None) -> View:
    """Return a source's class as code: from where settings say its rows lie, or from files, a folder or a Delta table.

    Raises:
        UsageError: there is no such place and no such source, or `to` exists.
        DataError: the rows cannot be read, or there are none.
        DefinitionError: no column names a row, or tells when it happened.
    """
    if to is not None and Path(to).exists():
        raise UsageError(
            "the file exists", got=to, expected="a new file", next_step="choose another name, and compare the two"
        )
    name, found, zone = _sampled(source, pipeline, env)
    definition = definition_of(infer(found.table, name, zone=zone))
    facts = facts_of(found.table)
    code = f"import headrace as hr\n\n\n{contract_of(definition, facts)}"
    if to is not None:
        Path(to).write_text(code)
    left = [c for c in found.table.column_names if c not in facts]
    columns = [(c, facts[data_name(c)]) for c in definition.columns]
    lines = [[c.name, c.dtype, fact.nulls, fact.distinct, _shown(fact)] for c, fact in columns]
    local = [c for c, fact in columns if c.dtype == "instant" and found.table.schema.field(fact.name).type.tz is None]
    notes = [f"Not declared, for want of a type: {', '.join(left)}"] if left else []
    if local and zone is None:
        named = ", ".join(c.name for c in local)
        notes += [f'Without a zone: {named}. Name it in headrace.toml: [sources.{name}] zone = "Europe/Paris"']
    notes += [f"Written to {to}" if to else code, "Review it: a sample shows what is, not what should be."]
    rows = found.table.num_rows
    data = {"source": name, "rows": rows, "whole": found.whole, "code": code, "left_out": left, "file": to}
    title = f"A contract of {name} from {'' if found.whole else 'the first '}{rows:,} rows"
    return View(
        title, data, [Table("The sample", ["column", "type", "nulls", "distinct", "constraints"], lines)], notes
    )


def check_contract(project: Project, name: str) -> View:
    """Return where a source's class and its data part: columns, constraints that hold undeclared, checks that fail.

    Of a large source the first rows are looked at, about a million; columns that others refer to are read whole.

    Raises:
        UsageError: there is no such source.
        ConfigurationError, SchemaChanged, DataError, UserCodeError: its rows cannot be read.
    """
    source = source_named(project, name)
    verdict = _verdict(project, source)
    found = sample(source, project.settings, project.folder)
    rows = _differences(source, reading_of(source, project.settings), found.table)
    rows += [[r.name, r.threshold or r.severity, f"{r.status}: {r.measured}"] for r in verdict.failed]
    data = {
        "source": name,
        "at": Instant(verdict.at).isoformat(),
        "whole": found.whole,
        "differences": [{"what": what, "class": said, "data": shows} for what, said, shows in rows],
    }
    its = "its data" if found.whole else f"its first {found.table.num_rows:,} rows"
    title = f"{name} and {its} differ: {len(rows)} found" if rows else f"{name} and {its} agree"
    table = Table("Differences", ["what", "the class says", "the data show"], rows)
    return View(title, data, [table] if rows else [])


def _verdict(project: Project, source: SourceDefinition) -> Verdict:
    """Judge a source's first rows as a delivery, at the newest of their events."""
    limits = project.settings.limits.model_copy(update={"delivery_rows": ROWS})
    settings = project.settings.model_copy(update={"limits": limits})
    found = next(iter_loads(source, settings, project.folder, now=LONG_AGO, seen={})).load
    known = KnownKeys([r.check.target for r in Validator(source).plan.references])
    for other in project.plan.sources:
        if any(c in other.index for c in known.columns):
            for loaded in iter_loads(other, settings, project.folder, now=LONG_AGO, seen={}):
                known.learn(loaded.load.batch)
    now = found.batch.newest_event if len(found.batch) else 0
    return Validator(source).validate(found.batch, now=now, known=known, refused=found.refused)


def _differences(source: SourceDefinition, settings: SourceSettings, table: pa.Table) -> list[list[Any]]:
    rows: list[list[Any]] = []
    names, facts = data_names(source, settings.columns), facts_of(table)
    for column, name in names.items():
        fact = facts.get(name)
        if fact is None:
            rows += _undeclarable(str(column), column.dtype, name, table, nullable=column.nullable)
            continue
        if column.nullable and not fact.nulls:
            rows.append([str(column), "may be null", f"no null in {fact.rows} rows"])
        said = describe(column)
        for key, value in fact.constraints.items():
            if said.get(key) is None and column.role == "column":
                rows.append([str(column), f"no {key}=", f"{key}={value!r}"])
    extra = sorted(facts.keys() - {*names.values(), settings.arrival, settings.cursor})
    return rows + [[name, "not declared", f"{facts[name].dtype}, {facts[name].nulls} nulls"] for name in extra]


def _undeclarable(what: str, dtype: str, name: str, table: pa.Table, *, nullable: bool) -> list[list[Any]]:
    """Return how a column differs whose values have no type that a source can declare."""
    if name not in table.column_names:
        return [[what, dtype, "no such column"]]
    kind = table.schema.field(name).type
    if pa.types.is_null(kind):
        return [] if nullable else [[what, dtype, f"only nulls in {table.num_rows} rows"]]
    return [[what, dtype, f"{kind}, a type that no source has"]]


def _sampled(source: str, pipeline: str | None, env: str | None) -> tuple[str, Sample, str | None]:
    """Return the class's name, a source's first rows, and the zone of its local timestamps."""
    if pipeline is not None:
        project = load_project(pipeline, env=env)
        folder, settings = project.folder, project.settings
        definition = next((s for s in project.plan.sources if s.name == source), undeclared(source))
    else:
        folder, settings, definition = Path.cwd(), Settings(), undeclared(source)
        if not Path(source).is_file():
            settings = load_settings(folder, env=env)
    if definition.held is not None or source in settings.sources:
        return source, sample(definition, settings, folder), reading_of(definition, settings).zone
    if Path(source).is_file():
        name = class_name(source)
        return name, sample_file(Path(source), name), None
    if not (Path(source).is_dir() or source.startswith(PREFIX) or "://" in source or any(c in source for c in GLOB)):
        raise UsageError(
            f"neither a place nor a source of headrace.toml: {source}",
            got=source,
            expected=sorted(settings.sources) or "a Parquet, CSV or JSON Lines file, a folder, a glob or delta:FOLDER",
            next_step=did_you_mean(source, settings.sources) if settings.sources else None,
        )
    name = class_name(source)
    placed = settings.model_copy(update={"sources": {name: SourceSettings(path=source)}})
    return name, sample(undeclared(name), placed, Path.cwd()), None


def _shown(fact: ColumnFacts) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in fact.constraints.items())
