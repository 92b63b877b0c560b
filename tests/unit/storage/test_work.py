"""Files of a computation go with it, also when it is killed, and nobody's files go while it lives."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.storage.work import clear_work, work_in

HOLD = """
import sys
from pathlib import Path
from headrace.storage.work import work_in
with work_in(Path(sys.argv[1])) as folder:
    (folder / "bucket").write_bytes(b"x")
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_what_lives_stays_and_what_was_killed_goes(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        with work_in(tmp_path) as mine:
            assert mine != theirs
            assert list(mine.iterdir()) == []
            clear_work(tmp_path)
            assert (theirs / "bucket").exists()
            assert mine.exists()
        other.send_signal(signal.SIGKILL)
        other.wait(10)
    assert (theirs / "bucket").exists()
    with work_in(tmp_path):
        assert not theirs.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_a_failed_computation_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with work_in(tmp_path) as folder:
            (folder / "bucket").write_bytes(b"x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_without_a_folder_the_systems_is_taken() -> None:
    with work_in(None) as folder:
        assert folder.is_dir()
    assert not folder.exists()
