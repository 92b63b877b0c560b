"""Compute features the slow and obvious way: the definition of time and arithmetic, against which all else is tested.

Everything is recomputed for each question from the raw log of reveals, with `fractions` for exact arithmetic. Nothing is
shared with the code under test but the definitions themselves, and the functions of single values in expressions beyond
comparison, logic and arithmetic, which tests of their own hold against DuckDB.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

from headrace.core.expressions import COMPARE, Binary, Column, Expr, Shift, Unary, columns_of, per_row
from headrace.core.identity import row_hash, text_id
from headrace.features.lane_plan import LanePlan
from headrace.features.plan import DatasetPlan
from headrace.sources.definition import SourceDefinition
from headrace.sources.record import Reveal
from headrace.testing.sketches import distinct_estimate, quantile_estimate

Log = Sequence[tuple[str, Reveal]]
Cells = dict[Column[Any], tuple[int, int, Any]]
PLAIN = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def rows_at(source: SourceDefinition, log: Log, t: int) -> dict[bytes, Cells]:
    """Return each row's cells as they hold at `t`: of the reveals that had arrived, the newest for each column."""
    rows: dict[bytes, Cells] = {}
    for name, reveal in log:
        if name != source.name or reveal.arrival > t:
            continue
        cells = rows.setdefault(reveal.row_id, {})
        for place, value in zip(reveal.places, reveal.values, strict=True):
            column = source.columns[place]
            if column not in cells or (reveal.arrival, reveal.content) > cells[column][:2]:
                cells[column] = (reveal.arrival, reveal.content, value)
    return rows


def value_of(expr: Expr[Any], cells: Cells) -> Any:
    """Evaluate an expression on one row; what was never stated is null."""
    if isinstance(expr, Column):
        return cells[expr][2] if expr in cells else None
    if isinstance(expr, Shift):
        inner = value_of(expr.value, cells)
        return None if inner is None else inner + expr.offset
    if isinstance(expr, Unary) and expr.op in ("not", "is_null"):
        inner = value_of(expr.value, cells)
        return (inner is None) if expr.op == "is_null" else (None if inner is None else not inner)
    if not isinstance(expr, Binary) or expr.op not in (*COMPARE, "&", "|", "/", "+", "-", "*"):
        columns = columns_of(expr)
        return per_row(expr, {c: i for i, c in enumerate(columns)})([value_of(c, cells) for c in columns])
    left, right = value_of(expr.left, cells), value_of(expr.right, cells)
    if expr.op in "&|":
        decisive = expr.op == "|"
        return decisive if decisive in (left, right) else (None if None in (left, right) else not decisive)
    if left is None or right is None:
        return None
    if expr.op == "/":
        return None if right == 0 else left / right
    return (COMPARE[expr.op] if expr.op in COMPARE else PLAIN[expr.op])(left, right)


def instant_of(column: Column[Any], value: Any) -> int | None:
    """Return the instant that a value stands for: a day of a zone stands for the midnight at which it ends."""
    if value is None or column.zone is None:
        return None if value is None else int(value)
    midnight = datetime(1970, 1, 1) + timedelta(microseconds=value) + timedelta(days=1)
    moment = midnight.replace(tzinfo=ZoneInfo(column.zone)) - datetime(1970, 1, 1, tzinfo=UTC)
    return moment // timedelta(microseconds=1)


def civil(t: int, zone: str | None) -> int:
    """Return what clocks show at an instant, as microseconds since 1970-01-01 00:00 local."""
    if zone is None:
        return t
    shown = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=t)
    return (shown.astimezone(ZoneInfo(zone)).replace(tzinfo=None) - datetime(1970, 1, 1)) // timedelta(microseconds=1)


Event = tuple[tuple[int, int, int], list[Any]]


def lane_events(lane: LanePlan, log: Log, key: tuple[Any, ...], t: int) -> list[Event]:
    """Return a lane's events of one key that are visible at `t`, each with where it stands, arrival and tie, in order."""
    events = []
    for row_id, cells in rows_at(lane.source, log, t).items():
        known = [instant_of(c, value_of(c, cells)) for c, _ in lane.moment.terms]
        if None in known or tuple(value_of(c, cells) for c in lane.entity) != key:
            continue
        if lane.where is not None and not value_of(lane.where, cells):
            continue
        moment = max(i + offset for i, (_, offset) in zip(known, lane.moment.terms, strict=True) if i is not None)
        if not (moment < t or (lane.lane.state and moment == t)):
            continue
        stands: int | None = moment
        if lane.on is not None:
            column, offset = lane.on.terms[0]
            value = value_of(column, cells)
            shown = None if value is None else value + offset
            stands = shown if shown is None or column.dtype == "date" else civil(shown, lane.zone)
        if stands is None:
            continue
        arrival = max(cells[c][0] for c in lane.reads if c in cells)
        tie = row_hash(b"R" + lane.source.name.encode() + b"\0" + row_id)
        events.append(((stands, arrival, tie), [value_of(v, cells) for v in lane.values]))
    return sorted(events, key=lambda e: e[0])


