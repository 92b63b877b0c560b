"""Hash things by their content, the same on every machine and in every process."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from typing import Any

from headrace.core.errors import DataError
from headrace.core.texts import spell

KEY_LIMIT = 400  # LMDB takes keys of 511 bytes; the rest is for what stands before: store, source, group, day
TEXT = b"text\0"  # stands before a text that is hashed
_NUMBER, _TEXT, _WORD = struct.Struct(">d"), struct.Struct(">cI"), struct.Struct(">Q")
_HASH = hashlib.blake2b(digest_size=8)


def canonical(value: Any) -> bytes:
    """Return the one JSON text of a value: sorted keys, no spaces, UTF-8.

    Raises:
        TypeError: the value is not plain JSON.
        ValueError: it holds NaN or infinity.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def content_hash(value: Any) -> str:
    """Return the first 32 hex digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical(value)).hexdigest()[:32]


def unit_interval(*parts: str) -> float:
    """Map texts to a number in [0, 1) that looks random and never changes: for sampling and sticky assignment.

    >>> 0 <= unit_interval("rollout-1", "UA1545") < 1
    True
    """
    digest = hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def row_hash(row_id: bytes) -> int:
    """Return the 63-bit non-negative hash of a row id that breaks ties inside windows."""
    state = _HASH.copy()  # half the time of a new one
    state.update(row_id)
    found: int = _WORD.unpack(state.digest())[0]
    return found >> 1


def text_id(text: str) -> int:
    """Return the number that stands for a text in fixed-size records: below 0 it spells it, else it is a 63-bit hash.

    >>> text_of(text_id("EWR")), text_id("a longer text, which is hashed") >= 0
    ('EWR', True)
    """
    raw = text.encode()
    spelled = spell(raw)
    return row_hash(TEXT + raw) if spelled is None else spelled


def encode_key(parts: Sequence[Any]) -> bytes | None:
    """Return the bytes that stand for a row id or an entity; None if any part is null: then there is no such thing.

    Each part says its type, texts their length, so no two keys of plain values share bytes: `("ab", "c")` is not
    `("a", "bc")` and `1` is not `"1"`. Past `KEY_LIMIT` bytes the key is its 32-byte BLAKE2b, marked `h`: two such
    keys meeting by chance is out of the question (2^-128). -0.0 and 0.0 are one key, and so are all NaN.

    >>> encode_key(["EWR"])
    b's\\x00\\x00\\x00\\x03EWR'
    >>> encode_key(["EWR", None]) is None
    True

    Raises:
        DataError: a part is no text, number or bool, or an integer outside int64.
    """
    encoded = []
    for part in parts:
        if part is None:
            return None
        encoded.append(_encode_part(part))
    key = encoded[0] if len(encoded) == 1 else b"".join(encoded)
    return key if len(key) <= KEY_LIMIT else b"h" + hashlib.blake2b(key, digest_size=32).digest()


def _encode_part(part: Any) -> bytes:
    if isinstance(part, str):
        text = part.encode()
        return _TEXT.pack(b"s", len(text)) + text
    if isinstance(part, bool):
        return b"b\1" if part else b"b\0"
    if isinstance(part, int) and -(2**63) <= part < 2**63:
        return b"i" + part.to_bytes(8, "big", signed=True)
    if isinstance(part, float):
        return b"f" + _NUMBER.pack(part + 0.0 if part == part else float("nan"))
    raise DataError(
        "a value that cannot be part of a key",
        got=f"{type(part).__name__} {part!r:.80}",
        expected="text, a bool, a float, or an integer of 64 bits",
        next_step="declare the column as str, or quarantine the row",
    )
