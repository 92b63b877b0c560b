"""Erase one key: from tables and their history, streams, the prediction log, profiles, and all online state.

What is to be done is kept beside the state until it is done, so a killed erasure is run again and goes on. The ledger gets a
keyed hash in place of the value; its chain stays whole.
"""

from __future__ import annotations

import getpass
import hmac
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from headrace.core.errors import ConfigurationError, DataError, UsageError, did_you_mean
from headrace.core.expressions import Column
from headrace.core.failpoints import reach
from headrace.core.time import Clock, SystemClock
from headrace.monitoring.performance import LiveWindow
from headrace.pipelines.baselines import SET, pointer
from headrace.pipelines.feed import open_project_streams, stream_name
from headrace.pipelines.gatekeeper import QUARANTINE
from headrace.pipelines.learning import PROFILE
from headrace.pipelines.materialize import Materializer, find_group
from headrace.pipelines.project import Project
from headrace.pipelines.quarantine import finish
from headrace.pipelines.ranges import PREFIX
from headrace.pipelines.remains import Remains, remains_of
from headrace.pipelines.reveals import reveals_table
from headrace.pipelines.stores import Stores, open_stores, renew_online
from headrace.pipelines.traces import Traces
from headrace.pipelines.view import Progress, Table, View
from headrace.serving.log import read_segment, rewrite_segment, segment_name, segments
from headrace.serving.record import Prediction
from headrace.sources.definition import SourceDefinition
from headrace.sources.letters import letters_table
from headrace.sources.record import ROW_ID
from headrace.storage.ledger import Entry
from headrace.storage.paths import write_atomically
from headrace.storage.streams import Cursor, Message, Streams

FOLDER, KEY, PENDING = "erasures", "key", "pending"
LIVE_WINDOWS = (b"up/live", b"live")
BEGUN, DONE, LOG_ERASED = "erasure.begun", "erasure.done", "log.erased"


@dataclass(frozen=True, eq=False)
class Erasure:
    """Hold what is erased: a value of some columns, the rows that ever had it by source, and its name in the ledger."""

    value: Any
    columns: tuple[Column[Any], ...]
    name: str
    rows: Mapping[str, frozenset[bytes]]
    word: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "word", re.compile(rf"(?<![\w-]){re.escape(str(self.value))}(?![\w-])"))

    @property
    def mark(self) -> str:
        """Return what stands where the value stood and something must stand."""
        return f"erased:{self.name[:12]}"

    def of(self, source: str) -> list[str]:
        """Return the names of the columns of a source."""
        return [c.name for c in self.columns if c.owner is not None and c.owner.__name__ == source]

    def traces(self, project: Project, source: SourceDefinition) -> Traces:
        """Return what finds the value in a source's payloads."""
        return Traces.of(project, source, self.of(source.name), self.value, self.word)


def erase(
    project: Project,
    wanted: str,
    *,
    source: str | None,
    group: str | None,
    why: str,
    yes: bool,
    state: str | None,
    progress: Progress,
    clock: Clock | None = None,
) -> View:
    """Erase every row that ever had a value in a column, `Orders.shop=shop-3`; without `yes` only say what would go.

    Raises:
        UsageError: no such column, source or group, not a value of it, or no reason.
        DataError: nothing was ingested yet.
        Unavailable: another process writes to the state folder.
    """
    now = clock or SystemClock()
    if not why.strip():
        raise UsageError(
            "an erasure needs a reason",
            expected="--why …, for the audit trail; it is kept for ever",
            next_step=f"headrace erase {wanted} --why TICKET-17 says what would go, and erases nothing",
        )
    columns, value = _target(project, wanted, source, group)
    if str(value) in why:
        raise UsageError(
            "the reason names what is erased, and the ledger keeps it for ever", expected="--why TICKET-17"
        )
    with open_stores(project, state, clock=now, write=True, create=False) as stores:
        if not any(stores.tables.describe(reveals_table(source.name)) for source in project.plan.sources):
            raise DataError(
                "nothing was ingested yet, so there is nothing to erase",
                where=f"the state folder of {project.typed}",
                next_step="headrace run, or erase it where the sources' own files lie",
            )
        erasure = _planned(project, stores, columns, value, keep=yes)
        if not yes:
            return _foretold(erasure, stores, project)
        finish(project, stores, alone=True)  # of tables whose history goes now
        done = _Eraser(project, stores, erasure, why, progress).everywhere_but_online()
        folder, longer = stores.state.path, _longer(stores, project, erasure)
    progress.step("online features", 0, 1)
    renew_online(project, state, clock=now, purge=partial(_purged, erasure))
    with open_stores(project, state, clock=now, write=True) as stores:
        Materializer(project, stores, progress).rebuild()
        left = remains_of(folder, value, longer, stores, _outside(project, stores, erasure))
        body = {"columns": [str(c) for c in columns], **done, "left": left.counts()}
        stores.ledger.append([Entry(DONE, erasure.name, body, getpass.getuser())])
        (stores.state.folder(FOLDER) / PENDING).unlink()
    return _shown(erasure, done, left, in_bucket=stores.tables.capabilities.several_hosts)


