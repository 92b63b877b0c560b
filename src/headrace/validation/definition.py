"""Declare what data must satisfy before anything downstream may see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, overload

from headrace.core.errors import DefinitionError
from headrace.core.expressions import Column, Expr
from headrace.core.limits import DurationQuantity, Limit, Quantity
from headrace.core.location import user_location
from headrace.core.time import duration, format_duration

Severity = Literal["warn", "quarantine", "stop"]
DistanceKind = Literal["psi", "kl", "js", "ks"]


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
class Missing(Quantity):
    """Count the periods that have no row."""

    period: int

    def __str__(self) -> str:
        return f"missing({format_duration(self.period)})"


@dataclass(frozen=True)
class Distance(Quantity):
    """Measure how far a delivery's values of a column lie from a distribution: a baseline, or shares given here."""

    kind: DistanceKind
    column: Column[Any]
    against: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}({self.column})"


@dataclass(frozen=True)
class Honest(Quantity):
    """Measure the share of values that arrived no later than their `known_at` says, give or take `within`."""

    column: Column[Any] | None
    within: int

    def __str__(self) -> str:
        parts = ["" if self.column is None else str(self.column)]
        parts += [f"within={format_duration(self.within)}"] if self.within else []
        return f"known_at_honest({', '.join(p for p in parts if p)})"


@dataclass(frozen=True)
class Measured(Quantity):
    """Measure a whole delivery by an SQL query or a function."""

    by: str | Callable[[Any], Any]

    def __str__(self) -> str:
        return f"measure({_shown(self.by)})"


@dataclass(frozen=True)
class ForeignKey:
    """Demand that each value of `column` stands in another source's column."""

    column: Column[Any]
    target: Column[Any]
    location: str = field(default_factory=user_location, compare=False)

    def __str__(self) -> str:
        return f"foreign_key({self.column}, {self.target})"


@dataclass(frozen=True)
class Unique:
    """Demand that no two rows of a delivery have the same values in some columns; a null is like no other."""

    columns: tuple[Column[Any], ...]
    location: str = field(default_factory=user_location, compare=False)

    def __str__(self) -> str:
        return f"unique({', '.join(map(str, self.columns))})"


@dataclass(frozen=True)
class RowCheck:
    """Demand of each row what an SQL condition or a function says; null is no fault."""

    holds: str | Callable[[Any], Any]
    columns: tuple[Column[Any], ...]
    name: str = ""
    location: str = field(default_factory=user_location, compare=False)

    def __str__(self) -> str:
        return self.name or f"check_rows({_shown(self.holds)})"


Plain = Limit | ForeignKey | Unique | RowCheck | Expr[Any]


@dataclass(frozen=True, eq=False)
class Graded:
    """Hold a check with a severity of its own."""

    check: Plain
    severity: Severity

    def __str__(self) -> str:
        return f"{self.severity}({self.check})"


Check = Plain | Graded


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


def unique(*columns: Column[Any]) -> Unique:
    """Demand that no two rows of a delivery have the same values in all of `columns`.

    The first row stays, the later ones are bad rows. A row with a null among the columns is like no other.

    Raises:
        DefinitionError: no column given.
    """
    if not columns:
        raise DefinitionError("unique needs a column", where=user_location(), expected="hr.unique(Orders.order_id)")
    return Unique(columns)


def missing(period: str) -> Quantity:
    """Count the periods without a row, by event time, from the first row on: `hr.missing("1d") <= 0`.

    Periods are whole ones since 1970 in UTC; one counts once it is over.
    """
    return Missing(duration(period))


def psi(column: Column[Any], *, against: Mapping[Any, float] | None = None) -> Quantity:
    """Measure the population stability index of a delivery's values: `hr.psi(Orders.amount) <= 0.2`.

    Numbers are counted over the baseline's deciles, other values by category; nulls are a bin of their own. The baseline
    is what `headrace baseline set` stored, or the shares of categories in `against`.
    """
    return _distance("psi", column, against)


def kl(column: Column[Any], *, against: Mapping[Any, float] | None = None) -> Quantity:
    """Measure the Kullback-Leibler divergence, in nats, of a delivery's values from the baseline; see `hr.psi`.

    A share below 0.0001 counts as that, so that one new category is far and not infinitely far.
    """
    return _distance("kl", column, against)


def js(column: Column[Any], *, against: Mapping[Any, float] | None = None) -> Quantity:
    """Measure the Jensen-Shannon distance (base 2, from 0 to 1) between a delivery and the baseline; see `hr.psi`."""
    return _distance("js", column, against)


