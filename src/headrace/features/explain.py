"""Show which raw events a feature used at a moment, and why others were refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.core.errors import UnknownColumn, did_you_mean
from headrace.core.identity import encode_key
from headrace.core.time import Instant, civil_time, format_duration, rough_duration
from headrace.features.fold import Folder
from headrace.features.history import NEVER, History
from headrace.features.lane_plan import LanePlan
from headrace.features.offline import lane_events, texts_by_id
from headrace.features.plan import FeaturePlan
from headrace.features.record import OK
from headrace.features.scan import scan
from headrace.features.snapshots import Copies
from headrace.features.texts import Texts
from headrace.features.windows import LaneEvents, Output

SHOWN = 50


@dataclass(frozen=True)
class EventUse:
    """Hold one event: when it was known and arrived, its values, and whether and why it was used."""

    moment: Instant
    arrival: Instant
    values: tuple[Any, ...]
    used: bool
    why: str


@dataclass(frozen=True)
class FeatureExplanation:
    """Hold a feature's value for a key at a moment, with the events around it, the newest first.

    `events` holds at most `SHOWN` used and `SHOWN` refused ones; `used` and `refused` count all.
    """

    name: str
    value: Any
    expressions: tuple[str, ...]
    known_at: str
    used: int
    refused: int
    events: tuple[EventUse, ...]


def find_outputs(plan: FeaturePlan, name: str) -> list[tuple[LanePlan, int]]:
    """Return the lane and place of a feature, `Origin.dep_delay[1h]`, or of all its parts, `Origin.dep_delay`.

    Raises:
        UnknownColumn: the dataset has no such windowed or latest feature.
    """
    every = [(lane, i) for g in plan.groups for lane in g.lanes for i in range(len(lane.outputs))]
    found = [(lane, i) for lane, i in every if lane.columns[i].name in (name, *_parts(lane.columns[i].name, name))]
    if not found:
        known = [lane.columns[i].name for lane, i in every]
        raise UnknownColumn(
            "no such feature",
            got=name,
            expected=known,
            next_step=did_you_mean(name, [*known, *(k.split("[")[0] for k in known)]),
        )
    return found


def _parts(full: str, name: str) -> list[str]:
    return [full] if full.split("[")[0] == name else []


def explain_feature(
    plan: FeaturePlan, histories: Mapping[str, History], name: str, key: Sequence[Any], t: int
) -> list[FeatureExplanation]:
    """Explain a feature of a key at an instant (microseconds UTC), from everything that has arrived since.

    Raises:
        UnknownColumn: the dataset has no such feature.
    """
    logs: dict[bytes, _Log] = {}
    encoded = encode_key(list(key)) or b""
    return [
        _explain(lane, i, _log(logs, lane, histories), encoded, t, lane.columns[i].name)
        for lane, i in find_outputs(plan, name)
    ]


def explain_row(
    plan: FeaturePlan, histories: Mapping[str, History], row: Sequence[Any], t: int, name: str | None = None
) -> list[FeatureExplanation]:
    """Explain a row's features that are computed from events, or the one of that name; `row` is in the order of `plan.row`.

    Raises:
        UnknownColumn: the plan has no such feature.
    """
    known = [column.name for column in plan.columns]
    if name is not None and name not in known:
        raise UnknownColumn("no such feature", got=name, expected=known, next_step=did_you_mean(name, known))
    logs: dict[bytes, _Log] = {}
    found = []
    for binding in plan.bindings:
        key = encode_key([row[plan.places[k]] for k in binding.key]) or b""
        at = binding.offset
        for lane in binding.lanes:
            for output in range(len(lane.outputs)):
                full = known[at + output]
                if name in (None, full):
                    found.append(_explain(lane, output, _log(logs, lane, histories), key, t, full))
            at += len(lane.outputs)
    return found


@dataclass(frozen=True, eq=False)
class _Log:
    """Hold a lane's events, the keys by number, and the texts behind the ids."""

    events: LaneEvents
    keys: pa.Array
    texts: Texts
    copies: Copies | None


def _log(logs: dict[bytes, _Log], lane: LanePlan, histories: Mapping[str, History]) -> _Log:
    """Return a lane's log, computed once for all its outputs."""
    if lane.prefix not in logs:
        history = histories[lane.source.name]
        copies = history.copies if lane.dated else None
        logs[lane.prefix] = _Log(*lane_events(lane, history), texts_by_id(lane, history), copies)
    return logs[lane.prefix]


