"""Serve a pipeline over HTTP; with `control` the loop runs beside it: streams in, monitors, retraining, rollout."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from typing import Any, Protocol

import numpy as np
import orjson
import uvicorn
from numpy.typing import NDArray

from headrace.core.errors import ConfigurationError, HeadraceError, Unavailable
from headrace.core.time import Clock, SystemClock
from headrace.features.offline import direct_columns
from headrace.features.online import OnlineFeatures
from headrace.features.stream import DATABASE, moment_of_read
from headrace.pipelines.latency import MeasuredStopwatch, measure_reads
from headrace.pipelines.project import Project
from headrace.pipelines.stores import Stores, open_stores
from headrace.registry.run import Registry
from headrace.serving.connection import connection
from headrace.serving.core import Answer, Core
from headrace.serving.http import App, Limits, bind
from headrace.serving.log import PredictionLog, segments
from headrace.serving.router import Router, Routes, Variant
from headrace.serving.signature import Signature

FOLLOW_SECONDS = 1.0  # how often the ledger is asked for a new champion, and the log is synced
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
        self.signature = Signature(project.plan, direct_columns(project.plan))
        known = segments(stores.predictions)
        self.log = PredictionLog(
            stores.predictions,
            project.plan.columns,
            [c.name for c in project.plan.request],
            segment=known[-1] + 1 if known else 1,
        )
        self.core = Core(
            OnlineFeatures(project.plan),
            self.router,
            self.log,
            endpoint=endpoint,
            decision=project.pipeline.decision,
            unit=project.pipeline.rollout.unit if project.pipeline.rollout else None,
            stopwatch=MeasuredStopwatch(),
        )
        self.lock = threading.RLock()
        self.served: Callable[[bytes, int, Answer], None] | None = None
        self.follow()

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
            variant = None if wanted is None else Variant(wanted, self.registry.servable(wanted))
            self.router.routes = Routes(champion=variant)

    def predict(self, rows: Sequence[Any], t: int | None = None) -> list[Answer | HeadraceError]:
        """Answer JSON rows, all at one moment (the clock's, or a stated one) and from one snapshot; a bad row fails alone.

        Raises:
            DataError: the stated moment is older than the newest arrival that was applied.
            Unavailable: no model and no fallback.
        """
        found: list[Answer | HeadraceError] = []
        with self.lock, self.stores.online.read() as snapshot:
            get = snapshot.getter(DATABASE)
            t = moment_of_read(get, t, now=int(self.clock.now()))
            for row in rows:
                try:
                    values = self.signature.decode(row)
                    answer = self.core.predict(values, t, get)
                    if self.served is not None:
                        self.served(self.core.row_id(values), t, answer)
                    found.append(_kept(answer))
                except Unavailable:
                    raise
                except HeadraceError as error:
                    found.append(error)
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
            raise Unavailable("no model serves yet", where=self.name, next_step=f"headrace run {self.project.target}")
        return champion.version, champion.scorer.score(matrix)

    def latency(self) -> Mapping[str, float]:
        """Measure what one prediction's features take here: percentiles in microseconds over some stored rows."""
        return measure_reads(self.project, self.stores)

    def commit(self) -> None:
        """Sync the prediction log."""
        with self.lock:
            self.log.commit()


def _kept(answer: Answer) -> Answer:
    """Return an answer whose feature vector outlives the next prediction."""
    vector = answer.vector
    return replace(
        answer,
        vector=replace(vector, words=vector.words.copy(), status=vector.status.copy(), texts=vector.texts.copy()),
    )


class Beside(Protocol):
    """Work in a thread beside the server until `ended` is set."""

    ended: threading.Event

    def start(self) -> None:
        """Begin."""
        ...

    def join(self) -> None:
        """Wait for the end."""
        ...


class Follower(threading.Thread):
    """Once a second, sync the prediction log and follow the ledger's champion; a failure is told and tried again."""

    def __init__(self, service: PipelineService) -> None:
        super().__init__(name="headrace-follower", daemon=True)
        self.service, self.ended = service, threading.Event()

    def run(self) -> None:
        """Work until `ended` is set."""
        while not self.ended.wait(FOLLOW_SECONDS):
            try:
                self.service.commit()
                self.service.follow()
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
    beside: Callable[[PipelineService, ExitStack], Beside] | None = None,
    clock: Clock | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; every accepted request is answered before the end.

    `beside` makes the thread that works beside the server, by default one that syncs the log and follows the ledger.

    Raises:
        ConfigurationError: no endpoint, an open address without a proxy, or a port that is taken.
    """
    listening = bind(host, port, behind_proxy=behind_proxy)
    ticking = clock or SystemClock()
    with ExitStack() as stack:
        stores = stack.enter_context(open_stores(project, state, clock=ticking, write=True))
        service = PipelineService(project, stores, ticking)
        app = App(service, limits_of(project))
        thread = Follower(service) if beside is None else beside(service, stack)
        thread.start()
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
            thread.ended.set()
            thread.join()
            service.log.close()


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
