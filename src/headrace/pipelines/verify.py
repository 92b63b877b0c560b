"""Compare what was served with history: log and recompute, bit for bit, at the moment and state of each answer."""

from __future__ import annotations

import heapq
import struct
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.core.errors import NoVersion
from headrace.core.identity import unit_interval
from headrace.core.time import Clock, Instant, SystemClock, duration
from headrace.evaluation.run import SkewFact
from headrace.features.asked import asked_of
from headrace.features.buckets import lanes_of
from headrace.features.explain import FeatureExplanation, explain_row
from headrace.features.history import History
from headrace.features.offline import OfflineFeatures, Past, histories_of
from headrace.features.plan import DatasetPlan
from headrace.features.record import OK, STATUS
from headrace.pipelines.explain import events_table
from headrace.pipelines.given import given
from headrace.pipelines.project import Project
from headrace.pipelines.reveals import read_reveals, stream_reveals
from headrace.pipelines.spread import beside
from headrace.pipelines.stores import Stores, open_stores
from headrace.pipelines.view import Table, View
from headrace.serving.log import read_segment, segments
from headrace.serving.record import Prediction
from headrace.sources.values import arrow_type
from headrace.storage.ledger import Entry
from headrace.storage.tables import Tables

EVER = 2**62
VERIFIED = "verified"
SHOWN, EXPLAINED = 20, 3
OTHER, UNKNOWN, GONE = "of other features", "served from a state that is not known", "of table versions no longer kept"
AWAY = "served while the online store could not be read"


@dataclass(frozen=True)
class Difference:
    """Hold a feature that was served with another value than history gives, and the events behind history's."""

    prediction: str
    at: Instant
    feature: str
    served: Any
    recomputed: Any
    served_status: str
    recomputed_status: str
    events: tuple[FeatureExplanation, ...] = ()


@dataclass(frozen=True)
class Skew:
    """Hold a comparison of served features with history.

    `compared` predictions had `values` features in all, of which `differing` differ in a bit; `waiting` more were served as
    unknown until history repaired them (status REBUILD), which is no skew. `skipped` counts by reason what could not be
    compared; `found` is how many predictions the log holds.
    """

    found: int
    compared: int
    values: int
    differing: int
    waiting: int
    skipped: Mapping[str, int]
    features: Mapping[str, int]
    differences: tuple[Difference, ...]

    @property
    def share(self) -> float | None:
        """Return the share of compared values that differ, None where nothing could be compared."""
        return self.differing / self.values if self.values else None

    def fact(self) -> SkewFact:
        """Return what a gate judges."""
        nothing = self.found == self.skipped.get(OTHER, 0)
        why = "; ".join(f"{count} predictions {reason}" for reason, count in self.skipped.items())
        return SkewFact(self.share, self.compared, nothing, why or None)


def measure_skew(project: Project, stores: Stores, *, sample: int, since: int = -EVER) -> Skew:
    """Compare a sample of the predictions since an instant, chosen by a hash of the row's id, with history.

    Raises:
        DataError: a source has no table.
        Corrupt: the prediction log or a table is damaged.
    """
    plan, counts = project.plan, Counter[str]()
    chosen = heapq.nsmallest(sample, _comparable(stores, plan, since, counts), key=_place)
    groups: dict[tuple[tuple[str, int], ...], list[Prediction]] = defaultdict(list)
    for prediction in chosen:
        groups[() if prediction.in_step else tuple(sorted((prediction.applied or {}).items()))].append(prediction)
    comparison = _Comparison(plan)
    for versions, predictions in sorted(groups.items()):
        held = dict(versions)
        reveals = stream_reveals(stores.tables, plan.sources, held, asked_of(plan, rows=False))
        whole = cache(partial(_histories, stores.tables, plan, held))
        try:
            with beside(project).past(plan.read, lanes_of(plan, labels=False), reveals, EVER) as past:
                comparison.add(predictions, past, whole)
        except NoVersion:
            counts[GONE] += len(predictions)
    found = counts.pop("found", 0)
    return comparison.result(found, counts)


def _place(prediction: Prediction) -> tuple[float, str]:
    return unit_interval("verify", prediction.row_id.hex()), prediction.id


def _comparable(stores: Stores, plan: DatasetPlan, since: int, counts: Counter[str]) -> Iterator[Prediction]:
    """Yield the predictions that can be recomputed, from the newest segment back; count all, and the others by reason."""
    for segment in reversed(segments(stores.predictions)):
        newest = -EVER
        for prediction in read_segment(stores.predictions, segment):
            newest = max(newest, prediction.t)
            if prediction.t < since:
                continue
            counts["found"] += 1
            if prediction.definition != plan.features:
                counts[OTHER] += 1
            elif prediction.degraded:
                counts[AWAY] += 1
            elif prediction.applied is None and not prediction.in_step:
                counts[UNKNOWN] += 1
            else:
                yield prediction
        if -EVER < newest < since:
            return


def _histories(tables: Tables, plan: DatasetPlan, versions: Mapping[str, int]) -> Mapping[str, History]:
    return histories_of(plan, read_reveals(tables, plan.sources, versions, asked_of(plan, rows=False)), EVER)


