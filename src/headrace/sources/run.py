"""Ingest: rows in, reveals out; rows that cannot be revealed are refused with reason, payload, position."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from headrace.sources.definition import SourceDefinition
from headrace.sources.jsonlines import LINE
from headrace.sources.plan import reveal_schema
from headrace.sources.readers import Extract
from headrace.sources.record import ARRIVAL, Reveal, RevealBatch
from headrace.sources.stated import Stated
from headrace.sources.values import placing_columns, plain, refusal_schema, unplaced


@dataclass(frozen=True, eq=False)
class Load:
    """Hold what was ingested: reveals, and the rows that could not become any (`values.refusal_schema`).

    `rows` counts both kinds. `observed` tells whether arrivals were observed or assumed from moments and lag. `extra`
    names the data's undeclared columns; `ambiguous` and `nonexistent` count local times without a single instant.
    `times` are the event times of a stream's events, in the order in which they were read.
    """

    batch: RevealBatch
    refused: pa.Table
    rows: int
    observed: bool
    extra: tuple[str, ...] = ()
    ambiguous: int = 0
    nonexistent: int = 0
    times: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Delivery:
    """Hold the reveals that arrived from `start` to before `end` (microseconds UTC)."""

    start: int
    end: int
    batch: RevealBatch


def place(definition: SourceDefinition, extract: Extract, where: str) -> tuple[pa.Table, pa.Table]:
    """Part the rows that can be revealed from those that cannot: a misread cell, no id, no place in time, or no row."""
    table = extract.table
    placing = [(n, i) for n, i in placing_columns(definition) if n in table.column_names]
    bad = np.zeros(table.num_rows, bool)
    bad[list(extract.misread)] = True
    for name, _ in placing:
        bad |= table[name].is_null().to_numpy()
    rows = np.flatnonzero(bad)
    refused = [_refused(f"{where}, row {n}", [why], {LINE: text}) for n, (why, text) in extract.broken.items()]
    for row, values in zip(rows.tolist(), table.take(pa.array(rows)).to_pylist(), strict=True):
        texts = dict(extract.misread.get(row, {}))
        problems = [_misreading(definition, name, text) for name, text in texts.items()]
        checked = tuple(p for p in placing if p[0] not in texts and LINE not in texts)
        nulls = unplaced(checked, values | texts)
        number, payload = int(extract.numbers[row]), _shown(definition, values) | texts
        told = _refused(f"{where}, row {number}", problems + nulls, payload)
        refused.append(told | {"arrival": values.get(ARRIVAL)})
    return table.filter(pa.array(~bad)), pa.Table.from_pylist(refused, refusal_schema())


def batch_of(definition: SourceDefinition, reveals: Sequence[Reveal]) -> RevealBatch:
    """Return reveals as a batch, ordered by (arrival, row id, content)."""
    ordered = sorted(reveals, key=lambda r: (r.arrival, r.row_id, r.content))
    columns: list[list[Any]] = [[None] * len(ordered) for _ in definition.columns]
    for i, reveal in enumerate(ordered):
        for place_, value in zip(reveal.places, reveal.values, strict=True):
            columns[place_][i] = value
    places = list(dict.fromkeys(r.places for r in ordered))
    numbers = {stated: i for i, stated in enumerate(places)}
    group = np.array([numbers[r.places] for r in ordered], np.int64)
    stated = Stated.of_groups(places, group, len(definition.columns))
    known = [pa.array([r.row_id for r in ordered], pa.binary()), pa.array([r.arrival for r in ordered], pa.int64())]
    fixed = [*known, *stated.arrays(), pa.array([r.content for r in ordered], pa.int64())]
    schema = reveal_schema(definition)
    types = schema.types[len(fixed) :]
    arrays = [*fixed, *(pa.array(values, kind) for values, kind in zip(columns, types, strict=True))]
    return RevealBatch(definition, pa.Table.from_arrays(arrays, schema=schema))


def iter_deliveries(batch: RevealBatch, period: int) -> Iterator[Delivery]:
    """Cut a batch into what arrived in each period of `period` microseconds since 1970, without copying.

    Periods in which nothing arrived are left out.
    """
    periods = batch.table[ARRIVAL].to_numpy() // period
    cuts = [0, *(np.flatnonzero(np.diff(periods)) + 1).tolist(), len(periods)]
    for start, end in pairwise(cuts):
        if start < end:
            begin = int(periods[start]) * period
            yield Delivery(begin, begin + period, RevealBatch(batch.source, batch.table.slice(start, end - start)))


def _refused(position: str, problems: Sequence[str], payload: Mapping[str, Any]) -> dict[str, Any]:
    text = orjson.dumps(payload, default=str)
    return {
        "position": position,
        "reason": "; ".join(problems),
        "payload": text.decode(),
        "raw": text,
        "format": "cells",
    }


def _shown(definition: SourceDefinition, values: Mapping[str, Any]) -> dict[str, Any]:
    return {c.name: plain(c, values[c.name]) for c in definition.columns if c.name in values}


def _misreading(definition: SourceDefinition, name: str, text: str) -> str:
    column = definition.by_name.get(name)
    if name == LINE:
        hidden = any(c.pii for c in definition.columns)
        return "not a JSON object" if hidden else f"not a JSON object: {text!r:.80}"
    shown_text = "a text that is none" if column is not None and column.pii else f"{text!r:.80}"
    return f"{name}: expected {'instant' if column is None else column.dtype}, got {shown_text}"
