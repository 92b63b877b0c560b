"""The state folder admits one writer, adopts nothing foreign, and says what to do."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headrace.core.errors import ConfigurationError, Corrupt, Unavailable
from headrace.core.failpoints import armed
from headrace.core.time import Instant, SystemClock, VirtualClock
from headrace.core.version import __version__
from headrace.storage.blobs import open_blobs
from headrace.storage.keyvalue import open_keyvalue
from headrace.storage.ledger import Entry, open_ledger
from headrace.storage.state import StateFolder
from headrace.storage.streams import open_streams
from headrace.storage.tables import open_tables

CLOCK = VirtualClock(Instant.parse("2013-01-01"))
HOLD = """
import sys, time
from headrace.core.time import SystemClock
from headrace.storage.state import StateFolder
StateFolder.open(sys.argv[1], clock=SystemClock(), write=True)
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def unprivileged() -> Iterator[None]:
    """Give up root's right to ignore modes, where the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def open_state(path: Path, *, write: bool = True) -> StateFolder:
    return StateFolder.open(path, clock=CLOCK, write=write)


def test_a_new_folder_is_private_and_says_who_made_it(tmp_path: Path) -> None:
    with open_state(tmp_path / "s") as state:
        assert state.writable
        assert dict(state.passport) == {"format": 2, "created_by": __version__, "created_at": 1356998400000000}
        modes = {path.relative_to(tmp_path).as_posix(): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes.pop("s") == 0o700
    assert {mode for name, mode in modes.items() if (tmp_path / name).is_dir()} == {0o700}
    assert {mode for name, mode in modes.items() if (tmp_path / name).is_file()} == {0o600}
    assert set(modes) == {
        "s/state.json",
        "s/lock",
        *(f"s/{n}" for n in ("ledger", "online", "blobs", "tables", "streams")),
    }


def test_every_store_opens_at_its_url_and_all_files_are_private(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir(mode=0o755)
    with open_state(tmp_path / "s") as state:
        with open_ledger(state.url("ledger"), clock=CLOCK) as ledger:
            ledger.append([Entry("k", "s")])
        with open_keyvalue(state.url("keyvalue"), databases=["d"]) as store, store.write() as transaction:
            transaction.put("d", b"k", b"v")
        open_blobs(state.url("blobs")).put(b"data")
        import pyarrow as pa

        open_tables(state.url("tables")).append("t", pa.table({"p": ["x"], "n": [1]}), partition_by=["p"])
        open_tables(state.url("tables")).compact("t", retain=0)
        with open_streams(state.url("streams"), clock=CLOCK) as streams:
            streams.append("s", [b"r"])
        (state.folder("predictions/today") / "f").touch(0o600)
        sizes = state.size()
        loose = [str(path) for path in state.path.rglob("*") if path.lstat().st_mode & 0o077]
    assert loose == []
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700
    assert set(sizes) == {"blobs", "ledger", "online", "predictions", "streams", "tables"}
    assert min(size for name, size in sizes.items() if name != "predictions") > 0


def test_a_second_writer_learns_who_holds_it_until_that_dies(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "s")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Unavailable) as caught:
            open_state(tmp_path / "s")
        assert str(caught.value) == (
            "the state folder is in use by another process\n"
            f"  where:    {tmp_path / 's'}\n"
            f"  got:      process {holder.pid}\n"
            f"  next:     wait for it or stop it: kill {holder.pid}"
        )
        with open_state(tmp_path / "s", write=False) as reader:
            assert not reader.writable
            assert reader.url("keyvalue") == f"lmdb:{tmp_path / 's' / 'online'}"
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with open_state(tmp_path / "s") as state:
        assert state.writable
    open_state(tmp_path / "s").close()


def test_a_foreign_folder_is_not_adopted_and_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    for write in (True, False):
        with pytest.raises(ConfigurationError, match="not a Headrace state folder") as caught:
            open_state(tmp_path, write=write)
        assert caught.value.got == "thesis.tex"
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ConfigurationError):
        open_state(tmp_path / "thesis.tex")


def test_reading_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no state folder") as caught:
        open_state(tmp_path / "s", write=False)
    assert caught.value.next_step == "headrace run, which creates one"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("point", ["state.before_rename", "state.after_rename"])
def test_a_killed_creation_is_finished_by_the_next(tmp_path: Path, point: str) -> None:
    with armed(f"{point}:raise"), pytest.raises(ConfigurationError, match="cannot be written"):
        open_state(tmp_path / "s")
    with open_state(tmp_path / "s") as state:
        assert state.passport["format"] == 2
    assert not (tmp_path / "s" / "state.json.new").exists()


@pytest.mark.parametrize(
    ("made", "what", "step"),
    [
        (3, "made by a newer Headrace", "pip install --upgrade headrace"),
        (
            1,
            "made by an older Headrace",
            'pip install "headrace==9.9", or begin a new folder: headrace run --state NEW',
        ),
    ],
)
def test_another_format_is_named(tmp_path: Path, made: int, what: str, step: str) -> None:
    open_state(tmp_path / "s").close()
    (tmp_path / "s" / "state.json").write_text(json.dumps({"format": made, "created_by": "9.9"}))
    for write in (True, False):
        with pytest.raises(ConfigurationError, match=what) as caught:
            open_state(tmp_path / "s", write=write)
        assert caught.value.next_step == step
        assert caught.value.got == f"format {made}, made by 9.9"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": "1"}', "[" * 100_000, "\xff"])
def test_a_damaged_passport_is_corrupt(tmp_path: Path, text: str) -> None:
    open_state(tmp_path / "s").close()
    (tmp_path / "s" / "state.json").write_text(text, "latin-1")
    with pytest.raises(Corrupt, match=r"state\.json is damaged"):
        open_state(tmp_path / "s")
    (tmp_path / "s" / "state.json").write_text(json.dumps({"format": 2, "created_by": "x"}))
    open_state(tmp_path / "s").close()


def test_a_folder_that_may_not_be_written_says_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for folder in [*tmp_path.parents][:2]:
        folder.chmod(folder.stat().st_mode | 0o055)
    (tmp_path / "locked").mkdir(mode=0o555)
    with unprivileged(), pytest.raises(ConfigurationError, match="cannot be written") as caught:
        StateFolder.open(tmp_path / "locked" / "s", clock=SystemClock(), write=True)
    assert caught.value.next_step == "set [stores] state in headrace.toml to a folder that you may write to"
    open_state(tmp_path / "s").close()
    with unprivileged(), pytest.raises(ConfigurationError, match="cannot be read"):
        open_state(tmp_path / "s", write=False)


def test_a_stage_gets_a_folder_of_its_own_and_no_other(tmp_path: Path) -> None:
    with open_state(tmp_path / "s") as state:
        assert state.folder("predictions") == tmp_path / "s" / "predictions"
        for name in ("..", "../x", "/etc", "ledger", "blobs/x", "", "a\0"):
            with pytest.raises(ConfigurationError):
                state.folder(name)
