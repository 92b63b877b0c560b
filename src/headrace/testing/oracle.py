"""Check that features are the same, bit for bit, offline, online and by definition: for any project, on any log of reveals.

log = [("Trips", reveal), …]                       # as they arrived, or as `made_log` makes them up
asked = [(row, t), …]                              # rows in the order of `plan.row`, moments in microseconds UTC
compared = parity(plan_features([Driver], ""), log, asked, random=Random(0))
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.core.expressions import Column
from headrace.core.identity import encode_key, row_hash
from headrace.features.history import History
from headrace.features.offline import OfflineFeatures
from headrace.features.online import OnlineFeatures
from headrace.features.plan import FeaturePlan
from headrace.features.stream import DATABASE, StreamPath
from headrace.sources.content import content_of
from headrace.sources.definition import SourceDefinition
from headrace.sources.record import Reveal
from headrace.sources.run import batch_of
from headrace.sources.values import arrow_type
from headrace.storage.keyvalue import KeyValue, open_keyvalue
from headrace.testing import reference

Log = Sequence[tuple[str, Reveal]]
Asked = Sequence[tuple[Sequence[Any], int]]
Open = Callable[[], AbstractContextManager[KeyValue]]
SHOWN = 5
RESTARTS = 0.25  # before how many reads the writer starts anew


def parity(
    plan: FeaturePlan,
    log: Log,
    asked: Asked,
    *,
    random: Random,
    partitions: int = 1,
    store: Open | None = None,
    by_definition: bool = True,
) -> int:
    """Compute features of rows by every path and return how many values were compared.

    Reveals are applied online in any order between the moments asked for, in so many partitions one after the other,
    some of them twice, by a writer that starts anew now and then; `store` opens the store, in memory unless said. Without
    `by_definition` the slow reference is left out.

    Raises:
        AssertionError: two paths disagree; the text names features, moments and values.
    """
    ordered = sorted(asked, key=lambda one: one[1])
    opened = store or (lambda: open_keyvalue("memory:", databases=[DATABASE]))
    with opened() as found:
        online = _online(plan, log, ordered, random, partitions, found)
    offline = _offline(plan, log, ordered)
    answers = {"online": online, "offline": offline}
    if by_definition:
        answers["definition"] = [definition_of_row(plan, log, row, t) for row, t in ordered]
    return _compared(plan, ordered, answers)


def _online(
    plan: FeaturePlan, log: Log, asked: Asked, random: Random, partitions: int, store: KeyValue
) -> list[list[Any]]:
    reader, found, waiting = OnlineFeatures(plan), [], sorted(log, key=lambda one: one[1].arrival)
    at, path = 0, StreamPath([plan])
    for row, t in asked:
        end = at
        while end < len(waiting) and waiting[end][1].arrival <= t:
            end += 1
        batch = waiting[at:end]
        at = end
        batch += random.sample(batch, len(batch) // 2)
        random.shuffle(batch)
        batch.sort(key=lambda one: row_hash(one[1].row_id) % partitions)
        if random.random() < RESTARTS:
            path = StreamPath([plan])
        if batch:
            with store.write() as transaction:
                access = transaction.access(DATABASE)
                for source, reveal in batch:
                    path.apply(access, source, reveal)
        with store.read() as snapshot:
            found.append(list(reader.read(snapshot.getter(DATABASE), row, t).to_dict().values()))
    return found


def _offline(plan: FeaturePlan, log: Log, asked: Asked) -> list[list[Any]]:
    last = max([t for _, t in asked], default=0)
    histories = {
        source.name: History.build(
            source, batch_of(source, [reveal for name, reveal in log if name == source.name]).table, last
        )
        for source in plan.sources
    }
    rows = pa.table(
        {c.name: pa.array([row[i] for row, _ in asked], arrow_type(c.dtype)) for i, c in enumerate(plan.row)}
    )
    table = OfflineFeatures(plan, histories).compute(rows, np.array([t for _, t in asked], np.int64)).table(plan)
    return [list(row.values()) for row in table.to_pylist()]


def definition_of_row(plan: FeaturePlan, log: Log, row: Sequence[Any], t: int) -> list[Any]:
    """Return the values of lanes; what the row itself or a function gives is not the reference's to compute."""
    found: list[Any] = [NotImplemented] * len(plan.columns)
    for binding in plan.bindings:
        at, key = binding.offset, tuple(row[plan.places[k]] for k in binding.key)
        for lane in binding.lanes:
            found[at : at + len(lane.outputs)] = reference.lane_features(lane, log, key, t)
            at += len(lane.outputs)
    return found


def _compared(plan: FeaturePlan, asked: Asked, answers: Mapping[str, list[list[Any]]]) -> int:
    wrong, count = [], 0
    for place, (row, t) in enumerate(asked):
        for i, column in enumerate(plan.columns):
            values = {path: found[place][i] for path, found in answers.items()}
            values = {path: value for path, value in values.items() if value is not NotImplemented}
            count += len(values) - 1
            if len({bits(value) for value in values.values()}) > 1:
                wrong.append(f"{column.name} of {tuple(row)} at {t}: {values}")
    assert not wrong, f"{len(wrong)} of {count} values differ, as\n" + "\n".join(wrong[:SHOWN])
    return count


def bits(value: Any) -> Any:
    """Return what tells two values apart: the bits of a float."""
    return struct.pack("<d", value) if isinstance(value, float) else value


def reveal(source: SourceDefinition, stated: Mapping[Column[Any], Any], arrival: int) -> Reveal:
    """Return a reveal that states some columns, among them the row id's."""
    places = tuple(sorted(source.index[c] for c in stated))
    values = tuple(stated[source.columns[p]] for p in places)
    row_id = encode_key([stated[c] for c in source.id_columns])
    assert row_id is not None, f"a reveal of {source.name} without its row id"
    return Reveal(arrival, row_id, places, values, content_of(places, values))


Values = Mapping[Column[Any], Callable[[Random], Any]]


def made_log(
    source: SourceDefinition, values: Values, *, rows: int, reveals: int, span: tuple[int, int], random: Random
) -> list[tuple[str, Reveal]]:
    """Make up a log: rows revealed in parts, late, twice, corrected, moved between keys and moments, taken back by nulls.

    `values` draws each column's values, those of the row id from numbers below `rows`; arrivals lie in `span`.
    """
    found: list[tuple[str, Reveal]] = []
    ids = set(source.id_columns)
    others = [c for c in source.columns if c not in ids]
    for _ in range(reveals):
        if found and random.random() < 0.05:
            found.append(random.choice(found))
            continue
        number = random.randrange(rows)
        stated = {c: values[c](Random(number)) for c in source.id_columns}
        chosen = others if random.random() < 0.3 else random.sample(others, random.randint(1, len(others)))
        stated |= {c: values[c](random) for c in chosen}
        found.append((source.name, reveal(source, stated, random.randint(*span))))
    return found
