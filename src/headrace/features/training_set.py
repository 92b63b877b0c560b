"""Build training sets: the rows whose labels could have come, with features as known at their moments, and labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.core.identity import encode_key, row_hash
from headrace.features.buckets import Reveals, Spread, lanes_of
from headrace.features.dataset import Downsample
from headrace.features.grid import grid_rows
from headrace.features.history import NEVER, History, Ints
from headrace.features.keys import Keys
from headrace.features.label_plan import RowLabel, TableLabel
from headrace.features.lane_plan import LanePlan
from headrace.features.offline import LaneAnswers, OfflineFeatures, Past, Values
from headrace.features.past import Floats, HistoryPast, RowsAsked, WholePast
from headrace.features.plan import DatasetPlan
from headrace.features.record import OK, TrainingSet, unlabelled
from headrace.features.rows import ABSENT


@dataclass(frozen=True, eq=False)
class MaturedRows:
    """Hold a dataset's rows as known at their moments `t`, with features, labels (NaN: censored) and weights.

    `label` has shape (rows,), or (rows, labels) where the dataset has several. `asked` counts the rows before sampling.
    """

    rows: pa.Table
    t: Ints
    values: Values
    label: Floats
    weight: Floats
    asked: int


@dataclass(frozen=True, eq=False)
class LabelledRows:
    """Hold rows that had matured, as known at their moments `t`, with labels and weights, before features are computed."""

    rows: pa.Table
    t: Ints
    label: Floats
    weight: Floats

    def take(self, places: Ints) -> LabelledRows:
        """Return some of the rows."""
        rows = self.rows.take(pa.array(places))
        return LabelledRows(rows, self.t[places], self.label[places], self.weight[places])


def matured_rows(
    plan: DatasetPlan,
    past: Mapping[str, History] | WholePast,
    *,
    as_of: int,
    start: int | None = None,
    end: int | None = None,
    limit: int | None = None,
) -> MaturedRows:
    """Return the rows whose moment lies in [start, end) and that had matured: `at + mature <= as_of`.

    They come by moment; with `limit` the newest of them. A row without a label by then is kept as censored. Only rows
    that the dataset's `where` lets in and its `sample` keeps are there. `past` are histories as of `as_of`, or what else
    answers for them.
    """
    span = _span(plan, as_of, start, end)
    past = HistoryPast(past) if isinstance(past, Mapping) else past
    asked = _grid(plan, past, span, as_of) if plan.grid is not None else _table(plan, past, span, as_of)
    count = len(asked.t)
    if plan.sample is not None:
        asked = _sampled(plan, plan.sample, asked)
    if limit is not None:
        asked = asked.take(np.arange(max(len(asked.t) - limit, 0), len(asked.t)))
    values = OfflineFeatures(plan, past).compute(asked.rows, asked.t)
    return MaturedRows(asked.rows, asked.t, values, asked.label, asked.weight, count)


def matured_labels(
    plan: DatasetPlan, reveals: Mapping[str, pa.Table], *, as_of: int, start: int, end: int
) -> LabelledRows:
    """Return the labels alone of a table's rows, as `matured_rows` gives them; `reveals` are of rows and label's table."""
    sources = {source.name: source for source in (plan.rows, *plan.label.sources)}
    histories = {name: History.build(source, reveals[name], as_of) for name, source in sources.items()}
    return _table(plan, HistoryPast(histories), _span(plan, as_of, start, end), as_of)


def _span(plan: DatasetPlan, as_of: int, start: int | None, end: int | None) -> tuple[int, int]:
    """Return between which moments, [from, to), rows are taken: by `as_of` they had matured."""
    return (start if start is not None else ABSENT, min(end if end is not None else NEVER, as_of - plan.mature + 1))


def _table(plan: DatasetPlan, past: WholePast, span: tuple[int, int], as_of: int) -> LabelledRows:
    """Return the rows of the rows' source, each as known at its moment."""
    own = past.own_rows(RowsAsked.of(plan, span, as_of))
    label = own.label if isinstance(plan.label, RowLabel) else table_labels(plan.label, past, own.rows, own.t, as_of)
    label[~own.seen] = np.nan
    return LabelledRows(own.rows, own.t, label, np.ones(len(own.t)))


