"""Join labels to predictions by row id: the newest statement of a label holds, whenever it arrives."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from headrace.core.time import DAY, HOUR
from headrace.monitoring.record import LabelDelays
from headrace.stats.binning import bin_counts

NEVER = -(2**63)
LABEL = np.dtype([("place", "<i4"), ("label", "<f8"), ("arrived", "<i8")])
DELAY_EDGES = tuple(hours * HOUR for hours in (1, 2, 3, 4, 6, 8, 12, 24, 36, 48)) + (3 * DAY, 7 * DAY, 14 * DAY)
DELAY_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


class LabelBook:
    """Give every row id a dense place, and hold each place's label and when it arrived.

    A label may arrive before its row is predicted, be corrected (the newest arrival holds) or be taken back (NaN).

    >>> book = LabelBook()
    >>> place = book.place(b"UA1")
    >>> book.state(b"UA1", 1.0, arrived=5)
    >>> book.labels[place]
    np.float64(1.0)
    """

    def __init__(self) -> None:
        self._places: dict[bytes, int] = {}
        self._stated: list[tuple[int, float, int]] = []
        self._labels = np.empty(0)
        self._arrived = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._places)

    def place(self, row_id: bytes) -> int:
        """Return the place of a row; a new row gets the next one."""
        return self._places.setdefault(row_id, len(self._places))

    def state(self, row_id: bytes, label: float, *, arrived: int) -> None:
        """State a row's label as it arrived; NaN says that there is none (any more)."""
        self._stated.append((self.place(row_id), label, arrived))

    @property
    def labels(self) -> NDArray[np.float64]:
        """Return the label of every place; NaN where there is none."""
        self._apply()
        return self._labels

    @property
    def arrived(self) -> NDArray[np.int64]:
        """Return when the label of every place arrived, microseconds UTC; `NEVER` where none has."""
        self._apply()
        return self._arrived

    def _apply(self) -> None:
        missing = len(self._places) - self._labels.size
        if missing:
            self._labels = np.concatenate([self._labels, np.full(missing, np.nan)])
            self._arrived = np.concatenate([self._arrived, np.full(missing, NEVER, dtype=np.int64)])
        if not self._stated:
            return
        stated = np.array(self._stated, dtype=LABEL)
        self._stated.clear()
        stated = stated[np.argsort(stated["arrived"], kind="stable")]
        newer = stated["arrived"] >= self._arrived[stated["place"]]
        places = stated["place"][newer]
        # Of repeated places the last assignment holds, and the rows stand in order of arrival.
        self._labels[places], self._arrived[places] = stated["label"][newer], stated["arrived"][newer]

    def unlabelled(self) -> list[bytes]:
        """Return the rows that have no label."""
        missing = np.isnan(self.labels)
        return [row for row, place in self._places.items() if missing[place]]

    def forget(self, used: NDArray[np.integer[Any]], *, before: int) -> NDArray[np.int32]:
        """Drop the rows that are not `used` and whose label arrived before an instant; return the new place of each.

        The result has one entry for each old place, -1 where the row was dropped.
        """
        kept = self.arrived >= before
        kept[used] = True
        moved = np.where(kept, np.cumsum(kept) - 1, -1).astype(np.int32)
        self._places = {row: int(moved[place]) for row, place in self._places.items() if kept[place]}
        self._labels, self._arrived = self._labels[kept], self._arrived[kept]
        return moved

    def remove(self, row_ids: Collection[bytes]) -> NDArray[np.int32]:
        """Drop some rows with all that is known of them; return the new place of each old one, -1 where it was dropped."""
        kept = np.ones(len(self.labels), bool)
        kept[[self._places[row] for row in row_ids if row in self._places]] = False
        moved = np.where(kept, np.cumsum(kept) - 1, -1).astype(np.int32)
        self._places = {row: int(moved[place]) for row, place in self._places.items() if kept[place]}
        self._labels, self._arrived = self._labels[kept], self._arrived[kept]
        return moved

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return everything as arrays of plain numbers, from which `from_arrays` makes an equal book."""
        self._apply()
        rows = list(self._places)
        return {
            "row_ids": np.frombuffer(b"".join(rows), dtype=np.uint8),
            "row_id_sizes": np.array([len(row) for row in rows], dtype=np.int32),
            "labels": self._labels,
            "arrived": self._arrived,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Return the book that `arrays` wrote."""
        book, ends = cls(), np.cumsum(arrays["row_id_sizes"])
        text = arrays["row_ids"].tobytes()
        starts = [0, *ends[:-1].tolist()]
        book._places = {
            text[start:end]: place for place, (start, end) in enumerate(zip(starts, ends.tolist(), strict=False))
        }
        book._labels, book._arrived = arrays["labels"].copy(), arrays["arrived"].copy()
        return book


def delays_of(predicted: NDArray[np.int64], arrived: NDArray[np.int64], *, matured: int) -> LabelDelays:
    """Summarise how long the labels of rows took from their prediction; all of the rows must be past their maturity."""
    held = arrived != NEVER
    delays = np.sort(arrived[held] - predicted[held])
    late = int(np.count_nonzero(delays > matured))
    positions = [int(np.ceil(q * delays.size)) - 1 for q in DELAY_QUANTILES] if delays.size else []
    return LabelDelays(
        rows=int(predicted.size),
        arrived=int(delays.size),
        late=late,
        missing=int(predicted.size - delays.size),
        quantiles=tuple(int(delays[position]) for position in positions),
        edges=DELAY_EDGES,
        counts=tuple(int(count) for count in bin_counts(delays, DELAY_EDGES)),
    )
