"""Read JSON Lines, one object to a line: the same values as a stream's events, refused for the same reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from headrace.core.expressions import Column
from headrace.sources.values import arrow_type, typed_value

LINE = "(line)"  # what a refusal names where the line is no object


@dataclass(frozen=True, eq=False)
class JsonRows:
    """Hold the lines of a file: each an object ({} where it is none), and the texts of lines that are none, by row."""

    rows: Sequence[Mapping[str, Any]]
    broken: Mapping[int, str]

    def names(self) -> list[str]:
        """Return every name that some line has, in the order in which they come first."""
        return list(dict.fromkeys(name for row in self.rows for name in row))


def read_json_lines(path: Path) -> JsonRows:
    """Read a file, compressed ones by their suffix (.gz, .bz2, .zst, .lz4); blank lines are passed over.

    Raises:
        OSError, pyarrow.ArrowException: the file cannot be read or is cut off.
    """
    rows: list[Mapping[str, Any]] = []
    broken: dict[int, str] = {}
    with pa.input_stream(path) as stream:
        content: bytes = stream.read()
    for line in content.splitlines():
        if not line.strip():
            continue
        try:
            found = orjson.loads(line)
        except orjson.JSONDecodeError:
            found = None
        if not isinstance(found, dict):
            broken[len(rows)] = line.decode("utf-8", "replace")
            found = {}
        rows.append(found)
    return JsonRows(rows, broken)


def cells_of(column: Column[Any], values: Sequence[Any], zone: str | None) -> tuple[pa.Array, dict[int, str]]:
    """Return a column's values in its declared type, and by row the texts of those that are none (null in the array)."""
    found: list[Any] = [None] * len(values)
    misread = {}
    for row, raw in enumerate(values):
        if raw is not None:
            try:
                found[row] = typed_value(column, raw, zone)
            except ValueError:
                misread[row] = raw if isinstance(raw, str) else orjson.dumps(raw).decode()
    return pa.array(found, arrow_type(column.dtype)), misread
