"""Local times become instants by the zone's rules, the same for arrays and for single texts."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.errors import DefinitionError
from headrace.core.time import HOUR, MINUTE, Instant
from headrace.sources.zones import EARLIEST, LATEST, LOCAL_EPOCH, localise

ZONES = ["America/New_York", "Europe/Berlin", "Asia/Kathmandu", "Australia/Lord_Howe", "America/St_Johns", "UTC"]
AROUND = [datetime(2013, 3, 10, 2), datetime(2013, 11, 3, 1), datetime(2013, 3, 31, 2), datetime(2013, 10, 6, 2)]
LOCAL = st.datetimes(datetime(1900, 1, 1), datetime(2037, 1, 1)) | st.builds(
    lambda around, minutes: around + timedelta(minutes=minutes), st.sampled_from(AROUND), st.integers(-180, 180)
)


def microseconds(local: datetime) -> int:
    return (local - LOCAL_EPOCH) // timedelta(microseconds=1)


@given(st.lists(LOCAL, min_size=1, max_size=8), st.sampled_from(ZONES))
def test_arrays_agree_with_single_texts(local: list[datetime], zone: str) -> None:
    found = localise(np.array([microseconds(moment) for moment in local]), zone)
    assert found.instants.tolist() == [Instant.parse(m.isoformat(), zone=zone) for m in local]


def test_an_hour_that_came_twice_is_its_first() -> None:
    found = localise(np.array([microseconds(datetime(2013, 11, 3, 1, 30))]), "America/New_York")
    assert Instant(found.instants[0]).isoformat() == "2013-11-03T05:30:00Z"
    assert (found.ambiguous, found.nonexistent) == (1, 0)


def test_an_hour_that_never_came_is_moved_past_the_gap() -> None:
    found = localise(np.array([microseconds(datetime(2013, 3, 10, 2, 30))]), "America/New_York")
    assert Instant(found.instants[0]).in_zone("America/New_York").isoformat() == "2013-03-10T03:30:00-04:00"
    assert (found.ambiguous, found.nonexistent) == (0, 1)


def test_a_change_of_half_an_hour_is_seen() -> None:
    at = [datetime(2013, 10, 6, 2, 0), datetime(2013, 10, 6, 2, 29), datetime(2013, 10, 6, 2, 30)]
    found = localise(np.array([microseconds(moment) for moment in at]), "Australia/Lord_Howe")
    assert found.nonexistent == 2
    assert (found.instants[2] - found.instants[0]) == 0 * HOUR
    assert (found.instants[1] - found.instants[0]) == 29 * MINUTE


def test_a_change_within_an_hour_is_seen() -> None:
    found = localise(np.array([microseconds(datetime(2011, 3, 13, 0, m)) for m in (0, 30)]), "America/St_Johns")
    assert (found.ambiguous, found.nonexistent) == (0, 1)


def test_beyond_the_calendar_nothing_is_shifted() -> None:
    far = np.array([EARLIEST - 1, LATEST + 1, -(2**62)])
    assert localise(far, "Asia/Kathmandu").instants.tolist() == far.tolist()


def test_an_unknown_zone_is_named() -> None:
    with pytest.raises(DefinitionError, match="unknown time zone"):
        localise(np.array([0]), "Mars/Olympus")
