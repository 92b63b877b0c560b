"""Keep streams as Kafka topics, through librdkafka; positions are offsets, arrival is the record's timestamp.

The broker's committed offsets are neither read nor written. A timestamp may go backwards (a producer's clock, another
leader): such a record arrives with the one before it, which the reader's cursor remembers.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from confluent_kafka import (
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from headrace.core.errors import BadUrl, ConfigurationError, Unavailable
from headrace.core.failpoints import reach
from headrace.core.time import Clock, Instant
from headrace.storage.streams.location import Location, read_location
from headrace.storage.streams.protocol import (
    READ_BYTES,
    Appended,
    Bounds,
    Capabilities,
    Cursor,
    Everything,
    Membership,
    Message,
    ensure_name,
    ensure_small,
    not_kept,
)

TIMEOUT = 5.0  # seconds without an answer until the broker counts as unavailable
BEYOND_SECONDS = 0.5  # for a position beyond the end, of which some brokers say nothing
CHUNK, CHUNK_BYTES = 100, 1 << 20  # records taken from librdkafka at a time; one by one near the end of what is asked
MILLISECOND = 1_000
BROKER_DEFAULT = -1
OURS = re.compile(
    r"bootstrap\.servers|group\.(?!instance).*|enable\..*|auto\..*|isolation\.level|plugin\..*|.*kinit.*|.*_cb"
)
READING = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "enable.partition.eof": True,
    "auto.offset.reset": "error",
    "isolation.level": "read_committed",
    "allow.auto.create.topics": False,
    "fetch.wait.max.ms": 50,
    "queued.max.messages.kbytes": READ_BYTES >> 10,
}
WRITING = {"enable.idempotence": True, "acks": "all", "linger.ms": 0, "partitioner": "murmur2_random"}
LATEST, FIRST = OffsetSpec.latest(), OffsetSpec.earliest()


class KafkaStreams:
    """Implement the store on a Kafka cluster.

    Args:
        location: `//HOST:PORT[,HOST:PORT]?OPTIONS`; the options are `partitions` and `replication` of topics that are
            created here, `group`, `ahead`, and any property of librdkafka, as `security.protocol=SASL_SSL`.
        clock: stamps what is appended here, and tells which stamps lie ahead.
    """

    def __init__(self, location: str, *, clock: Clock) -> None:
        self._place = read_location("kafka", location)
        self._clock = clock
        rest = dict(self._place.rest)
        self._replication = int(rest.pop("replication", BROKER_DEFAULT))
        self._config = _client_config(self._place, rest)
        self._failure = ""
        self._guard = threading.RLock()
        self._admin = self._made(AdminClient, {})
        self._producer: Any = None
        self._readers: dict[str, _Reader] = {}
        self._closed = False

    @property
    def capabilities(self) -> Capabilities:
        """Return what this backend can do."""
        return Capabilities(
            several_hosts=True,
            one_writer=False,
            whole_batches=False,
            counted=False,
            distances=True,
            drops=False,
            redacts=False,
        )

    def append(
        self, stream: str, records: Sequence[bytes], *, keys: Sequence[bytes] | None = None
    ) -> dict[int, Appended]:
        """Write a batch, creating the topic where there is none; records without keys go to partition 0."""
        ensure_name(stream, self._place.shown)
        ensure_small(stream, records)
        with self._open(), self._told(stream):
            if not records:
                return {}
            if stream not in self._topics():
                self._create(stream)
            reach("streams.before_send")
            return self._send(stream, records, keys)

    def read(
        self, stream: str, cursors: Mapping[int, Cursor], limit: int = 1_000, size: int = READ_BYTES
    ) -> list[Message]:
        """Return records from the cursors on, as far as they had been committed when this was called."""
        ensure_name(stream, self._place.shown)
        with self._open(), self._told(stream):
            negative = [(p, c.position) for p, c in cursors.items() if c.position < 0]
            if negative:
                raise not_kept(stream, *negative[0], 0)
            there = set(self._topics().get(stream, ()))
            wanted = {partition: cursor for partition, cursor in cursors.items() if partition in there}
            if not wanted or limit <= 0:
                return []
            found = self._offsets({(stream, p): LATEST for p in wanted})
            ends = {p: found[stream, p] for p in wanted}
            if stream not in self._readers:
                self._readers[stream] = _Reader(self._made(Consumer, {**READING, "group.id": "headrace"}), stream)
            reader = self._readers[stream]
            if reader.place({p: wanted[p].position for p in wanted}):
                starts = self._offsets({(stream, p): FIRST for p in wanted})
                for partition in wanted:
                    if wanted[partition].position < starts[stream, partition]:
                        raise not_kept(stream, partition, wanted[partition].position, starts[stream, partition])
            now = int(self._clock.now())
            return list(_stamped(reader.take(ends, limit, size), wanted, now, now + self._place.ahead))

    def bounds(self, streams: Sequence[str]) -> dict[str, dict[int, Bounds]]:
        """Return the committed offsets that each partition holds; a topic that does not exist has none."""
        with self._open(), self._told(", ".join(streams)):
            topics = self._topics()
            places = [(name, p) for name in streams for p in topics.get(name, ())]
            starts, ends = self._offsets(dict.fromkeys(places, FIRST)), self._offsets(dict.fromkeys(places, LATEST))
            found: dict[str, dict[int, Bounds]] = {name: {} for name in streams}
            for name, partition in places:
                found[name][partition] = Bounds(starts[name, partition], ends[name, partition])
            return found

    def streams(self) -> list[str]:
        """Return the names of all topics, the broker's own left out."""
        with self._open(), self._told("all"):
            return sorted(name for name in self._topics() if not name.startswith("__"))

    def drop(self, stream: str, before: Mapping[int, int]) -> None:
        """Refuse: the topic's retention is the broker's."""
        raise ConfigurationError(
            "records of a topic are dropped by its broker",
            where=f"stream {stream} at {self._place.shown}",
            expected="retention set on the topic",
            next_step=f"kafka-configs --alter --topic {stream} --add-config retention.ms=…",
        )

    def redact(self, stream: str, chosen: Callable[[bytes], bool]) -> int:
        """Refuse: a topic's records stay as they are until its broker drops them."""
        raise ConfigurationError(
            "single records of a topic cannot be taken away",
            where=f"stream {stream} at {self._place.shown}",
            expected="retention or compaction set on the topic",
            next_step=f"kafka-configs --alter --topic {stream} --add-config retention.ms=…",
        )

    def join(self, streams: Sequence[str]) -> Membership:
        """Join the consumer group that the URL names, for its assignment of partitions only."""
        if self._place.group is None:
            return Everything(self, streams)
        with self._open():
            names = {**READING, "group.id": self._place.group, "auto.offset.reset": "latest"}
            return _Member(self._made(Consumer, names), streams, self._place.shown)

    def close(self) -> None:
        """Give the connections back; later calls raise Unavailable."""
        with self._guard:
            self._closed = True
            for reader in self._readers.values():
                reader.consumer.close()
            self._readers.clear()
            if self._producer is not None:
                self._producer.purge()
            self._producer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _made(self, client: Any, config: Mapping[str, Any]) -> Any:
        try:
            return client({**self._config, "error_cb": self._note, **config})
        except KafkaException as error:
            raise BadUrl(
                "the Kafka client refuses an option",
                where=f"[stores] streams, {self._place.shown}",
                got=error.args[0].str(),
                expected="properties of librdkafka",
                next_step="correct the URL in headrace.toml",
            ) from None  # the chained text may show the value, which may be a secret

    def _note(self, error: KafkaError) -> None:
        self._failure = error.str()

    @contextmanager
    def _open(self) -> Iterator[None]:
        with self._guard:
            if self._closed:
                raise Unavailable("the streams are closed", where=self._place.shown, next_step="open them again")
            yield

    @contextmanager
    def _told(self, stream: str) -> Iterator[None]:
        """Raise what the client reports as Unavailable."""
        try:
            yield
        except (KafkaException, OSError) as error:
            reason = error.args[0].str() if isinstance(error, KafkaException) else str(error)
            raise self._unavailable(stream, reason) from error

    def _unavailable(self, stream: str, got: str) -> Unavailable:
        return Unavailable(
            "the Kafka cluster does not answer as it should; what was sent last is not acknowledged",
            where=f"stream {stream} at {self._place.shown}",
            got=f"{got} {self._failure}".strip(),
            next_step="check the brokers; the same call may succeed later",
        )

    def _topics(self) -> dict[str, list[int]]:
        found = self._admin.list_topics(timeout=TIMEOUT).topics
        return {name: sorted(topic.partitions) for name, topic in found.items() if topic.error is None}

    def _offsets(self, wanted: Mapping[tuple[str, int], Any]) -> dict[tuple[str, int], int]:
        """Return offsets by topic and partition, as a reader of committed records sees them."""
        if not wanted:
            return {}
        asked = {TopicPartition(name, partition): spec for (name, partition), spec in wanted.items()}
        answers = self._admin.list_offsets(
            asked, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=TIMEOUT
        )
        return {(place.topic, place.partition): answer.result().offset for place, answer in answers.items()}

    def _create(self, stream: str) -> None:
        topic = NewTopic(stream, self._place.partitions, self._replication)
        try:
            for created in self._admin.create_topics([topic], request_timeout=TIMEOUT).values():
                created.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise

    def _send(self, stream: str, records: Sequence[bytes], keys: Sequence[bytes] | None) -> dict[int, Appended]:
        if self._producer is None:
            self._producer = self._made(Producer, {**WRITING, "message.timeout.ms": int(TIMEOUT * 1_000)})
        sent: list[tuple[int, int, int]] = []
        failed: list[str] = []

        def delivered(error: KafkaError | None, message: Any) -> None:
            if error is not None:
                failed.append(error.str())
            else:
                sent.append((message.partition(), message.offset(), message.timestamp()[1] * MILLISECOND))

        stamp = int(self._clock.now()) // MILLISECOND
        for index, data in enumerate(records):
            place = {"partition": 0} if keys is None else {"key": keys[index]}
            while True:
                try:
                    self._producer.produce(stream, data, timestamp=stamp, on_delivery=delivered, **place)
                    break
                except BufferError:
                    self._producer.poll(TIMEOUT)
        if self._producer.flush(2 * TIMEOUT) or failed:
            raise self._unavailable(stream, failed[0] if failed else "no acknowledgement")
        return {
            partition: Appended(
                min(o for p, o, _ in sent if p == partition),
                max(o for p, o, _ in sent if p == partition) + 1,
                max(a for p, _, a in sent if p == partition),
            )
            for partition in sorted({p for p, _, _ in sent})
        }


