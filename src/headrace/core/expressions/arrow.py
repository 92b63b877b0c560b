"""Lower an expression to whole Arrow columns, batch by batch.

Every operator has a vectorised form here or falls back to its function of single values; so do the rare batches in which
an integer does not fit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.core.expressions.algebra import Expr, Literal, Operation
from headrace.core.expressions.columns import Column, columns_of
from headrace.core.expressions.constants import LEAST, members, stored
from headrace.core.expressions.rows import function_of
from headrace.core.expressions.scalars import BLANK, scalar
from headrace.core.expressions.zones import CYCLE, EARLIEST, LATEST, rules_of
from headrace.core.time import DAY, HOUR, MINUTE, SECOND

ROWS = 65_536  # of a batch: bounds memory, and keeps a batch's columns in the processor's cache
TYPES = {"str": pa.string(), "float": pa.float64(), "bool": pa.bool_(), "null": pa.null()}
COMPARE = {"<": "less", "<=": "less_equal", ">": "greater", ">=": "greater_equal", "==": "equal", "!=": "not_equal"}
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Kernel = Callable[..., Any]


def compute(expr: Expr[Any], table: pa.Table) -> pa.ChunkedArray:
    """Compute an expression for every row of a table that has the columns under their own names."""
    names = list(dict.fromkeys(column.name for column in columns_of(expr)))
    batches = (table.select(names) if names else table).to_batches(max_chunksize=ROWS)
    return pa.chunked_array([_evaluate(expr, batch) for batch in batches], arrow_type(expr.kind()))


def arrow_type(kind: str) -> pa.DataType:
    """Return the Arrow type of an expression's values; instants and dates are int64 microseconds UTC."""
    return TYPES.get(kind, pa.int64())


def _evaluate(expr: Expr[Any], batch: pa.RecordBatch) -> pa.Array:
    if isinstance(expr, Literal):
        return pa.repeat(pa.scalar(stored(expr.value), arrow_type(expr.kind())), batch.num_rows)
    if isinstance(expr, Column):
        values = batch.column(expr.name)
        values = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
        return values.cast(arrow_type(expr.kind()))
    assert isinstance(expr, Operation)
    wanted = expr.signature.operands
    operands = [
        _evaluate(arg, batch).cast(arrow_type(kind), safe=False) for arg, kind in zip(expr.args, wanted, strict=True)
    ]
    kernel = _kernel(expr)
    return (
        _one_by_one(function_of(expr), expr.kind(), *operands) if kernel is None else kernel(*operands, *expr.options)
    )


def _kernel(expr: Operation[Any]) -> Kernel | None:
    """Return the vectorised form of an operator for its operands' types, if there is one."""
    kinds = expr.signature.operands
    if expr.op in COMPARE and set(kinds) == {"int", "float"}:
        return partial(_mixed, expr.op)
    if expr.op == "isin":
        return partial(_isin, kinds[0])
    found = KERNELS.get(expr.op, {})
    return found.get(kinds[0]) or found.get("")


def _one_by_one(apply: Callable[..., Any], kind: str, *operands: pa.Array) -> pa.Array:
    """Apply a function of single values that are not null."""
    columns = [operand.to_pylist() for operand in operands]
    found = [None if None in values else apply(*values) for values in zip(*columns, strict=True)]
    return pa.array(found, arrow_type(kind))


def _checked(op: str, name: str) -> Kernel:
    """Return a calculation with integers that gives null where int64 does not hold the result."""

    def apply(*operands: pa.Array) -> pa.Array:
        try:
            return pc.call_function(name, list(operands))
        except pa.ArrowInvalid:
            return _one_by_one(scalar(op, "int"), "int", *operands)

    return apply


