"""Remember what of each source was loaded, so that a run reads only what is new and a killed one loses nothing.

What a delivery covers is written down before its rows, under the number that the rows' commit will carry. It counts
only once that commit is there: a row and the note that it was read are never there without each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from headrace.sources.parts import Mark
from headrace.storage.tables import Tables
from headrace.storage.tables.protocol import Position

LOADS = "loads"
SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("load", pa.int64()),
        ("entry", pa.int64()),
        ("part", pa.string()),
        ("mark", pa.string()),
        ("rows", pa.int64()),
        ("whole", pa.bool_()),
        ("columns", pa.list_(pa.string())),
        ("at", pa.int64()),
    ]
)


def application(source: str) -> str:
    """Return under which name a source's loads have their position in its table."""
    return f"run/{source}"


class LoadBook:
    """Keep the marks of one source's parts; `table` holds its rows."""

    def __init__(self, tables: Tables, source: str, table: str) -> None:
        self.tables, self.source, self.table = tables, source, table
        name = application(source)
        described = tables.describe(table, applications=[name])
        self.position = (described.positions.get(name) if described else None) or 0
        self.entries = 0
        self.seen = self._read()

    def cover(self, marks: Sequence[Mark], *, rows: bool, at: int) -> Position:
        """Write down what a delivery covers, and return the position that its rows must be appended with.

        Without `rows` to come the marks hold at once.
        """
        position = Position(application(self.source), self.position + rows)
        fresh = [mark for mark in marks if self.seen.get(mark.part) != mark]
        if fresh:
            found = [
                {"source": self.source, "load": position.value, "entry": self.entries + i, **vars(mark), "at": at}
                for i, mark in enumerate(fresh, 1)
            ]
            self.tables.append(LOADS, pa.Table.from_pylist(found, SCHEMA))
            self.entries += len(fresh)
        self.seen |= {mark.part: mark for mark in fresh}
        self.position = position.value
        return position

    def _read(self) -> dict[str, Mark]:
        """Return the newest marks of parts whose rows are there; those of a killed run are dropped."""
        if self.tables.describe(LOADS) is None:
            return {}
        void = [("source", "=", self.source), ("load", ">", self.position)]
        if self.tables.read(LOADS, where=void, columns=["entry"]).num_rows:
            self.tables.delete(LOADS, void)
        found = self.tables.read(LOADS, where=[("source", "=", self.source)]).sort_by("entry").to_pylist()
        self.entries = found[-1]["entry"] if found else 0
        names = ("part", "mark", "rows", "whole")
        return {row["part"]: Mark(**{n: row[n] for n in names}, columns=tuple(row["columns"])) for row in found}