def _target(
    project: Project, wanted: str, source: str | None, group: str | None
) -> tuple[tuple[Column[Any], ...], Any]:
    """Return the columns and the typed value that `NAME=VALUE` or `Source.name=VALUE` means."""
    name, given, text = wanted.partition("=")
    every = [c for s in project.plan.sources for c in s.columns]
    if group is not None:
        definition = find_group(project, group).definition
        every = list(definition.entity)
    if source is not None and source not in {s.name for s in project.plan.sources}:
        names = [s.name for s in project.plan.sources]
        raise UsageError("no such source", got=source, next_step=did_you_mean(source, names))
    found = tuple(
        c for c in every if name in (c.name, str(c)) and source in (None, c.owner.__name__ if c.owner else None)
    )
    if not found or not given or not text:
        raise UsageError(
            "not a column and a value",
            got=name,
            expected="COLUMN=VALUE, as Orders.shop=shop-3",
            next_step=did_you_mean(name, [str(c) for c in every]),
        )
    kinds = {c.dtype for c in found}
    if not kinds <= {"str", "int"} or len(kinds) > 1:
        raise UsageError("only texts and integers name a key", got=sorted(kinds), expected="str or int")
    try:
        return found, int(text) if "int" in kinds else text
    except ValueError as error:
        raise UsageError("not an integer", got=text, expected=str(found[0])) from error


def _planned(project: Project, stores: Stores, columns: tuple[Column[Any], ...], value: Any, *, keep: bool) -> Erasure:
    """Return what has to go, with what an erasure that was killed had found before its rows were gone."""
    folder = stores.state.folder(FOLDER)
    if not (folder / KEY).is_file():
        write_atomically(folder / KEY, secrets.token_bytes(32), temporary=folder / "key.new", failpoint="erase.key")
    told = "\0".join([*sorted(map(str, columns)), str(value)])
    name = hmac.new((folder / KEY).read_bytes(), told.encode(), "sha256").hexdigest()
    rows: dict[str, frozenset[bytes]] = {}
    for source in project.plan.sources:
        rows[source.name] = _rows_with(stores, source, [c for c in columns if c in source.index], value)
    asked = [c.name for c in columns if c in project.plan.rows.index]
    rows[project.plan.rows.name] = rows.get(project.plan.rows.name, frozenset()) | _rows_asked_about(
        stores, asked, value
    )
    pending = folder / PENDING
    if pending.is_file():
        left = orjson.loads(pending.read_bytes())
        if left["name"] != name:
            raise ConfigurationError(
                "another erasure is unfinished",
                where=str(folder),
                got=left["name"][:12],
                expected=name[:12],
                next_step="run that one again first",
            )
        rows = {s: found | {bytes.fromhex(row) for row in left["rows"].get(s, ())} for s, found in rows.items()}
    erasure = Erasure(value, columns, name, rows)
    if keep:
        body = {"name": name, "rows": {s: sorted(row.hex() for row in found) for s, found in rows.items()}}
        write_atomically(pending, orjson.dumps(body), temporary=folder / "pending.new", failpoint="erase.pending")
    return erasure


def _rows_with(
    stores: Stores, source: SourceDefinition, columns: Sequence[Column[Any]], value: Any
) -> frozenset[bytes]:
    """Return the ids of the rows of which some reveal, also an old one, stated the value."""
    table = reveals_table(source.name)
    if not columns or stores.tables.describe(table) is None:
        return frozenset()
    found = stores.tables.read(table, columns=[ROW_ID, *(c.name for c in columns)])
    held = pa.array([False] * found.num_rows)
    for column in columns:
        held = pc.or_(held, pc.fill_null(pc.equal(found[column.name], value), False))
    return frozenset(found[ROW_ID].filter(held).unique().to_pylist())


