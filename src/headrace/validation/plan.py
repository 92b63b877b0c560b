"""Compile a source's checks: rules for single rows, and measures of deliveries. Pure; reads no data.

A row's rules give the same verdict for one event (`broken`) and for a table of reveals (`judge`); a rule sees only what
a reveal states, and of its column only values: null breaks no rule but "is not null".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headrace.core.errors import DefinitionError
from headrace.core.expressions import Column, Expr, columns_of, on_table, type_of
from headrace.core.limits import Limit, Statistic
from headrace.core.time import DAY
from headrace.sources.definition import SourceDefinition, definition_of
from headrace.validation.custom import condition_of, refuse_unreadable
from headrace.validation.definition import (
    Checks,
    Distance,
    ForeignKey,
    Freshness,
    Graded,
    Honest,
    Measured,
    Missing,
    NullRate,
    RowCheck,
    RowCount,
    Severity,
    Unique,
)
from headrace.validation.pandera import borrowed_from
from headrace.validation.rules import NUMBERS, Rule, rules_of

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Condition:
    """Demand something of several columns of a row; `holds` says of each row of a table true, false or null.

    Columns stand in the table under their own names in the declared types. Null is no fault.
    """

    name: str
    columns: tuple[Column[Any], ...]
    severity: Severity
    holds: Callable[[pa.Table], pa.ChunkedArray]


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
class Uniqueness:
    """Demand that no two rows have the same values in some columns; all but the first of them are bad rows."""

    check: Unique
    severity: Severity


@dataclass(frozen=True, eq=False)
class ValidationPlan:
    """Hold a source's compiled checks."""

    source: SourceDefinition
    rules: tuple[Rule, ...]
    conditions: tuple[Condition, ...]
    references: tuple[Reference, ...]
    uniques: tuple[Uniqueness, ...]
    measures: tuple[Measure, ...]
    bad_rows: Severity
    max_bad: float


def plan_validation(definition: SourceDefinition) -> ValidationPlan:
    """Compile a source's checks; without any, what the columns declare is checked and bad rows are quarantined.

    Raises:
        DefinitionError: a check does not fit its column or its source, or measures what nothing here can measure.
    """
    checks: Checks = Checks() if definition.checks is None else definition.checks
    rules = [rule for place, column in enumerate(definition.columns) for rule in rules_of(column, place)]
    borrowed = () if checks.schema is None else borrowed_from(checks.schema, definition, checks.location)
    declared = {rule.name for rule in rules}
    found: dict[type, list[Any]] = {Condition: [], Reference: [], Uniqueness: [], Measure: []}
    for given in (*checks.checks, *borrowed):
        if isinstance(given, Rule):
            if given.name not in declared:  # what both demand is demanded once
                rules.append(given)
            continue
        compiled = _compiled(definition, given, checks.bad_rows)
        found[type(compiled)].append(compiled)
    _refuse_doubles(definition, [c.name for c in found[Measure]] + [c.name for c in found[Condition]])
    conditions, references, uniques, measures = (tuple(found[kind]) for kind in found)
    return ValidationPlan(
        definition, tuple(rules), conditions, references, uniques, measures, checks.bad_rows, checks.max_bad
    )


def _compiled(definition: SourceDefinition, given: Any, bad_rows: Severity) -> Any:
    check, own = (given.check, given.severity) if isinstance(given, Graded) else (given, None)
    if isinstance(check, ForeignKey):
        if check.column.dtype != check.target.dtype:
            raise DefinitionError(
                f"{definition.name}: a reference to values of another type",
                where=check.location,
                got=f"{check.column}: {check.column.dtype}",
                expected=f"{check.target}: {check.target.dtype}",
            )
        return Reference(check, _place(definition, check.column, check.location), own or bad_rows)
    if isinstance(check, Unique):
        for column in check.columns:
            _place(definition, column, check.location)
        return Uniqueness(check, own or bad_rows)
    if isinstance(check, RowCheck):
        for column in check.columns:
            _place(definition, column, check.location)
        columns = check.columns or definition.columns
        return Condition(str(check), columns, own or bad_rows, condition_of(check, definition))
    if isinstance(check, Expr):
        return _expression(definition, check, own or bad_rows)
    _measurable(definition, check)
    return Measure(check, own or "stop")


