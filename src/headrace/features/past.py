"""Answer for the past what a training set needs: a table's rows as they were known, keys, and what lanes held."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.core.expressions import Column, Expr, Moment, columns_of, on_table
from headrace.features.history import History, Ints
from headrace.features.keys import dense_keys
from headrace.features.label_plan import RowLabel
from headrace.features.offline import Histories, Past, rows_at
from headrace.features.plan import DatasetPlan
from headrace.features.rows import ABSENT
from headrace.sources.definition import SourceDefinition
from headrace.sources.plan import moments_on

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RowsAsked:
    """Ask for a source's rows whose moment lies in `span`, each as known at its moment, with labels as known at `as_of`."""

    source: SourceDefinition
    at: Moment
    where: Expr[bool] | None
    label: RowLabel | None
    labelled_if: RowLabel | None
    span: tuple[int, int]
    as_of: int

    @classmethod
    def of(cls, plan: DatasetPlan, span: tuple[int, int], as_of: int) -> RowsAsked:
        """Return what a dataset asks of its rows' source."""
        label = plan.label if isinstance(plan.label, RowLabel) else None
        return cls(plan.rows, plan.at, plan.where, label, plan.labelled_if, span, as_of)


@dataclass(frozen=True, eq=False)
class OwnRows:
    """Hold rows by moment `t`, of one moment in the order in which their source first told of them.

    `label` is NaN where none was known or where `labelled_if` did not hold, and everywhere if the label is another table's.
    `seen` says whether `labelled_if` held.
    """

    rows: pa.Table
    t: Ints
    label: Floats
    seen: NDArray[np.bool_]


class WholePast(Past, Protocol):
    """Answer everything that a training set needs."""

    def own_rows(self, asked: RowsAsked) -> OwnRows:
        """Return a source's rows."""
        ...

    def keys(self, source: SourceDefinition, columns: tuple[Column[Any], ...]) -> tuple[pa.Table, int]:
        """Return the different keys that rows have shown, first told of first, and the earliest arrival (0: no rows)."""
        ...


class HistoryPast(Histories):
    """Answer from histories in memory, by source."""

    def own_rows(self, asked: RowsAsked) -> OwnRows:
        """Return a source's rows."""
        found, _ = rows_of(asked, self.histories[asked.source.name])
        return found

    def keys(self, source: SourceDefinition, columns: tuple[Column[Any], ...]) -> tuple[pa.Table, int]:
        """Return the different keys that rows have shown, see `WholePast.keys`."""
        history = self.histories[source.name]
        return keys_of(history, columns)[0], int(history.arrival.min()) if len(history) else 0


def rows_of(asked: RowsAsked, base: History) -> tuple[OwnRows, Ints]:
    """Return a history's rows, and the place of each one's first version."""
    last, anchor = base.lasts, asked.at.terms[0][0]
    t, known = moments_on(asked.at, pa.table({anchor.name: base.cells(anchor).take(pa.array(last))}))
    chosen = known & (t >= asked.span[0]) & (t < asked.span[1])
    version = base.version_at(np.where(chosen, t, ABSENT))
    places = np.flatnonzero(chosen)
    places = places[np.lexsort((base.starts[places], t[places]))]
    rows = rows_at(base, version[places])
    if asked.where is not None:
        inside = pc.fill_null(on_table(asked.where, rows), False).to_numpy()
        places, rows = places[inside], rows.filter(pa.array(inside))
    label, seen = np.full(len(places), np.nan), np.ones(len(places), bool)
    if asked.label is not None:
        label = known_by(asked.label, base, last[places], asked.as_of)
    if asked.labelled_if is not None:
        seen = known_by(asked.labelled_if, base, last[places], asked.as_of) == 1.0
    return OwnRows(rows, t[places], label, seen), base.starts[places]


def known_by(label: RowLabel, history: History, version: Ints, as_of: int) -> Floats:
    """Return a value of rows at given versions as known at `as_of`; NaN where it was not, 0 and 1 for no and yes."""
    needed = tuple(dict.fromkeys([*columns_of(label.value), *(c for c, _ in label.moment.terms)]))
    table = history.read(needed)[0].take(pa.array(version))
    value = on_table(label.value, table).combine_chunks()
    moment, there = moments_on(label.moment, table)
    known = value.is_valid().to_numpy(zero_copy_only=False) & there & (moment < as_of)
    numbers = (
        value.cast(pa.float64()) if not pa.types.is_boolean(value.type) else value.cast(pa.int8()).cast(pa.float64())
    )
    return np.where(known, pc.fill_null(numbers, 0.0).to_numpy(zero_copy_only=False), np.nan)


def keys_of(history: History, columns: tuple[Column[Any], ...]) -> tuple[pa.Table, Ints]:
    """Return the different keys without a null part, in the order in which versions have them, and their first versions."""
    cells = history.read(columns)[0]
    there = np.ones(len(history), bool)
    for column in columns:
        there &= cells[column.name].is_valid().to_numpy()
    version = np.flatnonzero(there)
    table = cells.take(pa.array(version))
    keys, place = dense_keys([table[c.name] for c in columns])
    first = np.zeros(len(keys), np.int64)
    first[place[::-1]] = np.arange(len(place))[::-1]
    return table.take(pa.array(first)), version[first]
