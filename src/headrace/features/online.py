"""Read a dataset's features for one row at one moment, from the online state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import repeat
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from headrace.core.errors import Corrupt, UserCodeError
from headrace.core.identity import encode_key
from headrace.core.time import Instant, civil_time
from headrace.features.definition import OnDemand
from headrace.features.events import integers_behind, text_key
from headrace.features.fold import Folder
from headrace.features.plan import BindingPlan, FeaturePlan, FunctionPlan
from headrace.features.reads import RowReader
from headrace.features.record import NO_KEY, NULL, OK, FeatureTable, FeatureVector
from headrace.features.snapshots import COPIES, Held
from headrace.features.texts import Speller, spelled, texts_of
from headrace.features.windows import Bytes, Ints, OnlineLane

Get = Callable[[bytes], bytes | None]
KEYS_CACHED = TEXTS_CACHED = 100_000
MANY = 16  # rows from which on arrays make their keys sooner
FOLLOWED = 16  # keys that are kept in front of newly followed texts
P = TypeVar("P", bound=FeaturePlan)


class _Binding:
    """Read the lanes of one binding into the row's buffers."""

    def __init__(self, plan: BindingPlan, places: Sequence[int]) -> None:
        self.places = tuple(places)
        self.lanes, self.folds, at = [], [], plan.offset
        self.prefixes, self.absent = [lane.prefix for lane in plan.lanes], [None] * len(plan.lanes)
        self.dated: list[tuple[bytes, bool, OnlineLane]] = []
        for lane in plan.lanes:
            online = OnlineLane(lane.lane, lane.outputs)
            self.lanes.append((online, at, lane.zone))
            if lane.dated:
                self.dated.append((COPIES + lane.source.name.encode(), lane.lane.state, online))
            folds = [(i, Folder(lane, i)) for i, output in enumerate(lane.outputs) if output.aggregate == "fold"]
            if folds:
                self.folds.append((online, at, folds))
            at += len(lane.outputs)
        self.span = slice(plan.offset, at)
        self.keys: dict[Any, bytes | None] = {}
        self.kept: dict[bytes, tuple[int, Ints, Bytes]] = {}

    def key(self, row: Sequence[Any]) -> bytes | None:
        """Return the encoded key of a row; the newest ones are remembered, since encoding costs more than a look-up."""
        places = self.places
        parts = row[places[0]] if len(places) == 1 else tuple([row[p] for p in places])
        found = self.keys.get(parts, b"")
        if found == b"":
            if len(self.keys) >= KEYS_CACHED:
                self.keys.clear()
            found = self.keys[parts] = encode_key([row[p] for p in self.places])
        return found

    def all_keys(self, rows: Sequence[Sequence[Any]]) -> list[bytes | None]:
        """Return the key of each row."""
        place = self.places[0]
        if len(self.places) == 1:
            found = list(map(self.keys.get, [row[place] for row in rows], repeat(b"")))
            if b"" not in found:
                return found
        return [self.key(row) for row in rows]


