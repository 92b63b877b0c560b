"""List quarantined rows, and release or drop them: intent in the ledger, effect once, done in the ledger.

A row is named by what it is, so the same bad row found again is not kept twice. Decisions are rows of a table of their
own; nothing is ever removed from either. A release that was killed anywhere is finished by the next decision or `run`,
from the versions that its intent names.

A server may run meanwhile, and other decisions be made: a source's pointer in the ledger says whether a decision is
under way, and moves with each. Who finds it moved carries out what was decided before, and chooses anew.
"""

from __future__ import annotations

import getpass
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from headrace.core.errors import Conflict, DataError, UsageError, did_you_mean
from headrace.core.failpoints import reach
from headrace.core.identity import content_hash
from headrace.core.time import Clock, Instant, SystemClock
from headrace.features.stream import StreamPath
from headrace.pipelines.gatekeeper import QUARANTINE
from headrace.pipelines.given import given
from headrace.pipelines.ingest import ingest_reveals
from headrace.pipelines.project import Project
from headrace.pipelines.stores import Stores, open_stores
from headrace.pipelines.view import Table, View
from headrace.sources.definition import SourceDefinition
from headrace.sources.record import ARRIVAL, CONTENT, ROW_ID
from headrace.storage.ledger import Entry, Ledger, Record
from headrace.storage.tables import Tables
from headrace.storage.tables.protocol import Position
from headrace.validation.record import quarantine_schema
from headrace.validation.release import released

DECISIONS = "quarantine_decisions"
INTENT, DONE = "quarantine.decided", "quarantine.done"
ATTEMPTS = 10  # of a decision, while others are made
SHORT = 12  # digits of an id that lists show, and the fewest that name one are 8


@dataclass(frozen=True)
class Selection:
    """Say which open rows: by id (or its beginning), by the check they broke, by the verdict that found them, or all."""

    ids: tuple[str, ...] = ()
    check: str | None = None
    run: str | None = None
    everything: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the selection as plain JSON."""
        return {"ids": list(self.ids), "check": self.check, "run": self.run, "everything": self.everything}


def source_named(project: Project, name: str) -> SourceDefinition:
    """Return a source of the pipeline by name.

    Raises:
        UsageError: there is none.
    """
    for source in project.plan.sources:
        if source.name == name:
            return source
    names = [s.name for s in project.plan.sources]
    raise UsageError(f"no source {name}", got=name, expected=names, next_step=did_you_mean(name, names))


def list_quarantine(project: Project, name: str, *, everything: bool, limit: int, state: str | None) -> View:
    """Return a source's quarantined rows that wait for a decision, or all, the newest first."""
    source = source_named(project, name)
    with open_stores(project, state, clock=SystemClock(), write=False) as stores:
        rows = quarantined(stores.tables, source.name)
        decisions = decisions_of(stores.tables, source.name)
    found = [_told(row, decisions) for row in rows.sort_by([("at", "descending")]).to_pylist()]
    waiting = [row for row in found if row["status"] == "open"]
    shown = found if everything else waiting
    lines = [
        [r["id"][:SHORT], r["position"], r["arrival"], "; ".join(r["reasons"]), r["status"]] for r in shown[:limit]
    ]
    table = Table("Rows", ["id", "position", "arrived", "broke", "status"], lines)
    title = f"{len(waiting)} rows of {name} wait in quarantine, {len(found) - len(waiting)} are decided"
    option = f"--pipeline {project.typed}"
    note = f"Next: headrace quarantine show {name} ID {option}" if waiting else f"Next: headrace checks {name} {option}"
    return View(title, {"source": name, "open": len(waiting), "rows": shown[:limit]}, [table], (note,))


