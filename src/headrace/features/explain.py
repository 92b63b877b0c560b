"""Show which raw events a feature used at a moment, and why others were refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headrace.core.errors import UnknownColumn, did_you_mean
from headrace.core.identity import encode_key
from headrace.core.time import Instant, format_duration
from headrace.features.history import NEVER, History
from headrace.features.offline import lane_events
from headrace.features.plan import DatasetPlan, LanePlan
from headrace.features.windows import ValueType, scan

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


def find_outputs(plan: DatasetPlan, name: str) -> list[tuple[LanePlan, int]]:
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
    plan: DatasetPlan, histories: Mapping[str, History], name: str, key: Sequence[Any], t: int
) -> list[FeatureExplanation]:
    """Explain a feature of a key at an instant (microseconds UTC), from everything that has arrived since.

    Raises:
        UnknownColumn: the dataset has no such feature.
    """
    return [_explain(lane, i, histories[lane.source.name], key, t) for lane, i in find_outputs(plan, name)]


def _explain(lane: LanePlan, output: int, history: History, key: Sequence[Any], t: int) -> FeatureExplanation:
    events, numbers = lane_events(lane, history)
    number = numbers.get(encode_key(list(key)) or b"", -1)
    words, status = scan(lane.lane, lane.outputs, events, np.array([number]), np.array([t]))
    kind = lane.lane.values[lane.outputs[output].column or 0] if lane.lane.values else ValueType.INT
    column = lane.columns[output]
    value = None if status[0, output] else _plain(words[0, output], column.dtype)
    mine = np.flatnonzero(events.key == number)
    mine = mine[np.lexsort((events.arrival[mine], events.moment[mine]))][::-1]
    uses = [_use(lane, output, events, int(i), t) for i in mine]
    counted = sum(u.used for u in uses)
    refused = [u for u in uses if not u.used]
    near = sorted(refused, key=lambda u: abs(u.moment - t))[:SHOWN]
    shown = [u for u in uses if u.used][:SHOWN] + near
    texts = tuple(str(v) for v in lane.values) + (() if lane.where is None else (f"where {lane.where}",))
    ordered = tuple(sorted(shown, key=lambda u: (-u.moment, -u.arrival)))
    name = column.name if kind is not ValueType.REF else f"{column.name} (text id)"
    return FeatureExplanation(name, value, texts, str(lane.moment), counted, len(refused), ordered)


def _use(lane: LanePlan, output: int, events: Any, i: int, t: int) -> EventUse:
    moment, arrival, until = int(events.moment[i]), int(events.arrival[i]), int(events.until[i])
    why = _refusal(lane, output, moment, arrival, until, t)
    if why is None and lane.outputs[output].column is not None and events.nulls[i, lane.outputs[output].column]:
        why = "its value is null"
    values = tuple(
        None if events.nulls[i, j] else _plain(events.words[i, j], kind.name.lower())
        for j, kind in enumerate(lane.lane.values)
    )
    return EventUse(Instant(moment), Instant(arrival), values, why is None, why or "inside the window")


def _refusal(lane: LanePlan, output: int, moment: int, arrival: int, until: int, t: int) -> str | None:
    window = lane.outputs[output].window
    edge = t + 1 if lane.lane.state else t
    if arrival > t:
        return f"had not arrived: came {format_duration(arrival - t)} later"
    if moment >= edge:
        return "was not known yet: its moment is not before the prediction's"
    if until <= t:
        return f"was corrected at {Instant(until).isoformat()}" if until != NEVER else None
    if window is not None and moment < edge - window:
        return f"is older than {format_duration(window)}"
    age = lane.outputs[output].parameter
    if lane.outputs[output].aggregate == "latest" and age is not None and t - moment > age:
        return f"is older than {format_duration(int(age))}"
    return None


def _plain(word: Any, dtype: str) -> Any:
    if dtype == "float":
        return float(np.array([word]).view(np.float64)[0])
    return bool(word) if dtype == "bool" else int(word)
