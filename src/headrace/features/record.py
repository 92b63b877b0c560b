"""Hold what feature computation hands on: columns, one row's vector, a training set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

OK, NULL, EXPIRED, OVERFLOW, NO_KEY, NOT_FOUND, REBUILD = range(7)
CODES = {"float": "d", "bool": "?7x"}  # of what a word holds, int64 unless said
STATUS = ("OK", "NULL", "EXPIRED", "OVERFLOW", "NO_KEY", "NOT_FOUND", "REBUILD")


@dataclass(frozen=True)
class FeatureColumn:
    """Name one feature of a dataset: `Origin.dep_delay[1h]`; `dtype` is float, int, bool, str or instant."""

    name: str
    dtype: str
    origin: str  # "row", "window", "latest" or "on_demand"


@dataclass
class FeatureVector:
    """Hold one row's features, in the order of `columns`; the buffers are reused by the reader's next read.

    `words` holds float64 bits for float columns and int64 for int, bool and instant columns; where `status` is not OK
    the word is float64 NaN (float columns) or 0. `texts` holds the values of the str columns, in their own order.
    """

    columns: tuple[FeatureColumn, ...]
    words: NDArray[np.int64]
    status: NDArray[np.uint8]
    texts: list[str | None]

    def __post_init__(self) -> None:
        self.floats = self.words.view(np.float64)
        self._names, self._fine = [column.name for column in self.columns], bytes(len(self.columns))
        self._texts = [column.name for column in self.columns if column.dtype == "str"]
        self._values = Struct("=" + "".join([CODES.get(column.dtype, "q") for column in self.columns]))
        self._word = self.words.data

    def counts(self) -> dict[str, int]:
        """Count the features by status: `{"OK": 28, "NULL": 3}`."""
        found = np.bincount(self.status, minlength=len(STATUS)).tolist()
        return {name: count for name, count in zip(STATUS, found, strict=True) if count}

    def to_dict(self) -> dict[str, Any]:
        """Return the features as plain values by name; null is None."""
        found: dict[str, Any] = dict(zip(self._names, self._values.unpack(self._word), strict=True))
        if self._texts:
            found |= zip(self._texts, self.texts, strict=True)
        if self.status.tobytes() != self._fine:
            found |= {name: None for name, state in zip(self._names, self.status.tolist(), strict=True) if state != OK}
        return found


@dataclass
class FeatureTable:
    """Hold many rows' features: `words` and `status` as a vector's, one row each, and a list for each str column."""

    columns: tuple[FeatureColumn, ...]
    words: NDArray[np.int64]
    status: NDArray[np.uint8]
    texts: list[list[str | None]]


@dataclass(frozen=True)
class TrainingSet:
    """Hold training rows: exactly the caller's rows in their order, as known at each row's moment `t`.

    `features` has one Arrow column for each of `columns` (float64, int64, bool, string; null is null). `rows` holds the
    rows source's own columns as known at `t` (for slices). `label` is float64, 0/1 for a bool label; NaN where no label
    had arrived by `as_of` (censored: kept, counted, not fitted on); with several `names` it has shape (rows, names).
    `weight` is there where rows were sampled: what each kept one stands for. `manifest` says from which definitions and table
    versions the set follows, as plain JSON.
    """

    columns: tuple[FeatureColumn, ...]
    features: pa.Table
    rows: pa.Table
    t: NDArray[np.int64]
    label: NDArray[np.float64]
    as_of: int
    manifest: Mapping[str, Any]
    names: tuple[str, ...] = ("label",)
    weight: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.t)


def unlabelled(label: NDArray[np.float64]) -> int:
    """Count the rows that lack a label."""
    return int(np.isnan(label).reshape(len(label), -1).any(axis=1).sum()) if len(label) else 0


def label_columns(names: Sequence[str], label: NDArray[np.float64]) -> dict[str, pa.Array]:
    """Return labels as columns, null where there is none: `label`, or `label[7d+14d]` for each name of several."""
    import pyarrow as pa

    titles = ["label"] if len(names) == 1 else [f"label[{name}]" for name in names]
    columns = np.ascontiguousarray(label.reshape(len(label), -1).T) if len(label) else np.empty((len(titles), 0))
    return {t: pa.array(column, mask=np.isnan(column)) for t, column in zip(titles, columns, strict=True)}
