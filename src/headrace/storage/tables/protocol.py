"""Say what a table store promises: named, versioned tables of Arrow rows.

Promises, each checked by `headrace.testing.tables.TablesContract`:

- Each change is one commit and one new version: readers see all of it or nothing, and an old version reads the same
  until `compact` drops it.
- A change that names a `Position` is applied once: the position commits with the rows, and a change at or below the
  committed position of its application does nothing. That is how a source's position and what was made of it stay
  together over crashes and retries.
- Concurrent appends all land, or fail as `Conflict` without a trace.
- A column keeps its type. New columns must be nullable; a missing or retyped column is a SchemaConflict. Dictionaries
  are stored as their values, large types as the plain ones; nothing else is converted.
- The order of rows is not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import pyarrow as pa

# Column, comparison (= != < <= > >= in, not in), value. Several filters must all hold; null satisfies none.
Filter = tuple[str, str, Any]


@dataclass(frozen=True)
class Position:
    """Name how far an application has come: `value` grows with every change it makes, as a source's position does."""

    application: str
    value: int


@dataclass(frozen=True)
class Commit:
    """Say at which version a table stands after a change, and whether the change was new (else it had been applied)."""

    version: int
    applied: bool


@dataclass(frozen=True)
class Change:
    """Hold one entry of a table's history: version, wall-clock instant (µs UTC), and what was done."""

    version: int
    at: int
    operation: str


@dataclass(frozen=True)
class Description:
    """Describe a table at its newest version.

    Attributes:
        version: counts changes from 0.
        columns: names, types and nullability, as an Arrow schema.
        partition_by: the columns whose values name the folders of its files.
        rows: how many it has.
        positions: the committed positions of the applications that were asked for; None where there is none.
        history: the newest changes, newest first, as many as were asked for.
    """

    version: int
    columns: pa.Schema
    partition_by: tuple[str, ...]
    rows: int
    positions: dict[str, int | None]
    history: tuple[Change, ...]


@dataclass(frozen=True)
class Pinned:
    """Hold one version of a table to be read column by column: every time the same rows in the same order.

    Attributes:
        names: its columns.
        rows: how many it has.
        files: of how many files it is made.
        nulls: of columns of which that is known without reading them, how many nulls they hold.
        read: returns some columns. Raises as `Tables.read`.
    """

    names: tuple[str, ...]
    rows: int
    files: int
    nulls: Mapping[str, int]
    read: Callable[[Sequence[str]], pa.Table]


@dataclass(frozen=True)
class Capabilities:
    """Say what a store can do: whether several hosts may share it."""

    several_hosts: bool


class Tables(Protocol):
    """Keep versioned tables."""

    @property
    def capabilities(self) -> Capabilities:
        """Return what this backend can do."""
        ...

    def append(
        self,
        table: str,
        rows: pa.Table | pa.RecordBatch,
        *,
        position: Position | None = None,
        partition_by: Sequence[str] = (),
    ) -> Commit:
        """Add rows, creating the table (partitioned so) where there is none.

        Raises:
            SchemaConflict: the rows do not fit the table.
            Conflict: other writers came first too often; nothing was written.
            Unavailable: the store is full or cannot be written.
        """
        ...

    def overwrite(
        self,
        table: str,
        rows: pa.Table | pa.RecordBatch,
        *,
        where: Sequence[Filter] = (),
        position: Position | None = None,
        partition_by: Sequence[str] = (),
    ) -> Commit:
        """Replace the rows that satisfy `where` (all, without it) in one commit; the new rows must satisfy it too.

        Raises:
            DataError: a new row does not satisfy `where`.
            SchemaConflict, Conflict, Unavailable: as for `append`.
        """
        ...

    def read(
        self,
        table: str,
        *,
        columns: Sequence[str] | None = None,
        where: Sequence[Filter] = (),
        version: int | None = None,
    ) -> pa.Table:
        """Return the rows that satisfy all filters, at a version (the newest by default).

        Raises:
            DataError: no such table.
            NoVersion: the table never had that version, or does not have it any more.
            UnknownColumn: no such column.
            DefinitionError: a filter does not fit its column.
            Corrupt: stored bytes are not what was written.
        """
        ...

    def scan(
        self,
        table: str,
        *,
        columns: Sequence[str] | None = None,
        where: Sequence[Filter] = (),
        version: int | None = None,
        since: int | None = None,
    ) -> Iterator[pa.Table]:
        """Yield what `read` returns, in the same order, in portions of which only a few are in memory at a time.

        With `since` only what the table did not have at that version, and perhaps some that it had: what was written again
        since, or all, where that version is gone.

        Raises:
            DataError, UnknownColumn, DefinitionError: as `read`, before anything is yielded.
            Corrupt: as `read`, when the bytes are met.
        """
        ...

    def pin(self, table: str, *, version: int | None = None) -> Pinned:
        """Return a version of a table (the newest by default) whose columns are read when they are asked for.

        Raises:
            DataError, NoVersion, Corrupt: as `read`.
        """
        ...

    def describe(self, table: str, *, applications: Sequence[str] = (), history: int = 0) -> Description | None:
        """Return what a table is, or None if there is none."""
        ...

    def delete(self, table: str, where: Sequence[Filter], *, position: Position | None = None) -> Commit:
        """Remove the rows that satisfy all filters; at least one filter."""
        ...

    def compact(self, table: str, *, retain: int, cluster_by: Sequence[str] = ()) -> int:
        """Merge small files, and remove the files that no version of the last `retain` microseconds needs.

        With `cluster_by` rows that are near in these columns come to lie near each other. Returns how many files were
        removed. Older versions can no longer be read.
        """
        ...
