"""Score many rows with a registered version from the offline features: no endpoint, no online store, any moment of the past."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.core.errors import DataError, HeadraceError, UsageError
from headrace.core.expressions import Column
from headrace.core.time import Clock, Instant
from headrace.features.asked import asked_of
from headrace.features.buckets import lanes_of
from headrace.features.grid import grid_rows, steps
from headrace.features.offline import OfflineFeatures
from headrace.features.past import WholePast
from headrace.features.plan import DatasetPlan
from headrace.features.stream import DATABASE, StreamPath
from headrace.models.servable import Servable
from headrace.pipelines.pinned import refuse_other_features
from headrace.pipelines.project import Project
from headrace.pipelines.reveals import reveals_table, stream_reveals
from headrace.pipelines.spread import beside
from headrace.pipelines.stores import Stores, open_stores
from headrace.pipelines.view import Progress
from headrace.registry.record import Version
from headrace.registry.run import Registry
from headrace.serving.signature import Signature
from headrace.sources.values import arrow_type, plain
from headrace.storage.ledger import Entry

PREDICTED = "predicted"
ROLES = ("champion", "challenger")


@dataclass(frozen=True)
class Batch:
    """Hold the answers of a batch, one for each row in its order, with the version and the moment that gave them."""

    version: str
    as_of: int
    answers: list[dict[str, Any]]

    @property
    def errors(self) -> int:
        """Return how many rows got no score."""
        return sum("error" in answer for answer in self.answers)


@dataclass(frozen=True, eq=False)
class _Asked:
    """Hold rows to be scored, their moments, and what was wrong with the others by their place among all that were given."""

    rows: pa.Table
    t: NDArray[np.int64]
    refused: dict[int, dict[str, Any]]


def predict_from_history(
    project: Project,
    given: Sequence[Any] | None,
    *,
    version: str | None,
    as_of: str | None,
    state: str | None,
    progress: Progress,
    clock: Clock,
) -> Batch:
    """Answer rows from features as they were known at one moment; of a grid, the active rows of its last step before.

    Nothing but a record of the ledger is written, so a server may run beside.

    Args:
        project: the project.
        given: the rows, as a request brings them; None for those of a grid.
        version: as v3, "champion" or "challenger"; the champion unless said.
        as_of: the moment, ISO 8601 with a zone; now unless said.
        state: the state folder, the settings' unless said.
        progress: told what is under way.
        clock: tells the present.

    Raises:
        UsageError: rows are given for a grid, or for a table none, or the moment is still to come.
        DataError: there is no such version, nothing was ingested yet, or no row of the grid is active.
        Refused: the version was trained on other features.
    """
    plan = project.plan
    _refuse_rows(project, given)
    moment = _moment(as_of, clock)
    with open_stores(project, state, clock=clock, write=False, note=True) as stores:
        registry = Registry(stores.ledger, stores.blobs, project.name)
        chosen = _version(project, registry, version)
        refuse_other_features(project, chosen)
        servable = registry.servable(chosen.name)
        progress.step("features from history", 0, 1)
        reveals = stream_reveals(stores.tables, plan.sources, asked=asked_of(plan, rows=False))

        def told(what: str, done: int, total: int) -> None:
            progress.step("features from history", done, total, what)

        with beside(project, told).past(plan.read, lanes_of(plan, labels=False), reveals, moment) as past:
            asked = _given_rows(plan, given, moment) if given is not None else _last_step(project, stores, past, moment)
            table = OfflineFeatures(plan, past).compute(asked.rows, asked.t).table(plan)
        progress.step("predicting", 0, len(asked.t))
        scored = _answers(project, servable, chosen.name, asked, servable.encoder.encode(table))
        progress.step("predicting", len(asked.t), len(asked.t))
        batch = Batch(chosen.name, moment, _in_order(scored, asked.refused))
        stores.ledger.append([_entry(project, stores, batch)])
    return batch


def predict_command(project: Project, stores: Stores, now: int) -> str:
    """Return the command that answers the newest rows: of a grid whose data end more than a step before now, as of their end."""
    if project.plan.grid is None:
        return f"headrace predict {project.typed} ROWS"
    return f"headrace predict {project.typed}{_as_of_their_end(project, stores, now) or ''}"


def _as_of_their_end(project: Project, stores: Stores, now: int) -> str | None:
    """Return the option for the newest arrival of a grid's data, None where that is no step before now or not known."""
    assert project.plan.grid is not None
    with stores.online.read() as snapshot:
        newest = StreamPath.newest(snapshot.getter(DATABASE))
    if newest is None or newest > now - project.plan.grid.every:
        return None
    return f" --as-of {Instant(newest).isoformat()}"


def named(plan: DatasetPlan) -> list[Column[Any]]:
    """Return the columns that name an answered row: its id, but not a grid's moment, which is shown as `t`."""
    own = None if plan.grid is None else plan.grid.at
    return [column for column in plan.rows.id_columns if column is not own]


