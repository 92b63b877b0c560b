"""Compile a source's checks: rules for single rows, and measures of deliveries. Pure; reads no data.

A row's rules give the same verdict for one event (`broken`) and for a table of reveals (`judge`); a rule sees only what
a reveal states, and of its column only values: null breaks no rule but "is not null".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from headrace.core.errors import DefinitionError
from headrace.core.expressions import Column
from headrace.core.limits import Limit
from headrace.core.time import DAY
from headrace.sources.definition import SourceDefinition
from headrace.sources.record import STATED
from headrace.sources.zones import EARLIEST, LATEST
from headrace.validation.definition import Checks, ForeignKey, Freshness, NullRate, RowCount, Severity, Warned

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]

NUMBERS = ("int", "float", "instant", "date")


@dataclass(frozen=True, eq=False)
class Rule:
    """Demand something of every stated value of one column; `bad_values` is `bad_value` for an Arrow array."""

    name: str
    column: Column[Any]
    place: int
    bad_value: Callable[[Any], bool]
    bad_values: Callable[[pa.Array], Mask]


@dataclass(frozen=True, eq=False)
class Measure:
    """Demand something of a whole delivery."""

    limit: Limit
    severity: Severity

    @property
    def name(self) -> str:
        """Return the check as a sentence."""
        if self.limit.op == "within":
            share, period = self.limit.threshold
            return f"{self.limit.quantity} within {share:g} of the mean day of {period // DAY}d"
        return str(self.limit)


@dataclass(frozen=True, eq=False)
class Reference:
    """Demand that a column's values stand in another source's column; rows that refer to nothing are bad rows."""

    check: ForeignKey
    place: int
    severity: Severity


@dataclass(frozen=True, eq=False)
class ValidationPlan:
    """Hold a source's compiled checks."""

    source: SourceDefinition
    rules: tuple[Rule, ...]
    references: tuple[Reference, ...]
    measures: tuple[Measure, ...]
    bad_rows: Severity
    max_bad: float

    def broken(self, event: Mapping[str, Any]) -> list[str]:
        """Return the names of the rules that an event of typed values breaks; columns that it lacks break none."""
        return [
            rule.name for rule in self.rules if rule.column.name in event and rule.bad_value(event[rule.column.name])
        ]

    def judge(self, table: pa.Table) -> list[tuple[Rule, Mask, int]]:
        """Return each rule with its bad rows among a table of reveals, and how many rows state its column."""
        import numpy as np

        stated = table[STATED].to_numpy()
        found = []
        for rule in self.rules:
            says = (stated >> rule.place & 1).astype(bool)
            values = table[rule.column.name].combine_chunks()
            bad = rule.bad_values(values) & says if len(values) else np.zeros(0, bool)
            found.append((rule, bad, int(says.sum())))
        return found


def plan_validation(definition: SourceDefinition) -> ValidationPlan:
    """Compile a source's checks; without any, what the columns declare is checked and bad rows are quarantined.

    Raises:
        DefinitionError: a check does not fit its column or its source, or measures what nothing here can measure.
    """
    checks: Checks = Checks() if definition.checks is None else definition.checks
    measures: list[Measure] = []
    references: list[Reference] = []
    for given in checks.checks:
        check, warned = (given.check, True) if isinstance(given, Warned) else (given, False)
        if isinstance(check, ForeignKey):
            place = _place(definition, check.column, check.location)
            references.append(Reference(check, place, "warn" if warned else checks.bad_rows))
        else:
            _measurable(definition, check)
            measures.append(Measure(check, "warn" if warned else "stop"))
    rules = tuple(rule for place, column in enumerate(definition.columns) for rule in _rules(column, place))
    return ValidationPlan(definition, rules, tuple(references), tuple(measures), checks.bad_rows, checks.max_bad)


def _place(definition: SourceDefinition, column: Column[Any], where: str) -> int:
    if column not in definition.index:
        raise DefinitionError(
            f"{definition.name}: a check of another source's column",
            where=where,
            got=str(column),
            expected=f"a column of {definition.name}",
            next_step="move the check to that source",
        )
    return definition.index[column]


def _measurable(definition: SourceDefinition, limit: Limit) -> None:
    quantity = limit.quantity
    if isinstance(quantity, NullRate):
        _place(definition, quantity.column, limit.location)
    elif not isinstance(quantity, (RowCount, Freshness)):
        raise DefinitionError(
            f"{definition.name}: nothing a delivery can be measured by",
            where=limit.location,
            got=str(quantity),
            expected="hr.null_rate(column), hr.row_count() or hr.freshness()",
            next_step="limits on models belong to gates, limits on live values to monitors",
        )
    if limit.op == "within" and limit.threshold[1] % DAY:
        raise DefinitionError(
            f"{definition.name}: row counts are compared by whole days",
            where=limit.location,
            got=limit.threshold[1],
            expected='of="7d"',
        )