def _rows_asked_about(stores: Stores, names: Sequence[str], value: Any) -> frozenset[bytes]:
    """Return the ids of the rows for which predictions were asked with the value; they may have come no other way."""
    logged = (p for segment in segments(stores.predictions) for p in read_segment(stores.predictions, segment))
    return frozenset(p.row_id for p in logged if any(p.request.get(name) == value for name in names))


class _Eraser:
    """Take a key out of everything but the online store, step by step; each step may be done again."""

    def __init__(self, project: Project, stores: Stores, erasure: Erasure, why: str, progress: Progress) -> None:
        self.project, self.stores, self.erasure, self.progress = project, stores, erasure, progress
        self.why = why

    def everywhere_but_online(self) -> dict[str, Any]:
        """Erase, and return how much of what."""
        columns = [str(c) for c in self.erasure.columns]
        body = {"columns": columns, "why": self.why}
        self.stores.ledger.append([Entry(BEGUN, self.erasure.name, body, getpass.getuser())])
        found: dict[str, Any] = {}
        steps: list[tuple[str, Callable[[], int]]] = [
            ("predictions", self.predictions),
            ("records of streams", self.streams),
            ("rows set aside", self.set_aside),
            ("dead letters", self.letters),
            ("profiles", self.profiles),
            ("baselines", self.baselines),
            ("rows with features", self.derived),
            ("reveals", self.tables),
        ]
        for place, (name, step) in enumerate(steps):
            self.progress.step("erasing", place, len(steps), name)
            found[name] = step()
            reach(f"erase.after.{name.split(' ')[-1]}")
        return found

    def tables(self) -> int:
        """Write the sources' tables without the rows, and drop their history."""
        erased = 0
        for source, rows in self.erasure.rows.items():
            name = reveals_table(source)
            if not rows or self.stores.tables.describe(name) is None:
                continue
            erased += self._keep(name, lambda table, rows=rows: pc.invert(pc.is_in(table[ROW_ID], pa.array(rows))))  # type: ignore[misc]
        return erased

    def derived(self) -> int:
        """Empty the tables of spans with features, of every definition; `headrace backfill` writes them again."""
        names: Sequence[str] = getattr(self.stores.tables, "names", tuple)()
        return sum(
            self._keep(name, lambda table: pa.array([False] * len(table))) for name in names if name.startswith(PREFIX)
        )

    def _keep(self, name: str, kept: Callable[[pa.Table], Any]) -> int:
        table = self.stores.tables.read(name)
        rest = table.filter(kept(table))
        if rest.num_rows < table.num_rows:
            self.stores.tables.overwrite(name, rest)
        forget = getattr(self.stores.tables, "forget_history", None)
        if forget is None:
            self.stores.tables.compact(name, retain=0)
        else:
            forget(name)
        return int(table.num_rows - rest.num_rows)

    def set_aside(self) -> int:
        """Drop rows that were set aside, whose payload holds the value."""
        ids = {row for rows in self.erasure.rows.values() for row in rows}
        if self.stores.tables.describe(QUARANTINE) is None:
            return 0
        return self._keep(QUARANTINE, lambda table: pa.array([not self._holds(r, ids) for r in table.to_pylist()]))

    def letters(self) -> int:
        """Drop dead letters that hold the value; some may be in a format in which nobody can tell (`_unsearched`)."""
        erased = 0
        for source in self.project.plan.sources:
            name, traces = letters_table(source.name), self.erasure.traces(self.project, source)
            if self.stores.tables.describe(name) is not None:
                erased += self._keep(name, partial(_without_letters, traces))
        return erased

    def _holds(self, row: Mapping[str, Any], ids: set[bytes]) -> bool:
        texts = [value for value in row.values() if isinstance(value, str)]
        return row.get("row_id") in ids or any(self.erasure.word.search(text) for text in texts)

    def predictions(self) -> int:
        """Rewrite the log's segments without the predictions about the key, and enter their new digests."""
        erased = 0
        for segment in segments(self.stores.predictions):
            found = rewrite_segment(self.stores.predictions, segment, self._is_about)
            if found.removed:
                body = {"digest": found.digest, "rows": found.rows, "removed": found.removed}
                subject = segment_name(segment).removesuffix(".log")
                self.stores.ledger.append([Entry(LOG_ERASED, subject, body)])
            erased += found.removed
        return erased

    def _is_about(self, prediction: Prediction) -> bool:
        plan, erasure = self.project.plan, self.erasure
        asked = any(prediction.request.get(name) == erasure.value for name in erasure.of(plan.rows.name))
        told = isinstance(erasure.value, str) and erasure.value in prediction.features.values()
        return asked or told or prediction.row_id in erasure.rows[plan.rows.name]

    def streams(self) -> int:
        """Take the events that state the value out of streams; where that cannot be, they are counted (`_outside`)."""
        erased = 0
        with open_project_streams(self.project, self.stores, SystemClock()) as streams:
            if streams.capabilities.redacts:
                for name, traces in _streams_of(self.project, streams, self.erasure):
                    erased += streams.redact(name, traces.states)
        return erased

    def profiles(self) -> int:
        """Replace the value in the profiles against which drift is measured; the versions keep their counts."""
        erased, seen = 0, set()
        for record in self.stores.ledger.read(kinds=[PROFILE], newest_first=True):
            newest = record.subject not in seen
            seen.add(record.subject)
            cleaned = self._cleaned(record.body["blob"])
            if cleaned is not None:
                if newest:
                    blob = self.stores.blobs.put(cleaned).digest
                    self.stores.ledger.append([Entry(PROFILE, record.subject, {"blob": blob, "erased": True})])
                self.stores.blobs.delete([record.body["blob"]])
                erased += 1
        return erased

    def baselines(self) -> int:
        """Replace the value in the distributions that deliveries are compared with; what was set before them goes."""
        erased, held = 0, self.stores.ledger.pointers("baseline/")
        for record in self.stores.ledger.read(kinds=[SET], newest_first=True):
            digest, name = record.body["digest"], pointer(record.subject)
            cleaned = self._cleaned(digest)
            if cleaned is not None:
                if held.get(name) == digest:
                    blob = self.stores.blobs.put(cleaned).digest
                    body = {**record.body, "digest": blob, "replaced": digest, "why": "erasure", "erased": True}
                    entry = Entry(
                        SET, record.subject, body | {"version": record.body["version"] + 1}, getpass.getuser()
                    )
                    self.stores.ledger.append([entry], pointers={name: blob}, expect={name: digest})
                self.stores.blobs.delete([digest])
                erased += 1
        return erased

    def _cleaned(self, digest: str) -> bytes | None:
        """Return a blob of JSON without the value; None where it is gone or does not hold it."""
        if not self.stores.blobs.has([digest]):
            return None
        held = orjson.loads(self.stores.blobs.get(digest))
        cleaned = _without(held, self.erasure)
        return None if cleaned == held else orjson.dumps(cleaned, option=orjson.OPT_SORT_KEYS)