class _Reader:
    """Follow some partitions of a topic with one consumer, which fetches ahead while its caller works."""

    def __init__(self, consumer: Any, stream: str) -> None:
        self.consumer, self.stream = consumer, stream
        self.expected: dict[int, int] = {}
        self.reached: dict[int, int] = {}
        self.ended: set[int] = set()

    def place(self, positions: Mapping[int, int]) -> bool:
        """Go to these positions, if the consumer does not stand there already; tell whether it had to move."""
        if dict(positions) == self.expected:
            return False
        self.consumer.assign([TopicPartition(self.stream, p, at) for p, at in sorted(positions.items())])
        self.expected, self.reached, self.ended = dict(positions), dict(positions), set()
        return True

    def take(self, ends: Mapping[int, int], limit: int, size: int) -> list[Any]:
        """Return records until the broker says that there are no more, or `limit` of them, or `size` bytes.

        `ends` tell that there is more than what was read; not that there is none, for some brokers count batches.

        Raises:
            KafkaException: nothing came for `TIMEOUT` seconds although there is something.
        """
        found: list[Any] = []
        held, since = 0, time.monotonic()
        while len(found) < limit and held < size and (lacking := self._lacking(ends)):
            brought = self.consumer.consume(1 if size - held < CHUNK_BYTES else min(CHUNK, limit - len(found)), 0.1)
            for message in brought:
                held += self._note(message, ends)
            found += [message for message in brought if message.error() is None]
            if brought:
                since = time.monotonic()
            elif all(self.reached[p] > ends[p] for p in lacking) and time.monotonic() - since > BEYOND_SECONDS:
                break
            elif time.monotonic() - since > TIMEOUT:
                self.expected = {}
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "the records that are there did not come"))
        return found

    def _lacking(self, ends: Mapping[int, int]) -> list[int]:
        return [p for p, end in ends.items() if self.reached[p] < end or p not in self.ended]

    def _note(self, message: Any, ends: Mapping[int, int]) -> int:
        """Remember how far a partition was read; return the record's bytes."""
        partition, error = message.partition(), message.error()
        if error is None:
            self.expected[partition] = self.reached[partition] = message.offset() + 1
            self.ended.discard(partition)
            return len(message.value() or b"")
        if error.code() == KafkaError._PARTITION_EOF:
            self.reached[partition] = message.offset()
            self.ended.add(partition)
        elif self.reached.get(partition, 0) > ends.get(partition, 0):
            self.ended.add(partition)  # a position beyond the end, which the broker refuses
        else:
            self.expected = {}
            raise KafkaException(error)
        return 0