def _rules(column: Column[Any], place: int) -> list[Rule]:
    import numpy as np

    found = []
    if not column.nullable:
        found.append(Rule(f"{column} is not null", column, place, lambda v: v is None, _null))
    if column.dtype == "float" and not column.allow_nan:
        finite = Rule(
            f"{column} is finite",
            column,
            place,
            lambda v: v is not None and not math.isfinite(v),
            lambda values: _on_numbers(values, lambda v: ~np.isfinite(v)),
        )
        found.append(finite)
    if column.dtype in ("instant", "date"):
        found += _bounds(column, place, EARLIEST, LATEST, "is in the years 1 to 9999")
    if column.ge is not None or column.le is not None:
        found += _declared_bounds(column, place)
    if column.matches is not None:
        found.append(_pattern(column, place, column.matches))
    if column.allowed is not None:
        found.append(_membership(column, place, column.allowed))
    return found


def _declared_bounds(column: Column[Any], place: int) -> list[Rule]:
    bounds = [b for b in (column.ge, column.le) if b is not None]
    if column.dtype not in NUMBERS or not all(math.isfinite(b) for b in bounds):
        raise DefinitionError(
            f"{column}: ge and le are finite numbers, for numbers",
            where=column.location,
            got=f"{column.dtype}, {bounds}",
            expected="an int or float column",
            next_step="isin= lists allowed values, matches= takes a pattern",
        )
    # An integer compares with an integer: as floats, large ones would be rounded.
    whole = column.dtype != "float"
    low = None if column.ge is None else math.ceil(column.ge) if whole else column.ge
    high = None if column.le is None else math.floor(column.le) if whole else column.le
    found = [] if low is None else _bounds(column, place, low, None, f">= {column.ge:g}")
    return found + ([] if high is None else _bounds(column, place, None, high, f"<= {column.le:g}"))


def _bounds(column: Column[Any], place: int, low: float | None, high: float | None, says: str) -> list[Rule]:
    """Return the rule that values lie within bounds; NaN lies within any, whether it may be there is asked apart."""

    def outside(v: Any) -> bool:
        return v is not None and ((low is not None and v < low) or (high is not None and v > high))

    def all_outside(values: pa.Array) -> Mask:
        return _on_numbers(
            values, lambda v: (v < low) if high is None else (v > high) if low is None else (v < low) | (v > high)
        )

    return [Rule(f"{column} {says}", column, place, outside, all_outside)]


def _pattern(column: Column[Any], place: int, pattern: str) -> Rule:
    """Return the rule that whole texts match. RE2 on both ways: linear in the text, whatever the pattern."""
    import pyarrow as pa
    import pyarrow.compute as pc

    anchored = f"^(?:{pattern})$"

    def unlike(values: pa.Array) -> Mask:
        wrong: Mask = pc.invert(pc.fill_null(pc.match_substring_regex(values, anchored), True)).to_numpy(
            zero_copy_only=False
        )
        return wrong

    @lru_cache(maxsize=4096)
    def one(value: str) -> bool:
        return bool(unlike(pa.array([value], pa.string()))[0])

    if column.dtype != "str":
        raise DefinitionError(f"{column}: matches= is for texts", where=column.location, got=column.dtype)
    try:
        one("")
    except pa.ArrowInvalid as error:
        raise DefinitionError(
            f"{column}: not a pattern",
            where=column.location,
            got=error,
            expected="RE2 syntax: regular expressions without look-around and back-references",
        ) from error
    return Rule(f"{column} matches {pattern}", column, place, lambda v: v is not None and one(v), unlike)


def _membership(column: Column[Any], place: int, allowed: tuple[Any, ...]) -> Rule:
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

    def strangers(values: pa.Array) -> Mask:
        if numeric:
            return _on_numbers(values, lambda v: ~np.isin(v, np.array(sorted(members), v.dtype)))
        known = pc.is_in(values, value_set=pa.array(sorted(members), pa.string()))
        return (pc.and_(pc.invert(known), pc.is_valid(values))).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]

    return Rule(
        f"{column} is one of {_few(allowed)}", column, place, lambda v: v is not None and v not in members, strangers
    )


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


def _null(values: pa.Array) -> Mask:
    nulls: Mask = values.is_null().to_numpy(zero_copy_only=False)
    return nulls


def _on_numbers(values: pa.Array, bad: Callable[[Any], Mask]) -> Mask:
    """Ask of the numbers only; null is never bad."""
    import numpy as np
    import pyarrow.compute as pc

    null = _null(values)
    filled = pc.fill_null(values, False if str(values.type) == "bool" else 0)
    numbers = filled.to_numpy(zero_copy_only=False)
    return bad(numbers.astype(np.int64) if numbers.dtype == bool else numbers) & ~null
