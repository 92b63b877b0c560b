"""Keep each row's newest cells: what makes duplicates, corrections, partial reveals and key moves exact.

A partial reveal does not state its entity, a moved row not its old key; only a store of rows knows them. Bytes of a row,
little endian, n columns: n arrivals (int64; ABSENT where nothing was stated), n content hashes (int64), n values (8
bytes each: float64, int64, or offset << 32 | length of a text), n null flags (1 byte), then the texts in UTF-8.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headrace.core.errors import Corrupt
from headrace.sources.record import Reveal

ABSENT = -(2**63)


@dataclass
class StoredRow:
    """Hold a row's newest cells, each with the arrival and content hash of the reveal that stated it."""

    arrivals: list[int]
    contents: list[int]
    values: list[Any]

    @property
    def stated(self) -> bool:
        """Return whether anything was stated of the row."""
        return any(arrival != ABSENT for arrival in self.arrivals)

    def apply(self, reveal: Reveal) -> StoredRow | None:
        """Return the row after a reveal, None if every cell that it states is there in a newer or the same version."""
        arrival, content, changed, n = reveal.arrival, reveal.content, None, len(self.arrivals)
        if len(reveal.places) == n and arrival > max(self.arrivals):
            return StoredRow([arrival] * n, [content] * n, list(reveal.values))
        for place, value in zip(reveal.places, reveal.values, strict=True):
            held = self.arrivals[place]
            if arrival > held or (arrival == held and content > self.contents[place]):
                if changed is None:
                    changed = StoredRow(self.arrivals.copy(), self.contents.copy(), self.values.copy())
                changed.arrivals[place], changed.contents[place] = arrival, content
                changed.values[place] = value
        return changed


class RowCodec:
    """Turn rows of one source into bytes and back; `dtypes` are those of its columns.

    Attributes:
        empty: a row of which nothing is known yet.
    """

    def __init__(self, name: str, dtypes: Sequence[str]) -> None:
        self.n = n = len(dtypes)
        self.name = name
        kinds = "".join("d" if dtype == "float" else "q" for dtype in dtypes)
        self.layout = struct.Struct(f"<{n}q{n}q{kinds}{n}B")
        self.texts = tuple(i for i, dtype in enumerate(dtypes) if dtype == "str")
        self.bools = tuple(i for i, dtype in enumerate(dtypes) if dtype == "bool")
        self.empty = StoredRow([ABSENT] * n, [0] * n, [None] * n)
        self._no_nulls = (False,) * n

    def encode(self, row: StoredRow) -> bytes:
        """Return the row's bytes."""
        slots, nulls, tail = row.values, self._no_nulls, b""
        if None in slots:
            nulls = tuple([value is None for value in slots])
            slots = [0 if value is None else value for value in slots]
        if self.texts:
            slots = slots.copy()
            for place in self.texts:
                if not nulls[place]:
                    text = slots[place].encode()
                    slots[place] = self.layout.size + len(tail) << 32 | len(text)
                    tail += text
        return self.layout.pack(*row.arrivals, *row.contents, *slots, *nulls) + tail

    def decode(self, blob: bytes) -> StoredRow:
        """Return the row that the bytes hold.

        Raises:
            Corrupt: the bytes are no row of this source.
        """
        n = self.n
        try:
            fields = self.layout.unpack_from(blob)
        except struct.error as error:
            raise Corrupt(
                f"a stored row of {self.name} is damaged", got=f"{len(blob)} bytes", next_step="headrace online rebuild"
            ) from error
        values = list(fields[2 * n : 3 * n])
        for place in self.texts:
            start, length = values[place] >> 32, values[place] & 0xFFFFFFFF
            values[place] = blob[start : start + length].decode()
        for place in self.bools:
            values[place] = bool(values[place])
        nulls = fields[3 * n :]
        if any(nulls):
            values = [None if null else value for value, null in zip(values, nulls, strict=True)]
        return StoredRow(list(fields[:n]), list(fields[n : 2 * n]), values)


def newest_arrival(row: StoredRow, places: Sequence[int]) -> int:
    """Return the newest arrival among some cells of a row."""
    return max([row.arrivals[p] for p in places])