def _expression(definition: SourceDefinition, check: Expr[Any], severity: Severity) -> Condition:
    columns = columns_of(check)
    for column in columns:
        _place(definition, column, check.location)
    if type_of(check) != "bool" or not columns:
        raise DefinitionError(
            f"{definition.name}: not a condition on its rows",
            where=check.location,
            got=str(check),
            expected="a comparison of columns, as arrived > departed",
        )
    return Condition(
        str(check).removeprefix("(").removesuffix(")"), columns, severity, lambda table: on_table(check, table)
    )


def _refuse_doubles(definition: SourceDefinition, names: list[str]) -> None:
    """Refuse two checks of one name: their histories could not be told apart."""
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise DefinitionError(
            f"{definition.name}: a check stands there twice",
            where=definition.location,
            got=doubled,
            expected="each check once",
            next_step="remove one, or give it another name=",
        )


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
    if isinstance(quantity, (NullRate, Distance)):
        _place(definition, quantity.column, limit.location)
    if isinstance(quantity, Honest) and quantity.column is not None:
        _place(definition, quantity.column, limit.location)
    if isinstance(quantity, Distance):
        _comparable(definition, quantity, limit.location)
    elif isinstance(quantity, Statistic):
        _computable(definition, quantity, limit.location)
    elif isinstance(quantity, Measured):
        refuse_unreadable(quantity.by, limit.location)
    elif not isinstance(quantity, (NullRate, RowCount, Freshness, Missing, Honest)):
        raise DefinitionError(
            f"{definition.name}: nothing a delivery can be measured by",
            where=limit.location,
            got=str(quantity),
            expected="hr.null_rate(column), hr.row_count(), hr.freshness(), hr.mean(column), hr.psi(column) and others",
            next_step="limits on models belong to gates, limits on live values to monitors",
        )
    bounds = limit.threshold if isinstance(limit.threshold, tuple) else (limit.threshold,)
    if not all(math.isfinite(bound) for bound in bounds):
        raise DefinitionError(f"{definition.name}: a limit is a finite number", where=limit.location, got=str(limit))
    if limit.op == "within" and limit.threshold[1] % DAY:
        raise DefinitionError(
            f"{definition.name}: row counts are compared by whole days",
            where=limit.location,
            got=limit.threshold[1],
            expected='of="7d"',
        )


def _computable(definition: SourceDefinition, quantity: Statistic, where: str) -> None:
    read = [e for e in (quantity.value, quantity.where) if e is not None]
    for expr in read:
        for column in columns_of(expr):
            _place(definition, column, where)
    kinds = ("count", "sum", "mean", "min", "max", "stddev", "rate", "quantile")
    dtype = None if quantity.value is None else type_of(quantity.value)
    numeric = dtype in (*NUMBERS, "bool") or quantity.kind == "count"
    boolean = dtype == "bool" or quantity.kind != "rate"
    condition = quantity.where is None or type_of(quantity.where) == "bool"
    own = quantity.rows is None or definition_of(quantity.rows) is definition
    exact = quantity.approx is None
    if quantity.kind not in kinds or not (numeric and boolean and condition and own and exact):
        raise DefinitionError(
            f"{definition.name}: nothing that can be computed over a delivery",
            where=where,
            got=f"{quantity} of {dtype or 'rows'}",
            expected=f"one of {', '.join(kinds)}, of numbers (rate and where= of conditions), exact: without approx=",
        )


def _comparable(definition: SourceDefinition, quantity: Distance, where: str) -> None:
    column = quantity.column
    numeric = column.dtype in ("int", "float")
    wrong = None
    if column.dtype in ("instant", "date"):
        wrong = "instants move on by themselves: compare something computed from them"
    elif quantity.kind == "ks" and not numeric:
        wrong = "ks compares numbers; hr.psi, hr.kl and hr.js compare categories too"
    elif quantity.against and numeric:
        wrong = "against= gives shares of categories; numbers are compared with a stored baseline"
    if wrong:
        raise DefinitionError(
            f"{definition.name}: a distance that means nothing",
            where=where,
            got=f"{quantity} of {column.dtype}",
            next_step=wrong,
        )
