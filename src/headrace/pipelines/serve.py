"""Serve a pipeline over HTTP; with `control` the loop runs beside it: streams in, monitors, retraining, rollout."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import orjson
import uvicorn
from numpy.typing import NDArray
from prometheus_client.registry import Collector

from headrace.core.errors import ConfigurationError, HeadraceError, Unavailable
from headrace.core.time import DAY, SECOND, Clock, Instant, SystemClock
from headrace.features.moment import open_read
from headrace.features.online import OnlineFeatures
from headrace.features.record import OK
from headrace.features.stream import DATABASE, StreamPath
from headrace.monitoring.drift import VectorBlock
from headrace.pipelines.latency import MeasuredStopwatch, measure_reads
from headrace.pipelines.pinned import refuse_other_features
from headrace.pipelines.project import Project
from headrace.pipelines.sealing import seal, seal_left_open, window_of
from headrace.pipelines.stores import CONTROL, REBUILD, Stores, applied_key, applied_versions, open_stores
from headrace.registry.run import Registry
from headrace.serving.connection import connection
from headrace.serving.core import Answer, Core
from headrace.serving.http import App, Filled, Limits, bind
from headrace.serving.log import PredictionLog, segments
from headrace.serving.router import Router, Routes, Variant
from headrace.serving.signature import Signature
from headrace.storage.keyvalue import Get

FOLLOW_SECONDS = 1.0  # how often the ledger is asked for a new champion
DRAIN_SECONDS = 10


class PipelineService:
    """Answer requests of one pipeline: decode, predict at the clock's moment, log; champions follow the ledger."""

    def __init__(self, project: Project, stores: Stores, clock: Clock) -> None:
        endpoint = project.pipeline.endpoint
        if endpoint is None:
            raise ConfigurationError(
                "nothing to serve", where=project.pipeline.location, next_step="endpoint=hr.Endpoint()"
            )
        self.project, self.stores, self.clock, self.name = project, stores, clock, project.name
        self.registry = Registry(stores.ledger, stores.blobs, project.name)
        self.router = Router()
        self.signature = Signature(project.plan, project.plan.direct)
        seal_left_open(stores.predictions, stores.ledger)
        known, serving = segments(stores.predictions), project.settings.serving
        self.log = PredictionLog(
            stores.predictions,
            project.plan.columns,
            [c.name for c in project.plan.request],
            segment=known[-1] + 1 if known else 1,
            window=serving.window_rows,
            definition=project.plan.features,
        )
        self.sync_first, self.day = serving.log_sync == 0, Instant(int(clock.now()) // DAY * DAY)
        stale = endpoint.on_missing == "stale"
        self.core = Core(
            OnlineFeatures(project.plan, keep=serving.stale_keys if stale else 0, keep_for=serving.stale_for),
            self.router,
            self.log,
            endpoint=endpoint,
            decision=project.pipeline.decision,
            unit=project.pipeline.rollout.unit if project.pipeline.rollout else None,
            stopwatch=MeasuredStopwatch(),
        )
        self._refuse_uncovered()
        self.sources = [source.name for source in project.plan.sources]
        self.lock = threading.RLock()
        self.left_alone: tuple[float, Unavailable] | None = None
        self.newest = 0  # the moment of the newest read, which may be ahead of this machine's clock
        self.served: Callable[[bytes, int, Answer], None] | None = None
        self.collectors: list[Collector] = []
        self.follow()

    def _refuse_uncovered(self) -> None:
        with self.stores.online.read() as snapshot:
            get = snapshot.getter(DATABASE)
            missing = StreamPath([self.project.plan]).uncovered(get) if StreamPath.newest(get) is not None else []
            unfinished = snapshot.get(CONTROL, REBUILD) is not None
        if unfinished:
            raise ConfigurationError(
                "the online store is half rebuilt",
                where=str(self.stores.state.path),
                next_step=f"headrace online rebuild {self.project.typed}, which goes on where it was",
            )
        if missing:
            raise ConfigurationError(
                "features are not in the online store yet",
                where=self.project.pipeline.model.dataset.location,
                got=[group.definition.name for group in missing],
                expected="every group filled from history",
                next_step=f"headrace run {self.project.typed}",
            )

    @property
    def version(self) -> str | None:
        """Return the champion's version."""
        champion = self.router.routes.champion
        return None if champion is None else champion.version

    def follow(self) -> None:
        """Serve the version that the ledger calls champion; the new one is verified and tried before it replaces the old."""
        champion = self.registry.champion()
        wanted = None if champion is None else champion.name
        if wanted != self.version:
            if champion is not None:
                refuse_other_features(self.project, champion)
            variant = None if wanted is None else Variant(wanted, self.registry.servable(wanted))
            self.router.routes = Routes(champion=variant)

    def look_after(self) -> None:
        """Follow the ledger's champion and turn the day."""
        self.turn_day()
        self.follow()

    def predict(self, rows: Sequence[Any], t: int | None = None) -> list[Answer | HeadraceError]:
        """Answer JSON rows, all at one moment (the clock's, or a stated one) and from one snapshot; a bad row fails alone.

        Raises:
            DataError: the stated moment is older than the newest arrival that was applied.
            Unavailable: no model and no fallback, for every row; or the online store cannot be read, and the endpoint's
                `on_missing` is "fail".
        """
        found: list[Answer | HeadraceError] = []
        with self.lock, ExitStack() as stack:
            decoded = [self._decoded(row) for row in rows]
            get, t = self._open_read(stack, [row for row in decoded if not isinstance(row, HeadraceError)], t)
            self.log.note_applied(None if get is None else applied_versions(get, self.sources))
            found += [row if isinstance(row, HeadraceError) else self._answer(row, t, get) for row in decoded]
        down = [answer for answer in found if isinstance(answer, Unavailable)]
        if down and len(down) == len(found):
            raise down[0]
        if self.sync_first:
            self.commit()
        return found

    def _decoded(self, row: Any) -> Sequence[Any] | HeadraceError:
        try:
            return self.signature.decode(row)
        except HeadraceError as error:
            return error

    def _answer(self, values: Sequence[Any], t: int, get: Get | None) -> Answer | HeadraceError:
        try:
            answer = self.core.predict(values, t, get)
            if self.served is not None:
                self.served(self.core.row_id(values), t, answer)
            return _kept(answer)
        except HeadraceError as error:
            return error

    def _open_read(self, stack: ExitStack, rows: Sequence[Sequence[Any]], stated: int | None) -> tuple[Get | None, int]:
        """Return what the rows' features are read with, None where the store cannot be read, and the moment.

        A store that could not be read is left alone for a while: of the requests that wait meanwhile each would wait
        for its own timeout, one after the other.
        """
        now, store = int(self.clock.now()), self.stores.online
        try:
            if self.left_alone is not None and time.monotonic() < self.left_alone[0]:
                raise self.left_alone[1].with_traceback(None)
            snapshot, also = stack.enter_context(store.read()), [applied_key(source) for source in self.sources]
            found = open_read(store, snapshot, self.core.features, rows, stated, now=now, also=also)
        except Unavailable as error:
            if self.left_alone is None or error is not self.left_alone[1]:
                self.left_alone = time.monotonic() + self.project.settings.serving.store_retry / SECOND, error
            if self.core.endpoint.on_missing == "fail":
                raise
            return None, max(now, self.newest) if stated is None else stated
        self.left_alone = None
        if stated is None:
            self.newest = found[1]
        return found

    def describe(self) -> Mapping[str, Any]:
        """Return the request's columns and the features in the order of the tensor."""
        return {"features": [c.name for c in self.project.plan.columns], "request": self.signature.schema()}

    def infer(self, matrix: NDArray[np.float32]) -> tuple[str, NDArray[np.float64]]:
        """Score encoded rows with the champion; return its version, which a swap meanwhile does not change, and the scores.

        Raises:
            Unavailable: there is none.
        """
        champion = self.router.routes.champion
        if champion is None or not hasattr(champion.scorer, "score"):
            raise Unavailable("no model serves yet", where=self.name, next_step=f"headrace run {self.project.typed}")
        return champion.version, champion.scorer.score(matrix)

    def latency(self) -> Mapping[str, float]:
        """Measure what one prediction's features take here: percentiles in microseconds over some stored rows."""
        return measure_reads(self.project, self.stores)

    def filled(self) -> Filled:
        """Return how well the features of the open day's predictions are filled, and how old the newest arrival is.

        While the online store cannot be reached, nobody knows the latter.
        """
        with self.lock:
            status = np.frombuffer(bytes(self.log.block.status), np.uint8).reshape(-1, len(self.log.columns))
        try:
            with self.stores.online.read() as snapshot:
                newest = StreamPath.newest(snapshot.getter(DATABASE))
        except Unavailable:
            newest = None
        shares = (status == OK).mean(axis=0).tolist() if len(status) else []
        names = [column.name for column in self.log.columns]
        lag = None if newest is None else (int(self.clock.now()) - newest) / SECOND
        return Filled(dict(zip(names, shares, strict=False)), lag)

    def commit(self) -> None:
        """Sync the prediction log; predictions go on meanwhile."""
        self.log.commit(self.lock)

    def turn_day(self, close: Callable[[int, VectorBlock], None] | None = None) -> None:
        """Seal the log's segment when its UTC day is over, hand its feature vectors to `close`, and begin the next one."""
        day = Instant(int(self.clock.now()) // DAY * DAY)
        with self.lock:
            if day == self.day:
                return
            if close is not None:
                close(self.day, window_of(self.log))
            seal(self.log, self.stores.ledger)
            self.log.open_segment(self.log.segment + 1)
            self.day = day


def _kept(answer: Answer) -> Answer:
    """Return an answer whose feature vector outlives the next prediction."""
    vector = answer.vector
    return replace(
        answer,
        vector=replace(vector, words=vector.words.copy(), status=vector.status.copy(), texts=vector.texts.copy()),
    )


class Repeating(threading.Thread):
    """Do something again and again until `ended` is set; a failure is told and tried again."""

    def __init__(self, name: str, seconds: float, work: Callable[[], None]) -> None:
        super().__init__(name=f"headrace-{name}", daemon=True)
        self.seconds, self.work, self.ended = seconds, work, threading.Event()

    def run(self) -> None:
        """Work until `ended` is set."""
        while not self.ended.wait(self.seconds):
            try:
                self.work()
            except HeadraceError as error:
                sys.stderr.write(f"{error.code}: {error}\n")


def serve(
    project: Project,
    *,
    state: str | None,
    host: str,
    port: int,
    behind_proxy: bool,
    json: bool,
    beside: Callable[[PipelineService, ExitStack], Callable[[], None]] | None = None,
    every: float = FOLLOW_SECONDS,
    clock: Clock | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; every accepted request is answered before the end.

    `beside` makes what is done `every` so many seconds beside the server, by default following the ledger's champion.

    Raises:
        ConfigurationError: no endpoint, an open address without a proxy, or a port that is taken.
    """
    listening = bind(host, port, behind_proxy=behind_proxy)
    ticking = clock or SystemClock()
    with ExitStack() as stack:
        stores = stack.enter_context(open_stores(project, state, clock=ticking, write=True))
        service = PipelineService(project, stores, ticking)
        app = App(service, limits_of(project))
        app.metrics.filled = service.filled
        tick = service.look_after if beside is None else beside(service, stack)
        for collector in service.collectors:
            app.metrics.registry.register(collector)
        threads = _started(service, every, tick)
        where = f"http://{host}:{listening.getsockname()[1]}"
        _say(project, service, where, json)
        config = uvicorn.Config(
            app,
            http=connection(app.limits.header_bytes),
            log_level="warning",
            timeout_graceful_shutdown=DRAIN_SECONDS,
            lifespan="on",
        )
        try:
            with suppress(KeyboardInterrupt):
                uvicorn.Server(config).run(sockets=[listening])
        finally:
            for thread in threads:
                thread.ended.set()
            for thread in threads:
                thread.join()
            seal(service.log, stores.ledger)
            service.log.close()


def _started(service: PipelineService, every: float, tick: Callable[[], None]) -> list[Repeating]:
    """Start what works beside the server."""
    threads, log_sync = [Repeating("follower", every, tick)], service.project.settings.serving.log_sync
    if log_sync:
        threads.append(Repeating("log", log_sync / SECOND, service.commit))
    for thread in threads:
        thread.start()
    return threads


def limits_of(project: Project) -> Limits:
    """Return the settings' limits on requests."""
    given = project.settings.limits
    return Limits(given.request_bytes, given.json_depth, given.batch_rows, given.header_bytes)


def _say(project: Project, service: PipelineService, where: str, json: bool) -> None:
    if json:
        body = {"url": where, "version": service.version, "pid": os.getpid(), "limits": asdict(limits_of(project))}
        sys.stdout.write(orjson.dumps(body).decode() + "\n")
    else:
        serving = service.version or "no model yet: the fallback answers"
        sys.stdout.write(f"{project.target} at {where} ({serving})\n")
        sys.stdout.write(
            f"  POST {where}/v1/predict/{project.name}   GET {where}/v2/models/{project.name}   {where}/metrics\n"
        )
        sys.stdout.write("  Ctrl-C ends it after the requests that are under way\n")
    sys.stdout.flush()
