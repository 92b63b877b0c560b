"""Check the promises of `headrace.storage.tables.protocol` on any table store."""

from __future__ import annotations

import datetime as dt
import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.errors import (
    ConfigurationError,
    DataError,
    DefinitionError,
    SchemaConflict,
    Unavailable,
    UnknownColumn,
)
from headrace.core.failpoints import armed
from headrace.core.time import DAY
from headrace.storage.tables import Commit, Position, Tables, open_tables

SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        ("name", pa.string()),
        ("score", pa.float64()),
        ("at", pa.timestamp("us", "UTC")),
        ("day", pa.date32()),
        ("raw", pa.binary()),
        ("good", pa.bool_()),
        ("tags", pa.list_(pa.field("element", pa.string()))),
    ]
)
ROWS = st.fixed_dictionaries(
    {
        "id": st.integers(-(2**63), 2**63 - 1),
        "name": st.none()
        | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
        | st.sampled_from(["'", '"', "\\"]),
        "score": st.none() | st.floats(),
        "at": st.none() | st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2200, 1, 1), timezones=st.just(dt.UTC)),
        "day": st.none() | st.dates(),
        "raw": st.none() | st.binary(max_size=4),
        "good": st.none() | st.booleans(),
        "tags": st.none() | st.lists(st.none() | st.just("t"), max_size=2),
    }
)


