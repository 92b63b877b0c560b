"""Measure deliveries over time: null rates, row counts, freshness. Each keeps a small state, plain JSON when dumped."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from copy import copy as shallow
from itertools import islice
from typing import Any, Protocol, cast

import numpy as np

from headrace.core.expressions import Moment
from headrace.core.identity import row_hash
from headrace.core.time import DAY, Instant, format_duration
from headrace.sources.record import ARRIVAL, ROW_ID, RevealBatch
from headrace.sources.stated import Stated
from headrace.validation.definition import NullRate
from headrace.validation.plan import Measure
from headrace.validation.record import CheckResult, Status
from headrace.validation.statistics import demand

SAMPLES = 5
REMEMBERED = 20_000  # rows already counted that are still recognised when restated: 0.4 MB of state for each check


class Meter(Protocol):
    """Measure one check over deliveries; all its state is in `dump`."""

    check: Measure

    def add(self, batch: RevealBatch) -> None:
        """Take in the accepted reveals of a delivery."""
        ...

    def measure(self, now: int) -> CheckResult:
        """Return the check's result at the verdict's moment, and forget what no later one needs."""
        ...

    def copy(self) -> Meter:
        """Return a meter with a state of its own that is equal now."""
        ...

    def dump(self) -> dict[str, Any]:
        """Return the state as plain JSON."""
        ...


class NullRateMeter:
    """Measure the share of nulls among the rows that fell due in the days up to the verdict.

    A row falls due at its column's `due`, or, without one, when it arrives. Its value counts as null unless it had been
    stated, not null, by the first verdict after that. `period` (microseconds) bounds how far back is looked, by UTC
    days. The state grows with the rows that are not yet due and with nothing else.
    """

    def __init__(self, check: Measure, state: Mapping[str, Any], period: int) -> None:
        self.check, self.period = check, period
        self.column = cast("NullRate", check.limit.quantity).column
        self.due = None if self.column.due is None else Moment.of(self.column.due).terms[0]
        self.open = _unpack(state.get("open"))  # row -> when it falls due
        self.there = _unpack(state.get("there"))  # row -> 1 if its newest value is not null
        self.done = _unpack(state.get("done"))  # rows counted, so that a correction does not count them again
        self.days = {int(day): (rows, nulls) for day, (rows, nulls) in state.get("days", {}).items()}

    def add(self, batch: RevealBatch) -> None:
        """Take in the accepted reveals of a delivery."""
        name = self.column.name
        if self.due is None:
            says, null = _stated(batch, name), batch.table[name].is_null().to_numpy()
            arrived = batch.table[ARRIVAL].to_numpy()[says] // DAY
            for day, rows in zip(*np.unique(arrived, return_counts=True), strict=True):
                self._count(int(day), int(rows), int(null[says][arrived == day].sum()))
            return
        base, offset = self.due
        for row, value in _cells(batch, base.name):
            if value is not None and row not in self.done:
                self.open[row] = value + offset
        for row, value in _cells(batch, name):
            if row not in self.done:
                self.there[row] = int(value is not None)

    def measure(self, now: int) -> CheckResult:
        """Return the share, undefined while no row has fallen due."""
        for row in [row for row, due in self.open.items() if due <= now]:
            self._count(self.open.pop(row) // DAY, 1, 1 - self.there.pop(row, 0))
            self.done[row] = 1
        self._forget(now)
        rows, nulls = (sum(counts[i] for counts in self.days.values()) for i in (0, 1))
        check, limit = self.check, self.check.limit
        if not rows:
            return CheckResult(check.name, check.severity, "undefined", reason="no row has fallen due")
        share = nulls / rows
        measured = f"{share:.4g} of {rows} rows due in {format_duration(self.period)}"
        status: Status = "passed" if limit.holds(share) else "failed"
        return CheckResult(check.name, check.severity, status, share, measured, demand(check.limit), rows, nulls)

    def copy(self) -> Meter:
        """Return a meter with a state of its own that is equal now."""
        twin = shallow(self)
        twin.open, twin.there, twin.done = self.open.copy(), self.there.copy(), self.done.copy()
        twin.days = self.days.copy()
        return twin

    def dump(self) -> dict[str, Any]:
        """Return the state as plain JSON."""
        state: dict[str, Any] = {"open": _pack(self.open), "there": _pack(self.there), "done": _pack(self.done)}
        return state | {"days": {str(day): list(counts) for day, counts in self.days.items()}}

    def _count(self, day: int, rows: int, nulls: int) -> None:
        before = self.days.get(day, (0, 0))
        self.days[day] = (before[0] + rows, before[1] + nulls)

    def _forget(self, now: int) -> None:
        oldest = (now - self.period) // DAY
        self.days = {day: counts for day, counts in self.days.items() if day > oldest}
        _trim(self.done, REMEMBERED)
        if len(self.there) > len(self.open) + REMEMBERED:  # values of rows that never came
            early = {row: there for row, there in self.there.items() if row not in self.open}
            _trim(early, REMEMBERED)
            self.there = {row: there for row, there in self.there.items() if row in self.open} | early


class RowCountMeter:
    """Count each UTC day's rows, by event time, once each, and judge every day when it is over.

    `within(share, of=period)` compares with the mean day of the period before; until the rows seen reach back that far
    the check is undefined, and passes. A day without rows counts 0: a missing delivery fails.
    """

    def __init__(self, check: Measure, state: Mapping[str, Any]) -> None:
        self.check = check
        self.rows = _unpack(state.get("rows"))  # row -> its day, so that a restated or moved row counts once
        self.days = {int(day): count for day, count in state.get("days", {}).items()}
        self.first: int | None = state.get("first")
        self.judged: int | None = state.get("judged")

    def add(self, batch: RevealBatch) -> None:
        """Take in the accepted reveals of a delivery."""
        for row, value in _cells(batch, batch.source.time.name):
            if value is None:
                continue
            day, before = value // DAY, self.rows.pop(row, None)
            self.rows[row] = day
            if before is not None:
                self.days[before] = self.days.get(before, 0) - 1
            self.days[day] = self.days.get(day, 0) + 1
        if self.days:
            earliest = min(self.days)
            self.first = earliest if self.first is None else min(self.first, earliest)

    def measure(self, now: int) -> CheckResult:
        """Return the worst of the days that ended since the verdict before, the failing ones as samples."""
        check, last = self.check, now // DAY - 1
        if self.first is None or last < self.first:
            return CheckResult(check.name, check.severity, "undefined", reason="no day with rows is over")
        start = self.first if self.judged is None else self.judged + 1
        back = check.limit.threshold[1] // DAY if check.limit.op == "within" else 0
        counts = np.array([self.days.get(day, 0) for day in range(start - back, last + 1)], np.int64)
        known = np.arange(start, last + 1) - back >= self.first
        result = self._judge(counts, back, known, start) if start <= last else None
        if result is not None:
            self.judged = last
            self.days = {day: count for day, count in self.days.items() if day > last - max(back, 1)}
            _trim(self.rows, REMEMBERED)
        return result or CheckResult(check.name, check.severity, "undefined", reason="no further day is over")

    def _judge(self, counts: Any, back: int, known: Any, start: int) -> CheckResult:
        check, limit = self.check, self.check.limit
        if not known.any():
            why = f"fewer than {back} days before {_day(start + len(known) - 1)} have been seen"
            return CheckResult(check.name, check.severity, "undefined", reason=why)
        own = counts[back:]
        if back:
            total = np.concatenate([[0], np.cumsum(counts)])
            mean = (total[back:-1] - total[: -1 - back]) / back
            far = np.where(known, np.abs(own - mean) - limit.threshold[0] * mean, -np.inf)
            bad, worst = far > 0, int(np.argmax(far))
            wanted = f"within {limit.threshold[0]:g} of {mean[worst]:.1f}, the mean of {back}d before"
        else:
            bad = np.array([not limit.holds(int(count)) for count in own])
            worst, wanted = int(np.argmax(bad)), demand(check.limit)
        failing = [_day(start + int(i)) for i in np.flatnonzero(bad)]
        status: Status = "failed" if failing else "passed"
        measured = f"{own[worst]} rows on {_day(start + worst)}"
        return CheckResult(
            check.name,
            check.severity,
            status,
            float(own[worst]),
            measured,
            wanted,
            int(known.sum()),
            len(failing),
            tuple(failing[:SAMPLES]),
        )

    def copy(self) -> Meter:
        """Return a meter with a state of its own that is equal now."""
        twin = shallow(self)
        twin.rows, twin.days = self.rows.copy(), self.days.copy()
        return twin

    def dump(self) -> dict[str, Any]:
        """Return the state as plain JSON."""
        days = {str(day): count for day, count in self.days.items()}
        return {"rows": _pack(self.rows), "days": days, "first": self.first, "judged": self.judged}


class FreshnessMeter:
    """Measure the time from the newest accepted arrival to the verdict."""

    def __init__(self, check: Measure, state: Mapping[str, Any]) -> None:
        self.check = check
        self.newest: int | None = state.get("newest")

    def add(self, batch: RevealBatch) -> None:
        """Take in the accepted reveals of a delivery."""
        if len(batch):
            newest = int(batch.table[ARRIVAL].to_numpy().max())
            self.newest = newest if self.newest is None else max(self.newest, newest)

    def measure(self, now: int) -> CheckResult:
        """Return the time since the newest arrival, undefined before the first."""
        check = self.check
        if self.newest is None:
            return CheckResult(check.name, check.severity, "undefined", reason="nothing has arrived yet")
        age = now - self.newest
        status: Status = "passed" if check.limit.holds(age) else "failed"
        measured = f"{format_duration(age)}, since {Instant(self.newest).isoformat()}"
        return CheckResult(check.name, check.severity, status, float(age), measured, demand(check.limit))

    def copy(self) -> Meter:
        """Return a meter with a state of its own that is equal now."""
        return shallow(self)

    def dump(self) -> dict[str, Any]:
        """Return the state as plain JSON."""
        return {"newest": self.newest}


def _day(day: int) -> str:
    return Instant(day * DAY).day()


def _stated(batch: RevealBatch, name: str) -> Any:
    return Stated.of(batch.table).says(batch.source.index[batch.source.by_name[name]])


def _cells(batch: RevealBatch, name: str) -> Iterator[tuple[int, Any]]:
    """Yield (row, value) for each reveal that states a column, in order of arrival."""
    says = _stated(batch, name)
    if not says.any():
        return
    import pyarrow as pa

    table = batch.table.select([ROW_ID, name]).filter(pa.array(says))
    for row_id, value in zip(table[ROW_ID].to_pylist(), table[name].to_pylist(), strict=True):
        yield row_hash(row_id), value


def _trim(rows: dict[int, int], most: int) -> None:
    """Forget the oldest rows beyond `most`."""
    for row in list(islice(rows, max(len(rows) - most, 0))):
        del rows[row]


def _pack(rows: Mapping[int, int]) -> str:
    pairs = np.empty((len(rows), 2), "<i8")
    pairs[:, 0], pairs[:, 1] = np.fromiter(rows.keys(), "<i8", len(rows)), np.fromiter(rows.values(), "<i8", len(rows))
    return b64encode(pairs.tobytes()).decode()


def _unpack(text: str | None) -> dict[int, int]:
    pairs = np.frombuffer(b64decode(text or ""), "<i8").reshape(-1, 2)
    return dict(zip(pairs[:, 0].tolist(), pairs[:, 1].tolist(), strict=True))
