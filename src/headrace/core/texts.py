"""Spell short texts in 63 bits, so that records of fixed size hold them themselves and nothing has to be looked up.

A word that spells a text is negative: after the sign come 3 bits for the alphabet, and 60 for the characters.

    1  any text of up to 7 bytes of UTF-8: its length in bits 56 to 59, its bytes below, the first one lowest
    2  up to 10 characters, 6 bits each, the first one lowest: digits, letters, `-`
    3  the same with `_` for `-`
    4  up to 12 characters, 5 bits each: small letters and `-_. /`
    5  up to 15 characters, 4 bits each: digits and `-.:/+`

A character's bits are its place in the alphabet, counted from 1; 0 stands behind the last one. Each text has one word at
most: that of the first alphabet that can spell it. `features/spell.h` writes and reads the same words.
"""

from __future__ import annotations

import string
from typing import NamedTuple

SPELLED = 7  # bytes of any text that can be spelled
LONGEST = 15  # bytes of the longest text that any alphabet can spell
_SIGN, _TAG = -(2**63), 60
_BYTES = _SIGN + (1 << _TAG)


class _Alphabet(NamedTuple):
    mark: int
    bits: int
    most: int
    symbols: tuple[str, ...]
    codes: bytes


def _alphabet(number: int, bits: int, letters: str) -> _Alphabet:
    codes = bytes([letters.find(chr(byte)) + 1 for byte in range(256)])
    return _Alphabet(_SIGN + (number << _TAG), bits, 60 // bits, ("", *letters), codes)


_ALPHABETS = (
    _alphabet(2, 6, string.digits + string.ascii_letters + "-"),
    _alphabet(3, 6, string.digits + string.ascii_letters + "_"),
    _alphabet(4, 5, string.ascii_lowercase + "-_. /"),
    _alphabet(5, 4, string.digits + "-.:/+"),
)


def spell(raw: bytes) -> int | None:
    """Return the word that spells a text, given as UTF-8; None if no alphabet can.

    >>> text_of(spell(b"EWR")), text_of(spell(b"SKU-000123")), text_of(spell(b"card present"))
    ('EWR', 'SKU-000123', 'card present')
    >>> spell(b"a text of more characters") is None
    True
    """
    n = len(raw)
    if n <= SPELLED:
        return int.from_bytes(raw, "little") + (n << 56) + _BYTES
    if n > LONGEST:
        return None
    for mark, bits, most, _, table in _ALPHABETS:
        codes = raw.translate(table)
        if n <= most and 0 not in codes:
            word = 0
            for code in reversed(codes):
                word = word << bits | code
            return word + mark
    return None


def text_of(word: int) -> str | None:
    """Return the text that a word spells, None if it spells none.

    Raises:
        ValueError: the word is negative, and `spell` never returned it.
    """
    if word >= 0:
        return None
    number = (word >> _TAG) + 8
    if number == 1:
        text = (word & (1 << 56) - 1).to_bytes(7, "little")[: word >> 56 & 15].decode()
    elif 2 <= number <= 5:
        _, bits, most, symbols, _ = _ALPHABETS[number - 2]
        text = "".join([symbols[word >> at & (1 << bits) - 1] for at in range(0, bits * most, bits)])
    else:
        text = ""
    if spell(text.encode()) != word:
        raise ValueError(f"{word} spells no text")
    return text
