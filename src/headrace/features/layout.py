"""Keep the online store's rows readable when a source's class gains a column: they are written anew in its layout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from headrace.core.errors import ConfigurationError
from headrace.core.identity import canonical
from headrace.features.rows import ABSENT, RowCodec, StoredRow
from headrace.sources.definition import SourceDefinition
from headrace.storage.keyvalue import Transaction

Layout = Sequence[Sequence[str]]  # name, type and moment of each column, in their order


def layout_of(definition: SourceDefinition) -> bytes:
    """Return in which columns a source's rows are stored, as bytes."""
    return canonical([[c.name, c.dtype, str(definition.moments[c])] for c in definition.columns])


def refuse_other_layout(definition: SourceDefinition, held: bytes, *, grows: bool) -> None:
    """Raise unless rows stored in a layout can be read: as they are, or with `grows` after `rewrite_rows`.

    Raises:
        ConfigurationError: a column was removed, moved in time or retyped, or one came that may not be null.
    """
    if held == layout_of(definition):
        return
    stored: Layout = json.loads(held)
    now = {c.name: [c.name, c.dtype, str(definition.moments[c])] for c in definition.columns}
    wrong = [old for old in stored if now.get(old[0]) != list(old)]
    came = [c for c in definition.columns if c.name not in {old[0] for old in stored}]
    needed = [c for c in came if not c.nullable]
    if not wrong and not needed and grows:
        return
    name, known = definition.name, {old[0]: old for old in stored}
    changed = [old[0] for old in wrong] or [c.name for c in needed] or [c.name for c in came]
    one = changed[0]
    simple = not wrong and not needed
    raise ConfigurationError(
        f"{name} was stored with other columns than it declares now",
        where=definition.location,
        got=_told(now.get(one)) if one in now else f"no column {one}",
        expected=_told(known.get(one)) if one in known else f"{one} declared as | None, or not at all",
        next_step="headrace run, which adds the column"
        if simple
        else "take the change back, or begin a new state folder: headrace run … --state NEW",
    )


def rewrite_rows(
    transaction: Transaction, database: str, prefix: bytes, definition: SourceDefinition, held: bytes
) -> int:
    """Write a source's rows anew in the layout that its class has now; return how many there were."""
    stored: Layout = json.loads(held)
    old = RowCodec(definition.name, [dtype for _, dtype, _ in stored])
    new = RowCodec(definition.name, [c.dtype for c in definition.columns])
    came_from = {name: place for place, (name, _, _) in enumerate(stored)}
    places = [came_from.get(c.name) for c in definition.columns]
    rows = list(transaction.items(database, prefix))
    for key, blob in rows:
        row = old.decode(blob)
        transaction.put(
            database, key, new.encode(StoredRow(*(_spread(cells, places, none) for cells, none in _cells(row))))
        )
    return len(rows)


def _cells(row: StoredRow) -> tuple[tuple[list[Any], Any], ...]:
    return (row.arrivals, ABSENT), (row.contents, 0), (row.values, None)


def _spread(cells: Sequence[Any], places: Sequence[int | None], absent: Any) -> list[Any]:
    return [absent if place is None else cells[place] for place in places]


def _told(column: Sequence[str] | None) -> str:
    return "nothing" if column is None else f"{column[0]}: {column[1]}, known at {column[2]}"
