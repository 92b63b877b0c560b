"""A value is found in payloads of every format, and where nobody can tell, that is said."""

from __future__ import annotations

import re
from typing import Any

import orjson
import pyarrow as pa
import pytest

from headrace.pipelines.traces import Traces
from headrace.sources.arrow import ArrowCodec
from headrace.sources.codecs import JsonCodec
from headrace.sources.letters import CELLS

KNOWN = frozenset({"Shop", "n", "note"})


def looking_for(value: Any, codec: Any) -> Traces:
    word = re.compile(rf"(?<![\w-]){re.escape(str(value))}(?![\w-])")
    return Traces(value, word, frozenset({"Shop"} if isinstance(value, str) else {"n"}), KNOWN, codec)


def as_json(**fields: Any) -> bytes:
    return orjson.dumps(fields)


def as_arrow(**fields: Any) -> bytes:
    batch = pa.RecordBatch.from_pylist([{"Shop": "other", "n": 1, "note": None}, fields])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue().to_pybytes())


@pytest.mark.parametrize(("codec", "pack"), [(JsonCodec(), as_json), (ArrowCodec(), as_arrow)])
def test_events_state_the_value_of_their_own_columns_only(codec: Any, pack: Any) -> None:
    text, number = looking_for("shop-1", codec), looking_for(17, codec)
    hit, other = pack(Shop="shop-1", n=17, note="x"), pack(Shop="shop-13", n=170, note="shop-1 17")
    assert text.states(hit) and number.states(hit)
    assert not text.states(other) and not number.states(other)


@pytest.mark.parametrize(
    ("form", "payload", "found"),
    [
        ("json", b"no JSON about shop-1", True),
        ("json", b"no JSON about shop-13", False),
        ("json", b'{"Shop": "\\u0073hop-1"}', True),
        (CELLS, b'{"Shop": "shop-1", "n": "17 "}', True),
        (CELLS, b'{"note": ["shop-13"]}', False),
        ("arrow", b"\x00\x09shop-1x", True),  # undecodable bytes: rather too much than too little
        ("arrow", as_arrow(Shop="shop-1", n=1, note=None), True),
        ("arrow", as_arrow(Shop="shop-2", n=1, note=None), False),
    ],
)
def test_a_text_is_found_in_dead_letters_of_any_format(form: str, payload: bytes, found: bool) -> None:
    letter = {"format": form, "payload": payload, "reason": "bad", "place": "stream s"}
    traces = looking_for("shop-1", ArrowCodec())
    assert traces.in_letter(letter) is found
    assert traces.in_letter(letter | {"reason": "shop: got shop-1"})
    assert traces.can_tell(letter)


def test_a_number_in_bytes_that_cannot_be_decoded_is_not_told_to_be_absent() -> None:
    traces = looking_for(17, ArrowCodec())
    spoilt = {"format": "arrow", "payload": b"\x11" * 9, "reason": "not Arrow"}
    assert not traces.in_letter(spoilt) and not traces.can_tell(spoilt)
    whole = {"format": "arrow", "payload": as_arrow(Shop="x", n=17, note=None), "reason": "n: bad"}
    assert traces.in_letter(whole) and traces.can_tell(whole)
    assert not traces.can_tell(whole | {"format": "avro"})
    assert traces.can_tell({"format": CELLS, "payload": b'{"n": "x"}', "reason": ""})
