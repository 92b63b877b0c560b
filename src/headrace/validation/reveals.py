"""Judge the rows of a delivery of reveals: each reveal by what it states, and by what its row had stated before."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.core.expressions import Column
from headrace.sources.plan import expansion_of
from headrace.sources.record import ROW_ID, RevealBatch
from headrace.sources.stated import Stated
from headrace.validation.blocks import Block, Broken, Mask, blocks_of, judge_conditions, judge_rules, whole
from headrace.validation.definition import Severity
from headrace.validation.keys import KeySet, dangling
from headrace.validation.plan import Condition, Uniqueness, ValidationPlan

Ints = NDArray[np.int64]
Earlier = Callable[[pa.Array], pa.Table | None]


class Known(Protocol):
    """Tell which values a column that others refer to has had."""

    def keys(self, column: Column[Any]) -> KeySet:
        """Return the values."""
        ...

    def __call__(self, column: Column[Any], values: Sequence[Any]) -> Collection[Any]:
        """Return those of some values that the column has had."""
        ...


@dataclass(frozen=True, eq=False)
class Judged:
    """Say which reveals of a delivery break a check, of how many that it applies to."""

    name: str
    severity: Severity
    bad: Mask
    rows: int


def judge_reveals(
    plan: ValidationPlan, batch: RevealBatch, known: Known | None, earlier: Earlier | None
) -> list[Judged]:
    """Return what every check of single rows says about a delivery.

    `earlier(row_ids)` returns reveals that were accepted before: a condition over columns that are told at different
    moments is asked of the row as it stands once they all are, and who completes it wrongly is the bad one.
    """
    spread = tuple(c for c in plan.conditions if _spread(plan, c))
    near = replace(plan, conditions=tuple(c for c in plan.conditions if c not in spread))
    found: dict[str, tuple[Any, Mask, list[int]]] = {}

    def note(broken: Broken, block: Block) -> None:
        if broken.name not in found:
            found[broken.name] = (broken.severity, np.zeros(len(batch), bool), [0])
        _, mask, rows = found[broken.name]
        mask[broken.bad + block.offset] = True
        rows[0] += broken.rows

    for block in _at_least_one(batch):
        for broken in judge_rules(near, block) + judge_conditions(near, block):
            note(broken, block)
        for reference in plan.references if known is not None else ():
            assert known is not None
            places, rows = dangling(block, reference.check.column, known.keys(reference.check.target))
            note(Broken(str(reference.check), reference.severity, places, rows), block)
    judged = [Judged(name, severity, mask, rows[0]) for name, (severity, mask, rows) in found.items()]
    judged += _judge_spread(plan, spread, batch, earlier) if spread else []
    return judged + [_judge_unique(unique, batch) for unique in plan.uniques]


def _at_least_one(batch: RevealBatch) -> list[Block]:
    """Return the batch's blocks; one without rows for an empty batch, so that every check has a result."""
    if len(batch):
        return list(blocks_of(batch))
    columns = {c.name: whole(batch.table[c.name]) for c in batch.source.columns}
    return [Block(batch.source, columns, 0, 0, Stated.of(batch.table), np.empty(0, np.int64))]


def _spread(plan: ValidationPlan, condition: Condition) -> bool:
    """Tell whether a condition's columns become known at different moments, so that no one reveal states them all."""
    groups = expansion_of(plan.source).groups
    wanted = {plan.source.index[c] for c in condition.columns}
    return not any(wanted <= set(group.places) for group in groups)


def _judge_spread(
    plan: ValidationPlan, conditions: Sequence[Condition], batch: RevealBatch, earlier: Earlier | None
) -> list[Judged]:
    before = None if earlier is None or not len(batch) else earlier(batch.table[ROW_ID].combine_chunks())
    table = batch.table if before is None else pa.concat_tables([before.select(batch.table.column_names), batch.table])
    table = table.combine_chunks()
    start = table.num_rows - len(batch)
    stated = Stated.of(table)
    codes = pc.dictionary_encode(whole(table[ROW_ID])).indices.to_numpy() if table.num_rows else np.empty(0, np.int64)
    found = []
    for condition in conditions:
        filled, there, tells = {}, np.ones(table.num_rows, bool), np.zeros(table.num_rows, bool)
        for column in condition.columns:
            says = stated.says(plan.source.index[column])
            places = _newest(codes, says)
            there, tells = there & (places >= 0), tells | says
            filled[column.name] = whole(table[column.name]).take(pa.array(places, mask=places < 0))
        held = condition.holds(pa.table(filled))
        false = pc.fill_null(pc.invert(held), False).to_numpy() if table.num_rows else np.zeros(0, bool)
        asked = (there & tells)[start:]
        found.append(Judged(condition.name, condition.severity, false[start:] & asked, int(asked.sum())))
    return found


def _newest(codes: Ints, says: Mask) -> Ints:
    """Return for each reveal the place of the newest one of its row, itself among them, that says something; else -1."""
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    places = np.arange(len(codes))
    begins = np.maximum.accumulate(np.where(np.diff(ordered, prepend=-1) != 0, places, 0)) if len(codes) else places
    last = np.maximum.accumulate(np.where(says[order], places, -1)) if len(codes) else places
    found = np.full(len(codes), -1, np.int64)
    held = last >= begins
    found[order[held]] = order[last[held]]
    return found


def _judge_unique(unique: Uniqueness, batch: RevealBatch) -> Judged:
    """Find the reveals of a row whose key another row has; if the key is the row's id, what states a row twice."""
    source, columns = batch.source, unique.check.columns
    stated = Stated.of(batch.table)
    there = stated.says_all([source.index[c] for c in columns])
    for column in columns:
        there &= batch.table[column.name].is_valid().to_numpy()
    rows = np.flatnonzero(there)
    bad = np.zeros(len(batch), bool)
    if len(rows):
        picked = batch.table.take(pa.array(rows))
        key = _codes([whole(picked[c.name]) for c in columns])
        names_rows = set(source.id_columns) <= set(columns)
        owner = stated.take(rows).codes() if names_rows else _codes([whole(picked[ROW_ID])])
        bad[rows[_repeats(key, owner, names_rows)]] = True
    return Judged(str(unique.check), unique.severity, bad, len(rows))


def _repeats(key: Ints, owner: Ints, names_rows: bool) -> Mask:
    """Return which places repeat an earlier key: with another owner, or, where the key names the row, with the same."""
    if names_rows:
        pairs = np.stack([key, owner])
        _, first = np.unique(pairs, axis=1, return_index=True)
        repeated = np.ones(len(key), bool)
        repeated[first] = False
        return repeated
    _, first, place = np.unique(key, return_index=True, return_inverse=True)
    differs: Mask = owner != owner[first][place]
    return differs


def _codes(arrays: Sequence[pa.Array]) -> Ints:
    """Return a number for each row that equal keys share; -0.0 and 0.0 are one key, and so are all NaN."""
    codes = np.zeros(len(arrays[0]), np.int64)
    for values in arrays:
        if pa.types.is_floating(values.type):
            values = pa.array(values.to_numpy(zero_copy_only=False) + 0.0)
        own = pc.dictionary_encode(values).indices.to_numpy().astype(np.int64)
        _, codes = np.unique(codes * (int(own.max()) + 1) + own, return_inverse=True)
    return codes
