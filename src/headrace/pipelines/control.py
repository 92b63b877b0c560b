"""Close the loop: monitors, retraining, rollout. Driven by ticks of any clock, so production and replay are one code."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

from headrace.core.errors import DataError, UserCodeError
from headrace.core.identity import content_hash
from headrace.core.time import DAY, MINUTE, WEEK
from headrace.features.record import FeatureVector
from headrace.models.servable import Servable
from headrace.monitoring.drift import VectorBlock
from headrace.monitoring.performance import LiveWindow, Scope
from headrace.monitoring.plan import Cause, Retrain
from headrace.monitoring.run import Monitoring
from headrace.pipelines.gatekeeper import Gatekeeper
from headrace.pipelines.labelling import maturing
from headrace.pipelines.learning import Candidate, Footing, learn, load_profile
from headrace.pipelines.pinned import reads, refuse_other_features
from headrace.pipelines.project import Project
from headrace.rollout.plan import advance, begin
from headrace.rollout.record import RolloutState
from headrace.rollout.run import observe
from headrace.serving.core import Answer
from headrace.serving.record import Prediction
from headrace.serving.router import Router, Routes, Variant
from headrace.storage.ledger import Entry

MODELLED_TRAINING = 30 * MINUTE  # what a training takes in virtual time


class Inverted:
    """Score the opposite of what a model says: a candidate that was corrupted after its gates (`bad_model`)."""

    def __init__(self, scorer: Servable) -> None:
        self.scorer = scorer

    def score_one(self, vector: FeatureVector) -> float:
        """Return one minus the model's score."""
        return 1.0 - self.scorer.score_one(vector)


@dataclass(frozen=True)
class ControlState:
    """Hold where the loop stands, as plain JSON values; versions by name.

    `ready_at` is when the candidate in waiting can be rolled out. `planted` is set while `bad_model` waits for the next
    candidate, `corrupted` names the version that it corrupted.
    """

    params: Mapping[str, Any] | None = None
    candidate: str | None = None
    ready_at: int = 0
    rollout: Mapping[str, Any] | None = None
    rollouts: int = 0
    frozen: str | None = None
    planted: bool = False
    corrupted: str | None = None
    labelled_until: int = 0
    daily: int = 0
    serving_since: int | None = None


