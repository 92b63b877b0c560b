"""Declare how a model is trained: on which rows, split how, searched how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from headrace.core.errors import DefinitionError
from headrace.core.location import user_location
from headrace.core.time import duration
from headrace.features.dataset import Dataset
from headrace.models.definition import Model
from headrace.training.data import TrainingData

Baseline = Literal["logistic", "prior"]


class Params(Protocol):
    """Offer hyperparameters by name: during a search a trial's values, afterwards the chosen ones."""

    seed: int
    threads: int

    def int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """Choose a whole number from `low` to `high`, both included."""
        ...

    def float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Choose a number from `low` to `high`."""
        ...

    def choice(self, name: str, options: list[str]) -> str:
        """Choose one of some texts."""
        ...


TrainFunction = Callable[[TrainingData, Params], Model]


@dataclass(frozen=True)
class ByTime:
    """Split rows by their moment: training, then validation, then test, each pair kept apart by an embargo."""

    valid: int
    test: int
    embargo: int | None


@dataclass(frozen=True)
class Search:
    """Search hyperparameters: `trials` runs, judged by `metric` on the validation rows, the first ones at random."""

    trials: int
    metric: str


@dataclass(frozen=True, eq=False)
class Training:
    """Hold a training function with its dataset, split, search and baseline."""

    name: str
    function: TrainFunction
    dataset: Dataset
    split: ByTime
    search: Search | None
    baseline: Baseline
    refit: bool = False
    location: str = field(default_factory=user_location)


def by_time(*, valid: str, test: str, embargo: str | None = None) -> ByTime:
    """Keep the newest rows for test, those before for validation; the embargo defaults to the dataset's `mature`."""
    return ByTime(duration(valid), duration(test), None if embargo is None else duration(embargo))


def train(
    dataset: Dataset,
    *,
    split: ByTime,
    search: Search | None = None,
    baseline: Baseline = "logistic",
    refit: bool = False,
) -> Callable[[TrainFunction], Training]:
    """Make a function the training step of a model.

    The baseline is trained beside it on the same rows: "logistic" (a logistic regression on the same features) or
    "prior" (the share of positives among the training rows). With `refit` the function is called once more with the
    chosen parameters on training and validation rows together, as `data.train`: a model that lacks the newest weeks is
    stale when it starts. It must not stop early on `data.valid` then.

    Raises:
        DefinitionError: `dataset` is none, or the baseline is unknown.
    """
    if not isinstance(dataset, Dataset) or baseline not in ("logistic", "prior"):
        raise DefinitionError(
            "hr.train needs a dataset and a known baseline", where=user_location(), got=f"{dataset!r}, {baseline}"
        )
    return lambda function: Training(function.__name__, function, dataset, split, search, baseline, refit)
