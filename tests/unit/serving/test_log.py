"""The prediction log: what was appended is read back whole, a torn end is dropped, damage elsewhere is told."""

from __future__ import annotations

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.errors import Corrupt, Unavailable, UsageError
from headrace.features.record import FeatureColumn, FeatureVector
from headrace.serving.log import PredictionLog, find, frames, read_segment, segment_digest, segment_name, segments
from headrace.serving.record import FRAME, MEASURED, Prediction, Shadow

COLUMNS = (
    FeatureColumn("carrier", "str", "row"),
    FeatureColumn("delay", "float", "window"),
    FeatureColumn("flights", "int", "window"),
    FeatureColumn("night", "bool", "on_demand"),
)
REQUEST = ["flight", "seats"]


def vector(carrier: str | None = "UA", delay: float = 1.5, flights: int = -3, night: bool = True) -> FeatureVector:
    words = np.array([0, np.array([delay]).view(np.int64)[0], flights, night], np.int64)
    return FeatureVector(COLUMNS, words, np.array([carrier is None, 0, 0, 0], np.uint8), [carrier])


def append(log: PredictionLog, number: int = 0, **changed: Any) -> str:
    fields: dict[str, Any] = {
        "version": "m/v1",
        "variant": "champion",
        "threshold": "threshold=0.5",
        "decision": True,
        "flags": 0,
        "shadows": [("m/v2", 0.25), ("m/v3", None)],
        "latency_us": 41.5,
    }
    fields.update(changed)
    return log.append(f"row-{number}".encode(), 1_000 + number, [f"F{number}", 7], vector(), number / 8, **fields)


def opened(folder: Path, segment: int = 1, **options: Any) -> PredictionLog:
    return PredictionLog(folder, COLUMNS, REQUEST, segment=segment, **options)


def written(folder: Path, rows: int = 20) -> bytes:
    """Write a segment of some predictions and return its bytes."""
    log = opened(folder)
    for number in range(rows):
        append(log, number)
    log.close()
    return (folder / segment_name(1)).read_bytes()


def read(folder: Path, segment: int = 1) -> list[Prediction]:
    return list(read_segment(folder, segment))


def test_every_field_comes_back(tmp_path: Path) -> None:
    log = opened(tmp_path, 64)
    found = log.append(
        b"\x00row",
        -5,
        ["F1", None],
        vector(None, -0.0, 2**63 - 1, False),
        0.1,
        version="m/v1",
        variant="candidate",
        threshold="",
        decision=False,
        flags=13,
        shadows=[("m/v2", 0.25), ("m/v3", None)],
        latency_us=41.5,
    )
    log.close()
    assert read(tmp_path, 64) == [
        Prediction(
            id=found,
            t=-5,
            row_id=b"\x00row",
            request={"flight": "F1", "seats": None},
            features={"carrier": None, "delay": -0.0, "flights": 2**63 - 1, "night": False},
            status={"carrier": "NULL"},
            score=0.1,
            decision=False,
            version="m/v1",
            variant="candidate",
            threshold="",
            flags=13,
            shadows=(Shadow("m/v2", 0.25), Shadow("m/v3", None)),
            latency_us=41.5,
        )
    ]


