"""Route requests to versions: one immutable table, replaced by one assignment, so no request ever sees half of a change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from headrace.core.identity import unit_interval
from headrace.features.record import FeatureVector


class Scorer(Protocol):
    """Score one row of features; `headrace.models.servable.Servable` is one."""

    def score_one(self, vector: FeatureVector) -> float:
        """Return the row's score."""
        ...


@dataclass(frozen=True)
class Variant:
    """Hold a version and its scorer."""

    version: str
    scorer: Scorer


@dataclass(frozen=True)
class Routes:
    """Say who answers: the champion, or for a sticky `share` of the units the candidate; `shadows` score beside.

    `salt` draws the share anew for each rollout; a larger share only adds units.
    """

    champion: Variant | None = None
    candidate: Variant | None = None
    share: float = 0.0
    salt: str = ""
    shadows: tuple[Variant, ...] = ()

    def choose(self, unit: str) -> tuple[Variant | None, str]:
        """Return the variant that answers a unit, and its role."""
        if self.candidate is not None and self.share > 0 and unit_interval(self.salt, unit) < self.share:
            return self.candidate, "candidate"
        return self.champion, "champion"

    def others(self, answering: Variant | None) -> tuple[Variant, ...]:
        """Return every other version that scores beside, each once."""
        found = {v.version: v for v in (self.champion, self.candidate, *self.shadows) if v is not None}
        if answering is not None:
            found.pop(answering.version, None)
        return tuple(found.values())


class Router:
    """Hold the routes in force; `routes` is replaced as a whole."""

    def __init__(self, routes: Routes | None = None) -> None:
        self.routes = routes or Routes()