def _without_letters(traces: Traces, table: pa.Table) -> pa.Array:
    return pa.array([not traces.in_letter(letter) for letter in table.to_pylist()], pa.bool_())


def _streams_of(project: Project, streams: Streams, erasure: Erasure) -> Iterator[tuple[str, Traces]]:
    """Yield each stream whose events can state the value, with what finds it there."""
    known = set(streams.streams())
    for source in project.plan.sources:
        if erasure.of(source.name) and stream_name(project, source) in known:
            yield stream_name(project, source), erasure.traces(project, source)


def _outside(project: Project, stores: Stores, erasure: Erasure) -> list[str]:
    """Say what is left where nothing can be erased or told: events of outside streams, letters that cannot be searched."""
    found = []
    with open_project_streams(project, stores, SystemClock()) as streams:
        if not streams.capabilities.redacts:
            for name, traces in _streams_of(project, streams, erasure):
                stating = [message for message in _messages(streams, name) if traces.states(message.data)]
                if stating:
                    found.append(_kept_by_broker(project, name, stating))
    for source in project.plan.sources:
        table, traces = letters_table(source.name), erasure.traces(project, source)
        if erasure.of(source.name) and stores.tables.describe(table) is not None:
            unread = sum(not traces.can_tell(letter) for letter in stores.tables.read(table).to_pylist())
            if unread:
                found.append(
                    f"{unread:,} dead letters of {source.name} are in a format that nobody can search for a number: "
                    f"headrace dead-letters list {project.typed} --source {source.name} --status any"
                )
    return found


