"""Write a new project around a data file: the inferred source, settings, and a first pipeline to be reviewed."""

from __future__ import annotations

import json
import os
import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.core.errors import DataError, UsageError
from headrace.core.expressions import Column
from headrace.core.location import shown
from headrace.core.time import DAY, HOUR, MINUTE, SECOND, format_duration
from headrace.pipelines.view import Table, View
from headrace.sources.definition import SourceDefinition, definition_of
from headrace.sources.infer import class_name, code_of, infer
from headrace.sources.sample import sample_file

if TYPE_CHECKING:
    import pyarrow as pa

NUMBERS = ("int", "float", "bool")
HEAD = '''"""Predict {label} of {name}: a first pipeline, written from {rows:,} rows of {file}.

Review the source first: a value counts as known at {time} unless it says otherwise (known_at=), and a feature that
tells the answer makes a model that is worth nothing.
"""

from lightgbm import LGBMClassifier

import headrace as hr


'''
CLOCK = """@hr.on_demand({time}={name}.{time})
def hour_of_{time}({time}: hr.Instant) -> int:
    return {time}.in_zone("UTC").hour


"""
BODY = """dataset = hr.Dataset(
    rows={name},
    at={name}.{time},
    features=[{features}],
    label={label},
    mature="{mature}",
)


@hr.train(dataset, split=hr.by_time(valid="{part}", test="{part}"), search=hr.Search(trials=5, metric="log_loss"))
def first(data: hr.TrainingData, p: hr.Params) -> hr.Model:
    model = LGBMClassifier(
        num_leaves=p.int("num_leaves", 7, 31), random_state=p.seed, n_jobs=p.threads, deterministic=True, verbose=-1
    )
    return hr.model(model.fit(data.train.X, data.train.y))


pipeline = hr.Pipeline(
    model=first,
    decision=hr.threshold(0.5),
    gates=[hr.model_size() <= "20MB"],
    endpoint=hr.Endpoint(fallback=0.5),
)
"""


def write_project_from(folder: str, data: str, *, label: str | None, zone: str | None) -> View:
    """Write a project around a Parquet, CSV or JSON Lines file into a new or empty folder.

    Raises:
        UsageError: the folder holds something, or there is no such column.
        DataError: the file cannot be read.
        DefinitionError: no column names a row, or tells when it happened.
    """
    target, file = Path(folder), Path(data)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError("the folder is not empty", got=folder, next_step=f"headrace new {folder}-2 --from {data}")
    name = class_name(file.name)
    table = sample_file(file, name, zone=zone).table
    source = definition_of(infer(table, name, zone=zone))
    span = _span(source, table, file, zone)
    module = _module_name(name)
    answer = _label(source, table, label)
    code = _code(source, table, file, answer, span)
    target.mkdir(parents=True, exist_ok=True)
    (target / f"{module}.py").write_text(code)
    (target / "headrace.toml").write_text(_settings(module, name, os.path.relpath(file, target), zone))
    (target / ".gitignore").write_text(".headrace/\n")
    kinds = [[c.name, c.dtype + (" | None" if c.nullable else ""), _role(source, c)] for c in source.columns]
    kinds += [[left, str(table.schema.field(left).type), "left out"] for left in _left_out(source, table)]
    files = [f"{module}.py", "headrace.toml"]
    body = {"folder": folder, "files": files, "rows": table.num_rows, "label": answer[1]}
    body["columns"] = [dict(zip(("column", "type", "is"), row, strict=True)) for row in kinds]
    steps = (
        f"cd {folder}",
        f"review {module}.py",
        f"headrace plan {module}:pipeline",
        f"headrace run {module}:pipeline",
    )
    return View(f"A project in {folder}", body, [Table(name, ["column", "type", "is"], kinds)], ("Next:", *steps))


def _module_name(name: str) -> str:
    """Return a name for the project file under which nothing else can be imported."""
    module = name.lower()
    installed = PathFinder.find_spec(module, [path for path in sys.path if path.endswith("-packages")])
    return f"{module}_project" if module in sys.stdlib_module_names or installed else module


def _settings(module: str, name: str, path: str, zone: str | None) -> str:
    quoted = json.dumps(path, ensure_ascii=False)
    zones = f'zone = "{zone}"\n' if zone else ""
    return f'[project]\nmodules = ["{module}"]\n\n[sources.{name}]\npath = {quoted}\n{zones}'


def _span(source: SourceDefinition, table: pa.Table, file: Path, zone: str | None) -> int:
    """Return how long the events last, in microseconds."""
    import pyarrow as pa
    import pyarrow.compute as pc

    names = {c: c.renamed or c.name for c in source.columns}
    for c in source.columns:
        kind = table[names[c]].type
        if c.dtype == "instant" and kind.tz is None and zone is None:
            raise DataError(
                "timestamps without a zone",
                where=f"{shown(str(file))}, column {names[c]}",
                got=kind,
                expected="timestamps with an offset or in UTC",
                next_step=f"headrace new FOLDER --from {file} --zone Europe/Paris",
            )
    values = table[names[source.time]]
    limits = pc.min_max(
        values.cast(pa.timestamp("us", values.type.tz if source.time.dtype == "instant" else None), safe=False)
    )
    first, last = (limits[key].value for key in ("min", "max"))
    return max(int(last) - int(first), SECOND) if first is not None else DAY


