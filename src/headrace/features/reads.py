"""Read several lanes' keys, of one row or of many, with one call of the kernel."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from struct import Struct

import numpy as np

from headrace.core.time import civil_time
from headrace.features.lanes import Get
from headrace.features.windows import Bytes, Ints, OnlineLane, loaded_kernel


class _Readers(ctypes.Structure):
    _fields_ = (
        ("readers", ctypes.c_int64),
        ("keys", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("lane", "key", "place", "bytes", "words", "left", "status")),
    )


class RowReader:
    """Read a row's keys, one for each lane, into the places of a row of results; serves one thread.

    Args:
        lanes: each lane with the place of its first output and the zone in which its windows are counted.
        words: where `read` leaves the results of a row, 8 bytes each.
        status: and their statuses.
    """

    def __init__(self, lanes: Sequence[tuple[OnlineLane, int, str | None]], words: Ints, status: Bytes) -> None:
        self.lanes = [lane for lane, _, _ in lanes]
        for lane, place, _ in lanes:
            lane.bind(words, status, place)
        readers = [(h, k, place, zone) for k, (lane, place, zone) in enumerate(lanes) for h in lane.readers]
        self._owners = [(self.lanes[k], handle, k) for handle, k, _, _ in readers]
        table = np.array([reader[:3] for reader in readers], np.int64).reshape(-1, 3).T.copy()
        self._zones = [zone for _, _, _, zone in readers]
        self._zoned = any(zone is not None for zone in self._zones)
        self._back = np.zeros(len(readers), np.int64)
        self._sizes, self._pack = ctypes.create_string_buffer(8 * len(lanes)), Struct(f"={len(lanes)}q").pack_into
        self._left = np.zeros(len(readers), np.int64)
        self._row = words, status
        results = ctypes.addressof(self._sizes), words.ctypes.data, self._left.ctypes.data, status.ctypes.data
        described = _Readers(len(readers), len(lanes), *(column.ctypes.data for column in table), *results)
        self._held, self._with = (table, described), ctypes.addressof(described)  # the kernel reads them by address
        self._one, self._rows = loaded_kernel().read_row, loaded_kernel().read_rows

    def read(self, get: Get, keys: Sequence[bytes | None], t: int) -> None:
        """Read a row's keys as of `t`; where there is no key, nothing is written.

        Raises:
            Corrupt: the stored bytes are damaged.
        """
        heads, sizes = _heads(get, keys)
        self._pack(self._sizes, 0, *sizes)
        joined = b"".join(heads)
        if self._one(self._with, joined, t, self._backs(t) if self._zoned else None):
            for (lane, reader, k), reference in zip(self._owners, self._left.tolist(), strict=True):
                key = keys[k]
                if reference and key is not None:
                    lane.read_blocks(reader, get, key, reference, joined)

    def read_rows(self, get: Get, keys: Sequence[bytes | None], t: int, words: Ints, status: Bytes) -> None:
        """Read many rows' keys, one row's behind the other's, into rows of `words` and `status`.

        Raises:
            Corrupt: the stored bytes are damaged.
        """
        row_words, row_status = self._row
        for i in self.begin_rows(get, keys, t, words, status):
            row_words[:], row_status[:] = words[i], status[i]
            self.read(get, keys[i * len(self.lanes) : (i + 1) * len(self.lanes)], t)
            words[i], status[i] = row_words, row_status

    def begin_rows(self, get: Get, keys: Sequence[bytes | None], t: int, words: Ints, status: Bytes) -> list[int]:
        """Do as `read_rows`, with heads alone; return the rows that need blocks or are damaged, whose results are open."""
        n, width = words.shape
        heads, found = _heads(get, keys)
        sizes = np.array(found, np.int64)
        left = np.empty((n, len(self._owners)), np.int64)
        results = words.ctypes.data, status.ctypes.data, left.ctypes.data
        joined, back = b"".join(heads), self._backs(t) if self._zoned else None
        if not self._rows(self._with, n, joined, sizes.ctypes.data, t, back, width, *results):
            return []
        rows: list[int] = np.flatnonzero(left.any(axis=1)).tolist()
        return rows

    def _backs(self, t: int) -> int:
        """Return the address of the moments from which windows reach back."""
        for reader, zone in enumerate(self._zones):
            self._back[reader] = t if zone is None else civil_time(t, zone)
        return int(self._back.ctypes.data)


def _heads(get: Get, keys: Sequence[bytes | None]) -> tuple[list[bytes], list[int]]:
    """Return what stands under keys, with its size: 0 where there is nothing, -1 where there is no key."""
    if None in keys:
        heads = [b"" if key is None else get(key) or b"" for key in keys]
        return heads, [-1 if key is None else len(head) for key, head in zip(keys, heads, strict=True)]
    found = list(map(get, keys))  # type: ignore[arg-type]
    heads = [head or b"" for head in found] if None in found else found  # type: ignore[assignment]
    return heads, list(map(len, heads))
