"""Check a table or files whole: all checks of a source in one pass over blocks, in bounded memory, on every core.

A second look is taken only at blocks that hold a repeated key. What is read is checked as a source's rows; the gate of
a pipeline checks reveals, with the same compiled rules (`validation.run`).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from headrace.core.expressions import Column
from headrace.core.limits import Statistic
from headrace.core.settings import SourceSettings
from headrace.core.time import Clock, Instant, SystemClock
from headrace.sources.definition import Source, SourceDefinition, definition_of
from headrace.sources.values import plain
from headrace.validation.baseline import Baseline, ColumnTally, distance_result, given
from headrace.validation.blocks import BLOCK_ROWS, Block, Broken, Places, judge_conditions, judge_rules
from headrace.validation.custom import measured_by
from headrace.validation.definition import Distance, Freshness, Honest, Measured, Missing, NullRate, RowCount, Severity
from headrace.validation.keys import KeySet, UniqueTally, dangling, later
from headrace.validation.plan import Measure, ValidationPlan, plan_validation
from headrace.validation.read import Unit, units_of
from headrace.validation.record import Action, CheckResult, Findings, Status, quarantine_id, quarantine_schema
from headrace.validation.spans import Arrivals, DayCounts, HonestShare, NullShare, Periods
from headrace.validation.statistics import Measurement, Moments, QuantileCount, outcome

SAMPLES = 5
KEEP = 100_000  # bad rows that are returned; all are counted
AHEAD = 2  # blocks for each thread that may wait to be merged


def validate(
    source: type[Source],
    data: Any,
    *,
    references: Mapping[Any, Any] | None = None,
    baseline: Baseline | None = None,
    settings: SourceSettings | None = None,
    as_of: str | None = None,
    clock: Clock | None = None,
    keep: int = KEEP,
    threads: int | None = None,
    block_rows: int = BLOCK_ROWS,
) -> Findings:
    """Check a table or files against a source's declared columns and checks; nothing is written.

    `data` is a path, several paths, or a table of any library that speaks Arrow. `references` gives the values, or a
    table with the column, that each foreign key refers to: `{Users.user_id: users}`. `baseline` is what
    `validation.baseline.baseline_of` made. What is due, fresh or missing is judged at `as_of` (ISO 8601), by default now.
    At most `keep` bad rows are returned, all are counted. Memory grows with `threads` times `block_rows`: fewer rows
    suit very wide tables.

    Raises:
        SchemaChanged: a declared column is missing, of another type, or there twice.
        DataError: the data cannot be read.
        UserCodeError: a check's own SQL or function failed.
    """
    definition = definition_of(source)
    now = int((clock or SystemClock()).now() if as_of is None else Instant.parse(as_of))
    examination = Examination(definition, references or {}, baseline or {}, now, keep)
    try:
        units = units_of(definition, data, settings or SourceSettings(), block_rows)
        return examination.run(units, threads or len(os.sched_getaffinity(0)))
    finally:
        examination.close()


@dataclass(frozen=True, eq=False)
class Part:
    """Hold what one block contributed."""

    offset: int
    rows: int
    broken: list[Broken]
    measured: list[Any]
    tallied: list[Any]
    words: list[Any]
    samples: dict[int, tuple[str, ...]]
    bad: int
    kept: pa.Table


class Examination:
    """Compile a source's checks for one pass, and hold what the pass has found so far."""

    def __init__(
        self, definition: SourceDefinition, references: Mapping[Any, Any], baseline: Baseline, now: int, keep: int
    ) -> None:
        self.definition, self.now, self.keep = definition, now, keep
        self.plan: ValidationPlan = plan_validation(definition)
        self.known = [_keys(references, r.check.target) for r in self.plan.references]
        self.tallies = _tallies(self.plan, baseline)
        self.measurements = {m.name: found for m in self.plan.measures if (found := self._measurement(m)) is not None}
        self.uniques = [UniqueTally(u.check) for u in self.plan.uniques]
        self.counts: dict[str, list[int]] = {}  # check: rows, failing
        self.samples: dict[str, tuple[str, ...]] = {}
        self.severities: dict[str, str] = {}
        self.rows = self.bad = 0
        self.kept: list[pa.Table] = []
        self.repeats: set[int] = set()  # rows that are bad for nothing but a key that another has
        self.more: dict[str, list[str]] = {}  # what rows that are bad anyway broke beside
        self.refused = quarantine_schema().empty_table()

    def run(self, units: Sequence[Unit], threads: int) -> Findings:
        """Make the pass and return what was found."""
        with ThreadPoolExecutor(threads, thread_name_prefix="validate") as pool:
            waiting: deque[Future[list[Part]]] = deque()
            for unit in units:
                waiting.append(pool.submit(self._parts, unit))
                if len(waiting) >= AHEAD * threads:
                    self._take(waiting.popleft().result())
            while waiting:
                self._take(waiting.popleft().result())
        for check, tally in zip(self.plan.uniques, self.uniques, strict=True):
            self._judge_keys(str(check.check), check.severity, tally, units)
        for unit in units:
            self._refuse(unit)
        return self._findings(units)

    def close(self) -> None:
        """Remove temporary files."""
        for tally in self.uniques:
            tally.close()

    def _measurement(self, check: Measure) -> Measurement | None:
        quantity = check.limit.quantity
        kinds: dict[type, Callable[[], Measurement]] = {
            NullRate: lambda: NullShare(check, self.now),
            RowCount: lambda: DayCounts(check, self.definition),
            Missing: lambda: Periods(check, self.definition),
            Freshness: lambda: Arrivals(check, self.definition),
            Honest: lambda: HonestShare(check, self.definition),
        }
        if isinstance(quantity, (Distance, Measured)):
            return None
        if type(quantity) in kinds:
            return kinds[type(quantity)]()
        assert isinstance(quantity, Statistic)
        return (QuantileCount if quantity.kind == "quantile" else Moments)(check, quantity)

    def _parts(self, unit: Unit) -> list[Part]:
        return [self._part(block) for block in unit.read()]

    def _broken(self, block: Block) -> list[Broken]:
        """Return what the checks of single rows say of a block."""
        broken = judge_rules(self.plan, block) + judge_conditions(self.plan, block)
        for reference, known in zip(self.plan.references, self.known, strict=True):
            if known is not None:
                places, rows = dangling(block, reference.check.column, known)
                broken.append(Broken(str(reference.check), reference.severity, places, rows))
        return broken

    def _part(self, block: Block) -> Part:
        """Ask everything of one block; runs in any thread and changes nothing."""
        broken = self._broken(block)
        samples = {i: _samples(block, b.bad[:SAMPLES]) for i, b in enumerate(broken) if len(b.bad)}
        failing, bad = _failing(broken)
        return Part(
            block.offset,
            block.rows,
            broken,
            [m.part(block) for m in self.measurements.values()],
            [t.part(block) for t in self.tallies.values()],
            [u.part(block) for u in self.uniques],
            samples,
            len(bad),
            _quarantined(block, bad[: self.keep], failing, self.now),
        )

    def _take(self, parts: list[Part]) -> None:
        for part in parts:
            self.rows += part.rows
            self.bad += part.bad
            for i, broken in enumerate(part.broken):
                counts = self.counts.setdefault(broken.name, [0, 0])
                counts[0] += broken.rows
                counts[1] += len(broken.bad)
                self.severities[broken.name] = broken.severity
                if i in part.samples and len(self.samples.get(broken.name, ())) < SAMPLES:
                    self.samples[broken.name] = (*self.samples.get(broken.name, ()), *part.samples[i])[:SAMPLES]
            for measurement, measured in zip(self.measurements.values(), part.measured, strict=True):
                measurement.take(measured)
            for tally, tallied in zip(self.tallies.values(), part.tallied, strict=True):
                tally.take(tallied)
            for unique, words in zip(self.uniques, part.words, strict=True):
                unique.take(words)
            if part.kept.num_rows and sum(t.num_rows for t in self.kept) < self.keep:
                self.kept.append(part.kept)

    def _judge_keys(self, name: str, severity: Severity, tally: UniqueTally, units: Sequence[Unit]) -> None:
        """Find the rows that repeat a key among the blocks that hold a repeated word."""
        repeated = tally.repeated()
        self.counts[name], self.severities[name] = [tally.rows, 0], severity
        if not len(repeated):
            return
        wanted = set(tally.offsets(repeated))
        blocks = [b for unit in units if unit.holds(wanted) for b in unit.read() if b.offset in wanted]
        places = later(tally, repeated, blocks)
        self.counts[name][1] = len(places)
        for block in blocks:
            mine = places[(places >= block.offset) & (places < block.offset + block.rows)] - block.offset
            if len(mine):
                self._add_repeats(name, severity, block, mine)

    def _add_repeats(self, name: str, severity: Severity, block: Block, places: Places) -> None:
        held = self.samples.get(name, ())
        self.samples[name] = (*held, *_samples(block, places[: SAMPLES - len(held)]))
        if severity == "warn":
            return
        _, bad = _failing(self._broken(block))
        again = [row for row in places.tolist() if block.offset + row in self.repeats]
        fresh = np.setdiff1d(places, np.union1d(bad, np.array(again, np.int64)))
        self.bad += len(fresh)
        self.repeats.update((block.offset + fresh).tolist())
        room = max(0, self.keep - sum(t.num_rows for t in self.kept))
        self.kept.append(_quarantined(block, fresh[:room], [Broken(name, severity, fresh, block.rows)], self.now))
        for row in np.setdiff1d(places, fresh).tolist():
            self.more.setdefault(quarantine_id(self.definition.name, block.offset + row), []).append(name)

    def _refuse(self, unit: Unit) -> None:
        """Count the rows of a file that could not be read as rows at all."""
        if unit.refused is None or not unit.refused.num_rows:
            return
        name, number = "rows can be read", unit.refused.num_rows
        counts = self.counts.setdefault(name, [0, 0])
        counts[1] += number
        self.severities[name] = "quarantine" if self.plan.bad_rows == "warn" else self.plan.bad_rows
        self.samples[name] = tuple(unit.refused["position"].to_pylist()[:SAMPLES])
        self.rows, self.bad = self.rows + number, self.bad + number
        rows = [
            {**row, "source": self.definition.name, "at": self.now, "id": quarantine_id(*row.values())}
            for row in unit.refused.to_pylist()
        ]
        self.kept.append(pa.Table.from_pylist(rows, quarantine_schema()))

    def _findings(self, units: Sequence[Unit]) -> Findings:
        results = [self._counted(name, *counts) for name, counts in self.counts.items()]
        for reference, known in zip(self.plan.references, self.known, strict=True):
            if known is None:
                why = f"nothing says which values of {reference.check.target} are known"
                results.append(CheckResult(str(reference.check), reference.severity, "undefined", reason=why))
        results.append(self._too_many())
        results += [self._measured(m, units) for m in self.plan.measures]
        kept = pa.concat_tables(self.kept).slice(0, self.keep) if self.kept else quarantine_schema().empty_table()
        if self.more:
            kept = _with_reasons(kept, self.more)
        stop = any(r.status == "failed" and r.severity == "stop" for r in results)
        action: Action = "stop" if stop else "quarantine" if self.bad else "pass"
        profiles = {key[0]: tally.profile() for key, tally in self.tallies.items() if key[1] is None}
        name, place = self.definition.name, self.definition.location
        return Findings(name, place, Instant(self.now), action, self.rows, tuple(results), kept, profiles)

    def _counted(self, name: str, rows: int, failing: int) -> CheckResult:
        severity: Any = self.severities[name]
        if name == "rows can be read":
            rows = self.rows
        if not failing:
            return CheckResult(name, severity, "passed", 0.0, rows=rows)
        measured = f"{failing} of {rows} rows break it"
        samples = self.samples.get(name, ())
        return CheckResult(name, severity, "failed", float(failing), measured, "none", rows, failing, samples)

    def _too_many(self) -> CheckResult:
        most = self.plan.max_bad
        share = self.bad / self.rows if self.rows else 0.0
        status: Status = "failed" if share > most else "passed"
        text, demand = f"{share:.4g} of {self.rows} rows", f"<= {most:g}"
        return CheckResult(f"bad rows {demand}", "stop", status, share, text, demand, self.rows, self.bad)

    def _measured(self, check: Measure, units: Sequence[Unit]) -> CheckResult:
        quantity = check.limit.quantity
        if isinstance(quantity, Distance):
            key = (quantity.column.name, quantity.against or None)
            return distance_result(check, self.tallies.get(key))
        if isinstance(quantity, Measured):
            if not self.rows:
                return outcome(check, None, "", 0, "no rows")
            tables = [block.table(self.definition.columns) for unit in units for block in unit.read()]
            value = measured_by(quantity.by, pa.concat_tables(tables), self.definition, check.limit.location)
            return outcome(check, value, f"{value:.6g}", self.rows)
        return self.measurements[check.name].result(self.now)