class _Comparison:
    """Recompute predictions and collect what differs."""

    def __init__(self, plan: DatasetPlan) -> None:
        self.plan = plan
        self.compared = self.values = self.waiting = 0
        self.features: Counter[str] = Counter()
        self.differences: list[Difference] = []

    def add(self, predictions: Sequence[Prediction], past: Past, whole: Callable[[], Mapping[str, History]]) -> None:
        """Compare predictions that were served from one state; what differs is explained from its `whole` history."""
        plan = self.plan
        cells = [[prediction.request.get(c.name) for c in plan.row] for prediction in predictions]
        arrays = {c.name: pa.array([row[i] for row in cells], arrow_type(c.dtype)) for i, c in enumerate(plan.row)}
        t = np.array([prediction.t for prediction in predictions], np.int64)
        values = OfflineFeatures(plan, past).compute(pa.table(arrays), t)
        table = values.table(plan)
        columns = {column.name: table[column.name].to_pylist() for column in plan.columns}
        for place, prediction in enumerate(predictions):
            self.compared += 1
            for i, name in enumerate(columns):
                status = int(values.status[place, i])
                recomputed = columns[name][place] if status == OK else None
                self._compare(prediction, name, recomputed, STATUS[status], whole, cells[place])

    def _compare(
        self,
        prediction: Prediction,
        name: str,
        recomputed: Any,
        status: str,
        whole: Callable[[], Mapping[str, History]],
        row: Sequence[Any],
    ) -> None:
        told, served = prediction.status.get(name, STATUS[OK]), prediction.features[name]
        if told == "REBUILD":
            self.waiting += 1
            return
        self.values += 1
        if told == status and same_bits(served, recomputed):
            return
        self.features[name] += 1
        if len(self.differences) < SHOWN:
            events: tuple[FeatureExplanation, ...] = ()
            if len(self.differences) < EXPLAINED:
                events = tuple(explain_row(self.plan, whole(), row, prediction.t, name))
            at = Instant(prediction.t)
            self.differences.append(Difference(prediction.id, at, name, served, recomputed, told, status, events))

    def result(self, found: int, skipped: Mapping[str, int]) -> Skew:
        """Return what was found."""
        return Skew(
            found,
            self.compared,
            self.values,
            self.features.total(),
            self.waiting,
            dict(skipped),
            dict(self.features.most_common()),
            tuple(self.differences),
        )


def same_bits(a: Any, b: Any) -> bool:
    """Tell whether two plain values are the same to the last bit: -0.0 is not 0.0, and a NaN is itself."""
    if isinstance(a, float) and isinstance(b, float):
        return struct.pack("<d", a) == struct.pack("<d", b)
    return type(a) is type(b) and bool(a == b)


def skew_fact(project: Project, stores: Stores, sample: int) -> SkewFact:
    """Return the skew of a sample of what was served in the last `[serving] verify_period`, for a gate."""
    newest = -EVER
    for segment in reversed(segments(stores.predictions)):
        newest = max((prediction.t for prediction in read_segment(stores.predictions, segment)), default=-EVER)
        if newest > -EVER:
            break
    since = max(newest - project.settings.serving.verify_period, -EVER)
    return measure_skew(project, stores, sample=sample, since=since).fact()


def verify(project: Project, *, sample: int, since: str | None, state: str | None, clock: Clock | None = None) -> View:
    """Compare a sample of served predictions with history and record the result; a server may run beside.

    `since` is a duration back from now ("7d") or an instant; by default `[serving] verify_period`.

    Raises:
        DataError: nothing was ingested yet.
        DefinitionError: `since` is neither.
    """
    now = clock or SystemClock()
    begin = _since(since, int(now.now()), project.settings.serving.verify_period)
    with open_stores(project, state, clock=now, write=False, note=True) as stores:
        skew = measure_skew(project, stores, sample=sample, since=begin)
        counted = {k: v for k, v in asdict(skew).items() if k != "differences"}
        body = counted | {"since": begin, "share": skew.share, "features_of": project.plan.features}
        (record,) = stores.ledger.append([Entry(VERIFIED, project.name, body)])
    data = body | {"record": record.seq, "differences": [asdict(d) for d in skew.differences]}
    return View(_title(skew), data, _tables(skew), _notes(skew, begin, project))


def _since(text: str | None, now: int, period: int) -> int:
    if text is None:
        return now - period
    return int(given("--since", text, Instant.parse)) if "-" in text else now - given("--since", text, duration)


def _title(skew: Skew) -> str:
    if not skew.compared:
        return "Nothing to compare"
    if not skew.differing:
        return f"No skew: {skew.values:,} values of {skew.compared:,} predictions are those of history, bit for bit"
    return f"Skew: {skew.differing:,} of {skew.values:,} values differ from history"


def _notes(skew: Skew, begin: int, project: Project) -> list[str]:
    notes = [f"Not compared: {count:,} predictions {reason}." for reason, count in skew.skipped.items()]
    if skew.waiting:
        notes.append(f"{skew.waiting} values were served as unknown until history repaired them, and said so.")
    if not skew.found:
        notes.append(f"Nothing was served since {Instant(begin).isoformat()}; --since looks further back.")
    elif not skew.compared:
        notes.append(f"headrace backfill {project.typed} brings the online features up to the tables.")
    return notes


def _tables(skew: Skew) -> list[Table]:
    if not skew.differing:
        return []
    names = ["prediction", "at", "feature", "served", "recomputed"]
    rows = [[d.prediction, d.at.isoformat(), d.feature, _cell(d.served, d.served_status)] for d in skew.differences]
    for row, d in zip(rows, skew.differences, strict=True):
        row.append(_cell(d.recomputed, d.recomputed_status))
    by_feature = Table("Differing values by feature", ["feature", "values"], [list(f) for f in skew.features.items()])
    shown = Table(f"The first {len(rows)} of {skew.differing:,}", names, rows)
    return [by_feature, shown, *(events_table(e) for d in skew.differences for e in d.events)]


def _cell(value: Any, status: str) -> str:
    return repr(value) if status == STATUS[OK] else status
