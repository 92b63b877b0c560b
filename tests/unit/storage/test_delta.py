"""What the table contract cannot see from outside: damage, file modes, processes that race."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from headrace.core.errors import Corrupt, DataError, NoVersion, Unavailable
from headrace.storage.tables import Position, open_tables


def written(path: Path) -> Path:
    store = open_tables(f"delta:{path}")
    for number in range(3):
        store.append("t", pa.table({"n": [number]}))
    return path / "t"


def test_damage_is_corrupt(tmp_path: Path) -> None:
    folder = written(tmp_path)
    store = open_tables(f"delta:{tmp_path}")
    data = next(folder.glob("*.parquet"))
    whole = data.read_bytes()
    for spoilt in (b"", b"junk" * 20, whole[:-1], whole[:40] + b"\xff" * 40 + whole[80:]):
        data.write_bytes(spoilt)
        with pytest.raises(Corrupt, match="the table is damaged"):
            store.read("t")
    data.unlink()
    with pytest.raises(Corrupt):
        store.read("t")
    data.write_bytes(whole)
    assert store.read("t").num_rows == 3
    sorted((folder / "_delta_log").glob("*.json"))[-1].write_bytes(b"junk")
    with pytest.raises(Corrupt):
        store.read("t")
    with pytest.raises(Corrupt):
        store.append("t", pa.table({"n": [4]}))


def test_files_are_private_and_the_umask_comes_back(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        folder = written(tmp_path)
        open_tables(f"delta:{tmp_path}").compact("t", retain=0)
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_dir()} == {0o700}


def test_a_place_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="could not be written"):
        open_tables(f"delta:{tmp_path / 'file'}").append("t", pa.table({"n": [1]}))


APPEND = """
import sys
import pyarrow as pa
from headrace.storage.tables import Position, open_tables
store = open_tables(sys.argv[1])
for turn in range(5):
    store.append("t", pa.table({"n": [turn], "w": [sys.argv[2]]}))
print(store.append("once", pa.table({"n": [1]}), position=Position("source", 1)).applied)
"""


def test_processes_that_race_all_land_and_a_position_once(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", APPEND, f"delta:{tmp_path}", str(n)], stdout=subprocess.PIPE, text=True)
        for n in range(3)
    ]
    assert sorted(writer.communicate()[0] for writer in writers) == ["False\n", "False\n", "True\n"]
    store = open_tables(f"delta:{tmp_path}")
    assert sorted((row["w"], row["n"]) for row in store.read("t").to_pylist()) == [
        (str(writer), turn) for writer in range(3) for turn in range(5)
    ]
    assert store.read("once").num_rows == 1


def test_history_that_is_forgotten_leaves_no_byte_and_keeps_numbers_and_positions(tmp_path: Path) -> None:
    """Also what a killed writer left, the log's least and greatest values, and the text of a deletion."""
    store = open_tables(f"delta:{tmp_path}")
    for number, text in enumerate(("ab", "SECRET", "yz")):
        store.append("t", pa.table({"s": [text], "n": [number]}), position=Position("source", number))
    (tmp_path / "t" / "part-killed.parquet").write_bytes(b"SECRET")
    version = store.delete("t", [("s", "=", "SECRET")]).version
    store.forget_history("t")  # type: ignore[attr-defined]
    for path in (tmp_path / "t").rglob("*"):
        assert path.is_dir() or b"SECRET" not in path.read_bytes(), path
    described = store.describe("t", applications=["source"])
    assert described is not None and described.version > version and described.positions == {"source": 2}
    assert sorted(store.read("t")["s"].to_pylist()) == ["ab", "yz"]
    with pytest.raises(DataError, match="no such version"):
        store.read("t", version=1)
    kept = store.append("t", pa.table({"s": ["new"], "n": [5]}), position=Position("source", 3))
    store.append("t", pa.table({"s": ["newer"], "n": [6]}))
    store.compact("t", retain=30 * 86_400_000_000)
    assert store.read("t", version=kept.version).num_rows == 3
    assert not store.append("t", pa.table({"s": ["again"], "n": [7]}), position=Position("source", 3)).applied


def test_a_pinned_version_whose_files_were_taken_away_is_no_version_any_more(tmp_path: Path) -> None:
    store = open_tables(f"delta:{tmp_path}")
    for number in range(2):
        store.append("t", pa.table({"s": ["a", "b"], "n": [number, 10]}))
    pinned = store.pin("t")
    assert pinned.read(["n"])["n"].to_pylist() == pinned.read(["n"])["n"].to_pylist()
    store.delete("t", [("n", "=", 1)])
    store.forget_history("t")  # type: ignore[attr-defined]
    with pytest.raises(NoVersion, match="no such version"):
        pinned.read(["s"])
