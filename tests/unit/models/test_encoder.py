from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.errors import Corrupt, DataError
from headrace.features.record import NULL, OK, FeatureColumn, FeatureVector
from headrace.models.encoder import Encoder

TYPES = {"float": pa.float64(), "int": pa.int64(), "instant": pa.int64(), "bool": pa.bool_(), "str": pa.string()}
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "float": st.floats(allow_nan=False) | st.sampled_from([-0.0, 1e300, 5e-324, 16777217.0]),
    # The second rounds to float32 one way directly and another by way of float64.
    "int": st.integers(-(2**63), 2**63 - 1) | st.just(2**60 + 2**36 + 1),
    "instant": st.integers(0, 2**60),
    "bool": st.booleans(),
    "str": st.sampled_from(["a", "b", "Ä", "", "rare"]),
}


def vector_of(columns: tuple[FeatureColumn, ...], row: list[Any]) -> FeatureVector:
    vector = FeatureVector(columns, np.zeros(len(row), np.int64), np.full(len(row), OK, np.uint8), [])
    floats = vector.words.view(np.float64)
    for i, (column, value) in enumerate(zip(columns, row, strict=True)):
        if column.dtype == "str":
            vector.texts.append(value)
        if value is None:
            vector.status[i] = NULL
            if column.dtype == "float":
                floats[i] = math.nan
        elif column.dtype == "float":
            floats[i] = value
        elif column.dtype != "str":
            vector.words[i] = int(value)
    return vector


@st.composite
def tables(draw: st.DrawFn) -> tuple[tuple[FeatureColumn, ...], list[list[Any]]]:
    kinds = draw(st.lists(st.sampled_from(sorted(TYPES)), min_size=1, max_size=6))
    columns = tuple(FeatureColumn(f"f{i}", kind, "row") for i, kind in enumerate(kinds))
    row = st.tuples(*(st.none() | VALUES[kind] for kind in kinds)).map(list)
    return columns, draw(st.lists(row, min_size=2, max_size=8))


@given(tables())
def test_one_row_equals_the_batch_bit_for_bit(made: tuple[tuple[FeatureColumn, ...], list[list[Any]]]) -> None:
    columns, rows = made
    arrays = {c.name: pa.array([row[i] for row in rows], TYPES[c.dtype]) for i, c in enumerate(columns)}
    table = pa.table(arrays)
    encoder = Encoder.learn(columns, table.slice(0, len(rows) // 2))  # the second half brings unknown texts
    matrix, out = encoder.encode(table), np.zeros(len(columns), np.float32)
    for expected, row in zip(matrix, rows, strict=True):
        encoder.encode_vector(vector_of(columns, row), out)
        assert out.tobytes() == expected.tobytes()


@given(tables())
def test_it_travels_as_json(made: tuple[tuple[FeatureColumn, ...], list[list[Any]]]) -> None:
    columns, rows = made
    table = pa.table({c.name: pa.array([row[i] for row in rows], TYPES[c.dtype]) for i, c in enumerate(columns)})
    encoder = Encoder.learn(columns, table)
    assert Encoder.from_json(json.loads(json.dumps(encoder.to_json()))) == encoder


def test_codes_go_by_frequency_then_text_and_the_rest_shares_one() -> None:
    column = FeatureColumn("carrier", "str", "row")
    table = pa.table({"carrier": ["a", "a", "c", "b", "d", None, "b", "b"]})
    assert Encoder.learn((column,), table).vocabularies == (("b", "a", "c", "d"),)
    encoder = Encoder.learn((column,), table, limit=2)
    assert encoder.encode(table)[:, 0].tolist() == [1, 1, 2, 0, 2, 2, 0, 0]


def test_an_all_null_column_and_no_rows_encode() -> None:
    columns = (FeatureColumn("x", "float", "row"), FeatureColumn("s", "str", "row"))
    table = pa.table({"x": pa.array([None, None], pa.float64()), "s": pa.array([None, None], pa.string())})
    encoder = Encoder.learn(columns, table)
    assert np.isnan(encoder.encode(table)[:, 0]).all()
    assert encoder.encode(table)[:, 1].tolist() == [0, 0]
    assert encoder.encode(table.slice(0, 0)).shape == (0, 2)


def test_a_missing_column_is_named() -> None:
    encoder = Encoder((FeatureColumn("x", "float", "row"),), ())
    with pytest.raises(DataError) as caught:
        encoder.encode(pa.table({"y": [1.0]}))
    assert "got:      x" in str(caught.value)


@pytest.mark.parametrize(
    "body", [{}, {"columns": [["a", "str", "row"]], "vocabularies": []}, {"columns": [["a"]], "vocabularies": []}]
)
def test_a_damaged_encoder_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(Corrupt, match="not an encoder"):
        Encoder.from_json(body)
