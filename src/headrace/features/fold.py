"""Call a user's aggregate with a window's values, the same offline and online."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.core.errors import UserCodeError
from headrace.core.expressions import type_of
from headrace.core.time import Instant
from headrace.features.lane_plan import LanePlan
from headrace.features.record import NULL, OK


class Folder:
    """Compute one fold's results."""

    def __init__(self, lane: LanePlan, output: int) -> None:
        fold = lane.features[output][0].aggregate.fold
        column = lane.outputs[output].column
        assert fold is not None
        assert column is not None
        self.fold, self.dtype = fold, type_of(lane.values[column])

    def result(self, words: NDArray[np.int64], text: Callable[[int], str]) -> tuple[int, int]:
        """Return the result's word and status for a window's words, oldest first; `text` returns the text of an id.

        Raises:
            UserCodeError: the function raised, or returned no number of its type.
        """
        values = self._values(words, text)
        try:
            found = self.fold.function(values)
        except Exception as error:
            raise self._failed(f"raised {type(error).__name__}: {error}", values) from error
        if found is None:
            return (int(np.array([np.nan]).view(np.int64)[0]) if self.fold.dtype == "float" else 0), NULL
        if not self._fits(found):
            raise self._failed(f"returned {found!r:.80}, not {self.fold.dtype}", values)
        word = np.array([found], np.float64).view(np.int64)[0] if self.fold.dtype == "float" else int(found)
        return int(word), OK

    def _values(self, words: NDArray[np.int64], text: Callable[[int], str]) -> list[Any]:
        if self.dtype == "float":
            floats: list[Any] = words.view(np.float64).tolist()
            return floats
        plain = words.tolist()
        if self.dtype == "str":
            return [text(word) for word in plain]
        kind = {"bool": bool, "instant": Instant}.get(self.dtype)
        return plain if kind is None else [kind(word) for word in plain]

    def _fits(self, found: object) -> bool:
        if self.fold.dtype == "bool" or isinstance(found, bool):
            return isinstance(found, bool) and self.fold.dtype == "bool"
        if self.fold.dtype == "int":
            return isinstance(found, (int, np.integer)) and bool(-(2**63) <= found < 2**63)
        return isinstance(found, (int, float, np.number))

    def _failed(self, what: str, values: list[Any]) -> UserCodeError:
        return UserCodeError(
            f"{self.fold.name} {what}",
            where=self.fold.location,
            got=f"{len(values)} values: {values!r:.200}",
            next_step="test it alone: it must handle every list of values that its column allows",
        )
