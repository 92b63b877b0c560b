"""What the key-value contract cannot see from outside: growth, damage, several processes."""

import random
import subprocess
import sys
import threading
from pathlib import Path

import lmdb
import lmdb.verify
import pytest

from headrace.core.errors import ConfigurationError, Corrupt, Unavailable
from headrace.storage.keyvalue import KeyValue, open_keyvalue
from headrace.storage.keyvalue import lmdb as backend
from headrace.storage.keyvalue.lmdb_pages import verify


def open_store(path: Path, **settings: object) -> KeyValue:
    return open_keyvalue(f"lmdb:{path}", databases=["d"], **settings)  # type: ignore[arg-type]


def fill(store: KeyValue, rows: int, size: int = 100, start: int = 0) -> None:
    with store.write() as transaction:
        put = transaction.access("d").put
        for number in range(start, start + rows):
            put(b"%08d" % number, b"v" * size)


def test_the_map_grows_between_transactions(tmp_path: Path) -> None:
    """Each batch fits into what is left; the whole is 20 times the first map."""
    with open_store(tmp_path, map_size=1 << 20) as store:
        shrink(store, 1 << 20)
        for start in range(0, 200_000, 2_000):
            fill(store, 2_000, start=start)
        with store.read() as snapshot:
            assert snapshot.count("d") == 200_000


def shrink(store: KeyValue, size: int) -> None:
    """Bring the map down to `size`, below what an opened store begins with."""
    store._environment.set_mapsize(size)  # type: ignore[attr-defined]


def test_a_transaction_that_runs_out_of_room_succeeds_the_second_time(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        fill(store, 10)
        shrink(store, 1 << 20)
        digest = store.digest()
        with pytest.raises(Unavailable, match="room ran out") as caught:
            fill(store, 40_000)
        assert caught.value.retryable
        assert caught.value.next_step == "run the same transaction again"
        assert store.digest() == digest
        attempts = 0
        while True:
            attempts += 1
            try:
                fill(store, 40_000)
                break
            except Unavailable:
                assert attempts < 6
        with store.read() as snapshot:
            assert snapshot.count("d") == 40_000


def test_growth_waits_for_open_snapshots_and_gives_up_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "RESIZE_SECONDS", 0.05)
    with open_store(tmp_path) as store:
        shrink(store, 1 << 20)
        fill(store, 5_000)
        with store.read(), pytest.raises(Unavailable, match="a snapshot stays open"):
            fill(store, 10)
        monkeypatch.setattr(backend, "RESIZE_SECONDS", 30.0)
        snapshot = store.read()
        snapshot.__enter__()
        closer = threading.Timer(0.05, lambda: snapshot.__exit__(None, None, None))
        closer.start()
        fill(store, 10)
        closer.join()


GROW = """
import sys
from headrace.storage.keyvalue import open_keyvalue
with open_keyvalue(sys.argv[1], databases=["d"], map_size=1 << 32) as store, store.write() as transaction:
    for number in range(60_000):
        transaction.put("d", b"%08d" % number, b"v" * 100)
"""


