"""Compile what columns declare into rules: one for each type, range, pattern and set."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headrace.core.errors import DefinitionError
from headrace.core.expressions import Column
from headrace.core.limits import number_text
from headrace.sources.zones import EARLIEST, LATEST
from headrace.validation.definition import Severity

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]

NUMBERS = ("int", "float", "instant", "date")


@dataclass(frozen=True, eq=False)
class Rule:
    """Demand something of every stated value of one column; null breaks no rule but "is not null".

    `bad_values` says which of an Arrow array (texts also as a dictionary) are bad; None stands for no bad value at all.
    `severity` is the rule's own, where it is not that of all bad rows.
    """

    name: str
    column: Column[Any]
    place: int
    bad_values: Callable[[pa.Array], Mask | None]
    severity: Severity | None = None


def rules_of(column: Column[Any], place: int) -> list[Rule]:
    """Return the rules that a column's declaration makes.

    Raises:
        DefinitionError: a constraint does not fit the column's type, or is no RE2 pattern.
    """
    import numpy as np

    found = []
    if not column.nullable:
        found.append(no_nulls(column, place))
    if column.dtype == "float" and not column.allow_nan:
        finite = Rule(
            f"{column} is finite",
            column,
            place,
            lambda values: _on_numbers(values, lambda v: ~np.isfinite(v), lambda low, high: math.isfinite(low + high)),
        )
        found.append(finite)
    if column.dtype in ("instant", "date"):
        found += bounds(column, place, EARLIEST, LATEST, "is in the years 1 to 9999")
    if column.ge is not None or column.le is not None:
        found += declared_bounds(column, place, column.ge, column.le)
    if column.matches is not None:
        found.append(pattern(column, place, column.matches))
    if column.allowed is not None:
        found.append(membership(column, place, column.allowed))
    return found


def no_nulls(column: Column[Any], place: int) -> Rule:
    """Return the rule that a stated value is never null."""
    return Rule(f"{column} is not null", column, place, _nulls)


def declared_bounds(
    column: Column[Any], place: int, ge: float | None, le: float | None, *, strict: bool = False
) -> list[Rule]:
    """Return the rules that numbers lie within bounds, which `strict` excludes.

    Raises:
        DefinitionError: the column holds no numbers, or a bound is not finite.
    """
    given = [b for b in (ge, le) if b is not None]
    if column.dtype not in NUMBERS or not all(math.isfinite(b) for b in given):
        raise DefinitionError(
            f"{column}: ge and le are finite numbers, for numbers",
            where=column.location,
            got=f"{column.dtype}, {given}",
            expected="an int or float column",
            next_step="isin= lists allowed values, matches= takes a pattern",
        )
    # An integer compares with an integer: as floats, large ones would be rounded.
    whole, sign = column.dtype != "float", "" if strict else "="
    found = []
    if ge is not None:
        low = (math.floor(ge) + 1 if strict else math.ceil(ge)) if whole else ge
        found += bounds(column, place, low, None, f">{sign} {number_text(ge)}", strict=strict and not whole)
    if le is not None:
        high = (math.ceil(le) - 1 if strict else math.floor(le)) if whole else le
        found += bounds(column, place, None, high, f"<{sign} {number_text(le)}", strict=strict and not whole)
    return found


def bounds(
    column: Column[Any], place: int, low: float | None, high: float | None, says: str, *, strict: bool = False
) -> list[Rule]:
    """Return the rule that values lie within bounds; NaN lies within any, whether it may be there is asked apart."""

    def outside(v: Any) -> Any:
        below = False if low is None else (v <= low) if strict else (v < low)
        above = False if high is None else (v >= high) if strict else (v > high)
        return below | above

    def all_outside(values: pa.Array) -> Mask | None:
        return _on_numbers(values, outside, lambda least, most: not (outside(least) or outside(most)))

    return [Rule(f"{column} {says}", column, place, all_outside)]


def pattern(column: Column[Any], place: int, text: str) -> Rule:
    """Return the rule that whole texts match, by RE2: linear in the text, whatever the pattern.

    Raises:
        DefinitionError: the column holds no texts, or RE2 does not take the pattern.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    anchored = f"^(?:{text})$"

    def unlike(values: pa.Array) -> Mask | None:
        return _false(pc.match_substring_regex(values, anchored))

    if column.dtype != "str":
        raise DefinitionError(f"{column}: matches= is for texts", where=column.location, got=column.dtype)
    try:
        unlike(pa.array([""]))
    except pa.ArrowInvalid as error:
        raise DefinitionError(
            f"{column}: not a pattern",
            where=column.location,
            got=error,
            expected="RE2 syntax: regular expressions without look-around and back-references",
        ) from error
    return Rule(f"{column} matches {text}", column, place, lambda values: _on_texts(values, unlike))


