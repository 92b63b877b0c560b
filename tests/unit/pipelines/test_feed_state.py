"""How far a partition was applied: bytes that come back, event times, what counts as late."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.time import HOUR, MINUTE
from headrace.pipelines.feed import PartitionState

NUMBERS = st.integers(-(2**63), 2**127)


@given(position=NUMBERS, arrival=NUMBERS, count=NUMBERS, newest=st.none() | NUMBERS)
def test_a_state_comes_back_as_it_was(position: int, arrival: int, count: int, newest: int | None) -> None:
    """Also with positions of Redis, which no 64 bits hold."""
    state = PartitionState(position, arrival, 3, count, position + 1, newest, 5, 1)
    assert PartitionState.load(state.dump()) == state


@pytest.mark.parametrize(("lateness", "late"), [(0, 2), (10 * MINUTE, 1), (HOUR, 0)])
def test_an_event_is_late_that_is_older_than_the_newest_before_it_less_the_lateness(lateness: int, late: int) -> None:
    times = [HOUR, HOUR - 10 * MINUTE, 2 * HOUR, HOUR, 2 * HOUR]
    assert PartitionState().timed(times, lateness).late == late
    assert PartitionState().timed(times, lateness).newest == 2 * HOUR
    assert PartitionState().timed(times, lateness).events == 5


@given(times=st.lists(st.integers(0, 50)), cut=st.integers(0, 50), lateness=st.integers(0, 20))
def test_batches_do_not_change_what_is_late(times: list[int], cut: int, lateness: int) -> None:
    whole = PartitionState().timed(times, lateness)
    assert PartitionState().timed(times[:cut], lateness).timed(times[cut:], lateness) == whole
