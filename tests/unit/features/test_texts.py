"""Many texts at once have the numbers that each has alone, and numbers say them again."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headrace.core.errors import Corrupt
from headrace.core.identity import text_id
from headrace.features.texts import Texts, longer_texts, spelled, text_ids, texts_of

ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ANY |= st.text("0123456789-.:/+", max_size=17) | st.text("abcxyz-_. /", max_size=14)
ANY |= st.text("aZ09-_", min_size=7, max_size=12)


@given(st.lists(st.none() | ANY, max_size=20), st.integers(0, 3))
@example([], 0)
@example(["", "\0", "\0\0a", None, "a\0b"], 0)
@example([None, "a text of more characters", None, "a text of more characters", "x"], 1)
def test_numbers_of_many_are_those_of_each_and_say_the_texts(texts: list[str | None], skipped: int) -> None:
    array = pa.array([*"abc"[:skipped], *texts], pa.string()).slice(skipped)
    ids, there = text_ids(array), np.array([text is not None for text in texts], bool)
    assert [i if t else None for i, t in zip(ids.tolist(), there, strict=True)] == [
        None if text is None else text_id(text) for text in texts
    ]
    numbers, longer = longer_texts(array)
    assert set(longer.to_pylist()) == {text for text in texts if text is not None and text_id(text) >= 0}
    assert len(longer) == len(set(longer.to_pylist()))
    known = Texts.of([(numbers, longer)])
    assert texts_of(ids, there, known.__getitem__) == texts
    assert [known[i] for i in ids[there].tolist()] == [text for text in texts if text is not None]
    with pytest.raises(KeyError):
        known[text_id("no text that was ever seen")]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view()])
def test_texts_of_other_layouts_have_the_same_numbers(kind: pa.DataType) -> None:
    texts = ["EWR", "a text of more characters", None]
    assert text_ids(pa.array(texts, kind))[:2].tolist() == text_ids(pa.array(texts))[:2].tolist()


DAMAGED = [-1, -(2**63), text_id("EWR") ^ 1 << 40, text_id("abcdefgh") & ~(63 << 12), text_id("ä") ^ 1 << 5]


@pytest.mark.parametrize("word", DAMAGED)
def test_a_damaged_number_is_told(word: int) -> None:
    """Of one alphabet too many, of none, with bytes behind the last one, with a hole, and of no UTF-8."""
    with pytest.raises(Corrupt, match="rebuild"):
        texts_of(np.array([text_id("x"), word]), np.array([True, True]), str)
    with pytest.raises(Corrupt, match="rebuild"):
        spelled(word)
    assert texts_of(np.array([word]), np.array([False]), str) == [None]
