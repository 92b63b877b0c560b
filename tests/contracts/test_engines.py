"""Enroll every engine in the engine contract, and in the parity of features: one core each, on loopback, started once."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.engines import Engine
from headrace.features.buckets import Spread
from headrace.features.training_set import training_set
from headrace.testing.engines import EngineContract
from tests.properties.test_buckets import Case, same
from tests.unit.features.test_buckets import AS_OF, PLANS, made
from tests.unit.features.test_buckets import same as same_set


class Enrolled(EngineContract):
    """Check an engine's promises, and that features computed on it are those of one bucket in memory."""

    def test_features_are_the_same_bits_as_in_memory(self, engine: Engine, tmp_path: Path) -> None:
        """Every kind of window and aggregate, folds and texts too, over a log with every oddity."""
        case = Case(3, 600, 150)
        assert same(case.computed(engine, tmp_path, 2), case.expected)

    @pytest.mark.parametrize("name", PLANS)
    def test_training_sets_are_the_same_bits_as_in_memory(self, engine: Engine, name: str, tmp_path: Path) -> None:
        """Rows, features, labels and weights, over tables of every kind; functions of the project travel to the workers."""
        plan, reveals = PLANS[name], made(300)
        expected = training_set(plan, reveals, as_of=AS_OF)
        assert len(expected) > 2
        found = training_set(plan, reveals, as_of=AS_OF, spread=Spread(engine, tmp_path, 150))
        assert same_set(found, expected)


class TestLocal(Enrolled):
    url = "local:"


class TestProcesses(Enrolled):
    url = "local:processes=2"


class TestRay(Enrolled):
    url = "ray:cpus=1"


class TestSpark(Enrolled):
    url = "spark:master=local[1]&memory=512m"
