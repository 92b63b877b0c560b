"""Tell in bits which of a source's columns each reveal states: 62 columns to an int64, as many of these as it takes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

STATED = "_stated"
BITS = 62  # of a positive int64, as Delta and SQL know no unsigned ones

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


def stated_names(columns: int) -> list[str]:
    """Return the names of the columns that hold the bits of a source's columns.

    >>> stated_names(3), stated_names(63)
    (['_stated'], ['_stated', '_stated_1'])
    """
    return [STATED if i == 0 else f"{STATED}_{i}" for i in range(max((columns + BITS - 1) // BITS, 1))]


def is_stated_name(name: str) -> bool:
    """Tell whether a column holds such bits."""
    return name == STATED or name.startswith(f"{STATED}_")


@dataclass(frozen=True, eq=False)
class Stated:
    """Hold which columns some reveals state, by the columns' places in the source."""

    words: tuple[Ints, ...]

    @classmethod
    def of(cls, table: pa.Table) -> Stated:
        """Read the bits of a table of reveals; what was written before the source had so many columns states none of the later."""
        names = [name for name in table.column_names if is_stated_name(name)]
        ordered = stated_names(BITS * len(names))
        return cls(tuple(_word(table[name]) for name in ordered))

    @classmethod
    def of_groups(cls, places: Sequence[Collection[int]], group: NDArray[np.integer], columns: int) -> Stated:
        """Return the bits of reveals that state, each, the places of its group."""
        masks = [[0] * len(places) for _ in stated_names(columns)]
        for number, stated in enumerate(places):
            for place in stated:
                masks[place // BITS][number] |= 1 << place % BITS
        return cls(tuple(np.array(words, np.int64)[group] for words in masks))

    def __len__(self) -> int:
        return len(self.words[0])

    def says(self, place: int) -> Mask:
        """Return which reveals state a column."""
        return (self.words[place // BITS] >> place % BITS & 1).astype(bool)

    def says_all(self, places: Collection[int]) -> Mask:
        """Return which reveals state all of some columns."""
        found = np.ones(len(self), bool)
        for word, wanted in zip(self.words, self._wanted(places), strict=True):
            if wanted:
                found &= (word & wanted) == wanted
        return found

    def says_any(self, places: Collection[int]) -> Mask:
        """Return which reveals state some of some columns."""
        found = np.zeros(len(self), bool)
        for word, wanted in zip(self.words, self._wanted(places), strict=True):
            if wanted:
                found |= (word & wanted) != 0
        return found

    def always(self, place: int) -> bool:
        """Tell whether every reveal states a column; none do where there is no reveal."""
        return bool(self._always[place // BITS] >> place % BITS & 1)

    @cached_property
    def _always(self) -> list[int]:
        return [int(np.bitwise_and.reduce(word)) if len(word) else 0 for word in self.words]

    def take(self, rows: Ints) -> Stated:
        """Return the bits of some reveals."""
        return Stated(tuple(word[rows] for word in self.words))

    def moved(self, places: Sequence[tuple[int, int]], columns: int) -> Stated:
        """Return the bits with columns at other places: (from, to)."""
        words = [np.zeros(len(self), np.int64) for _ in stated_names(columns)]
        for old, new in places:
            words[new // BITS] |= (self.words[old // BITS] >> old % BITS & 1) << new % BITS
        return Stated(tuple(words))

    def masks(self) -> list[int]:
        """Return each reveal's bits as one number."""
        found: list[int] = self.words[0].tolist()
        for i, word in enumerate(self.words[1:], 1):
            found = [mask | more << i * BITS for mask, more in zip(found, word.tolist(), strict=True)]
        return found

    def codes(self) -> Ints:
        """Return a number for each reveal; those that state the same columns share it."""
        if len(self.words) == 1:
            return self.words[0]
        _, codes = np.unique(np.stack(self.words), axis=1, return_inverse=True)
        return codes.reshape(-1).astype(np.int64)

    def arrays(self) -> list[pa.Array]:
        """Return the columns that hold the bits."""
        import pyarrow as pa

        return [pa.array(word) for word in self.words]

    def _wanted(self, places: Collection[int]) -> list[int]:
        found = [0] * len(self.words)
        for place in places:
            found[place // BITS] |= 1 << place % BITS
        return found


def _word(column: pa.ChunkedArray) -> Ints:
    """Return a column of bits, null as none; where all are the same, without memory for each."""
    import pyarrow.compute as pc

    least, greatest = pc.min_max(column).as_py().values()
    if least == greatest is not None and not column.null_count:
        return np.broadcast_to(np.int64(least), len(column))
    word: Ints = pc.fill_null(column, 0).to_numpy().astype(np.int64, copy=False)
    return word
