"""Read JSON Lines, one object to a line: the same values as a stream's events, refused for the same reasons."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa

from headrace.core.expressions import Column
from headrace.sources.values import arrow_type, typed_value

LINE = "(line)"  # what a refusal names where the line is no object
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
SHOWN_LINE = 10_000  # characters of a line that is none which are kept


@dataclass(frozen=True, eq=False)
class JsonRows:
    """Hold some lines of a file: each an object ({} where it is none), and the texts of lines that are none, by row."""

    rows: Sequence[Mapping[str, Any]]
    broken: Mapping[int, str]


def iter_json_lines(stream: Any, *, bytes_at_a_time: int, names: Collection[str] = ()) -> Iterator[JsonRows]:
    """Read an open stream of UTF-8 in pieces of about `bytes_at_a_time`; blank lines are passed over.

    A line that has one of `names` twice is no object: which value holds is anybody's guess.

    Raises:
        OSError, pyarrow.ArrowException: the stream cannot be read or is cut off.
        ValueError: a line is longer than `bytes_at_a_time`.
    """
    quoted = [orjson.dumps(name) for name in names]
    rest, first = b"", True
    while piece := stream.read(bytes_at_a_time):
        lines = (rest + piece).split(b"\n")
        if first:
            lines[0], first = lines[0].removeprefix(BYTE_ORDER_MARK), False
        rest = lines.pop()
        if len(rest) > bytes_at_a_time:
            raise ValueError(f"a line longer than [limits] read_bytes = {bytes_at_a_time}")
        yield _rows(lines, quoted)
    if rest.strip():
        yield _rows([rest], quoted)


def _rows(lines: Sequence[bytes], quoted: Sequence[bytes]) -> JsonRows:
    rows: list[Mapping[str, Any]] = []
    broken: dict[int, str] = {}
    for line in lines:
        if not line.strip():
            continue
        try:
            found = orjson.loads(line)
        except orjson.JSONDecodeError:
            found = None
        if not isinstance(found, dict) or _doubled(line, quoted):
            broken[len(rows)] = line[: 4 * SHOWN_LINE].decode("utf-8", "replace")[:SHOWN_LINE]
            found = {}
        rows.append(found)
    return JsonRows(rows, broken)


def _doubled(line: bytes, quoted: Sequence[bytes]) -> bool:
    """Tell whether an object has one of some names twice; its text is read again only where that may be."""
    if b"\\u" not in line and all(line.count(name) < 2 for name in quoted):
        return False
    import json

    twice: list[str] = []

    def keep(pairs: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in pairs]
        twice[:] = [name for name in names if names.count(name) > 1]

    json.loads(line, object_pairs_hook=keep)
    return any(orjson.dumps(name) in quoted for name in twice)  # the outermost object is told last


def cells_of(column: Column[Any], values: Sequence[Any], zone: str | None) -> tuple[pa.Array, dict[int, str]]:
    """Return a column's values in its declared type, and by row the texts of those that are none (null in the array)."""
    found: list[Any] = [None] * len(values)
    misread = {}
    for row, raw in enumerate(values):
        if raw is not None:
            try:
                found[row] = typed_value(column, raw, zone)
            except ValueError:
                misread[row] = raw if isinstance(raw, str) else orjson.dumps(raw, default=str).decode()
    return pa.array(found, arrow_type(column.dtype)), misread
