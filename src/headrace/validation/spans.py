"""Measure a table over time: nulls that are due, rows a day, periods without rows, arrivals."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.core.expressions import Column, Moment
from headrace.core.time import DAY, Instant, format_duration
from headrace.sources.definition import SourceDefinition
from headrace.sources.plan import moments_on
from headrace.validation.blocks import Block
from headrace.validation.definition import Honest, Missing, NullRate
from headrace.validation.measures import RowCountMeter
from headrace.validation.plan import Measure
from headrace.validation.record import CheckResult, Status
from headrace.validation.rules import numbers_of
from headrace.validation.statistics import demand, outcome

NAMED = 5


class NullShare:
    """Measure the share of nulls among the rows whose value is due at the verdict's moment."""

    def __init__(self, check: Measure, now: int) -> None:
        quantity = check.limit.quantity
        assert isinstance(quantity, NullRate)
        self.check, self.column, self.now = check, quantity.column, now
        self.rows = self.nulls = 0

    def part(self, block: Block) -> tuple[int, int]:
        """Return how many rows are due, and how many of them are null."""
        values = block.columns[self.column.name]
        due = self._due(block)
        if due is None:
            return len(values), values.null_count
        if not values.null_count:
            return int(due.sum()), 0
        return int(due.sum()), int((due & ~values.is_valid().to_numpy(zero_copy_only=False)).sum())

    def take(self, part: tuple[int, int]) -> None:
        """Take in what a block contributed."""
        self.rows, self.nulls = self.rows + part[0], self.nulls + part[1]

    def result(self, now: int) -> CheckResult:
        """Return the share, undefined while no row is due."""
        check, rows = self.check, self.rows
        if not rows:
            return outcome(check, None, "", 0, "no row has fallen due")
        share = self.nulls / rows
        status: Status = "passed" if check.limit.holds(share) else "failed"
        text = f"{share:.4g} of {rows} rows due"
        return CheckResult(check.name, check.severity, status, share, text, demand(check.limit), rows, self.nulls)

    def _due(self, block: Block) -> NDArray[np.bool_] | None:
        if self.column.due is None:
            return None
        base, offset = Moment.of(self.column.due).terms[0]
        moments = block.columns[base.name]
        due: NDArray[np.bool_] = numbers_of(moments) <= self.now - offset
        return due & moments.is_valid().to_numpy(zero_copy_only=False) if moments.null_count else due


class DayCounts:
    """Count each UTC day's rows, by event time, and judge every day that is over."""

    def __init__(self, check: Measure, definition: SourceDefinition) -> None:
        self.check, self.time = check, definition.time
        self.days: Counter[int] = Counter()

    def part(self, block: Block) -> dict[int, int]:
        """Return how many rows lie in each period."""
        return _periods(block, self.time, DAY)

    def take(self, part: dict[int, int]) -> None:
        """Take in what a block contributed."""
        self.days.update(part)

    def result(self, now: int) -> CheckResult:
        """Return the worst day."""
        state = {"days": {str(day): count for day, count in self.days.items()}, "first": min(self.days, default=None)}
        return RowCountMeter(self.check, state).measure(now)


