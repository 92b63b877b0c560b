"""What the stream contract cannot see from outside: torn tails, flipped bytes, segments."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.errors import Corrupt
from headrace.core.time import Instant, VirtualClock
from headrace.storage.streams import Cursor, Message, Streams, open_streams
from headrace.storage.streams.log import LogStreams
from headrace.storage.streams.segment import FRAME_HEADER, SEGMENT_HEADER, encode_frame, encode_segment_header

START = Instant.parse("2013-01-01")


def open_log(path: Path, **settings: int) -> Streams:
    return open_streams(f"log:{path}", clock=VirtualClock(START), **settings)


def written(path: Path, batches: int = 5, **settings: int) -> list[Path]:
    """Write batches of two records and return the segments."""
    with open_log(path, **settings) as store:
        for number in range(batches):
            store.append("s", [b"%d-a" % number, b"%d-b" % number])
    return sorted((path / "s").glob("*.log"))


def content(path: Path) -> list[bytes]:
    with open_log(path) as store:
        return [message.data for message in read(store)]


def read(store: Streams, position: int = 0, limit: int = 1_000) -> list[Message]:
    return store.read("s", {0: Cursor(position)}, limit)


ALL = [b"%d-%s" % (number, letter) for number in range(5) for letter in (b"a", b"b")]
FRAME = len(encode_frame([b"0-a", b"0-b"], 0, 0))


def test_the_bytes_are_the_documented_ones(tmp_path: Path) -> None:
    """A change of these bytes makes existing streams unreadable: it needs a new format number."""
    (segment,) = written(tmp_path, 1)
    assert segment.name == "00000000000000000000.log"
    assert segment.read_bytes().hex() == (
        encode_segment_header(0, -(2**63)).hex() + encode_frame([b"0-a", b"0-b"], 0, START).hex()
    )
    assert encode_segment_header(0, -(2**63)).hex() == "48524c4f47000001" + "0" * 16 + "0" * 14 + "80" + "405ac497"
    assert encode_frame([b"a"], 1, 2).hex() == (
        "4852667205000000638ff7c101000000010000000000000002000000000000004b504d080100000061"
    )


@pytest.mark.parametrize("cut", range(1, FRAME + 1))
def test_a_torn_tail_is_dropped_wherever_it_was_torn(tmp_path: Path, cut: int) -> None:
    """The last batch goes as a whole, the others stay, and the next one takes its positions."""
    (segment,) = written(tmp_path)
    data = segment.read_bytes()
    segment.write_bytes(data[:-cut])
    assert content(tmp_path) == ALL[:-2]
    with open_log(tmp_path) as store:
        assert store.append("s", [b"new"])[0].start == 8
    assert content(tmp_path) == [*ALL[:-2], b"new"]


def test_zeros_at_the_end_are_a_torn_tail(tmp_path: Path) -> None:
    """A file system may have grown the file before a crash of the machine lost the bytes."""
    (segment,) = written(tmp_path)
    segment.write_bytes(segment.read_bytes() + bytes(5_000))
    assert content(tmp_path) == ALL
    with open_log(tmp_path) as store:
        assert store.append("s", [b"new"])[0].start == 10


def test_any_flipped_byte_before_the_last_batch_is_corrupt(tmp_path: Path) -> None:
    """For readers and for writers: nothing behind it is dropped, nothing is overwritten."""
    (segment,) = written(tmp_path)
    data = segment.read_bytes()
    for place in range(len(data) - FRAME):
        spoilt = bytearray(data)
        spoilt[place] ^= 1 << (place % 8)
        segment.write_bytes(spoilt)
        with pytest.raises(Corrupt, match="a stream is damaged"):
            content(tmp_path)
        with open_log(tmp_path) as store, pytest.raises(Corrupt):
            store.append("s", [b"x"])
        assert segment.read_bytes() == spoilt


def test_a_flipped_byte_in_the_last_batch_never_gives_other_bytes(tmp_path: Path) -> None:
    (segment,) = written(tmp_path)
    data = segment.read_bytes()
    for place in range(len(data) - FRAME, len(data)):
        spoilt = bytearray(data)
        spoilt[place] ^= 1 << (place % 8)
        segment.write_bytes(spoilt)
        assert content(tmp_path) == ALL[:-2]


@pytest.mark.parametrize("victim", [0, 1, 2])
@pytest.mark.parametrize("damage", ["cut", "gone", "flip", "swap"])
def test_damage_in_an_older_segment_is_corrupt(tmp_path: Path, damage: str, victim: int) -> None:
    segments = written(tmp_path, 10, segment_bytes=SEGMENT_HEADER.size + 3 * FRAME)
    assert len(segments) == 4
    path = segments[victim]
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[:-1])
    elif damage == "gone":
        path.write_bytes(data[: SEGMENT_HEADER.size])
    elif damage == "flip":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        path.write_bytes(segments[3].read_bytes())
    with pytest.raises(Corrupt):
        content(tmp_path)


def test_a_missing_segment_in_the_middle_is_corrupt(tmp_path: Path) -> None:
    segments = written(tmp_path, 10, segment_bytes=SEGMENT_HEADER.size + 3 * FRAME)
    segments[1].unlink()
    with pytest.raises(Corrupt, match="positions 6 to 12 are missing"):
        content(tmp_path)


def test_a_batch_cut_out_of_the_middle_is_corrupt(tmp_path: Path) -> None:
    (segment,) = written(tmp_path)
    data = segment.read_bytes()
    segment.write_bytes(data[: SEGMENT_HEADER.size + FRAME] + data[SEGMENT_HEADER.size + 2 * FRAME :])
    with pytest.raises(Corrupt):
        content(tmp_path)


def test_records_that_look_like_frames_are_records(tmp_path: Path) -> None:
    """A torn batch that carries a whole frame inside is still a torn batch."""
    inner = encode_frame([b"forged"], 2, START)
    with open_log(tmp_path) as store:
        store.append("s", [b"first", b"second"])
        store.append("s", [inner, inner])
    assert content(tmp_path) == [b"first", b"second", inner, inner]
    (segment,) = (tmp_path / "s").glob("*.log")
    segment.write_bytes(segment.read_bytes()[:-1])
    assert content(tmp_path) == [b"first", b"second"]


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_random_bytes_never_crash_a_reader(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    folder = tmp_path_factory.mktemp("log")
    source = random.Random(seed)
    (segment,) = written(folder)
    spoilt = bytearray(segment.read_bytes())
    for _ in range(source.randrange(1, 4)):
        start = source.randrange(len(spoilt))
        spoilt[start : start + source.randrange(60)] = source.randbytes(source.randrange(60))
    segment.write_bytes(spoilt)
    try:
        found = content(folder)
    except Corrupt:
        return
    assert found == ALL[: len(found)]


def test_a_reader_goes_on_where_it_stopped_without_walking_again(tmp_path: Path) -> None:
    """A byte that was flipped behind the reader does not concern it; one that starts anew finds it."""
    (segment,) = written(tmp_path)
    with open_log(tmp_path) as store:
        assert len(read(store, 0, 3)) == 3
        spoilt = bytearray(segment.read_bytes())
        spoilt[SEGMENT_HEADER.size + FRAME_HEADER.size] ^= 1
        segment.write_bytes(spoilt)
        assert [message.data for message in read(store, 3)] == ALL[3:]
        with pytest.raises(Corrupt):
            read(store)


def test_redacted_records_are_empty_under_their_positions_and_the_rest_stands(tmp_path: Path) -> None:
    clock = VirtualClock(Instant(5))
    with LogStreams(str(tmp_path), clock=clock, segment_bytes=200) as streams:
        for number in range(20):
            streams.append("s", [b"keep %d" % number, b"SECRET %d" % number])
        before = read(streams)
        assert streams.redact("s", lambda data: b"SECRET" in data) == 20
        after = read(streams)
        assert [(m.position, m.arrival) for m in after] == [(m.position, m.arrival) for m in before]
        assert [m.data for m in after] == [b"{}" if m.position % 2 else m.data for m in before]
        assert streams.redact("s", lambda data: b"SECRET" in data) == 0
        assert streams.append("s", [b"on"])[0].start == 40
    assert not any(b"SECRET" in path.read_bytes() for path in (tmp_path / "s").iterdir())
    with LogStreams(str(tmp_path), clock=clock) as streams:
        assert [m.data for m in read(streams, 38)] == [b"keep 19", b"{}", b"on"]