class TablesContract:
    """Check one table backend; a subclass names its scheme, or overrides `url`."""

    scheme: ClassVar[str]

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        """Return the URL of a store that does not exist yet."""
        return f"{self.scheme}:{tmp_path / 'store'}"

    def opened(self, url: str) -> Tables:
        """Open the store of a URL."""
        return open_tables(url)

    @pytest.fixture
    def store(self, url: str) -> Tables:
        """Return a fresh store."""
        return self.opened(url)

    def test_any_rows_come_back(self, store: Tables, url: str) -> None:
        """Every value bit for bit, nulls too, in the declared types; order aside."""

        @settings(max_examples=15, deadline=None)
        @given(rows=st.lists(ROWS, max_size=4))
        def check(rows: list[dict[str, Any]]) -> None:
            table = pa.Table.from_pylist(rows, SCHEMA)
            version = store.overwrite("t", table).version
            found = self.opened(url).read("t", version=version)
            assert found.schema.types == SCHEMA.types
            assert _bag(found) == _bag(table)

        check()

    def test_each_change_is_a_version(self, store: Tables) -> None:
        """An old version reads as it did; the history names every change."""
        first = store.append("t", _numbers(1, 2)).version
        second = store.append("t", _numbers(3)).version
        third = store.delete("t", [("n", "<", 3)]).version
        assert [_values(store, version=version) for version in (first, second, third)] == [[1, 2], [1, 2, 3], [3]]
        assert _values(store) == [3]
        description = store.describe("t", history=3)
        assert description is not None
        assert [change.version for change in description.history] == [third, second, first]
        assert (description.version, description.rows) == (third, 1)
        for version in (-1, third + 1):
            with pytest.raises(DataError, match="no such version"):
                store.read("t", version=version)

    def test_a_position_is_applied_once(self, store: Tables) -> None:
        """The same or an older position changes nothing, another application's does; it holds for every change."""
        assert store.append("t", _numbers(1), position=Position("flights", 7)).applied
        again = store.append("t", _numbers(1), position=Position("flights", 7))
        assert again == Commit(again.version, applied=False)
        assert not store.append("t", _numbers(1), position=Position("flights", 6)).applied
        assert store.append("t", _numbers(2), position=Position("weather", 1)).applied
        assert not store.delete("t", [("n", "=", 1)], position=Position("flights", 7)).applied
        assert not store.overwrite("t", _numbers(9), position=Position("weather", 1)).applied
        assert _values(store) == [1, 2]
        assert store.delete("t", [("n", "=", 1)], position=Position("flights", 8)).applied
        description = store.describe("t", applications=["flights", "weather", "other"])
        assert description is not None
        assert description.positions == {"flights": 8, "weather": 1, "other": None}

    def test_concurrent_appends_all_land(self, url: str) -> None:
        """Four threads append five times each to a table that none of them created before."""

        def work(number: int) -> None:
            store = self.opened(url)
            for turn in range(5):
                store.append("t", _numbers(10 * number + turn))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        assert _values(self.opened(url)) == [10 * number + turn for number in range(4) for turn in range(5)]

    def test_racing_for_one_position_applies_it_once(self, url: str) -> None:
        """Four threads bring the same position; one is applied, the others learn that it was."""

        def work(_: int) -> bool:
            return self.opened(url).append("t", _numbers(1), position=Position("flights", 1)).applied

        with ThreadPoolExecutor(4) as pool:
            assert sorted(pool.map(work, range(4))) == [False, False, False, True]
        assert _values(self.opened(url)) == [1]

    def test_a_part_is_replaced_in_one_commit(self, store: Tables) -> None:
        """Only rows that satisfy the filter go, and the new ones must satisfy it."""
        rows = pa.table({"day": ["m", "m", "t'"], "n": [1, 2, 3]})
        store.append("t", rows, partition_by=["day"])
        store.overwrite("t", pa.table({"day": ["t'"], "n": [4]}), where=[("day", "=", "t'")])
        assert _values(store) == [1, 2, 4]
        with pytest.raises(DataError, match="outside of what they replace"):
            store.overwrite("t", pa.table({"day": ["w"], "n": [5]}), where=[("day", "=", "m")])
        description = store.describe("t")
        assert description is not None
        assert description.partition_by == ("day",)
        assert _values(store, where=[("day", "=", "m")]) == [1, 2]

    def test_new_nullable_columns_are_taken_in(self, store: Tables) -> None:
        """Old rows have null in them; the order of columns does not matter."""
        store.append("t", pa.table({"n": [1], "s": ["a"]}))
        store.append("t", pa.table({"new": [2.5], "s": ["b"], "n": [2]}))
        found = {row["n"]: (row["s"], row["new"]) for row in store.read("t").to_pylist()}
        assert found == {1: ("a", None), 2: ("b", 2.5)}

    @pytest.mark.parametrize(
        ("rows", "cause"),
        [
            (pa.table({"n": [1]}), "missing columns"),
            (pa.table({"n": ["1"], "s": ["a"]}), "retyped columns"),
            (pa.table({"n": pa.array([1], pa.int32()), "s": ["a"]}), "retyped columns"),
            (
                pa.table(
                    [[1], ["a"], [1]],
                    pa.schema([("n", pa.int64()), ("s", pa.string()), pa.field("x", pa.int64(), False)]),
                ),
                "not nullable",
            ),
            (pa.table({"n": [1], "s": ["a"], "x": pa.array([1], pa.uint64())}), "cannot hold"),
            (pa.table({"n": [1], "s": ["a"], "x": pa.array([1], pa.timestamp("us"))}), "cannot hold"),
        ],
    )
    def test_any_other_change_of_columns_is_refused(self, store: Tables, rows: pa.Table, cause: str) -> None:
        """Nothing is cast and nothing written."""
        store.append("t", pa.table({"n": [1], "s": ["a"]}))
        with pytest.raises(SchemaConflict, match=cause):
            store.append("t", rows)
        with pytest.raises(SchemaConflict, match=cause):
            store.overwrite("t", rows)
        assert _values(store) == [1]

    def test_dictionaries_and_large_types_are_stored_as_values(self, store: Tables) -> None:
        """They meet plain columns without a conflict."""
        store.append("t", pa.table({"n": [1], "s": ["a"]}))
        batch = pa.record_batch({"n": [2], "s": pa.array(["b"]).dictionary_encode()})
        store.append("t", batch)
        store.append("t", pa.table({"n": [3], "s": pa.array(["c"], pa.large_string())}))
        assert sorted(store.read("t").column("s").to_pylist()) == ["a", "b", "c"]

    @pytest.mark.parametrize(
        ("where", "kept"),
        [
            ([("n", "=", 1)], [1]),
            ([("n", "!=", 1)], [2, 3]),
            ([("n", ">", 1), ("n", "<=", 2)], [2]),
            ([("n", "in", [1, 3, 9])], [1, 3]),
            ([("n", "not in", [1])], [2, 3]),
            ([("s", "=", "it's \"\\ --")], [1]),
            ([("s", "!=", "x")], [1]),
            ([("f", "<", -1e-300)], [2]),
            ([("at", ">=", dt.datetime(2013, 7, 1, tzinfo=dt.UTC))], [3]),
            ([("at", "<", 1_000_000)], [1]),
            ([("d", "=", dt.date(2013, 7, 1))], [2]),
            ([("raw", "=", b"\x00'")], [1]),
            ([("ok", "=", False)], [2]),
        ],
    )
    def test_filters_mean_the_same_for_reading_and_deleting(self, store: Tables, where: Any, kept: list[int]) -> None:
        """For each type of column; null satisfies none of them; text is data, never SQL."""
        midnight = dt.datetime(2013, 7, 1, tzinfo=dt.UTC)
        rows = {
            "n": [1, 2, 3, None],
            "s": ["it's \"\\ --", "x", None, None],
            "f": [0.0, -1e300, None, None],
            "at": pa.array([dt.datetime(1970, 1, 1, tzinfo=dt.UTC), None, midnight, None], pa.timestamp("us", "UTC")),
            "d": [None, dt.date(2013, 7, 1), None, None],
            "raw": [b"\x00'", b"", None, None],
            "ok": [True, False, None, None],
        }
        store.append("t", pa.table(rows))
        assert _values(store, where=where) == kept
        store.delete("t", where)
        rest = [value for value in store.read("t").column("n").to_pylist() if value is not None]
        assert sorted(rest) == [value for value in (1, 2, 3) if value not in kept]
        assert store.read("t").num_rows == 4 - len(kept)

    @pytest.mark.parametrize(
        "item",
        [
            ("n", "like", 1),
            ("n", "=", "one"),
            ("n", "=", None),
            ("n", "in", []),
            ("n", "=", 2**70),
            ("f", "<", math.nan),
        ],
    )
    def test_a_filter_that_does_not_fit_is_refused(self, store: Tables, item: Any) -> None:
        """As a DefinitionError that names the column, for reading and for deleting."""
        store.append("t", pa.table({"n": [1], "f": [1.0]}))
        with pytest.raises(DefinitionError, match="does not fit its column"):
            store.read("t", where=[item])
        with pytest.raises(DefinitionError, match="does not fit its column"):
            store.delete("t", [item])

    def test_what_does_not_exist_is_named(self, store: Tables) -> None:
        """Table, column, filter column and partition column, with what was meant; deleting needs a filter."""
        assert store.describe("absent") is None
        store.append("flights", pa.table({"carrier": ["UA"]}))
        with pytest.raises(DataError) as no_table:
            store.read("flight")
        assert no_table.value.next_step == "did you mean flights?"
        with pytest.raises(UnknownColumn) as no_column:
            store.read("flights", columns=["carier"])
        assert no_column.value.next_step == "did you mean carrier?"
        with pytest.raises(UnknownColumn):
            store.read("flights", where=[("x", "=", 1)])
        with pytest.raises(UnknownColumn):
            store.append("other", pa.table({"n": [1]}), partition_by=["day"])
        with pytest.raises(DataError, match="no such table"):
            store.delete("flight", [("carrier", "=", "UA")])
        with pytest.raises(DefinitionError, match="without a filter"):
            store.delete("flights", [])

    def test_reading_selects_columns_in_order(self, store: Tables) -> None:
        """A filter may use a column that is not read."""
        store.append("t", pa.table({"a": [1, 2], "b": ["x", "y"], "c": [0.5, 1.5]}))
        found = store.read("t", columns=["c", "a"], where=[("b", "=", "y")])
        assert found.to_pydict() == {"c": [1.5], "a": [2]}

    def test_a_scan_yields_what_reading_returns(self, store: Tables) -> None:
        """In its order, at its version, with its columns, filters and errors, which come before the first row."""
        for number in range(4):
            before = store.append("t", pa.table({"n": [number, number + 10], "s": [str(number), None]})).version
        store.append("t", pa.table({"n": [99], "s": ["late"]}))
        asked: list[dict[str, Any]] = [
            {},
            {"version": before},
            {"columns": ["s"], "where": [("n", ">=", 2)]},
            {"where": [("n", ">", 500)]},
        ]
        for options in asked:
            expected = store.read("t", **options)
            assert pa.concat_tables([expected.slice(0, 0), *store.scan("t", **options)]).equals(expected)
        with pytest.raises(DataError, match="no such table"):
            store.scan("absent")
        with pytest.raises(UnknownColumn):
            store.scan("t", columns=["m"])
        with pytest.raises(DataError, match="no such version"):
            store.scan("t", version=500)

    def test_a_pinned_version_is_read_column_by_column(self, store: Tables) -> None:
        """Every time the same rows in the same order, whatever is written meanwhile."""
        for number in range(5):
            rows = {"n": [number, number + 10], "s": [str(number), None], "x": [0.5, 1.5]}
            version = store.append("t", pa.table(rows)).version
        expected, pinned = store.read("t", version=version), store.pin("t", version=version)
        before = pinned.read(["n"])
        store.delete("t", [("n", "<", 3)])
        store.append("t", pa.table({"n": [99], "s": ["late"], "x": [2.5], "new": [1]}))
        store.compact("t", retain=7 * DAY)
        assert (pinned.names, pinned.rows) == (("n", "s", "x"), 10)
        assert pinned.files >= 1
        found = pa.table({name: pinned.read([name])[name] for name in pinned.names})
        assert found.equals(expected)
        assert pinned.read(["x", "n"]).equals(expected.select(["x", "n"])) and before.equals(found.select(["n"]))
        newest = store.pin("t")
        assert newest.read(["new", "n"]).sort_by("n").equals(store.read("t", columns=["new", "n"]).sort_by("n"))
        told = [(name, count) for pin in (pinned, newest) for name, count in pin.nulls.items()]
        assert {("n", 0), ("s", 5)} <= {*told}
        counted = {name: newest.read([name])[name].null_count for name in newest.names}
        assert {**newest.nulls}.items() <= counted.items()
        with pytest.raises(DataError, match="no such table"):
            store.pin("absent")
        with pytest.raises(DataError, match="no such version"):
            store.pin("t", version=500)
        with pytest.raises(UnknownColumn):
            pinned.read(["new"])

    def test_a_scan_since_a_version_yields_what_came_later(self, store: Tables) -> None:
        """At least that: rows that were written anew come again, and all where the version is not known any more."""
        versions = [store.append("t", pa.table({"n": [i, i + 10]})).version for i in range(5)]

        def numbers(since: int, version: int | None = None) -> list[int]:
            return sorted(n for part in store.scan("t", since=since, version=version) for n in part["n"].to_pylist())

        assert numbers(0) == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
        assert numbers(versions[2]) == [3, 4, 13, 14]
        assert numbers(versions[1], versions[3]) == [2, 3, 12, 13]
        assert numbers(versions[4]) == numbers(versions[4], versions[1]) == []
        assert numbers(versions[4] + 100) == numbers(0)
        store.delete("t", [("n", "=", 1)])
        assert numbers(versions[4]) in ([], [11])
        store.append("t", pa.table({"n": [7]}))
        assert {7} <= {*numbers(versions[2])} <= {3, 4, 7, 11, 13, 14}

    def test_compacting_changes_no_row(self, store: Tables) -> None:
        """Positions stay committed, and with a retention nothing that is in use goes."""
        for number in range(5):
            store.append("t", _numbers(number), position=Position("s", number))
        before = store.append("t", _numbers(9)).version
        assert store.compact("t", retain=7 * DAY) == 0
        assert _values(store, version=before) == _values(store) == [0, 1, 2, 3, 4, 9]
        assert store.compact("t", retain=0) > 0
        assert _values(store) == [0, 1, 2, 3, 4, 9]
        assert not store.append("t", _numbers(4), position=Position("s", 4)).applied

    def test_clustering_changes_no_row(self, store: Tables) -> None:
        """Nor does doing it again; an unknown column is an error."""
        for number in range(5):
            store.append("t", _numbers(number, 9 - number))
        before = store.append("t", _numbers(7)).version
        for _ in range(2):
            assert store.compact("t", retain=40 * DAY, cluster_by=["n"]) == 0
            assert _values(store, version=before) == _values(store)
        with pytest.raises(UnknownColumn):
            store.compact("t", retain=DAY, cluster_by=["m"])

    def test_a_failing_disk_is_unavailable_and_writes_nothing(self, store: Tables) -> None:
        """The error is typed and retryable, the next try succeeds."""
        store.append("t", _numbers(1))
        with armed("tables.before_commit:raise"), pytest.raises(Unavailable):
            store.append("t", _numbers(2))
        assert _values(store) == [1]
        store.append("t", _numbers(2))
        assert _values(store) == [1, 2]

    @pytest.mark.parametrize("name", ["", "..", "a/b", "/etc", ".hidden", "a\0b"])
    def test_a_name_stays_inside(self, store: Tables, name: str) -> None:
        """No name reaches outside the store."""
        with pytest.raises((ConfigurationError, DefinitionError)):
            store.append(name, _numbers(1))


def _numbers(*numbers: int) -> pa.Table:
    return pa.table({"n": numbers})


def _values(store: Tables, **choice: Any) -> list[int]:
    return sorted(store.read("t", **choice).column("n").to_pylist())


def _bag(table: pa.Table) -> Counter[str]:
    """Count rows by their exact text: repr tells -0.0 from 0.0 and makes NaN equal to itself."""
    return Counter(repr(row) for row in table.to_pylist())
