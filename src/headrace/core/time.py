"""Represent instants, dates and durations, and pass time in as a clock.

Instants are int64 microseconds UTC everywhere; durations are int microseconds, written "90s", "1h", "14d".
"""

from __future__ import annotations

import re
import time
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from headrace.core.errors import DefinitionError

MICROSECOND = 1
SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
WEEK = 7 * DAY
UNITS = {"us": MICROSECOND, "ms": 1_000, "s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY, "w": WEEK}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h|d|w)")


class Instant(int):
    """Hold a moment as microseconds since 1970-01-01 UTC; it is an `int`, so it sorts, subtracts and stores as one.

    >>> Instant.parse("2013-07-01T12:00:00Z").in_zone("America/New_York").hour
    8
    """

    __slots__ = ()

    @classmethod
    def parse(cls, text: str, *, zone: str | None = None) -> Instant:
        """Read ISO 8601 text (a date alone is its midnight UTC).

        Raises:
            DefinitionError: the text is no date, or has no zone and none is given.
        """
        try:
            moment = datetime.fromisoformat(text)
        except ValueError as error:
            raise DefinitionError(
                "not a date or instant", got=text, expected="ISO 8601, as 2013-07-01 or 2013-07-01T12:00:00Z"
            ) from error
        if moment.tzinfo is None:
            if len(text) > 10 and zone is None:
                raise DefinitionError("a naive timestamp", got=text, expected="an offset or Z", next_step=f"{text}Z")
            moment = moment.replace(tzinfo=zone_of(zone) if zone else UTC)
        return cls.of(moment)

    @classmethod
    def of(cls, moment: datetime) -> Instant:
        """Convert an aware datetime; exact to the microsecond."""
        if moment.tzinfo is None:
            raise DefinitionError("a naive datetime", got=moment, expected="a datetime with a zone")
        return cls((moment - EPOCH) // timedelta(microseconds=1))

    def in_zone(self, zone: str) -> datetime:
        """Return the aware local datetime in an IANA zone."""
        return (EPOCH + timedelta(microseconds=int(self))).astimezone(zone_of(zone))

    def isoformat(self) -> str:
        """Return ISO 8601 in UTC, with a Z."""
        return (EPOCH + timedelta(microseconds=int(self))).isoformat().replace("+00:00", "Z")

    def day(self) -> str:
        """Return the UTC date as text, 2013-07-01."""
        return self.isoformat()[:10]

    def __repr__(self) -> str:
        return f"Instant({self.isoformat()})"


Date = date


@lru_cache(maxsize=64)
def zone_of(name: str) -> ZoneInfo:
    """Return an IANA time zone.

    Raises:
        DefinitionError: no such zone.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise DefinitionError("unknown time zone", got=name, expected="an IANA name such as Europe/Paris") from error


@lru_cache(maxsize=100_000)
def end_of_day(day: int, zone: str) -> int:
    """Return the instant at which a local day is over; days are microseconds from 1970-01-01 to their midnight.

    >>> end_of_day(15_688 * DAY, "Europe/Paris") - 15_688 * DAY == 23 * HOUR  # 2012-12-14 ends at 23:00 UTC
    True

    Raises:
        DefinitionError: no such zone.
        OverflowError: the day is outside the years 1 to 9999.
    """
    midnight = datetime(1970, 1, 1) + timedelta(microseconds=day + DAY)
    return Instant.of(midnight.replace(tzinfo=zone_of(zone)))


def civil_time(t: int, zone: str) -> int:
    """Return what clocks show in a zone at an instant, as microseconds since 1970-01-01 00:00 local.

    >>> civil_time(0, "Europe/Paris") == HOUR
    True
    """
    ahead = (EPOCH + timedelta(microseconds=t)).astimezone(zone_of(zone)).utcoffset()
    return t if ahead is None else t + ahead // timedelta(microseconds=1)


@lru_cache(maxsize=1024)
def duration(text: str | int) -> int:
    """Return a duration in microseconds.

    >>> duration("1h") == 3_600_000_000
    True

    Raises:
        DefinitionError: not a positive duration.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    match = _DURATION.fullmatch(str(text).strip())
    amount = float(match[1]) * UNITS[match[2]] if match else 0.0
    if amount <= 0 or amount != int(amount):
        raise DefinitionError(
            "not a duration", got=repr(text), expected="a positive number and a unit (us ms s m h d w), as in 90s"
        )
    return int(amount)


def format_duration(microseconds: int) -> str:
    """Write a duration with the largest unit that divides it.

    >>> format_duration(5_400_000_000)
    '90m'
    """
    if microseconds == 0:
        return "0s"
    for unit, size in sorted(UNITS.items(), key=lambda item: -item[1]):
        if unit != "w" and microseconds % size == 0:
            return f"{microseconds // size}{unit}"
    return f"{microseconds}us"


def rough_duration(microseconds: int) -> str:
    """Write a duration for people: its two largest units, the rest left out.

    >>> rough_duration(46_368_000_000), rough_duration(90_000_000), rough_duration(1_500)
    ('12h52m', '1m30s', '1ms500us')
    """
    parts: list[str] = []
    rest = microseconds
    for unit, size in sorted(UNITS.items(), key=lambda item: -item[1]):
        count, rest = (0, rest) if unit == "w" else divmod(rest, size)
        if count or parts:
            parts.append(f"{count}{unit}" if count else "")
        if len(parts) == 2:
            break
    return "".join(parts) or "0s"


class Clock(Protocol):
    """Tell the time; the system's in production, a virtual one in replay and tests."""

    def now(self) -> Instant:
        """Return the present moment."""
        ...


class SystemClock:
    """Tell the machine's time."""

    def now(self) -> Instant:
        """Return the machine's present moment."""
        return Instant(time.time_ns() // 1_000)


class VirtualClock:
    """Tell the time that its owner sets; it never goes backwards.

    >>> clock = VirtualClock(Instant.parse("2013-01-01"))
    >>> clock.advance_to(Instant.parse("2013-01-02")); clock.now().day()
    '2013-01-02'
    """

    def __init__(self, start: Instant) -> None:
        self._now = start

    def now(self) -> Instant:
        """Return the virtual moment."""
        return self._now

    def advance_to(self, moment: int) -> None:
        """Move to `moment`; an earlier one is refused with ValueError."""
        if moment < self._now:
            raise ValueError(f"the clock stands at {self._now!r}, {Instant(moment)!r} is earlier")
        self._now = Instant(moment)
