"""What the stream contract cannot see of Kafka: several partitions, stamps that go back or ahead, transactions, groups."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from confluent_kafka import Producer

from headrace.core.errors import BadUrl, Unavailable
from headrace.core.time import HOUR, SECOND, Instant, SystemClock, VirtualClock
from headrace.storage.streams import Cursor, Membership, open_streams
from headrace.testing.servers import free_port, kafka_broker, mock_cluster

START = Instant.parse("2013-01-01")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with kafka_broker(tmp_path_factory.mktemp("kafka")) as port:
        yield f"127.0.0.1:{port}"


def produce(broker: str, topic: str, stamped: list[tuple[int, bytes | None]]) -> None:
    """Send records as another program would, with timestamps in microseconds."""
    producer = Producer({"bootstrap.servers": broker, "linger.ms": 0})
    for stamp, value in stamped:
        producer.produce(topic, value, partition=0, timestamp=stamp // 1_000)
    assert producer.flush(10) == 0


def test_equal_keys_meet_in_one_partition_and_each_partition_keeps_its_order(broker: str) -> None:
    with open_streams(f"kafka://{broker}?partitions=4", clock=VirtualClock(START)) as store:
        records = [b"%d" % n for n in range(60)]
        landed = store.append("keyed", records, keys=[b"key %d" % (n % 7) for n in range(60)])
        assert set(landed) == set(store.bounds(["keyed"])["keyed"]) == {0, 1, 2, 3}
        seen: dict[int, list[bytes]] = {p: [] for p in landed}
        cursors = dict.fromkeys(landed, Cursor())
        while found := store.read("keyed", cursors, 7):
            for message in found:
                assert message.position == cursors[message.partition].position
                seen[message.partition].append(message.data)
                cursors[message.partition] = message.after
        assert sorted(data for part in seen.values() for data in part) == sorted(records)
        places = {int(data) % 7: p for p, part in seen.items() for data in part}
        for partition, part in seen.items():
            assert part == [b"%d" % n for n in range(60) if places[n % 7] == partition]


def test_a_stamp_that_goes_back_arrives_with_the_record_before_it_from_any_cursor(broker: str) -> None:
    stamps = [START + 3 * SECOND, START + SECOND, START + 4 * SECOND, START]
    with open_streams(f"kafka://{broker}", clock=VirtualClock(START)) as store:
        store.append("back", [b"first"])
        produce(broker, "back", [(stamp, b"%d" % stamp) for stamp in stamps])
        found = store.read("back", {0: Cursor()})
        assert [m.arrival - START for m in found] == [0, 3 * SECOND, 3 * SECOND, 4 * SECOND, 4 * SECOND]
        for number, message in enumerate(found[:-1]):
            assert store.read("back", {0: message.after}) == found[number + 1 :]


def test_a_stamp_far_ahead_is_told_and_holds_up_nothing_behind_it(broker: str) -> None:
    with open_streams(f"kafka://{broker}?ahead=1h", clock=VirtualClock(START)) as store:
        store.append("ahead", [b"first"])
        produce(broker, "ahead", [(START + HOUR, b"close"), (START + 3 * HOUR, b"far"), (START + SECOND, None)])
        found = store.read("ahead", {0: Cursor()})
        assert [m.problem for m in found] == [
            None,
            None,
            "stamped 2013-01-01T03:00:00Z, ahead of this host's clock",
            "a record without a value (a tombstone)",
        ]
        assert [m.arrival - START for m in found] == [0, HOUR, HOUR, HOUR]
        assert found[2].after == Cursor(3, START + HOUR)


def test_what_transactions_leave_between_records_is_passed_over() -> None:
    """Their markers take offsets; the ends of partitions are the mock cluster's."""
    with mock_cluster() as addresses:
        producer = Producer({"bootstrap.servers": addresses, "transactional.id": "t", "linger.ms": 0})
        producer.init_transactions(10)
        for number in range(3):
            producer.begin_transaction()
            producer.produce("events", b"%d" % number, partition=1)
            producer.produce("events", b"%d" % number, partition=1)
            producer.commit_transaction(10)
        with open_streams(f"kafka://{addresses}", clock=SystemClock()) as store:
            held = store.bounds(["events"])["events"]
            assert held[1].end == 9
            assert sorted(held) == [0, 1, 2, 3]
            found = store.read("events", dict.fromkeys(held, Cursor()))
            assert [(m.partition, m.position, m.data) for m in found] == [
                (1, position, b"%d" % (position // 3)) for position in (0, 1, 3, 4, 6, 7)
            ]
            for number, message in enumerate(found):
                assert store.read("events", {1: message.after}) == found[number + 1 :]


def test_members_of_a_group_share_the_partitions_and_take_over(broker: str) -> None:
    url = f"kafka://{broker}?partitions=4&group=shared&session.timeout.ms=6000&heartbeat.interval.ms=200"
    with open_streams(url, clock=SystemClock()) as store:
        store.append("shared", [b"x"])
        first, second = store.join(["shared"]), store.join(["shared"])
        assert settled([first, second]) == [2, 2]
        assert first.assigned()["shared"].isdisjoint(second.assigned()["shared"])
        second.close()
        assert settled([first]) == [4]
        first.close()


def settled(members: list[Membership]) -> list[int]:
    """Return how many partitions each member has once all four are held."""
    for _ in range(300):
        held = [len(member.assigned()["shared"]) for member in members]
        if sum(held) == 4 and all(held):
            break
        time.sleep(0.1)
    return held


def test_a_cluster_that_is_gone_is_unavailable() -> None:
    with open_streams(f"kafka://127.0.0.1:{free_port()}", clock=SystemClock()) as store:
        with pytest.raises(Unavailable) as error:
            store.bounds(["s"])
        assert "Kafka cluster" in str(error.value)
        assert "127.0.0.1" in str(error.value)


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("kafka:", "no address"),
        ("kafka://h:1?partitions=0", "partitions=0"),
        ("kafka://h:1?ahead=soon", "ahead='soon'"),
        ("kafka://h:1?enable.auto.commit=true", "enable.auto.commit"),
        ("kafka://h:1?plugin.library.paths=x", "plugin.library.paths"),
        ("kafka://h:1?sasl.password=secret&no.such.thing=1", "no.such.thing"),
    ],
)
def test_a_url_that_cannot_work_is_refused_without_its_secrets(location: str, told: str) -> None:
    with pytest.raises(BadUrl) as error:
        open_streams(location, clock=SystemClock())
    assert told in str(error.value)
    assert "secret" not in str(error.value)
