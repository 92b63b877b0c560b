"""Declare how predictions are answered and decided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from headrace.core.errors import DefinitionError, did_you_mean
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


OnMissing = Literal["fail", "fallback", "default", "stale"]


class Endpoint:
    """Answer requests: how long an equal request may get the same answer, and what is answered without a model.

    Args:
        cache: how long an equal request may get the same answer.
        fallback: the score that is answered where no model can.
        max_rows: rows of one request.
        on_missing: what happens while the online store cannot be read. "fail": the request fails (503); "fallback": the
            fallback is answered; "default": the model answers with stored features null, or their `fill=`; "stale": with
            those last read for the same keys, for a while. Such answers are marked `degraded`. Unless said it is
            "fallback" where there is one, else "fail".

    Raises:
        DefinitionError: `on_missing` is none of these, or "fallback" without one.
    """

    def __init__(
        self,
        *,
        cache: str | None = None,
        fallback: float | None = None,
        max_rows: int = 4096,
        on_missing: OnMissing | None = None,
    ) -> None:
        self.cache = None if cache is None else duration(cache)
        self.fallback = fallback
        self.max_rows = max_rows
        self.location = user_location()
        self.on_missing: OnMissing = on_missing or ("fail" if fallback is None else "fallback")
        if self.on_missing not in get_args(OnMissing):
            raise DefinitionError(
                "an endpoint cannot do that while features are missing",
                where=self.location,
                got=on_missing,
                expected=", ".join(get_args(OnMissing)),
                next_step=did_you_mean(str(on_missing), get_args(OnMissing)),
            )
        if self.on_missing == "fallback" and fallback is None:
            raise DefinitionError(
                "an endpoint without a fallback cannot answer it",
                where=self.location,
                got='on_missing="fallback"',
                next_step='hr.Endpoint(fallback=…, on_missing="fallback")',
            )
