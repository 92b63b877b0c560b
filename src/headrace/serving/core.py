"""Answer one prediction: features, route, score, decide, log. Without any framework, for every transport."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from headrace.core.errors import Unavailable
from headrace.core.expressions import Column
from headrace.core.identity import encode_key
from headrace.features.online import OnlineFeatures
from headrace.features.plan import DatasetPlan
from headrace.features.record import FeatureVector
from headrace.serving.definition import Endpoint, Threshold
from headrace.serving.log import PredictionLog
from headrace.serving.record import CACHED, DEGRADED, ERROR, FALLBACK
from headrace.serving.router import Router, Variant

Get = Callable[[bytes], bytes | None]
CACHE_ENTRIES = 10_000


class Stopwatch(Protocol):
    """Measure how long a prediction takes; a replay's draws from a seeded model and says so."""

    flag: int

    def start(self) -> int:
        """Begin."""
        ...

    def stop(self, started: int) -> float:
        """Return the microseconds since the beginning."""
        ...


@dataclass(frozen=True)
class Answer:
    """Hold what a caller gets; `vector` is valid until the next prediction of the same core."""

    id: str
    score: float
    decision: bool | None
    version: str
    variant: str
    flags: int
    shadows: tuple[tuple[str, float | None], ...]
    latency_us: float
    vector: FeatureVector


class Core:
    """Answer predictions one at a time; an instance serves one thread.

    The row holds the rows source's values in the order of its columns. Each call reads the online store through `get`, one
    snapshot's, at its own `t`, and logs what it answered. Without a `get`, since the store cannot be read, it answers as the
    endpoint's `on_missing` says, and the answer is marked so.
    """

    def __init__(
        self,
        features: OnlineFeatures[DatasetPlan],
        router: Router,
        log: PredictionLog,
        *,
        endpoint: Endpoint,
        decision: Threshold | None,
        unit: Column[Any] | None,
        stopwatch: Stopwatch,
    ) -> None:
        index = features.plan.rows.index
        self.features, self.router, self.log, self.endpoint = features, router, log, endpoint
        self.threshold, self.stopwatch = decision, stopwatch
        self.threshold_version = decision.version if decision is not None else ""
        self.unit = index[unit] if unit is not None else None
        self.ids = tuple(index[c] for c in features.plan.rows.id_columns)
        self.asked = tuple(index[c] for c in features.plan.request)
        self.calls = 0
        self._cache: dict[tuple[Any, ...], tuple[int, float]] = {}

    def predict(self, row: Sequence[Any], t: int, get: Get | None) -> Answer:
        """Answer one row at the moment `t` (microseconds UTC).

        Raises:
            Unavailable: no model is there, or the only one failed, and the endpoint has no fallback.
            Corrupt, UserCodeError: features cannot be computed.
        """
        started = self.stopwatch.start()
        self.calls += 1
        vector = self.features.read(get, row, t)
        request = [row[p] for p in self.asked]
        routes = self.router.routes
        unit = "" if self.unit is None or not routes.share else str(row[self.unit])
        chosen, variant = routes.choose(unit)
        fresh = get is not None
        if fresh or self.endpoint.on_missing != "fallback":
            shadows = [(v.version, self._try(v, vector)) for v in routes.others(chosen)]
            score, flags = self._score(chosen, vector, request, t, fresh=fresh)
        else:
            shadows, score, flags = [], None, 0
        flags |= 0 if fresh else DEGRADED
        if score is None:
            score, variant, flags = self._stand_in(chosen, routes.champion, shadows, flags)
        decision = None if self.threshold is None else self.threshold.decide(score)
        version = "" if chosen is None else chosen.version
        flags |= self.stopwatch.flag
        latency = self.stopwatch.stop(started)
        found = self.log.append(
            self.row_id(row),
            t,
            request,
            vector,
            score,
            version=version,
            variant=variant,
            threshold=self.threshold_version,
            decision=decision,
            flags=flags,
            shadows=shadows,
            latency_us=latency,
        )
        return Answer(found, score, decision, version, variant, flags, tuple(shadows), latency, vector)

    def row_id(self, row: Sequence[Any]) -> bytes:
        """Return a row's encoded id; empty where a part of it is null."""
        return encode_key([row[p] for p in self.ids]) or b""

    def _score(
        self, chosen: Variant | None, vector: FeatureVector, request: Sequence[Any], t: int, *, fresh: bool
    ) -> tuple[float | None, int]:
        """Return the chosen variant's score, from the cache while an equal request is young enough; None if it failed."""
        if chosen is None:
            return None, 0
        key = (chosen.version, *request)
        if self.endpoint.cache is not None:
            held = self._cache.get(key)
            if held is not None and 0 <= t - held[0] <= self.endpoint.cache:
                return held[1], CACHED
        score = self._try(chosen, vector)
        if score is not None and self.endpoint.cache is not None and fresh:
            if len(self._cache) >= CACHE_ENTRIES:
                self._cache.clear()
            self._cache[key] = (t, score)
        return score, 0 if score is not None else ERROR

    def _try(self, variant: Variant, vector: FeatureVector) -> float | None:
        """Return a variant's score, None if it fails or is no number: the log keeps that, and the rollout's rules count it.

        A model may raise anything (ONNX Runtime's errors are plain exceptions), and no version may take another's answer.
        """
        try:
            score = float(variant.scorer.score_one(vector))
        except Exception:  # noqa: BLE001 - recorded as a failure of this version, in the log and in the answer
            return None
        return score if math.isfinite(score) else None

    def _stand_in(
        self,
        chosen: Variant | None,
        champion: Variant | None,
        shadows: Sequence[tuple[str, float | None]],
        flags: int,
    ) -> tuple[float, str, int]:
        """Answer for a variant that is not there or failed: by the champion, else by the fallback."""
        if chosen is not None and champion is not None and champion is not chosen:
            score = dict(shadows).get(champion.version)
            if score is not None:
                return score, "champion", flags
        if self.endpoint.fallback is not None:
            return self.endpoint.fallback, "fallback", flags | FALLBACK
        raise Unavailable(
            "no model can answer",
            where=self.endpoint.location,
            got="no champion" if chosen is None else f"version {chosen.version} failed",
            next_step="headrace run, or set hr.Endpoint(fallback=…)",
        )
