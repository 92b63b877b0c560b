"""Build training sets: every row's features as they were known at its moment, from the stored reveals."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.core.errors import DataError
from headrace.core.expressions import Column, Moment, columns_of, on_table
from headrace.core.threads import usable_cores
from headrace.features.equal import equal_rows
from headrace.features.fold import Folder
from headrace.features.history import NEVER, History, Ints, Late
from headrace.features.keys import Keys, dense_keys
from headrace.features.lane_plan import LanePlan
from headrace.features.online import call, fills_of
from headrace.features.plan import BindingPlan, FeaturePlan
from headrace.features.record import NO_KEY, NULL, OK
from headrace.features.scan import Scanned, scan
from headrace.features.snapshots import Copies
from headrace.features.texts import Numbered, Texts, longer_texts, text_ids, texts_of
from headrace.features.windows import LaneEvents, Output, ValueType
from headrace.sources.definition import SourceDefinition
from headrace.sources.plan import moments_on
from headrace.sources.sql import query_reveals
from headrace.sources.zones import civil_times

ARROW_TYPES = {"float": pa.float64(), "int": pa.int64(), "bool": pa.bool_(), "str": pa.string(), "instant": pa.int64()}


@dataclass(frozen=True)
class Values:
    """Hold computed features of n rows: 8-byte words and statuses (n, columns), and texts by column name."""

    words: NDArray[np.int64]
    status: NDArray[np.uint8]
    texts: dict[str, pa.Array]

    def table(self, plan: FeaturePlan) -> pa.Table:
        """Return the features as Arrow columns; null where the status is not OK."""
        columns = {}
        for i, column in enumerate(plan.columns):
            if column.dtype == "str":
                columns[column.name] = self.texts[column.name]
                continue
            values = np.ascontiguousarray(self.words[:, i])
            typed = values.view(np.float64) if column.dtype == "float" else values
            array = pa.array(typed.astype(bool) if column.dtype == "bool" else typed, mask=self.status[:, i] != OK)
            columns[column.name] = array.cast(ARROW_TYPES[column.dtype])
        return pa.table(columns)


class LaneAnswers(NamedTuple):
    """Hold what a lane says of rows: words and statuses, each (rows, outputs), and the texts of outputs that are texts."""

    words: Ints
    status: NDArray[np.uint8]
    texts: Mapping[int, pa.Array]


class Past(Protocol):
    """Answer what lanes held at moments of the past."""

    def ask(self, lane: LanePlan, keys: Keys, t: Ints, *, as_of: int | None = None) -> LaneAnswers:
        """Return a lane's outputs for rows at moments `t`; with `as_of` windows stand at `t` and values are as known then.

        Raises:
            UserCodeError: an aggregate of the project's own raised.
        """
        ...


class Histories:
    """Answer from histories in memory, by source."""

    def __init__(self, histories: Mapping[str, History]) -> None:
        self.histories = histories

    def ask(self, lane: LanePlan, keys: Keys, t: Ints, *, as_of: int | None = None) -> LaneAnswers:
        """Return a lane's outputs for rows at moments `t`, see `Past.ask`."""
        history = self.histories[lane.source.name]
        if as_of is None and only_newest(lane, history):
            return newest_of(lane, history, newest_versions(lane, history, keys, t))
        events, known = lane_events(lane, history)
        texts = texts_by_id(lane, history) if tells_texts(lane) else Texts()
        copies = history.copies if lane.dated else None
        return answers(lane, events, keys.among(known), t, texts, as_of, copies)


def tells_texts(lane: LanePlan) -> bool:
    """Return whether texts themselves are asked for, and not only how many there are."""
    folded = any(o.aggregate == "fold" and lane.reads_texts(i) for i, o in enumerate(lane.outputs))
    return folded or any(column.dtype == "str" for column in lane.columns)


