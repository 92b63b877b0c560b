"""Look after dead letters: list them, show one, ingest those that can be read now, drop the others."""

from __future__ import annotations

import getpass
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from headrace.core.errors import UsageError, did_you_mean
from headrace.core.failpoints import reach
from headrace.core.settings import SourceSettings
from headrace.core.time import Clock, Instant, SystemClock
from headrace.pipelines.baselines import load_baselines
from headrace.pipelines.gatekeeper import QUARANTINE, Gatekeeper, broken_rows
from headrace.pipelines.ingest import ingest_reveals
from headrace.pipelines.project import Project
from headrace.pipelines.reveals import without_known
from headrace.pipelines.stores import Stores, open_stores
from headrace.pipelines.view import Table, View
from headrace.sources.casts import NaiveTimestamps, cast_text
from headrace.sources.codecs import JsonCodec, codec_of
from headrace.sources.definition import SourceDefinition
from headrace.sources.events import Events
from headrace.sources.jsonlines import LINE
from headrace.sources.letters import CELLS, DROPPED, OPEN, REPLAYED, letter_schema, letters_of, letters_table
from headrace.sources.plan import expand, reveal_of
from headrace.sources.record import ARRIVAL, Reveal
from headrace.sources.run import batch_of
from headrace.sources.values import arrow_type, placing_columns, typed_value, unplaced
from headrace.storage.ledger import Entry
from headrace.storage.tables import Tables
from headrace.storage.tables.protocol import Filter

HIDDEN = "hidden: the source has columns that are pii; --payload shows it, which the ledger records"
REPLAYED_LETTERS = "dead_letters.replayed"
SHOWN = 50  # ids that a ledger record names
MARKED_AT_ONCE = 1_000


def refused_anew(tables: Tables, source: SourceDefinition, refused: pa.Table, *, now: int) -> tuple[pa.Table, pa.Table]:
    """Return a file's refused rows that are no dead letters yet, and the letters that they make."""
    letters = letters_of(source, refused, stream=None, now=now)
    name = letters_table(source.name)
    if letters.num_rows and tables.describe(name) is not None:
        known = tables.read(name, columns=["id"])["id"]
        fresh = pc.invert(pc.is_in(letters["id"], value_set=known.combine_chunks()))
        refused, letters = refused.filter(fresh), letters.filter(fresh)
    return refused, letters


def open_letters(tables: Tables, source: SourceDefinition) -> int:
    """Return how many of a source's dead letters are open."""
    name = letters_table(source.name)
    if tables.describe(name) is None:
        return 0
    return int(tables.read(name, columns=["id"], where=[("status", "=", OPEN)]).num_rows)


def list_letters(project: Project, source: str | None, *, status: str, limit: int, state: str | None) -> View:
    """Return dead letters, the newest first: of one source or of all, with one status or "any".

    Raises:
        UsageError: no such source or status.
    """
    if status not in (known := [OPEN, REPLAYED, DROPPED, "any"]):
        raise UsageError("no such status", got=status, expected=known, next_step=did_you_mean(status, known))
    with open_stores(project, state, clock=SystemClock(), write=False) as stores:
        rows: list[dict[str, Any]] = []
        for definition in _sources(project, source):
            where: list[Filter] = [] if status == "any" else [("status", "=", status)]
            rows += _read(stores.tables, definition, where)
    rows.sort(key=lambda row: (-row["recorded"], row["place"]))
    shown = [_plain(row) for row in rows[:limit]]
    columns = ["id", "source", "status", "place", "reason", "recorded"]
    title = f"{len(rows):,} dead letters" + (f", the newest {limit}" if len(rows) > limit else "")
    data = {"total": len(rows), "letters": shown}
    notes = (
        f"Next: headrace dead-letters show {project.typed} ID; headrace dead-letters replay {project.typed} after a fix",
    )
    return View(
        title, data, [Table("Dead letters", columns, [[s[c] for c in columns] for s in shown])], notes[: len(rows)]
    )


def show_letter(project: Project, identity: str, *, payload: bool, state: str | None) -> View:
    """Return one dead letter with its payload; where the source has pii columns, only if `payload` asks for it.

    Raises:
        UsageError: there is no such letter.
    """
    with open_stores(project, state, clock=SystemClock(), write=payload, alone=False) as stores:
        for definition in project.plan.sources:
            for row in _read(stores.tables, definition, [("id", "=", identity)]):
                private = any(column.pii for column in definition.columns)
                if private and payload:
                    stores.ledger.append([Entry("dead_letters.shown", identity, {}, getpass.getuser())])
                text = HIDDEN if private and not payload else row["payload"].decode("utf-8", "backslashreplace")
                found = _plain(row) | {"payload": text}
                table = Table("Letter", ["field", "value"], [[k, v] for k, v in found.items() if v is not None])
                return View(f"Dead letter {identity} of {definition.name}", found, [table])
    raise _unknown(project, identity)


