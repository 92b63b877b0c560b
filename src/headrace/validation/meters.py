"""Choose how each check of a delivery is measured; what is measured within one delivery keeps no state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy as shallow
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.core.limits import Statistic
from headrace.sources.definition import SourceDefinition
from headrace.sources.record import RevealBatch
from headrace.validation.baseline import Baseline, ColumnTally, distance_result, given
from headrace.validation.blocks import blocks_of
from headrace.validation.custom import measured_by
from headrace.validation.definition import Distance, Honest, Measured, Missing, NullRate, RowCount
from headrace.validation.measures import FreshnessMeter, Meter, NullRateMeter, RowCountMeter
from headrace.validation.plan import Measure
from headrace.validation.record import CheckResult
from headrace.validation.rules import numbers_of
from headrace.validation.spans import HonestShare, missing_periods
from headrace.validation.statistics import Measurement, Moments, QuantileCount, outcome


def meter(
    measure: Measure, state: Mapping[str, Any], null_period: int, definition: SourceDefinition, baseline: Baseline
) -> Meter:
    """Return a check's meter with the state that an earlier one dumped, or, with {}, a new one."""
    quantity = measure.limit.quantity
    if isinstance(quantity, NullRate):
        return NullRateMeter(measure, state, null_period)
    if isinstance(quantity, RowCount):
        return RowCountMeter(measure, state)
    if isinstance(quantity, Missing):
        return MissingMeter(measure, state)
    if isinstance(quantity, Measured):
        return TableMeter(measure, definition)
    if isinstance(quantity, Distance):
        held = given(quantity) if quantity.against else baseline.get(quantity.column.name)
        return DistanceMeter(measure, quantity, held)
    if isinstance(quantity, Honest):
        return DeliveryMeter(measure, lambda: HonestShare(measure, definition))
    if isinstance(quantity, Statistic):
        kind = QuantileCount if quantity.kind == "quantile" else Moments
        return DeliveryMeter(measure, lambda: kind(measure, quantity))
    return FreshnessMeter(measure, state)


class Stateless:
    """Remember nothing from one delivery to the next."""

    def copy(self) -> Meter:
        """Return an equal meter."""
        twin: Any = shallow(self)
        return twin  # type: ignore[no-any-return]

    def dump(self) -> dict[str, Any]:
        """Return the state, which is none."""
        return {}


class DeliveryMeter(Stateless):
    """Measure each delivery by itself."""

    def __init__(self, check: Measure, make: Callable[[], Measurement]) -> None:
        self.check, self.make = check, make
        self.measurement = make()

    def add(self, batch: RevealBatch) -> None:
        """Take in the accepted reveals of a delivery."""
        for block in blocks_of(batch):
            self.measurement.take(self.measurement.part(block))

    def measure(self, now: int) -> CheckResult:
        """Return the delivery's result, and begin anew."""
        found, self.measurement = self.measurement.result(now), self.make()
        return found


class DistanceMeter(Stateless):
    """Measure how far each delivery lies from its column's baseline."""

    def __init__(self, check: Measure, quantity: Distance, baseline: Any) -> None:
        self.check, self.quantity, self.baseline = check, quantity, baseline
        self.tally = self._new()

    def _new(self) -> ColumnTally | None:
        if self.baseline is None:
            return None
        return ColumnTally(self.quantity.column, self.baseline, fine=self.quantity.kind == "ks")

    def add(self, batch: RevealBatch) -> None:
        """Take in the accepted reveals of a delivery."""
        if self.tally is not None:
            for block in blocks_of(batch):
                self.tally.take(self.tally.part(block))

    def measure(self, now: int) -> CheckResult:
        """Return the delivery's result, and begin anew."""
        found, self.tally = distance_result(self.check, self.tally), self._new()
        return found


class TableMeter(Stateless):
    """Measure each delivery by a query or a function over all of it."""

    def __init__(self, check: Measure, definition: SourceDefinition) -> None:
        self.check, self.definition = check, definition
        self.tables: list[pa.Table] = []

    def add(self, batch: RevealBatch) -> None:
        """Take in the accepted reveals of a delivery."""
        self.tables.append(batch.table)

    def measure(self, now: int) -> CheckResult:
        """Return the delivery's result, and begin anew; nothing is asked of an empty delivery."""
        table, self.tables = pa.concat_tables(self.tables), []
        quantity, limit = self.check.limit.quantity, self.check.limit
        assert isinstance(quantity, Measured)
        if not table.num_rows:
            return outcome(self.check, None, "", 0, "no rows")
        value = measured_by(quantity.by, table, self.definition, limit.location)
        return outcome(self.check, value, f"{value:.6g}", table.num_rows)


class MissingMeter:
    """Judge each period once, when it is over, by whether a row lies in it."""

    def __init__(self, check: Measure, state: Mapping[str, Any]) -> None:
        quantity = check.limit.quantity
        assert isinstance(quantity, Missing)
        self.check, self.period = check, quantity.period
        self.seen: set[int] = set(state.get("seen", ()))
        self.next: int | None = state.get("next")  # the first period that is not yet judged

    def add(self, batch: RevealBatch) -> None:
        """Take in the accepted reveals of a delivery."""
        values = batch.table[batch.source.time.name].combine_chunks().drop_null()
        found = np.unique(numbers_of(values) // self.period).tolist()
        if found:
            self.next = found[0] if self.next is None else self.next
            self.seen.update(period for period in found if self.next is not None and period >= self.next)

    def measure(self, now: int) -> CheckResult:
        """Return how many of the periods that ended since the verdict before have no row."""
        if self.next is None:
            return outcome(self.check, None, "", 0, "no row has come yet")
        end = now // self.period
        found = missing_periods(self.check, self.seen, self.next, end)
        if end > self.next:
            self.next = end
            self.seen = {period for period in self.seen if period >= end}
        return found

    def copy(self) -> Meter:
        """Return a meter with a state of its own that is equal now."""
        twin = shallow(self)
        twin.seen = set(self.seen)
        return twin

    def dump(self) -> dict[str, Any]:
        """Return the state as plain JSON."""
        return {"seen": sorted(self.seen), "next": self.next}
