"""Compute one number about a delivery block by block: counts and integers exactly, floats to the last few bits.

Each measurement has a part, computed from one block alone (in any thread), and takes parts in any order.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.core.expressions import Expr, columns_of, on_table
from headrace.core.limits import Limit, Statistic, number_text
from headrace.validation.blocks import Block
from headrace.validation.plan import Measure
from headrace.validation.record import CheckResult, Status
from headrace.validation.rules import numbers_of

WORD, LOW = 32, 0xFFFFFFFF
BUCKETS = 20  # bits of a float's order that a quantile is shown to: 8 of them mantissa, so within 0.4 %


class Measurement(Protocol):
    """Measure one check over blocks."""

    def part(self, block: Block) -> Any:
        """Return what a block contributes."""
        ...

    def take(self, part: Any) -> None:
        """Take in what a block contributed."""
        ...

    def result(self, now: int) -> CheckResult:
        """Return the result at the verdict's moment."""
        ...


def outcome(check: Measure, value: float | None, text: str, rows: int, reason: str = "") -> CheckResult:
    """Return the result of a measured number; None is undefined, and NaN satisfies no limit."""
    if value is None:
        return CheckResult(check.name, check.severity, "undefined", rows=rows, reason=reason)
    status: Status = "passed" if check.limit.holds(value) else "failed"
    kept = value if math.isfinite(value) else None
    return CheckResult(check.name, check.severity, status, kept, text, demand(check.limit), rows)


def demand(limit: Limit) -> str:
    """Write what a limit demands, in the quantity's own unit."""
    if limit.op == "between":
        return f"between {' and '.join(number_text(bound) for bound in limit.threshold)}"
    return f"{limit.op} {limit.shown(limit.threshold)}"


class Moments:
    """Measure count, sum, mean, min, max, stddev or rate; where there is no value only a count and a sum are defined."""

    def __init__(self, check: Measure, quantity: Statistic) -> None:
        self.check, self.quantity = check, quantity
        self.rows = 0
        self.total: float = 0
        self.sums: list[float] = []
        self.mean, self.squares = 0.0, 0.0
        self.least: Any = None
        self.most: Any = None

    def part(self, block: Block) -> Any:
        """Return what a block contributes."""
        if self.quantity.kind == "count":
            return _counted(self.quantity, block)
        numbers = _numbers(self.quantity, block)
        if not numbers.size:
            return None
        integers = numbers.dtype.kind != "f"
        with np.errstate(all="ignore"):  # infinities and NaN end in a value that satisfies no limit
            total = _exact_sum(numbers) if integers else float(numbers.sum())
        extent = (numbers.min().item(), numbers.max().item()) if self.quantity.kind in ("min", "max") else (0, 0)
        mean, squares = total / numbers.size, 0.0
        if self.quantity.kind == "stddev":
            with np.errstate(all="ignore"):
                squares = float(np.square(numbers - mean).sum())
        return numbers.size, total, mean, squares, extent

    def take(self, part: Any) -> None:
        """Take in what a block contributed."""
        if part is None:
            return
        if isinstance(part, int):
            self.rows += part
            return
        rows, total, mean, squares, (least, most) = part
        gap, together = mean - self.mean, self.rows + rows
        # Chan, Golub and LeVeque (1979): squares of deviations add up without losing the mean's digits.
        self.squares += squares + gap * gap * self.rows * rows / together
        self.mean += gap * rows / together
        self.rows = together
        if isinstance(total, int):
            self.total += total
        else:
            self.sums.append(total)
        self.least = _lower(self.least, least)
        self.most = None if (highest := _lower(_minus(self.most), -most)) is None else -highest

    def result(self, now: int) -> CheckResult:
        """Return the result."""
        value = self._value()
        text = "" if value is None else f"{number_text(value)} over {self.rows} values"
        return outcome(self.check, value, text, self.rows, "too few values")

    def _value(self) -> float | None:
        kind, total = self.quantity.kind, _added(self.sums) if self.sums else self.total
        if kind in ("count", "sum"):
            return self.rows if kind == "count" else total
        if not self.rows:
            return None
        if kind == "stddev":
            return math.sqrt(self.squares / (self.rows - 1)) if self.rows > 1 else None
        extent: dict[str, float] = {"min": self.least, "max": self.most}
        return extent.get(kind, total / self.rows)