def replay_letters(
    project: Project, source: str | None, ids: Sequence[str], *, state: str | None, clock: Clock | None = None
) -> View:
    """Read open dead letters again and ingest those that are events now, with their own arrival; the others stay.

    Killed anywhere and run again, each is ingested once. A server may run meanwhile.

    Raises:
        UsageError: no such source or letter.
    """
    now = clock or SystemClock()
    found = []
    with open_stores(project, state, clock=now, write=True, alone=False, create=False) as stores:
        for definition in _chosen(project, stores, source, ids):
            letters = _read(stores.tables, definition, [("status", "=", OPEN)])
            wanted = [row for row in letters if not ids or row["id"] in set(ids)]
            if wanted:
                found.append(_Replay(project, stores, now, definition).go(wanted))
    rows = [[one["source"], one["replayed"], one["quarantined"], one["left"], "; ".join(one["why"])] for one in found]
    table = Table("Replayed", ["source", "replayed", "quarantined", "still open", "why"], rows)
    total = sum(one["replayed"] for one in found)
    return View(f"Replayed {total:,} dead letters", {"sources": found}, [table])


def drop_letters(
    project: Project, source: str | None, ids: Sequence[str], *, why: str, state: str | None, clock: Clock | None = None
) -> View:
    """Mark open dead letters as dropped: those named, or all of a source. They stay in their table.

    Raises:
        UsageError: neither letters nor a source are named, or there is no such one.
    """
    if not ids and source is None:
        raise UsageError(
            "which dead letters?",
            expected="ids, or --source NAME for all of a source",
            next_step=f"headrace dead-letters list {project.typed}",
        )
    now, dropped = clock or SystemClock(), 0
    with open_stores(project, state, clock=now, write=True, alone=False, create=False) as stores:
        for definition in _chosen(project, stores, source, ids):
            letters = _read(stores.tables, definition, [("status", "=", OPEN)])
            wanted = [row for row in letters if not ids or row["id"] in set(ids)]
            if wanted:
                body = {"letters": len(wanted), "ids": [row["id"] for row in wanted[:SHOWN]], "why": why}
                stores.ledger.append([Entry("dead_letters.dropped", definition.name, body, getpass.getuser())])
                _mark(stores.tables, definition, wanted, DROPPED, why, int(now.now()))
                dropped += len(wanted)
    return View(f"Dropped {dropped:,} dead letters", {"dropped": dropped, "why": why})


