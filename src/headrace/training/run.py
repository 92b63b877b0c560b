"""Train a model: split, encode, search, fit, convert, compare with the baseline, and record all of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.core.errors import HeadraceError, UserCodeError
from headrace.core.identity import content_hash
from headrace.core.time import Clock
from headrace.features.record import TrainingSet
from headrace.models.convert import make_servable, reference_scores
from headrace.models.definition import Model
from headrace.models.encoder import Encoder
from headrace.models.servable import Servable
from headrace.stats.scores import SCORES, Rows
from headrace.storage.ledger.protocol import Entry
from headrace.training.baseline import train_baseline
from headrace.training.data import Frame, Part, TrainingData
from headrace.training.definition import Params, Search, Training
from headrace.training.facts import gather
from headrace.training.guards import importance, leak_warnings
from headrace.training.plan import Kind, Split, definition_hash, kind_of, split_rows
from headrace.training.record import Facts, RunRecord, Trial
from headrace.training.search import HIGHER_IS_BETTER, FixedParams, TrialParams, best_of, search
from headrace.training.surroundings import bounded

METRICS = {"classification": ("auc", "pr_auc", "log_loss", "brier", "ece"), "regression": ("mae", "rmse", "r2", "bias")}
Progress = Callable[[Trial], None]


class Tracker(Protocol):
    """Keep run records; the ledger is one."""

    def append(self, entries: Sequence[Entry]) -> Any:
        """Write records in one transaction."""
        ...


@dataclass(frozen=True, eq=False)
class Trained:
    """Hold a finished training: the servable, the rows it was judged on, and the run's record."""

    servable: Servable
    data: TrainingData
    split: Split
    record: RunRecord
    trials: tuple[Trial, ...]


def train(
    training: Training,
    training_set: TrainingSet,
    *,
    params: Mapping[str, Any] | None = None,
    seed: int,
    threads: int,
    trials: int | None = None,
    clock: Clock,
    tracker: Tracker | None = None,
    progress: Progress | None = None,
    finished: Sequence[Trial] = (),
    facts: Facts | None = None,
    decision: Mapping[str, Any] | None = None,
) -> Trained:
    """Train a model and return its servable with the run's record, which `tracker` also keeps, failed runs included.

    With `params` nothing is searched. `trials` overrides the search's number; `finished` are trials of a search that
    was stopped, which goes on after them. The same rows and seed give the same model, if the function's estimator is
    deterministic. `decision` goes into the manifest as it is.

    Raises:
        DataError: too few rows for the split, or one class only.
        UserCodeError: the training function raised, returned no model, or its model cannot be kept.
        DefinitionError: `params` do not fit what the function asks for.
    """
    started, clicked = clock.now(), time.perf_counter()
    facts = facts or gather()
    definition = definition_hash(training, str(training_set.manifest.get("definition", "")))
    identity: dict[str, Any] = {"definition": definition}
    # Not when: what a killed run had registered already must be the same version when it is run again.
    identity |= {"data": content_hash(training_set.manifest), "seed": seed}
    identity |= {"params": None if params is None else dict(params), "trials": trials}
    job = _Job(training, training_set, seed, threads, content_hash(identity)[:16], facts, dict(decision or {}))
    blank = RunRecord(
        id=job.run_id,
        model=training.name,
        status="failed",
        started=int(started),
        ended=int(started),
        definition=definition,
        data=dict(training_set.manifest),
        split={},
        seed=seed,
        params=dict(params or {}),
        metrics={},
        baseline={},
        importance={},
        warnings=[],
        trials=[],
        manifest=None,
        code=facts.code,
        environment=facts.environment,
        hardware=facts.hardware,
    )
    try:
        trained = job.run(blank, params, trials, finished, progress)
    except HeadraceError as error:
        if tracker is not None:
            tracker.append([replace(blank, ended=int(clock.now()), error=error.to_dict()).entry()])
        raise
    measured = {"seconds": round(time.perf_counter() - clicked, 3)}
    trained = replace(trained, record=replace(trained.record, ended=int(clock.now()), measured=measured))
    if tracker is not None:
        tracker.append([trained.record.entry()])
    return trained


