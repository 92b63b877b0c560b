"""Retrieve features for people: a dataset's rows, a caller's rows, keys' online values, or a few invented events."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.core.errors import DataError, InternalError, UsageError, did_you_mean
from headrace.core.expressions import Column
from headrace.core.identity import encode_key
from headrace.core.settings import load_settings
from headrace.core.time import Clock, Instant
from headrace.features.dataset import Dataset, Grid
from headrace.features.definition import FeatureGroup, FeatureLike
from headrace.features.frame import AT, FeatureFrame, RowExplanation
from headrace.features.history import History
from headrace.features.moment import open_read
from headrace.features.offline import OfflineFeatures, Values, histories_of
from headrace.features.online import OnlineFeatures
from headrace.features.plan import DatasetPlan, FeaturePlan, plan_dataset, plan_features
from headrace.features.record import FeatureTable, TrainingSet
from headrace.features.stream import DATABASE, StreamPath
from headrace.features.training_set import MaturedRows, as_training_set, facts_of, matured_rows
from headrace.sources.batch import load
from headrace.sources.casts import cast_cells
from headrace.sources.definition import SourceDefinition, definition_of
from headrace.sources.plan import reveal_of
from headrace.sources.record import ARRIVAL, ROW_ID, RevealBatch
from headrace.sources.run import batch_of
from headrace.sources.values import EventReader, arrow_type, plain, typed_value
from headrace.storage.keyvalue import open_keyvalue
from headrace.storage.state import StateFolder
from headrace.validation.run import KnownKeys, Validator, referred_columns

EVER = 2**62  # later than every arrival
ASSUMED = {"arrival": "assumed"}


def project_folder(definition: type) -> Path:
    """Return the folder of the file that defines a class, the working folder for a notebook's own."""
    file = getattr(sys.modules.get(definition.__module__), "__file__", None)
    return Path(file).resolve().parent if file else Path.cwd()


def home_of(dataset: Dataset) -> type:
    """Return the source in whose file's folder a dataset's settings lie."""
    if not isinstance(dataset.rows, Grid):
        return dataset.rows
    owner = dataset.rows.keys[0].owner
    assert owner is not None
    return owner


def read_sources(sources: Sequence[SourceDefinition], folder: Path, env: str | None) -> dict[str, pa.Table]:
    """Return each source's reveals from where `headrace.toml` says its rows lie, bad rows left out as the gate does.

    Raises:
        ConfigurationError: settings do not say where the rows lie.
        DataError: the rows cannot be read, or a check stops them.
    """
    settings = load_settings(folder, env=env)
    known = KnownKeys(referred_columns(sources))
    found = {}
    for source in sources:
        loaded = load(source, settings, folder)
        validator = Validator(source, null_period=settings.limits.null_rate_period)
        now = loaded.batch.newest_event
        verdict = validator.validate(
            loaded.batch, now=now, known=known, refused=loaded.refused, observed=loaded.observed
        )
        verdict.raise_if_stopped()
        known.learn(verdict.accepted)
        found[source.name] = verdict.accepted.table
    return found


@dataclass(frozen=True, eq=False)
class DatasetRows:
    """Hold a dataset's matured rows with all that they follow from."""

    plan: DatasetPlan
    histories: Mapping[str, History]
    found: MaturedRows
    as_of: int
    facts: Mapping[str, Any]

    def frame(self) -> FeatureFrame:
        """Return the rows as a frame; they are named by their ids."""
        named = _named(self.found.rows, self.plan.rows.id_columns)
        found = self.found
        return FeatureFrame(
            self.plan, named, found.rows, found.t, found.values, found.label, self.facts, self.histories
        )

    def training_set(self) -> TrainingSet:
        """Return the rows as training takes them."""
        return as_training_set(self.plan, self.found, self.as_of, self.facts)


def dataset_rows(
    dataset: Dataset, *, clock: Clock, as_of: int | None, limit: int | None, env: str | None
) -> DatasetRows:
    """Return a dataset's rows that had matured at `as_of`: by default every row whose label could have come.

    Raises:
        ConfigurationError, DataError: as `read_sources`.
    """
    plan = plan_dataset(dataset)
    reveals = read_sources(plan.sources, project_folder(home_of(dataset)), env)
    newest = max(pc.max(table[ARRIVAL]).as_py() or 0 for table in reveals.values())
    as_of = as_of if as_of is not None else min(int(clock.now()), newest + plan.mature)
    histories = histories_of(plan, reveals, as_of)
    found = matured_rows(plan, histories, as_of=as_of, limit=limit)
    return DatasetRows(plan, histories, found, as_of, facts_of(plan, found, as_of) | ASSUMED)


