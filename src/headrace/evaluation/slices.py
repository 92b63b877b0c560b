"""Judge a metric slice by slice: small slices are listed, the others are held to the limit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headrace.core.errors import DataError
from headrace.core.limits import Limit
from headrace.evaluation.metrics import Measured
from headrace.evaluation.record import SliceResult

if TYPE_CHECKING:
    import pyarrow as pa

NO_VALUE = "(null)"


def slice_names(rows: pa.Table, column: str) -> NDArray[np.str_]:
    """Return each row's slice as text; null has a slice of its own.

    Raises:
        DataError: the rows have no such column.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if column not in rows.column_names:
        raise DataError("no column to slice by", where="evaluation", got=column, expected=rows.column_names)
    texts = pc.fill_null(rows[column].cast(pa.string()), NO_VALUE)
    return np.asarray(texts.to_pylist(), dtype=np.str_)


def slice_table(found: Mapping[str, Measured]) -> tuple[SliceResult, ...]:
    """Return the slices by size, the largest first."""
    table = [SliceResult(name, m.rows, m.value, m.value is not None, m.reason) for name, m in found.items()]
    return tuple(sorted(table, key=lambda one: (-one.rows, one.name)))


def worst(slices: tuple[SliceResult, ...], limit: Limit) -> SliceResult | None:
    """Return the judged slice that lies worst for a limit; None if none was judged."""
    judged = [(one.value, one) for one in slices if one.value is not None]
    if not judged:
        return None
    if limit.op == "between":
        middle = sum(limit.threshold) / 2
        return max(judged, key=lambda pair: abs(pair[0] - middle))[1]
    sign = 1 if limit.op in (">", ">=") else -1
    return min(judged, key=lambda pair: sign * pair[0])[1]