def answers(
    lane: LanePlan,
    events: LaneEvents,
    query: Ints,
    t: Ints,
    texts: Texts,
    as_of: int | None,
    copies: Copies | None,
    *,
    threads: int = 0,
) -> LaneAnswers:
    """Return a lane's outputs for keys by their numbers, -1 for unknown ones; `copies` are a dated lane's table's.

    `threads` share what the kernel does, 0 for one on each core.

    Raises:
        UserCodeError: an aggregate of the project's own raised.
    """
    back = t if lane.zone is None else civil_times(t, lane.zone)
    seen = t if as_of is None else np.full(len(t), as_of, np.int64)
    since = None if copies is None else copies.newest(seen, state=lane.lane.state)
    scanned = scan(lane.lane, lane.outputs, events, query, seen, query_at=back, query_since=since, threads=threads)
    for output in scanned.folds:
        _fold(lane, output, scanned, texts)
    told = {}
    for i, column in enumerate(lane.columns):
        if column.dtype == "str":
            found = texts_of(scanned.words[:, i], scanned.status[:, i] == OK, texts.__getitem__)
            told[i] = pa.array(found, pa.string())
            scanned.words[:, i] = 0
    return LaneAnswers(scanned.words, scanned.status, told)


def _fold(lane: LanePlan, output: int, scanned: Scanned, texts: Texts) -> None:
    """Call a fold for each query that has values, and put its results where the windows' other results are."""
    folder = Folder(lane, output)
    values, ends = scanned.folds[output]
    starts = np.concatenate([[0], ends[:-1]])
    for query in np.flatnonzero(scanned.status[:, output] == OK).tolist():
        part = values[starts[query] : ends[query]]
        scanned.words[query, output], scanned.status[query, output] = folder.result(part, texts.__getitem__)


class OfflineFeatures:
    """Compute features of many rows at once, from histories of the plan's sources or from what else answers for the past."""

    def __init__(self, plan: FeaturePlan, past: Mapping[str, History] | Past) -> None:
        self.plan = plan
        self.past: Past = Histories(past) if isinstance(past, Mapping) else past

    def compute(self, rows: pa.Table, t: Ints) -> Values:
        """Return the features of `rows` (the plan's row columns as known at `t`, by their own names) at moments `t`.

        Exactly one row of features for each given row, in the same order.

        Raises:
            UserCodeError: an on-demand function raised.
        """
        n, plan = len(t), self.plan
        words = np.zeros((n, len(plan.columns)), np.int64)
        status = np.full((n, len(plan.columns)), NULL, np.uint8)
        texts: dict[str, pa.Array] = {}
        for binding in plan.bindings:
            self._bind(binding, rows, t, words, status, texts)
        for i, word in fills_of(plan):
            empty = status[:, i] == NULL
            words[empty, i], status[empty, i] = word, OK
        for i, column in plan.row_columns:
            self._set(i, rows[column.name], words, status, texts)
        values = Values(words, status, texts)
        for function in plan.functions:
            self._call(function, rows, values)
        self._blank(words, status)
        return values

    def _bind(
        self, binding: BindingPlan, rows: pa.Table, t: Ints, words: Any, status: Any, texts: dict[str, pa.Array]
    ) -> None:
        keys = Keys.of([rows[k.name] for k in binding.key])
        at = binding.offset
        for lane in binding.lanes:
            found = self.past.ask(lane, keys, t)
            span = slice(at, at + len(lane.outputs))
            words[:, span], status[:, span] = found.words, found.status
            status[keys.place < 0, span] = NO_KEY
            for i, column in found.texts.items():
                texts[self.plan.columns[at + i].name] = column
            at += len(lane.outputs)

    def _set(self, i: int, column: pa.ChunkedArray, words: Any, status: Any, texts: dict[str, pa.Array]) -> None:
        if self.plan.columns[i].dtype == "str":
            texts[self.plan.columns[i].name] = column.combine_chunks().cast(pa.string())
            status[:, i] = np.where(column.is_null().to_numpy(), NULL, OK)
            return
        words[:, i] = as_words(column.combine_chunks())
        status[:, i] = np.where(column.is_null().to_numpy(), NULL, OK)

    def _call(self, plan: Any, rows: pa.Table, values: Values) -> None:
        """Call the function once for each different combination of its arguments."""
        columns = []
        for where, at in plan.arguments:
            if where == "row":
                columns.append(rows[self.plan.row[at].name].to_pylist())
            else:
                columns.append(self._feature(at, values))
        answers: dict[tuple[Any, ...], Any] = {}
        results = []
        for arguments in zip(*columns, strict=True):
            if arguments not in answers:
                answers[arguments] = call(plan.function, arguments)
            results.append(answers[arguments])
        array = pa.chunked_array([pa.array(results, ARROW_TYPES[plan.function.dtype])])
        self._set(plan.index, array, values.words, values.status, values.texts)

    def _feature(self, i: int, values: Values) -> list[Any]:
        column = self.plan.columns[i]
        if column.dtype == "str":
            found: list[Any] = values.texts[column.name].to_pylist()
            return found
        words = np.ascontiguousarray(values.words[:, i])
        typed = words.view(np.float64) if column.dtype == "float" else words
        return [v if s == OK else None for v, s in zip(typed.tolist(), values.status[:, i].tolist(), strict=True)]

    def _blank(self, words: Any, status: Any) -> None:
        nan = np.array([np.nan]).view(np.int64)[0]
        for i, column in enumerate(self.plan.columns):
            words[status[:, i] != OK, i] = nan if column.dtype == "float" else 0