def numbers(values: pa.Array) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return numbers, 0 where null, and where null is."""
    null: NDArray[np.bool_] = values.is_null().to_numpy(zero_copy_only=False)
    filled = pc.fill_null(values, 0) if values.null_count else values
    return filled.to_numpy(zero_copy_only=False), null


def _mixed(op: str, left: pa.Array, right: pa.Array) -> pa.Array:
    """Compare integers with floats exactly: rounding keeps the order, so only where it gives equals are integers compared."""
    (a, null_a), (b, null_b) = numbers(left), numbers(right)
    flipped = a.dtype.kind == "f"
    whole, real = (b, a) if flipped else (a, b)
    near = whole.astype(np.float64)
    inside = np.where((near == real) & (real < 2.0**63), real, 0.0).astype(np.int64)
    above = (near > real) | ((near == real) & (real < 2.0**63) & (whole > inside))
    below = (near < real) | ((near == real) & ((real >= 2.0**63) | (whole < inside)))
    if flipped:
        above, below = below, above
    nan = np.isnan(real)
    same = ~above & ~below & ~nan
    found = {"<": below, "<=": below | same, ">": above, ">=": above | same, "==": same, "!=": ~same}[op]
    return pa.array(found, mask=null_a | null_b)


def _divide(a: pa.Array, b: pa.Array) -> pa.Array:
    return pc.divide(a, pc.if_else(pc.equal(b, 0.0), None, b))


def _floored(how: Callable[[Ints, Ints], Ints]) -> Kernel:
    """Return an integer division, null where the divisor is 0 or int64 does not hold the quotient."""

    def apply(left: pa.Array, right: pa.Array) -> pa.Array:
        (a, null_a), (b, null_b) = numbers(left), numbers(right)
        beyond = (a == LEAST) & (b == -1) & (how is np.floor_divide)
        return pa.array(how(a, np.where((b == 0) | beyond, 1, b)), mask=null_a | null_b | (b == 0) | beyond)

    return apply


def _order(first: str) -> Kernel:
    """Return least ("less_equal") or greatest of values that are not floats; null if one is null."""
    return lambda *operands: reduce(lambda a, b: pc.if_else(pc.call_function(first, [a, b]), a, b), operands)


def _order_floats(smaller: bool) -> Kernel:
    def two(left: pa.Array, right: pa.Array) -> pa.Array:
        (a, null_a), (b, null_b) = numbers(left), numbers(right)
        first = np.signbit(a) == smaller
        first = np.where(a == b, first, (a < b) == smaller)
        found = np.where(np.isnan(a) | np.isnan(b), np.nan, np.where(first, a, b))
        return pa.array(found, mask=null_a | null_b)

    return lambda *operands: reduce(two, operands)


def _isin(kind: str, values: pa.Array, wanted: tuple[Any, ...]) -> pa.Array:
    listed = members(wanted, kind)
    if kind == "float":  # is_in tells -0.0 from 0.0
        values = pc.add(values, 0.0)
        listed = [value + 0.0 for value in listed]
    found = pc.is_in(values, value_set=pa.array(listed, arrow_type(kind)))
    return pc.if_else(pc.is_valid(values), found, None)


def _sign(values: pa.Array) -> pa.Array:
    found, null = numbers(values)
    nan = np.isnan(found)
    return pa.array(np.sign(np.where(nan, 0, found)).astype(np.int64), mask=null | nan)


def _round(values: pa.Array) -> pa.Array:
    found, null = numbers(values)
    return pa.array(np.rint(found), mask=null)


def _cut(values: pa.Array) -> pa.Array:
    """Cut floats to integers; null where int64 does not hold them."""
    found, null = numbers(values)
    fits = (found >= -(2.0**63)) & (found < 2.0**63)
    return pa.array(np.where(fits, found, 0.0).astype(np.int64), mask=null | ~fits)


def _substring(values: pa.Array, start: int, length: int | None) -> pa.Array:
    return pc.utf8_slice_codeunits(values, start, None if length is None else start + length)


def _shift(values: pa.Array, offset: int) -> pa.Array:
    try:
        return pc.add_checked(values, pa.scalar(offset, pa.int64()))
    except (pa.ArrowInvalid, OverflowError):
        return _one_by_one(lambda value: scalar("shift", "")(value, offset), "int", values)


def _truncate(values: pa.Array, step: int) -> pa.Array:
    found, null = numbers(values)
    above = found % step
    beyond = found < LEAST + above
    return pa.array(found - np.where(beyond, 0, above), mask=null | beyond)


def _local(values: pa.Array, zone: str | None) -> tuple[Ints, NDArray[np.bool_]]:
    """Return what a zone's clock shows, and where it shows nothing: at null and beyond the years 1 to 9999."""
    found, null = numbers(values)
    null = null | (found < EARLIEST) | (found > LATEST)
    shown = np.where(null, 0, found)
    if zone is not None:
        rules = rules_of(zone)
        repeated = np.where(shown >= rules.repeats, rules.repeats + (shown - rules.repeats) % CYCLE, shown)
        shown = shown + np.array(rules.offsets)[np.searchsorted(np.array(rules.changes, np.int64), repeated, "right")]
    return shown, null | (shown < EARLIEST) | (shown > LATEST)


