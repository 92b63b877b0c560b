"""Plan an evaluation: which facts the gates need, and whether they fit what the model predicts. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from headrace.core.errors import DefinitionError
from headrace.core.limits import Limit
from headrace.evaluation.definition import (
    BeatsChampion,
    GapQuantity,
    Gate,
    LatencyQuantity,
    MetricQuantity,
    ModelSize,
    SkewQuantity,
)
from headrace.evaluation.metrics import METRICS

Task = Literal["classification", "regression"]
TASKS = {"classification": "binary", "regression": "regression"}


@dataclass(frozen=True)
class Needs:
    """Say what must be handed in: slice columns of the rows, the champion's scores, latency percentiles, skew of a sample."""

    columns: tuple[str, ...]
    champion: bool
    percentiles: tuple[str, ...]
    skew: int = 0


def plan_gates(gates: Sequence[Gate], task: Task) -> Needs:
    """Return what the gates need.

    Raises:
        DefinitionError: a gate measures something else than a metric of this task, latency or size, or compares by a
            metric without a better direction.
    """
    columns: dict[str, None] = {}
    percentiles: dict[str, None] = {}
    skew = 0
    for gate in gates:
        quantity = gate.quantity if isinstance(gate, Limit) else gate
        if isinstance(quantity, (MetricQuantity, GapQuantity, BeatsChampion)):
            _refuse_unfit(gate, quantity.name, task)
        if isinstance(quantity, (MetricQuantity, GapQuantity)) and quantity.by is not None:
            columns[quantity.by.name] = None
        elif isinstance(quantity, LatencyQuantity):
            percentiles[quantity.percentile] = None
        elif isinstance(quantity, SkewQuantity):
            skew = max(skew, quantity.sample)
        elif not isinstance(quantity, (MetricQuantity, BeatsChampion, ModelSize)):
            raise DefinitionError(
                "not a gate",
                where=gate.location,
                got=str(gate),
                expected="hr.metric, hr.gap, hr.latency, hr.model_size, hr.skew, or .beats_champion()",
                next_step="live quantities belong into abort_if or monitors",
            )
    return Needs(tuple(columns), any(isinstance(gate, BeatsChampion) for gate in gates), tuple(percentiles), skew)


def _refuse_unfit(gate: Gate, name: str, task: Task) -> None:
    metric = METRICS[name]
    if metric.task != TASKS[task]:
        fitting = [m.name for m in METRICS.values() if m.task == TASKS[task]]
        raise DefinitionError(
            f"{name} does not measure a {task}",
            where=gate.location,
            got=str(gate),
            expected=fitting,
            next_step="choose one of these metrics",
        )
    if isinstance(gate, BeatsChampion) and metric.better == "neither":
        raise DefinitionError(
            f"{name} has no better direction", where=gate.location, got=str(gate), next_step="compare another metric"
        )
