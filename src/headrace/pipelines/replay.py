"""Live through history: one thread, a virtual clock, and the same code that ingests, serves and decides in production.

Every event of a day is handled at its own instant: a reveal is applied when it arrives, a prediction is one call of the
serving core that reads the online store after exactly the reveals that had arrived. A day ends with one commit of the
online store, which holds the loop's whole state too; after a crash the replay goes on from there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from headrace.core.errors import ConfigurationError, UsageError
from headrace.core.identity import canonical, content_hash
from headrace.core.time import DAY, HOUR, Instant, VirtualClock
from headrace.features.online import OnlineFeatures
from headrace.features.repair import repair
from headrace.features.stream import DATABASE, StreamPath
from headrace.monitoring.drift import DriftWatch
from headrace.monitoring.incidents import FileChannel, Incidents
from headrace.monitoring.performance import LiveWindow
from headrace.monitoring.plan import MonitoringState
from headrace.monitoring.run import Monitoring
from headrace.pipelines.control import MODELLED_TRAINING, ControlLoop, ControlState
from headrace.pipelines.faults import Fault, retyped, spoil
from headrace.pipelines.gatekeeper import Gatekeeper
from headrace.pipelines.labelling import RowLabels
from headrace.pipelines.latency import ModelledStopwatch
from headrace.pipelines.learning import Footing
from headrace.pipelines.once import OnceLedger, without_measured
from headrace.pipelines.project import Project
from headrace.pipelines.reveals import reveals_of_keys
from headrace.pipelines.sealing import seal, window_of
from headrace.pipelines.stores import CONTROL, Stores, open_stores, state_path
from headrace.pipelines.verify import skew_fact
from headrace.pipelines.view import Progress
from headrace.pipelines.world import World
from headrace.registry.run import Registry
from headrace.serving.core import Core
from headrace.serving.definition import Endpoint
from headrace.serving.log import PredictionLog, segments
from headrace.serving.router import Router
from headrace.sources.batch import load
from headrace.sources.record import Reveal, RevealBatch
from headrace.storage.keyvalue import Access, Transaction
from headrace.storage.ledger import Entry, Head

CHECKPOINT, LIVE = b"checkpoint", b"live"
LIVE_KEPT = 24 * DAY
THREADS = 2  # whatever the machine has, so that it trains the same bits
RESULT = "replay.json"
EXCLUDED_FROM_DIGESTS = ("replay.begun", "replay.finished", "alert.sent")


@dataclass(frozen=True)
class ReplayPlan:
    """Say which span is lived through, from which seed, with which faults; `freeze` keeps that day's champion shadowing."""

    start: Instant
    end: Instant
    seed: int
    faults: tuple[Fault, ...]
    freeze: Instant | None

    @classmethod
    def parse(cls, start: str, end: str, *, seed: int, faults: list[str], freeze: str | None) -> ReplayPlan:
        """Read dates and faults as they are typed.

        Raises:
            UsageError: the span is empty or not of whole days, or a fault is unknown or outside.
        """
        first, last = Instant.parse(start), Instant.parse(end)
        if last <= first or first % DAY or last % DAY:
            raise UsageError(
                "not a span of whole days", got=f"--from {start} --to {end}", expected="--from before --to"
            )
        planted = tuple(Fault.parse(text) for text in faults)
        for fault in planted:
            if not first <= fault.day < last:
                raise UsageError("a fault outside the span", got=str(fault), expected=f"{first.day()} to {last.day()}")
        return cls(first, last, seed, planted, None if freeze is None else Instant.parse(freeze))

    @property
    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint must agree with; crashes change nothing that is decided."""
        faults = [str(f) for f in self.faults if f.name != "crash"]
        return {"start": self.start, "end": self.end, "seed": self.seed, "faults": faults, "freeze": self.freeze}


@dataclass(frozen=True)
class ReplayResult:
    """Hold what a replay counted, and the digests by which two replays are compared."""

    days: int
    predictions: int
    by_model: int
    reveals: int
    digests: Mapping[str, str]
    state: str


def replay(project: Project, plan: ReplayPlan, *, state: str | None, progress: Progress) -> ReplayResult:
    """Live through the span, from the beginning or from the last checkpoint in the state folder.

    Raises:
        ConfigurationError: the state folder holds another replay, or no endpoint is declared.
        DataError: the sources cannot be read.
    """
    if project.pipeline.endpoint is None:
        raise ConfigurationError(
            "a replay needs an endpoint", where=project.pipeline.location, next_step="hr.Endpoint()"
        )
    clock = VirtualClock(plan.start)
    with open_stores(project, state, clock=clock, write=True) as stores:
        progress.step("reading sources", 0, 1)
        world = read_world(project, plan)
        progress.step("reading sources", 1, 1)
        return _Replay(project, plan, stores, world, clock, progress).run(str(state_path(project, state)))


def read_world(project: Project, plan: ReplayPlan) -> World:
    """Return what happens outside: the sources' reveals with the planned faults, and the requests."""
    truth = {s.name: load(s, project.settings, project.folder).batch for s in project.plan.sources}
    return World.build(project.plan, truth, spoil(project.plan, truth, plan.faults))


