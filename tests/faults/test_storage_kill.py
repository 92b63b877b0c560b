"""A store that is killed at any moment opens by itself, holds all that it acknowledged and at most one item more.

The worker checks on every start that items have no gap and no copy, and that what must change together did.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("storage_worker.py")
SHAPES = ("ledger", "keyvalue", "blobs", "tables", "streams")
SERVERS = ("redis", "dynamodb")
ENDLESS = 10**9


def start(shape: str, folder: Path | str, stop: int, failpoints: str = "") -> subprocess.Popen[str]:
    environment = {**os.environ, "HEADRACE_FAILPOINTS": failpoints}
    command = [sys.executable, str(WORKER), shape, str(folder), str(stop)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def held_at_start(output: str) -> int:
    return int(output.splitlines()[0].removeprefix("held "))


def acknowledged(output: str) -> int:
    """Return how many items the worker had acknowledged in all when it died."""
    lines = [line for line in output.split("\n")[:-1] if line]
    return int(lines[-1]) + 1 if len(lines) > 1 else held_at_start(output)


@pytest.fixture
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[str], Path | str]:
    """Return where a store lies: a folder, or the URL of a server whose leases end soon after their writer's death."""

    def find(shape: str) -> Path | str:
        if shape in SERVERS:
            return str(request.getfixturevalue(shape).url(lease="300ms"))
        return tmp_path

    return find


@pytest.mark.parametrize(
    ("shape", "failpoint", "unacknowledged"),
    [
        ("ledger", "ledger.before_commit:kill:4", 0),
        ("ledger", "ledger.after_commit:kill:4", 1),
        ("keyvalue", "keyvalue.before_commit:kill:4", 0),
        ("keyvalue", "keyvalue.after_commit:kill:4", 1),
        ("redis", "keyvalue.before_commit:kill:4", 0),
        ("redis", "keyvalue.after_commit:kill:4", 1),
        ("blobs", "blobs.before_rename:kill:4", 0),
        ("blobs", "blobs.after_rename:kill:4", 1),
        ("tables", "tables.before_commit:kill:4", 0),
        ("tables", "tables.after_commit:kill:4", 1),
        ("streams", "streams.before_fsync:kill:4", 1),
        ("streams", "streams.after_fsync:kill:4", 1),
        ("streams", "streams.roll.before_rename:kill:2", 0),
        ("streams", "streams.roll.after_rename:kill:2", 0),
    ],
)
def test_a_kill_between_two_effects(
    place: Callable[[str], Path | str], shape: str, failpoint: str, unacknowledged: int
) -> None:
    """What survives is exactly known: everything before the effect, or everything after it."""
    at = place(shape)
    killed = start(shape, at, ENDLESS, failpoint)
    output, _ = killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    done = acknowledged(output)
    assert done >= 3
    again = start(shape, at, done + 4)
    output, errors = again.communicate(timeout=60)
    assert (again.returncode, errors) == (0, "")
    assert held_at_start(output) == done + unacknowledged
    assert acknowledged(output) == done + 4


@pytest.mark.parametrize(
    ("failpoint", "left"),
    [
        ("keyvalue.after_journal:kill:2", 1),
        ("keyvalue.after_decision:kill:2", 2),
        ("keyvalue.after_step:kill:5", 2),
        ("keyvalue.after_application:kill:2", 2),
    ],
)
def test_a_kill_inside_a_transaction_that_takes_many_steps(
    place: Callable[[str], Path | str], failpoint: str, left: int
) -> None:
    """DynamoDB changes 100 items together: until the decision nothing of a larger transaction is there, then all."""
    at = place("dynamodb")
    killed = start("dynamodb", at, ENDLESS, failpoint)
    output, _ = killed.communicate(timeout=120)
    assert (killed.returncode, acknowledged(output)) == (-signal.SIGKILL, 1)
    again = start("dynamodb", at, left + 1)
    output, errors = again.communicate(timeout=120)
    assert (again.returncode, errors) == (0, "")
    assert (held_at_start(output), acknowledged(output)) == (left, left + 1)


@pytest.mark.parametrize("shape", [*SHAPES, "redis"])
def test_kills_at_random_moments(place: Callable[[str], Path | str], shape: str) -> None:
    """Two in a row on one store; each time nothing acknowledged is missing and at most one item is extra."""
    source, done, at = random.Random(shape), 0, place(shape)
    for _ in range(2):
        worker = start(shape, at, ENDLESS)
        assert worker.stdout is not None
        first = "".join(worker.stdout.readline() for _ in range(4))
        time.sleep(source.uniform(0, 0.02))
        worker.send_signal(signal.SIGKILL)
        rest, errors = worker.communicate(timeout=60)
        assert errors == ""
        assert done <= held_at_start(first) <= done + 1
        done = acknowledged(first + rest)
        assert done >= 3
    again = start(shape, at, done + 2)
    output, errors = again.communicate(timeout=60)
    assert (again.returncode, errors) == (0, "")
    assert done <= held_at_start(output) <= done + 1
