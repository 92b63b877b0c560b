"""Measure how well features are filled: freshness by source, coverage and null rate by feature, served and stored."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from headrace.core.identity import unit_interval
from headrace.core.time import Clock, Instant, rough_duration
from headrace.features.definition import FeatureGroup
from headrace.features.online import OnlineFeatures
from headrace.features.plan import FeaturePlan, plan_features
from headrace.features.record import OK
from headrace.features.stream import DATABASE, moment_of_read
from headrace.pipelines.project import Project
from headrace.pipelines.reveals import reveals_table
from headrace.pipelines.stores import Stores, applied_key, open_stores
from headrace.pipelines.view import Table
from headrace.serving.log import read_segment, segments
from headrace.sources.definition import SourceDefinition
from headrace.sources.record import ARRIVAL

SERVED_ROWS = 10_000  # newest predictions that are looked at
KEYS = 1_000  # keys of a group that are read, chosen by their hash


@dataclass(frozen=True)
class Health:
    """Hold how a feature of the dataset is filled.

    `served` counts the newest predictions looked at, `coverage` is the share of them with a value, `statuses` says why the
    others had none; `null_rate` is the share that was null though its key was known. `keys` counts the keys that were read
    from the online store, `keys_coverage` the share of them with a value now.
    """

    feature: str
    served: int
    coverage: float | None
    null_rate: float | None
    statuses: Mapping[str, int]
    keys: int = 0
    keys_coverage: float | None = None


@dataclass(frozen=True)
class Freshness:
    """Hold how old the newest applied arrival of a source is, in microseconds, and whether all of its table is applied."""

    source: str
    newest: int | None
    lag: int | None
    applied: bool


@dataclass(frozen=True)
class Measured:
    """Hold the health of every feature by its name in the dataset, and the freshness of every source."""

    features: Mapping[str, Health]
    sources: tuple[Freshness, ...]

    def tables(self, wanted: Collection[str]) -> list[Table]:
        """Return some features' health and all sources' freshness as people read them."""
        rows = [_row(h) for name, h in self.features.items() if name in wanted]
        names = ["feature", "served", "coverage", "null rate", "without a value", "keys", "keys with a value"]
        fresh = [
            [
                s.source,
                "nothing" if s.newest is None else Instant(s.newest).isoformat(),
                "–" if s.lag is None else rough_duration(max(s.lag, 0)),
                "all" if s.applied else "not all",
            ]
            for s in self.sources
        ]
        return [
            Table("Health", names, rows),
            Table("Freshness", ["source", "newest applied arrival", "lag", "of its table applied"], fresh),
        ]


def _row(h: Health) -> list[Any]:
    why = ", ".join(f"{count} {name}" for name, count in h.statuses.items() if name != "OK")
    return [h.feature, h.served, _share(h.coverage), _share(h.null_rate), why, h.keys, _share(h.keys_coverage)]


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def measure_health(project: Project, *, state: str | None, clock: Clock) -> Measured:
    """Measure every feature of the dataset from the newest predictions and the online store; a server may run beside.

    Raises:
        ConfigurationError: there is no state folder.
        Corrupt: a store is damaged.
    """
    with open_stores(project, state, clock=clock, write=False) as stores:
        served, statuses = _served(project, stores)
        stored = _stored(project, stores, clock)
        sources = tuple(_freshness(source, stores, clock) for source in project.plan.sources)
    found = {}
    for column in project.plan.columns:
        counts = statuses[column.name]
        known = served - counts["NO_KEY"] - counts["NOT_FOUND"]
        keys, whole = stored.get(column.name, (0, 0))
        found[column.name] = Health(
            column.name,
            served,
            counts["OK"] / served if served else None,
            1 - counts["OK"] / known if known else None,
            dict(counts),
            keys,
            whole / keys if keys else None,
        )
    return Measured(found, sources)


def _served(project: Project, stores: Stores) -> tuple[int, dict[str, Counter[str]]]:
    """Return how many of the newest predictions had the project's features, and each feature's statuses."""
    statuses: dict[str, Counter[str]] = {column.name: Counter() for column in project.plan.columns}
    rows = 0
    for segment in reversed(segments(stores.predictions)):
        for prediction in read_segment(stores.predictions, segment):
            if prediction.definition == project.plan.features:
                rows += 1
                for name, counts in statuses.items():
                    counts[prediction.status.get(name, "OK")] += 1
        if rows >= SERVED_ROWS:
            break
    return rows, statuses


def _stored(project: Project, stores: Stores, clock: Clock) -> dict[str, tuple[int, int]]:
    """Return for each windowed or latest feature how many keys were read online, and how many of them have a value."""
    found: dict[str, tuple[int, int]] = {}
    for binding in project.plan.bindings:
        if binding.group.lanes[0].source.query is not None:
            continue  # features by a query are never online
        group: type[FeatureGroup] | None = binding.group.definition.features[0].group
        assert group is not None
        plan = plan_features([group], project.pipeline.location)
        counts = _read_keys(plan, binding.group.lanes[0].source, stores, clock)
        place = binding.offset
        for lane in binding.lanes:
            for column in lane.columns:
                found[project.plan.columns[place].name] = counts[column.name]
                place += 1
    return found


def _read_keys(plan: FeaturePlan, source: SourceDefinition, stores: Stores, clock: Clock) -> dict[str, tuple[int, int]]:
    names = [c.name for c in plan.row]
    seen: pa.Table | None = None
    for piece in stores.tables.scan(reveals_table(source.name), columns=names):
        parts = [piece.drop_null()] if seen is None else [seen, piece.drop_null()]
        seen = pa.concat_tables(parts).group_by(names).aggregate([]).select(names)
    keys = [] if seen is None else seen.to_pylist()
    rows = [[key[name] for name in names] for key in keys]
    chosen = heapq.nsmallest(KEYS, rows, key=lambda row: unit_interval("health", *map(str, row)))
    whole, reader = [0] * len(plan.columns), OnlineFeatures(plan)
    with stores.online.read() as snapshot:
        get = snapshot.getter(DATABASE)
        t = moment_of_read(get, None, now=int(clock.now()))
        for row in chosen:
            for i, status in enumerate(reader.read(get, row, t).status.tolist()):
                whole[i] += status == OK
    return {column.name: (len(chosen), count) for column, count in zip(plan.columns, whole, strict=True)}


def _freshness(source: SourceDefinition, stores: Stores, clock: Clock) -> Freshness:
    table, described = reveals_table(source.name), stores.tables.describe(reveals_table(source.name))
    if described is None:
        return Freshness(source.name, None, None, True)
    with stores.online.read() as snapshot:
        held = snapshot.get(DATABASE, applied_key(source.name))
    version = described.version if held is None else int(held)
    pieces = stores.tables.scan(table, columns=[ARRIVAL], version=version)
    newest = max((pc.max(piece[ARRIVAL]).as_py() for piece in pieces if piece.num_rows), default=None)
    lag = None if newest is None else int(clock.now()) - newest
    return Freshness(source.name, newest, lag, version == described.version and held is not None)
