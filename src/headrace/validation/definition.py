"""Declare what data must satisfy before anything downstream may see it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, overload

from headrace.core.errors import DefinitionError
from headrace.core.expressions import Column
from headrace.core.limits import DurationQuantity, Limit, Quantity
from headrace.core.location import user_location
from headrace.core.time import duration

Severity = Literal["warn", "quarantine", "stop"]


@dataclass(frozen=True)
class NullRate(Quantity):
    """Measure the share of nulls among the rows whose value is due."""

    column: Column[Any]

    def __str__(self) -> str:
        return f"null_rate({self.column})"


@dataclass(frozen=True)
class RowCount(Quantity):
    """Count the rows of one day."""

    def within(self, share: float, *, of: str) -> Limit:
        """Demand a count within `share` (0.5: half) of the mean day over the period `of` before it."""
        return Limit(self, "within", (float(share), duration(of)))

    def __str__(self) -> str:
        return "row_count()"


@dataclass(frozen=True)
class Freshness(DurationQuantity):
    """Measure the time since the newest arrival."""

    def __str__(self) -> str:
        return "freshness()"


@dataclass(frozen=True)
class ForeignKey:
    """Demand that each value of `column` stands in another source's column."""

    column: Column[Any]
    target: Column[Any]
    location: str = field(default_factory=user_location, compare=False)

    def __str__(self) -> str:
        return f"foreign_key({self.column}, {self.target})"


@dataclass(frozen=True)
class Warned:
    """Hold a check whose failure only warns."""

    check: Limit | ForeignKey

    def __str__(self) -> str:
        return f"warn({self.check})"


Check = Limit | ForeignKey | Warned


def null_rate(column: Column[Any]) -> Quantity:
    """Measure the share of nulls; a row counts once its column's `due` has passed (or, without one, on arrival)."""
    return NullRate(column)


def row_count() -> RowCount:
    """Count each day's rows: `hr.row_count().within(0.5, of="7d")` compares with the week before."""
    return RowCount()


def freshness() -> Quantity:
    """Measure how long ago the newest row arrived: `hr.freshness() <= "3h"`."""
    return Freshness()


@overload
def foreign_key(column: Column[Any]) -> Any: ...
@overload
def foreign_key(column: Column[Any], target: Column[Any]) -> ForeignKey: ...
def foreign_key(column: Column[Any], target: Column[Any] | None = None) -> Any:
    """Declare a column that refers to another source's, or, with two columns, demand that every reference is found."""
    if target is None:
        return Column(role="foreign_key", references=column)
    return ForeignKey(column, target)


def warn(check: Limit | ForeignKey) -> Warned:
    """Let a failing check warn instead of stopping what comes after."""
    return Warned(check)


class Checks:
    """Hold a source's checks; types, ranges, patterns and sets declared on columns are always checked, row by row.

    Rows that fail are handled as `bad_rows` says: kept with a warning, quarantined, or stopping the whole delivery.
    More than `max_bad` of a delivery's rows stop it in any case: that is no longer a few bad rows.
    """

    def __init__(self, *checks: Check, bad_rows: Severity = "quarantine", max_bad: float = 0.5) -> None:
        for check in checks:
            if not isinstance(check, (Limit, ForeignKey, Warned)):
                raise DefinitionError(
                    "not a check", where=user_location(), got=check, expected="a limit such as hr.null_rate(c) <= 0.1"
                )
        if bad_rows not in ("warn", "quarantine", "stop"):
            raise DefinitionError(
                "unknown severity", where=user_location(), got=bad_rows, expected="warn, quarantine or stop"
            )
        self.checks = checks
        self.bad_rows: Severity = bad_rows
        self.max_bad = max_bad
        self.location = user_location()