def _refuse_rows(project: Project, given: Sequence[Any] | None) -> None:
    grid, where = project.plan.grid is not None, project.pipeline.model.dataset.location
    if grid and given is not None:
        raise UsageError(
            "the rows of a grid are made, not given", where=where, next_step=f"headrace predict {project.typed}"
        )
    if not grid and given is None:
        raise UsageError(
            "which rows?",
            where=where,
            got="rows of a table, and no file",
            expected="JSON lines, .csv or .parquet, with the columns that a request brings",
            next_step=f"headrace predict {project.typed} ROWS",
        )


def _moment(as_of: str | None, clock: Clock) -> int:
    now = int(clock.now())
    if as_of is None:
        return now
    moment = int(Instant.parse(as_of))
    if moment > now:
        raise UsageError(
            "nobody knows yet what will have been known then",
            got=Instant(moment).isoformat(),
            expected=f"at most now, {Instant(now).isoformat()}",
            next_step="leave --as-of out",
        )
    return moment


def _version(project: Project, registry: Registry, wanted: str | None) -> Version:
    role = wanted or ROLES[0]
    if role not in ROLES:
        return registry.version(role)
    found = registry.champion() if role == ROLES[0] else registry.challenger()
    if found is None:
        known = [version.name.rsplit("/", 1)[-1] for version in registry.versions()]
        raise DataError(
            f"there is no {role}",
            where=f"registry of {project.name}",
            got=known or "no version",
            next_step="--version names one" if known else f"headrace run {project.typed}",
        )
    return found


def _given_rows(plan: DatasetPlan, given: Sequence[Any], moment: int) -> _Asked:
    """Read rows as a request's are read; a bad one costs only its own answer."""
    signature = Signature(plan, plan.direct)
    read: list[Sequence[Any]] = []
    refused: dict[int, dict[str, Any]] = {}
    for place, row in enumerate(given):
        try:
            read.append(signature.decode(row))
        except HeadraceError as error:
            refused[place] = {"error": error.what}
    columns = [[row[i] for row in read] for i in range(len(plan.row))]
    rows = {c.name: pa.array(cells, arrow_type(c.dtype)) for c, cells in zip(plan.row, columns, strict=True)}
    return _Asked(pa.table(rows), np.full(len(read), moment, np.int64), refused)


def _last_step(project: Project, stores: Stores, past: WholePast, moment: int) -> _Asked:
    """Return the rows that are active at a grid's last step by the moment."""
    plan = project.plan
    assert plan.grid is not None
    step = int(steps(plan.grid, (moment - 2 * plan.grid.every, moment + 1))[-1])
    rows, t = grid_rows(plan, past, (step, step + 1))
    if not len(t):
        end = _as_of_their_end(project, stores, moment)
        earlier = "--as-of with an earlier moment" if end is None else predict_command(project, stores, moment)
        raise DataError(
            "no row of the grid is active",
            where=plan.dataset.location,
            got=f"none at {Instant(step).isoformat()}",
            expected=str(plan.grid.active),
            next_step=f"headrace run, which takes in newer rows, or {earlier}",
        )
    return _Asked(rows, t, {})


def _answers(
    project: Project, servable: Servable, version: str, asked: _Asked, matrix: NDArray[np.float32]
) -> list[dict[str, Any]]:
    scores, decision = servable.score_or_nan(matrix), project.pipeline.decision
    columns = named(project.plan)
    ids = [[plain(c, value) for value in asked.rows[c.name].to_pylist()] for c in columns]
    found: list[dict[str, Any]] = []
    for place, (score, t) in enumerate(zip(scores.tolist(), asked.t.tolist(), strict=True)):
        answer: dict[str, Any] = {c.name: values[place] for c, values in zip(columns, ids, strict=True)}
        answer |= {"t": Instant(t).isoformat(), "version": version}
        if math.isfinite(score):
            answer |= {"score": score, "decision": None if decision is None else decision.decide(score)}
        else:
            answer["error"] = "the model gave no number"
        found.append(answer)
    return found


def _in_order(scored: list[dict[str, Any]], refused: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    answers = iter(scored)
    total = len(scored) + len(refused)
    return [refused[place] if place in refused else next(answers) for place in range(total)]


def _entry(project: Project, stores: Stores, batch: Batch) -> Entry:
    """Return what the ledger keeps: how many rows which version answered, from what data."""
    described = {s.name: stores.tables.describe(reveals_table(s.name)) for s in project.plan.sources}
    versions = {name: table.version for name, table in described.items() if table is not None}
    body = {"as_of": batch.as_of, "rows": len(batch.answers), "errors": batch.errors, "tables": versions}
    return Entry(PREDICTED, batch.version, body)
