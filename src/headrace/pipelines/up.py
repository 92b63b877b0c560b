"""Run the control loop beside a server: streams in, labels joined, monitors, retraining, rollout."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import orjson

from headrace.core.errors import BackendError
from headrace.core.time import HOUR, MINUTE, SECOND
from headrace.features.repair import repair
from headrace.features.rows import newest_arrival
from headrace.features.stream import DATABASE, StreamPath
from headrace.monitoring.drift import DriftWatch
from headrace.monitoring.incidents import Incidents, channels_of
from headrace.monitoring.performance import LiveWindow
from headrace.monitoring.plan import MonitoringState
from headrace.monitoring.run import Monitoring
from headrace.pipelines.baselines import load_baselines
from headrace.pipelines.control import ControlLoop, ControlState
from headrace.pipelines.dead_letters import REPLAYED_LETTERS
from headrace.pipelines.feed import Feed, open_project_streams
from headrace.pipelines.feed_metrics import FeedCollector
from headrace.pipelines.gatekeeper import Gatekeeper
from headrace.pipelines.labelling import RowLabels
from headrace.pipelines.learning import Footing, load_profile
from headrace.pipelines.materialize import Materializer
from headrace.pipelines.project import Project
from headrace.pipelines.quarantine import DONE, released_rows
from headrace.pipelines.reveals import reveals_of_keys
from headrace.pipelines.serve import FOLLOW_SECONDS, PipelineService, serve
from headrace.pipelines.spread import spread_of
from headrace.pipelines.stores import CONTROL
from headrace.pipelines.verify import skew_fact
from headrace.pipelines.view import Silent
from headrace.serving.log import read_segment, segments
from headrace.sources.definition import SourceDefinition
from headrace.sources.record import Reveal
from headrace.storage.keyvalue import Access
from headrace.storage.streams import Streams

STATE, LIVE = b"up/state", b"up/live"
THREADS = 2


class Controller:
    """Work beside a server, a tick at a time."""

    def __init__(self, service: PipelineService, streams: Streams, seed: int) -> None:
        self.service, self.streams = service, streams
        self.project, self.stores, self.clock = service.project, service.stores, service.clock
        plan = self.project.plan
        self.path, self.labels = StreamPath([plan]), RowLabels(plan)
        materializer = Materializer(self.project, self.stores, Silent())
        if materializer.behind():
            materializer.bring_up()  # a process was killed between the tables and the online features
        self.noticed = self.stores.ledger.head().seq
        self.loop, self.housekept, self.kept = self._loop(seed), 0, 0
        self.loop.gatekeeper.learn_stored(plan.sources)
        self.feed = Feed(
            self.project,
            self.stores,
            streams,
            self.clock,
            sources=plan.sources,
            gatekeeper=self.loop.gatekeeper,
            path=self.path,
            applied=self._applied,
        )
        service.served = self.loop.served

    def _loop(self, seed: int) -> ControlLoop:
        pipeline, stores = self.project.pipeline, self.stores
        with stores.online.read() as snapshot:
            blob, live_blob = snapshot.get(CONTROL, STATE), snapshot.get(CONTROL, LIVE)
        kept: dict[str, Any] = {} if blob is None else orjson.loads(blob)
        threshold = pipeline.decision.value if pipeline.decision else 0.5
        names = [name for monitor in pipeline.monitors for name in monitor.channels]
        channels = channels_of(
            names, self.project.settings.alerts, folder=stores.state.folder("alerts"), stream=sys.stderr
        )
        now = int(self.clock.now())
        monitoring = Monitoring(
            pipeline.monitors,
            pipeline.retrain_on,
            pipeline=self.project.name,
            live=LiveWindow.lasting(self.project.plan.mature, threshold=threshold)
            if live_blob is None
            else LiveWindow.load(live_blob),
            incidents=Incidents(stores.ledger.append, channels),
            drift=DriftWatch.load(kept["drift"]) if kept.get("drift") else self._profile(),
            state=MonitoringState(trained=now),
        )
        if kept:
            monitoring.restore(kept["monitoring"])
        footing = Footing(
            stores.ledger,
            stores.tables,
            self.service.registry,
            self.clock,
            seed,
            THREADS,
            self.service.latency(),
            latency_modelled=False,
            skew=partial(skew_fact, self.project, self.stores),
            spread=spread_of(self.project, stores, Silent()),
        )
        state = ControlState(**kept["control"]) if kept else ControlState(labelled_until=now, serving_since=now)
        gates = Gatekeeper(
            self.project,
            stores.ledger,
            stores.tables,
            state=kept.get("gatekeeper"),
            streaming=True,
            baselines=load_baselines(stores.ledger, stores.blobs, self.project.plan.sources),
        )
        loop = ControlLoop(
            self.project, footing, self.service.router, monitoring, gates, state, training=self._unlocked
        )
        loop.adopt_challenger(now)
        if kept:
            self._recall(loop, tuple(kept["log"]))
        return loop

    def _recall(self, loop: ControlLoop, seen: tuple[int, ...]) -> None:
        """Take in what a killed process had answered and applied since it last kept its state, from log and row store."""
        folder = self.stores.predictions
        for segment in segments(folder):
            if segment < seen[0]:
                continue
            for prediction in read_segment(folder, segment):
                if (segment, int(prediction.id.rpartition("-")[2])) >= seen:
                    loop.recall(prediction)
        self._label(loop, loop.live.labels.unlabelled())

    def _label(self, loop: ControlLoop, row_ids: Sequence[bytes]) -> None:
        """Tell the monitors the labels that the row store has of some rows."""
        name = self.project.plan.rows.name
        with self.stores.online.read() as snapshot:
            get = snapshot.getter(DATABASE)
            rows = [self.path.row(get, name, row_id) for row_id in row_ids]
        for row_id, row in zip(row_ids, rows, strict=True):
            label = math.nan if row is None else self.labels.of(row.values)
            if row is not None and not math.isnan(label):
                loop.live.label(row_id, label, arrived=newest_arrival(row, sorted(self.labels.places)))

    def _notice(self) -> None:
        """Learn labels and foreign keys from what was ingested beside the server: rows released, letters replayed."""
        sources = {source.name: source for source in self.project.plan.sources}
        for record in self.stores.ledger.read(kinds=[DONE, REPLAYED_LETTERS], after=self.noticed):
            source = sources.get(record.subject)
            if source is not None:
                self.loop.gatekeeper.learn_stored([source])
            if source is self.project.plan.rows and self.labels.places:
                unlabelled = self.loop.live.labels.unlabelled
                rows = released_rows(self.stores, source, record) if record.kind == DONE else unlabelled()
                with self.service.lock:
                    self._label(self.loop, rows)
            self.noticed = record.seq

    def _profile(self) -> DriftWatch | None:
        champion = self.service.registry.champion()
        return None if champion is None else load_profile(self.service.registry, champion.name)

    def tick(self) -> None:
        """Take in what streams brought, do what is due, and keep the loop's state."""
        missed: BackendError | None = None
        try:
            self._notice()
            self.feed.take_in()
        except BackendError as error:
            if not error.retryable:
                raise
            missed = error  # a broker that is gone holds up neither monitors nor a rollout
        now = int(self.clock.now())
        self.service.turn_day(self.loop.close_window)
        with self.service.lock:
            before = self.loop.state
            self.loop.follow_registry()
            self.loop.tick(now)
        if self.loop.state is not before or now >= self.kept + MINUTE:
            self.keep()
        if now >= self.housekept + HOUR:
            with self.stores.online.write() as transaction:
                self.path.expire(transaction, now)
                repair(transaction, self.project.plan, partial(reveals_of_keys, self.stores.tables))
            self.housekept = now
        if missed is not None:
            raise missed

    def keep(self) -> None:
        """Keep the loop's state: after each step of a rollout or retraining, else once a minute, and at the end."""
        with self.service.lock:
            state = self.loop.dump() | {"log": [self.service.log.segment, self.service.log.count]}
            live = self.loop.live.dump()
        with self.stores.online.write() as transaction:
            transaction.put(CONTROL, STATE, orjson.dumps(state, option=orjson.OPT_SERIALIZE_NUMPY))
            transaction.put(CONTROL, LIVE, live)
        self.kept = int(self.clock.now())

    @contextmanager
    def _unlocked(self) -> Iterator[None]:
        """Answer requests while a model is trained: the tick holds the service's lock once."""
        self.service.lock.release()
        try:
            yield
        finally:
            self.service.lock.acquire()

    def _applied(self, source: SourceDefinition, reveal: Reveal, access: Access) -> None:
        """Tell the monitors of a label."""
        if self.labels.stated(source.name, reveal):
            stored = self.path.row(access.get, source.name, reveal.row_id)
            label = math.nan if stored is None else self.labels.of(stored.values)
            with self.service.lock:
                self.loop.live.label(reveal.row_id, label, arrived=reveal.arrival)


def up(project: Project, *, state: str | None, host: str, port: int, behind_proxy: bool, json: bool) -> None:
    """Serve with the control loop beside the server.

    Raises:
        ConfigurationError: as `headrace.pipelines.serve.serve`.
    """

    def beside(service: PipelineService, stack: ExitStack) -> Callable[[], None]:
        streams = stack.enter_context(open_project_streams(project, service.stores, service.clock))
        controller = Controller(service, streams, seed=0)
        service.collectors.append(FeedCollector(controller.feed))
        stack.callback(controller.feed.close)
        stack.callback(controller.keep)
        return controller.tick

    serve(
        project,
        state=state,
        host=host,
        port=port,
        behind_proxy=behind_proxy,
        json=json,
        beside=beside,
        every=min(project.settings.limits.stream_wait / SECOND, FOLLOW_SECONDS),
    )