def _grid(plan: DatasetPlan, past: WholePast, span: tuple[int, int], as_of: int) -> LabelledRows:
    rows, t = grid_rows(plan, past, span)
    assert isinstance(plan.label, TableLabel)
    return LabelledRows(rows, t, table_labels(plan.label, past, rows, t, as_of), np.ones(len(t)))


def _sampled(plan: DatasetPlan, sample: Downsample, asked: LabelledRows) -> LabelledRows:
    """Keep a share of the rows with one label; which ones follows from their ids."""
    common = asked.label == sample.value
    kept = ~common
    ids = [asked.rows[c.name] for c in plan.rows.id_columns]
    places = np.flatnonzero(common)
    parts = zip(*(column.take(pa.array(places)).to_pylist() for column in ids), strict=True)
    limit = int(sample.share * 2**63)
    drawn = np.array([row_hash(b"sample" + (encode_key(list(part)) or b"")) < limit for part in parts], bool)
    kept[places[drawn]] = True
    weight = np.where(common & sample.weight, 1.0 / sample.share, 1.0)
    return LabelledRows(asked.rows, asked.t, asked.label, weight).take(np.flatnonzero(kept))


def training_set(
    plan: DatasetPlan,
    reveals: Mapping[str, Reveals],
    *,
    as_of: int,
    start: int | None = None,
    end: int | None = None,
    manifest: Mapping[str, Any] | None = None,
    spread: Spread | None = None,
) -> TrainingSet:
    """Build the training set as it could have been built at `as_of` (microseconds UTC) from the reveals of each source.

    `spread` says where and in which portions; the result is the same, bit for bit.

    Raises:
        DataError: a source of the plan has no reveals table.
    """
    where = spread or Spread()
    with where.past(plan.read, lanes_of(plan), reveals, as_of) as past:
        found = matured_rows(plan, past, as_of=as_of, start=start, end=end)
    return as_training_set(plan, found, as_of, facts_of(plan, found, as_of) | dict(manifest or {}))


def as_training_set(plan: DatasetPlan, found: MaturedRows, as_of: int, facts: Mapping[str, Any]) -> TrainingSet:
    """Return matured rows as training takes them."""
    features, weight = found.values.table(plan), found.weight if plan.sample is not None else None
    return TrainingSet(plan.columns, features, found.rows, found.t, found.label, as_of, facts, plan.label.names, weight)


def facts_of(plan: DatasetPlan, found: MaturedRows, as_of: int) -> dict[str, Any]:
    """Return from what rows follow and how many they are, as plain JSON."""
    facts = {
        "definition": plan.hash,
        "features": plan.features,
        "as_of": as_of,
        "rows": len(found.t),
        "censored": unlabelled(found.label),
    }
    return facts if plan.sample is None else facts | {"sampled_from": found.asked}


def table_labels(label: TableLabel, past: Past, rows: pa.Table, t: Ints, as_of: int) -> Floats:
    """Return the labels of rows at moments `t` as windows of another table tell them at `as_of`; NaN where none does."""
    keys = Keys.of([rows[c.name] for c in label.key])
    found = _looked_up(label.lane, past.ask(label.lane, keys, t, as_of=as_of))
    if label.boolean:
        found = (found > 0).astype(np.float64)
    elif label.fill is not None:
        found = np.where(np.isnan(found), label.fill, found)
    if label.spoilt is not None:
        found[_looked_up(label.spoilt, past.ask(label.spoilt, keys, t, as_of=as_of)) > 0] = np.nan
    found[keys.place < 0] = np.nan
    return found[:, 0] if found.shape[1] == 1 else found


def _looked_up(lane: LanePlan, answers: LaneAnswers) -> Floats:
    """Return a lane's answers as numbers; NaN where there is none."""
    found = np.full(answers.words.shape, np.nan)
    for i, column in enumerate(lane.columns):
        words = np.ascontiguousarray(answers.words[:, i])
        values = words.view(np.float64) if column.dtype == "float" else words.astype(np.float64)
        found[:, i] = np.where(answers.status[:, i] == OK, values, np.nan)
    return found
