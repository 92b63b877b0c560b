"""Turn local timestamps into instants by an IANA zone's rules."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from headrace.core.time import HOUR, civil_time, end_of_day, zone_of

LOCAL_EPOCH = datetime(1970, 1, 1)
MICROSECOND = timedelta(microseconds=1)
EARLIEST, LATEST = -62_135_596_800_000_000, 253_402_300_799_999_999  # years 1 to 9999, the reach of ISO 8601


@dataclass(frozen=True)
class Localised:
    """Hold instants (microseconds UTC) and how many local times had two or no place on the time line."""

    instants: NDArray[np.int64]
    ambiguous: int
    nonexistent: int


def localise(local: NDArray[np.int64], zone: str) -> Localised:
    """Return the instants of local times given as microseconds since 1970-01-01 00:00 local.

    Where clocks go back a local time happens twice: the first is taken. Where they go forward some never happen: they
    are read by the offset that held before, which moves them past the gap. Both are PEP 495's `fold=0`, as
    `Instant.parse` reads single texts, and both are counted. Outside the years 1 to 9999 the offset is 0.

    >>> found = localise(np.array([1383442200000000]), "America/New_York")  # 2013-11-03 01:30, an hour that came twice
    >>> int(found.instants[0]) - 1383442200000000 == 4 * HOUR, found.ambiguous
    (True, 1)
    """
    if zone == "UTC":
        return Localised(local, 0, 0)
    rules = zone_of(zone)
    hours, place = np.unique(local // HOUR, return_inverse=True)
    offsets = np.zeros(len(hours), np.int64)
    mixed = np.zeros(len(hours), bool)
    for i, hour in enumerate(hours.tolist()):
        ends = [offset(rules, at, fold) for at in (hour * HOUR, hour * HOUR + HOUR - 1) for fold in (0, 1)]
        offsets[i], mixed[i] = ends[0], len(set(ends)) > 1
    shift = offsets[place]
    ambiguous = nonexistent = 0
    # Only hours in which a rule changes are looked at value by value: two a year.
    for i in np.flatnonzero(mixed[place]).tolist():
        first, second = (offset(rules, int(local[i]), fold) for fold in (0, 1))
        shift[i] = first
        ambiguous += first > second
        nonexistent += first < second
    return Localised(local - shift, ambiguous, nonexistent)


def civil_times(instants: NDArray[np.int64], zone: str) -> NDArray[np.int64]:
    """Return what clocks show in a zone at instants, as `core.time.civil_time` of each."""
    hours, place = np.unique(instants // HOUR, return_inverse=True)
    ends = np.array([[_ahead(at, zone) for at in (h * HOUR, h * HOUR + HOUR - 1)] for h in hours.tolist()], np.int64)
    found: NDArray[np.int64] = instants + ends.reshape(-1, 2)[place, 0]
    # Only hours in which a rule changes are looked at value by value: two a year.
    for i in np.flatnonzero((ends[:, 0] != ends[:, 1])[place] if len(ends) else place).tolist():
        found[i] = civil_time(int(instants[i]), zone)
    return found


def ends_of_days(days: NDArray[np.int64], zone: str) -> NDArray[np.int64]:
    """Return the instants at which local days are over, as `core.time.end_of_day` of each."""
    distinct, place = np.unique(days, return_inverse=True)
    ends: NDArray[np.int64] = np.array([end_of_day(day, zone) for day in distinct.tolist()], np.int64)[place]
    return ends


def _ahead(instant: int, zone: str) -> int:
    return civil_time(instant, zone) - instant


def offset(rules: ZoneInfo, local: int, fold: int) -> int:
    """Return what a local time is ahead of UTC, in microseconds."""
    if not EARLIEST <= local <= LATEST:
        return 0
    moment = (LOCAL_EPOCH + timedelta(microseconds=local)).replace(tzinfo=rules, fold=fold)
    ahead = moment.utcoffset()
    return 0 if ahead is None else ahead // MICROSECOND