class Periods:
    """Count the periods without rows, from the first row on, that are over."""

    def __init__(self, check: Measure, definition: SourceDefinition) -> None:
        quantity = check.limit.quantity
        assert isinstance(quantity, Missing)
        self.check, self.period, self.time = check, quantity.period, definition.time
        self.seen: set[int] = set()

    def part(self, block: Block) -> dict[int, int]:
        """Return how many rows lie in each period."""
        return _periods(block, self.time, self.period)

    def take(self, part: dict[int, int]) -> None:
        """Take in what a block contributed."""
        self.seen.update(part)

    def result(self, now: int) -> CheckResult:
        """Return how many periods are missing, the first of them as samples."""
        if not self.seen:
            return outcome(self.check, None, "", 0, "no row has come yet")
        return missing_periods(self.check, self.seen, min(self.seen), now // self.period)


def missing_periods(check: Measure, seen: set[int], first: int, end: int) -> CheckResult:
    """Return which periods from `first` to before `end` are not among the seen."""
    quantity, limit = check.limit.quantity, check.limit
    assert isinstance(quantity, Missing)
    if end <= first:
        return outcome(check, None, "", 0, "no further period is over")
    here = sum(first <= period < end for period in seen)
    count = end - first - here
    names: list[str] = []
    period = first
    while len(names) < min(NAMED, count):
        if period not in seen:
            names.append(_named(period * quantity.period, quantity.period))
        period += 1
    status: Status = "passed" if limit.holds(count) else "failed"
    text = f"{count} of {end - first} periods of {format_duration(quantity.period)} have no row"
    value = float(count)
    return CheckResult(check.name, check.severity, status, value, text, demand(limit), end - first, count, tuple(names))


class Arrivals:
    """Measure the time from the newest arrival to the verdict; without observed arrivals, from the newest event."""

    def __init__(self, check: Measure, definition: SourceDefinition) -> None:
        self.check, self.time = check, definition.time
        self.newest: int | None = None

    def part(self, block: Block) -> int | None:
        """Return the block's newest arrival."""
        if block.arrival is not None:
            return int(block.arrival.max()) if block.rows else None
        values = block.columns[self.time.name].drop_null()
        return int(numbers_of(values).max()) if len(values) else None

    def take(self, part: int | None) -> None:
        """Take in what a block contributed."""
        if part is not None:
            self.newest = part if self.newest is None else max(part, self.newest)

    def result(self, now: int) -> CheckResult:
        """Return the time since, undefined before the first."""
        if self.newest is None:
            return outcome(self.check, None, "", 0, "nothing has arrived yet")
        age = now - self.newest
        return outcome(self.check, age, f"{format_duration(age)}, since {Instant(self.newest).isoformat()}", 0)


class HonestShare:
    """Measure the share of values that had arrived by the moment that `known_at` names; null values say nothing."""

    def __init__(self, check: Measure, definition: SourceDefinition) -> None:
        quantity = check.limit.quantity
        assert isinstance(quantity, Honest)
        self.check, self.within, self.definition = check, quantity.within, definition
        self.columns = definition.columns if quantity.column is None else (quantity.column,)
        self.values = self.held = 0
        self.observed = True

    def part(self, block: Block) -> tuple[int, int] | None:
        """Return how many values there are whose moment is told, and how many had arrived by then."""
        if block.arrival is None:
            return None
        values = held = 0
        for column in self.columns:
            moment, known = self._moments(block, column)
            there = known & block.columns[column.name].is_valid().to_numpy(zero_copy_only=False)
            says = block.says(column)
            if says is not None:
                there &= says
            values += int(there.sum())
            held += int((block.arrival[there] <= moment[there] + self.within).sum())
        return values, held

    def take(self, part: tuple[int, int] | None) -> None:
        """Take in what a block contributed."""
        if part is None:
            self.observed = False
        else:
            self.values, self.held = self.values + part[0], self.held + part[1]

    def result(self, now: int) -> CheckResult:
        """Return the share, undefined where arrivals were not observed."""
        if not self.values or not self.observed:
            reason = "no value whose moment is known" if self.observed else "arrivals were not observed"
            return outcome(self.check, None, "", 0, reason)
        share, limit = self.held / self.values, self.check.limit
        status: Status = "passed" if limit.holds(share) else "failed"
        late = self.values - self.held
        text = f"{share:.4g} of {self.values} values had arrived in time"
        name, severity = self.check.name, self.check.severity
        return CheckResult(name, severity, status, share, text, demand(limit), self.values, late)

    def _moments(self, block: Block, column: Column[Any]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        moment = self.definition.moments[column]
        return moments_on(moment, block.table([c for c, _ in moment.terms]))


def _periods(block: Block, time: Column[Any], period: int) -> dict[int, int]:
    values = block.values(time)
    numbers = numbers_of(values.drop_null() if values.null_count else values) // period
    if len(numbers) and (low := int(numbers.min())) == int(numbers.max()):
        return {low: len(numbers)}
    found, counts = np.unique(numbers, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def _named(start: int, period: int) -> str:
    moment = Instant(start)
    return moment.day() if period % DAY == 0 else moment.isoformat()
