"""Find values that stand twice and values that refer to nothing, in memory bounded by 8 bytes a row, exactly."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.core.expressions import Column
from headrace.core.identity import encode_key
from headrace.sources.content import FIRST, NAN, SECOND
from headrace.validation.blocks import NOWHERE, Block, Mask, Places, plain_texts
from headrace.validation.definition import Unique
from headrace.validation.rules import numbers_of

Words = NDArray[np.uint64]
HELD = 50_000_000  # words kept in memory; beyond them sorted runs go to a temporary file and are merged piece by piece
SPAN = 64  # a table with an entry for each integer of a range is used while the range is at most so many times the keys
_local = threading.local()


def text_words(values: pa.Array) -> Words:
    """Return a 64-bit hash of each text, good for this process only."""
    import duckdb

    if not hasattr(_local, "connection"):
        _local.connection = duckdb.connect(config={"threads": "1"})
    reader = pa.table({"v": plain_texts(values)})
    _local.connection.register("texts", reader)
    words: Words = _local.connection.execute("select hash(v) as h from texts").fetchnumpy()["h"]
    _local.connection.unregister("texts")
    return np.ascontiguousarray(words, np.uint64)


def cell_words(values: pa.Array) -> Words:
    """Return a word for each value: equal values have equal words; of all but texts, only equal ones."""
    if pa.types.is_dictionary(values.type):
        each = text_words(values.dictionary)
        found: Words = (
            each[values.indices.fill_null(0).to_numpy(zero_copy_only=False)]
            if len(each)
            else np.zeros(len(values), np.uint64)
        )
        return found
    if pa.types.is_string(values.type):
        return text_words(values)
    numbers = numbers_of(values)
    if numbers.dtype.kind == "f":
        whole = numbers + 0.0  # -0.0 and 0.0 are one key, and so are all NaN
        return np.where(np.isnan(whole), np.uint64(NAN), whole.view(np.uint64))
    return numbers.view(np.uint64)


def key_words(block: Block, columns: Sequence[Column[Any]]) -> tuple[Words, Mask | None]:
    """Return a word for each row's key, and which rows have one (None: all): no null, and every part stated."""
    arrays = [block.columns[c.name] for c in columns]
    there = block.says(*columns)
    for values in arrays:
        if values.null_count:
            valid = values.is_valid().to_numpy(zero_copy_only=False)
            there = valid if there is None else there & valid
    words = cell_words(arrays[0])
    for values in arrays[1:]:
        words = _mixed(words) + cell_words(values)
    return words, there


