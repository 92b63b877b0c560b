"""Declare how a new version takes over: in the shadow first, then for a share of the traffic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from headrace.core.errors import DefinitionError
from headrace.core.expressions import Column
from headrace.core.limits import Limit
from headrace.core.location import user_location
from headrace.core.time import duration, format_duration
from headrace.monitoring.definition import LiveQuantity


@dataclass(frozen=True)
class Step:
    """Hold one step: its kind, the share of units that get the candidate, its length and least number of rows."""

    kind: Literal["shadow", "canary"]
    share: float
    length: int
    min_rows: int

    def __str__(self) -> str:
        share = f"{self.share:g}, " if self.kind == "canary" else ""
        return f'{self.kind}({share}"{format_duration(self.length)}", min_rows={self.min_rows})'


def shadow(length: str, *, min_rows: int = 100) -> Step:
    """Score every request with the candidate too, and answer with the champion."""
    return Step("shadow", 1.0, duration(length), min_rows)


def canary(share: float, length: str, *, min_rows: int = 100) -> Step:
    """Answer this share of the units with the candidate; a step goes on until it has seen `min_rows` of its rows.

    Raises:
        DefinitionError: the share is not in (0, 1).
    """
    if not 0 < share < 1:
        raise DefinitionError("not a share", where=user_location(), got=share, expected="0 < share < 1")
    return Step("canary", share, duration(length), min_rows)


class Rollout:
    """Lead a candidate through its steps; any limit of `abort_if` that holds ends the rollout and the champion stays.

    `unit` is the column whose value decides, by a sticky hash, which variant answers.
    """

    def __init__(self, *, unit: Column[Any], steps: Sequence[Step], abort_if: Sequence[Limit] = ()) -> None:
        for limit in abort_if:
            if not isinstance(limit, Limit) or not isinstance(limit.quantity, LiveQuantity):
                raise DefinitionError(
                    "not an abort rule", where=user_location(), got=limit, expected='hr.live("error_rate") > 0.001'
                )
        self.unit, self.steps, self.abort_if = unit, tuple(steps), tuple(abort_if)
        self.location = user_location()