def membership(column: Column[Any], place: int, allowed: tuple[Any, ...], *, refused: bool = False) -> Rule:
    """Return the rule that values are among some, or, with `refused`, among none of them.

    Raises:
        DefinitionError: the values are not of the column's type.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    numeric = column.dtype != "str"
    if not allowed or any(isinstance(a, str) == numeric or a is None for a in allowed):
        raise DefinitionError(
            f"{column}: isin= lists values of the column's type",
            where=column.location,
            got=list(allowed) or "none",
            expected=column.dtype,
        )
    members = frozenset(m for a in allowed if (m := _member(a, column.dtype)) is not None)
    texts = pa.array(sorted(members), pa.string()) if not numeric else None

    def strangers(values: pa.Array) -> Mask | None:
        if numeric:
            return _on_numbers(values, lambda v: np.isin(v, np.array(sorted(members), v.dtype), invert=not refused))
        known = pc.is_in(values, value_set=texts)
        return _false(pc.if_else(pc.is_valid(values), pc.invert(known) if refused else known, None))

    says = f"{column} is {'none' if refused else 'one'} of {_few(allowed)}"
    return Rule(says, column, place, strangers if numeric else lambda values: _on_texts(values, strangers))


def _member(value: Any, dtype: str) -> Any:
    """Return an allowed value as the column's type, None if nothing of that type equals it (1.5 for an int)."""
    if dtype == "str":
        return value
    if dtype == "float":
        return None if math.isnan(value) else float(value)
    whole = math.isfinite(value) and value == int(value) and -(2**63) <= value < 2**63
    return int(value) if whole else None


def _few(values: tuple[Any, ...]) -> str:
    return ", ".join(map(str, values[:8])) + (", …" if len(values) > 8 else "")


def _false(answers: pa.Array) -> Mask | None:
    """Return where an answer is false; null is no fault."""
    import pyarrow.compute as pc

    if not answers.false_count:
        return None
    wrong: Mask = pc.fill_null(pc.invert(answers), False).to_numpy(zero_copy_only=False)
    return wrong


def _nulls(values: pa.Array) -> Mask | None:
    if not values.null_count:
        return None
    nulls: Mask = values.is_null().to_numpy(zero_copy_only=False)
    return nulls


def _on_texts(values: pa.Array, bad: Callable[[pa.Array], Mask | None]) -> Mask | None:
    """Ask of each text, or, of a dictionary, of each distinct text once."""
    import pyarrow as pa

    if not pa.types.is_dictionary(values.type):
        return bad(values)
    wrong = bad(values.dictionary)
    if wrong is None:
        return None
    places = values.indices.fill_null(0).to_numpy(zero_copy_only=False)
    there: Mask = wrong[places] & values.is_valid().to_numpy(zero_copy_only=False)
    return there


def numbers_of(values: pa.Array) -> NDArray[Any]:
    """Return an array's numbers without a copy (bools as int64); what stands where it is null means nothing."""
    import numpy as np
    import pyarrow as pa

    if pa.types.is_boolean(values.type):
        flags: NDArray[Any] = values.fill_null(False).to_numpy(zero_copy_only=False).astype(np.int64)
        return flags
    dtype = np.dtype(values.type.to_pandas_dtype())
    data = values.buffers()[1]
    if data is None:
        return np.zeros(len(values), dtype)
    return np.frombuffer(data, dtype, count=values.offset + len(values))[values.offset :]


def _on_numbers(
    values: pa.Array, bad: Callable[[Any], Mask], fine: Callable[[Any, Any], bool] | None = None
) -> Mask | None:
    """Ask of the numbers only; null is never bad.

    `fine` says of the least and the largest number whether all between them are good, which most often is enough to
    know. With NaN among them both are NaN, and each is asked.
    """
    numbers = numbers_of(values)
    if fine is not None and len(numbers) and not values.null_count:
        least, most = _extent(numbers)
        if least == least and fine(least, most):
            return None
    wrong = bad(numbers)
    if values.null_count:
        wrong &= values.is_valid().to_numpy(zero_copy_only=False)
    return wrong if wrong.any() else None


def _extent(numbers: NDArray[Any]) -> tuple[Any, Any]:
    """Return the least and the largest number as Python's own: as float64, a large integer would be rounded."""
    return numbers.min().item(), numbers.max().item()