def explain_dataset_row(
    dataset: Dataset,
    row: Mapping[str, Any] | Sequence[Any] | str | int,
    feature: str | None,
    *,
    at: int | None,
    env: str | None,
) -> RowExplanation:
    """Explain a row of the sources by its id, or a row that is given with its columns, as a request would bring it.

    Raises:
        UsageError: there is no row of that id, or a given row does not tell its moment.
        DataError: a given row's value is not of its column's type.
    """
    plan = plan_dataset(dataset)
    reveals = read_sources(plan.sources, project_folder(home_of(dataset)), env)
    histories = histories_of(plan, reveals, EVER)
    if isinstance(row, Mapping):
        values, problems = EventReader(plan.rows).read(row)
        if problems:
            raise DataError("not a row of the dataset", got=problems, expected=[str(c) for c in plan.request])
        cells = [values.get(c.name) for c in plan.row]
        t = at if at is not None else plan.at.per_row(plan.places)(cells)
    else:
        cells, t = _stored_row(plan, histories[plan.rows.name], row, at)
    if t is None:
        raise UsageError("the row does not tell its moment", got=row, expected=str(plan.at), next_step="at=…")
    keys = pa.table({c.name: pa.array([v], arrow_type(c.dtype)) for c, v in zip(plan.row, cells, strict=True)})
    moments = np.array([t], np.int64)
    values_of = OfflineFeatures(plan, histories).compute(keys, moments)
    frame = FeatureFrame(plan, _named(keys, plan.rows.id_columns), keys, moments, values_of, histories=histories)
    return frame.explain(0, feature)


def _stored_row(
    plan: DatasetPlan, history: History, wanted: Sequence[Any] | str | int, at: int | None
) -> tuple[list[Any], int | None]:
    """Return a row's cells as known at its moment, and the moment."""
    key = encode_key(_parts(plan.rows.id_columns, wanted))
    versions = np.flatnonzero(pc.equal(history.columns([ROW_ID])[ROW_ID], key).to_numpy()[history.order])
    if not len(versions):
        raise UsageError(
            "no such row",
            where=plan.rows.name,
            got=wanted,
            expected=f"a row id: {', '.join(map(str, plan.rows.id_columns))}",
        )
    anchor, offset = plan.at.terms[0]
    moment = history.cells(anchor)[int(versions[-1])].as_py()
    t = at if at is not None else None if moment is None else moment + offset
    known = [int(v) for v in versions if t is not None and history.arrival[v] <= t]
    cells = [history.cells(c)[known[-1]].as_py() if known else None for c in plan.row]
    return cells, t


def rows_with_features(
    rows: Any, features: Sequence[FeatureLike], *, at: str, location: str, folder: Path | None, env: str | None
) -> FeatureFrame:
    """Return exactly the caller's rows, in their order, with features as they were known at each row's moment.

    Raises:
        UsageError: the rows lack a column that the features read, or their moment.
        DataError: a column is of another type, a moment is null or without a zone, or the sources cannot be read.
    """
    plan = plan_features(features, location)
    table = rows if isinstance(rows, pa.Table) else pa.table(rows)
    missing = [name for name in dict.fromkeys([at, *(c.name for c in plan.row)]) if name not in table.column_names]
    if missing:
        raise UsageError(
            "the rows lack columns that the features read",
            got=missing,
            expected=table.column_names,
            next_step=did_you_mean(missing[0], table.column_names),
        )
    keys = pa.table({c.name: _typed(table[c.name], c.name, c.dtype) for c in plan.row})
    moments = _typed(table[at], at, "instant")
    if moments.null_count:
        raise DataError("rows without a moment", where=f"column {at}", got=f"{moments.null_count} nulls")
    t = moments.to_numpy(zero_copy_only=False).astype(np.int64)
    first = next((group.definition.source for group in plan.groups), None)
    home = folder or (project_folder(first) if first is not None else Path.cwd())
    histories = histories_of(plan, read_sources(plan.sources, home, env), EVER)
    values = OfflineFeatures(plan, histories).compute(keys, t)
    facts = {"features": plan.features, "rows": len(t), **ASSUMED}
    shown = table if at == AT else table.rename_columns([AT if name == at else name for name in table.column_names])
    return FeatureFrame(plan, shown, keys, t, values, None, facts, histories)


def _typed(values: pa.ChunkedArray, name: str, dtype: str) -> pa.Array:
    if dtype == "instant" and pa.types.is_int64(values.type):
        return values.combine_chunks()
    cells = cast_cells(values.combine_chunks(), dtype, None)
    if cells is None:
        raise DataError("a column of another type", where=f"column {name}", got=values.type, expected=dtype)
    return cells.values


def _named(rows: pa.Table, columns: Sequence[Column[Any]]) -> pa.Table:
    """Return the columns that name rows as people read them: instants as such."""
    shown = {}
    for column in columns:
        values = rows[column.name]
        shown[column.name] = values.cast(pa.timestamp("us", "UTC")) if column.dtype == "instant" else values
    return pa.table(shown)


