"""Run a pipeline once over batch data: ingest, validate, features, train, evaluate, gate, register, promote.

Every step is idempotent and finds out by itself what is already done, so the same command after a crash goes on from
there, and the same command on the same data does nothing.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from headrace.core.errors import GateRefused, SchemaChanged
from headrace.core.functions import function_source
from headrace.core.identity import content_hash
from headrace.core.time import Clock, Instant, SystemClock
from headrace.features.stream import DATABASE, StreamPath
from headrace.pipelines.baselines import load_baselines
from headrace.pipelines.batch import predict_command
from headrace.pipelines.data_incidents import DataIncidents
from headrace.pipelines.dead_letters import refused_anew
from headrace.pipelines.feed import Feed, open_project_streams
from headrace.pipelines.gatekeeper import QUARANTINE, Gatekeeper, broken_rows
from headrace.pipelines.latency import measure_reads
from headrace.pipelines.learning import Candidate, Footing, learn
from headrace.pipelines.loads import LoadBook
from headrace.pipelines.materialize import Fresh, Materializer
from headrace.pipelines.pinned import reads
from headrace.pipelines.project import Project
from headrace.pipelines.quarantine import finish, quarantined, reveals_kept
from headrace.pipelines.reveals import append_reveals, ensure_grown, reveals_table, without, without_known
from headrace.pipelines.spread import OpenSpread, here, spread_of
from headrace.pipelines.stores import Stores, open_stores
from headrace.pipelines.verify import skew_fact
from headrace.pipelines.view import Progress, Table, View
from headrace.registry.run import Registry
from headrace.sources.batch import Loaded, iter_loads
from headrace.sources.definition import SourceDefinition
from headrace.sources.letters import letters_table
from headrace.sources.plan import reveal_schema
from headrace.sources.record import ARRIVAL, CONTENT, ROW_ID, RevealBatch
from headrace.storage.ledger import Entry

THREADS = 2
FINISHED = "run.finished"
KEYS = [ROW_ID, ARRIVAL, CONTENT]


@dataclass
class Ingested:
    """Hold what ingesting one source brought.

    `before` is its table's version before, None where there was none. `fresh` are the new reveals, None where they are
    too many to be held.
    """

    source: str
    before: int | None
    version: int = 0
    rows: int = 0
    reveals: int = 0
    quarantined: int = 0
    letters: int = 0
    ahead: int = 0
    fresh: pa.Table | None = None


def run(
    project: Project,
    *,
    state: str | None,
    seed: int,
    progress: Progress,
    clock: Clock | None = None,
    engine: str | None = None,
) -> View:
    """Run the pipeline and return what was done; `engine` computes the training set, the settings' unless said.

    Raises:
        BadUrl, MissingExtra: there is no such engine.
        DataError: data do not pass their checks; what had been accepted before stays as it was.
        UserCodeError: the training function failed.
        GateRefused: the model did not pass its gates; it is registered, and not promoted.
    """
    now = clock or SystemClock()
    with open_stores(project, state, clock=now, write=True) as stores:
        return _Run(project, stores, now, seed, progress, spread_of(project, stores, progress, engine=engine)).go()


class _Run:
    def __init__(
        self, project: Project, stores: Stores, clock: Clock, seed: int, progress: Progress, spread: OpenSpread = here
    ) -> None:
        self.project, self.stores, self.clock, self.seed, self.progress = project, stores, clock, seed, progress
        self.spread = spread
        self.registry = Registry(stores.ledger, stores.blobs, project.name)
        self.rows: list[list[Any]] = []
        finish(project, stores, alone=True)
        self.baselines = load_baselines(stores.ledger, stores.blobs, project.plan.sources)

    def go(self) -> View:
        """Do every step that is not done yet."""
        sources = self.project.plan.sources
        events = self.follow()
        incidents, ingested = DataIncidents(self.project, self.stores, self.clock), []
        for place, source in enumerate(sources):
            with incidents.watch(source.name):
                ingested.append(self.ingest(source, place, len(sources)))
        for part in ingested:
            part.rows += events.get(part.source, 0)
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
        model = self.project.pipeline.model
        learned = [function_source(model.function), repr(model.split), repr(model.search), model.baseline, model.refit]
        learned.append([repr(replace(gate, location="")) for gate in self.project.pipeline.gates])
        return content_hash([self.project.target, self.project.plan.hash, learned, rows, self.seed, as_of])[:16]

    def follow(self) -> dict[str, int]:
        """Take in what lies in the streams that settings name; return how many events of each source.

        What is applied here needs not be applied again from the tables.
        """
        names = {name for name, where in self.project.settings.sources.items() if where.stream is not None}
        sources = [source for source in self.project.plan.sources if source.name in names]
        if not sources:
            return {}
        path = StreamPath([self.project.plan])
        with self.stores.online.write() as transaction:
            path.grow(transaction)
            path.begin(transaction)
        with self.stores.online.read() as snapshot:
            path.uncovered(snapshot.getter(DATABASE))
        gatekeeper = self.gatekeeper(streaming=True)
        gatekeeper.learn_stored(self.project.plan.sources)
        with (
            open_project_streams(self.project, self.stores, self.clock) as streams,
            closing(
                Feed(self.project, self.stores, streams, self.clock, sources=sources, gatekeeper=gatekeeper, path=path)
            ) as feed,
        ):
            found = feed.drain(lambda done: self.progress.step("take in streams", done, done))
        gatekeeper.refuse_if_held()
        return found

    def _version(self, source: SourceDefinition) -> int:
        described = self.stores.tables.describe(reveals_table(source.name))
        return -1 if described is None else described.version

    def ingest(self, source: SourceDefinition, place: int, total: int) -> Ingested:
        """Read what is new of a source, delivery by delivery; drop what is known, validate the rest and append it."""
        self.progress.step("ingest and validate", place, total, source.name)
        where = self.project.settings.sources.get(source.name)
        if where is not None and where.stream is not None and not where.located:
            version = self._version(source)
            return Ingested(source.name, version, max(version, 0), fresh=reveal_schema(source).empty_table())
        gatekeeper = self.gatekeeper(streaming=False)
        table = reveals_table(source.name)
        described = self.stores.tables.describe(table)
        done = Ingested(source.name, None if described is None else described.version)
        ensure_grown(self.stores.tables, source)
        book = LoadBook(self.stores.tables, source.name, table)
        gatekeeper.learn_stored(self.project.plan.sources)
        try:
            now = int(self.clock.now())
            for loaded in iter_loads(source, self.project.settings, self.project.folder, now=now, seen=book.seen):
                self.accept(source, loaded, gatekeeper, book, done)
                self.progress.step("ingest and validate", place, total, f"{source.name}, {done.rows:,} rows")
        except SchemaChanged as error:
            verdict = gatekeeper.validators[source.name].stopped_by(error, int(self.clock.now()))
            self.stores.ledger.append([Entry("verdict", source.name, {"where": "run", **verdict.to_dict()})])
            raise
        after = self.stores.tables.describe(table)
        done.version = after.version if after is not None else 0
        later = f", {done.ahead:,} are not known before a later run" if done.ahead else ""
        what = f"{source.name}: {done.reveals:,} new reveals of {done.rows:,} rows{later}"
        self.rows.append(["ingest", what, f"{done.quarantined} rows quarantined, {done.letters} dead letters"])
        self.progress.step("ingest and validate", place + 1, total, source.name)
        return done

    def gatekeeper(self, *, streaming: bool) -> Gatekeeper:
        """Return who judges deliveries."""
        stores = self.stores
        return Gatekeeper(self.project, stores.ledger, stores.tables, streaming=streaming, baselines=self.baselines)

    def accept(
        self, source: SourceDefinition, loaded: Loaded, gatekeeper: Gatekeeper, book: LoadBook, done: Ingested
    ) -> None:
        """Validate what is new of a delivery and store it, with the note of what it covers."""
        found, now = loaded.load, int(self.clock.now())
        marks = loaded.marks
        arrived = found.batch.table.filter(pc.less_equal(found.batch.table[ARRIVAL], now))
        if ahead := len(found.batch) - arrived.num_rows:
            # What is known later only is no data yet: its parts stay open, and a later run reads them again.
            marks = tuple(replace(mark, mark="") for mark in marks)
        fresh = RevealBatch(source, self.unknown(source, arrived))
        refused, letters = refused_anew(self.stores.tables, source, found.refused, now=now)
        if len(fresh) or refused.num_rows:
            at = fresh.newest_event if len(fresh) else now
            verdict = gatekeeper.judge(fresh, now=at, where="run", refused=refused, observed=found.observed)
            verdict.raise_if_stopped()
            fresh = verdict.accepted
            broken = broken_rows(verdict)
            # First: a good row that a kill leaves out is found again, and not beside bad ones alone.
            for name, bad in ((QUARANTINE, broken), (letters_table(source.name), letters)):
                if bad.num_rows:
                    self.stores.tables.append(name, bad)
            done.quarantined, done.letters = done.quarantined + broken.num_rows, done.letters + letters.num_rows
        position = book.cover(marks, rows=len(fresh) > 0, at=now)
        if len(fresh):
            append_reveals(self.stores.tables, source, fresh.table, position)
        done.rows, done.reveals = done.rows + found.rows, done.reveals + len(fresh)
        done.ahead += ahead
        self.hold(done, fresh.table)

    def hold(self, done: Ingested, fresh: pa.Table) -> None:
        """Keep new reveals for the online store, unless they are so many that it had better read the table."""
        if done.reveals > self.project.settings.limits.delivery_rows:
            done.fresh = None
        elif done.fresh is not None or done.reveals == len(fresh):
            done.fresh = fresh if done.fresh is None else pa.concat_tables([done.fresh, fresh])

    def unknown(self, source: SourceDefinition, reveals: pa.Table) -> pa.Table:
        """Return the reveals that neither the source's table nor the quarantine has, in order of arrival."""
        reveals = without_known(self.stores.tables, reveals_table(source.name), reveals, KEYS)
        return without(reveals, reveals_kept(quarantined(self.stores.tables, source.name)), KEYS)

    def materialize(self, ingested: list[Ingested]) -> int:
        """Bring the online store up to the tables; return the newest arrival.

        Applying a reveal twice changes nothing, so where a run was cut off everything is applied again.
        """
        fresh = {p.source: Fresh(p.before, p.version, p.fresh) for p in ingested if p.fresh is not None}
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
            spread=self.spread,
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
            served, now = self.project.pipeline.endpoint is not None, int(self.clock.now())
            use = f"headrace serve {self.project.typed}" if served else predict_command(self.project, self.stores, now)
            return body | {"outcome": "promoted", "next": use}
        if name == champion:
            return body | {"outcome": "champion", "next": f"headrace models {self.project.typed}"}
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