def as_words(array: pa.Array) -> Ints:
    """Return an Arrow array's values as 8-byte words (float64 bits or int64); null is 0."""
    real = pa.types.is_floating(array.type)
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.int8())
    array = array.cast(pa.float64() if real else pa.int64())
    if array.null_count:
        array = pc.fill_null(array, 0)
    words: Ints = array.to_numpy(zero_copy_only=False).view(np.int64)
    return words


def lane_events(plan: LanePlan, history: History) -> tuple[LaneEvents, pa.Array]:
    """Return a lane's event versions, each with the span of arrivals in which it held, and the keys by number."""
    events, keys, kept = lane_versions(plan, history)
    _break_ties(events, history, kept)
    return events, keys


def lane_versions(plan: LanePlan, history: History) -> tuple[LaneEvents, pa.Array, Ints]:
    """Return a lane's event versions without their rows' hashes, the keys by number, and each one's place in the history."""
    reads = tuple(sorted(plan.reads, key=lambda c: plan.source.index[c]))
    table, arrival = history.read(reads)
    keys, key, moment, valid = _placed(plan, table)
    words, nulls = values_on(plan, table)
    if not plan.keeps_nulls and nulls.any(axis=0).all():
        valid &= ~nulls.all(axis=1)
    if plan.on is not None:
        words, nulls = np.column_stack([words, moment]), np.column_stack([nulls, np.zeros(len(key), bool)])
        moment, standing = _positions(plan.on, plan.zone, table)
        valid &= standing
    kept, until = _runs(history, valid, [key, moment, arrival, *words.T, *nulls.T])
    return _events(kept, until, [key, moment, arrival, words, nulls]), keys, kept


def _placed(plan: LanePlan, table: pa.Table) -> tuple[pa.Array, Ints, Ints, NDArray[np.bool_]]:
    """Return the keys by number, and each version's key, moment and whether it may be an event of the lane."""
    keys, key = dense_keys([table[c.name] for c in plan.entity])
    moment, valid = moments_on(plan.moment, table)
    valid &= key >= 0
    if plan.where is not None:
        valid &= pc.fill_null(on_table(plan.where, table), False).to_numpy()
    return keys, key, moment, valid


def _events(kept: Ints, until: Ints, columns: Sequence[NDArray[Any]]) -> LaneEvents:
    """Return some versions as events without their rows' hashes."""
    if len(kept) < len(columns[0]):
        columns = [column[kept] for column in columns]
    key, moment, arrival, words, nulls = columns
    row = np.zeros(len(kept), np.int64)
    return LaneEvents(key=key, moment=moment, arrival=arrival, until=until, row=row, words=words, nulls=nulls)


def _break_ties(events: LaneEvents, history: History, kept: Ints) -> None:
    """Give events their rows' hashes where nothing else puts them in order."""
    tied = equal_rows(events.key, events.moment, events.arrival, usable_cores())
    if len(tied):
        events.row[tied] = history.row_hashes(kept[tied])


def bare_versions(plan: LanePlan, history: History) -> tuple[LaneEvents, pa.Array, Ints]:
    """Return a lane's `lane_versions` without values, of a single history where events stand at their moments.

    Values are not even read where one of them is never null.
    """
    told = any(isinstance(v, Column) and history.complete(v) for v in plan.values)
    reads = _placing(plan) if told else tuple(sorted(plan.reads, key=lambda c: plan.source.index[c]))
    table, arrival = history.read(reads)
    keys, key, moment, valid = _placed(plan, table)
    if not plan.keeps_nulls and not told:
        missing = np.ones(len(key), bool)
        for column in (on_table(v, table) for v in plan.values):
            missing &= column.is_null().to_numpy() if column.null_count else False
        valid &= ~missing
    kept, until = _runs(history, valid, [])
    nothing = np.zeros((len(key), 0), np.int64)
    return _events(kept, until, [key, moment, arrival, nothing, nothing.astype(bool)]), keys, kept


