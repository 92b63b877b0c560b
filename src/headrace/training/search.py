"""Offer hyperparameters to a training function: a trial's values during a search, the chosen ones afterwards."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from headrace.core.errors import DefinitionError, did_you_mean
from headrace.training.definition import Search
from headrace.training.record import Trial

HIGHER_IS_BETTER = ("auc", "pr_auc", "accuracy", "precision", "recall", "f1", "r2")
LOWER_IS_BETTER = ("log_loss", "brier", "ece", "mae", "rmse", "wape", "pinball")
STARTUP_TRIALS = 10


class FixedParams:
    """Answer with given values; a name without a value, and a value outside the range asked for, are mistakes."""

    def __init__(self, values: Mapping[str, Any], *, seed: int, threads: int, where: str = "") -> None:
        self.values, self.seed, self.threads, self.where = dict(values), seed, threads, where
        self.asked: set[str] = set()

    @property
    def chosen(self) -> dict[str, Any]:
        """Return the given values."""
        return self.values

    def int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """Return the value of a whole number."""
        return int(self._within(name, low, high))

    def float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return the value of a number."""
        return float(self._within(name, low, high))

    def choice(self, name: str, options: list[str]) -> str:
        """Return the value of a text."""
        value = self._value(name)
        if value not in options:
            raise self._error(f"{name} is none of its options", value, options)
        return str(value)

    def refuse_unused(self) -> None:
        """Raise a DefinitionError if a value was given that the function never asked for."""
        for name in sorted(set(self.values) - self.asked):
            raise self._error("unknown parameter", name, sorted(self.asked), did_you_mean(name, self.asked))

    def _within(self, name: str, low: Any, high: Any) -> Any:
        value = self._value(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise self._error(f"{name} is out of its range", value, f"{low} to {high}")
        return value

    def _value(self, name: str) -> Any:
        self.asked.add(name)
        if name not in self.values:
            hint = did_you_mean(name, self.values) if self.values else "add search=hr.Search(…), or give params"
            raise self._error("no value for a parameter", name, sorted(self.values), hint)
        return self.values[name]

    def _error(self, what: str, got: object, expected: object, next_step: str | None = None) -> DefinitionError:
        step = next_step or "correct params, or the function's ranges"
        return DefinitionError(what, where=self.where or "params", got=got, expected=expected, next_step=step)


class TrialParams:
    """Let a search choose each value and remember what was chosen."""

    def __init__(self, trial: Any, *, seed: int, threads: int) -> None:
        self._trial, self.seed, self.threads = trial, seed, threads

    @property
    def chosen(self) -> dict[str, Any]:
        """Return the values chosen so far."""
        return dict(self._trial.params)

    def int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """Choose a whole number."""
        return int(self._trial.suggest_int(name, low, high, log=log))

    def float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Choose a number."""
        return float(self._trial.suggest_float(name, low, high, log=log))

    def choice(self, name: str, options: list[str]) -> str:
        """Choose one of some texts."""
        return str(self._trial.suggest_categorical(name, options))


def search(
    plan: Search,
    judge: Callable[[TrialParams], float],
    *,
    trials: int,
    seed: int,
    threads: int,
    finished: Sequence[Trial] = (),
    progress: Callable[[Trial], None] | None = None,
) -> list[Trial]:
    """Run a seeded TPE search until `trials` trials are finished, those of `finished` counted, and return all of them.

    Each trial draws from a generator of its own, seeded by its number; so a search that was stopped and goes on ends
    as if it had never been stopped.

    Source of TPE: Bergstra et al., Algorithms for Hyper-Parameter Optimization (2011), as in Optuna.

    Raises:
        DefinitionError: the metric has no better direction.
    """
    import optuna

    study = _study(optuna, plan, finished)
    done = list(finished)
    for number in range(len(finished), trials):
        startup = min(STARTUP_TRIALS, max(1, trials // 2))
        study.sampler = optuna.samplers.TPESampler(seed=_seed(seed, number), n_startup_trials=startup)
        trial = study.ask()
        value = judge(TrialParams(trial, seed=seed, threads=threads))
        study.tell(trial, value)
        distributions = {
            name: optuna.distributions.distribution_to_json(found) for name, found in trial.distributions.items()
        }
        done.append(Trial(number, dict(trial.params), distributions, value))
        if progress is not None:
            progress(done[-1])
    return done


def best_of(trials: Sequence[Trial], plan: Search) -> Trial:
    """Return the best trial, of equals the first."""
    sign = -1 if plan.metric in HIGHER_IS_BETTER else 1
    return min(trials, key=lambda trial: (sign * trial.value, trial.number))


def _study(optuna: Any, plan: Search, finished: Sequence[Trial]) -> Any:
    if plan.metric not in HIGHER_IS_BETTER + LOWER_IS_BETTER:
        known = HIGHER_IS_BETTER + LOWER_IS_BETTER
        raise DefinitionError(
            "a search cannot be judged by this metric",
            where="hr.Search(metric=…)",
            got=plan.metric,
            expected=known,
            next_step=did_you_mean(plan.metric, known),
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize" if plan.metric in HIGHER_IS_BETTER else "minimize")
    for trial in finished:
        distributions = {
            name: optuna.distributions.json_to_distribution(text) for name, text in trial.distributions.items()
        }
        made = optuna.trial.create_trial(params=dict(trial.params), distributions=distributions, value=trial.value)
        study.add_trial(made)
    return study


def _seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=4).digest(), "big")
