"""Train a version: training set, search or refit, gates against the champion, registration. One order for run and replay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from headrace.core.identity import canonical
from headrace.core.time import DAY, Clock
from headrace.evaluation.plan import plan_gates
from headrace.evaluation.record import Evaluation
from headrace.evaluation.run import Footprint, JudgedRows, SkewFact, evaluate, score_rows
from headrace.features.asked import asked_of
from headrace.features.fingerprint import content_digest
from headrace.features.record import TrainingSet
from headrace.features.training_set import training_set
from headrace.models.servable import Servable
from headrace.monitoring.drift import DriftWatch, reference_profiles, training_history
from headrace.pipelines.graph import columns_read, group_hashes
from headrace.pipelines.project import Project
from headrace.pipelines.reveals import count_known, reveals_table, stream_reveals
from headrace.pipelines.spread import OpenSpread, here
from headrace.registry.record import Version
from headrace.registry.run import Registry
from headrace.storage.ledger import Entry, Ledger
from headrace.storage.tables import Tables
from headrace.training.facts import gather
from headrace.training.plan import kind_of
from headrace.training.record import Trial
from headrace.training.run import Trained, train

PROFILE = "profile"


@dataclass(frozen=True)
class Candidate:
    """Hold a registered version, its servable, and how it was judged."""

    version: Version
    servable: Servable
    evaluation: Evaluation
    trained: Trained


@dataclass(frozen=True)
class Footing:
    """Hold what a training needs beside the project: stores, clock, seed, threads, where latencies come from.

    `skew` measures the skew of a sample of served predictions, `spread` opens the engine that computes the training set.
    """

    ledger: Ledger
    tables: Tables
    registry: Registry
    clock: Clock
    seed: int
    threads: int
    latency: Mapping[str, float]
    latency_modelled: bool
    skew: Callable[[int], SkewFact] | None = None
    spread: OpenSpread = here


def build_training_set(project: Project, footing: Footing, as_of: int) -> TrainingSet:
    """Return the training set as it stands at `as_of`, with the table versions that it follows from."""
    described = {s.name: footing.tables.describe(reveals_table(s.name)) for s in project.plan.sources}
    versions = {name: table.version for name, table in described.items() if table is not None}
    reveals = stream_reveals(footing.tables, project.plan.sources, versions, asked_of(project.plan))
    known = {n: count_known(footing.tables, n, as_of, version=version) for n, version in versions.items()}
    sources = {n: {"reveals": known[n], "version": versions[n]} for n in reveals}
    manifest = {"sources": sources, "arrival": "assumed", "groups": group_hashes(project.plan)}
    manifest |= {"reads": columns_read(project.plan)}
    with footing.spread() as spread:
        found = training_set(project.plan, reveals, as_of=as_of, manifest=manifest, spread=spread)
    return replace(found, manifest={**found.manifest, "content": content_digest(found)})


def learn(
    project: Project,
    footing: Footing,
    *,
    as_of: int,
    champion: Servable | None,
    params: Mapping[str, Any] | None,
    progress: Callable[[Trial], None] | None = None,
) -> Candidate:
    """Train on what had matured by `as_of`, judge against the champion on the same rows, and register the version.

    Raises:
        DataError: too few matured rows.
        UserCodeError: the project's training function failed.
    """
    pipeline = project.pipeline
    rows = build_training_set(project, footing, as_of)
    trained = train(
        pipeline.model,
        rows,
        params=params,
        seed=footing.seed,
        threads=footing.threads,
        clock=footing.clock,
        tracker=footing.ledger,
        progress=progress,
        facts=gather(project.folder),
        decision={"version": pipeline.decision.version} if pipeline.decision else {},
    )
    evaluation = judge(project, footing, trained, rows, champion)
    version = footing.registry.register(trained.servable, trained.record, evaluation)
    reference = reference_profiles(rows, trained.servable.score(trained.servable.encoder.encode(rows.features)))
    keep_profile(footing.registry, version.name, DriftWatch(reference, training_history(rows, reference)))
    return Candidate(version, trained.servable, evaluation, trained)


def keep_profile(registry: Registry, version: str, watch: DriftWatch) -> None:
    """Keep what a version's inputs looked like in training, against which drift is measured while it serves."""
    digest = registry.blobs.put(canonical(watch.dump())).digest
    registry.ledger.append([Entry(PROFILE, version, {"blob": digest})])


def load_profile(registry: Registry, version: str) -> DriftWatch | None:
    """Return what `keep_profile` kept of a version, None if nothing."""
    found = registry.ledger.read(kinds=[PROFILE], subject=version, limit=1, newest_first=True)
    return DriftWatch.load(orjson.loads(registry.blobs.get(found[0].body["blob"]))) if found else None


def judge(
    project: Project, footing: Footing, trained: Trained, rows: TrainingSet, champion: Servable | None
) -> Evaluation:
    """Evaluate a trained model's gates on its test rows, beside the champion on the same rows.

    Rows of one day share a fate, so the comparison resamples whole days.
    """
    test = trained.split.test
    threshold = project.pipeline.decision.value if project.pipeline.decision else 0.5
    judged = JudgedRows(
        rows.label[test],
        score_rows(trained.servable, rows, test),
        None if champion is None else score_rows(champion, rows, test),
        rows.rows.take(pa.array(test)),
        threshold=threshold,
        clusters=rows.t[test] // DAY,
        weights=None if rows.weight is None else rows.weight[test],
    )
    source = "modelled" if footing.latency_modelled else "measured"
    sample = plan_gates(project.pipeline.gates, kind_of(project.pipeline.model)).skew
    skew = footing.skew(sample) if sample and footing.skew is not None else None
    footprint = Footprint(
        trained.servable.size, footing.latency, "modelled" if source == "modelled" else "measured", skew
    )
    rng = np.random.default_rng([footing.seed, len(rows)])
    return evaluate(project.pipeline.gates, judged, footprint, task=kind_of(project.pipeline.model), rng=rng)
