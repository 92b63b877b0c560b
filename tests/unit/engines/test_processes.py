"""Processes of `local:processes=N` end with the engine and with their caller, and may print."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pyarrow as pa
import pytest

from headrace.engines import Tables, open_engine
from headrace.testing.engines import Numbers, answer, numbers


def alive(pid: int) -> bool:
    """Say whether a process is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_what_functions_print_does_not_mix_with_answers(capfd: pytest.CaptureFixture[str]) -> None:
    def prints(tables: Tables) -> Tables:
        os.write(1, b"straight to the pipe\n")
        return answer(1)

    with open_engine("local:processes=1") as engine:
        assert numbers(engine.map_buckets(prints, Numbers(2))) == [1, 1]
    assert "straight to the pipe" in capfd.readouterr().err


def test_processes_end_with_the_engine() -> None:
    with open_engine("local:processes=2") as engine:
        workers = set(numbers(engine.map_buckets(lambda tables: answer(os.getpid()), Numbers(6))))
        assert all(alive(pid) for pid in workers)
    assert not any(alive(pid) for pid in workers)
    engine.close()


def test_processes_end_when_their_caller_is_killed() -> None:
    code = (
        "import os, sys; from headrace.engines import open_engine; from headrace.testing.engines import *\n"
        "engine = open_engine('local:processes=1')\n"
        "print(*numbers(engine.map_buckets(lambda tables: answer(os.getpid()), Numbers(1))), flush=True)\n"
        "sys.stdin.read()"
    )
    caller = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert caller.stdin is not None
    assert caller.stdout is not None
    worker = int(caller.stdout.readline())
    caller.kill()
    caller.wait()
    caller.stdin.close()
    caller.stdout.close()
    end = time.monotonic() + 30
    while alive(worker) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(worker)


def test_many_tables_of_some_size_pass() -> None:
    table = pa.table({"n": pa.array(range(200_000))})
    with open_engine("local:processes=1") as engine:
        (found,) = engine.map_buckets(lambda tables: [tables[1], tables[0]], [[table, table.slice(5)]])
    assert [t.num_rows for t in found] == [199_995, 200_000]
