"""What the ledger contract cannot see from outside: tampering, migrations, locks, a vanished file."""

import fcntl
import hashlib
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from headrace.core.errors import ConfigurationError, Corrupt, Unavailable
from headrace.core.time import Instant, VirtualClock
from headrace.storage.ledger import Entry, Head, Ledger, open_ledger, sqlite
from headrace.storage.ledger.schema import REVISION, metadata
from headrace.testing.ledger import Ed25519Signer

CLOCK = VirtualClock(Instant.parse("2013-01-01"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the file of a ledger with four records, two pointers, points and signed checkpoints."""
    with open_ledger(f"sqlite:{tmp_path / 'l'}", clock=CLOCK, signer=Ed25519Signer()) as ledger:
        ledger.append([Entry("run", "r", {"auc": 0.7}, series={"loss": [(0, 1.0), (1, 0.5)]})])
        ledger.append([Entry("promoted", "v1")], pointers={"champion": "v1", "canary": "v2"})
        ledger.append([Entry("refused", "v2"), Entry("rolled back", "v2")], pointers={"canary": None})
    return tmp_path / "l"


def reopened(path: Path, **settings: Any) -> Ledger:
    return open_ledger(f"sqlite:{path}", clock=CLOCK, **{"signer": Ed25519Signer(), **settings})


def tamper(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        assert connection.execute(statement).rowcount > 0
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("statement", "first_bad", "what"),
    [
        ("UPDATE records SET body = '{\"auc\":0.9}' WHERE seq = 1", 1, "its content does not have its hash"),
        ("UPDATE records SET kind = 'approved' WHERE seq = 3", 3, "its content does not have its hash"),
        ("UPDATE records SET at = at + 1 WHERE seq = 2", 2, "its content does not have its hash"),
        ("UPDATE records SET actor = 'eve' WHERE seq = 2", 2, "its content does not have its hash"),
        ("UPDATE records SET subject = 'v9' WHERE seq = 4", 4, "its content does not have its hash"),
        ("UPDATE records SET pointers = NULL WHERE seq = 2", 2, "its content does not have its hash"),
        ("UPDATE records SET series = NULL WHERE seq = 1", 1, "its content does not have its hash"),
        ("UPDATE records SET hash = prev_hash WHERE seq = 4", 4, "its content does not have its hash"),
        ("UPDATE records SET prev_hash = hash WHERE seq = 3", 3, "it does not follow the record before it"),
        ("DELETE FROM records WHERE seq = 1", 1, "the next record is 2: some are missing"),
        ("DELETE FROM records WHERE seq = 3", 3, "the next record is 4: some are missing"),
        ("DELETE FROM records WHERE seq = 4", 4, "a checkpoint names another hash: the chain was cut or written anew"),
        ("UPDATE series SET value = 0.4 WHERE step = 1", 1, "its metric points do not have its digest"),
        ("DELETE FROM series WHERE step = 1", 1, "its metric points do not have its digest"),
        ("UPDATE series SET seq = 2", 1, "its metric points do not have its digest"),
        ("INSERT INTO series VALUES (2, 0, 'm', 0, 0)", None, "3 metric points are stored, the records count 2"),
        ("UPDATE pointers SET value = 'v2'", None, "pointer champion is v2, the records say v1"),
        ("INSERT INTO pointers VALUES ('canary', 'v2')", None, "pointer canary is v2, the records say None"),
        ("DELETE FROM pointers", None, "pointer champion is None, the records say v1"),
        ("UPDATE checkpoints SET at = at + 1 WHERE seq = 4", 4, "its checkpoint's signature is not good for key test"),
        (
            "UPDATE checkpoints SET key_id = 'eve' WHERE seq = 4",
            4,
            "its checkpoint's signature is not good for key eve",
        ),
    ],
)
def test_every_change_is_found(path: Path, statement: str, first_bad: int | None, what: str) -> None:
    with reopened(path) as ledger:
        assert ledger.verify().ok
    tamper(path, statement)
    with reopened(path) as ledger:
        result = ledger.verify()
    assert not result.ok
    assert result.first_bad == first_bad
    assert result.problems[0].what == what


def test_a_chain_hashed_anew_is_found_by_checkpoints_and_kept_heads_only(path: Path) -> None:
    with reopened(path) as ledger:
        kept = ledger.head()
    path.unlink()
    with reopened(path, signer=None) as forged:
        forged.append([Entry("run", "r", {"auc": 0.9})] * 4)
        assert forged.verify().ok
        assert forged.verify(against=[kept]).first_bad == 4
    signed = sqlite3.connect(path)
    signed.execute("INSERT INTO checkpoints VALUES (4, ?, 0, 'test', x'00')", (kept.hash,))
    signed.commit()
    signed.close()
    with reopened(path) as ledger:
        assert ledger.verify().first_bad == 4


def test_at_most_twenty_problems_are_kept(tmp_path: Path) -> None:
    with reopened(tmp_path / "l") as ledger:
        ledger.append([Entry("k", "s")] * 50)
    tamper(tmp_path / "l", "UPDATE records SET actor = 'eve'")
    with reopened(tmp_path / "l") as ledger:
        result = ledger.verify()
    assert (len(result.problems), result.first_bad, result.records) == (20, 1, 50)


def test_the_first_record_has_the_documented_hash(tmp_path: Path) -> None:
    """A change of the hash's recipe would make every existing ledger fail: it needs a new format number."""
    with reopened(tmp_path / "l") as ledger:
        (record,) = ledger.append([Entry("run", "r", {"auc": 0.5}, "ana")], pointers={"p": "v"})
    text = '[1,1,"run","r",1356998400000000,"ana","{\\"auc\\":0.5}","{\\"p\\":\\"v\\"}",null,"' + "0" * 64 + '"]'
    assert record.hash == hashlib.sha256(text.encode()).hexdigest()


def test_migrations_build_exactly_the_declared_tables(path: Path) -> None:
    with create_engine(f"sqlite:///{path}").connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == REVISION


def test_a_current_ledger_opens_without_alembic(path: Path) -> None:
    code = (
        "import sys; from headrace.core.time import SystemClock; from headrace.storage.ledger import open_ledger;"
        f"print(open_ledger('sqlite:{path}', clock=SystemClock()).head().seq, 'alembic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "4 False\n"


def test_a_newer_ledger_is_refused(path: Path) -> None:
    tamper(path, "UPDATE alembic_version SET version_num = '0999'")
    for read_only in (False, True):
        with pytest.raises(ConfigurationError, match="made by a newer Headrace") as caught:
            reopened(path, read_only=read_only)
        assert caught.value.next_step == "pip install --upgrade headrace"


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_another_file_is_corrupt(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "l").write_bytes(content)
    with pytest.raises(Corrupt, match="ledger file is damaged"):
        reopened(tmp_path / "l")
    assert (tmp_path / "l").read_bytes() == content


def test_an_empty_file_that_a_killed_creation_left_becomes_a_ledger(tmp_path: Path) -> None:
    (tmp_path / "l").touch()
    with reopened(tmp_path / "l") as ledger:
        assert ledger.append([Entry("k", "s")])[0].seq == 1


def _ledger_error(path: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[Ledger], object]) -> Unavailable:
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.2)
    with reopened(path) as ledger, pytest.raises(Unavailable) as caught:
        act(ledger)
    assert caught.value.retryable
    return caught.value


def test_a_locked_ledger_fails_typed_after_the_wait(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    error = _ledger_error(path, monkeypatch, lambda ledger: ledger.append([Entry("k", "s")]))
    assert error.what == "the ledger is locked by another process for over 0.2 s"
    other.close()
    with reopened(path) as ledger:
        assert ledger.append([Entry("k", "s")])[0].seq == 5


def test_the_wait_is_below_the_promised_five_seconds() -> None:
    assert sqlite.BUSY_SECONDS < 5


@pytest.mark.parametrize("replaced", [False, True])
def test_a_vanished_ledger_acknowledges_nothing(path: Path, replaced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def act(ledger: Ledger) -> None:
        ledger.head()
        path.rename(path.with_name("moved"))
        if replaced:
            path.touch()
        ledger.append([Entry("k", "s")])

    assert _ledger_error(path, monkeypatch, act).what == "the ledger file is gone"


def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="cannot be created"):
        reopened(tmp_path / "file" / "l")


def test_creation_waits_for_whoever_creates(tmp_path: Path) -> None:
    with (tmp_path / "l.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        opening = threading.Thread(target=lambda: reopened(tmp_path / "l").close())
        opening.start()
        opening.join(0.2)
        assert not (tmp_path / "l").exists()
    opening.join()
    with reopened(tmp_path / "l", read_only=True) as ledger:
        assert ledger.head().seq == 0


WRITER = """
import sys
from headrace.core.time import SystemClock
from headrace.storage.ledger import Entry, open_ledger
with open_ledger(sys.argv[1], clock=SystemClock()) as ledger:
    for turn in range(25):
        ledger.append([Entry("k", sys.argv[2], {"turn": turn})], pointers={sys.argv[2]: str(turn)})
        ledger.read(newest_first=True, limit=1)
"""


def test_eight_processes_that_create_and_write_see_no_error(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path / 'l'}"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, url, f"w{number}"], stderr=subprocess.PIPE, text=True)
        for number in range(8)
    ]
    assert [(writer.communicate()[1], writer.returncode) for writer in writers] == [("", 0)] * 8
    with reopened(tmp_path / "l") as ledger:
        assert ledger.verify().ok
        assert ledger.head().seq == 200
        assert ledger.pointers() == {f"w{number}": "24" for number in range(8)}


def test_a_reader_does_not_hold_up_a_writer(path: Path) -> None:
    """Verification reads one snapshot while appends go on."""
    with reopened(path) as ledger, reopened(path) as other:
        stop = threading.Event()
        heads: list[Head] = []

        def write() -> None:
            while not stop.is_set():
                other.append([Entry("k", "s")])
                heads.append(other.head())

        thread = threading.Thread(target=write)
        thread.start()
        while len(heads) < 20:
            assert ledger.verify(against=heads[-3:][:1]).ok
        stop.set()
        thread.join()
        assert os.stat(path).st_mode & 0o077 == 0
