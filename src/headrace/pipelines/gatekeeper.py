"""Stand between deliveries and everything after them: validate, quarantine, stop, and remember who is held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from headrace.core.errors import DataError
from headrace.pipelines.project import Project
from headrace.sources.definition import SourceDefinition
from headrace.sources.record import RevealBatch
from headrace.storage.ledger import Entry, Ledger
from headrace.storage.tables import Commit, Tables
from headrace.storage.tables.protocol import Position
from headrace.validation.record import Verdict
from headrace.validation.run import KnownKeys, Validator, referred_columns

QUARANTINE = "quarantine"


def reveals_table(source: str) -> str:
    """Return the name of the table that holds a source's accepted reveals."""
    return f"reveals_{source.lower()}"


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
    ) -> None:
        kept, sources = state or {}, project.plan.sources
        period = project.settings.limits.null_rate_period
        self.ledger, self.tables, self.streaming = ledger, tables, streaming
        states = kept.get("validators", {})
        self.validators = {s.name: Validator(s, state=states.get(s.name), null_period=period) for s in sources}
        self.known = KnownKeys(referred_columns(sources), kept.get("known"))
        self.held: dict[str, str] = dict(kept.get("held", {}))

    def judge(
        self, batch: RevealBatch, *, now: int, where: str, refused: pa.Table | None = None, observed: bool = True
    ) -> Verdict:
        """Validate a delivery, write a ledger record of a verdict that is not plain "pass", and return it.

        A source is held while its newest delivery was stopped: nothing is trained or promoted on it.
        """
        source = batch.source.name
        verdict = self.validators[source].validate(
            batch,
            now=now,
            known=self.known,
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
        if verdict.action != "pass" or was_held:
            self.ledger.append([Entry("verdict", source, {"where": where, **verdict.to_dict()})])
        return verdict

    def store(self, verdict: Verdict, application: str, number: int) -> Commit | None:
        """Append what a verdict accepted to the source's table and what it refused to the quarantine, once.

        Returns the commit of the source's table, None if nothing was accepted.
        """
        position, commit = Position(f"{application}/{verdict.source}", number), None
        if len(verdict.accepted):
            commit = self.tables.append(reveals_table(verdict.source), verdict.accepted.table, position=position)
        if verdict.quarantined.num_rows:
            self.tables.append(QUARANTINE, verdict.quarantined, position=position)
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


def read_reveals(tables: Tables, sources: Sequence[SourceDefinition]) -> dict[str, pa.Table]:
    """Return every source's accepted reveals.

    Raises:
        DataError: a source has none yet.
    """
    return {s.name: tables.read(reveals_table(s.name)) for s in sources}
