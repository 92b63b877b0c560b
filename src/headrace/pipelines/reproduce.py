"""Build a version's training set again from what was recorded of it, and compare it bit by bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from headrace.core.errors import DataError, NoVersion, Refused, UsageError
from headrace.core.time import Instant, SystemClock
from headrace.features.asked import asked_of
from headrace.features.fingerprint import content_digest
from headrace.features.record import TrainingSet, label_columns, unlabelled
from headrace.features.training_set import training_set
from headrace.pipelines.project import Project
from headrace.pipelines.reveals import stream_reveals
from headrace.pipelines.spread import beside
from headrace.pipelines.stores import open_stores
from headrace.pipelines.view import Table, View
from headrace.registry.run import Registry
from headrace.storage.tables import Tables


def rebuild_training_set(project: Project, tables: Tables, manifest: Mapping[str, Any]) -> TrainingSet:
    """Return the training set that a manifest describes: of the same definition, table versions and `as_of`.

    Raises:
        Refused: the project describes another dataset by now.
        DataError: the manifest names no table versions, or one that is no longer kept.
    """
    plan, sources = project.plan, manifest.get("sources", {})
    if manifest.get("definition") != plan.hash:
        raise Refused(
            "the training set is of another definition than the project's",
            where=project.pipeline.model.dataset.location,
            got=f"dataset {plan.hash[:12]}",
            expected=f"dataset {str(manifest.get('definition'))[:12]}",
            next_step="check out the commit that headrace lineage names",
        )
    versions = {}
    for source in plan.sources:
        version = sources.get(source.name, {}).get("version")
        if version is None:
            raise DataError(
                "the manifest names no table versions", got=sources, next_step=f"headrace run {project.typed}"
            )
        versions[source.name] = version
    reveals = stream_reveals(tables, plan.sources, versions, asked_of(plan))
    try:
        return training_set(plan, reveals, as_of=manifest["as_of"], spread=beside(project))
    except NoVersion as error:
        error.next_step = "[offline] retention says how long old versions are kept"
        raise


def reproduce(project: Project, version: str, *, to: str | None, state: str | None) -> View:
    """Build a version's training set again, say whether it is the same to the last bit, and write it where asked.

    Raises:
        DataError: no such version, or its tables are no longer kept.
        Refused: the project describes another dataset by now.
        UsageError: the file to write is no Parquet file.
    """
    if to is not None and Path(to).suffix != ".parquet":
        raise UsageError("training sets are written as Parquet", got=to, expected="a path that ends in .parquet")
    with open_stores(project, state, clock=SystemClock(), write=False) as stores:
        chosen = Registry(stores.ledger, stores.blobs, project.name).version(version)
        found = rebuild_training_set(project, stores.tables, chosen.data)
    content, recorded = content_digest(found), chosen.data.get("content")
    same = content == recorded
    if to is not None:
        pq.write_table(as_table(found), to)
    data = {"version": chosen.name, "same": same, "content": content, "recorded": recorded, "rows": len(found)}
    data |= {"censored": unlabelled(found.label), "as_of": found.as_of, "written": to}
    versions = {name: body.get("version") for name, body in chosen.data["sources"].items()}
    rows = [["rows", f"{len(found):,}"], ["data as of", Instant(found.as_of).isoformat()], ["content", content]]
    rows += [["recorded", str(recorded)]] + [[f"table of {s}", f"version {v}"] for s, v in versions.items()]
    title = f"The training set of {chosen.name} is {'the same to the last bit' if same else 'ANOTHER ONE'}"
    return View(title, data | {"tables": versions}, [Table("Training set", ["", ""], rows)])


def as_table(found: TrainingSet) -> pa.Table:
    """Return moments, row columns, features, weights and labels as one table; a column of the rows keeps its own name."""
    table = found.rows.append_column("_at", pa.array(found.t, pa.timestamp("us", "UTC")))
    for name in found.features.column_names:
        table = table.append_column(name, found.features[name])
    if found.weight is not None:
        table = table.append_column("_weight", pa.array(found.weight))
    for name, label in label_columns(found.names, found.label).items():
        table = table.append_column(f"_{name}", label)
    return table