def _tallies(plan: ValidationPlan, baseline: Baseline) -> dict[tuple[str, Any], ColumnTally]:
    """Return a tally for each column that has a baseline, and for each check that brings its own."""
    distances = [q for m in plan.measures if isinstance(q := m.limit.quantity, Distance)]
    fine = {q.column.name for q in distances if q.kind == "ks"}
    by_name = plan.source.by_name
    found: dict[tuple[str, Any], ColumnTally] = {
        (name, None): ColumnTally(by_name[name], held, fine=name in fine)
        for name, held in baseline.items()
        if name in by_name
    }
    for q in distances:
        if q.against:
            found[(q.column.name, q.against)] = ColumnTally(q.column, given(q), fine=False)
    return found


def _keys(references: Mapping[Any, Any], target: Column[Any]) -> KeySet | None:
    for column, values in references.items():
        if column is target or (isinstance(column, str) and column == str(target)):
            found = values
            if isinstance(found, (str, Path)):
                import pyarrow.parquet as pq

                found = pq.read_table(found, columns=[target.renamed or target.name])
            if not isinstance(found, (pa.Array, pa.ChunkedArray)):
                found = pa.table(found)[target.renamed or target.name]
            return KeySet(found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found)
    return None


def _failing(broken: Sequence[Broken]) -> tuple[list[Broken], Places]:
    """Return the checks whose bad rows may not pass, and those rows."""
    failing = [b for b in broken if len(b.bad) and b.severity != "warn"]
    return failing, np.unique(np.concatenate([b.bad for b in failing])) if failing else np.empty(0, np.int64)


