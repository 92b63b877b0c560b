"""Check the promises of `headrace.storage.streams.protocol` on any stream store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.errors import ConfigurationError, DataError, Unavailable
from headrace.core.failpoints import armed
from headrace.core.time import SECOND, Instant, VirtualClock
from headrace.storage.backends import resolve
from headrace.storage.streams import Appended, Bounds, Cursor, Message, Streams, open_streams

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
        """Return a function that opens the store; all are closed at the end. Settings that it lacks are left out."""
        known = signature(resolve("streams", url)[0]).parameters
        with ExitStack() as stack:

            def open_again(**settings: Any) -> Streams:
                given = {name: value for name, value in settings.items() if name in known}
                return stack.enter_context(open_streams(url, **{"clock": VirtualClock(START), **given}))

            yield open_again

    def test_records_get_positions_and_one_arrival_a_batch(self, backend: Open) -> None:
        """Positions ascend through all batches, from 0 where they are counted; arrival is the clock's at the batch."""
        clock = VirtualClock(START)
        store = backend(clock=clock)
        first = store.append("s", [b"a", b""])[0]
        clock.advance_to(START + SECOND)
        second = store.append("s", [b"c"])[0]
        if store.capabilities.counted:
            assert (first, second) == (Appended(0, 2, START), Appended(2, 3, START + SECOND))
        assert first.end <= second.start
        assert (first.arrival, second.arrival) == (START, START + SECOND)
        found = read(store)
        assert [(m.arrival, m.data) for m in found] == [(START, b"a"), (START, b""), (START + SECOND, b"c")]
        assert [m.position for m in found] == [first.start, first.end - 1, second.start]
        assert store.append("s", []) in ({}, {0: Appended(3, 3, START + SECOND)})

    def test_arrival_never_goes_backwards(self, backend: Open) -> None:
        """Neither when another writer's clock stands earlier nor after opening again; also from any cursor."""
        first = backend(clock=VirtualClock(Instant(START + SECOND)))
        first.append("s", [b"a"])
        first.close()
        second = backend(clock=VirtualClock(START))
        second.append("s", [b"b"])
        found = read(second)
        assert [m.arrival for m in found] == [START + SECOND, START + SECOND]
        assert read(second, found[0].after) == found[1:]

    def test_reading_from_anywhere_equals_a_list(self, backend: Open) -> None:
        """Any batches, read from any position with any limits, over several segments, again and again."""
        store = backend(segment_bytes=300)
        content: list[bytes] = []

        @settings(max_examples=15, deadline=None)
        @given(
            batch=st.lists(st.binary(max_size=40), max_size=6),
            place=st.integers(0, 40),
            limit=st.integers(0, 9),
            size=st.integers(1, 200),
        )
        def check(batch: list[bytes], place: int, limit: int, size: int) -> None:
            content.extend(batch)
            store.append("s", batch)
            everything = read(store)
            assert [m.data for m in everything] == content
            assert [m.position for m in everything] == sorted({m.position for m in everything})
            cursor = everything[place - 1].after if 0 < place <= len(everything) else Cursor()
            rest = content[place:] if place <= len(everything) else content
            assert [m.data for m in store.read("s", {0: cursor}, limit)] == rest[:limit]
            bounded = [m.data for m in store.read("s", {0: cursor}, 1_000, size)]
            assert bounded == rest[: len(bounded)]
            assert len(bounded) == len(rest) or sum(map(len, bounded)) >= size
            assert sum(map(len, bounded[:-1])) < size

        check()
        assert [m.data for m in read(backend())] == content

    def test_a_reader_follows_a_writer(self, backend: Open) -> None:
        """Another object sees what was acknowledged, from where it stopped."""
        writer, reader = backend(segment_bytes=200), backend()
        seen: list[bytes] = []
        cursor = Cursor()
        for number in range(10):
            writer.append("s", [b"%d" % number] * (number % 3 + 1))
            while messages := reader.read("s", {0: cursor}, 2):
                seen += [message.data for message in messages]
                cursor = messages[-1].after
        assert seen == [b"%d" % number for number in range(10) for _ in range(number % 3 + 1)]

    def test_streams_do_not_meet(self, backend: Open) -> None:
        """Each has positions of its own; an absent one has no partition."""
        store = backend()
        assert store.streams() == []
        store.append("b", [b"1"])
        store.append("a", [b"2", b"3"])
        assert store.streams() == ["a", "b"]
        found = store.bounds(["a", "b", "c"])
        assert [sorted(held) for held in found.values()] == [[0], [0], []]
        assert [m.data for m in read(store, stream="a")] == [b"2", b"3"]
        assert [m.data for m in read(store, stream="b")] == [b"1"]
        assert store.read("c", {0: Cursor()}) == []
        assert store.read("a", {}) == []
        assert store.read("a", {0: Cursor(found["a"][0].end + 5)}) == []

    def test_bounds_end_behind_the_last_record(self, backend: Open) -> None:
        """Whatever the batches were, and for another object too."""
        store = backend()
        for size in (1, 200, 3):
            store.append("s", [b"x"] * size)
            assert bounds(backend()).end == bounds(store).end == read(store)[-1].position + 1
        assert bounds(store).start == read(store)[0].position

    def test_one_writer_at_a_time_or_many(self, backend: Open) -> None:
        """A second one is Unavailable until the first closes, or both land; readers are free."""
        first, second = backend(), backend()
        first.append("s", [b"a"])
        if first.capabilities.one_writer:
            with pytest.raises(Unavailable, match="already has a writer"):
                second.append("s", [b"b"])
        assert [message.data for message in read(second)] == [b"a"]
        second.append("other", [b"c"])
        first.close()
        second.append("s", [b"b"])
        assert [message.data for message in read(second)] == [b"a", b"b"]

    def test_dropping_keeps_what_was_asked_for(self, backend: Open) -> None:
        """Positions from `before` on stay readable, older ones are a DataError, the end never moves."""
        store = backend(segment_bytes=120)
        if not store.capabilities.drops:
            with pytest.raises(ConfigurationError, match="broker"):
                store.drop("s", {0: 1})
            return
        for number in range(20):
            store.append("s", [b"%02d" % number * 10])
        positions, end = [m.position for m in read(store)], bounds(store).end
        store.drop("s", {0: positions[11]})
        held = bounds(store)
        assert positions[0] < held.start <= positions[11]
        assert held.end == end
        assert [m.position for m in read(store, Cursor(positions[11]))] == positions[11:]
        with pytest.raises(DataError, match="no longer kept"):
            read(store, Cursor(held.start - 1))
        with pytest.raises(DataError, match="no longer kept"):
            read(store, Cursor(-1))
        store.drop("s", {0: end + 999})
        assert bounds(store).end == end
        assert store.append("s", [b"x"])[0].start >= end
        store.close()
        assert backend().append("s", [b"y"])[0].start > end
        backend().drop("absent", {0: 5})

    def test_redacting_takes_single_records_away_and_no_place(self, backend: Open) -> None:
        """Their bytes are gone; whoever reads on, from wherever, gets all others at their positions and arrivals."""
        store = backend(segment_bytes=120)
        if not store.capabilities.redacts:
            with pytest.raises(ConfigurationError, match="cannot be taken away"):
                store.redact("s", lambda data: True)
            return
        for number in range(9):
            store.append("s", [b"%02d" % number, b"secret %02d" % number] if number % 4 else [b"secret"])
        before, end = read(store), bounds(store).end
        assert store.redact("s", lambda data: b"secret" in data) == 9
        left = [message for message in before if b"secret" not in message.data]
        for message in before:
            after = [m for m in left if m.position >= message.position]
            found = read(store, Cursor(message.position, message.arrival))
            assert [m for m in found if m.data != b"{}"] == after
        assert (bounds(store).end, store.redact("s", lambda data: b"secret" in data)) == (end, 0)
        assert store.redact("s", lambda data: data in (b"01", b"07")) == 2
        assert [m.data for m in read(store, Cursor(before[0].position)) if m.data != b"{}"] == [
            b"02",
            b"03",
            b"05",
            b"06",
        ]
        store.redact("s", lambda data: data != b"{}")
        landed = store.append("s", [b"after"])[0]
        assert landed.start >= end
        for position in (before[0].position, before[5].position, end):
            assert [m.data for m in read(store, Cursor(position)) if m.data != b"{}"] == [b"after"]
        store.redact("s", lambda data: data == b"after")
        store.append("s", [b"last"])
        store.close()
        again = backend()
        assert [m.data for m in read(again, Cursor(end)) if m.data != b"{}"] == [b"last"]
        assert again.redact("absent", lambda data: True) == 0

    def test_a_failing_connection_or_disk_is_unavailable(self, backend: Open) -> None:
        """What it interrupted may be there or not; what was acknowledged is, in order, and appending goes on."""
        store = backend()
        store.append("s", [b"a"])
        broken = armed("streams.before_fsync:raise,streams.before_send:raise")
        with broken, pytest.raises(Unavailable, match="not acknowledged"):
            store.append("s", [b"b"])
        store.append("s", [b"c"])
        assert [message.data for message in read(store) if message.data != b"b"] == [b"a", b"c"]

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
        assert store.bounds(["s"]) == {"s": {}}

    def test_alone_a_member_gets_every_partition(self, backend: Open) -> None:
        """Without a group there is nobody to share with."""
        store = backend()
        store.append("s", [b"a"])
        member = store.join(["s", "absent"])
        assert member.assigned() == {"s": frozenset({0}), "absent": frozenset()}
        member.close()

    def test_closed_streams_say_so(self, backend: Open) -> None:
        """Using them is Unavailable."""
        store = backend()
        store.close()
        with pytest.raises(Unavailable, match="closed"):
            store.append("s", [b"a"])
        with pytest.raises(Unavailable, match="closed"):
            read(store)


def read(store: Streams, cursor: Cursor | None = None, stream: str = "s") -> list[Message]:
    """Return everything that the first partition holds from a cursor on."""
    return store.read(stream, {0: cursor or Cursor()}, 10**6)


def bounds(store: Streams, stream: str = "s") -> Bounds:
    """Return what the first partition holds; nothing of an absent stream."""
    return store.bounds([stream])[stream].get(0, Bounds(0, 0))
