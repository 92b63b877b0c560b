"""Which version of a table is applied whole: known exactly while nothing below it is missing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.features.stream import DATABASE
from headrace.pipelines.stores import (
    APART,
    applied_floor,
    applied_versions,
    forget_applied,
    note_applied,
    settle_applied,
    suspend_applied,
)
from headrace.storage.keyvalue import KeyValue, open_keyvalue
from headrace.storage.tables import Commit


def note(store: KeyValue, version: int, *, applied: bool = True) -> int | None:
    """Tell that a commit is applied; return the version that is held whole."""
    with store.write() as transaction:
        note_applied(transaction, "Orders", Commit(version, applied=applied))
    with store.read() as snapshot:
        known = applied_versions(snapshot.getter(DATABASE), ["Orders"])
        apart = snapshot.get(DATABASE, APART + b"Orders")
    assert (known is None) == (apart is not None)
    return None if known is None else known["Orders"]


@given(st.permutations(range(1, 9)))
def test_a_version_is_known_when_all_below_it_are_applied(order: list[int]) -> None:
    with open_keyvalue("memory:", databases=[DATABASE]) as store:
        for place, version in enumerate(order, 1):
            done = set(order[:place])
            assert note(store, version) == (place if done == set(range(1, place + 1)) else None)


@given(st.permutations(range(1, 9)), st.sets(st.integers(1, 8)))
def test_what_a_killed_process_had_stored_is_never_taken_for_another_commit(
    order: list[int], taken_up: set[int]
) -> None:
    """The store then tells its newest version, of which nobody may have applied anything yet."""
    with open_keyvalue("memory:", databases=[DATABASE]) as store:
        done: set[int] = set()
        for version in order:
            done.add(version)
            told = max([version, *taken_up]) if version in taken_up else version
            known = note(store, told, applied=told == version)
            assert known is None or set(range(1, known + 1)) <= done


def test_what_is_applied_again_lowers_nothing_and_nothing_is_counted_on_after_it_was_forgotten() -> None:
    with open_keyvalue("memory:", databases=[DATABASE]) as store:
        assert [note(store, version) for version in (1, 2, 1)] == [1, 2, 2]
        assert note(store, 4) is None
        with store.write() as transaction:
            forget_applied(transaction, "Orders")
        assert [note(store, version) for version in (3, 5)] == [None, None]
        with store.write() as transaction:  # the features were brought up to the table, while a stream went on
            settle_applied(transaction, "Orders", 4)
        assert note(store, 6) == 6


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(0, 12), st.integers(1, 9))
def test_what_is_held_below_all_gaps_is_known_whatever_else_is_applied(
    versions: list[int], suspended: int, version: int
) -> None:
    """So what was cut off needs only what came to the table since."""
    with open_keyvalue("memory:", databases=[DATABASE]) as store:
        done: set[int] = set()
        for place, applied in enumerate(versions):
            if place == suspended:
                with store.write() as transaction:
                    suspend_applied(transaction, "Orders")
            done.add(applied)
            known = note(store, applied)
            assert known is None or set(range(1, known + 1)) <= done
        with store.read() as snapshot:
            floor = applied_floor(snapshot.getter(DATABASE), "Orders") or 0
        assert set(range(1, floor + 1)) <= done
        assert suspended < len(versions) or floor + 1 not in done
        with store.write() as transaction:
            settle_applied(transaction, "Orders", version)
        with store.read() as snapshot:
            assert (applied_floor(snapshot.getter(DATABASE), "Orders") or 0) >= version
