"""Check the promises of `headrace.storage.keyvalue.protocol` on any key-value store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.errors import ConfigurationError, DataError, Unavailable
from headrace.core.failpoints import armed
from headrace.storage.keyvalue import KeyValue, Snapshot, open_keyvalue

Open = Callable[..., KeyValue]

DATABASES = ("state", "rows")
KEYS = st.binary(min_size=1, max_size=3) | st.binary(min_size=500, max_size=511)
CHANGES = st.lists(st.tuples(st.sampled_from(DATABASES), KEYS, st.none() | st.binary(max_size=9)), max_size=12)

FEW = (b"a", b"ab", b"ac", b"b")
OVERLAPPING = st.lists(
    st.tuples(st.sampled_from(DATABASES), st.sampled_from(FEW), st.none() | st.binary(max_size=2)), max_size=8
)


class KeyValueContract:
    """Check one key-value backend; a subclass names its scheme, or overrides `url`.

    A slow backend may lower `examples` (random histories) and `rounds` (transactions under readers' eyes).
    """

    scheme: ClassVar[str]
    examples: ClassVar[int] = 30
    rounds: ClassVar[int] = 50

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        """Return the URL of a store that does not exist yet."""
        return f"{self.scheme}:{tmp_path / 'store'}"

    @pytest.fixture
    def backend(self, url: str) -> Iterator[Open]:
        """Return a function that opens the store; all are closed at the end."""
        with ExitStack() as stack:

            def open_again(**settings: Any) -> KeyValue:
                return stack.enter_context(open_keyvalue(url, **{"databases": DATABASES, **settings}))

            yield open_again

    @pytest.fixture
    def store(self, backend: Open) -> KeyValue:
        """Return a fresh store."""
        return backend()

    def test_what_is_written_can_be_read_back(self, store: KeyValue) -> None:
        """Each way to write reaches each way to read, in the database that was named."""
        with store.write() as transaction:
            transaction.put("state", b"a", b"1")
            access = transaction.access("state")
            access.put(b"b", b"")
            access.put(b"gone", b"x")
            access.delete(b"gone")
            access.delete(b"never there")
            transaction.put("rows", b"a", b"other")
            transaction.delete("rows", b"never there")
            transaction.put_many("rows", iter([(b"m2", b"5"), (b"m1", b"4"), (b"m2", b"6")]))
            transaction.put_many("rows", [])
        with store.read() as snapshot:
            assert snapshot.get("state", b"a") == b"1"
            assert snapshot.get("rows", b"a") == b"other"
            assert snapshot.get_many("state", [b"b", b"gone", b"a"]) == [b"", None, b"1"]
            assert snapshot.getter("state")(b"b") == b""
            assert snapshot.get_many("rows", [b"m1", b"m2"]) == [b"4", b"6"]
            assert (snapshot.count("state"), snapshot.count("rows")) == (2, 3)

    def test_a_transaction_sees_its_own_changes(self, store: KeyValue) -> None:
        """Every read inside it does, and an overwrite replaces."""
        with store.write() as transaction:
            access = transaction.access("state")
            access.put(b"a", b"1")
            access.put(b"b", b"2")
            access.put(b"a", b"3")
            access.delete(b"b")
            assert (access.get(b"a"), access.get(b"b")) == (b"3", None)
            assert transaction.get_many("state", [b"a", b"b"]) == [b"3", None]
            assert list(transaction.items("state")) == [(b"a", b"3")]
            assert transaction.count("state") == 1

    def test_a_transaction_that_raises_changes_nothing(self, store: KeyValue) -> None:
        """Over both databases; the error passes through unchanged and the next transaction works."""
        with store.write() as transaction:
            transaction.put("state", b"a", b"1")

        def abandon() -> None:
            with store.write() as transaction:
                transaction.put("state", b"a", b"2")
                transaction.put("rows", b"b", b"2")
                raise _AbandonError

        with pytest.raises(_AbandonError):
            abandon()
        with store.write() as transaction:
            assert transaction.get("state", b"a") == b"1"
            assert transaction.count("rows") == 0

    def test_a_snapshot_does_not_move(self, store: KeyValue) -> None:
        """What is committed after it was opened is not in it, however it is read; without snapshots it is, as a whole."""
        with store.write() as transaction:
            transaction.put("state", b"a", b"1")
        with store.read() as before:
            get = before.getter("state")
            assert get(b"a") == b"1"
            with store.write() as transaction:
                transaction.put("state", b"a", b"2")
                transaction.put("state", b"b", b"2")
                transaction.put("rows", b"c", b"3")
            with store.read() as after:
                moved = [b"2", b"2"]
                still = [b"1", None] if store.capabilities.snapshot else moved
                assert after.get_many("state", [b"a", b"b"]) == moved
                assert before.get_many("state", [b"a", b"b"]) == [get(b"a"), get(b"b")] == still
                assert (before.count("rows"), after.count("rows")) == (0 if store.capabilities.snapshot else 1, 1)
                seen = [(key, value) for key, value in zip((b"a", b"b"), still, strict=True) if value]
                assert list(before.items("state")) == seen
                assert list(after.items("state")) == [(b"a", b"2"), (b"b", b"2")]

    def test_items_walk_in_key_order(self, store: KeyValue) -> None:
        """A prefix bounds them, `after` excludes its key, and all bytes are ordered as bytes."""
        keys = [b"\x00", b"a", b"a\x00", b"a\xff", b"b", b"ba", b"\xff\xff"]
        with store.write() as transaction:
            for key in reversed(keys):
                transaction.put("state", key, key * 2)
        with store.read() as snapshot:

            def walk(**choice: Any) -> list[bytes]:
                return [key for key, _ in snapshot.items("state", **choice)]

            assert list(snapshot.items("state")) == [(key, key * 2) for key in keys]
            assert walk(prefix=b"a") == [b"a", b"a\x00", b"a\xff"]
            assert walk(prefix=b"a", after=b"a") == [b"a\x00", b"a\xff"]
            assert walk(prefix=b"b", after=b"a\x01") == [b"b", b"ba"]
            assert walk(after=b"b") == [b"ba", b"\xff\xff"]
            assert walk(prefix=b"a", after=b"b") == []
            assert walk(prefix=b"\xff\xff", after=b"\xff\xff") == []
            assert list(snapshot.items("rows")) == []

    def test_it_equals_a_dict(self, store: KeyValue) -> None:
        """Any transactions, kept or abandoned, leave what the same changes leave in dicts."""

        @settings(max_examples=self.examples, deadline=None)
        @given(batches=st.lists(st.tuples(st.booleans(), CHANGES), max_size=6))
        def check(batches: list[tuple[bool, Any]]) -> None:
            model = _content(store)
            for kept, changes in batches:
                model = _after(store, model, kept, changes)
            assert _content(store) == model

        check()

    def test_a_transaction_equals_a_dict_at_each_step(self, store: KeyValue) -> None:
        """Reads, walks and counts between changes of few keys, one by one and many at once, see all changes so far."""

        @settings(max_examples=self.examples, deadline=None)
        @given(steps=st.lists(st.tuples(st.booleans(), OVERLAPPING), max_size=4))
        def check(steps: list[tuple[bool, Any]]) -> None:
            with store.write() as transaction:
                model = {name: dict(transaction.items(name)) for name in DATABASES}
                for at_once, changes in steps:
                    for database, key, value in changes:
                        if value is None:
                            transaction.delete(database, key)
                            model[database].pop(key, None)
                            continue
                        if at_once:
                            transaction.put_many(database, [(key, value)])
                        else:
                            transaction.put(database, key, value)
                        model[database][key] = value
                        assert transaction.get(database, key) == value
                    for name, rows in model.items():
                        assert transaction.get_many(name, FEW) == [rows.get(key) for key in FEW]
                        if at_once:
                            assert transaction.count(name) == len(rows)
                        else:
                            walked = list(transaction.items(name, b"a", b"a"))
                            assert walked == sorted((k, v) for k, v in rows.items() if k > b"a" and k.startswith(b"a"))
            assert _content(store) == model

        check()

    def test_equal_content_has_an_equal_digest(self, store: KeyValue, tmp_path: Path) -> None:
        """The digest depends on rows only: not on history, not on the backend, not on empty databases."""
        with open_keyvalue(f"memory:{tmp_path}", databases=(*DATABASES, "third")) as other:
            assert store.digest() == other.digest()
            with store.write() as transaction:
                for key in (b"b", b"a", b"c"):
                    transaction.put("state", key, b"1")
            with store.write() as transaction:
                transaction.delete("state", b"c")
            with other.write() as transaction:
                transaction.put("state", b"a", b"1")
                transaction.put("state", b"b", b"1")
            assert store.digest() == other.digest() == store.digest("state")
            with other.write() as transaction:
                transaction.put("state", b"b", b"2")
            assert store.digest() != other.digest()
            assert _digest_of(b"a", b"bc") != _digest_of(b"ab", b"c")
            assert store.digest("rows") == other.digest("rows", "third")

    @pytest.mark.parametrize("key", [b"", b"k" * 512])
    def test_a_key_of_a_wrong_length_is_refused(self, store: KeyValue, key: bytes) -> None:
        """A DataError, and the whole transaction is undone."""

        def write() -> None:
            with store.write() as transaction:
                transaction.put("state", b"good", b"1")
                transaction.put("state", key, b"1")

        with pytest.raises(DataError, match="key that the store cannot hold"):
            write()
        with store.read() as snapshot:
            assert snapshot.count("state") == 0

    def test_an_unnamed_database_is_refused(self, store: KeyValue) -> None:
        """A typo is named, with what was meant; it never falls back to another database."""
        with store.read() as snapshot, pytest.raises(ConfigurationError) as caught:
            snapshot.get("stat", b"a")
        assert caught.value.next_step == "did you mean state?"
        with pytest.raises(ConfigurationError, match="no database"), store.write() as transaction:
            transaction.put("row", b"a", b"1")

    def test_writers_take_turns(self, store: KeyValue) -> None:
        """Four threads count one key up, each 25 times, none of the changes is lost."""

        def work(_: int) -> None:
            for _ in range(25):
                with store.write() as transaction:
                    access = transaction.access("state")
                    access.put(b"n", str(int(access.get(b"n") or b"0") + 1).encode())

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        with store.read() as snapshot:
            assert snapshot.get("state", b"n") == b"100"

    def test_readers_see_whole_transactions(self, store: KeyValue) -> None:
        """While a writer changes keys together, no reader ever sees them differ, nor an older moment after a newer one.

        That holds for all that a snapshot reads, and where there are none for each `get_many`.
        """
        keys, stop = [b"n%03d" % number for number in range(120)], threading.Event()

        def look(_: int) -> int:
            looks, newest = 0, -1
            while not stop.is_set() or looks == 0:
                with store.read() as snapshot:
                    found = set(snapshot.get_many("state", keys))
                    if store.capabilities.snapshot:
                        found |= set(snapshot.get_many("rows", keys))
                assert len(found) == 1
                value = int(found.pop() or b"-1")
                assert value >= newest
                newest = value
                looks += 1
            return looks

        with ThreadPoolExecutor(2) as pool:
            readers = [pool.submit(look, number) for number in range(2)]
            for number in range(self.rounds):
                with store.write() as transaction:
                    for key in keys:
                        transaction.put("state", key, b"%d" % number)
                        transaction.put("rows", key, b"%d" % number)
            stop.set()
            assert min(reader.result() for reader in readers) > 0

    def test_a_failing_disk_is_unavailable_and_writes_nothing(self, store: KeyValue) -> None:
        """An I/O error before the commit is typed and retryable; the next transaction succeeds."""
        with armed("keyvalue.before_commit:raise"), pytest.raises(Unavailable), store.write() as transaction:
            transaction.put("state", b"a", b"1")
        with store.write() as transaction:
            assert transaction.get("state", b"a") is None
            transaction.put("state", b"a", b"2")
        with store.read() as snapshot:
            assert snapshot.get("state", b"a") == b"2"

    def test_what_was_committed_is_there_after_opening_again(self, backend: Open) -> None:
        """A durable store keeps it, and says so; one that is not durable begins empty."""
        store = backend()
        with store.write() as transaction:
            transaction.put("state", b"a", b"1")
        durable, digest = store.capabilities.durable, store.digest()
        store.close()
        again = backend()
        assert (again.digest() == digest) is durable
        with again.read() as snapshot:
            assert snapshot.count("state") == (1 if durable else 0)

    def test_a_closed_or_read_only_store_says_so(self, backend: Open) -> None:
        """Using it is Unavailable."""
        store = backend()
        store.close()
        with pytest.raises(Unavailable, match="closed"), store.read():
            pass
        with pytest.raises(Unavailable, match="closed"), store.write():
            pass
        reader = backend(read_only=True)
        with pytest.raises(Unavailable, match="reading only"), reader.write():
            pass
        with reader.read() as snapshot:
            assert snapshot.get("state", b"a") is None


class _AbandonError(Exception):
    """Leave a transaction on purpose."""


def _digest_of(key: bytes, value: bytes) -> str:
    with open_keyvalue("memory:", databases=DATABASES) as store:
        with store.write() as transaction:
            transaction.put("state", key, value)
        return store.digest()


def _content(store: KeyValue) -> dict[str, dict[bytes, bytes]]:
    with store.read() as snapshot:
        return {name: _rows(snapshot, name) for name in DATABASES}


def _after(
    store: KeyValue, model: dict[str, dict[bytes, bytes]], kept: bool, changes: Any
) -> dict[str, dict[bytes, bytes]]:
    """Apply changes to the store and to a copy of the model; return the model that must hold now."""
    changed = {name: dict(rows) for name, rows in model.items()}
    try:
        with store.write() as transaction:
            for name, key, value in changes:
                _change(transaction, changed[name], name, key, value)
            if not kept:
                raise _AbandonError
    except _AbandonError:
        return model
    return changed


def _rows(snapshot: Snapshot, name: str) -> dict[bytes, bytes]:
    rows = list(snapshot.items(name))
    assert rows == sorted(rows)
    return dict(rows)


def _change(transaction: Any, model: dict[bytes, bytes], name: str, key: bytes, value: bytes | None) -> None:
    if value is None:
        transaction.delete(name, key)
        model.pop(key, None)
    else:
        transaction.put(name, key, value)
        model[key] = value
    assert transaction.get(name, key) == value