class OnlineFeatures(Generic[P]):
    """Read features one row at a time; an instance reuses its buffers and serves one thread.

    `read(get, row, t)` takes the bound `get` of one snapshot of the online store, the row's values in the order of
    `FeaturePlan.row` (columns that are not known yet are ignored) and the moment in microseconds UTC. Without a `get`,
    since the store cannot be reached, stored features are those that were last read for the same key, else null.

    Args:
        plan: the features.
        keep: keys of each binding whose newest values are kept for that case.
        keep_for: how long they may stand in, microseconds.

    Raises:
        DefinitionError: a query computes some of the features.
    """

    def __init__(self, plan: P, *, keep: int = 0, keep_for: int = 0) -> None:
        plan.refuse_queries("there is no value of single keys to be read online")
        self.plan, self.keep, self.keep_for = plan, keep, keep_for
        self.followed: dict[bytes, tuple[bytes, ...]] = {}
        n, index = len(plan.columns), plan.places
        self.columns = plan.columns
        self.vector = FeatureVector(plan.columns, np.zeros(n, np.int64), np.zeros(n, np.uint8), [])
        self.floats = self.vector.words.view(np.float64)
        self.bindings = [_Binding(b, [index[k] for k in b.key]) for b in plan.bindings]
        for binding in self.bindings:
            binding.keys = next(other.keys for other in self.bindings if other.places == binding.places)
        self.spans = [binding.span for binding in self.bindings for _ in binding.lanes]  # of each lane its binding's
        self.dated = [dated for binding in self.bindings for dated in binding.dated]
        self.row = [(i, index[c], c.dtype) for i, c in plan.row_columns]
        texts = [i for i, c in enumerate(plan.columns) if c.dtype == "str"]
        self.text_place = {i: place for place, i in enumerate(texts)}
        self.vector.texts = [None] * len(texts)
        self.lane_texts = [(i, p) for i, p in self.text_place.items() if plan.columns[i].origin in ("latest", "window")]
        self.speller = Speller(self.vector.words, [i for i, _ in self.lane_texts])
        lanes = [lane for binding in self.bindings for lane in binding.lanes]
        self.lanes = RowReader(lanes, self.vector.words, self.vector.status)
        self.word, self.state = self.vector.words.data, self.vector.status.data  # quicker than arrays
        self.known_texts: dict[int, str] = {}  # what an id stands for never changes
        self.folded = any(binding.folds for binding in self.bindings)
        self.fills = fills_of(plan)
        self.nan = np.array([np.nan]).view(np.int64)[0]
        self.blank = np.array([self.nan if c.dtype == "float" else 0 for c in plan.columns], np.int64)
        self.begun: tuple[Get, Sequence[Sequence[Any]], int, FeatureTable] | None = None

    def read(self, get: Get | None, row: Sequence[Any], t: int) -> FeatureVector:
        """Return the row's features as known at `t`; the vector is valid until the next read.

        Raises:
            UserCodeError: an on-demand function raised.
            Corrupt: stored bytes are damaged.
        """
        words, status = self.vector.words, self.vector.status
        if get is not None:
            self._read_lanes(get, row, t)
        else:
            self._recall_lanes(row, t)
        for i, word in self.fills:
            if status[i] == NULL:
                words[i], status[i] = word, OK
        for i, place, dtype in self.row:
            self._set(i, row[place], dtype)
        if self.lane_texts:
            self._look_up(get)
        for function in self.plan.functions:
            self._set(function.index, self._call(function, row), function.function.dtype)
        return self.vector

    def heads(self, rows: Sequence[Sequence[Any]]) -> list[bytes]:
        """Return the keys that a read of the rows begins with."""
        return [key for key in self._keys(rows) if key is not None] + [key for key, _, _ in self.dated]

    def guess(self, rows: Sequence[Sequence[Any]]) -> list[bytes]:
        """Return the keys that a read of the rows begins with, and those that the one before went on to."""
        heads = self.heads(rows)
        return heads + [key for head in heads if head in self.followed for key in self.followed[head]]

    def missing(self, held: Mapping[bytes, bytes | None], rows: Sequence[Sequence[Any]], t: int) -> list[bytes]:
        """Return keys without which a read of the rows at `t` from `held`, which has their heads, would end; none if none.

        As many as can be told at once, perhaps some that are not needed; for rows whose bytes are damaged none, since the
        read of such a row says so. Where nothing is missing, `read_many(held.get, rows, t)` goes on from here.
        """
        if self.folded or len(rows) < 2:
            return [key for row in rows for key in self._lacking(held, row, t)]
        self._date(held.__getitem__, t)
        table = FeatureTable(self.columns, *_tables(len(rows), len(self.columns)), [])
        keys = self._asked(rows, table)
        unread = self.lanes.begin_rows(held.__getitem__, keys, t, table.words, table.status)
        lacking = [key for i in unread for key in self._lacking(held, rows[i], t)]
        if unread:
            table.status[unread] = NULL
        texts: dict[int, list[bytes]] = {}
        for i, _ in self.lane_texts:
            there = np.flatnonzero((table.status[:, i] == OK) & (table.words[:, i] >= 0))
            for row, identity in zip(there.tolist(), table.words[there, i].tolist(), strict=True):
                if identity not in self.known_texts and text_key(identity) not in held:
                    texts.setdefault(row, []).append(text_key(identity))
        for row, wanted in texts.items():
            self._follow_texts(rows[row], wanted)
        self.begun = None if unread or texts else (held.get, rows, t, table)
        return lacking + [key for wanted in texts.values() for key in wanted]

    def _lacking(self, held: Mapping[bytes, bytes | None], row: Sequence[Any], t: int) -> list[bytes]:
        """Return what one row lacks, blocks first."""
        try:
            self._read_lanes(held.__getitem__, row, t)
        except KeyError as error:  # a block, or a text that a fold takes
            return self._blocks(held, row, t) or [error.args[0]]
        except Corrupt:
            return []
        found_ids = [self.word[i] for i, _ in self.lane_texts if self.state[i] == OK]
        unknown = [identity for identity in found_ids if identity >= 0 and identity not in self.known_texts]
        lacking = [key for key in map(text_key, unknown) if key not in held]
        if lacking:
            self._follow_texts(row, lacking)
        return lacking

    def _blocks(self, held: Mapping[bytes, bytes | None], row: Sequence[Any], t: int) -> list[bytes]:
        found: list[bytes] = []
        for binding in self.bindings:
            key = binding.key(row)
            if key is not None:
                for prefix, (lane, _, zone) in zip(binding.prefixes, binding.lanes, strict=True):
                    back = t if zone is None else civil_time(t, zone)
                    lacking = lane.missing(held, prefix + key, t, back)
                    if lacking:
                        self._follow(prefix + key, [*lane.blocks(held, prefix + key, back), *lacking])
                        found += lacking
        return found

    def _follow_texts(self, row: Sequence[Any], keys: Sequence[bytes]) -> None:
        first = next(binding.prefixes[0] + key for binding in self.bindings if (key := binding.key(row)) is not None)
        self._follow(first, [*self.followed.get(first, ())[-FOLLOWED:], *keys])

    def _follow(self, head: bytes, keys: Sequence[bytes]) -> None:
        """Remember what a read went on to: the next one of the same key asks for it at once."""
        if len(self.followed) >= KEYS_CACHED:
            self.followed.clear()
        self.followed[head] = tuple(dict.fromkeys(keys))

    def _date(self, get: Get, t: int) -> None:
        """Tell lanes of tables that come in whole copies since when the newest copy holds."""
        for key, state, lane in self.dated:
            lane.hold_from(Held.load(get(key)).newest(t, state=state))

    def _read_lanes(self, get: Get, row: Sequence[Any], t: int) -> None:
        self._date(get, t)
        words, status = self.vector.words, self.vector.status
        keys: list[bytes | None] = []
        for binding in self.bindings:
            key = binding.key(row)
            if key is None:
                words[binding.span] = self.blank[binding.span]
                status[binding.span] = NO_KEY
                keys += binding.absent
            else:
                keys += [prefix + key for prefix in binding.prefixes]
        self.lanes.read(get, keys, t)
        if self.keep or self.folded:
            self._finish(get, row, t)

    def _finish(self, get: Get, row: Sequence[Any], t: int) -> None:
        """Fold what folds take, and remember what was read."""
        words, status = self.vector.words, self.vector.status
        for binding in self.bindings:
            key = binding.key(row)
            if key is None:
                continue
            for lane, at, folds in binding.folds:
                self._fold(get, lane, at, folds)
            if self.keep:
                if len(binding.kept) >= self.keep:
                    binding.kept.clear()
                binding.kept[key] = t, words[binding.span].copy(), status[binding.span].copy()

    def _recall_lanes(self, row: Sequence[Any], t: int) -> None:
        """Take what was last read for the row's keys, not longer ago than allowed; the rest is null."""
        words, status = self.vector.words, self.vector.status
        for binding in self.bindings:
            key = binding.key(row)
            kept = None if key is None else binding.kept.get(key)
            if kept is not None and 0 <= t - kept[0] <= self.keep_for:
                words[binding.span], status[binding.span] = kept[1:]
            else:
                words[binding.span] = self.blank[binding.span]
                status[binding.span] = NO_KEY if key is None else NULL

    def read_many(self, get: Get, rows: Sequence[Sequence[Any]], t: int) -> FeatureTable:
        """Return many rows' features as known at `t`, the same as a `read` of each.

        Raises:
            UserCodeError: an on-demand function raised.
            Corrupt: stored bytes are damaged.
        """
        begun, self.begun = self.begun, None
        found = FeatureTable(self.columns, *_tables(len(rows), len(self.columns)), [])
        if not rows or self.row or self.plan.functions or self.folded:
            texts = []
            for i, row in enumerate(rows):
                vector = self.read(get, row, t)
                found.words[i], found.status[i] = vector.words, vector.status
                texts.append(tuple(vector.texts))
            found.texts += [list(column) for column in zip(*texts, strict=True)] or [[] for _ in self.text_place]
            return found
        if begun is not None and begun[0] == get and begun[1] is rows and begun[2] == t:
            found = begun[3]
        else:
            self._date(get, t)
            self.lanes.read_rows(get, self._asked(rows, found), t, found.words, found.status)
        for i, word in self.fills:
            missing = found.status[:, i] == NULL
            found.words[missing, i], found.status[missing, i] = word, OK
        if self.lane_texts:
            places = [i for i, _ in self.lane_texts]
            there = found.status.T[places] == OK
            told = texts_of(found.words.T[places].ravel(), there.ravel(), partial(self._text, get))
            found.texts += [told[at : at + len(rows)] for at in range(0, len(told), len(rows))]
            found.words[:, places] = 0
        return found

    def _asked(self, rows: Sequence[Sequence[Any]], found: FeatureTable) -> list[bytes | None]:
        """Return every row's keys; of bindings without a key the results are written."""
        keys = self._keys(rows)
        if None in keys:
            lanes = len(self.lanes.lanes)
            for place in [place for place, key in enumerate(keys) if key is None]:
                span = self.spans[place % lanes]
                found.words[place // lanes, span] = self.blank[span]
                found.status[place // lanes, span] = NO_KEY
        return keys

    def _keys(self, rows: Sequence[Sequence[Any]]) -> list[bytes | None]:
        """Return every row's keys, as many as there are lanes."""
        if len({binding.places for binding in self.bindings}) == 1:
            first, prefixes = self.bindings[0].places, [p for binding in self.bindings for p in binding.prefixes]
            if len(rows) >= MANY and len(first) == 1:
                found = integers_behind(prefixes, [row[first[0]] for row in rows])
                if found is not None:
                    return found  # type: ignore[return-value]
            mine = self.bindings[0].all_keys(rows)
            if None not in mine:
                return [prefix + key for key in mine for prefix in prefixes]  # type: ignore[operator]
        keys: list[bytes | None] = []
        for row in rows:
            for binding in self.bindings:
                key = binding.key(row)
                keys += binding.absent if key is None else [prefix + key for prefix in binding.prefixes]
        return keys

    def _fold(self, get: Get, lane: OnlineLane, at: int, folds: Sequence[tuple[int, Folder]]) -> None:
        words, status, taken = self.vector.words, self.vector.status, lane.folds()

        def text(identity: int) -> str:
            return self._text(get, identity)

        for output, folder in folds:
            place = at + output
            if status[place] == OK:
                words[place], status[place] = folder.result(taken[output], text)
            else:
                words[place] = self.blank[place]

    def _set(self, i: int, value: Any, dtype: str) -> None:
        if dtype == "str":
            self.vector.texts[self.text_place[i]] = value
            value = None if value is None else 0
        if value is None:
            self.vector.words[i], self.vector.status[i] = self.blank[i], NULL
            return
        if dtype == "float":
            self.floats[i] = value
        else:
            self.vector.words[i] = value
        self.vector.status[i] = OK

    def _look_up(self, get: Get | None) -> None:
        """Put texts in the place of their ids."""
        texts, word, state = self.vector.texts, self.word, self.state
        told: list[str | None] = [*self.speller.read()]
        for k, (i, place) in enumerate(self.lane_texts):
            if state[i] != OK:
                told[k] = None
            elif word[i] >= 0:
                told[k] = self.known_texts.get(word[i]) if get is None else self._text(get, word[i])
            texts[place], word[i] = told[k], 0

    def _text(self, get: Get, identity: int) -> str:
        """Return the text that an id stands for: what it spells, or what is stored under it."""
        found = self.known_texts.get(identity)
        if found is not None:
            return found
        if len(self.known_texts) >= TEXTS_CACHED:
            self.known_texts.clear()
        if identity < 0:
            found = spelled(identity)
        elif (blob := get(text_key(identity))) is None:
            raise Corrupt("a text of the online store is missing", got=identity, next_step="headrace online rebuild")
        else:
            found = blob.decode()
        self.known_texts[identity] = found
        return found

    def _call(self, plan: FunctionPlan, row: Sequence[Any]) -> Any:
        arguments = [row[at] if where == "row" else self._value(at) for where, at in plan.arguments]
        return call(plan.function, arguments)

    def _value(self, i: int) -> Any:
        if self.vector.status[i] != OK:
            return None
        dtype = self.columns[i].dtype
        if dtype == "str":
            return self.vector.texts[self.text_place[i]]
        return float(self.floats[i]) if dtype == "float" else int(self.vector.words[i])


def _tables(rows: int, columns: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    return np.empty((rows, columns), np.int64), np.empty((rows, columns), np.uint8)


def fills_of(plan: FeaturePlan) -> list[tuple[int, int]]:
    """Return the outputs that have a fill value: their place and the value's 8 bytes as an integer."""
    found = []
    for binding in plan.bindings:
        at = binding.offset
        for lane in binding.lanes:
            for (feature, _), column in zip(lane.features, lane.columns, strict=True):
                if feature.fill is not None:
                    value = np.float64(feature.fill) if column.dtype == "float" else np.int64(feature.fill)
                    found.append((at, int(np.array([value]).view(np.int64)[0])))
                at += 1
    return found


def call(function: OnDemand[Any], arguments: Sequence[Any]) -> Any:
    """Call an on-demand function; a null in a parameter that is not optional gives null.

    Raises:
        UserCodeError: the function raised.
    """
    values = {}
    for (name, bound), value in zip(function.bound.items(), arguments, strict=True):
        if value is None and name in function.required:
            return None
        instant = value is not None and getattr(bound, "dtype", "") == "instant"
        values[name] = Instant(value) if instant else value
    try:
        return function.function(**values)
    except Exception as error:
        raise UserCodeError(
            f"{function.name} raised {type(error).__name__}: {error}",
            where=function.location,
            got=values,
            next_step="test it alone: it must handle every value its columns allow",
        ) from error