def _kept_by_broker(project: Project, name: str, stating: Sequence[Message]) -> str:
    """Say what can be done about events that no client can delete singly."""
    kind = str(project.settings.stores.streams).partition(":")[0]  # the rest of the URL may be secret
    newest = {message.partition: message.position for message in stating}
    where = ", ".join(f"offset {offset:,} of partition {partition}" for partition, offset in sorted(newest.items()))
    return (
        f"{len(stating):,} events of stream {name} state it, up to {where}, and {kind} does not delete single records. "
        f"They go with the topic's retention (kafka-configs --alter --topic {name} --add-config retention.ms=…) or with all "
        "before them (kafka-delete-records); where records are keyed and the topic is compacted, a record of that key "
        "without a value removes them. Then run this command again, which looks whether any is left"
    )


def _messages(streams: Streams, name: str) -> Iterator[Message]:
    """Yield all records of a stream, partition by partition."""
    for partition, bounds in streams.bounds([name])[name].items():
        cursor = Cursor(bounds.start)
        while messages := streams.read(name, {partition: cursor}):
            yield from messages
            cursor = messages[-1].after


def _purged(erasure: Erasure, key: bytes, value: bytes) -> bytes | None:
    """Return what stays of an entry of the control loop's memory."""
    if key in LIVE_WINDOWS:
        window = LiveWindow.load(value)
        window.forget({row for rows in erasure.rows.values() for row in rows})
        return window.dump()
    try:
        held = orjson.loads(value)
    except orjson.JSONDecodeError:
        return value
    cleaned = _without(held, erasure)
    return value if cleaned == held else orjson.dumps(cleaned)


def _without(held: Any, erasure: Erasure) -> Any:
    """Return plain JSON with the mark in place of the value, as a text of its own or as a name."""
    if isinstance(held, dict):
        return {erasure.mark if k == str(erasure.value) else k: _without(v, erasure) for k, v in held.items()}
    if isinstance(held, list):
        return [_without(v, erasure) for v in held]
    return erasure.mark if isinstance(held, str) and held == erasure.value else held


def _longer(stores: Stores, project: Project, erasure: Erasure) -> list[str]:
    """Return the other values of the columns in which the erased one stands as a part: they are no traces of it."""
    found: set[str] = set()
    for source in project.plan.sources:
        table = reveals_table(source.name)
        names = [c.name for c in source.columns if c.dtype == "str"]
        if isinstance(erasure.value, str) and stores.tables.describe(table) is not None:
            read = stores.tables.read(table, columns=names)
            for name in names:
                found.update(v for v in read[name].unique().to_pylist() if v is not None and erasure.value in v)
    return sorted(found - {erasure.value}, key=len, reverse=True)


def _foretold(erasure: Erasure, stores: Stores, project: Project) -> View:
    rows = [
        [reveals_table(source), f"{len(found):,} rows with all their reveals"] for source, found in erasure.rows.items()
    ]
    rows += [["everything else", "predictions, events of local streams, rows set aside, profiles, online features"]]
    data = {"erased": False, "rows": {source: len(found) for source, found in erasure.rows.items()}}
    note = "Nothing was erased; --yes does it. Old versions of these tables go too: sets trained on them cannot be rebuilt."
    return View("What would be erased", data, [Table("Erasure", ["where", "what"], rows)], (note,))


def _shown(erasure: Erasure, done: Mapping[str, Any], left: Remains, *, in_bucket: bool) -> View:
    rows = [[name, f"{count:,}"] for name, count in done.items()] + [["online features", "rebuilt without them"]]
    data = {"erased": True, "name": erasure.name, **done, "left": left.to_dict()}
    notes = ["The sources' own files are not ours: erase there too, or a run that reads them anew brings it back."]
    if in_bucket:
        notes.append("Where the tables' bucket keeps old versions of objects, or copies of them, delete those too.")
    title = "Erased; nothing of it is left in the state folder"
    if left:
        title = "Erased, but it still stands elsewhere"
        notes += left.notes()
    return View(title, data, [Table("Erased", ["what", "how many"], rows)], notes)
