"""Declare how predictions are answered and decided."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.core.errors import DefinitionError
from headrace.core.location import user_location
from headrace.core.time import duration


@dataclass(frozen=True)
class Threshold:
    """Decide positively from a score of `value` upwards."""

    value: float

    @property
    def version(self) -> str:
        """Return the name under which the prediction log keeps the threshold."""
        return f"threshold={self.value:g}"

    def decide(self, score: float) -> bool:
        """Turn a score into a decision."""
        return score >= self.value


def threshold(value: float) -> Threshold:
    """Decide positively from a score of `value` upwards.

    Raises:
        DefinitionError: the value is not in [0, 1].
    """
    if not 0 <= value <= 1:
        raise DefinitionError("not a threshold", where=user_location(), got=value, expected="a number from 0 to 1")
    return Threshold(value)


class Endpoint:
    """Answer requests: how long an equal request may get the same answer, and what is answered without a model."""

    def __init__(self, *, cache: str | None = None, fallback: float | None = None, max_rows: int = 4096) -> None:
        self.cache = None if cache is None else duration(cache)
        self.fallback = fallback
        self.max_rows = max_rows
        self.location = user_location()
