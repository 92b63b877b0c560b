"""Cast whole columns to the declared types without loss, and find the cells that are no values of the type."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.core.time import DAY
from headrace.sources.values import EXACT_FLOAT, arrow_type
from headrace.sources.zones import localise

INTEGERS = (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32())
FLOATS = (pa.float16(), pa.float32(), pa.float64())
TO_MICROSECONDS = {"s": 10**6, "ms": 10**3, "us": 1}
WITH_OFFSET = r"(?i)[T ].*(Z|[+-]\d\d(:?\d\d)?)$"
BELOW_MICROSECOND = r"(\.\d{6})\d+"


class NaiveTimestamps(ValueError):
    """Report local timestamps whose zone nothing says."""


@dataclass(frozen=True, eq=False)
class Cells:
    """Hold a column's values in its declared type, and the rows whose text was no such value (null in `values`)."""

    values: pa.Array
    misread: tuple[int, ...] = ()
    ambiguous: int = 0
    nonexistent: int = 0


def cast_cells(values: pa.Array, dtype: str, zone: str | None) -> Cells | None:
    """Return typed Arrow values as the declared type, None if theirs is another.

    Raises:
        NaiveTimestamps: they are local and `zone` is None.
        pyarrow.ArrowInvalid: a text is not UTF-8, or an instant lies beyond int64 microseconds.
    """
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kind = values.type
    if pa.types.is_null(kind):
        return Cells(pa.nulls(len(values), arrow_type(dtype)))
    if dtype == "float":
        return _floats(values)
    if dtype == "instant":
        return _instants(values, zone)
    if dtype == "date" and pa.types.is_date(kind):
        return Cells(pc.multiply_checked(values.cast(pa.date32()).cast(pa.int32()).cast(pa.int64()), DAY))
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if dtype == "str" and texts:
        values.validate(full=True)
    fits = {"str": texts, "bool": pa.types.is_boolean(kind), "int": kind in INTEGERS}
    return Cells(values.cast(arrow_type(dtype))) if fits.get(dtype) else None


def cast_text(values: pa.Array, dtype: str, zone: str | None) -> Cells | None:
    """Return the values that texts spell, None if there are texts and none spells one.

    Raises:
        NaiveTimestamps: some have no offset and `zone` is None.
    """
    if dtype == "str":
        return Cells(values)
    if dtype == "instant":
        cells = _spelled_instants(values, zone)
    elif dtype == "date":
        days, misread = _parse(values, pa.date32())
        cells = Cells(pc.multiply(days.cast(pa.int32()).cast(pa.int64()), DAY), tuple(misread))
    else:
        numbers, misread = _parse(values, arrow_type(dtype))
        cells = Cells(numbers, tuple(misread))
    there = len(values) - values.null_count
    return None if there and len(cells.misread) == there else cells


def _floats(values: pa.Array) -> Cells | None:
    if values.type in FLOATS:
        return Cells(values.cast(pa.float64()))
    if values.type not in INTEGERS:
        return None
    numbers = values.cast(pa.int64())
    largest = pc.max(pc.abs(numbers)).as_py()
    return Cells(numbers.cast(pa.float64())) if largest is None or 0 <= largest <= EXACT_FLOAT else None


def _instants(values: pa.Array, zone: str | None) -> Cells | None:
    kind = values.type
    if pa.types.is_date(kind):
        values, kind = values.cast(pa.timestamp("ms")), pa.timestamp("ms")
    if not pa.types.is_timestamp(kind):
        return None
    counts = values.cast(pa.int64())
    if kind.unit == "ns":
        whole, null = _integers(counts)
        counts = pa.array(whole // 1000, mask=null)
    else:
        counts = pc.multiply_checked(counts, TO_MICROSECONDS[kind.unit])
    return Cells(counts) if kind.tz is not None else _local(counts, values, zone)


def _local(counts: pa.Array, examples: pa.Array, zone: str | None) -> Cells:
    """Return local microseconds as instants."""
    if counts.null_count == len(counts):
        return Cells(counts)
    if zone is None:
        raise NaiveTimestamps(next(str(v) for v in examples if v.is_valid))
    whole, null = _integers(counts)
    found = localise(whole[~null], zone)
    instants = np.zeros(len(whole), np.int64)
    instants[~null] = found.instants
    return Cells(pa.array(instants, mask=null), (), found.ambiguous, found.nonexistent)


def _spelled_instants(values: pa.Array, zone: str | None) -> Cells:
    short = pc.replace_substring_regex(values, BELOW_MICROSECOND, r"\1")
    aware = pc.match_substring_regex(short, WITH_OFFSET)
    instants, misread = _parse(pc.if_else(aware, short, None), pa.timestamp("us", "UTC"))
    local, also = _parse(pc.if_else(aware, None, short), pa.timestamp("us"))
    cells = _local(local.cast(pa.int64()), local, zone)
    together = pc.coalesce(instants.cast(pa.int64()), cells.values)
    return Cells(together, tuple(sorted(misread + also)), cells.ambiguous, cells.nonexistent)


def _parse(texts: pa.Array, target: pa.DataType) -> tuple[pa.Array, list[int]]:
    """Cast texts; halve where the cast fails, until the failing cells stand alone."""
    try:
        return texts.cast(target), []
    except pa.ArrowInvalid:
        if len(texts) == 1:
            return pa.nulls(1, target), [0]
    middle = len(texts) // 2
    left, wrong = _parse(texts[:middle], target)
    right, also = _parse(texts[middle:], target)
    return pa.concat_arrays([left, right]), wrong + [middle + place for place in also]


def _integers(values: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    null = values.is_null().to_numpy(zero_copy_only=False)
    return pc.fill_null(values, 0).to_numpy(zero_copy_only=False), null
