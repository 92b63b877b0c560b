"""Suggest a contract from a sample: what each column holds, and checks that the sample passes. For people to review."""

from __future__ import annotations

import json
import keyword
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from headrace.core.errors import DataError
from headrace.core.time import DAY
from headrace.sources.casts import INTEGERS

FEW = 20  # distinct texts up to which a column is a set, if each stands there 20 times on average
SHAPES = 1_000  # texts whose shape is read
RUNS = re.compile(r"[0-9]+|[A-Z]+|[a-z]+|[^0-9A-Za-z]")
CLASSES = (("[0-9]", str.isdigit), ("[A-Z]", str.isupper), ("[a-z]", str.islower))
WIDE = 0.5  # standard deviations that a delivery's mean may lie from the sample's
IDENTIFIER = re.compile(r"\W+")


@dataclass(frozen=True)
class ColumnFacts:
    """Hold what a sample shows of a column; `name` is its name in the data, `python` the one in code."""

    name: str
    python: str
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
            found = {"ge": 0 if self.low >= 0 else -rounded_up(-self.low), "le": bound_above(self.high)}
        if self.members:
            found["isin"] = list(self.members)
        elif self.pattern is not None:
            found["matches"] = self.pattern
        return found | ({"allow_nan": True} if self.nan else {})


def facts_of(table: pa.Table) -> list[ColumnFacts]:
    """Return what a table shows of each column whose type a source can declare; others are left out.

    Raises:
        DataError: two columns have one name, or there is no row.
    """
    doubled = sorted({n for n in table.column_names if table.column_names.count(n) > 1})
    if doubled or not table.num_rows:
        raise DataError(
            "no sample to learn from",
            got=f"columns of one name: {doubled}" if doubled else "no rows",
            expected="rows, and a name for each column",
        )
    taken: set[str] = set()
    found = []
    for name in table.column_names:
        values = table[name].combine_chunks()
        dtype = type_named(values.type)
        if dtype is not None:
            python = identifier(name, taken)
            found.append(_facts(name, python, dtype, values))
    return found


def type_named(kind: pa.DataType) -> str | None:
    """Return the type that a source declares for an Arrow type; None if there is none."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (
        ("str", pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)),
        ("bool", pa.types.is_boolean(kind)),
        ("int", kind in INTEGERS),
        ("float", pa.types.is_floating(kind)),
        ("instant", pa.types.is_timestamp(kind)),
        ("date", pa.types.is_date(kind)),
    )
    return next((name for name, fits in tests if fits), None)


def identifier(name: str, taken: set[str]) -> str:
    """Return a Python name for a column, none twice."""
    python = IDENTIFIER.sub("_", name.strip()).strip("_") or "column"
    python = python if not (python[0].isdigit() or keyword.iskeyword(python)) else f"c_{python}"
    reserved = {"known_at", "checks", "row_id"}
    while python in taken or python in reserved:
        python += "_"
    taken.add(python)
    return python


def contract_code(name: str, facts: Sequence[ColumnFacts], table: pa.Table) -> str:
    """Return a source class as Python code: columns with their constraints, then checks that the sample passes.

    Raises:
        DataError: no column names a row, or none says when it happened.
    """
    ids, time = _row_id(name, facts, table), _event_time(name, facts)
    columns = [f"    {f.python}: hr.Column[{_annotation(f)}] = {_declaration(f, ids, time)}" for f in facts]
    lines = [f"class {name}(hr.Source):", *columns]
    if len(ids) > 1:
        lines += ["", f"    row_id = hr.row_id({', '.join(f.python for f in ids)})"]
    checks = [*_checks(facts, ids, time, table)]
    lines += ["", "    checks = hr.Checks(", *(f"        {check}," for check in checks), "    )"]
    return "import headrace as hr\n\n\n" + "\n".join(lines) + "\n"


def rounded_up(value: float) -> float:
    """Return a positive number rounded up to one digit: 8140 to 9000, 0.31 to 0.4."""
    if value <= 0:
        return 0
    step = 10.0 ** math.floor(math.log10(value))
    found = math.ceil(value / step) * step
    whole = found >= 1 or found == 0
    return int(found) if whole and found < 2**53 else round(found, 12) if not whole else found


def bound_above(value: float) -> float:
    """Return the largest value that a contract allows where the sample's largest is `value`."""
    if isinstance(value, int) and abs(value) > 2**53:
        return value
    return rounded_up(value) if value > 0 else 0


def _facts(name: str, python: str, dtype: str, values: pa.Array) -> ColumnFacts:
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    there = values.drop_null()
    distinct = pc.count_distinct(there).as_py()
    fixed: dict[str, Any] = {"name": name, "python": python, "dtype": dtype}
    fixed |= {"nulls": values.null_count, "rows": len(values), "distinct": distinct}
    if dtype in ("int", "float") and len(there):
        nan = dtype == "float" and pc.any(pc.is_nan(there)).as_py()
        finite = there.filter(pc.is_finite(there)) if dtype == "float" else there
        if not len(finite):
            return ColumnFacts(**fixed, nan=bool(nan))
        extent = pc.min_max(finite).as_py()
        sd = pc.stddev(finite, ddof=1).as_py() if len(finite) > 1 else None
        mean = float(pc.mean(finite).as_py())
        return ColumnFacts(**fixed, low=extent["min"], high=extent["max"], mean=mean, sd=sd, nan=bool(nan))
    if dtype == "str" and len(there):
        few = distinct <= FEW and len(there) >= FEW * distinct
        members = tuple(sorted(pc.unique(there).to_pylist())) if few else ()
        return ColumnFacts(**fixed, members=members, pattern=None if few else _shape(there))
    return ColumnFacts(**fixed)


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


