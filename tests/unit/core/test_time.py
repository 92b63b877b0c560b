"""Instants and durations: exact, zoned, and refused where they would be guessed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.errors import DefinitionError
from headrace.core.time import DAY, UNITS, Instant, VirtualClock, duration, format_duration


@given(st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9998, 12, 31), timezones=st.just(UTC)))
def test_an_instant_is_exact_to_the_microsecond(moment: datetime) -> None:
    instant = Instant.of(moment)
    assert instant.in_zone("UTC") == moment
    assert Instant.parse(instant.isoformat()) == instant
    assert instant == (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def test_daylight_saving_time_is_kept() -> None:
    assert Instant.parse("2013-03-10T06:59:00Z").in_zone("America/New_York").hour == 1
    assert Instant.parse("2013-03-10T07:00:00Z").in_zone("America/New_York").hour == 3


@pytest.mark.parametrize("text", ["2013-01-01T00:00:00", "yesterday", "2013-13-01"])
def test_what_is_no_instant_is_refused(text: str) -> None:
    with pytest.raises(DefinitionError):
        Instant.parse(text)


@given(st.integers(1, 10**6), st.sampled_from(sorted(UNITS)))
def test_a_duration_survives_being_written(amount: int, unit: str) -> None:
    size = duration(f"{amount}{unit}")
    assert size == amount * UNITS[unit]
    assert duration(format_duration(size)) == size


@pytest.mark.parametrize("text", ["", "1", "h", "-1h", "0s", "1 fortnight", "1.5us"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(DefinitionError, match="not a duration"):
        duration(text)


def test_a_virtual_clock_never_goes_back() -> None:
    clock = VirtualClock(Instant(DAY))
    clock.advance_to(2 * DAY)
    with pytest.raises(ValueError, match="earlier"):
        clock.advance_to(DAY)
    assert clock.now() == 2 * DAY