def _calendar(part: Callable[[Ints], Ints]) -> dict[str, Kernel]:
    def apply(values: pa.Array, zone: str | None) -> pa.Array:
        shown, null = _local(values, zone)
        return pa.array(part(shown).astype(np.int64), mask=null)

    return {"": apply}


def _days(shown: Ints) -> NDArray[np.datetime64]:
    return (shown // DAY).astype("datetime64[D]")


def _months(shown: Ints) -> NDArray[np.datetime64]:
    return _days(shown).astype("datetime64[M]")


_SECONDS = DAY // SECOND
_TEXTS: dict[str, Kernel] = {
    "lower": pc.ascii_lower,
    "upper": pc.ascii_upper,
    "strip": lambda a: pc.utf8_trim(a, BLANK),
    "length": lambda a: pc.utf8_length(a).cast(pa.int64()),
    "startswith": pc.starts_with,
    "endswith": pc.ends_with,
    "contains": pc.match_substring,
    "replace": pc.replace_substring,
    "substring": _substring,
}
# By operator, then by the type of its first operand; "" is any other type.
KERNELS: dict[str, dict[str, Kernel]] = {
    **{op: {"": getattr(pc, name)} for op, name in COMPARE.items()},
    **{op: {"": kernel} for op, kernel in _TEXTS.items()},
    "+": {
        "int": _checked("+", "add_checked"),
        "float": pc.add,
        "str": lambda a, b: pc.binary_join_element_wise(a, b, ""),
    },
    "-": {"float": pc.subtract, "": _checked("-", "subtract_checked")},
    "*": {"int": _checked("*", "multiply_checked"), "float": pc.multiply},
    "/": {"": _divide},
    "//": {"int": _floored(np.floor_divide)},
    "%": {"int": _floored(np.remainder)},
    "negate": {"int": _checked("negate", "negate_checked"), "": pc.negate},
    "&": {"": pc.and_kleene},
    "|": {"": pc.or_kleene},
    "^": {"": pc.xor},
    "not": {"": pc.invert},
    "is_null": {"": pc.is_null},
    "if_else": {"": pc.if_else},
    "coalesce": {"": pc.coalesce},
    "least": {"float": _order_floats(True), "": _order("less_equal")},
    "greatest": {"float": _order_floats(False), "": _order("greater_equal")},
    "abs": {"int": _checked("abs", "abs_checked"), "": pc.abs},
    "sign": {"": _sign},
    "floor": {"int": lambda a: a, "": pc.floor},
    "ceil": {"int": lambda a: a, "": pc.ceil},
    "round": {"int": lambda a: a, "": _round},
    "sqrt": {"": lambda a: pc.sqrt(pc.if_else(pc.less(a, 0.0), None, a))},
    "is_nan": {"": pc.is_nan},
    "is_finite": {"": pc.is_finite},
    "as_int": {"float": _cut, "bool": lambda a: a.cast(pa.int64()), "int": lambda a: a, "instant": lambda a: a},
    "as_float": {
        "float": lambda a: a,
        "int": lambda a: a.cast(pa.float64(), safe=False),
        "bool": lambda a: a.cast(pa.float64()),
    },
    "as_str": {"str": lambda a: a, "int": lambda a: a.cast(pa.string())},
    "as_bool": {"bool": lambda a: a, "int": lambda a: pc.not_equal(a, 0), "float": lambda a: pc.not_equal(a, 0.0)},
    "shift": {"": _shift},
    "truncate": {"": _truncate},
    "year": _calendar(lambda shown: _days(shown).astype("datetime64[Y]").astype(np.int64) + 1970),
    "month": _calendar(lambda shown: _months(shown).astype(np.int64) % 12 + 1),
    "day": _calendar(lambda shown: (_days(shown) - _months(shown).astype("datetime64[D]")).astype(np.int64) + 1),
    "weekday": _calendar(lambda shown: (shown // DAY + 3) % 7),
    "date": _calendar(lambda shown: shown // DAY * DAY),
    "hour": _calendar(lambda shown: shown // HOUR % 24),
    "minute": _calendar(lambda shown: shown // MINUTE % 60),
    "second_of_day": _calendar(lambda shown: shown // SECOND % _SECONDS),
}