class UniqueTally:
    """Count the rows that repeat an earlier row's key.

    Each block leaves its keys' words, sorted; runs that lie apart are never merged. A text's word is a hash: rows that
    share one are read again and compared by their keys (see `later`).
    """

    def __init__(self, check: Unique) -> None:
        self.check = check
        self.exact = len(check.columns) == 1 and check.columns[0].dtype != "str"
        self.runs: list[tuple[int, Words]] = []
        self.rows = self.held = 0
        self.file: Any = None

    def part(self, block: Block) -> tuple[int, Words]:
        """Return the block's place and its keys' words in order."""
        words, there = key_words(block, self.check.columns)
        kept = words if there is None else words[there]
        if len(kept) > 1 and not (kept[1:] > kept[:-1]).all():
            kept = np.sort(kept)
        return block.offset, kept

    def take(self, part: tuple[int, Words]) -> None:
        """Take in a block's words."""
        offset, words = part
        self.rows += len(words)
        self.held += len(words)
        self.runs.append((offset, words.copy() if words.base is not None else words))
        if self.held > HELD:
            self._spill()

    def repeated(self) -> Words:
        """Return the words that more than one row has, in order."""
        runs = [words for _, words in self.runs if len(words)]
        within = [words[1:][words[1:] == words[:-1]] for words in runs]
        runs.sort(key=lambda words: int(words[0]))
        apart = all(int(one[-1]) < int(other[0]) for one, other in pairwise(runs))
        if not apart:
            within += [_repeated(piece) for piece in self._pieces(runs)]
        return np.unique(np.concatenate(within)) if within else np.empty(0, np.uint64)

    def offsets(self, repeated: Words) -> list[int]:
        """Return the offsets of the blocks that hold some of these words."""
        found = []
        for offset, words in self.runs:
            places = np.searchsorted(words, repeated)
            inside = places < len(words)
            if (words[places[inside]] == repeated[inside]).any():
                found.append(offset)
        return found

    def close(self) -> None:
        """Remove the temporary file."""
        self.runs = []
        if self.file is not None:
            self.file.close()

    def _pieces(self, runs: list[Words]) -> list[Words]:
        """Cut all runs at common words into pieces that fit into memory."""
        count = -(-self.rows // HELD)
        sample = np.sort(np.concatenate([words[:: max(len(words) // 64, 1)] for words in runs]))
        cuts = sample[(np.arange(1, count) * len(sample)) // count]
        places = [[0, *np.searchsorted(words, cuts).tolist(), len(words)] for words in runs]
        return [
            np.concatenate([words[at[i] : at[i + 1]] for words, at in zip(runs, places, strict=True)])
            for i in range(count)
        ]

    def _spill(self) -> None:
        """Move the runs in memory to a temporary file that nobody else can open."""
        if self.file is None:
            self.file = tempfile.TemporaryFile()  # noqa: SIM115
        for i, (offset, words) in enumerate(self.runs):
            if not isinstance(words, np.memmap):
                at = self.file.seek(0, 2)
                self.file.write(words.tobytes())
                self.file.flush()
                if len(words):
                    self.runs[i] = offset, np.memmap(self.file, np.uint64, "r", at, (len(words),))
        self.held = 0


def later(tally: UniqueTally, repeated: Words, blocks: Sequence[Block]) -> Places:
    """Return the places, in the whole, of the rows that repeat an earlier row's key; `blocks` hold all candidates."""
    first: set[Any] = set()
    places: list[int] = []
    columns = tally.check.columns
    for block in sorted(blocks, key=lambda b: b.offset):
        words, there = key_words(block, columns)
        candidate = np.isin(words, repeated)
        rows = np.flatnonzero(candidate if there is None else candidate & there)
        if tally.exact:
            keys: list[Any] = words[rows].tolist()
        else:
            parts = [block.columns[c.name].take(pa.array(rows)).to_pylist() for c in columns]
            keys = [encode_key(key) for key in zip(*parts, strict=True)]
        for row, key in zip(rows.tolist(), keys, strict=True):
            if key in first:
                places.append(block.offset + row)
            first.add(key)
    return np.array(places, np.int64)


class KeySet:
    """Hold the values of a column that others refer to, and find references to nothing."""

    def __init__(self, values: pa.Array) -> None:
        known = plain_texts(values).drop_null()
        self.texts = pa.types.is_string(known.type)
        self.known = known
        if self.texts:
            words = text_words(known)
            order = np.argsort(words)
            self.words: Words = words[order]
            self.known = known.take(pa.array(order))
            self.ambiguous = bool((self.words[1:] == self.words[:-1]).any()) and len(pc.unique(known)) > len(
                np.unique(words)
            )
            return
        numbers = numbers_of(known)
        self.table: Mask | None = None
        if len(numbers) and numbers.dtype.kind == "i":
            self.low, self.high = int(numbers.min()), int(numbers.max())
            if self.high - self.low < SPAN * len(numbers) + 65_536:
                self.table = np.zeros(self.high - self.low + 1, bool)
                self.table[numbers - self.low] = True
        if self.table is None:
            self.numbers = np.sort(numbers)

    def lacks(self, values: pa.Array) -> Mask | None:
        """Return which values are not null and not among the known; None if none."""
        values = plain_texts(values)
        missing = self._texts_missing(values) if self.texts or not len(self.known) else self._numbers_missing(values)
        if values.null_count:
            missing = missing & values.is_valid().to_numpy(zero_copy_only=False)
        return missing if missing.any() else None

    def _texts_missing(self, values: pa.Array) -> Mask:
        if not len(self.known):
            return np.ones(len(values), bool)
        if self.ambiguous:
            found = pc.is_in(values, value_set=self.known).to_numpy(zero_copy_only=False)
            strange: Mask = ~found
            return strange
        words = text_words(values)
        places = np.minimum(np.searchsorted(self.words, words), len(self.words) - 1)
        same = pc.fill_null(pc.equal(self.known.take(pa.array(places)), values), False)
        missing: Mask = ~same.to_numpy(zero_copy_only=False)
        return missing

    def _numbers_missing(self, values: pa.Array) -> Mask:
        numbers = numbers_of(values)
        if self.table is None:
            places = np.minimum(np.searchsorted(self.numbers, numbers), len(self.numbers) - 1)
            absent: Mask = self.numbers[places] != numbers
            return absent
        inside = np.clip(numbers, self.low, self.high)
        missing: Mask = ~(self.table[inside - self.low] & (inside == numbers))
        return missing


def dangling(block: Block, column: Column[Any], known: KeySet) -> tuple[Places, int]:
    """Return which rows of a block refer to nothing, and how many refer at all; null refers to nothing and is no fault."""
    values, says = block.columns[column.name], block.says(column)
    missing = known.lacks(values)
    rows = len(values) - values.null_count
    if says is not None:
        valid = values.is_valid().to_numpy(zero_copy_only=False)
        rows = int((valid & says).sum())
        missing = None if missing is None else missing & says
    return (NOWHERE if missing is None else np.flatnonzero(missing)), rows


def _repeated(words: Words) -> Words:
    ordered: Words = np.sort(words, kind="stable")  # of sorted runs one after the other: a merge
    again: Words = ordered[1:][ordered[1:] == ordered[:-1]]
    return again


def _mixed(words: Words) -> Words:
    """Spread words over 64 bits: the finalizer of SplitMix64, as in `sources.content`."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(FIRST)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(SECOND)
    return words ^ (words >> np.uint64(31))