def _placing(plan: LanePlan) -> tuple[Column[Any], ...]:
    """Return the columns that tell a lane's keys and moments, and which rows are events of it."""
    exprs = [*plan.entity, *([] if plan.where is None else [plan.where])]
    return tuple(dict.fromkeys([c for e in exprs for c in columns_of(e)] + [c for c, _ in plan.moment.terms]))


def only_newest(plan: LanePlan, history: History) -> bool:
    """Return whether all outputs are values of one event, the newest: then no value has to be looked at to find it.

    Of state that is always so, of events only where none lacks a value.
    """
    plain = all(o.aggregate == "latest" and o.until is None for o in plan.outputs)
    if not plain or plan.on is not None or not history.single or not len(history):
        return False
    return plan.lane.state or all(isinstance(v, Column) and history.complete(v) for v in plan.values)


def placed_versions(plan: LanePlan, history: History) -> tuple[LaneEvents, pa.Array]:
    """Return a lane's events of a single history with their versions instead of values, and the keys by number."""
    table, _ = history.read(_placing(plan))
    keys, key, moment, valid = _placed(plan, table)
    kept, until = _runs(history, valid, [])
    places, nulls = history.row.reshape(-1, 1), np.zeros((len(history), 1), bool)
    events = _events(kept, until, [key, moment, history.arrival, places, nulls])
    _break_ties(events, history, kept)
    return events, keys


def newest_versions(plan: LanePlan, history: History, keys: Keys, t: Ints) -> Scanned:
    """Find the newest of `placed_versions` at moments `t`, with an output for each different age that a value may have."""
    events, known = placed_versions(plan, history)
    since = history.copies.newest(t, state=plan.lane.state) if plan.dated else None
    lane = replace(plan.lane, values=(ValueType.INT,))
    outputs = [Output(0, "latest", None, age) for age in _ages(plan)]
    return scan(lane, outputs, events, keys.among(known), t, query_since=since)


def _ages(plan: LanePlan) -> list[float | None]:
    return list(dict.fromkeys(output.parameter for output in plan.outputs))


def newest_of(plan: LanePlan, history: History, scanned: Scanned) -> LaneAnswers:
    """Return a lane's outputs as values of `newest_versions`."""
    ages = _ages(plan)
    found = [scanned.words[:, i].copy() for i in range(len(ages))]
    taken = history.rows(tuple(dict.fromkeys(c for v in plan.values for c in columns_of(v))), np.maximum.reduce(found))
    words, texts = np.zeros((len(found[0]), len(plan.outputs)), np.int64), {}
    status = np.empty(words.shape, np.uint8)
    for i, output in enumerate(plan.outputs):
        assert output.column is not None
        values = on_table(plan.values[output.column], taken).combine_chunks()
        state = scanned.status[:, ages.index(output.parameter)]
        missing = values.is_null().to_numpy(zero_copy_only=False)
        status[:, i] = np.where((state == OK) & missing, NULL, state)
        if plan.columns[i].dtype == "str":
            texts[i] = pc.if_else(pa.array(status[:, i] == OK), values, None)
        elif plan.columns[i].dtype == "float":
            words[:, i] = _canonical(as_words(values))
        else:
            words[:, i] = as_words(values)
    return LaneAnswers(words, status, texts)


def _canonical(words: Ints) -> Ints:
    """Return float64 bits with every NaN the same."""
    return np.where(np.isnan(words.view(np.float64)), np.array(np.nan).view(np.int64), words)


def _positions(on: Moment, zone: str | None, table: pa.Table) -> tuple[Ints, NDArray[np.bool_]]:
    """Return where rows' events stand, as `events.EventMaker` of each, and whether that is known."""
    column, offset = on.terms[0]
    values = table[column.name].combine_chunks()
    standing = values.is_valid().to_numpy(zero_copy_only=False)
    found = as_words(values) + offset
    return found if zone is None or column.dtype == "date" else civil_times(found, zone), standing


