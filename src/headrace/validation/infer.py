"""Suggest what a source should check from a sample: what each column holds, and checks that the sample passes.

For people to review. Types, names and keys are those of `sources.infer`, which also writes the class.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.core.expressions import Column
from headrace.core.time import DAY
from headrace.sources.definition import SourceDefinition
from headrace.sources.infer import code_of, declarable
from headrace.validation.definition import row_count
from headrace.validation.measures import RowCountMeter
from headrace.validation.plan import Measure

FEW = 20  # distinct texts up to which a column is a set, if each stands there 20 times on average
SHAPES = 1_000  # texts whose shape is read
RUNS = re.compile(r"[0-9]+|[A-Z]+|[a-z]+|[^0-9A-Za-z]")
CLASSES = (("[0-9]", str.isdigit), ("[A-Z]", str.isupper), ("[a-z]", str.islower))
WIDE = 0.5  # standard deviations that a delivery's mean may lie from the sample's
TINY, HUGE = 1e-100, 1e100  # what a mean is judged by lies between
TWO_WEEKS = 14  # days of rows from which each is compared with those before


@dataclass(frozen=True)
class ColumnFacts:
    """Hold what a sample shows of a column, `name` in the data, that a source can declare as `dtype`.

    `nan` tells of values that are no finite numbers; such columns have no `mean`.
    """

    name: str
    dtype: str
    nulls: int
    rows: int
    low: Any = None
    high: Any = None
    mean: float | None = None
    sd: float | None = None
    distinct: int = 0
    members: tuple[str, ...] = ()
    pattern: str | None = None
    nan: bool = False

    @property
    def unique(self) -> bool:
        """Tell whether every row has a value, and no two the same."""
        return self.distinct == self.rows and not self.nulls and self.rows > 0

    @property
    def constraints(self) -> dict[str, Any]:
        """Return the constraints that the column keeps, rounded outwards, by their names in `hr.column`."""
        found: dict[str, Any] = {}
        if self.dtype in ("int", "float") and self.low is not None and not self.unique:
            bounds = {"ge": 0 if self.low >= 0 else -rounded_up(-self.low), "le": bound_above(self.high)}
            found = {key: bound for key, bound in bounds.items() if math.isfinite(bound)}
        if self.members:
            found["isin"] = list(self.members)
        elif self.pattern is not None:
            found["matches"] = self.pattern
        return found | ({"allow_nan": True} if self.nan else {})


Facts = Mapping[str, ColumnFacts]


def facts_of(table: pa.Table) -> dict[str, ColumnFacts]:
    """Return what a table shows of each column whose type a source can declare, by its name; others are left out."""
    return {name: _facts(name, dtype, table[name].combine_chunks()) for name, dtype in declarable(table).items()}


def contract_of(definition: SourceDefinition, facts: Facts) -> str:
    """Return an inferred source as code: columns with their constraints, then checks that its table passes."""
    constraints = {c.name: _constraints(c, facts[data_name(c)]) for c in definition.columns}
    return code_of(definition, constraints=constraints, checks=_checks(definition, facts))


def data_name(column: Column[Any]) -> str:
    """Return the name in the data of an inferred source's column."""
    return column.renamed or column.name


def rounded_up(value: float) -> float:
    """Return a positive number rounded up to one digit: 8140 to 9000, 0.31 to 0.4; itself beyond what floats hold."""
    if value <= 0:
        return 0
    if math.isinf(value):
        return value
    digit, power = f"{value:e}".split("e")
    found = next(f for up in (0, 1) if (f := float(f"{math.ceil(float(digit)) + up}e{power}")) >= value)
    if not math.isfinite(found):
        return value
    return int(found) if 1 <= found < 2**53 else found


def bound_above(value: float) -> float:
    """Return the largest value that a contract allows where the sample's largest is `value`."""
    if isinstance(value, int) and abs(value) > 2**53:
        return value
    return rounded_up(value) if value > 0 else 0


def _facts(name: str, dtype: str, values: pa.Array) -> ColumnFacts:
    there = values.drop_null()
    distinct = pc.count_distinct(there).as_py()
    fixed: dict[str, Any] = {"name": name, "dtype": dtype}
    fixed |= {"nulls": values.null_count, "rows": len(values), "distinct": distinct}
    if dtype in ("int", "float") and len(there):
        return ColumnFacts(**fixed, **_extent(there, dtype))
    if dtype == "str" and len(there):
        few = distinct <= FEW and len(there) >= FEW * distinct
        members = tuple(sorted(pc.unique(there).to_pylist())) if few else ()
        return ColumnFacts(**fixed, members=members, pattern=None if few else _shape(there))
    return ColumnFacts(**fixed)


def _extent(there: pa.Array, dtype: str) -> dict[str, Any]:
    """Return limits and moments of numbers that are there."""
    numbers = there.cast(pa.float64(), safe=False)
    ordered = numbers.filter(pc.invert(pc.is_nan(numbers)))
    if not len(ordered):
        return {"nan": True}
    low, high = pc.min_max(ordered if dtype == "float" else there).as_py().values()
    if dtype == "int":
        low, high = int(low), int(high)
    if not pc.all(pc.is_finite(numbers)).as_py():
        return {"low": low, "high": high, "nan": True}
    sd = pc.stddev(numbers, ddof=1).as_py() if len(numbers) > 1 else None
    return {"low": low, "high": high, "mean": float(pc.mean(numbers).as_py()), "sd": sd}