def show_quarantined(project: Project, name: str, given: str, *, state: str | None) -> View:
    """Return one quarantined row with what it stated; values of `pii` columns stay hidden."""
    import orjson

    source = source_named(project, name)
    with open_stores(project, state, clock=SystemClock(), write=False) as stores:
        rows = quarantined(stores.tables, source.name)
        decisions = decisions_of(stores.tables, source.name)
    identity = _full(source, rows["id"].to_pylist(), given)
    row = next(r for r in rows.to_pylist() if r["id"] == identity)
    payload = orjson.loads(row["payload"])
    hidden = {c.name for c in source.columns if c.pii}
    values = {key: "(pii)" if key in hidden else value for key, value in payload.items()}
    body = _told(row, decisions) | {"payload": values}
    lines = [[key, str(value)] for key, value in values.items()]
    facts = [[key, str(body[key])] for key in ("id", "position", "arrival", "found", "status", "why")]
    facts += [["broke", reason] for reason in body["reasons"]]
    tables = [Table("Row", ["what", "value"], facts), Table("It stated", ["column", "value"], lines)]
    return View(f"A quarantined row of {name}", body, tables)


def decide(
    project: Project,
    name: str,
    decision: str,
    selection: Selection,
    *,
    why: str,
    state: str | None,
    clock: Clock | None = None,
) -> View:
    """Release the selected open rows into the source's reveals with their own arrival, or drop them for good.

    Released rows are in the online features at once where those exist. A server may run meanwhile.

    Raises:
        UsageError: nothing is selected.
        DataError: a row to release cannot be.
        Conflict: others decide about the source's rows all the time.
        ConfigurationError, SchemaConflict: as `headrace.pipelines.ingest.ingest_reveals`.
    """
    source, now = source_named(project, name), clock or SystemClock()
    with open_stores(project, state, clock=now, write=True, alone=False, create=False) as stores:
        chosen = _decided(project, stores, source, decision, selection, why)
        finish(project, stores)
    did = "Released" if decision == "release" else "Dropped"
    notes = (f"Next: headrace run {project.typed}, which trains with them",) if decision == "release" else ()
    data = {"source": name, "decision": decision, "rows": chosen.num_rows, "ids": chosen["id"].to_pylist()}
    return View(f"{did} {chosen.num_rows} rows of {name}", data, (), notes)


def finish(project: Project, stores: Stores, *, alone: bool = False) -> None:
    """Carry out every decision that the ledger holds and that is not done: each effect happens once.

    `alone` says that nothing serves meanwhile: the rows of the online state may take the columns that a class gained.

    Raises:
        DataError: the rows are no longer what was decided on.
        ConfigurationError, SchemaConflict: as `headrace.pipelines.ingest.ingest_reveals`.
    """
    done = {record.body["intent"] for record in _all(stores.ledger, DONE)}
    by_name = {source.name: source for source in project.plan.sources}
    waiting = [i for i in _all(stores.ledger, INTENT) if i.seq not in done and i.subject in by_name]
    if waiting and alone:
        with stores.online.write() as transaction:
            StreamPath([project.plan]).grow(transaction)
    for intent in waiting:
        _carry_out(project, stores, by_name[intent.subject], intent)


def _decided(
    project: Project, stores: Stores, source: SourceDefinition, decision: str, selection: Selection, why: str
) -> pa.Table:
    """Write a decision about the selected open rows into the ledger, and return them; it is yet to be carried out."""
    ledger, tables, pointer = stores.ledger, stores.tables, _pointer(source)
    attempts = 0
    while True:
        before = ledger.pointers(pointer).get(pointer)
        finish(project, stores)
        versions = {table: _version(tables, table) for table in (QUARANTINE, DECISIONS)}
        chosen = _chosen(tables, ledger, source, selection, versions)
        if decision == "release":
            released(source, chosen.to_pylist())
        body = {"decision": decision, "why": why, "selection": selection.to_dict(), "rows": chosen.num_rows}
        body |= {"digest": content_hash(sorted(chosen["id"].to_pylist())), "ids": chosen["id"].to_pylist()[:100]}
        number = 1 if before is None else int(before.split()[0]) + 1
        entry = Entry(INTENT, source.name, body | {"versions": versions, "number": number}, getpass.getuser())
        reach("quarantine.chosen")
        try:
            ledger.append([entry], pointers={pointer: str(number)}, expect={pointer: before})
        except Conflict:  # another decision came first: it may have been about these rows
            attempts += 1
            if attempts == ATTEMPTS:
                raise
        else:
            reach("quarantine.intent")
            return chosen


