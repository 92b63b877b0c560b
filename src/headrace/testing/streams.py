"""Check the promises of `headrace.storage.streams.protocol` on any stream store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.errors import ConfigurationError, DataError, Unavailable
from headrace.core.failpoints import armed
from headrace.core.time import SECOND, Instant, VirtualClock
from headrace.storage.streams import Appended, Bounds, Message, Streams, open_streams

Open = Callable[..., Streams]

START = Instant.parse("2013-01-01")


class StreamsContract:
    """Check one stream backend; a subclass names its scheme, or overrides `url`."""

    scheme: ClassVar[str]

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        """Return the URL of a store that does not exist yet."""
        return f"{self.scheme}:{tmp_path / 'store'}"

    @pytest.fixture
    def backend(self, url: str) -> Iterator[Open]:
        """Return a function that opens the store; all are closed at the end."""
        with ExitStack() as stack:

            def open_again(**settings: Any) -> Streams:
                return stack.enter_context(open_streams(url, **{"clock": VirtualClock(START), **settings}))

            yield open_again

    def test_records_get_positions_and_one_arrival_a_batch(self, backend: Open) -> None:
        """Positions count from 0 through all batches; arrival is the clock's at the batch."""
        clock = VirtualClock(START)
        store = backend(clock=clock)
        assert store.append("s", [b"a", b""]) == Appended(0, 2, START)
        clock.advance_to(START + SECOND)
        assert store.append("s", [b"c"]) == Appended(2, 3, START + SECOND)
        assert store.read("s", 0) == [Message(0, START, b"a"), Message(1, START, b""), Message(2, START + SECOND, b"c")]
        assert store.append("s", []) == Appended(3, 3, START + SECOND)

    def test_arrival_never_goes_backwards(self, backend: Open) -> None:
        """Neither when another writer's clock stands earlier nor after opening again."""
        first = backend(clock=VirtualClock(Instant(START + SECOND)))
        first.append("s", [b"a"])
        first.close()
        second = backend(clock=VirtualClock(START))
        assert second.append("s", [b"b"]).arrival == START + SECOND

    def test_reading_from_anywhere_equals_a_list(self, backend: Open) -> None:
        """Any batches, read from any position with any limit, over several segments, again and again."""
        store = backend(segment_bytes=300)
        content: list[bytes] = []

        @settings(max_examples=30, deadline=None)
        @given(
            batch=st.lists(st.binary(max_size=40), max_size=6),
            position=st.integers(0, 40),
            limit=st.integers(0, 9),
        )
        def check(batch: list[bytes], position: int, limit: int) -> None:
            content.extend(batch)
            store.append("s", batch)
            assert store.bounds(["s"]) == {"s": Bounds(0, len(content))}
            found = store.read("s", position, limit)
            assert [message.data for message in found] == content[position : position + limit]
            assert [message.position for message in found] == list(range(position, position + len(found)))

        check()
        assert [message.data for message in store.read("s", 0, len(content))] == content
        assert [message.data for message in backend().read("s", 0, len(content))] == content

    def test_a_reader_follows_a_writer(self, backend: Open) -> None:
        """Another object sees what was acknowledged, from where it stopped."""
        writer, reader = backend(segment_bytes=200), backend()
        seen: list[bytes] = []
        for number in range(30):
            writer.append("s", [b"%d" % number] * (number % 3 + 1))
            while messages := reader.read("s", len(seen), 2):
                seen += [message.data for message in messages]
            assert reader.bounds(["s"])["s"].end == len(seen)
        assert seen == [b"%d" % number for number in range(30) for _ in range(number % 3 + 1)]

    def test_streams_do_not_meet(self, backend: Open) -> None:
        """Each has positions of its own; an absent one holds nothing."""
        store = backend()
        assert store.streams() == []
        store.append("b", [b"1"])
        store.append("a", [b"2", b"3"])
        assert store.streams() == ["a", "b"]
        assert store.bounds(["a", "b", "c"]) == {"a": Bounds(0, 2), "b": Bounds(0, 1), "c": Bounds(0, 0)}
        assert store.read("c", 0) == []
        assert store.read("a", 7) == []

    def test_one_writer_at_a_time(self, backend: Open) -> None:
        """A second one is Unavailable until the first closes, then goes on where that stopped; readers are free."""
        first, second = backend(), backend()
        first.append("s", [b"a"])
        with pytest.raises(Unavailable, match="already has a writer"):
            second.append("s", [b"b"])
        assert [message.data for message in second.read("s", 0)] == [b"a"]
        second.append("other", [b"c"])
        first.close()
        assert second.append("s", [b"b"]).start == 1

    def test_dropping_keeps_what_was_asked_for(self, backend: Open) -> None:
        """Positions from `before` on stay readable, older ones are a DataError, the end never moves."""
        store = backend(segment_bytes=120)
        for number in range(20):
            store.append("s", [b"%02d" % number * 10])
        bounds = store.drop("s", 11)
        assert 0 < bounds.start <= 11
        assert bounds.end == 20
        assert [message.position for message in store.read("s", 11)] == list(range(11, 20))
        with pytest.raises(DataError, match="no longer kept"):
            store.read("s", bounds.start - 1)
        assert store.drop("s", 999).end == 20
        assert store.append("s", [b"x"]).start == 20
        store.close()
        assert backend().append("s", [b"y"]).start == 21
        assert backend().drop("absent", 5) == Bounds(0, 0)

    def test_a_failing_disk_is_unavailable(self, backend: Open) -> None:
        """What it interrupted may be there or not; what was acknowledged is, in order, and appending goes on."""
        store = backend()
        store.append("s", [b"a"])
        with armed("streams.before_fsync:raise"), pytest.raises(Unavailable, match="not acknowledged"):
            store.append("s", [b"b"])
        store.append("s", [b"c"])
        assert [message.data for message in store.read("s", 0) if message.data != b"b"] == [b"a", b"c"]

    @pytest.mark.parametrize("name", ["", "..", "a/b", "/etc", ".hidden", "a\0b", "a\nb", "x" * 300])
    def test_a_name_stays_inside(self, backend: Open, name: str) -> None:
        """No name reaches outside the store."""
        with pytest.raises((ConfigurationError, DataError)):
            backend().append(name, [b"a"])

    def test_records_that_are_too_large_are_refused(self, backend: Open) -> None:
        """Before anything is written."""
        store = backend()
        with pytest.raises(DataError, match="too large"):
            store.append("s", [b"a", bytes((16 << 20) + 1)])
        assert store.bounds(["s"]) == {"s": Bounds(0, 0)}

    def test_closed_streams_say_so(self, backend: Open) -> None:
        """Using them is Unavailable."""
        store = backend()
        store.close()
        with pytest.raises(Unavailable, match="closed"):
            store.append("s", [b"a"])
        with pytest.raises(Unavailable, match="closed"):
            store.read("s", 0)
