"""Compute one bucket: the functions that engines send to workers, with definitions stripped to what they need there."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.core.expressions import Column, columns_of, on_table
from headrace.core.identity import row_hash
from headrace.engines import Tables
from headrace.features.aggregates import Feature
from headrace.features.equal import equal_rows
from headrace.features.history import NEVER, History, Ints, row_prefix
from headrace.features.lane_plan import LanePlan
from headrace.features.offline import answers, lane_versions, tells_texts
from headrace.features.past import RowsAsked, keys_of, rows_of
from headrace.features.snapshots import Copies
from headrace.features.texts import Texts, longer_texts
from headrace.features.windows import LaneEvents, ValueType
from headrace.sources.definition import SourceDefinition
from headrace.sources.record import ROW_ID

# No column of a source has such a name.
PLACE = "#place"  # of a reveal in its source's table
FIRST, VERSION = "#first", "#version"  # the least place of a row's reveals; the number of a row's version
T, LABEL, SEEN = "#t", "#label", "#seen"


@dataclass(frozen=True)
class Unfold:
    """Turn a bucket of a source's reveals into the events of some lanes, a table for each.

    With `living` only those are there that hold at the end, with all their texts.
    """

    source: SourceDefinition
    lanes: tuple[LanePlan, ...]
    as_of: int
    living: bool = False

    def __call__(self, tables: Tables) -> list[pa.Table]:
        """Return the events."""
        history = History.build(self.source, tables[0], self.as_of, threads=1)
        return [_events_table(lane, history, self.living) for lane in self.lanes]


@dataclass(frozen=True)
class Scan:
    """Answer a bucket's questions of a lane, whose events under the same keys come with them."""

    lane: LanePlan
    as_of: int | None
    copies: Copies | None

    def __call__(self, tables: Tables) -> list[pa.Table]:
        """Return words, statuses and texts of each question."""
        stored, asked = tables
        encoded = stored["key"].combine_chunks().dictionary_encode()
        events = _events(self.lane, stored, encoded.indices.to_numpy().astype(np.int64))
        query = pc.fill_null(pc.index_in(asked["key"], value_set=encoded.dictionary), -1).to_numpy().astype(np.int64)
        t, texts = asked["t"].to_numpy(), _texts(self.lane, stored)
        found = answers(self.lane, events, query, t, texts, self.as_of, self.copies, threads=1)
        columns: dict[str, Any] = {f"w{i}": found.words[:, i] for i in range(len(self.lane.outputs))}
        columns |= {f"s{i}": found.status[:, i] for i in range(len(self.lane.outputs))}
        return [pa.table(columns | {f"t{i}": column for i, column in found.texts.items()})]


@dataclass(frozen=True)
class Rows:
    """Find the rows among a bucket of reveals."""

    asked: RowsAsked

    def __call__(self, tables: Tables) -> list[pa.Table]:
        """Return the rows with their moments, labels and places."""
        base = History.build(self.asked.source, tables[0], self.asked.as_of, threads=1)
        own, starts = rows_of(self.asked, base)
        first = _first_told(base)[np.searchsorted(base.starts, starts)]
        told = {T: own.t, FIRST: first, LABEL: own.label, SEEN: own.seen}
        for name, values in told.items():
            own = replace(own, rows=own.rows.append_column(name, pa.array(values)))
        return [own.rows]


@dataclass(frozen=True)
class Shown:
    """Find the different keys among a bucket of reveals."""

    source: SourceDefinition
    columns: tuple[Column[Any], ...]
    as_of: int

    def __call__(self, tables: Tables) -> list[pa.Table]:
        """Return the keys with the places of their first versions, and the earliest arrival if there is one."""
        history = History.build(self.source, tables[0], self.as_of, threads=1)
        keys, version = keys_of(history, self.columns)
        row = np.searchsorted(history.starts, version, side="right") - 1
        keys = keys.append_column(FIRST, pa.array(_first_told(history)[row]))
        keys = keys.append_column(VERSION, pa.array(version - history.starts[row]))
        return [keys, pa.table({"arrival": pa.array(history.arrival[np.argsort(history.arrival)[:1]])})]


