"""A URL finds its engine, imports no other, starts nothing, and says what is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.core.errors import BadUrl, MissingExtra, Unavailable
from headrace.core.settings import EngineSettings
from headrace.engines import check_engine, open_engine
from headrace.engines.find import RETRIES
from headrace.engines.local import LocalEngine
from headrace.engines.processes import ProcessEngine


def test_a_url_names_engine_and_options() -> None:
    with open_engine() as here, open_engine("local:processes=3") as apart:
        assert isinstance(here, LocalEngine)
        assert isinstance(apart, ProcessEngine)
        assert apart.capabilities.workers == 3
    assert EngineSettings().retries == RETRIES
    check_engine(EngineSettings().features)


@pytest.mark.parametrize("url", ["", "local", "/a", "LOCAL:", "local:\0"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(BadUrl, match="not an engine"):
        check_engine(url)


def test_a_typo_is_named() -> None:
    with pytest.raises(BadUrl) as caught:
        check_engine("sparc:")
    assert str(caught.value) == (
        "no engine is called sparc\n"
        "  where:    [engines]\n"
        "  got:      sparc:\n"
        "  expected: local, ray, spark\n"
        "  next:     did you mean spark?"
    )
    with pytest.raises(BadUrl, match="local has no option process") as option:
        check_engine("local:process=2")
    assert option.value.next_step == "did you mean processes?"


@pytest.mark.parametrize("count", ["0", "-1", "two", ""])
def test_a_count_is_a_whole_number(count: str) -> None:
    with pytest.raises(BadUrl, match="processes does not fit"):
        open_engine(f"local:processes={count}")


@pytest.mark.parametrize("scheme", ["ray", "spark"])
def test_a_missing_extra_says_how_to_install_it(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra) as caught:
        check_engine(f"{scheme}:")
    assert caught.value.next_step == f'pip install "headrace[{scheme}]"'


def test_a_cluster_that_is_not_there_is_unavailable() -> None:
    code = "from headrace.engines import open_engine; open_engine('ray:address=127.0.0.1:9')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "headrace.core.errors.Unavailable: Ray cannot be started or reached" in done.stderr
    assert Unavailable.retryable


def test_spark_without_java_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    bare = {"PATH": os.pathsep.join(["/usr/sbin", str(tmp_path)]), "TMPDIR": str(tmp_path)}
    for name in ("bash", "sh", "dirname", "readlink", "ls", "uname", "cat", "rm"):
        found = shutil.which(name)
        assert found is not None
        (tmp_path / name).symlink_to(found)
    before = set(os.listdir(tmp_path))
    code = "from headrace.engines import open_engine; open_engine('spark:')"
    environment = {k: v for k, v in os.environ.items() if k != "JAVA_HOME"} | bare
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "headrace.core.errors.ConfigurationError: Spark needs Java" in done.stderr
    assert set(os.listdir(tmp_path)) == before


HEAVY = ("ray", "pyspark", "py4j", "pydantic")


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import headrace", set()),
        ("import headrace.engines.worker", set()),
        ("from headrace.engines import check_engine; check_engine('ray:'); check_engine('spark:')", set()),
        ("import headrace.features.training_set", {"pydantic"}),
        ("import headrace.pipelines.run", {"pydantic"}),
        ("from headrace.engines import open_engine; open_engine('local:processes=2').close()", set()),
    ],
)
def test_no_engine_is_imported_unless_it_is_asked_for(code: str, allowed: set[str]) -> None:
    probe = f"{code}; import sys; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= allowed
