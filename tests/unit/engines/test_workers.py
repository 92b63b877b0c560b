"""Workers that cannot even begin are no dead ones: what they lack is said, and where to install it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from headrace.core.errors import ConfigurationError
from headrace.core.version import __version__
from headrace.engines import open_engine
from headrace.testing.engines import Numbers, answer_of


def test_workers_of_spark_without_packages_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setenv("PYSPARK_PYTHON", str(bare))
    with (
        open_engine("spark:master=local[1]&memory=512m", retries=0) as engine,
        pytest.raises(ConfigurationError, match="the workers of spark: cannot run Headrace") as caught,
    ):
        list(engine.map_buckets(answer_of, Numbers(1)))
    assert caught.value.got is not None and caught.value.got.startswith("ModuleNotFoundError")
    assert caught.value.next_step == f'pip install "headrace[spark]=={__version__}" where the workers are'


def test_workers_of_ray_without_headrace_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(function: bytes, work: bytes) -> bytes:
        raise ModuleNotFoundError("No module named 'headrace'")

    monkeypatch.setattr("headrace.engines.ray.perform", absent)
    with (
        open_engine("ray:cpus=1", retries=0) as engine,
        pytest.raises(ConfigurationError, match="the workers of ray: cannot run Headrace") as caught,
    ):
        list(engine.map_buckets(answer_of, Numbers(1)))
    assert caught.value.got == "No module named 'headrace'"
    assert (
        caught.value.expected
        == f"Headrace {__version__} on Python {sys.version_info[0]}.{sys.version_info[1]}, as here"
    )