def bare_source(source: SourceDefinition) -> SourceDefinition:
    """Return a source without its checks, which may refer to classes that no worker has, and without rows or a query in hand."""
    return replace(source, checks=None, held=None, query=None)


def bare_lane(lane: LanePlan) -> LanePlan:
    """Return a lane without the classes that define it and without what was compiled for it in this process."""
    features = tuple((_ungrouped(feature), part) for feature, part in lane.features)
    return replace(lane, source=bare_source(lane.source), lane=replace(lane.lane), features=features)


def _ungrouped(feature: Feature) -> Feature:
    found = copy(feature)
    found.group, found.aggregate = None, replace(feature.aggregate, rows=None)
    return found


def _first_told(history: History) -> Ints:
    """Return, for each row, the least place of its reveals in the source's table."""
    if not len(history):
        return np.zeros(0, np.int64)
    places: Ints = history.table[PLACE].to_numpy()[history.order]
    return np.minimum.reduceat(places, history.starts)


def _events_table(lane: LanePlan, history: History, living: bool) -> pa.Table:
    events, keys, kept = lane_versions(lane, history)
    if living and (events.until != NEVER).any():
        held = np.flatnonzero(events.until == NEVER)
        events, kept = LaneEvents(*(column[held] for column in vars(events).values())), kept[held]
    columns = {
        "key": keys.take(pa.array(events.key)),
        "moment": pa.array(events.moment),
        "arrival": pa.array(events.arrival),
        "until": pa.array(events.until),
        "row": history.table[ROW_ID].combine_chunks().cast(pa.binary()).take(pa.array(history.order[kept])),
    }
    for i in range(len(lane.lane.values)):
        columns[f"v{i}"] = pa.array(events.words[:, i], mask=events.nulls[:, i])
    for i in _text_places(lane, every=living):
        value = lane.values[i]
        texts = on_table(value, history.read(columns_of(value))[0]).combine_chunks()
        columns[f"x{i}"] = texts.cast(pa.string()).take(pa.array(kept))
    return pa.table(columns)


def _text_places(lane: LanePlan, *, every: bool = False) -> list[int]:
    """Return which of a lane's values are texts that someone reads, or which are texts at all."""
    places = [i for i, kind in enumerate(lane.lane.values) if kind is ValueType.REF]
    return places if every or tells_texts(lane) else []


def stored_events(lane: LanePlan, stored: pa.Table, key: Ints) -> LaneEvents:
    """Return a bucket's events of keys by their numbers, without their rows' hashes."""
    columns = [stored[f"v{i}"].combine_chunks() for i in range(len(lane.lane.values))]
    shape = (len(key), len(columns))
    words, nulls = np.zeros(shape, np.int64), np.zeros(shape, bool)
    for i, column in enumerate(columns):
        words[:, i] = pc.fill_null(column, 0).to_numpy(zero_copy_only=False)
        nulls[:, i] = column.is_null().to_numpy(zero_copy_only=False)
    moment, arrival, until = (stored[name].to_numpy() for name in ("moment", "arrival", "until"))
    return LaneEvents(key, moment, arrival, until, np.zeros(len(key), np.int64), words, nulls)


def _events(lane: LanePlan, stored: pa.Table, key: Ints) -> LaneEvents:
    events = stored_events(lane, stored, key)
    tied, prefix = equal_rows(key, events.moment, events.arrival), row_prefix(lane.source.name)
    rows = stored["row"].take(pa.array(tied)).to_pylist()
    events.row[tied] = [row_hash(prefix + row) for row in rows]
    return events


def _texts(lane: LanePlan, stored: pa.Table) -> Texts:
    return Texts.of(longer_texts(stored[f"x{i}"]) for i in _text_places(lane))
