"""Keep what could not become a reveal as dead letters: reason, payload as received, place, arrival, state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from headrace.core.identity import content_hash
from headrace.core.version import __version__
from headrace.sources.definition import SourceDefinition

if TYPE_CHECKING:
    import pyarrow as pa

OPEN, REPLAYED, DROPPED = "open", "replayed", "dropped"
CELLS = "cells"  # the format of a file's row


def letters_table(source: str) -> str:
    """Return the name of the table that holds a source's dead letters."""
    return f"dead_letters_{source.lower()}"


def letter_schema() -> pa.Schema:
    """Return the Arrow schema of dead letters.

    `id` follows from the place (of a file's row: from place and payload), so that a letter is there once however often
    it is read. `payload` is what was received, in `format` (a codec's name; "cells": a file's row as JSON). `stream`,
    `partition`, `offset` and `row` are null for files. `arrival` is null where it was not observed. `recorded` and
    `changed` are microseconds UTC. `code` and `definition` are what refused it.
    """
    import pyarrow as pa

    texts = (
        "id",
        "source",
        "status",
        "reason",
        "format",
        "place",
        "stream",
        "offset",
        "code",
        "definition",
        "actor",
        "why",
    )
    numbers = ("partition", "row", "arrival", "recorded", "changed")
    return pa.schema(
        [*((name, pa.string()) for name in texts), *((name, pa.int64()) for name in numbers), ("payload", pa.binary())]
    )


def letters_of(definition: SourceDefinition, refused: pa.Table, *, stream: str | None, now: int) -> pa.Table:
    """Return refused rows (`values.refusal_schema`) as open dead letters."""
    import pyarrow as pa

    common = {"source": definition.name, "status": OPEN, "stream": stream, "recorded": now, "changed": now}
    common |= {"code": __version__, "definition": definition.hash, "actor": "headrace", "why": ""}
    found = []
    for row in refused.to_pylist():
        kept = {name: row[name] for name in ("reason", "format", "offset", "partition", "row", "arrival")}
        found.append(
            common | kept | {"id": _identity(definition, row, stream), "place": row["position"], "payload": row["raw"]}
        )
    return pa.Table.from_pylist(found, letter_schema())


def shown_reasons(letters: pa.Table, limit: int = 3) -> list[str]:
    """Return the most frequent reasons among letters, with their numbers."""
    counted = Counter(letters["reason"].to_pylist()).most_common(limit)
    return [f"{reason} ({count})" for reason, count in counted]


def _identity(definition: SourceDefinition, row: Mapping[str, Any], stream: str | None) -> str:
    if stream is None:
        place: list[Any] = [row["position"], row["raw"].hex()]
    else:
        place = [stream, row["partition"], row["offset"], row["row"]]
    return content_hash([definition.name, *place])[:16]
