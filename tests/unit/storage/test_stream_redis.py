"""What the stream contract cannot see of Redis: other producers, partitions, leases, a server that is gone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from headrace.core.errors import BadUrl, DataError, Unavailable
from headrace.core.time import HOUR, SECOND, Instant, SystemClock, VirtualClock
from headrace.storage.streams import Cursor, open_streams
from headrace.testing.servers import free_port, redis_server

START = Instant.parse("2013-01-01")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as port:
        yield f"127.0.0.1:{port}"


def client(server: str) -> redis.Redis:
    return redis.Redis.from_url(f"redis://{server}/0")


def test_what_other_producers_add_is_read_and_what_has_no_data_is_told(server: str) -> None:
    with open_streams(f"redis://{server}/0", clock=VirtualClock(START)) as store:
        store.append("others:events", [b"ours"])
        far = f"{(START + HOUR) // 1_000}-18446744073709551615"
        client(server).xadd("others:events", {"data": b"\xff theirs"}, id=f"{(START + SECOND) // 1_000}-5")
        client(server).xadd("others:events", {"item": "1"}, id=f"{(START + 2 * SECOND) // 1_000}-0")
        client(server).xadd("others:events", {"data": b"far"}, id=far)
        found = store.read("others:events", {0: Cursor()})
        assert [m.data for m in found[:2]] == [b"ours", b"\xff theirs"]
        assert [m.arrival - START for m in found] == [0, SECOND, 2 * SECOND, 0]
        assert json.loads(found[2].data) == {"item": "1"}
        assert [m.problem for m in found] == [
            None,
            None,
            "an entry without the field data",
            "stamped 2013-01-01T01:00:00Z, ahead of this host's clock",
        ]
        assert found[3].after.position == store.bounds(["others:events"])["others:events"][0].end
        for number, message in enumerate(found):
            assert store.read("others:events", {0: message.after}) == found[number + 1 :]


def test_equal_keys_meet_in_one_partition(server: str) -> None:
    with open_streams(f"redis://{server}/0?partitions=3", clock=VirtualClock(START)) as store:
        records = [b"%d" % n for n in range(30)]
        landed = store.append("keyed", records, keys=[b"key %d" % (n % 7) for n in range(30)])
        assert set(store.bounds(["keyed"])["keyed"]) == {0, 1, 2}
        assert len(landed) > 1
        assert "keyed" in store.streams()
        found = store.read("keyed", dict.fromkeys(landed, Cursor()))
        assert sorted(m.data for m in found) == sorted(records)
        assert len({(int(m.data) % 7, m.partition) for m in found}) == 7


def test_what_others_trimmed_under_a_reader_is_told(server: str) -> None:
    with open_streams(f"redis://{server}/0", clock=VirtualClock(START)) as store:
        store.append("trimmed", [b"%d" % n for n in range(6)])
        cursor = store.read("trimmed", {0: Cursor()}, 2)[-1].after
        client(server).xtrim("trimmed", maxlen=2, approximate=False)
        with pytest.raises(DataError, match="no longer kept"):
            store.read("trimmed", {0: cursor})
        assert [m.data for m in store.read("trimmed", {0: Cursor()})] == [b"4", b"5"]


def test_members_share_the_partitions_and_a_silent_one_loses_its_own(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"redis://{server}/0?partitions=4&group=shared"
    monkeypatch.setattr("headrace.storage.streams.redis.LEASE_SECONDS", 2)
    with open_streams(url, clock=SystemClock()) as one, open_streams(url, clock=SystemClock()) as other:
        one.append("shared", [b"x"])
        first, second = one.join(["shared"]), other.join(["shared"])
        assert first.assigned()["shared"] == frozenset({0, 1, 2, 3})
        theirs = second.assigned()["shared"]
        ours = first.assigned()["shared"]
        assert ours | theirs == {0, 1, 2, 3}
        assert not ours & theirs
        second.close()
        assert first.assigned()["shared"] == {0, 1, 2, 3}
        second.assigned()
        assert len(first.assigned()["shared"]) == 2
        for _ in range(60):
            time.sleep(0.1)
            if len(first.assigned()["shared"]) == 4:
                break
        assert first.assigned()["shared"] == {0, 1, 2, 3}


def test_a_server_that_is_gone_is_unavailable_and_answers_again_when_it_is_back(tmp_path: Path) -> None:
    port = free_port()
    with open_streams(f"redis://:secret@127.0.0.1:{port}/0", clock=VirtualClock(START)) as store:
        with pytest.raises(Unavailable) as error:
            store.append("s", [b"a"])
        assert "secret" not in str(error.value)
    with open_streams(f"redis://127.0.0.1:{port}/0", clock=VirtualClock(START)) as store:
        with redis_server(tmp_path, port=port):
            store.append("s", [b"a"])
        with pytest.raises(Unavailable, match="not acknowledged"):
            store.append("s", [b"b"])
        with redis_server(tmp_path, port=port):
            assert [m.data for m in store.read("s", {0: Cursor()})] == [b"a"]


def test_a_key_that_is_no_stream_is_told(server: str) -> None:
    client(server).set("text", "x")
    with open_streams(f"redis://{server}/0", clock=VirtualClock(START)) as store:
        with pytest.raises(DataError, match="no stream"):
            store.append("text", [b"a"])
        with pytest.raises(BadUrl, match="unknown option"):
            open_streams(f"redis://{server}/0?partition=3", clock=VirtualClock(START))


def test_what_others_trim_after_a_redaction_is_a_loss(server: str) -> None:
    """The gap of redacted entries explains nothing beyond it."""
    with open_streams(f"redis://{server}/0", clock=VirtualClock(START)) as store:
        start = store.append("gap", [b"a", b"b", b"c", b"d"])[0].start
        assert store.redact("gap", lambda data: data == b"a") == 1
        assert [m.data for m in store.read("gap", {0: Cursor(start)})] == [b"b", b"c", b"d"]
        trimmed: Any = client(server)
        trimmed.xtrim("gap", minid=trimmed.xrange("gap")[1][0], approximate=False)
        with pytest.raises(DataError, match="no longer kept"):
            store.read("gap", {0: Cursor(start)})
        assert [m.data for m in store.read("gap", {0: Cursor(start + 2)})] == [b"c", b"d"]