def _with_reasons(rows: pa.Table, more: Mapping[str, Sequence[str]]) -> pa.Table:
    """Return quarantined rows with further reasons."""
    pairs = zip(rows["id"].to_pylist(), rows["reason"].to_pylist(), strict=True)
    told = ["\n".join([reason, *more.get(name, ())]) for name, reason in pairs]
    return rows.set_column(rows.column_names.index("reason"), "reason", pa.array(told, pa.string()))


def _samples(block: Block, rows: Places) -> tuple[str, ...]:
    ids = block.source.id_columns
    if any(c.pii for c in ids):
        return tuple(f"row {block.offset + int(row) + 1}" for row in rows)
    parts = [[plain(c, v) for v in block.columns[c.name].take(pa.array(rows)).to_pylist()] for c in ids]
    return tuple("/".join(map(str, row)) for row in zip(*parts, strict=True))


def _quarantined(block: Block, bad: Places, failing: Sequence[Broken], now: int) -> pa.Table:
    """Return bad rows with their reasons; `arrival` is there where it was observed."""
    if not len(bad):
        return quarantine_schema().empty_table()
    definition = block.source
    columns = {c.name: block.columns[c.name].take(pa.array(bad)).to_pylist() for c in definition.columns}
    reasons: dict[int, list[str]] = {row: [] for row in bad.tolist()}
    for broken in failing:
        for row in broken.bad.tolist():
            if row in reasons:
                reasons[row].append(broken.name)
    found = []
    for i, row in enumerate(bad.tolist()):
        stated = {c.name: plain(c, columns[c.name][i]) for c in definition.columns}
        place = block.offset + row
        fixed = {"id": quarantine_id(definition.name, place), "source": definition.name, "position": f"row {place + 1}"}
        payload = {"reason": "\n".join(reasons[row]), "payload": orjson.dumps(stated).decode(), "at": now}
        arrival = None if block.arrival is None else int(block.arrival[row])
        found.append(fixed | payload | {"arrival": arrival})
    return pa.Table.from_pylist(found, quarantine_schema())
