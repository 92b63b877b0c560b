"""Whatever store holds the online state, the same reveals leave the same bytes and the same features, read at any moment."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

import headrace as hr
from headrace.core.identity import encode_key
from headrace.features.moment import open_read
from headrace.features.online import OnlineFeatures
from headrace.features.plan import plan_dataset
from headrace.features.stream import DATABASE, StreamPath
from headrace.sources.content import content_of
from headrace.sources.definition import definition_of
from headrace.sources.record import Reveal
from headrace.storage.keyvalue import KeyValue, open_keyvalue
from tests.servers import DynamoServer, RedisServer

MINUTE = 60_000_000
HOUR = 60 * MINUTE


class Taps(hr.Source):
    tap: hr.Column[str] = hr.row_id()
    at: hr.Column[hr.Instant] = hr.event_time()
    card: hr.Column[str] = hr.entity()
    shop: hr.Column[int | None] = hr.entity()
    amount: hr.Column[float | None] = hr.column()
    note: hr.Column[str | None] = hr.column()


class Card(hr.FeatureGroup, of=Taps, entity=Taps.card):
    spent = hr.sum(Taps.amount).over("10m", "6h", "40h")
    mean = hr.mean(Taps.amount).over("6h", "40h")
    taps = hr.count().over("1h", "40h")
    median = hr.quantile(Taps.amount, 0.5).over("3h")
    last = hr.latest(Taps.amount, Taps.note)


class Shop(hr.FeatureGroup, of=Taps, entity=Taps.shop):
    most = hr.max(Taps.amount).over("6h", "40h")
    spread = hr.stddev(Taps.amount, where=Taps.amount > 0).over("40h")


DATASET = hr.Dataset(rows=Taps, at=Taps.at, features=[Card, Shop], label=Taps.amount > 3, mature="1d")
PLAN = plan_dataset(DATASET)
SOURCE = definition_of(Taps)
CARDS, SHOPS = ["hot", "warm", "cold"], [1, 2, None]


LONG = "long " * 20


def draw_log(n: int, seed: int, notes: Sequence[str | None] = (None, "a", "ü", LONG)) -> list[Reveal]:
    """Return reveals in order of arrival over some 60 hours: hot keys, late and moved rows, corrections, nulls, copies."""
    r, found = random.Random(seed), []
    for number in range(n):
        arrival = 100 * HOUR + number * 60 * HOUR // n
        again = number > 10 and r.random() < 0.1
        cells: dict[str, Any] = {
            "tap": f"t{r.randrange(number)}" if again else f"t{number}",
            "at": arrival - r.choice([0, 0, 0, 1, MINUTE, 5 * HOUR]),
            "card": r.choices(CARDS, [90, 9, 1])[0],
            "shop": r.choice(SHOPS),
            "amount": r.choice([None, 0.1, 0.2, 1e16, -1e16, -0.0, round(r.lognormvariate(3, 1), 2)]),
            "note": r.choice(notes),
        }
        stated = {name: value for name, value in cells.items() if name == "tap" or not again or r.random() < 0.6}
        places = tuple(sorted(SOURCE.index[SOURCE.by_name[name]] for name in stated))
        values = tuple(stated[SOURCE.columns[p].name] for p in places)
        row_id = encode_key([cells["tap"]])
        assert row_id is not None
        found.append(Reveal(arrival, row_id, places, values, content_of(places, values)))
    return found


def rows() -> list[list[Any]]:
    """Return a row for each pair of keys, an unknown one, and one without a key."""
    pairs = [(card, shop) for card in (*CARDS, "never", None) for shop in SHOPS]
    cells = [{"card": card, "shop": shop} for card, shop in pairs]
    return [[row.get(c.name) for c in SOURCE.columns] for row in cells]


def apply(store: KeyValue, path: StreamPath, batch: Sequence[Reveal]) -> None:
    """Apply reveals in one transaction."""
    with store.write() as transaction:
        access = transaction.access(DATABASE)
        for reveal in batch:
            path.apply(access, "Taps", reveal)
        path.commit(access, batch[-1].arrival, {"Taps": 1})


def seen(store: KeyValue, reader: OnlineFeatures[Any], wanted: Sequence[Any], t: int) -> tuple[int, list[Any]]:
    """Return the newest applied arrival of one read, and all bits that it gave."""
    with store.read() as snapshot:
        get, moment = open_read(store, snapshot, reader, wanted, None, now=t)
        many, found = reader.read_many(get, wanted, moment), []
        for row in wanted:
            vector = reader.read(get, row, moment)
            found.append((vector.words.tobytes(), vector.status.tobytes(), tuple(vector.texts)))
        texts = list(zip(*many.texts, strict=True)) or [() for _ in wanted]
        assert found == [
            (words.tobytes(), status.tobytes(), text)
            for words, status, text in zip(many.words, many.status, texts, strict=True)
        ]
        return StreamPath.newest(get) or 0, found


def digest_and_reads(url: str, log: Sequence[Reveal], size: int) -> tuple[str, list[Any]]:
    """Apply a log in transactions of `size` with reads in between; return what is stored and what was read."""
    path, reader, found = StreamPath([PLAN]), OnlineFeatures(PLAN), []
    with open_keyvalue(url, databases=[DATABASE]) as store:
        for start in range(0, len(log), size):
            batch = log[start : start + size]
            apply(store, path, batch)
            found.append(seen(store, reader, rows(), batch[-1].arrival + 1))
        return store.digest(), found


@pytest.fixture(scope="module")
def wanted() -> tuple[str, list[Any]]:
    return digest_and_reads("memory:", draw_log(3_000, 1), 500)


@pytest.fixture
def urls(tmp_path: Path, redis: RedisServer, dynamodb: DynamoServer) -> dict[str, str]:
    return {"lmdb": f"lmdb:{tmp_path / 'store'}", "redis": redis.url(), "dynamodb": dynamodb.url(timeout="10s")}


@pytest.mark.parametrize("backend", ["lmdb", "redis"])
def test_equal_reveals_leave_equal_bytes_and_equal_features(
    backend: str, urls: dict[str, str], wanted: tuple[str, list[Any]]
) -> None:
    assert digest_and_reads(urls[backend], draw_log(3_000, 1), 500) == wanted


class Counting:
    """Count the plural reads of a view."""

    def __init__(self, view: Any) -> None:
        self.view, self.asked = view, list[int]()

    def get_many(self, database: str, keys: Iterable[bytes]) -> Any:
        keys = list(keys)
        self.asked.append(len(keys))
        return self.view.get_many(database, keys)


@pytest.mark.parametrize(("events", "trips"), [(90, 2), (1_000, 3), (3_000, 4)])
def test_a_read_asks_as_few_times_as_the_state_allows(
    redis: RedisServer, urls: dict[str, str], events: int, trips: int
) -> None:
    """Heads; then heads and blocks, once for each level; then texts. The next read of a key knows what to ask for."""
    log, reader = draw_log(events, 2, [LONG]), OnlineFeatures(PLAN)
    with open_keyvalue(urls["redis"], databases=[DATABASE]) as store:
        apply(store, StreamPath([PLAN]), log)
        with store.read() as snapshot:
            counting: Any = Counting(snapshot)
            card = [["hot" if c.name == "card" else None for c in SOURCE.columns]]
            open_read(store, counting, reader, card, None, now=log[-1].arrival + 1)
            assert len(counting.asked) == trips
            open_read(store, counting, reader, card, None, now=log[-1].arrival + MINUTE)
            assert len(counting.asked) == trips + 1


def test_short_texts_are_read_with_the_heads(redis: RedisServer, urls: dict[str, str]) -> None:
    log = draw_log(90, 2, ["a", "ü"])
    reader, card = OnlineFeatures(PLAN), [["hot" if c.name == "card" else None for c in SOURCE.columns]]
    with open_keyvalue(urls["redis"], databases=[DATABASE]) as store:
        apply(store, StreamPath([PLAN]), log)
        with store.read() as snapshot:
            counting: Any = Counting(snapshot)
            get, t = open_read(store, counting, reader, card, None, now=log[-1].arrival + 1)
            assert reader.read(get, card[0], t).texts[0] in ("a", "ü")
            assert len(counting.asked) == 1


def test_dynamodb_holds_equal_bytes_and_answers_equally(urls: dict[str, str]) -> None:
    """The same with a shorter log: its stand-in takes its time."""
    log = draw_log(140, 4)
    assert digest_and_reads(urls["dynamodb"], log, 28) == digest_and_reads("memory:", log, 28)


def test_a_read_while_another_writes_is_of_one_moment(redis: RedisServer, urls: dict[str, str]) -> None:
    """Every read under a writer's hands equals the read of a quiet store that has applied exactly as much."""
    log, reader, path = draw_log(3_000, 3), OnlineFeatures(PLAN), StreamPath([PLAN])
    quiet, states = open_keyvalue("memory:", databases=[DATABASE]), {}
    batches = [log[start : start + 40] for start in range(0, len(log), 40)]
    t = log[-1].arrival + 1
    for batch in batches:
        apply(quiet, path, batch)
        states[batch[-1].arrival] = seen(quiet, OnlineFeatures(PLAN), rows(), t)
    done = threading.Event()
    with open_keyvalue(urls["redis"], databases=[DATABASE]) as store:
        apply(store, path, batches[0])

        def write() -> None:
            for batch in batches[1:]:
                apply(store, path, batch)
            done.set()

        writer = threading.Thread(target=write)
        writer.start()
        found = []
        while not done.is_set():
            found.append(seen(store, reader, rows(), t))
        writer.join()
    quiet.close()
    assert len({newest for newest, _ in found}) > 5
    assert all(states[newest] == (newest, bits) for newest, bits in found)