class _Job:
    """Carry one training's inputs through its steps."""

    def __init__(
        self,
        training: Training,
        training_set: TrainingSet,
        seed: int,
        threads: int,
        run_id: str,
        facts: Facts,
        decision: Mapping[str, Any],
    ) -> None:
        self.training, self.training_set, self.kind = training, training_set, kind_of(training)
        self.seed, self.threads, self.run_id, self.facts, self.decision = seed, threads, run_id, facts, decision

    def run(
        self,
        blank: RunRecord,
        params: Mapping[str, Any] | None,
        trials: int | None,
        finished: Sequence[Trial],
        progress: Progress | None,
    ) -> Trained:
        where, label = f"{self.training.name} ({self.training.location})", self.training_set.label
        mature = self.training.dataset.mature
        split = split_rows(self.training_set.t, label, self.training.split, mature=mature, kind=self.kind, where=where)
        encoder, data = self.encoded(split)
        if self.training.refit and params is not None:
            chosen, done = dict(params), list[Trial]()
        else:
            model, chosen, done = self.fit(data, params, trials, finished, progress)
        if self.training.refit:
            encoder, data = self.encoded(replace(split, train=np.concatenate([split.train, split.valid])))
            model = self.fit_with(data, chosen)
        with bounded(self.threads):
            servable = self.servable(model, encoder, data)
            baseline = train_baseline(self.kind, self.training.baseline, data.train, data.categorical)
        judged = {"test": data.test} if self.training.refit else {"valid": data.valid, "test": data.test}
        record = replace(
            blank,
            status="finished",
            split=split.facts(),
            params=chosen,
            metrics={name: metrics_of(self.kind, part, servable.score(part.X)) for name, part in judged.items()},
            baseline={"kind": self.training.baseline}
            | {name: metrics_of(self.kind, part, baseline.score(part.X.numpy())) for name, part in judged.items()},
            importance=importance(servable.score, data.valid, self.kind, np.random.default_rng(self.seed)),
            warnings=leak_warnings(data.train, self.kind),
            trials=[{"number": t.number, "params": dict(t.params), "value": t.value} for t in done],
            manifest=servable.manifest.digest,
        )
        return Trained(servable, data, split, record, tuple(done))

    def encoded(self, split: Split) -> tuple[Encoder, TrainingData]:
        """Learn the encoder from a split's training rows, and return the parts encoded by it."""
        encoder = Encoder.learn(self.training_set.columns, self.training_set.features.take(split.train))
        return encoder, training_data(self.training_set, split, encoder, self.kind)

    def servable(self, model: Model, encoder: Encoder, data: TrainingData) -> Servable:
        """Convert the model, checked on the held-out rows."""
        return make_servable(
            model,
            encoder,
            np.concatenate([data.valid.X.numpy(), data.test.X.numpy()]),
            run=self.run_id,
            decision=self.decision,
            data=dict(self.training_set.manifest),
            environment=self.facts.environment,
        )

    def fit(
        self,
        data: TrainingData,
        params: Mapping[str, Any] | None,
        trials: int | None,
        finished: Sequence[Trial],
        progress: Progress | None,
    ) -> tuple[Model, dict[str, Any], list[Trial]]:
        """Return the fitted model, its parameters and the search's trials."""
        plan = self.training.search
        if params is not None or plan is None:
            return self.fit_with(data, params or {}), dict(params or {}), []
        newest = _Best(plan, len(finished))

        def judge(offered: TrialParams) -> float:
            model = self.call(data, offered)
            value = self.judged(model, data.valid, plan.metric)
            newest.keep(model, value)
            return value

        count = plan.trials if trials is None else trials
        done = search(
            plan, judge, trials=count, seed=self.seed, threads=self.threads, finished=finished, progress=progress
        )
        best = best_of(done, plan)
        model = newest.model if newest.number == best.number else None
        return model or self.fit_with(data, best.params), dict(best.params), done

    def fit_with(self, data: TrainingData, params: Mapping[str, Any]) -> Model:
        """Fit once with given parameters."""
        fixed = FixedParams(params, seed=self.seed, threads=self.threads, where=self.training.location)
        model = self.call(data, fixed)
        fixed.refuse_unused()
        return model

    def judged(self, model: Model, part: Part, metric: str) -> float:
        """Return the metric by which a search judges a fitted model."""
        with bounded(self.threads):
            scores = reference_scores(model.estimator, part.X.numpy())
        value = SCORES[metric](rows_of(part, scores))
        if value is None or not np.isfinite(value):
            raise self.failed(f"{metric} of a trial is {value} on {len(part)} validation rows", None)
        return value

    def call(self, data: TrainingData, params: Params) -> Model:
        """Call the training function; what it raises becomes a UserCodeError with its cause."""
        try:
            with bounded(self.threads):
                made = self.training.function(data, params)
        except HeadraceError:
            raise
        except Exception as error:
            raise self.failed(f"{type(error).__name__}: {error}", params) from error
        if not isinstance(made, Model):
            raise self.failed(f"it returned {type(made).__name__} instead of hr.model(…)", params)
        return made

    def failed(self, got: str, params: Params | None) -> UserCodeError:
        """Return the error for a training function that did not do its part."""
        chosen = getattr(params, "chosen", None)
        return UserCodeError(
            f"training {self.training.name} failed",
            where=self.training.location,
            got=got + (f" (with {chosen})" if chosen else ""),
            expected="a function that fits an estimator and returns hr.model(estimator)",
            next_step="call it in a notebook on data.train of the same dataset",
        )


class _Best:
    """Keep the best model of a search's own trials, so that it need not be fitted again."""

    def __init__(self, plan: Search, number: int) -> None:
        self.sign = -1 if plan.metric in HIGHER_IS_BETTER else 1
        self.next, self.number, self.value = number, -1, float("inf")
        self.model: Model | None = None

    def keep(self, model: Model, value: float) -> None:
        if self.sign * value < self.value:
            self.number, self.value, self.model = self.next, self.sign * value, model
        self.next += 1


def training_data(training_set: TrainingSet, split: Split, encoder: Encoder, kind: Kind) -> TrainingData:
    """Return the encoded parts of a split; labels are int64 0 and 1, or float64."""
    parts = {}
    weight = training_set.weight if training_set.weight is not None else np.ones(len(training_set))
    for name, rows in split.parts().items():
        table = training_set.features.take(rows)
        frame = Frame.build(encoder.encode(table), encoder.names, encoder.categorical, table)
        label = training_set.label[rows]
        y = label.astype(np.int64) if kind == "classification" else label
        parts[name] = Part(frame, y, rows, training_set.t[rows], weight[rows])
    return TrainingData(**parts, columns=encoder.names, categorical=encoder.categorical)


def rows_of(part: Part, scores: NDArray[np.float64]) -> Rows:
    """Return a part's labels beside scores, weighed where the rows are a sample."""
    weights = part.weight if (part.weight != 1.0).any() else None
    return Rows(np.asarray(part.y, np.float64), scores, weights)


def metrics_of(kind: Kind, part: Part, scores: NDArray[np.float64]) -> dict[str, float | None]:
    """Return the usual metrics of scores; None where one is undefined."""
    rows = rows_of(part, scores)
    return {name: SCORES[name](rows) for name in METRICS[kind]}
