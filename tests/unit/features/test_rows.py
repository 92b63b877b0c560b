"""Test rows against the rule cell by cell, and their bytes against a layout written down here."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from headrace.features.rows import ABSENT, RowCodec, StoredRow
from headrace.sources.record import Reveal

DTYPES = ("str", "int", "bool", "float")
INTEGERS = st.integers(-(2**62), 2**62)
CELLS = st.tuples(
    *[st.none() | kind for kind in (st.text(max_size=3), INTEGERS, st.booleans(), st.floats(allow_nan=False))]
)
PLACES = st.sets(st.integers(0, 3), min_size=1).map(lambda places: tuple(sorted(places))) | st.just((0, 1, 2, 3))


@st.composite
def reveals(draw: st.DrawFn) -> Reveal:
    """Draw a reveal of some or all columns; few arrivals and contents, so that many are equal."""
    places, cells = draw(PLACES), draw(CELLS)
    return Reveal(draw(st.integers(0, 2)), b"row", places, tuple(cells[p] for p in places), draw(st.integers(0, 1)))


@given(st.lists(reveals(), max_size=6))
def test_each_cell_holds_the_newest_reveal_that_states_it(stated: list[Reveal]) -> None:
    codec = RowCodec("Orders", DTYPES)
    row, cells = codec.empty, [(ABSENT, 0, None)] * 4
    for reveal in stated:
        changed, before = row.apply(reveal), list(cells)
        for place, value in zip(reveal.places, reveal.values, strict=True):
            if (reveal.arrival, reveal.content) > cells[place][:2]:
                cells[place] = (reveal.arrival, reveal.content, value)
        assert (changed is None) == (cells == before)
        row = changed or row
        assert list(zip(row.arrivals, row.contents, row.values, strict=True)) == cells
    assert codec.empty == StoredRow([ABSENT] * 4, [0] * 4, [None] * 4)


@given(CELLS)
def test_a_row_has_the_bytes_of_its_layout_and_comes_back(
    cells: tuple[str | None, int | None, bool | None, float | None],
) -> None:
    text, whole, flag, real = cells
    tail, codec = (text or "").encode(), RowCodec("Orders", DTYPES)
    row = StoredRow([1, 2, 3, ABSENT], [4, 5, 6, 0], list(cells))
    blob = codec.encode(row)
    place = 0 if text is None else 100 << 32 | len(tail)
    nulls = bytes(cell is None for cell in cells)
    assert blob[:96] == struct.pack(
        "<8q3qd", 1, 2, 3, ABSENT, 4, 5, 6, 0, place, whole or 0, flag or 0, 0.0 if real is None else real
    )
    assert blob[96:] == nulls + tail
    assert codec.decode(blob) == row
    assert row.values == list(cells)
