"""Hash what a reveal states: one cell after the other, the same for one event and for a whole table.

Not cryptographic: whoever can choose a row's values can make two of its own reveals collide, and harms only that row.
The mixing step is the finalizer of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number
generators", variant 13 of Stafford), whose bits each depend on all bits of the input.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

Words = NDArray[np.uint64]
MASK = 2**64 - 1
GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
SEED = 0x243F6A8885A308D3  # the first 64 bits of pi's fraction: a start that nobody chose
NAN = 0x7FF8000000000000
_DOUBLE, _WORD = struct.Struct("<d"), struct.Struct("<Q")


def content_of(places: Sequence[int], values: Sequence[Any]) -> int:
    """Return the 63-bit hash of the cells that one reveal states, in ascending order of places."""
    state = SEED
    for place, value in zip(places, values, strict=True):
        word = 0 if value is None else _word(value)
        x = (state ^ (word + _tag(place, value is None))) & MASK
        x = (x ^ x >> 30) * FIRST & MASK
        x = (x ^ x >> 27) * SECOND & MASK
        state = x ^ x >> 31
    return state >> 1


def content_column(places: Sequence[int], words: Sequence[tuple[Words, NDArray[np.bool_]]]) -> NDArray[np.int64]:
    """Return `content_of` for many reveals that state the same places; `words` as `cell_words` gives them."""
    state = np.full(len(words[0][0]), SEED, np.uint64)
    for place, (word, null) in zip(places, words, strict=True):
        tag = np.where(null, np.uint64(_tag(place, True)), np.uint64(_tag(place, False)))
        x = state ^ (word + tag)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(FIRST)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(SECOND)
        state = x ^ (x >> np.uint64(31))
    return (state >> np.uint64(1)).astype(np.int64)


def cell_words(values: pa.Array, dtype: str) -> tuple[Words, NDArray[np.bool_]]:
    """Return each cell's 64-bit word (0 where null) and whether it is null."""
    import pyarrow.compute as pc

    null = values.is_null().to_numpy(zero_copy_only=False)
    if dtype == "str":
        coded = pc.dictionary_encode(values)
        of_each = np.array([_word(text) for text in coded.dictionary.to_pylist()] or [0], np.uint64)
        places = pc.fill_null(coded.indices, 0).to_numpy(zero_copy_only=False)
        words = of_each[places]
    elif dtype == "float":
        numbers = pc.fill_null(values, 0.0).to_numpy(zero_copy_only=False)
        words = np.where(np.isnan(numbers), np.uint64(NAN), numbers.view(np.uint64))
    else:
        filled = pc.fill_null(values, False if dtype == "bool" else 0)
        words = filled.to_numpy(zero_copy_only=False).astype(np.int64).view(np.uint64)
    return np.where(null, np.uint64(0), words), null


def _tag(place: int, null: bool) -> int:
    return (2 * place + 1 + null) * GOLDEN & MASK


def _word(value: Any) -> int:
    if isinstance(value, str):
        return int.from_bytes(hashlib.blake2b(value.encode(), digest_size=8).digest(), "big")
    if isinstance(value, float):
        word: int = NAN if value != value else _WORD.unpack(_DOUBLE.pack(value))[0]
        return word
    return int(value) & MASK