class _Replay:
    """Hold everything that one replay drives."""

    def __init__(
        self, project: Project, plan: ReplayPlan, stores: Stores, world: World, clock: VirtualClock, progress: Progress
    ) -> None:
        self.project, self.plan, self.stores, self.world = project, plan, stores, world
        self.clock, self.progress = clock, progress
        self.path, self.reader = StreamPath([project.plan]), OnlineFeatures(project.plan)
        self.labels = RowLabels(project.plan)
        found = self._checkpoint()
        self.counts: dict[str, int] = dict(found["counts"])
        self.digest: str = found["digest"]
        self.day = Instant(found["day"])
        clock.advance_to(self.day)
        self.ledger = OnceLedger(stores.ledger, Head(*found["head"]))
        self.stopwatch = ModelledStopwatch(plan.seed, self.counts["predictions"])
        self.loop = self._loop(found)
        self.log = PredictionLog(
            stores.predictions,
            project.plan.columns,
            [c.name for c in project.plan.request],
            segment=self._segment(self.day),
            durable=False,
            definition=project.plan.features,
            in_step=True,
        )
        self.core = self._core()

    def _checkpoint(self) -> dict[str, Any]:
        with self.stores.online.read() as snapshot:
            blob = snapshot.get(CONTROL, CHECKPOINT)
            live = snapshot.get(CONTROL, LIVE)
        if blob is None:
            self._refuse_used()
            head = self.stores.ledger.head()
            zero = {"predictions": 0, "by_model": 0, "reveals": 0}
            fresh = {"day": self.plan.start, "counts": zero, "digest": "", "head": [head.seq, head.hash], "live": None}
            return {**fresh, "state": None, "fresh": True}
        found: dict[str, Any] = orjson.loads(blob)
        if found["identity"] != orjson.loads(canonical(self._identity())):
            raise ConfigurationError(
                "the state folder holds another replay",
                where=str(self.stores.state.path),
                got=found["identity"],
                expected=self._identity(),
                next_step="choose another --state, or delete that folder",
            )
        return {**found, "live": live, "fresh": False}

    def _refuse_used(self) -> None:
        """Raise where the online store holds what a run applied: a replay would write history into live features."""
        with self.stores.online.read() as snapshot:
            newest = self.path.newest(snapshot.getter(DATABASE))
        if newest is not None:
            raise ConfigurationError(
                "the online store holds live features, into which a replay would write history",
                where="[stores] keyvalue" if self.project.settings.stores.keyvalue else str(self.stores.state.path),
                got=f"features up to {Instant(newest).isoformat()}",
                expected="a store of the replay's own",
                next_step="headrace replay … --state NEW; a server's store also needs another prefix= or table",
            )

    def _identity(self) -> dict[str, Any]:
        return {"pipeline": self.project.target, "definition": self.project.plan.hash, **self.plan.identity}

    def _loop(self, found: Mapping[str, Any]) -> ControlLoop:
        pipeline, stores = self.project.pipeline, self.stores
        threshold = pipeline.decision.value if pipeline.decision else 0.5
        live = (
            LiveWindow.lasting(self.project.plan.mature, least=LIVE_KEPT, threshold=threshold)
            if found["live"] is None
            else LiveWindow.load(found["live"])
        )
        kept = found["state"] or {}
        alerts = FileChannel(stores.state.folder("alerts") / "alerts.jsonl")
        channels = {name: alerts for monitor in pipeline.monitors for name in monitor.channels}
        monitoring = Monitoring(
            pipeline.monitors,
            pipeline.retrain_on,
            pipeline=self.project.name,
            live=live,
            incidents=Incidents(self.ledger.append, channels),
            drift=DriftWatch.load(kept["drift"]) if kept.get("drift") else None,
            state=MonitoringState(trained=self.plan.start),
        )
        if kept:
            monitoring.restore(kept["monitoring"])
        footing = Footing(
            ledger=self.ledger,
            tables=stores.tables,
            registry=Registry(self.ledger, stores.blobs, self.project.name),
            clock=self.clock,
            seed=self.plan.seed,
            threads=THREADS,
            latency=self.stopwatch.percentiles(),
            latency_modelled=True,
            skew=partial(skew_fact, self.project, self.stores),
        )
        gatekeeper = Gatekeeper(self.project, self.ledger, stores.tables, state=kept.get("gatekeeper"), streaming=True)
        state = ControlState(**kept["control"]) if kept else ControlState(labelled_until=self.plan.start)
        return ControlLoop(
            self.project,
            footing,
            Router(),
            monitoring,
            gatekeeper,
            state,
            training_takes=MODELLED_TRAINING,
            training=self._training,
        )

    @contextmanager
    def _training(self) -> Iterator[None]:
        """Show that a model is trained, which takes a while in which no day passes."""
        self.progress.step("training", 0, 1, self.day.day())
        yield
        self.progress.step("training", 1, 1, self.day.day())

    def _core(self) -> Core:
        pipeline = self.project.pipeline
        assert isinstance(pipeline.endpoint, Endpoint)
        return Core(
            self.reader,
            self.loop.router,
            self.log,
            endpoint=pipeline.endpoint,
            decision=pipeline.decision,
            unit=pipeline.rollout.unit if pipeline.rollout else None,
            stopwatch=self.stopwatch,
        )

    def _segment(self, day: int) -> int:
        return (day - self.plan.start) // DAY + 1

    def run(self, state: str) -> ReplayResult:
        """Live from the checkpoint to the end and return the result."""
        self.loop.restore_routes()
        self._drop_later_segments()
        if self.counts["reveals"] == 0 and self.day == self.plan.start:
            self._begin()
        total = (self.plan.end - self.plan.start) // DAY
        while self.day < self.plan.end:
            done = (self.day - self.plan.start) // DAY
            self.progress.step("replaying", done, total, self._note())
            self._live_through(self.day)
        self.progress.step("replaying", total, total, self._note())
        return self._finish(state)

    def _note(self) -> str:
        champion = self.core.router.routes.champion
        serving = "no model yet" if champion is None else champion.version.rsplit("/", 1)[-1]
        return f"{self.day.day()}  {self.counts['predictions']:,} predictions  {serving}"

    def _drop_later_segments(self) -> None:
        for segment in segments(self.stores.predictions):
            if segment > self.log.segment:
                (self.stores.predictions / f"segment-{segment:06d}.log").unlink()

    def _begin(self) -> None:
        """Load what had arrived before the first day, as a feature store is filled before it serves."""
        self.ledger.append([Entry("replay.begun", self.project.name, self._identity())])
        with self._transaction() as (transaction, access):
            self.path.begin(transaction)
            for name in self.world.batches:
                verdict = self.loop.gatekeeper.judge(self.world.before(name, self.day), now=self.day, where="history")
                self.loop.gatekeeper.store(verdict, "replay", 0)
                for reveal in verdict.accepted.reveals():
                    self._apply(access, name, reveal)
            self._commit(transaction)

    @contextmanager
    def _transaction(self) -> Iterator[tuple[Transaction, Access]]:
        with self.stores.online.write() as transaction:
            yield transaction, transaction.access(DATABASE)

    def _apply(self, access: Access, source: str, reveal: Reveal) -> None:
        self.path.apply(access, source, reveal)
        self.counts["reveals"] += 1

    def _live_through(self, day: Instant) -> None:
        verdicts = [self._gate(name, day) for name in self.world.batches]
        events: list[tuple[int, int, Any, Any]] = []
        for verdict in verdicts:
            events += [(r.arrival, 0, verdict.source, r) for r in verdict.accepted.reveals()]
        events += [(t, 1, row, None) for t, row in self.world.requests(day)]
        events.sort(key=lambda event: event[:2])
        with self._transaction() as (transaction, access):
            at = 0
            for hour in range(day, day + DAY, HOUR):
                if hour > day:
                    self._tick(hour)
                end = at
                while end < len(events) and events[end][0] < hour + HOUR:
                    end += 1
                if self.stores.online.capabilities.remote:
                    self._fetch(events[at:end], transaction)
                self._hour(events[at:end], access)
                at = end
            self._end_day(day, verdicts, transaction)

    def _fetch(self, events: list[tuple[int, int, Any, Any]], transaction: Transaction) -> None:
        """Read at once most of what an hour's events will read one by one, where each read is a round trip."""
        for name in self.world.batches:
            self.path.fetch(transaction, name, [e[3] for e in events if e[1] == 0 and e[2] == name])
        heads = self.reader.heads([row for _, kind, row, _ in events if kind])
        transaction.get_many(DATABASE, list(dict.fromkeys(heads)))

    def _hour(self, events: list[tuple[int, int, Any, Any]], access: Access) -> None:
        """Handle an hour's events, each at its own instant."""
        apply, predict, get, served = self.path.apply, self.core.predict, access.get, self.loop.served
        for instant, kind, subject, reveal in events:
            if kind == 0:
                apply(access, subject, reveal)
                self.counts["reveals"] += 1
                if self.labels.stated(subject, reveal):
                    self._label(subject, reveal, access)
                continue
            answer = predict(subject, instant, get)
            self.counts["predictions"] += 1
            self.counts["by_model"] += answer.variant != "fallback"
            served(self.core.row_id(subject), instant, answer)

    def _label(self, source: str, reveal: Reveal, access: Access) -> None:
        """Tell monitoring a row's label once a reveal states a column of it."""
        row = self.path.row(access.get, source, reveal.row_id)
        if row is not None:
            self.loop.live.label(reveal.row_id, self.labels.of(row.values), arrived=reveal.arrival)

    def _gate(self, source: str, day: Instant) -> Any:
        """Judge a day's delivery; with `schema_change` planted it arrives with another type."""
        batch = self.world.delivery(source, day)
        changed = any(f.name == "schema_change" and f.day == day for f in self.plan.faults)
        if changed and source == self.project.plan.rows.name:
            batch = RevealBatch(batch.source, retyped(batch))
        return self.loop.gatekeeper.judge(batch, now=day + DAY, where=f"delivery of {day.day()}")

    def _tick(self, now: int) -> None:
        self.clock.advance_to(now)
        self.loop.tick(now)

    def _end_day(self, day: Instant, verdicts: list[Any], transaction: Transaction) -> None:
        """Store the day, close its log segment, do what is due at midnight, and commit."""
        number = self._segment(day)
        for verdict in verdicts:
            self.loop.gatekeeper.store(verdict, "replay", number)
        self.path.expire(transaction, day + DAY)
        repair(transaction, self.project.plan, partial(reveals_of_keys, self.stores.tables))
        self.loop.close_window(day, window_of(self.log))
        self.digest = hashlib.sha256((self.digest + seal(self.log, self.ledger)).encode()).hexdigest()
        self.day = Instant(day + DAY)
        self._tick(self.day)
        if self.plan.freeze == self.day and self.loop.state.frozen is None:
            self.loop.freeze(self.day)
        if any(f.name == "bad_model" and f.day == self.day for f in self.plan.faults):
            self.loop.plant_bad_model(self.day)
        self.log.open_segment(number + 1)
        self._commit(transaction)

    def _commit(self, transaction: Transaction) -> None:
        head = self.ledger.head()
        body = {
            "identity": self._identity(),
            "day": self.day,
            "counts": self.counts,
            "digest": self.digest,
            "head": [head.seq, head.hash],
            "state": self.loop.dump(),
        }
        transaction.put(CONTROL, CHECKPOINT, orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY))
        transaction.put(CONTROL, LIVE, self.loop.live.dump())
        self.path.commit(transaction.access(DATABASE), self.day, dict.fromkeys(self.world.batches, self.day))

    def _finish(self, state: str) -> ReplayResult:
        digests = {"predictions": self.digest, **ledger_digests(self.ledger)}
        days = (self.plan.end - self.plan.start) // DAY
        counts = self.counts
        result = ReplayResult(days, counts["predictions"], counts["by_model"], counts["reveals"], digests, state)
        finished = self.ledger.read(kinds=["replay.finished"], limit=1)
        if not finished:
            self.ledger.append([Entry("replay.finished", self.project.name, asdict(result))])
        (Path(self.stores.state.folder("replay")) / RESULT).write_bytes(orjson.dumps(asdict(result)))
        self.log.close()
        return result


def ledger_digests(ledger: OnceLedger) -> dict[str, str]:
    """Return the digests of all decisions and of all models, without what clocks and machines say."""
    decisions, models, after = hashlib.sha256(), hashlib.sha256(), 0
    while page := ledger.read(after=after):
        for record in page:
            after = record.seq
            if record.kind in EXCLUDED_FROM_DIGESTS:
                continue
            told = [record.kind, record.subject, record.at, record.actor, without_measured(record.body)]
            decisions.update(content_hash(told).encode())
            if record.kind == "version":
                models.update(str(record.body["manifest"]).encode())
    return {"decisions": decisions.hexdigest(), "models": models.hexdigest()}
