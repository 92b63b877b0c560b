"""Know what zones' clocks show at any instant of the years 1 to 9999, as tables that every lowering can use."""

from __future__ import annotations

import struct
import zoneinfo
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from headrace.core.time import DAY, EPOCH, SECOND, WEEK, zone_of

EARLIEST, LATEST = -62_135_596_800_000_000, 253_402_300_799_999_999  # the years 1 to 9999
CYCLE = 146_097 * DAY  # 400 years of the Gregorian calendar: whole weeks, after which rules repeat
_HEADER = struct.Struct(">4sc15x6l")


@dataclass(frozen=True)
class ZoneRules:
    """Hold the instants at which a zone's offset changes, and the offsets before, between and after them.

    All are microseconds; from `repeats` on the last 400 years come again and again.
    """

    changes: tuple[int, ...]
    offsets: tuple[int, ...]
    repeats: int

    def ahead(self, instant: int) -> int:
        """Return what the zone's clock is ahead of UTC.

        >>> rules_of("Europe/Paris").ahead(0) == 3600 * SECOND
        True
        """
        if instant >= self.repeats:
            instant = self.repeats + (instant - self.repeats) % CYCLE
        return self.offsets[bisect_right(self.changes, instant)]


@lru_cache(maxsize=64)
def rules_of(zone: str) -> ZoneRules:
    """Return an IANA zone's rules, as `zoneinfo` has them.

    Raises:
        DefinitionError: no such zone.
    """
    clock = zone_of(zone)

    def offset(instant: int) -> int:
        ahead = (EPOCH + timedelta(microseconds=instant)).astimezone(clock).utcoffset()
        return 0 if ahead is None else ahead // timedelta(microseconds=1)

    written = [change for change in _written_changes(zone) if change > EARLIEST + DAY]
    repeats = max([0, *written]) + DAY
    found = [*written, *_changes_by_rule(offset, repeats)]
    changes = [(c, offset(c)) for c in found if offset(c) != offset(c - 1)]
    return ZoneRules(
        tuple(change for change, _ in changes), (offset(EARLIEST + DAY), *(after for _, after in changes)), repeats
    )


def _written_changes(zone: str) -> list[int]:
    """Return the changes that the zone's file lists (RFC 8536); later ones follow from its rule."""
    paths = [Path(folder, zone) for folder in zoneinfo.TZPATH]
    file = next((p for p in paths if p.is_file()), files("tzdata").joinpath("zoneinfo", *zone.split("/")))
    data = file.read_bytes()
    _, version, *counts = _HEADER.unpack_from(data)
    at, width = _HEADER.size, 4
    if version >= b"2":
        at += _size(counts, width) + _HEADER.size
        _, _, *counts = _HEADER.unpack_from(data, at - _HEADER.size)
        width = 8
    seconds = struct.unpack_from(f">{counts[3]}{'q' if width == 8 else 'l'}", data, at)
    return [second * SECOND for second in seconds]


def _size(counts: list[int], width: int) -> int:
    """Return how many bytes a block of a zone's file has after its header."""
    utc, standard, leap, changes, types, letters = counts
    return changes * (width + 1) + types * 6 + letters + leap * (width + 4) + standard + utc


def _changes_by_rule(offset: Callable[[int], int], start: int) -> Iterator[int]:
    """Find the changes of 400 years; a rule leaves at least a week between two."""
    for week in range(start, start + CYCLE, WEEK):
        low, high = week, week + WEEK
        if offset(low) == offset(high):
            continue
        before = offset(low)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if offset(middle) == before else (low, middle)
        yield high
