"""Write limits as sentences: quantity, comparison, threshold.

A quantity is measured by the stage that defines it; a limit only says what is demanded of the measured value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from headrace.core.errors import DefinitionError
from headrace.core.expressions import COMPARE, Expr
from headrace.core.location import user_location
from headrace.core.time import duration, format_duration

SIZES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True)
class Quantity:
    """Name something that can be measured; comparing it gives a `Limit`, never a truth value."""

    def __le__(self, threshold: float | str) -> Limit:
        return Limit(self, "<=", self.threshold(threshold))

    def __lt__(self, threshold: float | str) -> Limit:
        return Limit(self, "<", self.threshold(threshold))

    def __ge__(self, threshold: float | str) -> Limit:
        return Limit(self, ">=", self.threshold(threshold))

    def __gt__(self, threshold: float | str) -> Limit:
        return Limit(self, ">", self.threshold(threshold))

    def between(self, low: float, high: float) -> Limit:
        """Demand a value from `low` to `high`, both included."""
        return Limit(self, "between", (float(low), float(high)))

    @property
    def unit(self) -> Literal["number", "duration", "size"]:
        """Return how thresholds are written: "0.9", "15ms" or "20MB"."""
        return "number"

    def threshold(self, value: float | str) -> float:
        """Read a threshold: a number, a duration as microseconds, a size as bytes.

        Raises:
            DefinitionError: the text is no threshold for this quantity.
        """
        if not isinstance(value, str):
            return float(value)
        if self.unit == "number":
            raise DefinitionError(
                "not a number", where=user_location(), got=repr(value), expected=f"a number for {self}"
            )
        return float(duration(value) if self.unit == "duration" else size(value))

    def __bool__(self) -> bool:
        raise no_truth(self)


class DurationQuantity(Quantity):
    """Measure a time; thresholds are durations ("15ms") or microseconds."""

    @property
    def unit(self) -> Literal["number", "duration", "size"]:
        """Return "duration"."""
        return "duration"


class SizeQuantity(Quantity):
    """Measure a size; thresholds are texts such as "20MB" or bytes."""

    @property
    def unit(self) -> Literal["number", "duration", "size"]:
        """Return "size"."""
        return "size"


@dataclass(frozen=True, eq=False)
class Statistic(Quantity):
    """Name one number about many rows: `hr.mean(column)`, of the rows where a condition holds.

    Over windows it is a feature, over a delivery something to check. `parameter` is a quantile's share, `rows` the source
    whose rows are counted where no value is named.
    """

    kind: str
    value: Expr[Any] | None
    where: Expr[bool] | None = None
    parameter: float | None = None
    rows: type[Any] | None = None
    location: str = field(default_factory=user_location)

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def between(self, low: float, high: float) -> Limit:
        """Demand a value from `low` to `high`, both included."""
        return Limit(self, "between", (self.threshold(low), self.threshold(high)))

    def threshold(self, value: float | str) -> float:
        """Read a number; an integer stays one, for as a float a large one would be rounded."""
        return value if isinstance(value, int) else super().threshold(value)

    def __str__(self) -> str:
        counted = "" if self.rows is None else self.rows.__name__
        parts = [counted if self.value is None else str(self.value)]
        parts += [] if self.parameter is None else [f"{self.parameter:g}"]
        parts += [] if self.where is None else [f"where={self.where}"]
        return f"{self.kind}({', '.join(p for p in parts if p)})"


@dataclass(frozen=True)
class Limit:
    """Demand something of a quantity. `holds(value)` judges a measured value."""

    quantity: Quantity
    op: str
    threshold: Any
    location: str = field(default_factory=user_location, compare=False)

    def holds(self, value: float) -> bool:
        """Tell whether a measured value satisfies the limit; NaN satisfies none."""
        if self.op == "between":
            low, high = self.threshold
            return bool(low <= value <= high)
        return bool(COMPARE[self.op](value, self.threshold))

    def __bool__(self) -> bool:
        raise no_truth(self)

    def __str__(self) -> str:
        if self.op == "between":
            return f"{self.quantity} between {' and '.join(map(number_text, self.threshold))}"
        if isinstance(self.threshold, tuple):
            return f"{self.quantity} {self.op} {self.threshold}"
        return f"{self.quantity} {self.op} {self.shown(self.threshold)}"

    def shown(self, value: float) -> str:
        """Write a value in the quantity's own unit."""
        if self.quantity.unit == "duration":
            return format_duration(int(value))
        if self.quantity.unit == "size":
            return f"{value / 1e6:g}MB"
        return number_text(value)


def number_text(value: float) -> str:
    """Write a number: integers with all their digits, others with six.

    >>> number_text(2**53 + 1), number_text(0.25)
    ('9007199254740993', '0.25')
    """
    return str(value) if isinstance(value, int) else f"{value:g}"


def no_truth(what: object) -> DefinitionError:
    """Return the error for using a policy in an `if` or a chained comparison."""
    return DefinitionError(
        "a policy has no truth value",
        where=user_location(),
        got=f"{what} in an `if`, `and`, `or`, `not` or a chained comparison",
        next_step="list limits one by one, or use .between(low, high)",
    )


def size(text: str) -> int:
    """Return a size in bytes.

    >>> size("20MB")
    20000000

    Raises:
        DefinitionError: not a size.
    """
    number = text.rstrip("BkMGKi")
    unit = text[len(number) :]
    try:
        return int(float(number) * SIZES[unit])
    except (ValueError, KeyError) as error:
        raise DefinitionError(
            "not a size", where=user_location(), got=repr(text), expected="a number and B, kB, MB, GB, KiB, MiB or GiB"
        ) from error
