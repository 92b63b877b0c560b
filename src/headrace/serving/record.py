"""Hold predictions and define how the log keeps them; this module owns the schema of the prediction log.

A frame of a segment is: length (u32), CRC-32 (u32) of the length, CRC-32 (u32) of what follows, kind (u8), then
- kind 0, a name: code (u16), UTF-8 text. Codes stand for versions and variants inside one segment.
- kind 1, a prediction: `FIXED`, then row id, feature words, statuses, and a JSON array [request, texts, shadows], then
  `MEASURED`: what was measured with a real clock and is left out of every digest.
- kind 2, the header: JSON with the segment's number, its feature columns, the request's columns and what names the
  features' meaning; always first.
- kind 3, what was applied: JSON of the version of each source's reveals table that the online features held; it stands
  for the predictions that follow. null: that is not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from struct import Struct
from typing import Any

FALLBACK, ERROR, CACHED, MODELLED, DEGRADED = 1, 2, 4, 8, 16
EXCLUDED_FROM_DIGEST = ("latency_us",)
FRAME = Struct("<III")
# number, t, score, codes of version, variant and threshold, decision (2: none), flags, sizes of row id, words, statuses
FIXED = Struct("<BqqdHHHBBHII")
NAME = Struct("<BH")
MEASURED = Struct("<f")
KIND_NAME, KIND_PREDICTION, KIND_HEADER, KIND_APPLIED = 0, 1, 2, 3
NO_DECISION = 2


@dataclass(frozen=True)
class Shadow:
    """Hold what a version that did not answer would have answered; None if it failed."""

    version: str
    score: float | None


@dataclass(frozen=True)
class Prediction:
    """Hold one answer.

    Attributes:
        id: names it in the log for ever.
        t: the moment of the prediction, microseconds UTC.
        row_id: the row's encoded id.
        request: the row's values by column, as they were asked.
        features: names and values as the model saw them; None is null.
        status: names of features that are not OK, with why.
        score: what was answered.
        decision: what the threshold made of it; None without one.
        version: the version that routing chose; "" if none was there.
        variant: champion, candidate, or fallback.
        threshold: the threshold's version.
        flags: FALLBACK, ERROR, CACHED, MODELLED, DEGRADED (the online store could not be read).
        shadows: what other versions would have said.
        latency_us: how long it took, microseconds.
        definition: names the features' meaning; "" if the log does not tell.
        applied: the version of each source's reveals table that the online features held; None if it is not known.
        in_step: every reveal was applied at its own arrival, as a replay does; then `applied` is not needed.
    """

    id: str
    t: int
    row_id: bytes
    request: Mapping[str, Any]
    features: Mapping[str, Any]
    status: Mapping[str, str]
    score: float
    decision: bool | None
    version: str
    variant: str
    threshold: str
    flags: int
    shadows: tuple[Shadow, ...]
    latency_us: float
    definition: str = ""
    applied: Mapping[str, int] | None = None
    in_step: bool = False

    @property
    def fallback(self) -> bool:
        """Tell whether no model answered."""
        return bool(self.flags & FALLBACK)

    @property
    def degraded(self) -> bool:
        """Tell whether stored features were missing or stale, since the online store could not be read."""
        return bool(self.flags & DEGRADED)


def prediction_id(segment: int, number: int) -> str:
    """Return a prediction's id, from which the log finds it.

    >>> prediction_id(64, 17)
    'p000064-000017'
    """
    return f"p{segment:06d}-{number:06d}"
