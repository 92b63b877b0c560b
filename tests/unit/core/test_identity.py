"""Keys stand for what they were made of, and for nothing else."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.errors import DataError
from headrace.core.identity import KEY_LIMIT, encode_key
from headrace.core.time import Instant

PARTS = st.one_of(st.text(max_size=8), st.integers(-(2**63), 2**63 - 1), st.booleans(), st.floats(allow_nan=False))
KEYS = st.lists(PARTS, min_size=1, max_size=3)


def meaning(key: list[Any]) -> list[tuple[str, Any]]:
    return [(type(part).__name__, part) for part in key]


@given(KEYS, KEYS)
def test_two_keys_share_bytes_only_if_they_are_equal(a: list[Any], b: list[Any]) -> None:
    assert (encode_key(a) == encode_key(b)) == (meaning(a) == meaning(b))


@given(st.integers(1, KEY_LIMIT * 2))
def test_long_keys_are_hashed_and_short_ones_readable(length: int) -> None:
    key = encode_key(["x" * length])
    assert key is not None
    assert key.startswith(b"h") == (length + 5 > KEY_LIMIT)
    assert len(key) <= KEY_LIMIT


def test_boundaries_of_texts_count() -> None:
    assert encode_key(["ab", "c"]) != encode_key(["a", "bc"])


def test_null_in_any_part_is_no_key() -> None:
    assert encode_key(["a", None]) is None


def test_numbers_that_are_equal_are_one_key() -> None:
    assert encode_key([0.0]) == encode_key([-0.0])
    assert encode_key([math.nan]) == encode_key([-math.nan])
    assert encode_key([Instant(5)]) == encode_key([5])
    assert encode_key([1]) != encode_key([True])


def test_bytes_never_change() -> None:
    assert encode_key(["EWR", 5, True, 0.5]) == b"s\0\0\0\3EWRi\0\0\0\0\0\0\0\5b\1f?\xe0\0\0\0\0\0\0"


@pytest.mark.parametrize("part", [2**63, b"bytes", ["list"]])
def test_other_values_are_refused(part: Any) -> None:
    with pytest.raises(DataError, match="cannot be part of a key"):
        encode_key([part])