def _carry_out(project: Project, stores: Stores, source: SourceDefinition, intent: Record) -> None:
    body, held = intent.body, intent.body["selection"]
    ledger, tables, pointer = stores.ledger, stores.tables, _pointer(source)
    selection = Selection(tuple(held["ids"]), held["check"], held["run"], held["everything"])
    chosen = _chosen(tables, ledger, source, selection, body["versions"])
    if content_hash(sorted(chosen["id"].to_pylist())) != body["digest"]:
        raise DataError(
            f"{source.name}: the rows of a decision are no longer what was decided on",
            where=f"ledger record {intent.seq}",
            got=f"{chosen.num_rows} rows",
            expected=f"{body['rows']} rows with the digest {body['digest']}",
            next_step="headrace doctor; the quarantine was changed by other means",
        )
    position = Position(f"decision/{source.name}", intent.seq)
    if body["decision"] == "release":
        ingest_reveals(project, stores, released(source, chosen.to_pylist()), position)
    told = {"id": chosen["id"], "source": chosen["source"]}
    fixed = {"decision": body["decision"], "why": body["why"], "by": intent.actor}
    texts = {key: pa.array([value] * chosen.num_rows, pa.string()) for key, value in fixed.items()}
    numbers = {key: pa.array([value] * chosen.num_rows, pa.int64()) for key, value in (("at", intent.at),)}
    tables.append(DECISIONS, pa.table(told | texts | numbers), position=position)
    reach("quarantine.decided")
    entry = Entry(DONE, source.name, {"intent": intent.seq, "rows": chosen.num_rows}, intent.actor)
    number = str(body["number"])
    with suppress(Conflict):  # who carried it out beside us has noted it
        ledger.append([entry], pointers={pointer: f"{number} done"}, expect={pointer: number})


def released_rows(stores: Stores, source: SourceDefinition, done: Record) -> list[bytes]:
    """Return the ids of the rows that a decision which is `done` released; none if it dropped them."""
    (intent,) = stores.ledger.read(after=done.body["intent"] - 1, limit=1)
    decisions = decisions_of(stores.tables, source.name).items()
    ids = [i for i, made in decisions if made["decision"] == "release" and made["at"] == intent.at]
    rows = quarantined(stores.tables, source.name)
    found: list[bytes] = rows.filter(pc.is_in(rows["id"], value_set=pa.array(ids, pa.string())))["row_id"].to_pylist()
    return found


def quarantined(tables: Tables, source: str, version: int | None = None) -> pa.Table:
    """Return a source's quarantined rows, each once."""
    described = tables.describe(QUARANTINE)
    if described is None or version == -1:
        return quarantine_schema().empty_table()
    rows = tables.read(QUARANTINE, where=[("source", "=", source)], version=version)
    for field in quarantine_schema():
        if field.name not in rows.column_names:
            rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
    rows = rows.filter(pc.is_valid(rows["id"])).select(quarantine_schema().names)
    ids = rows["id"].combine_chunks()
    first = pc.index_in(ids, value_set=ids)  # where several rows have an id, the first of them
    return rows.filter(pc.equal(first, pa.array(range(len(ids)), pa.int32())))


def decisions_of(tables: Tables, source: str, version: int | None = None) -> dict[str, dict[str, Any]]:
    """Return what was decided about which rows."""
    if tables.describe(DECISIONS) is None or version == -1:
        return {}
    rows = tables.read(DECISIONS, where=[("source", "=", source)], version=version).to_pylist()
    return {row["id"]: row for row in rows}


