"""Which columns a reveal states is kept in bits, however many columns a source has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import headrace as hr
from headrace.core.errors import DefinitionError
from headrace.features.history import History
from headrace.pipelines.reveals import append_reveals, read_source, reveals_table
from headrace.sources.definition import MOST_COLUMNS, SourceDefinition, definition_of
from headrace.sources.plan import reveal_of
from headrace.sources.record import ARRIVAL, RevealBatch
from headrace.sources.run import batch_of
from headrace.sources.stated import BITS, STATED, Stated, stated_names
from headrace.storage.tables import open_tables
from headrace.validation.release import released
from headrace.validation.run import quarantined_row

PLACES = st.sets(st.integers(0, 199), max_size=9)


def wide(columns: int) -> SourceDefinition:
    """Return a source Wide of a row id, an event time and numbers c2, c3, …"""
    names = [f"c{i}" for i in range(2, columns)]
    body: dict[str, Any] = {"__annotations__": {"name": hr.Column[str], "at": hr.Column[hr.Instant]}}
    body |= {"__module__": __name__, "name": hr.row_id(), "at": hr.event_time()}
    for name in names:
        body["__annotations__"][name] = hr.Column[int | None]
        body[name] = hr.column()
    return definition_of(type("Wide", (hr.Source,), body))


def batch(source: SourceDefinition, *events: dict[str, Any]) -> RevealBatch:
    reveals = [r for i, e in enumerate(events) for r in reveal_of(source, {"name": "a", "at": 0, ARRIVAL: i} | e)]
    return batch_of(source, reveals)


@given(st.lists(PLACES, min_size=1, max_size=9), PLACES, st.integers(1, 200))
def test_bits_say_what_sets_say(stated: list[set[int]], asked: set[int], columns: int) -> None:
    kept = [{p for p in places if p < columns} for places in stated]
    wanted = {p for p in asked if p < columns}
    found = Stated.of_groups(kept, np.arange(len(kept)), columns)
    for place in range(columns):
        assert found.says(place).tolist() == [place in places for places in kept]
        assert found.always(place) == all(place in places for places in kept)
    assert found.says_all(wanted).tolist() == [wanted <= places for places in kept]
    assert found.says_any(wanted).tolist() == [bool(wanted & places) for places in kept]
    assert found.masks() == [sum(1 << p for p in places) for places in kept]
    order = np.arange(len(kept))[::-1]
    assert found.take(order).masks() == found.masks()[::-1]
    alike = [[a == b for b in found.masks()] for a in found.masks()]
    assert (found.codes()[:, None] == found.codes()[None, :]).tolist() == alike
    table = pa.Table.from_arrays(found.arrays(), names=stated_names(columns))
    assert Stated.of(table).masks() == found.masks()
    alike_all = Stated.of(pa.concat_tables([table.slice(0, 1)] * 3))
    assert (
        alike_all.masks() == found.masks()[:1] * 3 and alike_all.take(np.array([2, 0])).masks() == found.masks()[:1] * 2
    )
    assert [array.to_pylist() for array in alike_all.arrays()] == [
        column.to_pylist()[:1] * 3 for column in table.columns
    ]
    assert {word.strides for word in alike_all.words} == {(0,)}  # no memory for each
    back = found.moved([(p, columns - 1 - p) for p in range(columns)], columns)
    assert back.masks() == [sum(1 << columns - 1 - p for p in places) for places in kept]


def test_reveals_of_many_columns_come_back_as_they_were() -> None:
    source = wide(200)
    found = batch(source, {"c2": 1, "c61": 2, "c62": 3, "c199": None}, {"c150": 7})
    first, second = found.reveals()
    assert [source.columns[p].name for p in first.places] == ["name", "at", "c2", "c61", "c62", "c199"]
    assert (first.values[2:], second.values[2:]) == ((1, 2, 3, None), (7,))
    assert list(batch_of(source, [second, first]).reveals()) == [first, second]
    row = quarantined_row(source, first, "here", "a reason", 5)
    assert list(released(source, [row]).reveals()) == [first]


def test_a_version_of_a_wide_row_has_each_columns_newest_value() -> None:
    source = wide(130)
    found = batch(source, {"c100": 1, "c70": 5}, {"c100": 2, "c129": 4}, {"c70": None})
    history = History.build(source, found.table, 10)
    cells = {name: history.cells(source.by_name[name]).to_pylist() for name in ("c70", "c100", "c129", "c2")}
    assert cells == {"c70": [5, 5, None], "c100": [1, 2, 2], "c129": [None, 4, 4], "c2": [None] * 3}


def test_a_table_keeps_its_reveals_when_its_source_outgrows_an_integer(tmp_path: Path) -> None:
    narrow, grown = wide(BITS), wide(BITS + 40)
    tables = open_tables(f"delta:{tmp_path / 'tables'}")
    old, new = (
        batch(narrow, {"c2": 1, f"c{BITS - 1}": 2}),
        batch(grown, {"c3": 3, f"c{BITS}": 4, f"c{BITS + 39}": 5}),
    )
    append_reveals(tables, narrow, old.table)
    before = read_source(tables, grown)
    assert before.schema.names == new.table.schema.names
    append_reveals(tables, grown, new.table)
    described = tables.describe(reveals_table("Wide"))
    assert described is not None
    assert [f.name for f in described.columns if f.name.startswith(STATED)] == stated_names(BITS + 40)
    told = [(r.places, r.values) for r in RevealBatch(grown, read_source(tables, grown)).reveals()]
    assert sorted(told) == sorted((r.places, r.values) for b in (old, new) for r in b.reveals())


def test_a_source_of_ten_thousand_columns_is_read_and_one_of_more_is_refused() -> None:
    source = wide(MOST_COLUMNS)
    (found,) = batch(source, {"c9999": 1}).reveals()
    assert (found.places, found.values[2:]) == ((0, 1, 9_999), (1,))
    with pytest.raises(DefinitionError, match="more columns than a source can have") as caught:
        wide(MOST_COLUMNS + 1)
    assert caught.value.got == str(MOST_COLUMNS + 1)
