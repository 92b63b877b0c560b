"""Write contracts from samples, and tell how a source's class differs from what its data suggest."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from headrace.core.errors import DataError, UsageError, did_you_mean
from headrace.core.location import shown
from headrace.core.settings import SourceSettings, load_settings
from headrace.core.time import Instant
from headrace.pipelines.project import Project, load_project
from headrace.pipelines.quarantine import source_named
from headrace.pipelines.view import Table, View
from headrace.sources.batch import load
from headrace.sources.definition import SourceDefinition, describe
from headrace.sources.values import data_names
from headrace.validation.infer import ColumnFacts, contract_code, facts_of
from headrace.validation.run import KnownKeys, Validator

SAMPLE = 1_000_000  # rows of a file that a contract is inferred from


def infer_contract(source: str, *, pipeline: str | None, env: str | None, to: str | None) -> View:
    """Return a source's class as code, from a file or from where settings say the source's rows lie.

    Raises:
        UsageError: there is no such file and no such source, or `to` exists.
        DataError: the sample names no rows or no moments.
    """
    path, name, settings = _placed(source, pipeline, env)
    if to is not None and Path(to).exists():
        raise UsageError(
            "the file exists", got=to, expected="a new file", next_step="choose another name, and compare the two"
        )
    table = _sample(path, settings)
    facts = facts_of(table)
    code = contract_code(name, facts, table)
    if to is not None:
        Path(to).write_text(code)
    lines = [[f.python, f.dtype, f.nulls, f.distinct, _shown(f)] for f in facts]
    left = [c for c in table.column_names if c not in {f.name for f in facts}]
    notes = [f"Not declared, for want of a type: {', '.join(left)}"] if left else []
    notes += [f"Written to {to}" if to else code, "Review it: a sample shows what is, not what should be."]
    columns = Table("The sample", ["column", "type", "nulls", "distinct", "constraints"], lines)
    data = {"source": name, "rows": table.num_rows, "code": code, "left_out": left, "file": to}
    return View(f"A contract of {name} from {table.num_rows:,} rows", data, [columns], tuple(notes))


def check_contract(project: Project, name: str) -> View:
    """Return where a source's class and its data part: columns, constraints that hold undeclared, checks that fail."""
    source = source_named(project, name)
    settings = project.settings.source(name)
    found = load(source, project.settings, project.folder)
    newest = found.batch.newest_event
    known = KnownKeys([r.check.target for r in Validator(source).plan.references])
    for other in project.plan.sources:
        if any(c.owner is not None and c.owner.__name__ == other.name for c in known.columns):
            known.learn(load(other, project.settings, project.folder).batch)
    verdict = Validator(source).validate(found.batch, now=newest, known=known, refused=found.refused)
    path, _, _ = _placed(name, project.target, None, project)
    facts = {f.name: f for f in facts_of(_sample(path, settings))}
    rows = _differences(source, settings, facts)
    rows += [[r.name, r.threshold or r.severity, f"{r.status}: {r.measured}"] for r in verdict.failed]
    data = {
        "source": name,
        "at": Instant(newest).isoformat(),
        "differences": [{"what": what, "class": said, "data": shows} for what, said, shows in rows],
    }
    title = f"{name} and its data differ: {len(rows)} found" if rows else f"{name} and its data agree"
    table = Table("Differences", ["what", "the class says", "the data show"], rows)
    return View(title, data, [table] if rows else [])


def _differences(source: SourceDefinition, settings: SourceSettings, facts: dict[str, ColumnFacts]) -> list[list[Any]]:
    rows: list[list[Any]] = []
    names = data_names(source, settings.columns)
    for column, name in names.items():
        fact = facts.get(name)
        if fact is None:
            rows.append([str(column), column.dtype, "no such column, or of a type that no source has"])
            continue
        if column.nullable and not fact.nulls:
            rows.append([str(column), "may be null", f"no null in {fact.rows} rows"])
        said = describe(column)
        for key, value in fact.constraints.items():
            if said.get(key) is None and column.role == "column":
                rows.append([str(column), f"no {key}=", f"{key}={value!r}"])
    extra = sorted(facts.keys() - set(names.values()))
    return rows + [[name, "not declared", f"{facts[name].dtype}, {facts[name].nulls} nulls"] for name in extra]


def _placed(
    source: str, pipeline: str | None, env: str | None, project: Project | None = None
) -> tuple[Path, str, SourceSettings]:
    """Return a source's first file, the class's name, and how to read it."""
    path = Path(source)
    if path.is_file():
        words = [w for w in "".join(c if c.isalnum() else " " for c in path.name.split(".")[0]).split() if w]
        name = "".join(w[:1].upper() + w[1:] for w in words) or "Rows"
        return path, name if not name[0].isdigit() else f"S{name}", SourceSettings()
    if project is None and pipeline is not None:
        project = load_project(pipeline, env=env)
    folder = project.folder if project is not None else Path.cwd()
    settings = project.settings if project is not None else load_settings(folder, env=env)
    held = settings.sources.get(source)
    if held is None or held.path is None:
        raise UsageError(
            f"neither a file nor a source of headrace.toml: {source}",
            got=source,
            expected=sorted(settings.sources) or "a Parquet, CSV or JSON Lines file",
            next_step=did_you_mean(source, settings.sources) if settings.sources else None,
        )
    files = sorted(p for p in (folder.glob(held.path) if not Path(held.path).is_absolute() else [Path(held.path)]))
    inner = [q for p in files for q in (sorted(p.rglob("*.*")) if p.is_dir() else [p]) if q.is_file()]
    if not inner:
        raise DataError(f"{source}: no such file", where=f"[sources.{source}] path", got=held.path)
    return inner[0], source, held


def _sample(path: Path, settings: SourceSettings) -> pa.Table:
    """Return the first rows of a file, typed as it says, or as its texts look."""
    suffixes = {suffix[1:].lower() for suffix in path.suffixes}
    kind = settings.format or next((k for k in ("parquet", "csv") if k in suffixes), "jsonl")
    try:
        if kind == "csv":
            nulls = pyarrow.csv.ConvertOptions(
                null_values=list(settings.nulls), strings_can_be_null=True, quoted_strings_can_be_null=False
            )
            return pyarrow.csv.read_csv(path, convert_options=nulls).slice(0, SAMPLE)
        if kind == "jsonl":
            return pyarrow.json.read_json(path).slice(0, SAMPLE)
        with pq.ParquetFile(path) as file:
            return pa.Table.from_batches(islice(file.iter_batches(SAMPLE), 1), file.schema_arrow)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            "the sample cannot be read",
            where=shown(str(path)),
            got=str(error).splitlines()[0],
            expected="a Parquet, CSV or JSON Lines file",
        ) from error


def _shown(fact: ColumnFacts) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in fact.constraints.items())