def online_values(
    group: type[FeatureGroup],
    keys: Sequence[Any],
    *,
    at: int | None,
    state: str | Path | None,
    env: str | None,
    clock: Clock,
) -> FeatureFrame:
    """Return what the online store holds of a group for some keys, all at one moment and from one snapshot.

    Raises:
        ConfigurationError: there is no state folder.
        UsageError: a key has another number of parts, or is not of its column's type.
        DataError: `at` is older than the newest applied arrival.
    """
    plan = plan_features([group], group.__definition__.location)
    cells = [_parts(plan.row, key) for key in keys]
    folder = project_folder(group.__definition__.source)
    settings = load_settings(folder, env=env)
    where = Path(state) if state is not None else folder / settings.stores.state
    online = OnlineFeatures(plan)
    with StateFolder.open(where, clock=clock, write=False) as opened:
        url = settings.stores.keyvalue or opened.url("keyvalue")
        with open_keyvalue(url, databases=[DATABASE], read_only=True) as store, store.read() as snapshot:
            get, t = open_read(store, snapshot, online, cells, at, now=int(clock.now()))
            values = _values(plan, online.read_many(get, cells, t))
    arrays = {c.name: pa.array([row[i] for row in cells], arrow_type(c.dtype)) for i, c in enumerate(plan.row)}
    table = pa.table(arrays)
    return FeatureFrame(plan, _named(table, plan.row), table, np.full(len(cells), t), values)


def _parts(columns: Sequence[Column[Any]], key: Any) -> list[Any]:
    """Return a key's typed parts.

    Raises:
        UsageError: it has another number of parts, or one is not of its column's type.
    """
    parts = list(key) if isinstance(key, (tuple, list)) else [key]
    if len(parts) != len(columns):
        raise UsageError("a key has another number of parts", got=key, expected=", ".join(map(str, columns)))
    try:
        return [None if p is None else typed_value(c, p, None) for c, p in zip(columns, parts, strict=True)]
    except ValueError as error:
        raise UsageError("a key of another type", got=error, expected=", ".join(map(str, columns))) from error


def _values(plan: FeaturePlan, found: FeatureTable) -> Values:
    """Return many rows' features as offline computation gives them."""
    names = [c.name for c in plan.columns if c.dtype == "str"]
    texts = {name: pa.array(column, pa.string()) for name, column in zip(names, found.texts, strict=True)}
    return Values(found.words, found.status, texts)


def tested(
    group: type[FeatureGroup], events: Sequence[Mapping[str, Any]], *, at: int, key: Any, location: str
) -> dict[str, Any]:
    """Return a group's features at a moment from a few events, computed by both paths, which must agree bit for bit.

    Raises:
        UsageError: an event is no row of the source, or the events are of several keys and none is named.
        InternalError: the paths disagree.
    """
    plan = plan_features([group], location)
    source = definition_of(group.__definition__.source)
    batch = _revealed(source, events, location)
    row = _parts(plan.row, key) if key is not None else _only_key(plan, batch, location)
    keys = pa.table({c.name: pa.array([v], arrow_type(c.dtype)) for c, v in zip(plan.row, row, strict=True)})
    moments = np.array([at], np.int64)
    histories = {source.name: History.build(source, batch.table, EVER)}
    offline = OfflineFeatures(plan, histories).compute(keys, moments)
    path = StreamPath([plan])
    with open_keyvalue("memory:", databases=[DATABASE]) as store:
        with store.write() as transaction:
            access = transaction.access(DATABASE)
            for reveal in batch.reveals():
                if reveal.arrival <= at:
                    path.apply(access, source.name, reveal)
        with store.read() as snapshot:
            online = _values(plan, OnlineFeatures(plan).read_many(snapshot.getter(DATABASE), [row], at))
    if (online.words != offline.words).any() or (online.status != offline.status).any():
        raise InternalError("online and offline disagree", where=location, got=online.words, expected=offline.words)
    return FeatureFrame(plan, keys, keys, moments, offline).to_dict(0)


def _revealed(source: SourceDefinition, events: Sequence[Mapping[str, Any]], location: str) -> RevealBatch:
    reader, reveals = EventReader(source, columns={c.name: c.name for c in source.columns}), []
    for number, event in enumerate(events):
        values, problems = reader.read(event)
        unknown = [name for name in event if name not in source.by_name and name != ARRIVAL]
        problems += [f"{name}: no such column; {did_you_mean(name, source.by_name)}" for name in unknown]
        if problems:
            raise UsageError(f"event {number} is no row of {source.name}", where=location, got=problems)
        if ARRIVAL in event:
            values[ARRIVAL] = int(Instant.parse(event[ARRIVAL]))
        reveals += reveal_of(source, values)
    return batch_of(source, reveals)


def _only_key(plan: FeaturePlan, batch: RevealBatch, location: str) -> list[Any]:
    columns = [batch.table[c.name].to_pylist() for c in plan.row]
    found = list(dict.fromkeys(row for row in zip(*columns, strict=True) if None not in row))
    if len(found) != 1:
        shown = [[plain(c, v) for c, v in zip(plan.row, row, strict=True)] for row in found]
        what = "the events are of several keys" if found else "the events have no key"
        raise UsageError(what, where=location, got=shown, expected="key=… names the one to test")
    return list(found[0])