class _Replay:
    """Replay letters of one source."""

    def __init__(self, project: Project, stores: Stores, clock: Clock, source: SourceDefinition) -> None:
        self.project, self.stores, self.clock, self.source = project, stores, clock, source
        self.settings = project.settings.sources.get(source.name, SourceSettings())
        codec = codec_of(self.settings, project.folder)
        self.events = Events(source, self.settings, project.settings.limits, codec)

    def go(self, letters: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Ingest what can be read, mark it, and return how it went."""
        reveals: list[Reveal] = []
        read, left = [], Counter[str]()
        for letter in letters:
            found, problems = self.reveals(letter)
            if problems:
                left["; ".join(problems)] += 1
            else:
                reveals += found
                read.append(letter)
        batch, quarantined = batch_of(self.source, reveals), 0
        if len(batch):
            stores = self.stores
            held = load_baselines(stores.ledger, stores.blobs, self.project.plan.sources)
            gatekeeper = Gatekeeper(self.project, stores.ledger, stores.tables, streaming=True, baselines=held)
            gatekeeper.learn_stored(self.project.plan.sources)
            verdict = gatekeeper.judge(batch, now=int(self.clock.now()), where="dead letters")
            verdict.raise_if_stopped()
            broken = without_known(stores.tables, QUARANTINE, broken_rows(verdict), ["id"])
            quarantined = broken.num_rows
            if quarantined:
                stores.tables.append(QUARANTINE, broken)
            ingest_reveals(self.project, stores, verdict.accepted)
        if read:
            body = {"letters": len(read), "ids": [row["id"] for row in read[:SHOWN]], "left": left.total()}
            self.stores.ledger.append([Entry(REPLAYED_LETTERS, self.source.name, body, getpass.getuser())])
            reach("letters.recorded")
            _mark(self.stores.tables, self.source, read, REPLAYED, "", int(self.clock.now()))
        why = [f"{reason} ({count})" for reason, count in left.most_common(3)]
        return {
            "source": self.source.name,
            "replayed": len(read),
            "quarantined": quarantined,
            "left": left.total(),
            "why": why,
        }

    def reveals(self, letter: Mapping[str, Any]) -> tuple[list[Reveal], list[str]]:
        """Return a letter's reveals, or why it is still none."""
        if letter["format"] == CELLS:
            return self._row_of_file(letter)
        found: list[Reveal] = []
        for decoded in self.events.decode(letter["payload"]):
            if letter["row"] is not None and decoded.row != letter["row"]:
                continue
            values, problems = self.events.read(decoded)
            if problems:
                return [], problems
            found += reveal_of(self.source, values | {ARRIVAL: letter["arrival"]})
        return found, []

    def _row_of_file(self, letter: Mapping[str, Any]) -> tuple[list[Reveal], list[str]]:
        cells: dict[str, Any] = orjson.loads(letter["payload"])
        if LINE in cells:
            (decoded,) = JsonCodec().decode(cells[LINE].encode(), self.events.names)
            values, problems = self.events.read(decoded)
        else:
            values, problems = self._cells(cells)
        if problems:
            return [], problems
        if letter["arrival"] is not None:
            return list(reveal_of(self.source, values | {ARRIVAL: letter["arrival"]})), []
        if self.settings.arrival is not None or ARRIVAL in cells:
            return [], ["its arrival is not known: repair the file and run again"]
        columns = {c.name: pa.array([values.get(c.name)], arrow_type(c.dtype)) for c in self.source.columns}
        return list(expand(self.source, pa.table(columns), lag=self.settings.lag).reveals()), []

    def _cells(self, cells: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Return a file's row as typed values: texts as a CSV's cells are read, the rest as it was kept."""
        values: dict[str, Any] = {}
        problems = []
        for column in self.source.columns:
            raw = cells.get(column.name)
            try:
                if isinstance(raw, str) and raw in self.settings.nulls:
                    values[column.name] = None
                elif isinstance(raw, str) and column.dtype != "str":
                    spelled = cast_text(pa.array([raw]), column.dtype, self.settings.zone)
                    if spelled is None or spelled.misread:
                        raise ValueError(f"expected {column.dtype}, got a text that is none")
                    values[column.name] = spelled.values[0].as_py()
                else:
                    values[column.name] = None if raw is None else typed_value(column, raw, self.settings.zone)
            except NaiveTimestamps:
                problems.append(f"{column.name}: a timestamp without a zone")
            except ValueError as error:
                problems.append(f"{column.name}: {error}")
        return values, problems + unplaced(placing_columns(self.source), values)


def _chosen(project: Project, stores: Stores, source: str | None, ids: Iterable[str]) -> list[SourceDefinition]:
    """Return the sources to look at; every letter that is named must be there."""
    sources = _sources(project, source)
    known = {row["id"] for definition in sources for row in _read(stores.tables, definition, [])} if ids else set()
    for identity in ids:
        if identity not in known:
            raise _unknown(project, identity)
    return sources


def _sources(project: Project, name: str | None) -> list[SourceDefinition]:
    names = [definition.name for definition in project.plan.sources]
    if name is not None and name not in names:
        raise UsageError("no such source", got=name, next_step=did_you_mean(name, names))
    return [definition for definition in project.plan.sources if name in (None, definition.name)]


def _unknown(project: Project, identity: str) -> UsageError:
    return UsageError("no such dead letter", got=identity, next_step=f"headrace dead-letters list {project.typed}")


def _read(tables: Tables, source: SourceDefinition, where: Sequence[Filter]) -> list[dict[str, Any]]:
    name = letters_table(source.name)
    if tables.describe(name) is None:
        return []
    found: list[dict[str, Any]] = tables.read(name, where=where).to_pylist()
    return found


def _mark(
    tables: Tables, source: SourceDefinition, letters: Sequence[Mapping[str, Any]], status: str, why: str, now: int
) -> None:
    changed = {"status": status, "changed": now, "actor": getpass.getuser(), "why": why}
    for start in range(0, len(letters), MARKED_AT_ONCE):
        part = [{**letter, **changed} for letter in letters[start : start + MARKED_AT_ONCE]]
        ids = [letter["id"] for letter in part]
        rows = pa.Table.from_pylist(part, letter_schema())
        tables.overwrite(letters_table(source.name), rows, where=[("id", "in", ids)])


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a letter as plain JSON, without its payload."""
    found = {name: value for name, value in row.items() if name != "payload"} | {"bytes": len(row["payload"])}
    for name in ("arrival", "recorded", "changed"):
        found[name] = None if found[name] is None else Instant(found[name]).isoformat()
    return found