def _shape(texts: pa.Array) -> str | None:
    """Return a pattern that all texts have: runs of digits and letters, and what stands between; None if they differ."""
    found: list[str] | None = None
    sizes: list[tuple[int, int]] = []
    for text in texts.slice(0, SHAPES).to_pylist():
        runs = RUNS.findall(text)
        kinds = [next((c for c, test in CLASSES if test(run) and run.isascii()), re.escape(run)) for run in runs]
        if found is None:
            found, sizes = kinds, [(len(run), len(run)) for run in runs]
        if found != kinds:
            return None
        sizes = [(min(low, len(r)), max(high, len(r))) for (low, high), r in zip(sizes, runs, strict=True)]
    if not found or len(found) > 12:
        return None
    pairs = zip(found, sizes, strict=True)
    pattern = "".join(kind + _times(*size) if kind.startswith("[") else kind for kind, size in pairs)
    fits = pc.match_substring_regex(texts, f"^(?:{pattern})$")
    return pattern if fits.false_count == 0 else None


def _times(low: int, high: int) -> str:
    return f"{{{low}}}" if low == high and low <= 12 else "+"


def _constraints(column: Column[Any], facts: ColumnFacts) -> dict[str, Any]:
    """Return the constraints that a column can be given: what names a thing has no size."""
    taken = {"column": ("ge", "le", "isin", "matches", "allow_nan"), "entity": ("isin", "matches")}
    return {key: value for key, value in facts.constraints.items() if key in taken.get(column.role, ())}


def _checks(definition: SourceDefinition, facts: Facts) -> list[str]:
    found = [f"hr.unique({', '.join(c.name for c in definition.id_columns)})"]
    for column in definition.columns:
        fact = facts[data_name(column)]
        if fact.nulls and fact.nulls < fact.rows:
            found.append(f"hr.null_rate({column.name}) <= {min(1.0, rounded_up(2 * fact.nulls / fact.rows)):g}")
        if column.role == "column" and (limits := _mean_limits(fact)) is not None:
            found.append(f"hr.mean({column.name}).between({limits[0]}, {limits[1]})")
    table = definition.held.table
    found += _orders(definition, facts, table)
    if definition.time.dtype == "instant":
        found += _days(table[data_name(definition.time)])
    return found


def _mean_limits(fact: ColumnFacts) -> tuple[str, str] | None:
    """Return what a delivery's mean should lie between; None for ids and where floats cannot tell."""
    if fact.unique or fact.mean is None or fact.sd is None or not (TINY < fact.sd < HUGE and abs(fact.mean) < HUGE):
        return None
    return around(fact.mean, WIDE * fact.sd)


def _orders(definition: SourceDefinition, facts: Facts, table: pa.Table) -> list[str]:
    """Return which instants always lie in one order."""
    known = [(c.name, facts[data_name(c)]) for c in definition.columns]
    instants = [(own, f.name) for own, f in known if f.dtype == "instant" and f.nulls < f.rows]
    zoned = {name: table[name].type.tz is not None for _, name in instants}
    found = []
    for place, (one, first) in enumerate(instants):
        for other, second in instants[place + 1 :]:
            if zoned[first] != zoned[second]:
                continue
            later = pc.greater_equal(table[second], table[first])
            earlier = pc.less_equal(table[second], table[first])
            if pc.all(later).as_py() and pc.any(later).as_py():
                found.append(f"{other} >= {one}")
            elif pc.all(earlier).as_py() and pc.any(earlier).as_py():
                found.append(f"{one} >= {other}")
    return found


def _days(moments: pa.ChunkedArray) -> list[str]:
    """Return what each day's rows keep to, where there are weeks of them."""
    values = moments.combine_chunks()
    micros = values.cast(pa.timestamp("us", values.type.tz), safe=False).cast(pa.int64()).to_numpy()
    days, counts = np.unique(micros // DAY, return_counts=True)
    if len(days) < TWO_WEEKS:
        return []
    alike = Measure(row_count().within(0.5, of="7d"), "stop")
    state = {"days": dict(zip(days.tolist(), counts.tolist(), strict=True)), "first": int(days[0])}
    steady = RowCountMeter(alike, state).measure(int(micros.max())).status != "failed"
    checks = ['hr.row_count().within(0.5, of="7d")'] if steady else []
    return checks + (['hr.missing("1d") <= 0'] if days[-1] - days[0] + 1 == len(days) else [])


def around(middle: float, width: float) -> tuple[str, str]:
    """Return limits about `width` to either side of a number, rounded outwards to two digits of the width.

    >>> around(21.3456, 4.123), around(1e9 + 0.2, 0.5), around(-3.2e6, 8_140.0)
    (('17.2', '25.5'), ('999999999.70', '1000000000.70'), ('-3208200', '-3191800'))
    """
    digits = 1 - math.floor(math.log10(width))
    step = 10.0**-digits
    low, high = math.floor((middle - width) / step) * step, math.ceil((middle + width) / step) * step
    return f"{low:.{max(digits, 0)}f}", f"{high:.{max(digits, 0)}f}"
