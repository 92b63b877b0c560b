"""Hold a piece of what is validated: rows of a table or reveals, a bounded number of them, with their place in the whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.core.expressions import Column
from headrace.sources.definition import SourceDefinition
from headrace.sources.record import ARRIVAL, RevealBatch
from headrace.sources.stated import Stated
from headrace.validation.plan import ValidationPlan

Mask = NDArray[np.bool_]
Places = NDArray[np.int64]
BLOCK_ROWS = 250_000  # of 20 columns some 40 MB: enough for vectors, and little beside what a validation may take


@dataclass(frozen=True, eq=False)
class Block:
    """Hold some rows: the declared columns in their declared types (texts perhaps as dictionaries).

    `offset` counts the rows before. `stated` says which columns the reveals state, None where every row states all;
    `arrival` holds microseconds UTC, None where none was observed.
    """

    source: SourceDefinition
    columns: Mapping[str, pa.Array]
    rows: int
    offset: int = 0
    stated: Stated | None = None
    arrival: NDArray[np.int64] | None = None

    def says(self, *columns: Column[Any]) -> Mask | None:
        """Return which rows state all of some columns; None where all do."""
        if self.stated is None:
            return None
        stating = self.stated.says_all([self.source.index[c] for c in columns])
        return None if stating.all() else stating

    def stating(self, *columns: Column[Any]) -> int:
        """Count the rows that state all of some columns."""
        says = self.says(*columns)
        return self.rows if says is None else int(says.sum())

    def values(self, column: Column[Any]) -> pa.Array:
        """Return the stated values of a column."""
        says, values = self.says(column), self.columns[column.name]
        return values if says is None else values.filter(pa.array(says))

    def table(self, columns: Sequence[Column[Any]]) -> pa.Table:
        """Return some columns as a table, texts as such."""
        return pa.table({c.name: plain_texts(self.columns[c.name]) for c in columns})


@dataclass(frozen=True, eq=False)
class Broken:
    """Say which rows of a block break a check (their places, ascending), of how many that it applies to."""

    name: str
    severity: str
    bad: Places
    rows: int


NOWHERE: Places = np.empty(0, np.int64)


def blocks_of(batch: RevealBatch) -> Iterator[Block]:
    """Yield a batch of reveals in pieces, without copying."""
    for start in range(0, len(batch), BLOCK_ROWS):
        part = batch.table.slice(start, BLOCK_ROWS).combine_chunks()
        columns = {c.name: whole(part[c.name]) for c in batch.source.columns}
        stated, arrival = Stated.of(part), whole(part[ARRIVAL]).to_numpy()
        yield Block(batch.source, columns, part.num_rows, start, stated, arrival)


def whole(values: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array."""
    return values.chunk(0) if values.num_chunks == 1 else values.combine_chunks()


def plain_texts(values: pa.Array) -> pa.Array:
    """Return texts as such where they come as a dictionary."""
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def judge_rules(plan: ValidationPlan, block: Block) -> list[Broken]:
    """Return for each rule which rows of a block break it."""
    found = []
    for rule in plan.rules:
        bad, says = rule.bad_values(block.columns[rule.column.name]), block.says(rule.column)
        rows = block.rows if says is None else int(says.sum())
        if bad is not None and says is not None:
            bad &= says
        found.append(
            Broken(rule.name, rule.severity or plan.bad_rows, NOWHERE if bad is None else np.flatnonzero(bad), rows)
        )
    return found


def judge_conditions(plan: ValidationPlan, block: Block) -> list[Broken]:
    """Return for each condition over several columns which rows of a block break it, among those that state them all."""
    import pyarrow.compute as pc

    found = []
    for condition in plan.conditions:
        held, says = condition.holds(block.table(condition.columns)), block.says(*condition.columns)
        bad = pc.fill_null(pc.invert(held), False).to_numpy() if pc.any(pc.invert(held)).as_py() else None
        rows = block.rows if says is None else int(says.sum())
        if bad is not None and says is not None:
            bad = bad & says
        found.append(Broken(condition.name, condition.severity, NOWHERE if bad is None else np.flatnonzero(bad), rows))
    return found