def reveals_kept(rows: pa.Table) -> pa.Table:
    """Return the quarantined reveals by what names a reveal: row, arrival, content."""
    return pa.table({ROW_ID: rows["row_id"], ARRIVAL: rows["arrival"], CONTENT: rows["content"]})


def _chosen(
    tables: Tables,
    ledger: Ledger,
    source: SourceDefinition,
    selection: Selection,
    versions: Mapping[str, int],
) -> pa.Table:
    """Return the open rows that a selection names, as the tables were at some versions (-1: not there yet)."""
    rows = quarantined(tables, source.name, versions[QUARANTINE])
    decided = decisions_of(tables, source.name, versions[DECISIONS])
    rows = rows.filter(pa.array([row not in decided for row in rows["id"].to_pylist()], pa.bool_()))
    if not (selection.ids or selection.check or selection.run or selection.everything):
        raise UsageError("which rows?", expected="--ids, --check, --run or --everything", next_step=_listed(source))
    if selection.ids:
        wanted = {_full(source, rows["id"].to_pylist(), given) for given in selection.ids}
        rows = rows.filter(pa.array([row in wanted for row in rows["id"].to_pylist()], pa.bool_()))
    if selection.check is not None:
        held = [selection.check in reason.split("\n") for reason in rows["reason"].to_pylist()]
        rows = rows.filter(pa.array(held, pa.bool_()))
    if selection.run is not None:
        rows = rows.filter(pc.equal(rows["at"], _moment(ledger, selection.run)))
    if not rows.num_rows:
        raise UsageError(
            f"no open row of {source.name} is selected",
            got=", ".join(f"{name} {value}" for name, value in selection.to_dict().items() if value),
            next_step=f"{_listed(source)} shows ids and checks, headrace checks {source.name} verdicts",
        )
    return rows.sort_by("id")


def _moment(ledger: Ledger, run: str) -> int:
    """Return a verdict's moment: by the number of its record, or as text."""
    if not run.isdigit():
        return int(given("--run", run, Instant.parse))
    found = ledger.read(kinds=["verdict"], after=int(run) - 1, limit=1)
    if not found or found[0].seq != int(run):
        raise UsageError("no such verdict", got=run, expected="the number of a verdict", next_step="headrace checks")
    return int(found[0].body["at"])


def _listed(source: SourceDefinition) -> str:
    return f"headrace quarantine list {source.name}"


def _full(source: SourceDefinition, ids: Sequence[str], given: str) -> str:
    found = sorted({i for i in ids if i.startswith(given)}) if len(given) >= 8 else []
    if len(found) == 1:
        return found[0]
    raise UsageError(
        "no such row waits in quarantine" if not found else "several rows' ids begin like this",
        got=given,
        expected=f"an id, or at least its first 8 digits: {', '.join(i[:SHORT] for i in found or ids)[:150] or 'none wait'}",
        next_step=_listed(source),
    )


def _told(row: dict[str, Any], decisions: dict[str, dict[str, Any]]) -> dict[str, Any]:
    decision = decisions.get(row["id"])
    status = "open" if decision is None else {"release": "released", "drop": "dropped"}[decision["decision"]]
    arrival = None if row["arrival"] is None else Instant(row["arrival"]).isoformat()
    body = {"id": row["id"], "position": row["position"], "arrival": arrival, "reasons": row["reason"].split("\n")}
    body |= {"found": Instant(row["at"]).isoformat(), "status": status}
    return body | {"why": decision["why"] if decision else None, "by": decision["by"] if decision else None}


def _pointer(source: SourceDefinition) -> str:
    return f"quarantine/{source.name}"


def _version(tables: Tables, table: str) -> int:
    described = tables.describe(table)
    return -1 if described is None else described.version


def _all(ledger: Ledger, kind: str) -> list[Record]:
    found: list[Record] = []
    while page := ledger.read(kinds=[kind], after=found[-1].seq if found else 0):
        found += page
    return found
