"""A short text is spelled by its number: no other text has it, and it says the text again."""

from __future__ import annotations

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headrace.core.identity import row_hash, text_id
from headrace.core.texts import spell, text_of

WORDS = 2**63
LETTERS = [string.digits + string.ascii_letters + "-", string.digits + string.ascii_letters + "_"]
LETTERS += [string.ascii_lowercase + "-_. /", string.digits + "-.:/+"]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
TEXTS |= st.one_of(*(st.text(letters, max_size=17) for letters in LETTERS))


@given(TEXTS)
@example("")
@example("\0")
@example("\0" * 7)
@example("äöü")
@example("EWR")
@example("SKU-000123")
@example("user_12345")
@example("card_present")
@example("192.168.100.200")
@example("0123456")
@example("0123456789")
@example("electronics")
def test_a_number_that_spells_a_text_says_it_again(text: str) -> None:
    found = text_id(text)
    assert -WORDS <= found < WORDS
    assert text_of(found) == (text if found < 0 else None)
    if found >= 0:
        assert found == row_hash(b"text\0" + text.encode())


@given(st.lists(TEXTS, min_size=2, max_size=2, unique=True))
def test_no_two_texts_have_one_number(texts: list[str]) -> None:
    assert text_id(texts[0]) != text_id(texts[1])


@pytest.mark.parametrize("text", ["\uffff\uffffx", "Zz-0Zz-0Zz", "Zz_0Zz_0Zz", "abc d/e_f.gh", "0:1/2.3+4-5:6/7"])
def test_each_alphabet_spells_as_many_characters_as_fit(text: str) -> None:
    assert text_id(text) < 0
    assert text_id(text + text[-1]) >= 0


@given(st.integers(-WORDS, -1))
@example(-WORDS)
@example(-1)
@example(spell(b"EWR") or 0)
def test_a_number_that_spells_nothing_is_refused(word: int) -> None:
    try:
        text = text_of(word)
    except ValueError:
        return
    assert text is not None
    assert text_id(text) == word


@pytest.mark.parametrize("raw", [b"EWR", b"SKU-000123"])
def test_every_changed_bit_is_another_text_or_refused(raw: bytes) -> None:
    word = spell(raw)
    assert word is not None
    seen = {raw.decode()}
    for bit in range(63):
        try:
            text = text_of(word ^ 1 << bit)
        except ValueError:
            continue
        assert text is not None
        assert text not in seen
        seen.add(text)
