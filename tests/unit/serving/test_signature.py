"""Request rows: every mistake names its column, says what was got and expected, and costs only its own row."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.errors import DataError
from headrace.core.time import DAY, Instant
from headrace.serving.signature import TEXT_LIMIT, Signature


def decoded(signature: Signature, row: Any) -> dict[str, Any]:
    return dict(zip((c.name for c in signature.columns), signature.decode(row), strict=True))


def mistake(signature: Signature, row: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        signature.decode(row)
    return caught.value


def test_a_row_becomes_typed_values_in_the_order_of_the_source(signature: Signature, row: dict[str, Any]) -> None:
    values = decoded(signature, row | {"price": 3, "seats": 4.0, "asked": "2024-05-01T14:00:00+02:00"})
    assert values["asked"] == Instant.parse("2024-05-01T12:00:00Z")
    assert (values["price"], type(values["price"])) == (3.0, float)
    assert (values["seats"], type(values["seats"])) == (4, int)
    assert values["account"] == 2**63 - 1
    assert values["born"] is None
    assert values["minutes"] is None
    assert decoded(signature, row | {"asked": 5})["asked"] == 5


@pytest.mark.parametrize(
    ("column", "given", "shown"),
    [
        ("ride", 7, "int 7"),
        ("ride", "x" * (TEXT_LIMIT + 1), "str 'xxx"),
        ("seats", "2", "str '2'"),
        ("seats", 2.5, "float 2.5"),
        ("seats", True, "bool True"),
        ("seats", float("nan"), "float nan"),
        ("seats", float("inf"), "float inf"),
        ("seats", [2], "list [2]"),
        ("account", 2**63, f"int {2**63}"),
        ("account", -(2**63) - 1, f"int {-(2**63) - 1}"),
        ("account", 2.0**53 + 2, "float 9007199254740994.0"),
        ("price", float("nan"), "float nan"),
        ("price", float("-inf"), "float -inf"),
        ("price", 10**400, "int 1000"),
        ("price", "12.5", "str '12.5'"),
        ("pool", 1, "int 1"),
        ("pool", "true", "str 'true'"),
        ("asked", 2**62, f"int {2**62}"),
        ("asked", True, "bool True"),
        ("asked", 1.5, "float 1.5"),
        ("asked", "2024-05-01T12:00:00Z" + " " * 40, "str '2024-05-01"),
        ("asked", "0001-01-01T00:00:00+23:59", "str '0001-01-01"),
    ],
)
def test_a_value_of_another_type_names_its_column(
    signature: Signature, row: dict[str, Any], column: str, given: Any, shown: str
) -> None:
    error = mistake(signature, row | {column: given})
    assert error.what == f"{column} is of another type"
    assert (error.got or "").startswith(shown)
    assert error.expected


@pytest.mark.parametrize("column", ["ride", "asked", "zone", "seats", "price"])
def test_a_missing_value_names_its_column(signature: Signature, row: dict[str, Any], column: str) -> None:
    without = {k: v for k, v in row.items() if k != column}
    assert mistake(signature, without).what == f"{column} is missing"
    assert mistake(signature, row | {column: None}).what == f"{column} is missing"


def test_an_unknown_column_is_met_with_the_closest_known_one(signature: Signature, row: dict[str, Any]) -> None:
    error = mistake(signature, row | {"prise": 1})
    assert error.what == "unknown column prise"
    assert error.next_step == "did you mean price?"
    assert mistake(signature, row | {"zzzzzz": 1}).next_step == "leave it out"


def test_a_value_that_is_known_only_later_is_refused(signature: Signature, row: dict[str, Any]) -> None:
    assert mistake(signature, row | {"minutes": 12.0}).what == "unknown column minutes"


def test_a_name_of_a_megabyte_is_cut_before_it_is_compared(signature: Signature, row: dict[str, Any]) -> None:
    error = mistake(signature, row | {"price" * 200_000: 1})
    assert len(str(error)) < 600


def test_an_instant_without_a_zone_is_refused(signature: Signature, row: dict[str, Any]) -> None:
    error = mistake(signature, row | {"asked": "2024-05-01T12:00:00"})
    assert error.what == "asked: a naive timestamp"
    assert error.got == "2024-05-01T12:00:00"
    assert "zone" in (error.expected or "")
    assert mistake(signature, row | {"asked": "yesterday"}).what == "asked: not a date or instant"


@pytest.mark.parametrize(
    ("column", "given", "rule"),
    [
        ("seats", 0, "ge"),
        ("seats", 9, "le"),
        ("price", -0.01, "ge"),
        ("kind", "bus", "isin"),
        ("zone", "z-", "matches"),
    ],
)
def test_a_value_out_of_range_names_its_column_and_the_rule(
    signature: Signature, row: dict[str, Any], column: str, given: Any, rule: str
) -> None:
    error = mistake(signature, row | {column: given})
    assert error.what == f"{column} is out of its range"
    assert error.got == repr(given)
    assert rule in (error.expected or "")


def test_a_pattern_holds_for_the_whole_text(signature: Signature, row: dict[str, Any]) -> None:
    assert mistake(signature, row | {"zone": "z-7\n"}).what == "zone is out of its range"
    assert mistake(signature, row | {"zone": "az-7"}).what == "zone is out of its range"


@pytest.mark.parametrize("given", ["+1 555", 5551234, "five"])
def test_a_personal_value_is_not_repeated_in_the_error(signature: Signature, row: dict[str, Any], given: Any) -> None:
    error = mistake(signature, row | {"phone": given})
    assert "phone" in error.what
    assert str(given) not in str(error)


@pytest.mark.parametrize("given", [None, [], "row", 3, [1, 2]])
def test_what_is_no_object_is_no_row(signature: Signature, given: Any) -> None:
    assert mistake(signature, given).what == "a row must be an object"


def test_the_schema_says_what_must_be_there(signature: Signature) -> None:
    told = {c["name"]: c for c in signature.schema()}
    assert told["price"]["required"] is True
    assert told["price"]["ge"] == 0
    assert "minutes" not in told


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(data=st.data())
def test_whatever_is_sent_is_typed_or_refused_as_data(signature: Signature, data: st.DataObject) -> None:
    names = st.sampled_from(sorted(signature.known)) | st.text(max_size=8)
    base = {
        "ride": "r",
        "asked": DAY,
        "zone": "z-1",
        "seats": 1,
        "account": 1,
        "price": 1.0,
        "kind": "cab",
        "pool": True,
    }
    changed = data.draw(st.dictionaries(names, json_values, max_size=4))
    try:
        values = decoded(signature, base | changed)
    except DataError as error:
        named = any(name in error.what for name in signature.known) or error.what.startswith("unknown column")
        if not named:
            raise
        return
    types = {"str": str, "int": int, "float": float, "bool": bool, "instant": int, "date": int}
    for column in signature.columns:
        if values[column.name] is not None:
            assert type(values[column.name]) is types[column.dtype]
    assert 1 <= values["seats"] <= 8
