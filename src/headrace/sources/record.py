"""Hold reveals: what a source stated about its rows, and when it arrived."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from headrace.sources.definition import SourceDefinition

if TYPE_CHECKING:
    import pyarrow as pa

ROW_ID, ARRIVAL, CONTENT = "_row_id", "_arrival", "_content"


class Reveal(NamedTuple):
    """State some columns of one row; a column that is not stated says nothing, a null is a value.

    `places` are the stated columns' places in `SourceDefinition.columns` (ascending), `values` theirs, in plain Python
    types (instants are int microseconds, dates int microseconds of their local midnight in UTC). `content` is a 63-bit
    hash of places and values: of two reveals of one cell that arrive together, the larger one holds.
    """

    arrival: int
    row_id: bytes
    places: tuple[int, ...]
    values: tuple[Any, ...]
    content: int


@dataclass(frozen=True)
class RevealBatch:
    """Hold reveals of one source as an Arrow table, the form in which they are checked, stored and queried.

    Columns: `_row_id` binary, `_arrival` int64 (microseconds UTC), `_stated` and perhaps more int64 (the bits of the
    stated columns, see `sources.stated`), `_content` int64, then every declared column under its own name, null where it is not stated.
    Rows are ordered by (arrival, row id, content).
    """

    source: SourceDefinition
    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def newest_event(self) -> int:
        """Return the newest event time, else the newest arrival, in microseconds UTC; 0 of an empty batch.

        The end of a batch by event time: what a batch does not reach yet is no gap in it.
        """
        import pyarrow.compute as pc

        return pc.max(self.table[self.source.time.name]).as_py() or pc.max(self.table[ARRIVAL]).as_py() or 0

    def reveals(self) -> Iterator[Reveal]:
        """Yield the reveals one by one, in order."""
        arrivals, ids = self.table[ARRIVAL].to_pylist(), self.table[ROW_ID].to_pylist()
        from headrace.sources.stated import Stated

        stated, contents = Stated.of(self.table).masks(), self.table[CONTENT].to_pylist()
        columns = [self.table[c.name].to_pylist() for c in self.source.columns]
        patterns: dict[int, tuple[int, ...]] = {}
        for i, mask in enumerate(stated):
            places = patterns.get(mask)
            if places is None:
                places = patterns[mask] = tuple(p for p in range(len(columns)) if mask >> p & 1)
            yield Reveal(arrivals[i], ids[i], places, tuple([columns[p][i] for p in places]), contents[i])
