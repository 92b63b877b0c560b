"""Store a source's rows in bulk: those that applying its history reveal by reveal would leave in the online store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.features.aggregates import FOR_EVER
from headrace.features.history import History, Ints
from headrace.features.keys import ascending
from headrace.features.snapshots import note_copies
from headrace.features.stock import Stock
from headrace.features.stream import DATABASE, SourceState, StreamPath, due_key
from headrace.sources.record import ROW_ID, Reveal, RevealBatch
from headrace.storage.keyvalue import KeyValue, Transaction

REVEALS_AT_ONCE = 20_000  # to a commit


def store_rows(
    store: KeyValue, path: StreamPath, source: str, stock: Stock, newest: int, told: Callable[[int], None]
) -> int:
    """Store a source's rows as the reveals leave them, none of which arrived after `newest`; return how many there are.

    Rows whose time was over by then are left out. Nothing of a row goes to lanes; but where a stream has stored it before,
    its reveals are applied to it one by one, as if they came late. `told(done)` is called as it goes on, with reveals.
    """
    state, stored, done = path.sources[source], 0, 0
    for history in stock.histories(state.definition):
        if state.copy is not None and len(history):
            with store.write() as transaction:
                arrival, moments = int(history.arrival.max()), history.copies.moments.tolist()
                note_copies(transaction.access(DATABASE), source, arrival, moments)
        rows, passed = kept_rows(state, history, newest), 0
        for part in _parts(history, rows):
            found = list(_revealed(state, history, part))
            with store.write() as transaction:
                stored += _put(transaction, path, state, found, newest)
            passed += len(part)
            told(done + len(history) * passed // len(rows))
        done += len(history)
        told(done)
    return stored


def kept_rows(state: SourceState, history: History, newest: int) -> Ints:
    """Return the numbers of the rows whose time is not over at `newest`, in the order of their ids."""
    last, columns = history.lasts, state.definition.columns
    rows = np.arange(len(last))
    if state.keep < FOR_EVER:
        ends = history.arrival[last]
        for place, offset in state.ends:
            cells = history.cells(columns[place]).take(pa.array(last))
            there = cells.is_valid().to_numpy(zero_copy_only=False)
            values = pc.fill_null(cells, 0).to_numpy(zero_copy_only=False)
            ends = np.where(there, np.maximum(ends, values + offset), ends)
        rows = rows[ends > newest - state.keep]
    ids = history.table[ROW_ID].take(pa.array(history.order[history.starts[rows]]))
    ordered: Ints = rows[ascending(ids)]
    return ordered


def _parts(history: History, rows: Ints) -> Iterator[Ints]:
    """Yield rows in parts that have about as many reveals as go to a commit."""
    reveals = np.cumsum(history.lasts[rows] - history.starts[rows] + 1)
    cuts = np.flatnonzero(np.diff((reveals - 1) // REVEALS_AT_ONCE)) + 1
    return iter(np.split(rows, cuts) if len(rows) else [])


def _revealed(state: SourceState, history: History, rows: Ints) -> Iterator[tuple[bytes, list[Reveal]]]:
    """Yield under which key of the store each row stands, with its reveals in the order of their arrival."""
    begins, counts = history.starts[rows], history.lasts[rows] - history.starts[rows] + 1
    skipped = np.concatenate([[0], np.cumsum(counts)[:-1]])
    versions = np.repeat(begins - skipped, counts) + np.arange(counts.sum())
    table = history.table.take(pa.array(history.order[versions]))
    for row_id, reveals in groupby(RevealBatch(state.definition, table).reveals(), key=lambda reveal: reveal.row_id):
        yield state.prefix + row_id, list(reveals)


def _put(
    transaction: Transaction, path: StreamPath, state: SourceState, found: list[tuple[bytes, list[Reveal]]], newest: int
) -> int:
    """Store rows with the days on which to look at them again; return how many there are."""
    access = transaction.access(DATABASE)
    if StreamPath.commits(access.get):
        # A stream goes on: a row of its own may know less than the reveals say, or more, and stands in lanes already.
        held = transaction.get_many(DATABASE, [key for key, _ in found])
        for (_, reveals), blob in zip(found, held, strict=True):
            for reveal in reveals if blob is not None else []:
                path.apply(access, state.definition.name, reveal)
        found = [row for row, blob in zip(found, held, strict=True) if blob is None]
    rows: list[tuple[bytes, bytes]] = []
    due: list[tuple[bytes, bytes]] = []
    for key, reveals in found:
        row = state.codec.empty
        for reveal in reveals:
            row = row.apply(reveal) or row
        if not row.stated:
            continue
        if state.keep < FOR_EVER:
            if (ends := state.expires(row)) <= newest:
                continue  # its last reveals stated nothing
            due.append((due_key(key, ends), b""))
        rows.append((key, state.codec.encode(row)))
    transaction.put_many(DATABASE, sorted(due))
    transaction.put_many(DATABASE, rows)
    return len(rows)
