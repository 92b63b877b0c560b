"""Many rows read at once are what each read alone is, and a text's cache answers only for ids that stand for ever."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import headrace as hr
from headrace.core.errors import Corrupt, DataError
from headrace.core.identity import encode_key
from headrace.core.time import HOUR
from headrace.features.definition import FeatureLike
from headrace.features.events import integers_behind
from headrace.features.online import OnlineFeatures
from headrace.features.plan import FeaturePlan, plan_features
from headrace.features.record import NO_KEY, NOT_FOUND, NULL, OK
from headrace.features.stream import DATABASE, StreamPath
from headrace.sources.definition import definition_of
from headrace.sources.plan import reveal_of
from headrace.storage.keyvalue import KeyValue, open_keyvalue


class Rides(hr.Source):
    ride: hr.Column[int] = hr.row_id()
    at: hr.Column[hr.Instant] = hr.event_time()
    driver: hr.Column[str | None] = hr.entity()
    area: hr.Column[int | None] = hr.entity()
    fare: hr.Column[float | None] = hr.column()
    note: hr.Column[str | None] = hr.column()


class Driver(hr.FeatureGroup, of=Rides, entity=Rides.driver):
    fares = hr.sum(Rides.fare).over("6h", "900h", fill=0)
    shifted = hr.max(Rides.fare).over("3h", offset="2h")
    last = hr.latest(Rides.fare, Rides.note)


class Area(hr.FeatureGroup, of=Rides, entity=(Rides.area, Rides.driver)):
    rides = hr.count().over("300h")
    median = hr.quantile(Rides.fare, 0.5).over("300h")


class Place(hr.FeatureGroup, of=Rides, entity=Rides.area):
    notes = hr.most_frequent(Rides.note).over("90h")


@hr.on_demand(area=Rides.area, fare=Rides.fare)
def doubled(area: int | None, fare: float | None) -> float | None:
    return None if area is None or fare is None else area * fare


@contextmanager
def three_rides() -> Iterator[tuple[FeaturePlan, KeyValue]]:
    """Give a store that holds a ride of each of three drivers, in an area each."""
    plan, source = plan_features([Driver, Place], "test"), definition_of(Rides)
    path = StreamPath([plan])
    with open_keyvalue("memory:", databases=[DATABASE]) as store:
        with store.write() as transaction:
            access = transaction.access(DATABASE)
            for i, driver in enumerate("abc"):
                ride = {"ride": i, "at": i * HOUR, "driver": driver, "area": i, "fare": 1.0 + i, "note": "n"}
                for reveal in reveal_of(source, ride):
                    path.apply(access, "Rides", reveal)
        yield plan, store


@pytest.mark.parametrize("features", [[Driver, Area, Place], [Driver, doubled, Rides.area, Rides.note]])
def test_many_rows_at_once_are_each_row_alone(features: list[FeatureLike]) -> None:
    """One key has so many events that its windows need blocks; keys are null, unknown and there twice."""
    plan, source = plan_features(features, "test"), definition_of(Rides)
    path, r = StreamPath([plan]), np.random.default_rng(3)
    with open_keyvalue("memory:", databases=[DATABASE]) as store:
        with store.write() as transaction:
            access = transaction.access(DATABASE)
            for i in range(700):
                ride = {
                    "ride": i,
                    "at": i * HOUR,
                    "driver": "ab"[i % 9 == 0],
                    "area": i % 3,
                    "fare": float(r.integers(9)),
                }
                for reveal in reveal_of(source, ride | {"note": [None, "x", "a note of more words"][i % 3]}):
                    path.apply(access, "Rides", reveal)
        cells: list[list[Any]] = [
            ["a", 0, 1.0, "n"],
            ["b", 1, None, None],
            [None, 1, 2.0, "n"],
            ["zz", None, 1.0, ""],
            ["a", 0, 3.0, "n"],
        ]
        named = dict(zip(("driver", "area", "fare", "note"), range(4), strict=True))
        rows = [[row[named[c.name]] for c in plan.row] for row in cells]
        with store.read() as snapshot:
            get, one, many = snapshot.getter(DATABASE), OnlineFeatures(plan), OnlineFeatures(plan)
            for asked in (rows, rows[:1], [], rows):
                found = many.read_many(get, asked, 700 * HOUR)
                assert found.words.shape == found.status.shape == (len(asked), len(plan.columns))
                for i, row in enumerate(asked):
                    alone = one.read(get, row, 700 * HOUR)
                    assert found.words[i].tolist() == alone.words.tolist()
                    assert found.status[i].tolist() == alone.status.tolist()
                    assert [column[i] for column in found.texts] == alone.texts
    assert {OK, NULL} <= set(found.status.ravel().tolist()) <= {OK, NULL, NO_KEY, NOT_FOUND}


@given(
    st.lists(st.integers() | st.integers(-(2**63), 2**63 - 1), max_size=40),
    st.sampled_from([[b"ab"], [b"ab", b"cd", b"\0\0"]]),
)
def test_keys_of_integers_are_made_as_one_by_one(values: list[int], prefixes: list[bytes]) -> None:
    found = integers_behind(prefixes, values)
    fits = all(-(2**63) <= value < 2**63 for value in values)
    assert (found is None) == (not values or not fits)
    if found is not None:
        assert found == [prefix + (encode_key([value]) or b"") for value in values for prefix in prefixes]
    assert integers_behind(prefixes, [*values, True]) is None
    assert integers_behind(prefixes, [*values, None]) is None


@pytest.mark.parametrize("area", [None, 7, 2**64])
def test_many_integer_keys_are_read_as_each_alone(area: int | None) -> None:
    """Beside a key that is null, and beside one that no integer column holds."""
    plan, source = plan_features([Place], "test"), definition_of(Rides)
    path = StreamPath([plan])
    rows: list[list[Any]] = [[i] for i in range(40)] + [[area]]
    with open_keyvalue("memory:", databases=[DATABASE]) as store:
        with store.write() as transaction:
            access = transaction.access(DATABASE)
            for i in range(30):
                ride = {"ride": i, "at": i * HOUR, "driver": "a", "area": i, "fare": 1.0, "note": "n"}
                for reveal in reveal_of(source, ride):
                    path.apply(access, "Rides", reveal)
        with store.read() as snapshot:
            get, one, many = snapshot.getter(DATABASE), OnlineFeatures(plan), OnlineFeatures(plan)
            if area == 2**64:
                with pytest.raises(DataError, match="cannot be part of a key"):
                    many.read_many(get, rows, 60 * HOUR)
                return
            found = many.read_many(get, rows, 60 * HOUR)
            for i, row in enumerate(rows):
                assert found.status[i].tolist() == one.read(get, row, 60 * HOUR).status.tolist()
            assert found.texts[0][:30] == ["n"] * 30
            assert found.texts[0][30:] == [None] * 10 + [None if area is None else "n"]


def test_what_was_read_while_looking_for_missing_keys_answers_that_read_alone() -> None:
    """The same rows at another moment, from other bytes, or other rows, are read anew; and the same ones a second time."""
    with three_rides() as (plan, store):
        reader, fresh = OnlineFeatures(plan), OnlineFeatures(plan)
        rows, others = [["a", 0], ["b", 1]], [["c", 2], ["a", 0]]
        with store.read() as snapshot:
            get = snapshot.getter(DATABASE)
            held = {key: get(key) for key in reader.heads([*rows, *others])}
        emptied = dict.fromkeys(held)
        asked = [(held, rows, 9 * HOUR), (held, rows, 5 * HOUR), (held, others, 9 * HOUR), (emptied, rows, 9 * HOUR)]
        different = set()
        for now in asked:
            expected = fresh.read_many(now[0].get, *now[1:])
            different.add(expected.words.tobytes())
            for before in asked:
                assert reader.missing(*before) == []
                for _ in range(2):
                    found = reader.read_many(now[0].get, *now[1:])
                    assert found.words.tolist() == expected.words.tolist()
                    assert found.status.tolist() == expected.status.tolist()
                    assert found.texts == expected.texts
        assert len(different) == len(asked)


@pytest.mark.parametrize("note", ["x", "a note of more words"])
def test_a_text_stands_in_as_it_was_last_read(note: str) -> None:
    """Also one that no number spells, while the store that holds it is away."""
    plan, source = plan_features([Driver], "test"), definition_of(Rides)
    path, reader = StreamPath([plan]), OnlineFeatures(plan, keep=10, keep_for=HOUR)
    row = ["a"]
    with open_keyvalue("memory:", databases=[DATABASE]) as store:
        with store.write() as transaction:
            ride = {"ride": 1, "at": HOUR, "driver": "a", "area": 1, "fare": 1.0, "note": note}
            for reveal in reveal_of(source, ride):
                path.apply(transaction.access(DATABASE), "Rides", reveal)
        with store.read() as snapshot:
            assert reader.read(snapshot.getter(DATABASE), row, 2 * HOUR).texts == [note]
    assert reader.read(None, row, 2 * HOUR).texts == [note]
    assert reader.read(None, row, 9 * HOUR).texts == [None]


def test_a_damaged_head_is_named_and_spoils_no_other_row() -> None:
    """Its length is of no whole words, so what stands behind it where heads are joined would be crooked."""
    with three_rides() as (plan, store):
        reader = OnlineFeatures(plan)
        rows = [["a", 0], ["b", 1], ["c", 2]]
        with store.read() as snapshot:
            get = snapshot.getter(DATABASE)
            expected = [reader.read(get, row, 9 * HOUR).words.tolist() for row in rows]
            (damaged,) = reader.heads(rows[1:2])[:1]

            def crooked(key: bytes) -> bytes | None:
                found = get(key)
                return found[:-3] if found is not None and key == damaged else found

            for asked in (
                lambda: reader.read(crooked, rows[1], 9 * HOUR),
                lambda: reader.read_many(crooked, rows, 9 * HOUR),
            ):
                with pytest.raises(Corrupt) as error:
                    asked()
                assert repr(damaged[:80]) in str(error.value)
            whole = reader.read_many(crooked, [rows[0], rows[2]], 9 * HOUR)
            again = [reader.read(crooked, row, 9 * HOUR).words.tolist() for row in (rows[2], rows[0])]
    assert whole.words.tolist() == [expected[0], expected[2]] == again[::-1]
