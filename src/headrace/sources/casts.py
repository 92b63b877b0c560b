"""Cast whole columns to the declared types without loss, and find the cells that are no values of the type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.core.time import DAY
from headrace.sources.values import EXACT_FLOAT, arrow_type
from headrace.sources.zones import EARLIEST, LATEST, Localised, localise

INTEGERS = (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32())
FLOATS = (pa.float16(), pa.float32(), pa.float64())
TO_MICROSECONDS = {"s": 10**6, "ms": 10**3, "us": 1}
WITH_OFFSET = r"(?i)[T ].*(Z|[+-]\d\d(:?\d\d)?)$"
BELOW_MICROSECOND = r"(\.\d{6})\d+"
LONG_INTEGER = r"^[+-]?\d{16,}$"


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
        pyarrow.ArrowInvalid: a text is not UTF-8.
    """
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kind = values.type
    if pa.types.is_null(kind):
        return Cells(pa.nulls(len(values), arrow_type(dtype)))
    if pa.types.is_decimal(kind) and dtype in ("int", "float"):
        return _decimals(values, dtype)
    if dtype == "float":
        return _floats(values)
    if dtype == "instant":
        return _instants(values, zone)
    if dtype == "date" and pa.types.is_date(kind):
        return _reachable(pc.multiply_checked(values.cast(pa.date32()).cast(pa.int32()).cast(pa.int64()), DAY))
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if dtype == "str" and texts:
        values.validate(full=True)
    fits = {"str": texts, "bool": pa.types.is_boolean(kind), "int": kind in INTEGERS}
    return Cells(values.cast(arrow_type(dtype))) if fits.get(dtype) else None


def cast_text(values: pa.Array, dtype: str, zone: str | None) -> Cells:
    """Return the values that texts spell; what spells none is null and misread.

    Raises:
        NaiveTimestamps: some have no offset and `zone` is None.
    """
    if dtype == "str":
        return Cells(values)
    if dtype == "instant":
        return _spelled_instants(values, zone)
    if dtype == "date":
        days, misread = _parse(values, pa.date32())
        return _reachable(pc.multiply(days.cast(pa.int32()).cast(pa.int64()), DAY), misread)
    if dtype == "float":
        values, bent = _without_long_integers(values)
        numbers, misread = _parse(values, pa.float64())
        return Cells(numbers, tuple(sorted([*misread, *bent])))
    numbers, misread = _parse(values, arrow_type(dtype))
    return Cells(numbers, tuple(misread))


def _without_long_integers(values: pa.Array) -> tuple[pa.Array, list[int]]:
    """Return texts without the integers that no float holds, and where those stood: a float would be another number."""
    long = pc.match_substring_regex(values, LONG_INTEGER)
    bent = [row for row in pc.indices_nonzero(long).to_pylist() if int(float(text := values[row].as_py())) != int(text)]
    if not bent:
        return values, []
    mask = np.zeros(len(values), bool)
    mask[bent] = True
    return pc.if_else(pa.array(mask), None, values), bent


def _reachable(instants: pa.Array, misread: Sequence[int] = (), found: Localised | None = None) -> Cells:
    """Return instants as cells; those outside the years 1 to 9999, the reach of ISO 8601, are misread."""
    whole, null = _integers(instants)
    beyond = ~null & ((whole < EARLIEST) | (whole > LATEST))
    if beyond.any():
        instants = pa.array(whole, mask=null | beyond)
        misread = sorted([*misread, *np.flatnonzero(beyond).tolist()])
    return Cells(instants, tuple(misread), found.ambiguous if found else 0, found.nonexistent if found else 0)


def _decimals(values: pa.Array, dtype: str) -> Cells | None:
    """Return decimals as whole numbers where they are some, or as the nearest floats."""
    try:
        if dtype == "int":
            return Cells(values.cast(pa.int64()))
        return (
            Cells(values.cast(pa.string()).cast(pa.float64()))
            if values.type.scale > 0
            else _floats(values.cast(pa.int64()))
        )
    except pa.ArrowInvalid:
        return None


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
        counts = _microseconds(counts, TO_MICROSECONDS[kind.unit])
    return _reachable(counts) if kind.tz is not None else _local(counts, values, zone)


def _microseconds(counts: pa.Array, factor: int) -> pa.Array:
    """Return counts of a longer unit as microseconds; those beyond int64 come out as the largest, which is misread."""
    whole, null = _integers(counts)
    limit = np.iinfo(np.int64).max // factor
    return pa.array(
        np.where(np.abs(whole) > limit, np.iinfo(np.int64).max, np.clip(whole, -limit, limit) * factor), mask=null
    )


def _local(counts: pa.Array, examples: pa.Array, zone: str | None) -> Cells:
    """Return local microseconds as instants."""
    whole, null = _integers(counts)
    there = ~null & (whole >= EARLIEST) & (whole <= LATEST)
    if not there.any():
        return _reachable(counts)
    if zone is None:
        raise NaiveTimestamps(str(examples[int(np.flatnonzero(there)[0])]))
    found = localise(whole[there], zone)
    instants = np.where(null, 0, whole)
    instants[there] = found.instants
    return _reachable(pa.array(instants, mask=null), (), found)


def _spelled_instants(values: pa.Array, zone: str | None) -> Cells:
    short = pc.replace_substring_regex(values, BELOW_MICROSECOND, r"\1")
    aware = pc.match_substring_regex(short, WITH_OFFSET)
    instants, misread = _parse(pc.if_else(aware, short, None), pa.timestamp("us", "UTC"))
    local, also = _parse(pc.if_else(aware, None, short), pa.timestamp("us"))
    cells = _local(local.cast(pa.int64()), local, zone)
    told = _reachable(instants.cast(pa.int64()), misread)
    together = pc.coalesce(told.values, cells.values)
    wrong = sorted({*told.misread, *also, *cells.misread})
    return Cells(together, tuple(wrong), cells.ambiguous, cells.nonexistent)


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