class QuantileCount:
    """Judge an inverse-CDF quantile exactly, by counting the values up to the limit; show it within 0.4 %.

    The smallest value that a share q of the values do not exceed is at most c exactly if that share of them is.
    """

    def __init__(self, check: Measure, quantity: Statistic) -> None:
        self.check, self.quantity = check, quantity
        limit = check.limit
        self.bounds = limit.threshold if limit.op == "between" else (limit.threshold,)
        self.rows = 0
        self.counts = np.zeros((len(self.bounds), 2), np.int64)
        self.buckets = np.zeros(1 << BUCKETS, np.int64)
        self.nans = 0

    def part(self, block: Block) -> Any:
        """Return how many values lie below and up to each bound, and in each bucket."""
        numbers = _numbers(self.quantity, block)
        nans = int(np.count_nonzero(numbers != numbers))
        counts = [_up_to(numbers, bound) for bound in self.bounds]
        floats = numbers[numbers == numbers].astype(np.float64) + 0.0
        words = floats.view(np.int64)
        ordered = words ^ ((words >> 63) & np.int64(2**63 - 1))
        places = (ordered >> (64 - BUCKETS)) + (1 << (BUCKETS - 1))
        return numbers.size, nans, counts, np.bincount(places, minlength=1 << BUCKETS)

    def take(self, part: Any) -> None:
        """Take in what a block contributed."""
        rows, nans, counts, buckets = part
        self.rows, self.nans = self.rows + rows, self.nans + nans
        self.counts += np.array(counts, np.int64)
        self.buckets += buckets

    def result(self, now: int) -> CheckResult:
        """Return the result."""
        if not self.rows:
            return outcome(self.check, None, "", 0, "no values")
        if self.nans:
            return outcome(self.check, math.nan, f"{self.nans} of {self.rows} values are NaN", self.rows)
        q = self.quantity.parameter or 1.0
        needed = math.ceil(q * self.rows)
        value, limit = self._shown(needed), self.check.limit
        held = [(below < needed, upto >= needed) for below, upto in self.counts.tolist()]
        reached = {"<=": held[0][1], "<": not held[0][0], ">=": held[0][0], ">": not held[0][1]}
        holds = held[0][0] and held[1][1] if limit.op == "between" else reached[limit.op]
        text = f"about {value:.4g} over {self.rows} values"
        status: Status = "passed" if holds else "failed"
        kept = value if math.isfinite(value) else None
        return CheckResult(self.check.name, self.check.severity, status, kept, text, demand(limit), self.rows)

    def _shown(self, needed: int) -> float:
        place = int(np.searchsorted(np.cumsum(self.buckets), needed))
        ordered = np.int64(place - (1 << (BUCKETS - 1))) << np.int64(64 - BUCKETS)
        words = ordered ^ ((ordered >> 63) & np.int64(2**63 - 1))
        return float(np.array([words], np.int64).view(np.float64)[0])


def evaluated(expr: Expr[Any], block: Block) -> pa.Array:
    """Return an expression's values for the rows that state all its columns."""
    columns = columns_of(expr)
    values = on_table(expr, block.table(columns)).combine_chunks()
    says = block.says(*columns)
    return values if says is None else values.filter(pa.array(says))


def _numbers(quantity: Statistic, block: Block) -> NDArray[Any]:
    """Return the values that are there, of the rows where the condition holds."""
    assert quantity.value is not None
    if quantity.where is None:
        values = evaluated(quantity.value, block)
    else:
        values = _filtered(quantity.value, quantity.where, block)
    return numbers_of(values.drop_null() if values.null_count else values)


def _filtered(value: Expr[Any], where: Expr[Any], block: Block) -> pa.Array:
    columns = tuple(dict.fromkeys((*columns_of(value), *columns_of(where))))
    table, says = block.table(columns), block.says(*columns)
    kept = pc.fill_null(on_table(where, table), False)
    if says is not None:
        kept = pc.and_(kept, pa.array(says))
    return on_table(value, table).filter(kept).combine_chunks()


def _counted(quantity: Statistic, block: Block) -> int:
    if quantity.value is None and quantity.where is None:
        return block.rows
    if quantity.value is None:
        assert quantity.where is not None
        return int(pc.sum(evaluated(quantity.where, block)).as_py() or 0)
    values = (
        evaluated(quantity.value, block) if quantity.where is None else _filtered(quantity.value, quantity.where, block)
    )
    there: int = len(values) - values.null_count
    return there


def _exact_sum(numbers: NDArray[Any]) -> int:
    """Add integers up without overflow: halves of 32 bits, each far from the end of 64."""
    whole = numbers.astype(np.int64)
    high: int = (whole >> WORD).sum().item()
    low: int = (whole & LOW).sum().item()
    return (high << WORD) + low


def _added(sums: list[float]) -> float:
    """Add floats up with one rounding; infinities of both signs make NaN."""
    return math.fsum(sums) if all(map(math.isfinite, sums)) else float(np.sum(sums))


def _up_to(numbers: NDArray[Any], bound: float) -> tuple[int, int]:
    """Count the numbers below and up to a bound; integers compare with integers."""
    if numbers.dtype.kind == "f":
        return int(np.count_nonzero(numbers < bound)), int(np.count_nonzero(numbers <= bound))
    return int(np.count_nonzero(numbers < math.ceil(bound))), int(np.count_nonzero(numbers <= math.floor(bound)))


def _lower(one: Any, other: Any) -> Any:
    if one is None or other is None:
        return other if one is None else one
    return one if one != one or one <= other else other


def _minus(value: Any) -> Any:
    return None if value is None else -value
