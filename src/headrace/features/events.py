"""Derive a lane's event from a row: the one rule that streams and rebuilt state share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.core.expressions import Column, Moment, columns_of, per_row
from headrace.core.identity import encode_key, text_id
from headrace.core.time import civil_time
from headrace.features.lane_plan import LanePlan
from headrace.features.rows import StoredRow
from headrace.features.windows import ValueType

BLOCK_SUFFIX = 5  # `c` and a block's number, behind the key of its head


class LaneEvent(NamedTuple):
    """Place a row's values under a key of a lane, ordered by (moment, arrival, row id).

    In a placed lane `moment` is where the event stands, and its moment is the last of the packed values.
    """

    key: bytes
    moment: int
    arrival: int
    row: int
    packed: bytes


def text_key(identity: int) -> bytes:
    """Return under which key a text stands that events refer to by id."""
    return b"T" + identity.to_bytes(8, "big")


def text_keys(identities: NDArray[np.int64]) -> list[bytes]:
    """Return `text_key` of many."""
    joined = marked("T", identities).tobytes()
    return [joined[at : at + 9] for at in range(0, len(joined), 9)]


def marked(mark: str, values: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return each integer in 8 bytes, big endian, behind a character: a row of 9 bytes each."""
    coded = np.empty((len(values), 9), np.uint8)
    coded[:, 0] = ord(mark)
    coded[:, 1:] = values.astype(">i8").view(np.uint8).reshape(-1, 8)
    return coded


def integers_behind(prefixes: Sequence[bytes], values: Sequence[Any]) -> list[bytes] | None:
    """Return each value's `encode_key` behind each of some prefixes of one length, value by value.

    None unless all are integers of int64: then one after the other is as quick.
    """
    if set(map(type, values)) != {int}:
        return None
    try:
        coded = marked("i", np.array(values, np.int64))
    except OverflowError:
        return None
    begun = np.frombuffer(b"".join(prefixes), np.uint8).reshape(len(prefixes), -1)
    n, at = len(values), begun.shape[1]
    keys = np.empty((n, len(prefixes), at + coded.shape[1]), np.uint8)
    keys[:, :, :at], keys[:, :, at:] = begun, coded[:, None]
    found: list[bytes] = keys.view(f"V{keys.shape[2]}").ravel().tolist()
    return found


def head_keys(keys: Iterable[bytes]) -> Iterator[bytes]:
    """Yield those of a lane's keys, in their order, under which heads stand; a head's blocks stand behind it."""
    head = b""
    for key in keys:
        if not (head and len(key) == len(head) + BLOCK_SUFFIX and key.startswith(head + b"c")):
            head = key
            yield key


def _position(on: Moment, zone: str | None, index: Mapping[Column[Any], int]) -> Callable[[Sequence[Any]], int | None]:
    """Return where a row's event stands: dates in civil time, instants in UTC or in the civil time of a zone."""
    (column, offset), place = on.terms[0], index[on.terms[0][0]]
    if zone is None or column.dtype == "date":
        return lambda row: None if row[place] is None else row[place] + offset
    return lambda row: None if row[place] is None else civil_time(row[place] + offset, zone)


class EventMaker:
    """Compute a row's event in one lane.

    A row has none while its moment, a part of its key or its condition is unknown, or while all its values are null in
    a lane that neither counts rows nor holds state.
    """

    def __init__(self, plan: LanePlan) -> None:
        index = plan.source.index
        places = [index[c] for c in plan.reads]
        self.plan = plan
        self.moment = plan.moment.per_row(index)
        self.position = None if plan.on is None else _position(plan.on, plan.zone, index)
        self.entity = tuple(index[c] for c in plan.entity)
        self.where = None if plan.where is None else per_row(plan.where, index)
        self.values: tuple[Callable[[Any], Any], ...] = tuple(per_row(v, index) for v in plan.values)
        self.arrivals = itemgetter(*places, places[0])
        self.references = tuple(i for i, kind in enumerate(plan.lane.values) if kind is ValueType.REF)
        self.prefix, self.keeps_nulls, self.pack = plan.prefix, plan.keeps_nulls, plan.lane.pack
        self.reads_row = {index[c] for e in (*plan.values, *plan.entity) for c in columns_of(e)}

    def event(self, row: StoredRow, row_hash: int) -> LaneEvent | None:
        """Return the row's event, or None."""
        cells = row.values
        moment = self.moment(cells)
        stands = moment if self.position is None else self.position(cells)
        if moment is None or stands is None or (self.where is not None and not self.where(cells)):
            return None
        key = encode_key([cells[p] for p in self.entity])
        if key is None:
            return None
        values = [value(cells) for value in self.values]
        if not self.keeps_nulls and values.count(None) == len(values):
            return None
        for place in self.references:
            if values[place] is not None:
                values[place] = text_id(values[place])
        if self.position is not None:
            values.append(moment)
        arrival = max(self.arrivals(row.arrivals))
        return LaneEvent(self.prefix + key, stands, arrival, row_hash, self.pack(values))

    def longer_texts(self, row: StoredRow) -> list[tuple[int, str]]:
        """Return those texts that the row's event refers to by an id that does not spell them, behind it."""
        found = [self.values[place](row.values) for place in self.references]
        return [(identity, text) for text in found if text is not None and (identity := text_id(text)) >= 0]