def texts_by_id(plan: LanePlan, history: History) -> Texts:
    """Return the texts that a lane's events refer to by id."""
    return Texts.of(numbered_texts(plan, history))


def numbered_texts(plan: LanePlan, history: History) -> Iterator[Numbered]:
    """Yield, for each value of a lane that is a text, the ids of those texts that no id spells, and these."""
    for value, kind in zip(plan.values, plan.lane.values, strict=False):
        if kind is ValueType.REF:
            # Reveals may each state a part of what an expression reads: only versions have all of it.
            read = columns_of(value)
            table = history.columns([read[0].name]) if isinstance(value, Column) else history.read(read)[0]
            yield longer_texts(on_table(value, table))


def values_on(plan: LanePlan, table: pa.Table) -> tuple[Ints, NDArray[np.bool_]]:
    """Return a lane's values of each row of a table, and where they are null; one column is unpacked at a time."""
    words = np.zeros((table.num_rows, len(plan.values)), np.int64)
    nulls = np.zeros(words.shape, bool)
    for i, (value, kind) in enumerate(zip(plan.values, plan.lane.values, strict=False)):
        array = on_table(value, table).combine_chunks()
        if kind is ValueType.REF:
            words[:, i] = text_ids(array)
        else:
            words[:, i] = as_words(array.cast(pa.float64()) if kind is ValueType.FLOAT else array)
        if array.null_count:
            nulls[:, i] = array.is_null().to_numpy(zero_copy_only=False)
            words[nulls[:, i], i] = 0
    return words, nulls


def _runs(history: History, valid: NDArray[np.bool_], columns: Sequence[NDArray[Any]]) -> tuple[Ints, Ints]:
    """Return the versions at which a row's event changes, and the arrival at which each was superseded."""
    n = len(valid)
    if history.single or n == 0:
        kept = history.row if valid.all() else np.flatnonzero(valid)
        return kept, np.full(len(kept), NEVER)
    changed = np.zeros(n, bool)
    changed[history.starts] = True
    for column in [valid, *columns]:
        changed[1:] |= column[1:] != column[:-1]
    starts = np.flatnonzero(changed)
    following = np.append(starts[1:], n)
    same_row = np.append(history.row, -1)[following] == history.row[starts]
    until = np.where(same_row, np.append(history.arrival, 0)[following], NEVER)
    held = valid[starts] & (until > history.arrival[starts])
    return starts[held], until[held]


def histories_of(plan: FeaturePlan, reveals: Mapping[str, pa.Table | Late], as_of: int) -> dict[str, History]:
    """Return a history for each source that the plan reads, as `build_histories` does."""
    return build_histories(plan.read, reveals, as_of)


def build_histories(
    sources: Sequence[SourceDefinition], reveals: Mapping[str, pa.Table | Late], as_of: int
) -> dict[str, History]:
    """Return a history for each of some sources, those that a query fills computed from the rows that it reads.

    Raises:
        DataError: a source has no reveals table, or a query fails on its rows.
    """
    filled = fill_queries(sources, reveals, as_of)
    return {source.name: History.build(source, filled[source.name], as_of) for source in sources}


def fill_queries(
    sources: Sequence[SourceDefinition], reveals: Mapping[str, pa.Table | Late], as_of: int
) -> dict[str, pa.Table | Late]:
    """Return each source's reveals, those that a query fills computed from the rows that it reads.

    Raises:
        DataError: a source has no reveals table, or a query fails on its rows.
    """
    refuse_missing(sources, reveals)
    found = {}
    for source in sources:
        if source.query is None:
            found[source.name] = reveals[source.name]
        else:
            read = {feed.name: History.build(feed, reveals[feed.name], as_of).newest_rows() for feed in source.feeds}
            found[source.name] = query_reveals(source, read).table
    return found


def refuse_missing(sources: Sequence[SourceDefinition], reveals: Container[str]) -> None:
    """Raise DataError where sources, or those that a query of theirs reads, have no reveals."""
    missing = {feed.name: None for source in sources for feed in source.feeds if feed.name not in reveals}
    if missing:
        raise DataError("no data for a source", got=[*missing], expected="ingested rows", next_step="headrace run")


def rows_at(history: History, version: Ints) -> pa.Table:
    """Return all columns of the source at given versions; every value null where the version is -1 (nothing known)."""
    return history.cells_at(history.source.columns, pa.array(version, pa.int64(), mask=version < 0))