def newest_copy(lane: LanePlan, log: Log, t: int) -> int | None:
    """Return the moment of the newest copy of a lane's table that is known at `t`, whatever its rows say."""
    column, offset = lane.source.moments[lane.source.time].terms[0]
    found = []
    for name, reveal in log:
        told = dict(zip(reveal.places, reveal.values, strict=True)) if name == lane.source.name else {}
        instant = instant_of(column, told.get(lane.source.index[column]))
        if instant is not None and reveal.arrival <= t and instant + offset < t + lane.lane.state:
            found.append(instant + offset)
    return max(found, default=None)


def lane_features(lane: LanePlan, log: Log, key: tuple[Any, ...], t: int, at: int | None = None) -> list[Any]:
    """Return a lane's outputs for one key as known at `t`; windows reach back from `at`, from `t` unless said."""
    if None in key:
        return [None] * len(lane.outputs)
    events, back = lane_events(lane, log, key, t), civil(t if at is None else at, lane.zone)
    held = events
    if lane.source.history == "snapshots":
        newest = newest_copy(lane, log, t)
        held = [event for event in events if event[0][0] == newest]
    found = [
        aggregate(o, lane, i, held if o.aggregate == "latest" else events, t, back) for i, o in enumerate(lane.outputs)
    ]
    for i, ((feature, _), column) in enumerate(zip(lane.features, lane.columns, strict=True)):
        if found[i] is None and feature.fill is not None:
            found[i] = float(feature.fill) if column.dtype == "float" else int(feature.fill)
    return found


def aggregate(output: Any, lane: LanePlan, place: int, events: list[Event], t: int, back: int) -> Any:
    """Return one output over a lane's visible events, which are in order; None is null."""
    if output.window is not None:
        end = back - output.offset + lane.lane.state
        begin = end - output.window
        if output.hop:
            begin = begin // output.hop * output.hop
        events = [e for e in events if begin <= e[0][0] < end]
    if output.column is None:
        return len(events)
    if output.aggregate == "latest":
        kept = [e for e in events if lane.lane.state or e[1][output.column] is not None]
        stale = not kept or (output.parameter is not None and t - kept[-1][0][0] > output.parameter)
        ends = None if stale or output.until is None else kept[-1][1][output.until]
        return None if stale or (ends is not None and ends <= t) else kept[-1][1][output.column]
    values = [e[1][output.column] for e in events if e[1][output.column] is not None]
    if output.aggregate == "fold":
        fold = lane.features[place][0].aggregate.fold
        assert fold is not None
        return fold.function(values) if values else None
    if output.bits and output.aggregate == "distinct":
        return distinct_estimate(values, output.bits)
    if output.bits:
        return quantile_estimate(values, output.parameter, output.bits) if values else None
    return summarize(output.aggregate, values, output.parameter)


def summarize(kind: str, values: list[Any], parameter: float | None) -> Any:
    """Aggregate values exactly and round once."""
    n = len(values)
    if kind in ("count", "distinct"):
        return n if kind == "count" else len(set(values))
    if n == 0:
        return None
    if kind in ("last", "first"):
        k = int(parameter or 0)
        return None if k > n else values[-k] if kind == "last" else values[k - 1]
    if kind == "mode":
        most = max(values.count(v) for v in values)
        found = [v for v in values if values.count(v) == most]
        return min(found, key=text_id) if isinstance(values[0], str) else min(found) + type(found[0])(0)
    if kind in ("min", "max", "quantile"):
        ordered = sorted(values, key=lambda v: (v, math.copysign(1, v)) if isinstance(v, float) else v)
        place = {"min": 0, "max": n - 1}.get(kind)
        return ordered[math.ceil(parameter * n) - 1 if place is None and parameter is not None else place or 0]
    exact = [Fraction(v) for v in values]
    total = sum(exact, Fraction(0))
    if kind == "sum":
        return int(total) if isinstance(values[0], int) else rounded(total)
    if kind == "mean":
        return rounded(total / n)
    if n < 2:
        return None
    return math.sqrt(rounded((n * sum((x * x for x in exact), Fraction(0)) - total * total) / (n * (n - 1))))


def rounded(value: Fraction) -> float:
    """Round to the nearest double, ties to even; beyond the largest, to infinity."""
    try:
        return float(value) if value else 0.0
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def features(plan: DatasetPlan, log: Log, row: Sequence[Any], t: int) -> list[Any]:
    """Return the windowed and latest features of a row (values in the order of the source's columns) at `t`."""
    found = []
    for binding in plan.bindings:
        key = tuple(row[plan.rows.index[k]] for k in binding.key)
        for lane in binding.lanes:
            found += lane_features(lane, log, key, t)
    return found
