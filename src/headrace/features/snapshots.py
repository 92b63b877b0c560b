"""Know a table's newest whole copy: a value of `history="snapshots"` holds while the newest known copy has its key.

The rows that become known at one moment are a copy; it is there as soon as one of its reveals has arrived. A key that a
newer copy lacks needs no mark of its own: its latest value is older than that copy, whatever came in which order.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.core.errors import Corrupt
from headrace.sources.definition import SourceDefinition
from headrace.sources.plan import moments_on
from headrace.sources.record import ARRIVAL, Reveal
from headrace.sources.stated import Stated

if TYPE_CHECKING:
    import pyarrow as pa

    from headrace.storage.keyvalue import Access

COPIES, COMING = b"S", b"s"  # before a source's name: copies that count, and those whose rows are still being applied
NONE_YET = -(2**63)

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Copies:
    """Hold the moments of a source's copies (ascending, microseconds UTC), and when the first reveal of each arrived."""

    moments: Ints
    arrivals: Ints

    @classmethod
    def of(cls, source: SourceDefinition, reveals: pa.Table) -> Copies:
        """Find the copies among a table of reveals."""
        terms = source.moments[source.time].terms
        said = Stated.of(reveals).says_all([source.index[c] for c, _ in terms])
        moment, known = moments_on(source.moments[source.time], reveals)
        kept = said & known
        return _first_arrivals(moment[kept], reveals[ARRIVAL].to_numpy()[kept])

    @classmethod
    def joined(cls, parts: Sequence[Copies]) -> Copies:
        """Return the copies of several tables of reveals of one source."""
        empty = np.zeros(0, np.int64)
        moments = np.concatenate([empty, *(part.moments for part in parts)])
        return _first_arrivals(moments, np.concatenate([empty, *(part.arrivals for part in parts)]))

    def newest(self, t: Ints, *, state: bool) -> Ints:
        """Return the moment of the newest copy that is known at each of some instants, NONE_YET where none is.

        What is no state is known only after its moment.
        """
        since, moments = self._steps[state]
        return moments[np.searchsorted(since, t, side="right")]

    @cached_property
    def _steps(self) -> tuple[tuple[Ints, Ints], tuple[Ints, Ints]]:
        """Return, for events and for state, from when on which moment is the newest."""
        return self._steps_of(1), self._steps_of(0)

    def _steps_of(self, after: int) -> tuple[Ints, Ints]:
        known = np.maximum(self.moments + after, self.arrivals)
        order = np.argsort(known, kind="stable")
        newest = np.maximum.accumulate(self.moments[order]) if len(order) else order
        return known[order], np.concatenate([[NONE_YET], newest])


def _first_arrivals(moments: Ints, arrivals: Ints) -> Copies:
    found, place = np.unique(moments, return_inverse=True)
    first = np.full(len(found), np.iinfo(np.int64).max)
    np.minimum.at(first, place.reshape(-1), arrivals)
    return Copies(found, first)


@dataclass(frozen=True)
class Held:
    """Hold what the online store knows of a source's copies: the newest applied arrival, and the moments that may count.

    A read is never older than the newest applied arrival; so of the moments before that only the last one counts.
    """

    arrival: int
    moments: tuple[int, ...]

    @classmethod
    def load(cls, blob: bytes | None) -> Held:
        """Return what `dump` gave, nothing for None.

        Raises:
            Corrupt: nobody wrote these bytes.
        """
        if blob is None:
            return cls(NONE_YET, ())
        if len(blob) % 8 or not blob:
            raise Corrupt(
                "what is known of a table's copies is damaged",
                got=f"{len(blob)} bytes",
                next_step="headrace online rebuild",
            )
        arrival, *moments = struct.unpack(f"<{len(blob) // 8}q", blob)
        return cls(arrival, tuple(moments))

    def dump(self) -> bytes:
        """Return the bytes that are stored."""
        return struct.pack(f"<{len(self.moments) + 1}q", self.arrival, *self.moments)

    def with_copies(self, arrival: int, moments: Sequence[int]) -> Held:
        """Return it after reveals of some copies; the same whatever their order."""
        arrival, found = max(self.arrival, arrival), sorted({*self.moments, *moments})
        return Held(arrival, tuple(found[max(bisect_left(found, arrival) - 1, 0) :]))

    def newest(self, t: int, *, state: bool) -> int:
        """Return the moment of the newest copy that is known at `t`, NONE_YET if there is none."""
        place = bisect_right(self.moments, t) if state else bisect_left(self.moments, t)
        return self.moments[place - 1] if place else NONE_YET


def copy_told(source: SourceDefinition) -> Callable[[Reveal], int | None]:
    """Return the function that finds the moment of the copy that a reveal belongs to, None where it does not tell."""
    moment = source.moments[source.time]
    places, per_row = [source.index[c] for c, _ in moment.terms], moment.per_row(source.index)
    width = len(source.columns)

    def told(reveal: Reveal) -> int | None:
        row: list[Any] = [None] * width
        for place, value in zip(reveal.places, reveal.values, strict=True):
            row[place] = value
        return None if any(row[place] is None for place in places) else per_row(row)

    return told


def note_copies(store: Access, source: str, arrival: int, moments: Sequence[int], *, coming: bool = False) -> None:
    """Note in the online store that reveals of some copies are applied; with `coming` they count from `count_coming` on."""
    key = (COMING if coming else COPIES) + source.encode()
    blob = store.get(key)
    held = Held.load(blob)
    if blob is None or arrival > held.arrival or not {*moments} <= {*held.moments}:
        store.put(key, held.with_copies(arrival, moments).dump())


def count_coming(store: Access, source: str) -> None:
    """Let the copies count whose rows are applied now."""
    blob = store.get(COMING + source.encode())
    if blob is not None:
        coming = Held.load(blob)
        note_copies(store, source, coming.arrival, coming.moments)
        store.delete(COMING + source.encode())