def _explain(lane: LanePlan, output: int, log: _Log, key: bytes, t: int, name: str) -> FeatureExplanation:
    events, number = log.events, log.keys.index(pa.scalar(key, pa.binary())).as_py() if key else -1
    back = t if lane.zone is None else civil_time(t, lane.zone)
    one = np.array([number]), np.array([t])
    since = None if log.copies is None else log.copies.newest(one[1], state=lane.lane.state)
    words, status, folds = scan(lane.lane, lane.outputs, events, *one, query_at=np.array([back]), query_since=since)
    if output in folds and status[0, output] == OK:
        result = Folder(lane, output).result(folds[output][0], log.texts.__getitem__)
        words[0, output], status[0, output] = result
    place = lane.outputs[output].column
    mine = np.flatnonzero(events.key == number)
    mine = mine[np.lexsort((events.row[mine], events.arrival[mine], events.moment[mine]))][::-1]
    reasons = _reasons(lane, output, events, mine, t, back)
    if since is not None and lane.outputs[output].aggregate == "latest":
        reasons[(reasons == USED) & (events.moment[mine] < since[0])] = GONE
    used = reasons == USED
    refused = np.flatnonzero(~used)
    near = refused[np.argsort(np.abs(events.moment[mine[refused]] - t), kind="stable")][:SHOWN]
    shown = np.sort(np.concatenate([np.flatnonzero(used)[:SHOWN], near]))
    value = None
    if status[0, output] == OK:
        value = _plain(words[0, output], lane.columns[output].dtype, log.texts)
    expressions: tuple[str, ...] = ("rows",) if place is None else (str(lane.values[place]),)
    expressions += () if lane.where is None else (f"where {lane.where}",)
    return FeatureExplanation(
        name,
        value,
        expressions,
        str(lane.moment),
        int(np.count_nonzero(used)),
        len(refused),
        tuple(_use(lane, place, log, int(mine[i]), t, int(reasons[i]), output) for i in shown),
    )


USED, ABSENT_YET, AFTER, CORRECTED, OLD, EMPTY, REPLACED, BEYOND, ENDED, GONE = range(10)


def _reasons(
    lane: LanePlan, output: int, events: LaneEvents, mine: NDArray[np.int64], t: int, back: int
) -> NDArray[np.int64]:
    """Return why each of a key's events, the newest first, was refused, or USED; the first reason counts."""
    what, state = lane.outputs[output], lane.lane.state
    stands, column = events.moment[mine], what.column
    moment = events.words[mine, -1] if lane.on is not None else stands
    old, beyond, ended = (np.zeros(len(mine), bool) for _ in range(3))
    if what.window is not None:
        end = back - what.offset + state
        begin = end - what.window
        old, beyond = stands < (begin // what.hop * what.hop if what.hop else begin), stands >= end
    elif what.parameter is not None:
        old = t - stands > what.parameter
    if what.until is not None:
        ended = ~events.nulls[mine, what.until] & (events.words[mine, what.until] <= t)
    empty = np.zeros(len(mine), bool) if column is None or lane.lane.state else events.nulls[mine, column]
    tests = [(events.arrival[mine] > t, ABSENT_YET), (moment >= t + state, AFTER), (events.until[mine] <= t, CORRECTED)]
    tests += [(old, OLD), (beyond, BEYOND), (empty, EMPTY)]
    found = np.select([test for test, _ in tests], [reason for _, reason in tests], USED)
    if what.aggregate == "latest":
        found[np.flatnonzero(found == USED)[1:]] = REPLACED
        found[(found == USED) & ended] = ENDED
    return found


def _use(lane: LanePlan, place: int | None, log: _Log, i: int, t: int, reason: int, output: int) -> EventUse:
    events, what = log.events, lane.outputs[output]
    moment, arrival, until = int(events.moment[i]), int(events.arrival[i]), int(events.until[i])
    limit = what.window if what.window is not None else what.parameter
    why = {
        USED: "inside the window" if what.window is not None else "the newest",
        ABSENT_YET: f"had not arrived: came {rough_duration(max(arrival - t, 0))} later",
        AFTER: "was not known yet: its moment is not before the prediction's",
        CORRECTED: f"was corrected at {Instant(until).isoformat()}" if until != NEVER else "",
        OLD: f"is older than {_span(int(limit or 0), what)}",
        BEYOND: f"lies beyond the window, {_span(0, what)}",
        ENDED: "held until a moment that has passed",
        GONE: "a newer snapshot is without it",
        EMPTY: "its value is null",
        REPLACED: "a newer one holds",
    }[reason]
    value: tuple[Any, ...] = ()
    if place is not None:
        kind = lane.lane.values[place].name.lower()
        value = (None if events.nulls[i, place] else _plain(events.words[i, place], kind, log.texts),)
    return EventUse(Instant(moment), Instant(arrival), value, reason == USED, why)


def _span(length: int, what: Output) -> str:
    """Write how far back, or ahead, a window's edge is."""
    far = length + what.offset
    stepped = f", in steps of {format_duration(what.hop)}" if what.hop and length else ""
    return f"{format_duration(abs(far))}{' ahead' if far < 0 else ''}{stepped}"


def _plain(word: Any, dtype: str, texts: Texts) -> Any:
    if dtype == "float":
        return float(np.array([word]).view(np.float64)[0])
    if dtype in ("str", "ref"):
        return texts[int(word)]
    return bool(word) if dtype == "bool" else int(word)
