"""Validate deliveries one after the other: rules row by row, measures over time, one verdict each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from headrace.core.errors import DataError, SchemaChanged
from headrace.core.expressions import Column
from headrace.core.identity import row_hash
from headrace.core.time import DAY, Instant
from headrace.sources.definition import SourceDefinition
from headrace.sources.plan import moments_on, reveal_schema
from headrace.sources.record import ARRIVAL, ROW_ID, Reveal, RevealBatch
from headrace.sources.stated import Stated
from headrace.sources.values import arrow_type, plain, refusal_schema
from headrace.stats.profiles import Profile
from headrace.validation.baseline import Baseline, ColumnTally
from headrace.validation.blocks import blocks_of
from headrace.validation.definition import Honest
from headrace.validation.keys import KeySet
from headrace.validation.measures import SAMPLES
from headrace.validation.meters import meter
from headrace.validation.plan import Measure, plan_validation
from headrace.validation.record import (
    SCHEMA,
    Action,
    CheckResult,
    Held,
    Status,
    Verdict,
    quarantine_id,
    quarantine_schema,
    stated_text,
)
from headrace.validation.reveals import Earlier, Known, judge_reveals

Mask = NDArray[np.bool_]
NULL_PERIOD = 30 * DAY
FORMAT = 1


class Validator:
    """Validate one source's deliveries in the order of their arrival.

    `state` is what `dump` of an earlier validator returned. Null rates are measured over the rows that fell due in
    `null_period` microseconds up to the verdict: one bad day is not yet a broken feed. `baseline` holds the
    distributions that distances are measured from.
    """

    def __init__(
        self,
        definition: SourceDefinition,
        *,
        state: Mapping[str, Any] | None = None,
        null_period: int = NULL_PERIOD,
        baseline: Baseline | None = None,
    ) -> None:
        self.definition, self.baseline = definition, baseline or {}
        self.plan = plan_validation(definition)
        kept: Mapping[str, Any] = {} if state is None else _meters_of(definition, state)
        self.meters = {
            m.name: meter(m, kept.get(m.name, {}), null_period, definition, self.baseline) for m in self.plan.measures
        }

    def validate(
        self,
        batch: RevealBatch,
        *,
        now: int,
        known: Known | None = None,
        earlier: Earlier | None = None,
        refused: pa.Table | None = None,
        observed: bool = True,
        where: str = "delivery",
        streaming: bool = False,
    ) -> Verdict:
        """Return the verdict on a delivery at the instant `now`.

        `known` says which values stand in another source's column, for foreign keys, and `earlier` which reveals of some
        rows were accepted before, for conditions over columns that become known at different moments.
        `refused` are rows that could not become reveals (`sources.run.Load.refused`): they are bad rows too.
        `observed` says whether arrivals were observed; only then is the share that `known_at` held for measured.
        `where` names the delivery in the quarantine. A stopped delivery leaves no trace in the validator's state, so
        that its repaired copy is judged like the first. With `streaming` the rows have been judged one by one as they
        came, so a measure that fails stops what comes after but not the delivery's good rows.
        """
        deviations = _deviations(self.definition, batch.table.schema)
        if deviations:
            return self._stopped(now, deviations, len(batch))
        refused = refusal_schema().empty_table() if refused is None else refused
        results, broken = self._rows(batch, known, earlier)
        bad = np.zeros(len(batch), bool)
        for mask, _ in broken:
            bad |= mask
        rows = len(batch) + refused.num_rows
        results += self._bad_rows(int(bad.sum()), refused, rows)
        good = RevealBatch(self.definition, batch.table.filter(pa.array(~bad)) if bad.any() else batch.table)
        refuses = any(r.status == "failed" and r.severity == "stop" for r in results)
        before = {name: check.copy() for name, check in self.meters.items()}
        for check in self.meters.values():
            check.add(good)
            results.append(_known_arrivals(check.measure(now), check.check, observed))
        failed = [r for r in results if r.status == "failed"]
        stop = any(r.severity == "stop" for r in failed)
        whole = refuses if streaming else stop
        if whole:
            self.meters = before
        action: Action = "stop" if stop else "quarantine" if bad.any() or refused.num_rows else "pass"
        return Verdict(
            self.definition.name,
            self.definition.location,
            Instant(now),
            action,
            rows,
            tuple(results),
            _quarantine(batch, broken, bad, refused, where, now),
            self._profiles(good),
            _held(batch) if observed else {},
            RevealBatch(self.definition, good.table.slice(0, 0)) if whole else good,
        )

    def stopped_by(self, error: SchemaChanged, now: int) -> Verdict:
        """Return the verdict on data whose columns are not as declared, as reading them found."""
        return self._stopped(now, [(error.what, error.got or "", error.expected or "")], 0)

    def dump(self) -> dict[str, Any]:
        """Return the state as plain JSON."""
        return {"format": FORMAT, "meters": {name: check.dump() for name, check in self.meters.items()}}

    def _rows(
        self, batch: RevealBatch, known: Known | None, earlier: Earlier | None
    ) -> tuple[list[CheckResult], list[tuple[Mask, str]]]:
        """Return the results of all checks of single rows, and the masks of rows that may not pass, with the reason."""
        results, broken = [], []
        for judged in judge_reveals(self.plan, batch, known, earlier):
            results.append(self._counted(batch, judged.name, judged.severity, judged.bad, judged.rows))
            if judged.severity != "warn" and judged.bad.any():
                broken.append((judged.bad, judged.name))
        for reference in self.plan.references if known is None else ():
            why = f"nothing says which values of {reference.check.target} are known"
            results.append(CheckResult(str(reference.check), reference.severity, "undefined", reason=why))
        return results, broken

    def _profiles(self, good: RevealBatch) -> dict[str, Profile]:
        """Return the accepted rows' distributions over the bins of the baseline."""
        found = {}
        for name, held in self.baseline.items():
            if name in self.definition.by_name:
                tally = ColumnTally(self.definition.by_name[name], held, fine=False)
                for block in blocks_of(good):
                    tally.take(tally.part(block))
                found[name] = tally.profile()
        return found

    def _counted(self, batch: RevealBatch, name: str, severity: Any, bad: Mask, rows: int) -> CheckResult:
        failing = int(bad.sum())
        if not failing:
            return CheckResult(name, severity, "passed", rows=rows)
        measured = f"{failing} of {rows} rows break it"
        samples = _samples(batch, np.flatnonzero(bad)[:SAMPLES])
        return CheckResult(name, severity, "failed", float(failing), measured, "none", rows, failing, samples)

    def _bad_rows(self, bad: int, refused: pa.Table, rows: int) -> list[CheckResult]:
        """Return the results for all bad rows together: those that could not be read, and how many are too many."""
        results = []
        severity = "quarantine" if self.plan.bad_rows == "warn" else self.plan.bad_rows
        if refused.num_rows:
            measured = f"{refused.num_rows} of {rows} rows could not be read"
            where = tuple(refused["position"].slice(0, SAMPLES).to_pylist())
            found = float(refused.num_rows)
            results.append(
                CheckResult(
                    "rows can be read", severity, "failed", found, measured, "all", rows, refused.num_rows, where
                )
            )
        share = (bad + refused.num_rows) / rows if rows else 0.0
        name, demand = f"bad rows <= {self.plan.max_bad:g}", f"<= {self.plan.max_bad:g}"
        status: Status = "failed" if share > self.plan.max_bad else "passed"
        total = bad + refused.num_rows
        return [*results, CheckResult(name, "stop", status, share, f"{share:.4g} of {rows} rows", demand, rows, total)]

    def _stopped(self, now: int, deviations: Sequence[tuple[str, str, str]], rows: int) -> Verdict:
        names, found, declared = ("; ".join(texts) for texts in zip(*deviations, strict=True))
        result = CheckResult(SCHEMA, "stop", "failed", None, found, declared, reason=names)
        nothing = RevealBatch(self.definition, reveal_schema(self.definition).empty_table())
        empty = quarantine_schema().empty_table()
        definition = self.definition
        return Verdict(
            definition.name, definition.location, Instant(now), "stop", rows, (result,), empty, {}, {}, nothing
        )


