"""Hold the rows that a training function gets: a numeric matrix for estimators, Arrow for everything else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa


class Frame(np.ndarray[tuple[int, ...], np.dtype[np.float32]]):
    """Hold features as a float32 matrix, one row a prediction, one column a feature; null is NaN, text is a code.

    Codes are what the model's encoder gives at serving time too: the place in the training rows' vocabulary, most
    frequent first, and one further code for everything else. `arrow()` and `to_pandas()` give the values themselves.
    """

    columns: tuple[str, ...]
    categorical: tuple[int, ...]
    table: pa.Table

    @classmethod
    def build(
        cls, matrix: NDArray[np.float32], columns: tuple[str, ...], categorical: tuple[int, ...], table: pa.Table
    ) -> Self:
        """Wrap an encoded matrix, shape (rows, features), and the Arrow table that it was encoded from."""
        frame = np.asarray(matrix, np.float32).view(cls)
        frame.columns, frame.categorical, frame.table = columns, categorical, table
        return frame

    def __array_finalize__(self, source: Any) -> None:
        self.columns = getattr(source, "columns", ())
        self.categorical = getattr(source, "categorical", ())
        self.table = getattr(source, "table", None)

    def arrow(self) -> pa.Table:
        """Return the features as an Arrow table, types and text kept."""
        return self.table

    def to_pandas(self) -> Any:
        """Return the features as a pandas DataFrame (pandas must be installed)."""
        return self.table.to_pandas()

    def numpy(self) -> NDArray[np.float32]:
        """Return the encoded matrix as a plain array."""
        return np.asarray(self)


@dataclass(frozen=True)
class Part:
    """Hold one part of a split: features `X`, labels `y`, the rows' places in the training set and their moments.

    `weight` says for how many rows each stands: 1, and more where the dataset keeps a sample.
    """

    X: Frame
    y: NDArray[Any]
    rows: NDArray[np.int64]
    t: NDArray[np.int64]
    weight: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class TrainingData:
    """Hold the three parts of a split, and what was learned from the training part alone."""

    train: Part
    valid: Part
    test: Part
    columns: tuple[str, ...]
    categorical: tuple[int, ...]
