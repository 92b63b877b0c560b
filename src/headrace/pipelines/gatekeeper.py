"""Stand between deliveries and everything after them: validate, quarantine, stop, and remember who is held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from headrace.core.errors import DataError
from headrace.pipelines.project import Project
from headrace.pipelines.reveals import append_reveals, ensure_grown, read_source, reveals_of_rows, reveals_table
from headrace.sources.definition import SourceDefinition
from headrace.sources.record import ARRIVAL, CONTENT, ROW_ID, RevealBatch
from headrace.storage.ledger import Entry, Ledger
from headrace.storage.tables import Commit, Tables
from headrace.storage.tables.protocol import Position
from headrace.validation.baseline import Baseline
from headrace.validation.record import Verdict, quarantine_schema
from headrace.validation.run import KnownKeys, Validator, quarantined_row, referred_columns

QUARANTINE = "quarantine"
FEW_ROWS = 500  # up to here rows are asked for by id, beyond all are read


def broken_rows(verdict: Verdict) -> pa.Table:
    """Return the quarantined rows that are reveals; the others are dead letters, which have a table of their own."""
    return verdict.quarantined.filter(verdict.quarantined["row_id"].is_valid())


def stopped_rows(batch: RevealBatch, verdict: Verdict, where: str) -> pa.Table:
    """Return the rows of a stopped batch of a stream that broke no rule themselves, to be kept in the quarantine.

    A file is repaired and delivered again; a stream's events come once.
    """
    why = "its batch was stopped: " + "; ".join(f"{r.name}: {r.measured}" for r in verdict.failed[:3])
    known, at = set(verdict.quarantined["id"].to_pylist()), int(verdict.at)
    rows = [quarantined_row(batch.source, reveal, where, why, at) for reveal in batch.reveals()]
    return pa.Table.from_pylist([row for row in rows if row["id"] not in known], quarantine_schema())


class Gatekeeper:
    """Validate every source's deliveries in order; `state` is what `dump` of an earlier one returned."""

    def __init__(
        self,
        project: Project,
        ledger: Ledger,
        tables: Tables,
        *,
        state: Mapping[str, Any] | None = None,
        streaming: bool,
        baselines: Mapping[str, Baseline] | None = None,
    ) -> None:
        kept, sources = state or {}, project.plan.sources
        period = project.settings.limits.null_rate_period
        self.ledger, self.tables, self.streaming = ledger, tables, streaming
        states = kept.get("validators", {})
        held = baselines or {}
        self.validators = {
            s.name: Validator(s, state=states.get(s.name), null_period=period, baseline=held.get(s.name))
            for s in sources
        }
        self.known = KnownKeys(referred_columns(sources), kept.get("known"))
        self.held: dict[str, str] = dict(kept.get("held", {}))

    def learn_stored(self, sources: Sequence[SourceDefinition]) -> None:
        """Take in from the tables of some sources every value that foreign keys of others may refer to.

        Raises:
            SchemaConflict: a class changed otherwise than by a new nullable column.
        """
        for source in sources:
            names, stored = [c.name for c in self.known.columns if c in source.index], ensure_grown(self.tables, source)
            if names and set(names) <= {*stored}:
                for rows in self.tables.scan(reveals_table(source.name), columns=names):
                    self.known.learn(RevealBatch(source, rows))

    def judge(
        self, batch: RevealBatch, *, now: int, where: str, refused: pa.Table | None = None, observed: bool = True
    ) -> Verdict:
        """Validate a delivery, keep its verdict in the ledger, and return it; of a stream those that are not "pass".

        A source is held while its newest delivery was stopped: nothing is trained or promoted on it.
        """
        source = batch.source.name
        verdict = self.validators[source].validate(
            batch,
            now=now,
            known=self.known,
            earlier=lambda ids: self._earlier(batch.source, ids),
            refused=refused,
            observed=observed,
            where=where,
            streaming=self.streaming,
        )
        self.known.learn(verdict.accepted)
        was_held = source in self.held
        if verdict.action == "stop":
            self.held[source] = "; ".join(f"{r.name}: {r.measured}" for r in verdict.failed[:3])
        else:
            self.held.pop(source, None)
        if verdict.action != "pass" or was_held or not self.streaming:
            self.ledger.append([Entry("verdict", source, {"where": where, **verdict.to_dict()})])
        return verdict

    def _earlier(self, source: SourceDefinition, row_ids: pa.Array) -> pa.Table | None:
        """Return the accepted reveals of some rows, in order of arrival."""
        if self.tables.describe(reveals_table(source.name)) is None:
            return None
        ids = row_ids.unique()
        if len(ids) <= FEW_ROWS:
            found = read_source(self.tables, source, where=[(ROW_ID, "in", ids.to_pylist())])
        else:
            found = reveals_of_rows(self.tables, source, ids)
        return found.sort_by([(ARRIVAL, "ascending"), (CONTENT, "ascending")])

    def store(
        self, verdict: Verdict, application: str, number: int, *, stopped: pa.Table | None = None
    ) -> Commit | None:
        """Append what a verdict accepted to the source's table and what broke its rules to the quarantine, once.

        `stopped` rows (`stopped_rows`) join the latter. Returns the commit of the source's table, None if nothing was
        accepted.
        """
        position, commit = Position(f"{application}/{verdict.source}", number), None
        if len(verdict.accepted):
            commit = append_reveals(self.tables, verdict.accepted.source, verdict.accepted.table, position)
        broken = pa.concat_tables([broken_rows(verdict), *([] if stopped is None else [stopped])])
        if broken.num_rows:
            self.tables.append(QUARANTINE, broken, position=position)
        return commit

    def refuse_if_held(self) -> None:
        """Raise if a source is held.

        Raises:
            DataError: the newest delivery of a source was stopped.
        """
        if self.held:
            raise DataError(
                "training is held: the newest data did not pass their checks",
                got="; ".join(f"{name}: {why}" for name, why in sorted(self.held.items())),
                expected="a delivery that passes",
                next_step="repair the data and deliver again",
            )

    def dump(self) -> dict[str, Any]:
        """Return the state as plain JSON."""
        validators = {name: v.dump() for name, v in self.validators.items()}
        return {"validators": validators, "known": self.known.dump(), "held": dict(self.held)}