def ks(column: Column[Any]) -> Quantity:
    """Measure the largest gap between the cumulative distributions of a delivery's numbers and the baseline's.

    Measured at the baseline's 200 quantiles, so at most 0.005 below the Kolmogorov-Smirnov statistic of all values.
    """
    return _distance("ks", column, None)


def known_at_honest(column: Column[Any] | None = None, *, within: str = "0s") -> Quantity:
    """Measure the share of values that had arrived by the moment at which `known_at` says that they are known.

    `hr.known_at_honest(within="10m") >= 0.99` allows ten minutes. Of one column, or of all; only where arrivals were
    observed.
    """
    return Honest(column, duration(within))


def check_rows(holds: str | Callable[[Any], Any], *columns: Column[Any], name: str = "") -> RowCheck:
    """Demand something of each row that no expression says, in SQL or by a function.

    A text is an SQL condition over the source's columns, as "length(email) < 200". A function gets an Arrow table of the
    columns and returns one truth value for each row. `columns` are those that must be stated; all, if none is named.
    """
    return RowCheck(holds, columns, name)


def measure(by: str | Callable[[Any], Any]) -> Quantity:
    """Measure a delivery by one number: `hr.measure("select max(amount) - min(amount) from data") <= 100`.

    A text is an SQL query over the table `data`, read only; a function gets the delivery as an Arrow table.
    """
    return Measured(by)


def warn(check: Plain) -> Graded:
    """Let a failing check warn instead of what it would do."""
    return Graded(check, "warn")


def stop(check: Plain) -> Graded:
    """Let a single row that breaks a check stop the whole delivery."""
    return Graded(check, "stop")


class Checks:
    """Hold a source's checks; types, ranges, patterns and sets declared on columns are always checked, row by row.

    A check is a limit (`hr.null_rate(c) <= 0.1`), a condition that each row must meet (`arrived > departed`; null is
    no fault), or one of `hr.unique`, `hr.foreign_key`, `hr.check_rows`; `hr.warn` and `hr.stop` give it another severity.
    Rows that fail are handled as `bad_rows` says: kept with a warning, quarantined, or stopping the whole delivery.
    More than `max_bad` of a delivery's rows stop it in any case: that is no longer a few bad rows.
    """

    def __init__(self, *checks: Check, bad_rows: Severity = "quarantine", max_bad: float = 0.5) -> None:
        for check in checks:
            if not isinstance(check, (Limit, ForeignKey, Unique, RowCheck, Graded, Expr)):
                raise DefinitionError(
                    "not a check",
                    where=user_location(),
                    got=check,
                    expected="a limit such as hr.null_rate(c) <= 0.1, or a condition such as arrived > departed",
                )
        if bad_rows not in ("warn", "quarantine", "stop"):
            raise DefinitionError(
                "unknown severity", where=user_location(), got=bad_rows, expected="warn, quarantine or stop"
            )
        self.checks = checks
        self.schema: Any = None
        self.bad_rows: Severity = bad_rows
        self.max_bad = max_bad
        self.location = user_location()

    @classmethod
    def from_pandera(
        cls, schema: Any, *checks: Check, bad_rows: Severity = "quarantine", max_bad: float = 0.5
    ) -> Checks:
        """Take over what a pandera schema or model demands, beside further checks.

        Types, nulls, uniqueness and pandera's own checks of single values become rules; what cannot be taken over is
        refused when the source is planned. Columns are matched by their names in the data. A check that pandera only
        warns about warns here too. Patterns are read as RE2.
        """
        found = cls(*checks, bad_rows=bad_rows, max_bad=max_bad)
        found.schema = schema
        return found


def _distance(kind: DistanceKind, column: Column[Any], against: Mapping[Any, float] | None) -> Distance:
    shares = tuple((str(name), float(share)) for name, share in (against or {}).items())
    if any(not 0 <= share <= 1 for _, share in shares) or (shares and abs(sum(s for _, s in shares) - 1) > 1e-6):
        raise DefinitionError(
            f"{kind}({column}): shares of categories",
            where=user_location(),
            got=dict(shares),
            expected="shares from 0 to 1 that add up to 1",
        )
    return Distance(kind, column, shares)


def _shown(by: str | Callable[[Any], Any]) -> str:
    return " ".join(by.split()) if isinstance(by, str) else getattr(by, "__name__", "function")