def test_growth_by_another_process_is_taken_up(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        fill(store, 1)
        shrink(store, 1 << 20)
        subprocess.run([sys.executable, "-c", GROW, f"lmdb:{tmp_path}"], check=True)
        with store.read() as snapshot:
            assert snapshot.count("d") == 60_000


def test_a_reader_beside_a_writer_in_another_process(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", GROW, f"lmdb:{tmp_path}"], check=True)
    with open_store(tmp_path, read_only=True) as store, store.read() as snapshot:
        subprocess.run([sys.executable, "-c", GROW.replace('b"v"', 'b"w"'), f"lmdb:{tmp_path}"], check=True)
        assert snapshot.get("d", b"00000007") == b"v" * 100
        with store.read() as later:
            assert later.get("d", b"00000007") == b"w" * 100


def test_opening_twice_in_one_process_is_refused(tmp_path: Path) -> None:
    with open_store(tmp_path), pytest.raises(Unavailable, match="the store failed"):
        open_store(tmp_path)


def test_an_absent_store_is_not_created_by_a_reader(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no key-value store"):
        open_store(tmp_path / "absent", read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_a_reader_finds_a_database_that_nobody_wrote_empty(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    with open_keyvalue(f"lmdb:{tmp_path}", databases=["d", "new"], read_only=True) as store, store.read() as snapshot:
        assert snapshot.get("new", b"k") is None
        assert snapshot.count("new") == 0
        assert list(snapshot.items("new")) == []


def damaged_store(path: Path, rows: int = 3_000) -> bytes:
    with open_store(path) as store:
        fill(store, rows)
    return (path / "data.mdb").read_bytes()


@pytest.mark.parametrize("size", [1, 100, 4096, 8192, 40_000])
def test_a_truncated_store_is_corrupt_and_names_the_command(tmp_path: Path, size: int) -> None:
    data = damaged_store(tmp_path)
    (tmp_path / "data.mdb").write_bytes(data[:size])
    for read_only in (False, True):
        with pytest.raises(Corrupt, match="the store is damaged") as caught:
            open_store(tmp_path, read_only=read_only)
        assert caught.value.next_step == "headrace online rebuild"


def taken_and_given_back(path: Path) -> tuple[int, int]:
    """Write values and delete them again in one transaction; return the file's size, and what its pages would take."""
    source = random.Random(3)
    with open_store(path) as store:
        fill(store, 200, size=1_000)
        for _ in range(5):
            keys = [b"n%d" % source.randrange(400) for _ in range(source.randrange(1, 300))]
            with store.write() as transaction:
                transaction.put_many("d", [(key, b"w" * source.randrange(1, 9_000)) for key in keys])
                for key in keys:
                    transaction.delete("d", key)
        return (path / "data.mdb").stat().st_size, store._claimed()  # type: ignore[attr-defined]


def test_pages_that_were_given_back_unwritten_are_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size, claimed = taken_and_given_back(tmp_path / "alive")
    assert size >= claimed
    killed = tmp_path / "killed"  # a writer that ended between its commit and what follows
    with monkeypatch.context() as patched:
        patched.setattr(backend.LmdbKeyValue, "_keep_end", lambda store: None)
        size, claimed = taken_and_given_back(killed)
    assert size < claimed
    for read_only, after in ((True, size), (False, claimed)):
        with open_store(killed, read_only=read_only) as store, store.read() as snapshot:
            assert snapshot.count("d") == 200
        assert (killed / "data.mdb").stat().st_size == after


@pytest.mark.parametrize("junk", [b"junk" * 5_000, b"\0" * 20_000, b"\xff" * 20_000])
def test_another_file_is_corrupt(tmp_path: Path, junk: bytes) -> None:
    (tmp_path / "data.mdb").write_bytes(junk)
    with pytest.raises(Corrupt):
        open_store(tmp_path)


def test_overwritten_pages_never_crash_a_writer(tmp_path: Path) -> None:
    """200 stores with a page of random bytes: opening tells, or the page was not in use and everything is there."""
    data = damaged_store(tmp_path, rows=500)
    source = random.Random(7)
    told = 0
    for _ in range(200):
        page = source.randrange(len(data) // 4096)
        spoilt = bytearray(data)
        spoilt[page * 4096 : page * 4096 + 64] = source.randbytes(64)
        (tmp_path / "data.mdb").write_bytes(spoilt)
        try:
            with open_store(tmp_path) as store, store.read() as snapshot:
                assert snapshot.count("d") in (0, 500)
        except Corrupt:
            told += 1
    assert told > 100


def test_a_transaction_writes_a_key_once_and_holds_few_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that shrink leave no spare pages then; past a number of changes those made so far go in, and all still count."""
    with open_store(tmp_path) as store, store.write() as transaction:
        for size in (5_000, 2_500):
            for i in range(400):
                transaction.put("d", b"key %d" % i, bytes([i % 251]) * size)
    assert lmdb.verify.verify(str(tmp_path)) == []  # type: ignore[no-untyped-call]
    monkeypatch.setattr(backend, "MOST_WAITING", 8)
    source, model = random.Random(5), {b"key %d" % i: bytes([i % 251]) * 2_500 for i in range(400)}
    with open_store(tmp_path) as store:
        with store.write() as transaction:
            access = transaction.access("d")
            for i in range(2_000):
                key = b"key %d" % source.randrange(500)
                assert access.get(key) == model.get(key)
                if source.random() < 0.3:
                    access.delete(key)
                    model.pop(key, None)
                else:
                    access.put(key, b"%d" % i)
                    model[key] = b"%d" % i
                assert len(transaction._waiting["d"]) < 8  # type: ignore[attr-defined]
        with store.read() as snapshot:
            assert list(snapshot.items("d")) == sorted(model.items())


def test_large_stores_are_checked_on_demand(tmp_path: Path) -> None:
    data = bytearray(damaged_store(tmp_path))
    verify(tmp_path)
    verify(tmp_path / "absent")
    data[20 * 4096 : 20 * 4096 + 64] = b"\xff" * 64
    (tmp_path / "data.mdb").write_bytes(data)
    with pytest.raises(Corrupt):
        verify(tmp_path)


def test_a_large_store_whose_values_shrank_is_whole_and_still_found_damaged(tmp_path: Path) -> None:
    """Each value leaves a spare page behind, more of them than the verifier of LMDB's package reports before it stops."""
    with open_store(tmp_path) as store, store.write() as transaction:
        for size in (5_000, 2_500):
            transaction.put_many("d", [(b"key %d" % i, bytes([i % 251]) * size) for i in range(400)])
    assert len(lmdb.verify.verify(str(tmp_path))) > 200  # type: ignore[no-untyped-call]
    verify(tmp_path)
    data = bytearray((tmp_path / "data.mdb").read_bytes())
    for page in range(len(data) // 4096 - 40, len(data) // 4096):
        data[page * 4096 : page * 4096 + 16] = b"\xff" * 16
    (tmp_path / "data.mdb").write_bytes(data)
    with pytest.raises(Corrupt):
        verify(tmp_path)


def test_files_have_the_documented_format(tmp_path: Path) -> None:
    damaged_store(tmp_path)
    with lmdb.Environment(str(tmp_path), readonly=True, max_dbs=4) as environment:
        assert environment.lib_version()[:2] == (0, 9)
