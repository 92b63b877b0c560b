"""Hand out what reveals say, to fill an online store with: at once from memory, or bucket by bucket from files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import pyarrow as pa

from headrace.features.buckets import BucketedPast
from headrace.features.history import History, Late
from headrace.features.lane_plan import LanePlan
from headrace.features.living import Living
from headrace.features.offline import refuse_missing
from headrace.sources.definition import SourceDefinition

Noted = tuple[int, Sequence[int]]  # the newest arrival, and the moments of whole copies of a table


class Stock(Protocol):
    """Hold the reveals of some sources up to a moment, in pieces that are looked at one after the other."""

    @property
    def pieces(self) -> int:
        """Return in how many pieces the reveals are."""
        ...

    def reveals(self, source: SourceDefinition) -> int:
        """Return how many reveals of a source there are."""
        ...

    def histories(self, source: SourceDefinition) -> Iterator[History]:
        """Yield each piece of a source's rows, a row's reveals in one of them."""
        ...

    def living(self, lane: LanePlan) -> Iterator[Living]:
        """Yield each piece of a lane's events that hold, a key's in one of them."""
        ...

    def copies(self, source: SourceDefinition) -> Noted | None:
        """Return which whole copies the reveals of a source make up whose lanes are dated; None where there are no reveals."""
        ...


class WholeStock:
    """Hand out tables in memory, or such whose columns are read when they are asked for, each as one piece.

    Raises:
        DataError: a source has no table.
    """

    pieces = 1

    def __init__(self, sources: Sequence[SourceDefinition], tables: Mapping[str, pa.Table | Late], newest: int) -> None:
        refuse_missing(sources, tables)
        self._tables, self._newest = dict(tables), newest
        self._held: dict[str, History] = {}

    def _history(self, source: SourceDefinition) -> History:
        if source.name not in self._held:
            self._held[source.name] = History.build(source, self._tables.pop(source.name), self._newest)
        return self._held[source.name]

    def reveals(self, source: SourceDefinition) -> int:
        """Return how many reveals of a source had arrived."""
        return len(self._history(source))

    def histories(self, source: SourceDefinition) -> Iterator[History]:
        """Yield a source's history, whole: lanes find their columns in hand then."""
        self._held[source.name] = self._history(source).whole()
        yield self._held[source.name]

    def living(self, lane: LanePlan) -> Iterator[Living]:
        """Yield a lane's events that hold."""
        yield Living.of_history(lane, self._history(lane.source))

    def copies(self, source: SourceDefinition) -> Noted | None:
        """Return which whole copies a source's reveals make up."""
        history = self._history(source)
        return (int(history.arrival.max()), history.copies.moments.tolist()) if len(history) else None


class BucketedStock:
    """Hand out buckets, which hold the events that hold now of all lanes that will be asked for."""

    def __init__(self, past: BucketedPast) -> None:
        self._past, self.pieces = past, past.count

    def reveals(self, source: SourceDefinition) -> int:
        """Return how many reveals of a source there are."""
        return self._past.reveals[source.name].rows

    def histories(self, source: SourceDefinition) -> Iterator[History]:
        """Yield a source's history bucket by bucket."""
        stored = self._past.reveals[source.name].opened()
        for place in range(self.pieces):
            yield History.build(source, stored(place), self._past.as_of)

    def living(self, lane: LanePlan) -> Iterator[Living]:
        """Yield a lane's events that hold, bucket by bucket."""
        stored = self._past.lanes[lane][1].opened()
        for place in range(self.pieces):
            yield Living.of_bucket(lane, stored(place))

    def copies(self, source: SourceDefinition) -> Noted | None:
        """Return which whole copies a source's reveals make up."""
        newest = self._past.newest.get(source.name)
        return None if newest is None else (newest, self._past.copies[source.name].moments.tolist())
