"""Tables in object storage: the same training set as from disk, a killed run goes on, and what is wrong is said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.fs as fs
import pytest

from headrace.core.errors import BadUrl, DataError, Unavailable
from headrace.core.time import Instant, SystemClock, VirtualClock
from headrace.pipelines.compact import compact
from headrace.pipelines.erase import erase
from headrace.pipelines.project import Project, load_project
from headrace.pipelines.reproduce import reproduce
from headrace.pipelines.reveals import reveals_table
from headrace.pipelines.run import run
from headrace.pipelines.stores import open_stores
from headrace.pipelines.view import Silent
from headrace.storage.s3 import file_system
from tests.servers import ObjectServer

NOW = Instant.parse("2024-05-02T12:00:00Z")
SECRET = "not-to-be-shown"
SETTINGS = """
[stores]
tables = "s3:{bucket}/shop"

[s3]
endpoint = "{endpoint}"
region = "us-east-1"
access_key = "key"
secret_key = "{secret}"
"""


def moved(folder: Path, endpoint: str, bucket: str) -> Project:
    """Return the project of a folder, without its state, with its tables in a bucket."""
    shutil.rmtree(folder / ".headrace", ignore_errors=True)
    file = folder / "headrace.toml"
    file.write_text(file.read_text() + SETTINGS.format(bucket=bucket, endpoint=endpoint, secret=SECRET))
    return load_project("orders:pipeline", folder=folder)


def test_the_same_training_set_as_from_disk(shop: Path, objects: ObjectServer) -> None:
    """Also after a compaction, from whose older versions the training set is read again."""
    local = reproduce(load_project("orders:pipeline", folder=shop), "v1", to=None, state=None).data
    project = moved(shop, objects.endpoint, objects.bucket())
    run(project, state=None, seed=1, progress=Silent(), clock=VirtualClock(NOW))
    assert list((shop / ".headrace" / "tables").iterdir()) == []
    compact(project, state=None, progress=Silent(), clock=VirtualClock(NOW))
    again = reproduce(project, "v1", to=None, state=None).data
    assert (again["content"], again["rows"], again["same"]) == (local["content"], local["rows"], True)
    nothing = run(project, state=None, seed=1, progress=Silent(), clock=VirtualClock(NOW))
    assert "nothing new" in " ".join(nothing.notes)


def test_an_erasure_leaves_nothing_in_the_bucket_and_tells_of_its_versions(shop: Path, objects: ObjectServer) -> None:
    bucket = objects.bucket()
    project = moved(shop, objects.endpoint, bucket)
    run(project, state=None, seed=1, progress=Silent(), clock=VirtualClock(NOW))
    settings = {"source": None, "group": None, "why": "TICKET-17", "state": None, "progress": Silent()}
    done = erase(project, "Orders.shop=shop-13", yes=True, **settings)  # type: ignore[arg-type]
    assert any("old versions" in note for note in done.notes)
    with open_stores(project, None, clock=SystemClock(), write=False) as stores:
        held = stores.tables.read(reveals_table("Orders"))
        assert held.num_rows > 0
        assert "shop-13" not in held["shop"].to_pylist()
        with pytest.raises(DataError, match="no such version"):
            stores.tables.read(reveals_table("Orders"), version=1)
    system = file_system(project.settings.s3)
    files = [info.path for info in system.get_file_info(fs.FileSelector(bucket, recursive=True)) if info.is_file]
    assert files
    assert not any(b"shop-13" in system.open_input_file(path).readall() for path in files)


@pytest.mark.parametrize("effect", ["tables.before_commit", "tables.after_commit"])
def test_a_run_that_was_killed_at_a_commit_goes_on(shop: Path, objects: ObjectServer, effect: str) -> None:
    project = moved(shop, objects.endpoint, objects.bucket())
    command = [sys.executable, "-m", "headrace.cli", "run", "--seed", "1"]
    killed = subprocess.run(
        command,
        cwd=shop,
        env={**os.environ, "HEADRACE_FAILPOINTS": f"{effect}:kill:2"},
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -9
    run(project, state=None, seed=1, progress=Silent(), clock=VirtualClock(NOW))
    with open_stores(project, None, clock=SystemClock(), write=False) as stores:
        held = stores.tables.read(reveals_table("Orders"))
    assert held.num_rows == len(set(zip(held["_row_id"].to_pylist(), held["_content"].to_pylist(), strict=True)))


@pytest.mark.parametrize("wrong", ["bucket", "endpoint"])
def test_what_is_wrong_with_the_storage_is_said(shop: Path, objects: ObjectServer, wrong: str) -> None:
    bucket, endpoint = objects.bucket(), objects.endpoint
    project = (
        moved(shop, endpoint, "no-such-bucket") if wrong == "bucket" else moved(shop, "http://127.0.0.1:9", bucket)
    )
    with pytest.raises(Unavailable) as error:
        run(project, state=None, seed=1, progress=Silent(), clock=VirtualClock(NOW))
    assert "[s3]" in str(error.value)
    assert SECRET not in str(error.value)


def test_a_place_that_is_no_bucket_is_refused(shop: Path, objects: ObjectServer) -> None:
    project = moved(shop, objects.endpoint, "")
    settings = project.settings.stores.model_copy(update={"tables": "s3:"})
    broken = replace(project, settings=project.settings.model_copy(update={"stores": settings}))
    with pytest.raises(BadUrl, match="no bucket"):
        run(broken, state=None, seed=1, progress=Silent(), clock=VirtualClock(NOW))