class KnownKeys:
    """Remember every value that some columns have had, for foreign keys of other sources.

    All distinct values are held in memory: meant for columns that name thousands of things, not billions.

    >>> keys = KnownKeys([])
    >>> keys.dump()
    {}
    """

    def __init__(self, columns: Sequence[Column[Any]], state: Mapping[str, Sequence[Any]] | None = None) -> None:
        self.columns = tuple(columns)
        self.values: dict[str, set[Any]] = {str(c): set((state or {}).get(str(c), ())) for c in columns}
        self.sets: dict[str, KeySet] = {}

    def learn(self, batch: RevealBatch) -> None:
        """Take in the accepted reveals of any source."""
        for column in self.columns:
            if column in batch.source.index:
                before = len(self.values[str(column)])
                self.values[str(column)].update(batch.table[column.name].drop_null().unique().to_pylist())
                if len(self.values[str(column)]) > before:
                    self.sets.pop(str(column), None)

    def keys(self, column: Column[Any]) -> KeySet:
        """Return every value that a column has had."""
        name = str(column)
        if name not in self.sets:
            self.sets[name] = KeySet(pa.array(sorted(self.values[name]), arrow_type(column.dtype)))
        return self.sets[name]

    def __call__(self, column: Column[Any], values: Sequence[Any]) -> Collection[Any]:
        """Return those of `values` that the column has had."""
        return self.values[str(column)].intersection(values)

    def dump(self) -> dict[str, list[Any]]:
        """Return the state as plain JSON."""
        return {name: sorted(values) for name, values in self.values.items()}