def _row_id(name: str, facts: Sequence[ColumnFacts], table: pa.Table) -> list[ColumnFacts]:
    able = [f for f in facts if f.unique and f.dtype in ("str", "int")]
    named = [f for f in able if re.search(r"(^|_)(id|key|no|number|uuid)$", f.python.lower())]
    if named or able:
        return [(named or able)[0]]
    keys = [f for f in facts if not f.nulls and f.dtype in ("str", "int", "instant", "date") and f.distinct > 1]
    for place, one in enumerate(keys):
        for other in keys[place + 1 :]:
            if one.distinct * other.distinct >= table.num_rows:
                pairs = table.select([one.name, other.name]).group_by([one.name, other.name]).aggregate([])
                if pairs.num_rows == table.num_rows:
                    return [one, other]
    raise DataError(
        f"{name}: no column, and no two together, name a row",
        got=[f"{f.name}: {f.distinct} of {f.rows} differ" for f in facts],
        expected="a column without nulls whose values all differ",
        next_step="add an id where the data are made",
    )


def _event_time(name: str, facts: Sequence[ColumnFacts]) -> ColumnFacts:
    for fact in facts:
        if fact.dtype in ("instant", "date") and not fact.nulls:
            return fact
    raise DataError(
        f"{name}: no column says when a row happened",
        got=[f"{f.name}: {f.dtype}" for f in facts],
        expected="a column of timestamps without nulls",
        next_step="write timestamps with their offset, as 2026-11-21T08:00:00Z",
    )


def _annotation(fact: ColumnFacts) -> str:
    shown = {"instant": "hr.Instant", "date": "hr.Date"}.get(fact.dtype, fact.dtype)
    return f"{shown} | None" if fact.nulls else shown


def _declaration(fact: ColumnFacts, ids: Sequence[ColumnFacts], time: ColumnFacts) -> str:
    arguments = [] if fact.name == fact.python else [f'name="{fact.name}"'.replace("\\", "\\\\")]
    if fact is time:
        return f"hr.event_time({', '.join(arguments)})"
    if ids == [fact]:
        return f"hr.row_id({', '.join(arguments)})"
    for key, value in fact.constraints.items():
        arguments.append(f"{key}={_literal(value)}")
    return f"hr.column({', '.join(arguments)})"


def _literal(value: Any) -> str:
    """Return a value as a formatter would leave it: texts in double quotes, patterns raw where that is shorter."""
    if isinstance(value, list):
        return f"[{', '.join(_literal(item) for item in value)}]"
    if isinstance(value, str):
        raw = "\\" in value and '"' not in value
        return f'r"{value}"' if raw else json.dumps(value, ensure_ascii=False)
    return repr(value)


def _checks(facts: Sequence[ColumnFacts], ids: Sequence[ColumnFacts], time: ColumnFacts, table: pa.Table) -> list[str]:
    found = [f"hr.unique({', '.join(f.python for f in ids)})"]
    for fact in facts:
        if fact.nulls and fact.nulls < fact.rows:
            found.append(f"hr.null_rate({fact.python}) <= {min(1.0, rounded_up(2 * fact.nulls / fact.rows)):g}")
        if fact.sd and fact.mean is not None and not fact.unique and math.isfinite(fact.sd):
            low, high = fact.mean - WIDE * fact.sd, fact.mean + WIDE * fact.sd
            found.append(f"hr.mean({fact.python}).between({_digits(low)}, {_digits(high)})")
    found += _orders(facts, table)
    if time.dtype == "instant":
        found += _days(time, table)
    return found


def _orders(facts: Sequence[ColumnFacts], table: pa.Table) -> list[str]:
    """Return which instants always lie in one order."""
    instants = [f for f in facts if f.dtype == "instant" and f.nulls < f.rows]
    found = []
    for place, one in enumerate(instants):
        for other in instants[place + 1 :]:
            later = pc.greater_equal(table[other.name], table[one.name])
            earlier = pc.less_equal(table[other.name], table[one.name])
            if pc.all(later).as_py() and pc.any(later).as_py():
                found.append(f"{other.python} >= {one.python}")
            elif pc.all(earlier).as_py() and pc.any(earlier).as_py():
                found.append(f"{one.python} >= {other.python}")
    return found


def _days(time: ColumnFacts, table: pa.Table) -> list[str]:
    values = table[time.name].combine_chunks()
    counts = values.cast(pa.timestamp("us", values.type.tz), safe=False).cast(pa.int64()).to_numpy() // DAY
    days = sorted(set(counts.tolist()))
    if len(days) < 14:
        return []
    checks = ['hr.row_count().within(0.5, of="7d")']
    return checks + (['hr.missing("1d") <= 0'] if days[-1] - days[0] + 1 == len(days) else [])


def _digits(value: float) -> str:
    return f"{float(f'{value:.3g}'):g}"