finite = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=60)
@given(
    t=st.integers(-(2**63), 2**63 - 1),
    row_id=st.binary(max_size=400),
    request=st.tuples(st.text(max_size=20), st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | finite),
    carrier=st.none() | st.text(max_size=20),
    delay=finite,
    flights=st.integers(-(2**63), 2**63 - 1),
    score=finite,
    names=st.tuples(*[st.text(max_size=12)] * 3),
    decision=st.none() | st.booleans(),
    flags=st.integers(0, 255),
    shadows=st.lists(st.tuples(st.text(max_size=5), st.none() | finite), max_size=3),
    latency=st.floats(0, 1e6, width=32),
)
def test_whatever_is_logged_comes_back(
    tmp_path_factory: pytest.TempPathFactory, t: int, row_id: bytes, request: Any, carrier: str | None, delay: float,
    flights: int, score: float, names: tuple[str, ...], decision: bool | None, flags: int, shadows: Any, latency: float,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("log")
    log = opened(folder)
    for _ in range(2):
        log.append(
            row_id, t, list(request), vector(carrier, delay, flights), score, version=names[0], variant=names[1],
            threshold=names[2], decision=decision, flags=flags, shadows=shadows, latency_us=latency,
        )  # fmt: skip
    log.close()
    first, second = read(folder)
    assert (first.id, second.id) == ("p000001-000000", "p000001-000001")
    assert (first.t, first.row_id, first.score) == (t, row_id, score)
    assert first.request == dict(zip(REQUEST, request, strict=True))
    assert first.features == {"carrier": carrier, "delay": delay, "flights": flights, "night": True}
    assert (first.version, first.variant, first.threshold, first.decision, first.flags) == (*names, decision, flags)
    assert [(s.version, s.score) for s in first.shadows] == shadows
    assert first.latency_us == round(latency, 3)


def test_the_block_holds_the_open_segments_columns(tmp_path: Path) -> None:
    log = opened(tmp_path)
    append(log, 0)
    append(log, 1)
    words, status, scores = log.block.arrays(len(COLUMNS))
    assert words.tolist() == [vector().words.tolist()] * 2
    assert status.tolist() == [[0, 0, 0, 0]] * 2
    assert scores.tolist() == [0.0, 0.125]
    log.open_segment(2)
    assert log.block.arrays(len(COLUMNS))[0].shape == (0, len(COLUMNS))
    log.close()


def test_a_cut_anywhere_drops_only_what_was_cut(tmp_path: Path) -> None:
    content = written(tmp_path)
    whole = read(tmp_path)
    ends = frame_ends(content)
    for cut in range(len(content)):
        kept = sum(1 for _ in frames(content[:cut], "log"))
        assert kept == sum(end <= cut for end in ends)
    (tmp_path / segment_name(1)).write_bytes(content[:-1])
    assert read(tmp_path) == whole[:-1]


def frame_ends(content: bytes) -> list[int]:
    ends, at = [], 0
    while at < len(content):
        at += FRAME.size + FRAME.unpack_from(content, at)[0]
        ends.append(at)
    return ends


def test_zeros_behind_the_end_are_a_torn_tail(tmp_path: Path) -> None:
    content = written(tmp_path)
    whole = list(frames(content, "log"))
    assert list(frames(content + bytes(4096), "log")) == whole
    assert list(frames(content[:-3] + bytes(4096), "log")) == whole[:-1]
    start = frame_ends(content)[-2]
    assert list(frames(content[: start + 2] + bytes(4096), "log")) == whole[:-1]


def test_any_flipped_bit_before_the_last_frame_is_told(tmp_path: Path) -> None:
    content = written(tmp_path, 5)
    last = frame_ends(content)[-2]
    for at in range(last):
        for bit in (0, 7):
            damaged = bytearray(content)
            damaged[at] ^= 1 << bit
            with pytest.raises(Corrupt, match="damaged") as caught:
                list(frames(bytes(damaged), "segment-000001.log"))
            assert (caught.value.where or "").startswith("segment-000001.log, byte ")
            assert caught.value.next_step


def test_a_removed_piece_in_the_middle_is_told(tmp_path: Path) -> None:
    content = written(tmp_path)
    ends = frame_ends(content)
    (tmp_path / segment_name(1)).write_bytes(content[: ends[3] + 5] + content[ends[3] + 9 :])
    with pytest.raises(Corrupt):
        read(tmp_path)


def test_the_digest_is_of_the_content_and_leaves_out_what_was_measured(tmp_path: Path) -> None:
    def digest(name: str, **changed: Any) -> str:
        (tmp_path / name).mkdir()
        log = opened(tmp_path / name)
        append(log, 1, **changed)
        found = log.seal()
        log.close()
        return found

    one = digest("a")
    assert digest("b", latency_us=99.0) == one
    others: list[dict[str, Any]] = [
        {"version": "m/v9"},
        {"variant": "candidate"},
        {"threshold": "x"},
        {"decision": None},
        {"flags": 1},
    ]
    others += [{"shadows": []}, {"shadows": [("m/v2", 0.25), ("m/v3", 0.1)]}]
    assert len({one, *(digest(f"c{i}", **changed) for i, changed in enumerate(others))}) == len(others) + 1
    assert MEASURED.size == 4


def test_a_prediction_is_found_by_its_id(tmp_path: Path) -> None:
    log = opened(tmp_path, 1)
    first = [append(log, n) for n in range(3)]
    log.open_segment(2)
    second = [append(log, n) for n in range(2)]
    log.close()
    assert segments(tmp_path) == [1, 2]
    assert [find(tmp_path, i).request["flight"] for i in first + second] == ["F0", "F1", "F2", "F0", "F1"]


@pytest.mark.parametrize(
    "wanted", ["", "p", "p1", "p000001-000009", "p000007-000000", "x000001-000000", "p٣-1", "../a"]
)
def test_an_id_that_was_never_given_is_refused_with_an_example(tmp_path: Path, wanted: str) -> None:
    written(tmp_path, 2)
    with pytest.raises(UsageError, match="no such prediction") as caught:
        find(tmp_path, wanted)
    assert "p000001-000000" in (caught.value.expected or "")


def test_a_segment_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such part"):
        read(tmp_path, 3)


def test_beginning_a_segment_again_drops_what_it_held(tmp_path: Path) -> None:
    written(tmp_path, 5)
    log = opened(tmp_path)
    append(log, 9)
    log.close()
    assert [p.request["flight"] for p in read(tmp_path)] == ["F9"]


def test_what_was_appended_is_with_the_operating_system_at_once(tmp_path: Path) -> None:
    log = opened(tmp_path)
    for number in range(5):
        append(log, number)
        assert len(read(tmp_path)) == number + 1
    log.close()


def test_a_repeatable_run_writes_in_groups(tmp_path: Path) -> None:
    log = opened(tmp_path, durable=False)
    append(log, 0)
    assert read(tmp_path) == []
    log.commit()
    assert len(read(tmp_path)) == 1
    for number in range(12_000):
        append(log, number)
    assert 1 < len(read(tmp_path)) < 12_001
    log.close()
    assert len(read(tmp_path)) == 12_001


def test_other_users_cannot_read_the_log(tmp_path: Path) -> None:
    written(tmp_path, 1)
    assert (tmp_path / segment_name(1)).stat().st_mode & 0o077 == 0


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let this process write no file beyond a size: writes fail as on a full disk, some after a part."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_refuses_and_afterwards_nothing_is_doubled_or_lost(tmp_path: Path) -> None:
    log = opened(tmp_path)
    before = [append(log, n) for n in range(10)]
    size = (tmp_path / segment_name(1)).stat().st_size
    with largest_file(size + 100):
        with pytest.raises(Unavailable, match="cannot be written") as caught:
            append(log, 10)
        assert "room" in (caught.value.next_step or "")
        with pytest.raises(Unavailable):
            log.commit()
        assert [p.id for p in read(tmp_path)] == before
    after = append(log, 11)
    log.close()
    found = read(tmp_path)
    assert [p.request["flight"] for p in found] == [f"F{n}" for n in range(12)]
    assert len({p.id for p in found}) == 12
    assert found[-1].id == after


def test_the_block_thins_itself_evenly_and_stays_within_its_limit(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path, COLUMNS, REQUEST, segment=1, window=8)
    for i in range(1, 101):
        append(log, i)
        words, status, scores = log.block.arrays(len(COLUMNS))
        assert len(words) == len(status) == len(scores) == len(log.block.texts) <= 8
    assert scores.tolist() == [i * 0.125 for i in range(16, 101, 16)]
    log.close()
    none = PredictionLog(tmp_path, COLUMNS, REQUEST, segment=2, window=0)
    append(none, 1)
    assert none.block.arrays(len(COLUMNS))[0].shape == (0, len(COLUMNS))
    none.close()


def test_the_digest_of_a_segment_on_disk_is_the_one_that_sealing_gave(tmp_path: Path) -> None:
    log = opened(tmp_path)
    for i in range(5):
        append(log, i)
    sealed = log.seal()
    log.close()
    assert segment_digest(tmp_path, 1) == (sealed, 5)
    path = tmp_path / "segment-000001.log"
    path.write_bytes(path.read_bytes()[:-1])
    digest, rows = segment_digest(tmp_path, 1)
    assert (digest != sealed, rows) == (True, 4)


def test_a_commit_does_not_hold_the_lock_while_the_disk_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, lock = opened(tmp_path), threading.Lock()
    free: list[bool] = []
    monkeypatch.setattr("os.fsync", lambda descriptor: free.append(not lock.locked()))
    append(log, 0)
    log.commit(lock)
    assert free == [True]
    log.close()
