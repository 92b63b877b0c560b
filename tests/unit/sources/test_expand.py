"""Rows become reveals: one for each distinct moment, the same for a table and for single events."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.errors import DataError
from headrace.core.expressions import Column
from headrace.core.identity import encode_key
from headrace.core.time import DAY, HOUR, Instant
from headrace.sources.content import content_of
from headrace.sources.definition import Source, column, definition_of, entity, event_time, row_id
from headrace.sources.plan import expand, reveal_of, row_ids
from headrace.sources.record import ARRIVAL, ROW_ID, Reveal
from headrace.sources.run import batch_of, iter_deliveries
from headrace.sources.stated import STATED
from headrace.sources.values import arrow_type


class Trips(Source):
    trip: Column[str] = row_id()
    start: Column[Instant] = event_time()
    car: Column[str | None] = entity(known_at=start - "12h")
    ended: Column[Instant | None] = column()
    km: Column[float | None] = column(known_at=ended)
    stops: Column[int | None] = column(known_at=ended)
    rated: Column[bool | None] = column(known_at=ended + "1h")

    known_at = start - "30d"


class Readings(Source):
    place: Column[str] = entity()
    hour: Column[Instant] = event_time()
    value: Column[float | None] = column(allow_nan=True)

    row_id = row_id(place, hour)
    known_at = hour + "1h"


TRIPS, READINGS = definition_of(Trips), definition_of(Readings)
START = Instant.parse("2013-07-01T12:00:00Z")
DONE = {
    "trip": "a",
    "start": START,
    "car": "X",
    "ended": START + HOUR,
    "km": 12.5,
    "stops": 3,
    "rated": True,
}
INTS = {"int": st.integers(-(2**63), 2**63 - 1), "instant": st.integers(-(2**50), 2**50), "bool": st.booleans()}
VALUES: dict[str, st.SearchStrategy[Any]] = {
    **INTS,
    "str": st.text(max_size=5),
    "float": st.floats(),
    "date": INTS["int"],
}


def table_of(definition: Any, events: list[dict[str, Any]]) -> pa.Table:
    names = [n for n in [*definition.by_name, ARRIVAL] if n in events[0]]
    types = {n: arrow_type(definition.by_name[n].dtype) if n in definition.by_name else pa.int64() for n in names}
    return pa.table({n: pa.array([e[n] for e in events], types[n]) for n in names})


def same(a: list[Reveal], b: list[Reveal]) -> bool:
    """Compare bit for bit: NaN equals NaN, 0.0 is not -0.0."""
    return [repr(reveal) for reveal in a] == [repr(reveal) for reveal in b]


@st.composite
def events(draw: st.DrawFn) -> tuple[Any, list[dict[str, Any]]]:
    """Return events of one source that all have the same columns, perhaps not all, perhaps with an arrival."""
    definition = draw(st.sampled_from([TRIPS, READINGS]))
    fixed = {c.name for c in definition.id_columns} | {definition.time.name}
    left_out = draw(st.sets(st.sampled_from([c.name for c in definition.columns if c.name not in fixed])))
    observed = draw(st.booleans())
    columns = [c for c in definition.columns if c.name not in left_out or (c.name == "ended" and not observed)]

    def event() -> st.SearchStrategy[dict[str, Any]]:
        cells = {c.name: VALUES[c.dtype] | st.none() if c.nullable else VALUES[c.dtype] for c in columns}
        return st.fixed_dictionaries(cells | ({ARRIVAL: st.integers(0, 2**50)} if observed else {}))

    return definition, draw(st.lists(event(), min_size=1, max_size=6))


@given(events(), st.integers(0, HOUR))
def test_a_table_gives_the_reveals_of_its_events(drawn: tuple[Any, list[dict[str, Any]]], lag: int) -> None:
    definition, rows = drawn
    one_by_one = [reveal for event in rows for reveal in reveal_of(definition, event, lag=lag)]
    ordered = sorted(one_by_one, key=lambda r: (r.arrival, r.row_id, r.content))
    assert same(list(expand(definition, table_of(definition, rows), lag=lag).reveals()), ordered)
    assert same(list(batch_of(definition, one_by_one).reveals()), ordered)


def test_a_row_arrives_moment_by_moment_under_one_id() -> None:
    found = reveal_of(TRIPS, DONE, lag=60)
    names = [[TRIPS.columns[p].name for p in reveal.places] for reveal in found]
    assert names == [["trip", "start"], ["trip", "car"], ["trip", "ended", "km", "stops"], ["trip", "rated"]]
    moments = [START - 30 * DAY, START - 12 * HOUR, START + HOUR, START + 2 * HOUR]
    assert [reveal.arrival for reveal in found] == [moment + 60 for moment in moments]
    assert {reveal.row_id for reveal in found} == {encode_key(["a"])}


def test_a_null_moment_reveals_nothing_and_a_null_value_is_revealed() -> None:
    under_way = DONE | {"ended": None, "km": None, "car": None}
    assert [r.values for r in reveal_of(TRIPS, under_way)] == [("a", START), ("a", None)]


def test_an_absent_column_is_not_stated() -> None:
    found = reveal_of(TRIPS, {"trip": "a", "ended": START, "km": 1.0})
    assert [(r.places, r.values) for r in found] == [((0, 3, 4), ("a", START, 1.0))]


def test_an_observed_arrival_holds_for_every_reveal() -> None:
    late = START + 9 * DAY
    assert {r.arrival for r in reveal_of(TRIPS, DONE | {ARRIVAL: late}, lag=5)} == {late}


def test_a_moment_stated_earlier_is_not_needed_if_the_arrival_was_observed() -> None:
    assert [r.arrival for r in reveal_of(TRIPS, {"trip": "a", "km": 1.0, ARRIVAL: 7})] == [7]
    with pytest.raises(DataError) as error:
        reveal_of(TRIPS, {"trip": "a", "km": 1.0})
    assert str(error.value).startswith("Trips: nothing says when trip, ended, km, stops became known\n")
    assert "next:     deliver those columns too, or send the rows through a stream" in str(error.value)


def test_an_event_with_nothing_but_its_id_reveals_nothing() -> None:
    assert reveal_of(TRIPS, {"trip": "a"}) == []


def test_an_id_whose_moment_is_told_is_a_row() -> None:
    found = reveal_of(READINGS, {"place": "EWR", "hour": START})
    assert [(r.arrival, r.places) for r in found] == [(START + HOUR, (0, 1))]


@pytest.mark.parametrize("event", [{"start": START}, DONE | {"trip": None}])
def test_a_row_without_id_is_refused(event: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="has no row id"):
        reveal_of(TRIPS, event)
    with pytest.raises(DataError, match="has no row id"):
        expand(TRIPS, table_of(TRIPS, [event]))


def test_a_missing_arrival_is_refused() -> None:
    with pytest.raises(DataError, match="rows without an arrival"):
        expand(TRIPS, table_of(TRIPS, [DONE | {ARRIVAL: 5}, DONE | {ARRIVAL: None}]))


def test_an_empty_table_has_no_reveals_and_the_schema() -> None:
    empty = table_of(TRIPS, [DONE]).slice(0, 0)
    assert expand(TRIPS, empty).table.schema == expand(TRIPS, table_of(TRIPS, [DONE])).table.schema
    assert len(expand(TRIPS, empty)) == 0


def test_a_composite_id_has_all_its_parts() -> None:
    table = expand(READINGS, table_of(READINGS, [{"place": "EWR", "hour": START, "value": None}])).table
    assert table[ROW_ID].to_pylist() == [encode_key(["EWR", int(START)])]
    assert table[STATED].to_pylist() == [0b111]
    assert row_ids(READINGS, table) == table[ROW_ID].combine_chunks()


def test_content_tells_places_values_and_nulls_apart() -> None:
    stated = [
        ((0,), (0,)),
        ((0,), (None,)),
        ((1,), (0,)),
        ((0, 1), (0, 0)),
        ((0,), (1,)),
        ((0,), (-0.0,)),
        ((0,), ("",)),
        ((0,), (math.nan,)),
    ]
    assert len({content_of(*cells) for cells in stated}) == len(stated)
    assert all(0 <= content_of(*cells) < 2**63 for cells in stated)
    assert content_of((0,), (math.nan,)) == content_of((0,), (-math.nan,))
    nans = [{"place": "EWR", "hour": START, "value": value} for value in (math.nan, -math.nan)]
    assert len({r.content for r in expand(READINGS, table_of(READINGS, nans)).reveals()}) == 1


def test_content_is_the_same_on_every_machine() -> None:
    assert content_of((0, 2), ("a", 12.5)) == 5443939607757407324


@given(st.lists(st.integers(-3 * DAY, 3 * DAY), max_size=20))
def test_deliveries_part_the_reveals_by_arrival(arrivals: list[int]) -> None:
    batch = batch_of(TRIPS, [r for a in arrivals for r in reveal_of(TRIPS, {"trip": "a", "km": 1.0, ARRIVAL: a})])
    deliveries = list(iter_deliveries(batch, DAY))
    assert [r for d in deliveries for r in d.batch.reveals()] == list(batch.reveals())
    assert all(d.start <= r.arrival < d.end == d.start + DAY for d in deliveries for r in d.batch.reveals())
    assert [d.start for d in deliveries] == sorted({a // DAY * DAY for a in arrivals})


def test_deliveries_copy_nothing() -> None:
    batch = expand(TRIPS, table_of(TRIPS, [DONE]))
    last = list(iter_deliveries(batch, DAY))[-1].batch.table[ARRIVAL].chunk(0)
    assert last.buffers()[1].address == batch.table[ARRIVAL].chunk(0).buffers()[1].address
