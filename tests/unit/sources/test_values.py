"""Values from outside are read strictly: what does not fit is refused with a reason."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.expressions import Column
from headrace.core.time import DAY, Instant
from headrace.sources.definition import Source, column, definition_of, event_time, row_id
from headrace.sources.values import EventReader, plain


class Rows(Source):
    key: Column[str] = row_id()
    at: Column[Instant] = event_time()
    size: Column[float | None] = column(name="Size (km)")
    count: Column[int | None] = column()
    good: Column[bool | None] = column()
    day: Column[date | None] = column()
    secret: Column[int | None] = column(pii=True)


ROWS = definition_of(Rows)
READER = EventReader(ROWS)
NOON = Instant.parse("2013-07-01T12:00:00Z")


@pytest.mark.parametrize(
    ("name", "raw", "value"),
    [
        ("Size (km)", 1.5, 1.5),
        ("Size (km)", 2, 2.0),
        ("count", -(2**63), -(2**63)),
        ("good", False, False),
        ("day", "1970-01-02", DAY),
        ("day", DAY, DAY),
        ("at", "2013-07-01T14:00:00+02:00", NOON),
        ("at", int(NOON), NOON),
        ("at", "1969-12-31T23:59:59.999999Z", -1),
        ("count", None, None),
    ],
)
def test_values_of_the_type_are_read(name: str, raw: Any, value: Any) -> None:
    values, problems = READER.read({"key": "a", name: raw})
    own = "size" if name == "Size (km)" else name
    assert (values[own], type(values[own]) is bool, problems) == (value, type(value) is bool, [])


@pytest.mark.parametrize(
    ("name", "raw", "problem"),
    [
        ("Size (km)", "1.5", "size: expected float, got str '1.5'"),
        ("Size (km)", 2**53 + 1, "size: expected float, got int 9007199254740993"),
        ("Size (km)", True, "size: expected float, got bool True"),
        ("count", 1.0, "count: expected int, got float 1.0"),
        ("count", 2**63, "count: expected int, got int 9223372036854775808"),
        ("count", True, "count: expected int, got bool True"),
        ("good", 1, "good: expected bool, got int 1"),
        ("day", "2013-02-30", "day: expected date, got str '2013-02-30'"),
        ("day", 5, "day: expected date, got int 5"),
        ("at", "2013-07-01T12:00:00", "at: expected instant, got str '2013-07-01T12:00:00'"),
        ("at", "yesterday", "at: expected instant, got str 'yesterday'"),
        ("at", 2**62, "at: expected instant, got int 4611686018427387904"),
        ("at", None, "at: null, but it places the row"),
        ("key", None, "key: null, but it names the row"),
        ("key", "\ud800", "key: expected str, got str '\\ud800'"),
        ("key", {"a": 1}, "key: expected str, got dict {'a': 1}"),
        ("secret", "123-45", "secret: expected int, got str"),
    ],
)
def test_other_values_are_refused_with_a_reason(name: str, raw: Any, problem: str) -> None:
    assert READER.read({"key": "a", name: raw})[1][0] == problem


def test_a_zone_from_settings_reads_naive_timestamps() -> None:
    reader = EventReader(ROWS, zone="America/New_York", columns={"at": "when"})
    assert reader.read({"key": "a", "when": "2013-07-01T08:00:00"}) == ({"key": "a", "at": NOON}, [])


def test_undeclared_columns_are_passed_over() -> None:
    assert READER.read({"key": "a", "_arrival": 5, "more": [1]}) == ({"key": "a"}, [])


@given(st.dictionaries(st.sampled_from(["key", "at", "Size (km)", "count", "good", "day"]), st.from_type(object)))
def test_no_value_raises(event: dict[str, Any]) -> None:
    values, problems = READER.read(event)
    assert problems or values["key"] is not None


def test_values_are_shown_as_json() -> None:
    column_at, size, day = ROWS.by_name["at"], ROWS.by_name["size"], ROWS.by_name["day"]
    shown = [plain(column_at, int(NOON)), plain(day, DAY), plain(size, float("nan")), plain(size, None)]
    assert shown == ["2013-07-01T12:00:00Z", "1970-01-02", "nan", None]
    assert plain(column_at, 2**62) == 2**62