def _durations(span: int) -> tuple[str, str, str]:
    """Return windows, the length of validation and test, and how long labels may take, for events of such a span."""
    windows = '"1d", "7d"' if span >= 60 * DAY else '"1h", "1d"' if span >= 3 * DAY else '"1m", "1h"'
    unit = next(u for u in (DAY, HOUR, MINUTE, SECOND) if span >= 20 * u or u == SECOND)
    part = max(unit, span * 3 // 20 // unit * unit)
    tick = next(u for u in (DAY, HOUR, MINUTE, SECOND) if span >= 1_000 * u or u == SECOND)
    return windows, format_duration(part), format_duration(max(tick, span // 1_000 // tick * tick))


def _label(source: SourceDefinition, table: pa.Table, wanted: str | None) -> tuple[Column[Any], str]:
    """Return the column to predict, and the label as an expression that is true or false."""
    import pyarrow.compute as pc

    own = [
        c for c in source.columns if c.role == "column" and c.dtype in (*NUMBERS, "str") and c.name not in _key(source)
    ]
    if wanted is not None:
        own = [c for c in own if wanted in (c.name, c.renamed)]
    if not own:
        raise UsageError(
            "no column to predict",
            got=wanted,
            expected=[c.name for c in source.columns if c.role == "column"],
            next_step="--label COLUMN names one that holds numbers, texts, or true and false",
        )
    kinds = {kind: [c for c in own if c.dtype == kind] for kind in ("bool", "float", "int", "str")}
    chosen = next(found[-1] for found in kinds.values() if found)
    text, values = f"{source.name}.{chosen.name}", table[chosen.renamed or chosen.name].drop_null()
    if chosen.dtype == "bool":
        return chosen, text
    if chosen.dtype == "str":
        found = values.value_counts().to_pylist()
        common = max(found, key=lambda pair: int(pair["counts"]))["values"] if found else ""
        return chosen, f"{text} == {common!r}"
    middle = pc.quantile(values.cast("float64"), 0.5)[0].as_py() or 0.0
    return chosen, f"{text} > {int(middle) if chosen.dtype == 'int' else round(middle, 6)}"


def _code(source: SourceDefinition, table: pa.Table, file: Path, label: tuple[Column[Any], str], span: int) -> str:
    name, time = source.name, source.time.name
    windows, part, mature = _durations(span)
    numbers = [c for c in source.columns if c.dtype in NUMBERS and c.role == "column" and c.name not in _key(source)]
    groups = [_group(source, c, numbers, windows) for c in source.columns if c.role == "entity"]
    clock = CLOCK.format(name=name, time=time) if source.time.dtype == "instant" else ""
    features = [f"{name}.{c.name}" for c in numbers if c is not label[0]] + [group for group, _ in groups]
    listed = ", ".join([*features, *([f"hour_of_{time}"] if clock else [])])
    told = re.sub(r"[^\w. -]", "_", file.name)  # whatever a file is called, the code stays code
    head = HEAD.format(label=label[0].name, name=name, rows=table.num_rows, file=told, time=time)
    body = BODY.format(name=name, time=time, features=listed, label=label[1], mature=mature, part=part)
    return head + code_of(source) + "\n\n" + "".join(text for _, text in groups) + clock + body


def _group(source: SourceDefinition, thing: Column[Any], numbers: list[Column[Any]], windows: str) -> tuple[str, str]:
    """Return the name and the code of the features of a thing."""
    name = "".join(word.title() for word in thing.name.split("_"))
    name = f"{name}Features" if name == source.name else name
    lines = [
        f"class {name}(hr.FeatureGroup, of={source.name}, entity={source.name}.{thing.name}):",
        f"    count = hr.count({source.name}.{source.id_columns[0].name}).over({windows})",
    ]
    for c in numbers:
        kind, prefix = ("rate", "share") if c.dtype == "bool" else ("mean", "mean")
        lines.append(f"    {prefix}_{c.name} = hr.{kind}({source.name}.{c.name}).over({windows})")
    return name, "\n".join([*lines, "", "", ""])


def _key(source: SourceDefinition) -> set[str]:
    return {c.name for c in source.id_columns}


def _role(source: SourceDefinition, column: Column[Any]) -> str:
    if column.name in _key(source):
        return "names the row" if len(source.id_columns) == 1 else "names the row, with others"
    told = {"event_time": "when it happened", "entity": "a thing that has features"}
    return told.get(column.role, "")


def _left_out(source: SourceDefinition, table: pa.Table) -> list[str]:
    taken = {c.renamed or c.name for c in source.columns}
    return [name for name in table.column_names if name not in taken]
