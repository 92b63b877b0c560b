"""Ingest: rows and events in, reveals out; rows that cannot be revealed are refused with reason, payload, position."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from headrace.core.settings import LimitSettings, Settings, SourceSettings
from headrace.sources.definition import SourceDefinition
from headrace.sources.jsonlines import LINE
from headrace.sources.plan import reveal_of, reveal_schema
from headrace.sources.readers import Extract
from headrace.sources.record import ARRIVAL, Reveal, RevealBatch
from headrace.sources.values import EventReader, placing_columns, plain, refusal_schema, unplaced
from headrace.storage.streams.protocol import Message, Streams

SHOWN_PAYLOAD = 10_000  # characters of an undecodable event that are kept


@dataclass(frozen=True, eq=False)
class Load:
    """Hold what was ingested: reveals, and the rows that could not become any (`values.refusal_schema`).

    `rows` counts both kinds. `observed` tells whether arrivals were observed or assumed from moments and lag. `extra`
    names the data's undeclared columns; `ambiguous` and `nonexistent` count local times without a single instant.
    """

    batch: RevealBatch
    refused: pa.Table
    rows: int
    observed: bool
    extra: tuple[str, ...] = ()
    ambiguous: int = 0
    nonexistent: int = 0


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
        number = int(extract.numbers[row])
        refused.append(_refused(f"{where}, row {number}", problems + nulls, _shown(definition, values) | texts))
    return table.filter(pa.array(~bad)), pa.Table.from_pylist(refused, refusal_schema())


def load_events(
    definition: SourceDefinition,
    messages: Iterable[Message],
    *,
    settings: SourceSettings | None = None,
    limits: LimitSettings | None = None,
    where: str = "stream",
) -> Load:
    """Read JSON events of a stream; they arrived when the log's writer stamped them, whatever they say themselves.

    An event is one object with a row's id and any of its columns. What is no such object is refused, never raised:
    one bad event must not hold up the good ones.
    """
    settings = settings or SourceSettings()
    reader = EventReader(definition, zone=settings.zone, columns=settings.columns)
    largest = (limits or LimitSettings()).event_bytes
    reveals: list[Reveal] = []
    refused = []
    rows = 0
    for message in messages:
        rows += 1
        event, problems = _decode(message.data, largest)
        values: dict[str, Any] = {}
        if not problems:
            values, problems = reader.read(event)
        if problems:
            payload = event or {"undecodable": message.data[:SHOWN_PAYLOAD].decode("utf-8", "replace")}
            refused.append(_refused(f"{where}, position {message.position}", problems, payload))
        else:
            reveals += reveal_of(definition, values | {ARRIVAL: message.arrival})
    return Load(batch_of(definition, reveals), pa.Table.from_pylist(refused, refusal_schema()), rows, observed=True)


def load_stream(
    definition: SourceDefinition, streams: Streams, settings: Settings, *, position: int, limit: int = 1_000
) -> tuple[Load, int]:
    """Read at most `limit` events of a source's stream from `position` on; return them and the position after them.

    The position belongs into the transaction that applies the events: then none is lost or applied twice.

    Raises:
        DataError: the position was dropped from the stream.
        BackendError: the stream cannot be read.
    """
    where = settings.sources.get(definition.name, SourceSettings())
    name = where.stream or definition.name
    messages = streams.read(name, position, limit)
    found = load_events(definition, messages, settings=where, limits=settings.limits, where=f"stream {name}")
    return found, messages[-1].position + 1 if messages else position


def batch_of(definition: SourceDefinition, reveals: Sequence[Reveal]) -> RevealBatch:
    """Return reveals as a batch, ordered by (arrival, row id, content)."""
    ordered = sorted(reveals, key=lambda r: (r.arrival, r.row_id, r.content))
    columns: list[list[Any]] = [[None] * len(ordered) for _ in definition.columns]
    for i, reveal in enumerate(ordered):
        for place_, value in zip(reveal.places, reveal.values, strict=True):
            columns[place_][i] = value
    masks = [sum(1 << p for p in r.places) for r in ordered]
    fixed: list[list[Any]] = [[r.row_id for r in ordered], [r.arrival for r in ordered], masks]
    fixed.append([r.content for r in ordered])
    schema = reveal_schema(definition)
    arrays = [pa.array(values, field.type) for values, field in zip([*fixed, *columns], schema, strict=True)]
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


def _decode(data: bytes, largest: int) -> tuple[dict[str, Any], list[str]]:
    if len(data) > largest:
        return {}, [f"{len(data)} bytes, more than [limits] event_bytes = {largest}"]
    try:
        event = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        return {}, [f"not JSON: {error}"]
    if not isinstance(event, dict):
        return {}, [f"expected an object, got {type(event).__name__}"]
    return event, []


def _refused(position: str, problems: Sequence[str], payload: Mapping[str, Any]) -> dict[str, str]:
    text = orjson.dumps(payload, default=str).decode()
    return {"position": position, "reason": "; ".join(problems), "payload": text}


def _shown(definition: SourceDefinition, values: Mapping[str, Any]) -> dict[str, Any]:
    return {c.name: plain(c, values[c.name]) for c in definition.columns if c.name in values}


def _misreading(definition: SourceDefinition, name: str, text: str) -> str:
    column = definition.by_name.get(name)
    if name == LINE:
        hidden = any(c.pii for c in definition.columns)
        return "not a JSON object" if hidden else f"not a JSON object: {text!r:.80}"
    shown_text = "a text that is none" if column is not None and column.pii else f"{text!r:.80}"
    return f"{name}: expected {'instant' if column is None else column.dtype}, got {shown_text}"
