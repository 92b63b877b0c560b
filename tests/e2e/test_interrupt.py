"""Ctrl-C at any point of long work, and a state folder that cannot be had: nothing is lost and the next step is said."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from headrace.cli.template import write_project

HEADRACE = [sys.executable, "-m", "headrace.cli"]
REPLAY = ("replay", "orders:pipeline", "--from", "2024-01-01", "--to", "2024-02-20", "--seed", "1", "--json")
TRIES = 6


def start(folder: Path, arguments: Sequence[str], **options: object) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*HEADRACE, *arguments], cwd=folder, text=True, **pipes, **options)  # type: ignore[call-overload, no-any-return]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interrupt") / "project"
    write_project(str(folder))
    return folder


@pytest.mark.parametrize("verb", ["run", "replay"])
def test_ctrl_c_at_any_point_keeps_what_was_done_and_the_same_command_goes_on(project: Path, verb: str) -> None:
    command = REPLAY if verb == "replay" else ("run", "orders:pipeline", "--seed", "1", "--json")
    began = time.perf_counter()
    plain = start(project, [*command, "--state", "whole-" + verb])
    out, err = plain.communicate()
    assert plain.returncode == 0, err
    took, r = time.perf_counter() - began, random.Random(verb)
    stopped = 0
    # The first early: a busy machine may have been quicker since, and what one try ended the next ones find done.
    for share in [0.2, *(r.uniform(0.1, 0.9) for _ in range(TRIES - 1))]:
        process = start(project, [*command, "--state", "cut-" + verb])
        try:
            process.wait(share * took)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        # To a shell both are 130; Python ends itself by the signal while it imports a module or shuts down.
        assert process.returncode in (0, 130, -signal.SIGINT), err
        assert "Traceback" not in err
        stopped += process.returncode != 0
        if process.returncode == 130:
            assert err.endswith("stopped; what was done is kept, and the same command goes on from there\n")
    assert stopped > 0
    last = start(project, [*command, "--state", "cut-" + verb])
    resumed, err = last.communicate()
    assert last.returncode == 0, err
    one, other = json.loads(out), json.loads(resumed)
    if verb == "replay":
        assert other["digests"] == one["digests"]
    else:
        assert (other["version"], other["metrics"]) == (one["version"], one["metrics"])
        listed, _ = start(project, ["models", "orders:pipeline", "--state", "cut-run", "--json"]).communicate()
        assert [v["version"] for v in json.loads(listed)["versions"]] == ["orders/v1"]
    verified = start(project, ["audit", "verify", "orders:pipeline", "--state", "cut-" + verb, "--json"])
    out, _ = verified.communicate()
    assert json.loads(out)["ok"]


def refused(folder: Path, *arguments: str, **options: object) -> str:
    process = start(folder, ["run", "orders:pipeline", *arguments], **options)
    _, err = process.communicate()
    assert process.returncode == 1, err
    assert "Traceback" not in err
    return err


def test_a_state_folder_of_a_newer_release_is_told_and_left_alone(project: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    passport = '{"created_at":0,"created_by":"9.9.9","format":99}'
    (state / "state.json").write_text(passport)
    err = refused(project, "--state", str(state))
    assert "was made by a newer Headrace" in err
    assert "pip install --upgrade headrace" in err
    assert [p.name for p in state.iterdir() if p.name != "lock"] == ["state.json"]
    assert (state / "state.json").read_text() == passport


def test_a_state_folder_in_use_is_told_with_the_process(project: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    holder = start(project, ["serve", "orders:pipeline", "--port", "0", "--state", str(state)])
    try:
        while not (state / "lock").is_file() or not (state / "lock").read_text():
            assert holder.poll() is None
            time.sleep(0.02)
        err = refused(project, "--state", str(state))
        assert "the state folder is in use by another process" in err
        assert f"process {holder.pid}" in err
        assert f"kill {holder.pid}" in err
    finally:
        holder.kill()
        holder.communicate()