class _Member:
    """Hold a place in a consumer group; it fetches nothing."""

    def __init__(self, consumer: Any, streams: Sequence[str], shown: str) -> None:
        self._consumer, self._streams, self._shown = consumer, tuple(streams), shown
        consumer.subscribe(list(streams), on_assign=self._rest)

    def assigned(self) -> Mapping[str, frozenset[int]]:
        """Return the partitions that the group has given to this member."""
        try:
            while (event := self._consumer.poll(0)) is not None:
                if event.error().code() != KafkaError._PARTITION_EOF and not event.error().retriable():
                    raise KafkaException(event.error())
            held = self._consumer.assignment()
        except KafkaException as error:
            raise Unavailable(
                "the consumer group cannot be reached",
                where=self._shown,
                got=error.args[0].str(),
                next_step="check the brokers; the same call may succeed later",
            ) from error
        return {name: frozenset(p.partition for p in held if p.topic == name) for name in self._streams}

    def close(self) -> None:
        """Leave the group, so that others take over at once."""
        self._consumer.close()

    def _rest(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        consumer.assign(partitions)
        consumer.pause(partitions)


def _stamped(records: Sequence[Any], cursors: Mapping[int, Cursor], now: int, latest: int) -> Iterator[Message]:
    """Give each record its arrival: its stamp, or that of the one before it where that is newer."""
    floors = {partition: cursor.arrival for partition, cursor in cursors.items()}
    for record in records:
        partition, offset = record.partition(), record.offset()
        floor, (kind, milliseconds) = floors[partition], record.timestamp()
        stamp, data = milliseconds * MILLISECOND, record.value()
        problem = None if data is not None else "a record without a value (a tombstone)"
        if kind == TIMESTAMP_NOT_AVAILABLE:
            stamp, problem = floor, problem or "a record without a timestamp"
        if stamp > latest:
            problem = f"stamped {Instant(stamp).isoformat()}, ahead of this host's clock"
            yield Message(offset, max(floor, now), data or b"", partition, problem, floor)
            continue
        floors[partition] = max(floor, stamp)
        yield Message(offset, floors[partition], data or b"", partition, problem)


def _client_config(place: Location, rest: Mapping[str, str]) -> dict[str, Any]:
    taken = [name for name in rest if OURS.fullmatch(name)]
    if taken:
        raise BadUrl(
            "an option of the Kafka client that Headrace sets itself",
            where=f"[stores] streams, {place.shown}",
            got=taken[0],
            expected="partitions, replication, group, ahead, or a property of librdkafka for the connection",
            next_step="leave it out",
        )
    return {"bootstrap.servers": place.netloc, "log_level": 0, **rest}
