"""Check the promises of `headrace.storage.ledger.protocol` on any ledger."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.errors import ConfigurationError, Conflict, DataError, Unavailable
from headrace.core.failpoints import armed
from headrace.core.time import MINUTE, Instant, VirtualClock
from headrace.storage.ledger import Entry, Head, Ledger, Record, open_ledger

Open = Callable[..., Ledger]

START = Instant.parse("2013-01-01")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)


class Ed25519Signer:
    """Sign with one key, and trust only that one."""

    def __init__(self, key_id: str = "test") -> None:
        self.key_id = key_id
        self._key = Ed25519PrivateKey.from_private_bytes(key_id.encode().ljust(32, b"\0"))

    def sign(self, message: bytes) -> bytes:
        """Return the signature of a message."""
        return self._key.sign(message)

    def verify(self, key_id: str, message: bytes, signature: bytes) -> bool:
        """Tell whether this key made the signature."""
        try:
            self._key.public_key().verify(signature, message)
        except InvalidSignature:
            return False
        return key_id == self.key_id


class LedgerContract:
    """Check one ledger backend; a subclass names its scheme, or overrides `url`."""

    scheme: ClassVar[str]

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        """Return the URL of a ledger that does not exist yet."""
        return f"{self.scheme}:{tmp_path / 'store'}"

    @pytest.fixture
    def backend(self, url: str) -> Iterator[Open]:
        """Return a function that opens the same ledger again and again; all are closed at the end."""
        with ExitStack() as stack:

            def open_again(**settings: Any) -> Ledger:
                return stack.enter_context(open_ledger(url, **{"clock": VirtualClock(START), **settings}))

            yield open_again

    def test_records_are_numbered_chained_and_stamped(self, backend: Open) -> None:
        """Seq counts from 1, each hash enters the next record, `at` is the clock's."""
        clock = VirtualClock(START)
        ledger = backend(clock=clock)
        assert ledger.head() == Head(0, "0" * 64)
        first = ledger.append([Entry("run.started", "run-1", {"seed": 7}, "ana"), Entry("run.finished", "run-1")])
        clock.advance_to(START + MINUTE)
        (third,) = ledger.append([Entry("gate.passed", "v1")])
        records = [*first, third]
        assert [record.seq for record in records] == [1, 2, 3]
        assert [record.at for record in records] == [START, START, START + MINUTE]
        assert [record.prev_hash for record in records] == ["0" * 64, records[0].hash, records[1].hash]
        assert (first[0].kind, first[0].subject, first[0].actor) == ("run.started", "run-1", "ana")
        assert first[0].body == {"seed": 7}
        assert ledger.read() == records
        assert ledger.head() == Head(3, third.hash)

    def test_nothing_appended_changes_nothing(self, backend: Open) -> None:
        """An empty append is no record."""
        ledger = backend()
        assert ledger.append([]) == []
        assert ledger.head().seq == 0

    def test_what_was_appended_is_there_after_opening_again(self, backend: Open) -> None:
        """Records, pointers and points outlive the object that wrote them."""
        ledger = backend()
        written = ledger.append([Entry("run", "r", series={"loss": [(1, 0.5)]})], pointers={"a/champion": "v1"})
        ledger.close()
        again = backend()
        assert again.read() == written
        assert again.pointers() == {"a/champion": "v1"}
        assert again.series("r") == {"loss": [(1, 0.5)]}

    def test_any_plain_json_comes_back(self, backend: Open) -> None:
        """Bodies and subjects round-trip, and the chain that holds them verifies."""
        ledger = backend()

        @settings(max_examples=25, deadline=None)
        @given(body=st.dictionaries(TEXT, JSON, max_size=4), subject=TEXT)
        def check(body: dict[str, Any], subject: str) -> None:
            (record,) = ledger.append([Entry("any", subject, body)])
            assert ledger.read(after=record.seq - 1) == [record]
            assert record.body == body
            assert record.subject == subject

        check()
        assert ledger.verify().ok

    @pytest.mark.parametrize("value", [math.nan, math.inf, {1, 2}, b"bytes", object(), "\ud800", {"a": {1: 2, "b": 3}}])
    def test_what_is_not_plain_json_is_refused(self, backend: Open, value: Any) -> None:
        """NaN, sets, bytes, lone surrogates and mixed keys are a DataError that names the entry; nothing is written."""
        ledger = backend()
        with pytest.raises(DataError, match="not plain JSON") as caught:
            ledger.append([Entry("fine", "s"), Entry("run.finished", "run-9", {"auc": value})])
        assert caught.value.where == "ledger entry run.finished of run-9"
        assert ledger.head().seq == 0

    def test_a_body_that_is_too_large_is_refused(self, backend: Open) -> None:
        """Bulk belongs into blobs."""
        with pytest.raises(DataError, match="too large"):
            backend().append([Entry("k", "s", {"x": "y" * (5 << 20)})])

    def test_reading_selects(self, backend: Open) -> None:
        """Kinds, subject, after, limit and direction combine."""
        ledger = backend()
        ledger.append([Entry(kind, subject) for kind in ("a", "b", "c") for subject in ("x", "y")])

        def seqs(**choice: Any) -> list[int]:
            return [record.seq for record in ledger.read(**choice)]

        assert seqs(kinds=["a", "c"]) == [1, 2, 5, 6]
        assert seqs(kinds=["a", "c"], subject="y") == [2, 6]
        assert seqs(after=4) == [5, 6]
        assert seqs(limit=2) == [1, 2]
        assert seqs(newest_first=True, limit=2) == [6, 5]
        assert seqs(subject="y", newest_first=True, limit=1) == [6]
        assert seqs(kinds=[]) == []

    def test_pointers_move_with_their_record(self, backend: Open) -> None:
        """Set, moved and removed pointers are in the last record of the append; a prefix selects, letter by letter."""
        ledger = backend()
        ledger.append([Entry("k", "s")], pointers={"f_/a": "1", "F_/a": "2", "fx/a": "3"})
        records = ledger.append([Entry("k", "s"), Entry("k", "s")], pointers={"f_/a": "4", "fx/a": None})
        assert [dict(record.pointers) for record in records] == [{}, {"f_/a": "4", "fx/a": None}]
        assert ledger.pointers() == {"F_/a": "2", "f_/a": "4"}
        assert ledger.pointers("f_/") == {"f_/a": "4"}

    def test_a_pointer_moves_only_with_a_record(self, backend: Open) -> None:
        """A move without a reason is refused."""
        with pytest.raises(DataError, match="only with a record"):
            backend().append([], pointers={"a": "1"})

    @pytest.mark.parametrize("expect", [{"a": "0"}, {"a": None}, {"b": "1"}, {"a": "1", "b": "1"}])
    def test_a_pointer_that_somebody_moved_conflicts(self, backend: Open, expect: dict[str, str | None]) -> None:
        """An expectation that does not hold writes nothing: no record, no pointer, no point."""
        ledger = backend()
        ledger.append([Entry("k", "s")], pointers={"a": "1"})
        with pytest.raises(Conflict) as caught:
            ledger.append([Entry("k", "s", series={"m": [(0, 1.0)]})], pointers={"a": "2"}, expect=expect)
        assert caught.value.retryable
        assert ledger.pointers() == {"a": "1"}
        assert ledger.head().seq == 1
        assert ledger.series("s") == {}
        ledger.append([Entry("k", "s")], pointers={"a": "2", "b": "1"}, expect={"a": "1", "b": None})
        assert ledger.pointers() == {"a": "2", "b": "1"}

    def test_of_racing_moves_exactly_one_wins(self, backend: Open) -> None:
        """Eight threads promote from the same state; seven get Conflict."""
        ledgers = [backend() for _ in range(8)]

        def promote(number: int) -> list[Record]:
            try:
                entry = Entry("promoted", f"v{number}")
                return ledgers[number].append([entry], pointers={"champion": f"v{number}"}, expect={"champion": None})
            except Conflict:
                return []

        with ThreadPoolExecutor(8) as pool:
            winners = [records[0] for records in pool.map(promote, range(8)) if records]
        assert len(winners) == 1
        assert ledgers[0].pointers() == {"champion": winners[0].subject}
        assert ledgers[0].verify().ok

    def test_concurrent_appends_all_land(self, backend: Open) -> None:
        """Eight threads with a ledger each append 5 batches each; none fails, the chain has no gap."""

        def work(number: int) -> None:
            with backend() as ledger:
                for turn in range(5):
                    ledger.append([Entry("k", f"{number}"), Entry("k", f"{number}", {"turn": turn})])

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        records = backend().read()
        assert [record.seq for record in records] == list(range(1, 81))
        assert backend().verify().ok

    def test_metric_points_come_back_in_order(self, backend: Open) -> None:
        """Points keep name, order, steps up to 64 bits, NaN and infinity, over several records of a subject."""
        ledger = backend()
        line = [(3, 0.5), (1, -math.inf), (1, 1e-310), (-(2**63), -0.0), (2**63 - 1, 1)]
        ledger.append([Entry("m", "run", series={"loss": line, "auc": [(0, math.nan)]}), Entry("m", "other")])
        ledger.append([Entry("m", "run", series={"loss": [(9, 9.0)]}), Entry("m", "x", series={"loss": [(0, 0.0)]})])
        found = ledger.series("run")
        assert found["loss"] == [*line, (9, 9.0)]
        assert math.isnan(found["auc"][0][1])
        assert ledger.series("nobody") == {}
        assert ledger.read(limit=1)[0].series is not None
        assert ledger.verify().ok

    @pytest.mark.parametrize("point", [(0, "high"), (2**63, 1.0), ("a", 1.0), (0, None), (1,)])
    def test_points_that_are_no_numbers_are_refused(self, backend: Open, point: Any) -> None:
        """A typed error, and nothing written."""
        ledger = backend()
        with pytest.raises(DataError, match="no numbers"):
            ledger.append([Entry("k", "s", series={"m": [point]})])
        assert ledger.head().seq == 0

    def test_a_kept_head_shows_what_was_cut(self, backend: Open) -> None:
        """Heads that are part of the chain verify; one beyond its end or with another hash does not."""
        ledger = backend()
        ledger.append([Entry("k", "s")] * 3)
        head = ledger.head()
        ledger.append([Entry("k", "s")])
        assert ledger.verify(against=[head]).ok
        assert ledger.verify(against=[Head(9, head.hash)]).first_bad == 9
        assert ledger.verify(against=[Head(3, "f" * 64)]).first_bad == 3

    def test_checkpoints_are_signed_on_promotion_period_and_count(self, backend: Open) -> None:
        """The first record, a pointer move, a minute and 1,000 records each bring one; nothing else does."""
        clock, signer = VirtualClock(START), Ed25519Signer()
        ledger = backend(clock=clock, signer=signer)

        def signed() -> tuple[int, int]:
            result = ledger.verify()
            assert result.ok
            return result.checkpoints, result.signed_through

        ledger.append([Entry("k", "s")])
        assert signed() == (1, 1)
        ledger.append([Entry("k", "s")])
        assert signed() == (1, 1)
        ledger.append([Entry("k", "s")], pointers={"a": "1"})
        assert signed() == (2, 3)
        clock.advance_to(START + MINUTE)
        ledger.append([Entry("k", "s")])
        assert signed() == (3, 4)
        ledger.append([Entry("k", "s")] * 999)
        assert signed() == (3, 4)
        ledger.append([Entry("k", "s")])
        assert signed() == (4, 1004)

    def test_a_checkpoint_by_another_key_is_not_trusted(self, backend: Open) -> None:
        """Who can write the ledger but lacks the key cannot sign."""
        backend(signer=Ed25519Signer("forger")).append([Entry("k", "s")])
        result = backend(signer=Ed25519Signer("ours")).verify()
        assert not result.ok
        assert result.signed_through == 0

    def test_a_failing_disk_is_unavailable_and_writes_nothing(self, backend: Open) -> None:
        """An I/O error before the commit is typed, retryable, and leaves no trace; the next append succeeds."""
        ledger = backend()
        with armed("ledger.before_commit:raise"), pytest.raises(Unavailable) as caught:
            ledger.append([Entry("k", "s")], pointers={"a": "1"})
        assert caught.value.retryable
        assert (ledger.head().seq, ledger.pointers()) == (0, {})
        assert ledger.append([Entry("k", "s")])[0].seq == 1

    def test_a_closed_or_read_only_ledger_says_so(self, backend: Open) -> None:
        """Using it is Unavailable; reading an absent one names the command that creates it."""
        with pytest.raises(ConfigurationError, match="no ledger"):
            backend(read_only=True)
        ledger = backend()
        ledger.append([Entry("k", "s")])
        reader = backend(read_only=True)
        assert reader.head().seq == 1
        with pytest.raises(Unavailable, match="reading only"):
            reader.append([Entry("k", "s")])
        ledger.close()
        with pytest.raises(Unavailable, match="closed"):
            ledger.head()
