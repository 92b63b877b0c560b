from __future__ import annotations

from typing import Any

import pytest

from headrace.core.errors import DefinitionError
from headrace.evaluation.metrics import METRICS
from headrace.training.definition import Search
from headrace.training.record import Trial
from headrace.training.search import HIGHER_IS_BETTER, LOWER_IS_BETTER, FixedParams, TrialParams, best_of, search

PLAN = Search(12, "log_loss")


def judge(p: TrialParams) -> float:
    depth, rate = p.int("depth", 1, 9), p.float("rate", 1e-3, 1.0, log=True)
    return (depth - 6) ** 2 + abs(rate - 0.1) + (p.choice("kind", ["a", "b"]) == "a")


def run(**options: Any) -> list[Trial]:
    return search(PLAN, judge, **{"trials": 12, "seed": 3, "threads": 1, **options})


def test_a_search_that_was_stopped_ends_as_if_it_had_not_been() -> None:
    whole = run()
    for stopped in (1, 6, 11):
        assert run(finished=whole[:stopped]) == whole
    assert run(seed=4) != whole
    assert len({trial.params["rate"] for trial in whole}) == 12


def test_the_search_finds_better_values_than_it_began_with() -> None:
    plan = Search(30, "log_loss")
    found = search(plan, judge, trials=30, seed=1, threads=1)
    assert best_of(found, plan).value < min(t.value for t in found[:10])


def test_progress_is_told_of_each_new_trial() -> None:
    told: list[int] = []
    whole = run(progress=lambda trial: told.append(trial.number))
    assert told == list(range(12))
    run(finished=whole[:10], progress=lambda trial: told.append(trial.number))
    assert told[12:] == [10, 11]


def test_the_best_goes_by_the_metric_s_direction_and_the_first_of_equals_wins() -> None:
    trials = [Trial(i, {}, {}, value) for i, value in enumerate([0.5, 0.2, 0.9, 0.2, 0.9])]
    assert best_of(trials, Search(5, "log_loss")).number == 1
    assert best_of(trials, Search(5, "auc")).number == 2


def test_directions_are_those_of_the_metrics() -> None:
    for name in HIGHER_IS_BETTER:
        assert METRICS[name].better == "higher"
    for name in LOWER_IS_BETTER:
        assert METRICS[name].better == "lower"


def test_a_metric_without_a_direction_cannot_judge() -> None:
    with pytest.raises(DefinitionError, match="cannot be judged by this metric"):
        search(Search(2, "positive_rate"), judge, trials=2, seed=1, threads=1)


def fixed(**values: Any) -> FixedParams:
    return FixedParams(values, seed=1, threads=1, where="risk.py:3")


def test_given_values_are_answered() -> None:
    p = fixed(depth=3, rate=0.5, kind="b")
    assert (p.int("depth", 1, 9), p.float("rate", 0.1, 1.0), p.choice("kind", ["a", "b"])) == (3, 0.5, "b")
    p.refuse_unused()


def test_a_value_nobody_asked_for_is_a_mistake() -> None:
    p = fixed(depht=3, depth=4)
    p.int("depth", 1, 9)
    with pytest.raises(DefinitionError) as caught:
        p.refuse_unused()
    assert str(caught.value) == (
        "unknown parameter\n  where:    risk.py:3\n  got:      depht\n  expected: depth\n  next:     did you mean depth?"
    )


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda p: p.int("missing", 1, 2), "no value for a parameter"),
        (lambda p: p.int("depth", 4, 9), "depth is out of its range"),
        (lambda p: p.float("kind", 0, 1), "kind is out of its range"),
        (lambda p: p.choice("kind", ["x"]), "kind is none of its options"),
    ],
)
def test_values_that_do_not_fit_are_mistakes(ask: Any, said: str) -> None:
    with pytest.raises(DefinitionError, match=said):
        ask(fixed(depth=3, kind="b"))
