"""Draw the data of `feature_store.py` and define them for Headrace; the same numbers, byte by byte, as the peers' scripts.

views    va, vb, vc: 20, 20 and 10 features of 10,000 entities, one row each; of every ten features six are float64, three
         int64 and one a text of 8 characters. vm: 10 features of 1,000,000 entities. Seen one second after the event.
pit      labels at days 30 to 90 of 10,000 entities; feature rows of days 0 to 90 with f0 to f9, seen up to an hour late
events   an amount at an instant, keys uniform or by Zipf's law with exponent 1.1, in order of time over 90 days
"""

from __future__ import annotations

import types
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

import headrace as hr
from headrace.core.settings import SourceSettings
from headrace.features.plan import FeaturePlan, plan_features
from headrace.pipelines.reveals import append_reveals, reveals_table
from headrace.sources.definition import SourceDefinition, definition_of
from headrace.sources.plan import expand
from headrace.sources.readers import Conformer
from headrace.sources.record import RevealBatch
from headrace.storage.tables import Tables, open_tables

START = int(np.datetime64("2026-08-01T00:00:00", "us").astype("int64"))
DAY = 86_400_000_000
END = START + 91 * DAY
ENTITIES = 10_000
VIEWS = {"va": 20, "vb": 20, "vc": 10}
FOLDER = Path(".peers/fs/data")
SEED = 7
Ints = NDArray[np.int64]


def instants(microseconds: Ints) -> pa.Array:
    """Return instants as Arrow timestamps, UTC."""
    return pa.array(microseconds, pa.int64()).cast(pa.timestamp("us", tz="UTC"))


def draw_view(name: str, features: int, rows: int = ENTITIES) -> pa.Table:
    """Return one row of features for each entity."""
    r = np.random.default_rng(SEED + sum(map(ord, name)))
    moment = START + r.integers(80 * DAY, 90 * DAY, rows)
    table = {"entity_id": np.arange(rows), "event_timestamp": instants(moment), "created": instants(moment + 1_000_000)}
    for i in range(features):
        if i % 10 < 6:
            table[f"{name}_{i}"] = r.standard_normal(rows)
        elif i % 10 < 9:
            table[f"{name}_{i}"] = r.integers(0, 1 << 40, rows)
        else:
            table[f"{name}_{i}"] = pa.array(np.char.mod("%08x", r.integers(0, 1 << 32, rows)).tolist())
    return pa.table(table)