class ControlLoop:
    """Drive one pipeline's loop; the owner calls `tick` as time passes and serves through `router`.

    `training_takes` is charged to each training before its candidate can be rolled out, for clocks that stand still
    meanwhile. `training` opens the context in which each model is trained: requests may be answered there.
    """

    def __init__(
        self,
        project: Project,
        footing: Footing,
        router: Router,
        monitoring: Monitoring,
        gatekeeper: Gatekeeper,
        state: ControlState,
        *,
        training_takes: int = 0,
        training: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.project, self.footing, self.router = project, footing, router
        self.monitoring, self.gatekeeper, self.state = monitoring, gatekeeper, state
        self.training_takes, self.training = training_takes, training
        self.servables: dict[str, Servable] = {}
        self.restore_routes()

    @property
    def live(self) -> LiveWindow:
        """Return what was served."""
        return self.monitoring.live

    @property
    def rollout_state(self) -> RolloutState | None:
        """Return the running rollout, if any."""
        return None if self.state.rollout is None else RolloutState.from_dict(self.state.rollout)

    def servable(self, version: str) -> Servable:
        """Return a version's servable, loaded and verified once."""
        if version not in self.servables:
            self.servables[version] = self.footing.registry.servable(version)
        return self.servables[version]

    def variant(self, version: str) -> Variant:
        """Return a version as a route's target."""
        servable = self.servable(version)
        return Variant(version, Inverted(servable) if version == self.state.corrupted else servable)

    def restore_routes(self) -> None:
        """Set the routes to what registry and rollout say: one assignment."""
        champion = self.footing.registry.champion()
        if champion is not None:
            refuse_other_features(self.project, champion)
        rollout, shadows = self.rollout_state, []
        if self.state.frozen is not None:
            shadows.append(self.variant(self.state.frozen))
        routes = Routes(champion=None if champion is None else self.variant(champion.name), shadows=tuple(shadows))
        if rollout is not None:
            candidate = self.variant(rollout.candidate)
            routes = replace(routes, candidate=candidate, share=rollout.share, salt=rollout.id)
        self.router.routes = routes

    def served(self, row_id: bytes, t: int, answer: Answer) -> None:
        """Take in an answer, for monitors and rollout."""
        self.live.append(
            row_id,
            t,
            answer.score,
            version=answer.version or "fallback",
            variant=answer.variant,
            decision=bool(answer.decision),
            flags=answer.flags,
            latency=answer.latency_us,
            shadows=[(version, math.nan if score is None else score) for version, score in answer.shadows],
        )

    def recall(self, prediction: Prediction) -> None:
        """Take in an answer from the prediction log that was served before this loop began."""
        self.live.append(
            prediction.row_id,
            prediction.t,
            prediction.score,
            version=prediction.version or "fallback",
            variant=prediction.variant,
            decision=bool(prediction.decision),
            flags=prediction.flags,
            latency=prediction.latency_us,
            shadows=[(s.version, math.nan if s.score is None else s.score) for s in prediction.shadows],
        )

    def follow_registry(self) -> None:
        """Serve what the registry calls champion, if somebody moved it by hand."""
        champion, routed = self.footing.registry.champion(), self.router.routes.champion
        if (None if champion is None else champion.name) != (None if routed is None else routed.version):
            self.restore_routes()

    def adopt_challenger(self, now: int) -> None:
        """Take a challenger that a batch run left into a rollout of this loop."""
        challenger = self.footing.registry.challenger()
        if (
            challenger is not None
            and reads(self.project, challenger)
            and self.state.rollout is None
            and self.state.candidate is None
        ):
            self.state = replace(self.state, candidate=challenger.name, ready_at=now)

    def freeze(self, now: int) -> None:
        """Keep the present champion scoring in the shadow for good, to compare the managed system with it."""
        champion = self.footing.registry.champion()
        if champion is not None:
            self.record("frozen", champion.name, {"why": "compare the managed system with a model left alone"})
            self.state = replace(self.state, frozen=champion.name)
            self.restore_routes()

    def plant_bad_model(self, now: int) -> None:
        """Let the next candidate be corrupted after its gates; train one now for that purpose, labelled so."""
        self.state = replace(self.state, planted=True)
        self.record("fault", "bad_model", {"what": "the next candidate will answer the opposite of what it learned"})
        self.retrain(now, (Cause("planted fault", "bad_model needs a candidate"),))

    def record(self, kind: str, subject: str, body: Mapping[str, Any]) -> None:
        """Append a ledger record."""
        self.footing.ledger.append([Entry(kind, subject, body)])

    def tick(self, now: int) -> None:
        """Do what is due at `now`: begin or advance a rollout, evaluate monitors, retrain."""
        if self.state.candidate is not None and now >= self.state.ready_at and self.state.rollout is None:
            self._begin_rollout(now)
        elif self.state.rollout is not None:
            self._advance_rollout(now)
        if now // DAY > self.state.daily // DAY:
            self._daily(now)

    def close_window(self, start: int, block: VectorBlock) -> None:
        """Take in the feature vectors of a served day, for drift."""
        if self.monitoring.drift is not None and len(block):
            self.monitoring.drift.close_window(start, block)

    def _daily(self, now: int) -> None:
        self.state = replace(self.state, daily=now)
        self._count_labels(now)
        champion = self.footing.registry.champion()
        # Without a model there is nothing to watch, and what the fallback answered says nothing about one.
        self.monitoring.monitors = () if champion is None else self.project.pipeline.monitors
        against = {} if champion is None else {"champion": champion.name}
        scope = Scope(since=self.state.serving_since, against=against)
        asked = [action for action in self.monitoring.tick(now, scope) if isinstance(action, Retrain)]
        causes = tuple(cause for action in asked for cause in action.causes)
        if not causes and champion is None and self._may_try_again(now):
            causes = (Cause("no model serves", "the newest candidate did not pass its gates"),)
        if causes:
            self.retrain(now, causes)
        if now // WEEK > (now - DAY) // WEEK:
            self._weekly(now)
        self.live.drop_old(now)

    def _may_try_again(self, now: int) -> bool:
        """Tell whether, with no model yet, the last refused candidate is a cool-down ago."""
        attempted = self.monitoring.state.attempted
        waiting = self.state.candidate is not None or self.monitoring.state.in_flight
        return attempted is not None and not waiting and now - attempted >= self.monitoring.cool_down

    def _count_labels(self, now: int) -> None:
        mature = self.project.plan.mature
        for row_id, label in maturing(self.project.plan, self.footing.tables, self.state.labelled_until, now):
            self.live.label(row_id, label, arrived=now)
        matured = self.live.matured_labels(self.state.labelled_until - mature, now - mature, now=now)
        self.monitoring.state = self.monitoring.state.labels_matured(matured)
        self.state = replace(self.state, labelled_until=now)

    def _weekly(self, now: int) -> None:
        """Record how the newest week with matured labels went, for the managed system and the frozen model."""
        end = now - self.project.plan.mature
        start = max(end - WEEK, self.state.serving_since or end)
        frozen = self.state.frozen
        managed = self.live.metric("auc", start, end, now=now)
        body: dict[str, Any] = {"start": start, "end": end, "managed": managed.to_dict()}
        if frozen is not None:
            body |= {"frozen": self.live.metric("auc", start, end, now=now, version=frozen).to_dict()}
        days = range(now - WEEK, now, DAY)
        body |= {"traffic": [[day, self.live.traffic(day, day + DAY)] for day in days], "frozen_version": frozen}
        # A week later than the metric, so that labels which came late are seen as late and not as missing.
        delays = self.live.delays(now - WEEK, matured=self.project.plan.mature, over=WEEK)
        self.record("performance", self.project.name, body | {"delays": delays.to_dict()})

    def retrain(self, now: int, causes: tuple[Cause, ...]) -> Candidate | None:
        """Train a candidate now, unless data are held; a failure is recorded and counts for the next cool-down."""
        state = self.monitoring.state
        self.monitoring.state = state.retraining_began(now)
        asked = {"causes": [asdict(cause) for cause in causes]}
        champion = self.footing.registry.champion()
        try:
            self.gatekeeper.refuse_if_held()
            beside = None if champion is None else self.servable(champion.name).another()
            with self.training():
                candidate = learn(self.project, self.footing, as_of=now, champion=beside, params=self.state.params)
        except (DataError, UserCodeError) as error:
            self.monitoring.state = self.monitoring.state.retraining_ended(trained=False)
            self.record("retrain.failed", self.project.name, asked | {"error": error.to_dict()})
            return None
        self.monitoring.state = self.monitoring.state.retraining_ended(trained=True)
        self._take(candidate, now, asked)
        return candidate

    def _take(self, candidate: Candidate, now: int, asked: Mapping[str, Any]) -> None:
        name, passed = candidate.version.name, candidate.evaluation.passed
        self.servables[name] = candidate.servable
        failed = [gate.gate for gate in candidate.evaluation.failed]
        self.record("retrained", name, {**asked, "passed": passed, "failed_gates": failed})
        params = dict(candidate.trained.record.params)
        self.state = replace(self.state, params=params)
        if not passed:
            self.footing.registry.archive(name, why=f"gates failed: {'; '.join(failed)}", actor="headrace")
            return
        if self.state.rollout is not None or self.state.candidate is not None:
            self.record("superseded", name, {"why": "another candidate is being rolled out"})
            return
        self.state = replace(self.state, candidate=name, ready_at=now + self.training_takes)

    def _begin_rollout(self, now: int) -> None:
        name = self.state.candidate
        assert name is not None
        rollout, champion = self.project.pipeline.rollout, self.footing.registry.champion()
        if champion is None or rollout is None or not rollout.steps:
            why = "no champion to compare with" if champion is None else "no rollout is declared"
            self.footing.registry.promote(name, why=why, actor="headrace")
            self.state = replace(self.state, serving_since=self.state.serving_since or now)
            self._crown(name)
            return
        number = self.state.rollouts + 1
        salt = f"r{number}-{content_hash([self.project.name, name, number])[:8]}"
        state = begin(rollout, rollout_id=salt, candidate=name, champion=champion.name, now=now)
        self.footing.registry.challenge(name, why="its gates passed", actor="headrace", evidence={"rollout": salt})
        self.state = replace(self.state, candidate=None, rollout=state.to_dict(), rollouts=number)
        if self.state.planted:
            self.state = replace(self.state, planted=False, corrupted=name)
            self.record("fault", "bad_model", {"version": name, "what": "corrupted: it now answers the opposite"})
        self.record("rollout", name, {"decision": "begin", "state": state.to_dict()})
        self.restore_routes()

    def _advance_rollout(self, now: int) -> None:
        rollout, state = self.project.pipeline.rollout, self.rollout_state
        assert rollout is not None
        assert state is not None
        following, decision = advance(state, rollout, now, observe(self.live, rollout, state, now))
        self.state = replace(self.state, rollout=following.to_dict())
        if decision.kind == "hold":
            return
        body = {"decision": decision.kind, "why": decision.reason, "evidence": decision.to_dict()}
        self.record("rollout", state.candidate, body | {"state": following.to_dict()})
        if decision.kind == "abort":
            self.footing.registry.challenge(None, why=decision.reason, actor="headrace")
            self.footing.registry.archive(state.candidate, why=f"rollout aborted: {decision.reason}", actor="headrace")
            self.state = replace(self.state, rollout=None, corrupted=None)
        elif decision.kind == "promote":
            why = f"rollout complete: {decision.reason}"
            self.footing.registry.promote(state.candidate, why=why, actor="headrace", evidence={"rollout": state.id})
            self.state = replace(self.state, rollout=None)
            self._crown(state.candidate)
        self.restore_routes()

    def _crown(self, name: str) -> None:
        """Watch drift against the new champion's own training rows from now on."""
        self.monitoring.drift = load_profile(self.footing.registry, name)
        self.state = replace(self.state, candidate=None)
        kept = {name, self.state.frozen}
        self.servables = {version: s for version, s in self.servables.items() if version in kept}
        self.restore_routes()

    def dump(self) -> dict[str, Any]:
        """Return the loop's whole state as plain JSON, but for what was served."""
        drift = self.monitoring.drift
        return {
            "control": asdict(self.state),
            "monitoring": self.monitoring.dump(),
            "drift": None if drift is None else drift.dump(),
            "gatekeeper": self.gatekeeper.dump(),
        }