def referred_columns(sources: Sequence[SourceDefinition]) -> list[Column[Any]]:
    """Return the columns that some sources' foreign keys refer to, each once."""
    found = [r.check.target for source in sources for r in plan_validation(source).references]
    return list(dict.fromkeys(found))


def _meters_of(definition: SourceDefinition, state: Mapping[str, Any]) -> Mapping[str, Any]:
    if state.get("format") != FORMAT:
        raise DataError(
            f"{definition.name}: a validator's state of another version",
            got=state.get("format"),
            expected=FORMAT,
            next_step="start without state: the checks then begin a new history",
        )
    meters: Mapping[str, Any] = state["meters"]
    return meters


def _deviations(definition: SourceDefinition, schema: pa.Schema) -> list[tuple[str, str, str]]:
    found = []
    for field in reveal_schema(definition):
        at = schema.get_field_index(field.name)
        if at < 0 or schema.field(at).type != field.type:
            is_now = "absent" if at < 0 else str(schema.field(at).type)
            found.append((field.name, f"{field.name}: {is_now}", f"{field.name}: {field.type}"))
    return found


def _known_arrivals(result: CheckResult, check: Measure, observed: bool) -> CheckResult:
    """Return the result; arrivals that were assumed from `known_at` itself say nothing about it."""
    if observed or not isinstance(check.limit.quantity, Honest):
        return result
    return CheckResult(check.name, check.severity, "undefined", reason="arrivals were not observed")


def _held(batch: RevealBatch) -> dict[str, Held]:
    """Return, column by column, for how many values `known_at` held against the observed arrival.

    Values are judged whose moment the same reveal tells.
    """
    definition, table = batch.source, batch.table
    arrival, stated, found = table[ARRIVAL].to_numpy(), Stated.of(table), {}
    for place, column in enumerate(definition.columns):
        moment, known = moments_on(definition.moments[column], table)
        there = known & stated.says(place) & table[column.name].is_valid().to_numpy()
        if there.any():
            found[column.name] = Held(int(there.sum()), int((moment[there] <= arrival[there]).sum()))
    return found


def _samples(batch: RevealBatch, rows: NDArray[np.int64]) -> tuple[str, ...]:
    ids = batch.source.id_columns
    picked = batch.table.take(pa.array(rows))
    if any(c.pii for c in ids):
        return tuple(f"#{row_hash(row_id):016x}" for row_id in picked[ROW_ID].to_pylist())
    parts = [[plain(c, value) for value in picked[c.name].to_pylist()] for c in ids]
    return tuple("/".join(map(str, row)) for row in zip(*parts, strict=True))


def _quarantine(
    batch: RevealBatch, broken: Sequence[tuple[Mask, str]], bad: Mask, refused: pa.Table, where: str, now: int
) -> pa.Table:
    rows = np.flatnonzero(bad)
    definition, picked = batch.source, batch.table.take(pa.array(rows))
    fixed = {"source": definition.name, "at": now}
    found: list[dict[str, Any]] = []
    for row in refused.to_pylist():
        told = {name: row[name] for name in ("position", "reason", "payload", "arrival")}
        found.append({"id": quarantine_id(definition.name, row["position"], row["raw"]), **fixed, **told})
    for at, reveal in zip(rows.tolist(), RevealBatch(definition, picked).reveals(), strict=True):
        reasons = "\n".join(name for mask, name in broken if mask[at])
        found.append(quarantined_row(definition, reveal, where, reasons, now))
    return pa.Table.from_pylist(found, quarantine_schema())


def quarantined_row(definition: SourceDefinition, reveal: Reveal, where: str, reasons: str, now: int) -> dict[str, Any]:
    """Return a reveal as a row of the quarantine (`quarantine_schema`)."""
    columns = [definition.columns[place] for place in reveal.places]
    stated = {c.name: plain(c, value) for c, value in zip(columns, reveal.values, strict=True)}
    name = quarantine_id(definition.name, reveal.row_id, reveal.arrival, reveal.content)
    told = {"id": name, "source": definition.name, "at": now, "position": where, "reason": reasons}
    told |= {"row_id": reveal.row_id, "arrival": reveal.arrival, "content": reveal.content}
    return told | {"stated": stated_text(reveal.places), "payload": orjson.dumps(stated).decode()}