def draw_rows(labels: int, rows: int) -> tuple[pa.Table, pa.Table]:
    """Return labels, and rows of ten features to be joined to them."""
    r = np.random.default_rng(SEED)
    asked = pa.table(
        {
            "entity_id": r.integers(0, ENTITIES, labels),
            "event_timestamp": instants(START + r.integers(30 * DAY, 90 * DAY, labels)),
            "label": r.integers(0, 2, labels),
        }
    )
    moment = START + r.integers(0, 90 * DAY, rows)
    table = {"entity_id": r.integers(0, ENTITIES, rows), "event_timestamp": instants(moment)}
    table["created"] = instants(moment + r.integers(0, DAY // 24, rows))
    return asked, pa.table(table | {f"f{i}": r.standard_normal(rows) for i in range(10)})


def draw_events(n: int, zipf: bool) -> pa.Table:
    """Return n events in order of time."""
    r = np.random.default_rng(SEED)
    if zipf:
        law = 1.0 / np.arange(1, ENTITIES + 1) ** 1.1
        hot = np.cumsum(law / law.sum())
        key = r.permutation(ENTITIES)[np.minimum(np.searchsorted(hot, r.random(n)), ENTITIES - 1)]
    else:
        key = r.integers(0, ENTITIES, n)
    moment = START + np.sort(r.integers(0, 90 * DAY, n))
    table = {"entity_id": key.astype("int64"), "ts": instants(moment), "amount": r.lognormal(3, 1, n)}
    return pa.table(table | {"item": r.integers(0, 1000, n)})


def written(name: str) -> Path:
    """Return the file of a data set, drawn on first use: va, vb, vc, vm, labels_s, feats_l, events_u and so on."""
    path = FOLDER / f"{name}.parquet"
    if path.exists():
        return path
    FOLDER.mkdir(parents=True, exist_ok=True)
    for drawn, table in _drawn(name).items():
        part = FOLDER / f"{drawn}.part"
        pq.write_table(table, part)
        part.rename(FOLDER / f"{drawn}.parquet")
    return path


def _drawn(name: str) -> dict[str, pa.Table]:
    if name in VIEWS:
        return {name: draw_view(name, VIEWS[name])}
    if name in ("vm", "vm200k"):
        view = draw_view("vm", 10, 1_000_000)
        return {"vm": view, "vm200k": view.slice(0, 200_000)}
    if name.startswith("events"):
        return {name: draw_events(10_000_000, name.endswith("z"))}
    size = name[-1]
    labels, rows = draw_rows(*{"s": (100_000, 1_000_000), "l": (1_000_000, 10_000_000)}[size])
    return {f"labels_{size}": labels, f"feats_{size}": rows}


def _source(name: str, columns: dict[str, tuple[Any, Any]]) -> Any:
    def fill(scope: dict[str, Any]) -> None:
        scope["__module__"] = __name__
        scope["__annotations__"] = {column: dtype for column, (dtype, _) in columns.items()}
        scope.update({column: made for column, (_, made) in columns.items()})

    return types.new_class(name, (hr.Source,), {}, fill)


def _table(name: str, features: dict[str, Any]) -> type[hr.FeatureGroup]:
    """Return features of a table that something else computed: the newest row that was there holds."""
    columns: dict[str, tuple[Any, Any]] = {"entity_id": (hr.Column[int], hr.entity())}
    columns |= {"event_timestamp": (hr.Column[hr.Instant], hr.event_time())}
    columns |= {feature: (dtype, hr.column(state=True)) for feature, dtype in features.items()}
    source = _source(name.title(), columns)
    return hr.precomputed(source, entity=source.entity_id)


@cache
def view(name: str, features: int) -> type[hr.FeatureGroup]:
    """Return a view's features."""
    types = [hr.Column[float | None]] * 6 + [hr.Column[int | None]] * 3 + [hr.Column[str | None]]
    return _table(name, {f"{name}_{i}": types[i % 10] for i in range(features)})


@cache
def joined() -> type[hr.FeatureGroup]:
    """Return the ten features that are joined to labels."""
    return _table("rows", {f"f{i}": hr.Column[float | None] for i in range(10)})


@cache
def windows() -> type[hr.FeatureGroup]:
    """Return seven aggregates over four windows."""
    columns: dict[str, tuple[Any, Any]] = {
        "event_id": (hr.Column[int], hr.row_id()),
        "ts": (hr.Column[hr.Instant], hr.event_time()),
    }
    columns |= {"entity_id": (hr.Column[int], hr.entity()), "amount": (hr.Column[float | None], hr.column())}
    source = _source("Events", columns)
    makers = (hr.count, hr.sum, hr.mean, hr.min, hr.max, hr.stddev, hr.last)
    body = {make.__name__: make(source.amount).over("1h", "1d", "7d", "30d") for make in makers}

    def fill(scope: dict[str, Any]) -> None:
        scope.update(body)

    return types.new_class("Windows", (hr.FeatureGroup,), {"of": source, "entity": source.entity_id}, fill)


def plan_of(*groups: type[hr.FeatureGroup]) -> FeaturePlan:
    """Return how the groups' features follow from rows that bring the first group's key."""
    key = groups[0].__definition__.entity
    return plan_features([group.on(*key) for group in groups], "bench")


def source_of(group: type[hr.FeatureGroup]) -> SourceDefinition:
    """Return the source of a group's features."""
    return definition_of(group.__definition__.source)


def reveals_of(group: type[hr.FeatureGroup], table: pa.Table, observed: bool) -> RevealBatch:
    """Return what a table's rows state, as ingestion makes it; with `observed`, `created` says when each row was seen."""
    settings = SourceSettings(arrival="created") if observed else SourceSettings()
    definition = source_of(group)
    reader = Conformer(definition, settings, table.column_names, "bench")
    return expand(definition, reader.table(table, np.arange(table.num_rows)).table)


def stored(folder: Path, name: str, group: type[hr.FeatureGroup]) -> Tables:
    """Return tables of a data set's own in which its reveals are stored as `headrace run` stores them; filled on first use."""
    tables, source = open_tables(f"delta:{folder / name}"), source_of(group)
    if tables.describe(reveals_table(source.name)) is not None:
        return tables
    for number, batch in enumerate(pq.ParquetFile(written(name)).iter_batches(1_000_000)):
        table = pa.Table.from_batches([batch])
        if name.startswith("events"):
            ids = np.arange(number * 1_000_000, number * 1_000_000 + len(table))
            table = table.append_column("event_id", pa.array(ids))
        append_reveals(tables, source, reveals_of(group, table, not name.startswith("events")).table)
    return tables
