"""Turn many texts into the numbers that stand for them, and back where a number spells its text."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.core.errors import Corrupt
from headrace.core.identity import TEXT
from headrace.core.texts import LONGEST, text_of
from headrace.features.equal import hashed_ids
from headrace.features.windows import loaded_kernel

Ints = NDArray[np.int64]
Numbered: TypeAlias = tuple[Ints, pa.Array]  # the numbers that stand for texts, and these


class Texts(dict[int, str]):
    """Hold texts by the numbers that stand for them; those that spell theirs need not be in it."""

    @classmethod
    def of(cls, parts: Iterable[Numbered]) -> Texts:
        """Hold some numbers' texts."""
        return cls({i: text for ids, texts in parts for i, text in zip(ids.tolist(), texts.to_pylist(), strict=True)})

    def __missing__(self, word: int) -> str:
        text = text_of(word)
        if text is None:
            raise KeyError(word)
        return text


def text_ids(texts: pa.Array) -> Ints:
    """Return `core.identity.text_id` of each text, of a null any number."""
    texts = texts.cast(pa.string())
    ids = np.empty(len(texts), np.int64)
    _, offsets, data = texts.buffers()
    if len(texts):
        first = offsets.address + 4 * texts.offset
        loaded_kernel().spell_texts(0 if data is None else data.address, first, len(texts), ids.ctypes.data)
    longer = np.flatnonzero(ids == 0)
    if len(longer):
        encoded = texts.take(pa.array(longer)).dictionary_encode()
        hashed = np.append(hashed_ids(TEXT, encoded.dictionary), 0)
        ids[longer] = hashed[pc.fill_null(encoded.indices, len(hashed) - 1).to_numpy(zero_copy_only=False)]
    return ids


def longer_texts(texts: pa.Array | pa.ChunkedArray) -> Numbered:
    """Return the numbers that stand for those different texts that no number spells, and these."""
    chunks = texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]
    longer = [pc.drop_null(chunk.filter(pa.array(text_ids(chunk) >= 0))).cast(pa.string()) for chunk in chunks]
    found = pc.unique(pa.chunked_array(longer, pa.string()))
    return hashed_ids(TEXT, found), found


class Speller:
    """Read the texts that words at some places of an array spell, as often as it changes; an instance reuses its buffers."""

    def __init__(self, words: Ints, places: Ints | Sequence[int]) -> None:
        n = len(places)
        self._words, self._n, self._places, self._ends = words, n, np.array(places, np.int64), np.empty(n, np.int64)
        self._data = ctypes.create_string_buffer((LONGEST + 1) * n)
        self._bytes = memoryview(self._data).cast("B")
        self._at = words.ctypes.data, self._places.ctypes.data, n, ctypes.addressof(self._data), self._ends.ctypes.data
        self._unspell = loaded_kernel().unspell_texts

    def read(self) -> list[str]:
        """Return the texts, an empty one for a word that is not negative.

        Raises:
            Corrupt: a negative word spells none.
        """
        size = self._unspell(*self._at)
        if size < 0:
            raise damaged_text(int(self._words[~size]))
        joined = bytes(self._bytes[:size])
        found = _decoded(joined).split("\0")[:-1]
        if len(found) == self._n:
            return found
        begins = [0, *self._ends[:-1].tolist()]  # a text has a NUL of its own
        return [_decoded(joined[begin : end - 1]) for begin, end in zip(begins, self._ends.tolist(), strict=True)]


def texts_of(words: Ints, there: NDArray[np.bool_], known: Callable[[int], str]) -> list[str | None]:
    """Return what numbers stand for, None where nothing is `there`: what they spell, and of others what is known.

    Raises:
        Corrupt: a number is below zero and spells no text.
    """
    words = np.where(there, words, 0)
    found: list[str | None] = [*Speller(words, np.arange(len(words))).read()]
    for i in np.flatnonzero(words >= 0).tolist():
        found[i] = known(int(words[i])) if there[i] else None
    return found


def spelled(word: int) -> str:
    """Return the text that a number below zero spells.

    Raises:
        Corrupt: it spells none.
    """
    try:
        found = text_of(word)
    except ValueError:
        found = None
    if found is None:
        raise damaged_text(word)
    return found


def damaged_text(got: object) -> Corrupt:
    """Return the error for a number that stands for no text."""
    expected, step = "a number that spells one", "headrace online rebuild"
    return Corrupt("a text of the online store is damaged", got=got, expected=expected, next_step=step)


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise damaged_text(raw[error.start : error.end]) from error
