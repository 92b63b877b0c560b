"""Enroll every engine in the engine contract, and in the parity of features: one core each, on loopback, started once."""

from __future__ import annotations

from pathlib import Path

from headrace.engines import Engine
from headrace.testing.engines import EngineContract
from tests.properties.test_buckets import Case, same


class Enrolled(EngineContract):
    """Check an engine's promises, and that features computed on it are those of one bucket in memory."""

    def test_features_are_the_same_bits_as_in_memory(self, engine: Engine, tmp_path: Path) -> None:
        """Every kind of window and aggregate, folds and texts too, over a log with every oddity."""
        case = Case(3, 600, 150)
        assert same(case.computed(engine, tmp_path, 2), case.expected)


class TestLocal(Enrolled):
    url = "local:"


class TestProcesses(Enrolled):
    url = "local:processes=2"


class TestRay(Enrolled):
    url = "ray:cpus=1"


class TestSpark(Enrolled):
    url = "spark:master=local[1]&memory=512m"
