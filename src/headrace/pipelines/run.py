"""Run a pipeline once over batch data: ingest, validate, features, train, evaluate, gate, register, promote.

Every step is idempotent and finds out by itself what is already done, so the same command after a crash goes on from
there, and the same command on the same data does nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.core.errors import GateRefused, SchemaChanged
from headrace.core.identity import content_hash
from headrace.core.time import Clock, Instant, SystemClock
from headrace.pipelines.gatekeeper import Gatekeeper, reveals_table
from headrace.pipelines.latency import measure_reads
from headrace.pipelines.learning import Candidate, Footing, learn
from headrace.pipelines.materialize import Fresh, Materializer
from headrace.pipelines.pinned import reads
from headrace.pipelines.project import Project
from headrace.pipelines.stores import Stores, open_stores
from headrace.pipelines.verify import skew_fact
from headrace.pipelines.view import Progress, Table, View
from headrace.registry.run import Registry
from headrace.sources.definition import SourceDefinition
from headrace.sources.record import ARRIVAL, CONTENT, ROW_ID, RevealBatch
from headrace.sources.run import Load, load
from headrace.storage.ledger import Entry
from headrace.storage.tables.protocol import Position

THREADS = 2
FINISHED = "run.finished"


@dataclass(frozen=True)
class Ingested:
    """Hold what ingesting one source brought."""

    source: str
    rows: int
    fresh: RevealBatch
    quarantined: int
    version: int


def run(project: Project, *, state: str | None, seed: int, progress: Progress, clock: Clock | None = None) -> View:
    """Run the pipeline and return what was done.

    Raises:
        DataError: data do not pass their checks; what had been accepted before stays as it was.
        UserCodeError: the training function failed.
        GateRefused: the model did not pass its gates; it is registered, and not promoted.
    """
    now = clock or SystemClock()
    with open_stores(project, state, clock=now, write=True) as stores:
        return _Run(project, stores, now, seed, progress).go()


class _Run:
    def __init__(self, project: Project, stores: Stores, clock: Clock, seed: int, progress: Progress) -> None:
        self.project, self.stores, self.clock, self.seed, self.progress = project, stores, clock, seed, progress
        self.registry = Registry(stores.ledger, stores.blobs, project.name)
        self.rows: list[list[Any]] = []

    def go(self) -> View:
        """Do every step that is not done yet."""
        sources = self.project.plan.sources
        ingested = [self.ingest(source, place, len(sources)) for place, source in enumerate(sources)]
        newest = self.materialize(ingested)
        as_of = min(int(self.clock.now()), newest + self.project.plan.mature)
        identity = self.identity(as_of)
        done = self.stores.ledger.read(kinds=[FINISHED], subject=identity, limit=1)
        if done:
            return self.view(
                {"run": identity, **done[0].body}, "nothing new: data, definition and seed are those of an earlier run"
            )
        return self.learn(identity, as_of)

    def identity(self, as_of: int) -> str:
        """Return the id of the run: what it follows from."""
        described = [self.stores.tables.describe(reveals_table(s.name)) for s in self.project.plan.sources]
        rows = [None if d is None else d.rows for d in described]  # compaction gives the same rows another version
        return content_hash([self.project.target, self.project.plan.hash, rows, self.seed, as_of])[:16]

    def ingest(self, source: SourceDefinition, place: int, total: int) -> Ingested:
        """Read a source, drop what is known already, validate the rest and append it to its table."""
        self.progress.step("ingest and validate", place, total, source.name)
        gatekeeper = Gatekeeper(self.project, self.stores.ledger, self.stores.tables, streaming=False)
        try:
            found = load(source, self.project.settings, self.project.folder)
        except SchemaChanged as error:
            verdict = gatekeeper.validators[source.name].stopped_by(error, int(self.clock.now()))
            self.stores.ledger.append([Entry("verdict", source.name, {"where": "run", **verdict.to_dict()})])
            raise
        return self.accept(source, found, gatekeeper, place, total)

    def accept(self, source: SourceDefinition, found: Load, gatekeeper: Gatekeeper, place: int, total: int) -> Ingested:
        """Validate what is new of a load and store it, the position with the rows."""
        table = reveals_table(source.name)
        described = self.stores.tables.describe(table, applications=[f"run/{source.name}"])
        known = None if described is None else self.stores.tables.read(table)
        if known is not None:
            gatekeeper.known.learn(RevealBatch(source, known))
        for other in self.project.plan.sources:
            if other is not source and self.stores.tables.describe(reveals_table(other.name)) is not None:
                gatekeeper.known.learn(RevealBatch(other, self.stores.tables.read(reveals_table(other.name))))
        fresh = RevealBatch(source, _unknown(found.batch.table, known))
        quarantined = 0
        if len(fresh):
            verdict = gatekeeper.judge(
                fresh, now=fresh.newest_event, where="run", refused=found.refused, observed=found.observed
            )
            verdict.raise_if_stopped()
            last = (described.positions.get(f"run/{source.name}") if described else None) or 0
            position = Position(f"run/{source.name}", last + 1)
            self.stores.tables.append(table, verdict.accepted.table, position=position)
            fresh, quarantined = verdict.accepted, verdict.quarantined.num_rows
            if quarantined:
                self.stores.tables.append("quarantine", verdict.quarantined, position=position)
        after = self.stores.tables.describe(table)
        version = after.version if after is not None else 0
        self.rows.append(
            [
                "ingest",
                f"{source.name}: {len(fresh):,} new reveals of {found.rows:,} rows",
                f"{quarantined} rows quarantined",
            ]
        )
        self.progress.step("ingest and validate", place + 1, total, source.name)
        return Ingested(source.name, found.rows, fresh, quarantined, version)

    def materialize(self, ingested: list[Ingested]) -> int:
        """Bring the online store up to the tables; return the newest arrival.

        Applying a reveal twice changes nothing, so where a run was cut off everything is applied again.
        """
        fresh = {part.source: Fresh(part.version, part.fresh.table) for part in ingested}
        done = Materializer(self.project, self.stores, self.progress).bring_up(fresh)
        if done.filled:
            what = f"{', '.join(done.filled)}: {done.keys:,} keys filled from history"
            self.rows.append(["features", what, "changed or new"])
        newest = f"up to {Instant(done.newest).isoformat()}"
        self.rows.append(["features", f"{done.reveals:,} reveals applied to the online store", newest])
        return done.newest

    def learn(self, identity: str, as_of: int) -> View:
        """Train, judge, register, and promote what passed where nothing serves yet."""
        champion = self.registry.champion()
        search = self.project.pipeline.model.search
        total = search.trials if search else 1
        self.progress.step("train", 0, total)
        footing = Footing(
            self.stores.ledger,
            self.stores.tables,
            self.registry,
            self.clock,
            self.seed,
            THREADS,
            measure_reads(self.project, self.stores),
            latency_modelled=False,
            skew=partial(skew_fact, self.project, self.stores),
        )
        candidate = learn(
            self.project,
            footing,
            as_of=as_of,
            champion=self.registry.servable(champion.name) if champion and reads(self.project, champion) else None,
            params=None,
            progress=lambda trial: self.progress.step("train", trial.number + 1, total, f"{trial.value:.4f}"),
        )
        self.progress.step("train", total, total)
        body = self.decide(candidate, champion.name if champion else None)
        self.stores.ledger.append([Entry(FINISHED, identity, body)])
        if not candidate.evaluation.passed:
            raise self.refusal(candidate)
        return self.view({"run": identity, **body}, body["next"])

    def decide(self, candidate: Candidate, champion: str | None) -> dict[str, Any]:
        """Promote, challenge or leave a registered candidate; return what the ledger keeps of it."""
        name, evaluation = candidate.version.name, candidate.evaluation
        short = name.rsplit("/", 1)[-1]
        body = {"version": name, "passed": evaluation.passed, "metrics": dict(candidate.version.metrics)}
        for gate in evaluation.gates:
            self.rows.append(["gate", str(gate), "passed" if gate.passed else "FAILED"])
        if not evaluation.passed:
            return body | {"outcome": "refused", "next": f"headrace models {self.project.typed}"}
        if champion is None:
            self.registry.promote(name, why="no champion yet", actor="headrace")
            return body | {"outcome": "promoted", "next": f"headrace serve {self.project.typed}"}
        self.registry.challenge(name, why="its gates passed", actor="headrace")
        step = f"headrace up {self.project.typed} rolls it out; headrace promote {self.project.typed} {short} --why … does it now"
        return body | {"outcome": "challenger", "next": step}

    def refusal(self, candidate: Candidate) -> GateRefused:
        """Return the error for a candidate that did not pass."""
        failed = candidate.evaluation.failed
        return GateRefused(
            f"{candidate.version.name} is registered and not promoted: {len(failed)} of {len(candidate.evaluation.gates)} gates failed",
            where=self.project.pipeline.location,
            got="; ".join(str(gate) for gate in failed),
            expected="every gate passed",
            next_step=f"headrace models {self.project.typed}",
        )

    def view(self, data: dict[str, Any], note: str) -> View:
        """Return what was done as tables."""
        rows = [*self.rows, ["model", str(data.get("version", "")), str(data.get("outcome", ""))]]
        table = Table("What was done", ["step", "what", "result"], rows)
        return View(f"Run {data['run']} of {self.project.target}", data, [table], (f"Next: {note}",))


def _unknown(table: pa.Table, known: pa.Table | None) -> pa.Table:
    """Return the reveals that are not among the known ones, in order of arrival."""
    if known is None or not known.num_rows:
        return table
    keys = [ROW_ID, ARRIVAL, CONTENT]
    marked = table.append_column("_place", pa.array(np.arange(table.num_rows)))
    fresh = marked.join(known.select(keys), keys=keys, join_type="left anti")["_place"]
    return table.take(pa.array(np.sort(fresh.to_numpy())))
