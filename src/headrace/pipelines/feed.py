"""Take streams into tables and online state, each event exactly once, whoever is killed or replaced in between.

One batch of one partition after the other goes through four steps:

1. The online store notes which batch is under way: its number, how many records, where it ends.
2. The tables get what the batch brought (reveals, quarantined rows, dead letters), each under the batch's number, which
   a table takes once.
3. One transaction of the online store applies the reveals and moves the partition's cursor behind the batch.
4. After a kill the same records are read again as the same batch: tables pass over what they have.

Steps 1 and 3 compare what they replace. Who finds another record than it began from has been replaced: a consumer that
slept while its partition was given away changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import orjson

from headrace.core.errors import BackendError, Conflict
from headrace.core.failpoints import reach
from headrace.core.settings import SourceSettings
from headrace.core.time import Clock
from headrace.features.stream import DATABASE, StreamPath
from headrace.pipelines.dead_letters import open_letters
from headrace.pipelines.gatekeeper import Gatekeeper, stopped_rows
from headrace.pipelines.project import Project
from headrace.pipelines.stores import CONTROL, Stores, note_applied
from headrace.sources.codecs import codec_of
from headrace.sources.definition import SourceDefinition
from headrace.sources.events import Events
from headrace.sources.letters import letters_of, letters_table, shown_reasons
from headrace.sources.record import Reveal
from headrace.sources.run import Load
from headrace.storage.keyvalue import Access
from headrace.storage.ledger import Entry
from headrace.storage.streams import Bounds, Cursor, Message, Streams, open_streams
from headrace.storage.streams.protocol import EARLIEST
from headrace.storage.tables import Commit
from headrace.storage.tables.protocol import Position
from headrace.validation.record import Verdict

BATCHES_AT_ONCE = 20  # of a source, before others have their turn

Applied = Callable[[SourceDefinition, Reveal, Access], None]


@dataclass(frozen=True)
class PartitionState:
    """Say how far a partition was applied; kept in the online store, beside what was applied.

    `count` and `end` describe the batch under way (`count` 0: none). `newest` is the newest event time, `events` how many
    had one, `late` how many of them were older than the watermark when they came.
    """

    position: int = 0
    arrival: int = EARLIEST
    batch: int = 0
    count: int = 0
    end: int = 0
    newest: int | None = None
    events: int = 0
    late: int = 0

    @classmethod
    def load(cls, blob: bytes) -> PartitionState:
        """Return what `dump` gave; numbers may be larger than JSON readers take, so they travel as texts."""
        numbers: dict[str, Any] = {name: text and int(text) for name, text in orjson.loads(blob).items()}
        return cls(**numbers)

    def dump(self) -> bytes:
        """Return the state as bytes."""
        return orjson.dumps({name: None if n is None else str(n) for name, n in asdict(self).items()})

    def timed(self, times: Sequence[int], lateness: int) -> PartitionState:
        """Return the state after events of these times; late is what is older than the newest before it by more."""
        newest, late = self.newest, self.late
        for time in times:
            late += newest is not None and time < newest - lateness
            newest = time if newest is None else max(newest, time)
        return replace(self, newest=newest, late=late, events=self.events + len(times))


def state_key(source: str, partition: int) -> bytes:
    """Return under which key of the control database a partition's state stands."""
    return f"stream/{source}/{partition}".encode()


def stream_name(project: Project, source: SourceDefinition) -> str:
    """Return the stream of a source's events: as settings say, else the source's name."""
    return project.settings.sources.get(source.name, SourceSettings()).stream or source.name


def open_project_streams(project: Project, stores: Stores, clock: Clock) -> Streams:
    """Open the store of streams that settings name, else the embedded one.

    Raises:
        BadUrl, MissingExtra: as `headrace.storage.streams.open_streams`.
    """
    return open_streams(project.settings.stores.streams or stores.state.url("streams"), clock=clock)


def lag_of(stores: Stores, streams: Streams, source: SourceDefinition, name: str) -> str:
    """Say how far a source lies behind its stream's end.

    Raises:
        Unavailable: the streams cannot be reached.
    """
    held = streams.bounds([name])[name]
    if not held:
        return f"no stream {name}"
    with stores.online.read() as snapshot:
        blobs = {partition: snapshot.get(CONTROL, state_key(source.name, partition)) for partition in held}
    reached = {p: held[p].start if blob is None else PartitionState.load(blob).position for p, blob in blobs.items()}
    behind = sum(max(held[p].end - at, 0) for p, at in reached.items())
    return f"{behind:,} events behind" if streams.capabilities.distances else "behind" if behind else "caught up"


class Feed:
    """Follow the streams of a project's sources.

    Args:
        sources: whose streams to follow.
        gatekeeper: judges every batch.
        path: applies reveals to the online state.
        applied: is told of each reveal after it was applied, inside the transaction.
    """

    def __init__(
        self,
        project: Project,
        stores: Stores,
        streams: Streams,
        clock: Clock,
        *,
        sources: Sequence[SourceDefinition],
        gatekeeper: Gatekeeper,
        path: StreamPath,
        applied: Applied | None = None,
    ) -> None:
        self.project, self.stores, self.streams, self.clock = project, stores, streams, clock
        self.gatekeeper, self.path, self.applied = gatekeeper, path, applied
        settings, limits = project.settings.sources, project.settings.limits
        self.sources = tuple((source, stream_name(project, source)) for source in sources)
        self.events = {
            source.name: Events(source, given, limits, codec_of(given, project.folder))
            for source in sources
            for given in [settings.get(source.name, SourceSettings())]
        }
        self.lateness = {name: settings[name].lateness if name in settings else 0 for name in self.events}
        self.states: dict[tuple[str, int], PartitionState] = {}
        self.lags: dict[tuple[str, int], int] = {}
        self.letters: Counter[str] = Counter({source.name: open_letters(stores.tables, source) for source in sources})
        self._judged: dict[tuple[str, int, int], tuple[Load, Verdict]] = {}
        self._member = streams.join(sorted({name for _, name in self.sources}))

    def take_in(self) -> dict[str, int]:
        """Take in what the streams hold, some batches of each at most; return how many events of each source.

        Raises:
            BackendError: a stream or store failed; what the others hold was taken in nevertheless.
        """
        taken: dict[str, int] = {}
        failed: list[BackendError] = []
        assigned = self._member.assigned()
        held = self.streams.bounds([name for name, partitions in assigned.items() if partitions])
        for source, name in self.sources:
            bounds = {p: held[name][p] for p in assigned[name] if p in held[name]} if name in held else {}
            try:
                for _ in range(BATCHES_AT_ONCE):
                    events = self._take(source, name, bounds)
                    if not events:
                        break
                    taken[source.name] = taken.get(source.name, 0) + events
            except BackendError as error:
                failed.append(error)
            self._measure(source, bounds)
        if failed:
            raise failed[0]
        return taken

    def drain(self, told: Callable[[int], None]) -> dict[str, int]:
        """Take in everything that the streams hold; return how many events of each source.

        `told(events)` is called as they are taken in.
        """
        total: Counter[str] = Counter()
        while taken := self.take_in():
            total.update(taken)
            told(total.total())
        return dict(total)

    def close(self) -> None:
        """Leave the partitions to others."""
        self._member.close()

    def watermark(self, source: str) -> int | None:
        """Return the instant up to which a source's events are complete but for late ones; None before the first.

        It is the newest event time less the declared lateness, of the partition that lags most.
        """
        newest = [s.newest for (name, _), s in self.states.items() if name == source and s.newest is not None]
        return min(newest) - self.lateness[source] if newest else None

    def _take(self, source: SourceDefinition, name: str, bounds: Mapping[int, Bounds]) -> int:
        """Read a batch of a stream's partitions and take it in, partition by partition; return its events."""
        limits, states, taken = self.project.settings.limits, self._load(source.name, bounds), 0
        for partition, state in states.items():
            if state.count:
                cursor = {partition: Cursor(state.position, state.arrival)}
                again = self.streams.read(name, cursor, state.count, 2**62)
                taken += self._process(source, name, partition, state, again)
        cursors = {p: Cursor(s.position, s.arrival) for p, s in states.items() if not s.count}
        messages = self.streams.read(name, cursors, limits.stream_batch_events, limits.stream_batch_bytes)
        for partition in sorted({message.partition for message in messages}):
            part = [message for message in messages if message.partition == partition]
            taken += self._process(source, name, partition, states[partition], part)
        return taken

    def _load(self, source: str, bounds: Mapping[int, Bounds]) -> dict[int, PartitionState]:
        """Return each partition's state; one that was never read begins at its first record."""
        with self.stores.online.read() as snapshot:
            blobs = {p: snapshot.get(CONTROL, state_key(source, p)) for p in sorted(bounds)}
        return {
            p: PartitionState(position=bounds[p].start) if blob is None else PartitionState.load(blob)
            for p, blob in blobs.items()
        }

    def _process(
        self, source: SourceDefinition, name: str, partition: int, state: PartitionState, messages: Sequence[Message]
    ) -> int:
        """Take a partition's records through all steps."""
        if not messages:
            return 0
        begun = state
        if not state.count:
            end = messages[-1].after.position
            begun = replace(state, batch=state.batch + 1, count=len(messages), end=end)
            with self.stores.online.write() as transaction:
                access = transaction.access(CONTROL)
                self._replace(access, source.name, partition, state, begun)
        reach("feed.begun")
        found, verdict = self._judge(source, name, partition, begun, messages)
        commit = self._store(source, name, partition, begun, found, verdict)
        self._apply(source, partition, begun, messages[-1].after, found, verdict, commit)
        reach("feed.applied")
        self._judged.pop((source.name, partition, begun.batch), None)
        return len(messages)

    def _store(
        self,
        source: SourceDefinition,
        name: str,
        partition: int,
        begun: PartitionState,
        found: Load,
        verdict: Verdict,
    ) -> Commit | None:
        """Put what a batch brought into the tables, each table's part once; return the commit of its reveals."""
        application, where = f"stream-{partition}", f"stream {name}, partition {partition}, batch {begun.batch}"
        position = Position(f"{application}/{source.name}", begun.batch)
        whole = len(found.batch) > 0 and not len(verdict.accepted)
        stopped = stopped_rows(found.batch, verdict, where) if whole else None
        commit = self.gatekeeper.store(verdict, application, begun.batch, stopped=stopped)
        reach("feed.stored")
        if found.refused.num_rows:
            letters = letters_of(source, found.refused, stream=name, now=int(self.clock.now()))
            kept = self.stores.tables.append(letters_table(source.name), letters, position=position)
            if kept.applied:
                self.letters[source.name] += letters.num_rows
                body = {"where": where, "letters": letters.num_rows, "reasons": shown_reasons(letters)}
                self.stores.ledger.append([Entry("dead_letters", source.name, body)])
        reach("feed.lettered")
        return commit

    def _judge(
        self, source: SourceDefinition, name: str, partition: int, begun: PartitionState, messages: Sequence[Message]
    ) -> tuple[Load, Verdict]:
        """Read and judge a batch once, also when a later step has to be tried again."""
        key = (source.name, partition, begun.batch)
        if key not in self._judged:
            found = self.events[source.name].load(messages, where=f"stream {name}")
            where = f"stream {name}, partition {partition}, positions {messages[0].position} to {messages[-1].position}"
            now = int(self.clock.now())
            # What cannot be read is no reason to stop what can: it has a table of its own.
            verdict = self.gatekeeper.judge(found.batch, now=now, where=where)
            self._judged = {k: v for k, v in self._judged.items() if k[:2] != key[:2]} | {key: (found, verdict)}
        return self._judged[key]

    def _apply(
        self,
        source: SourceDefinition,
        partition: int,
        begun: PartitionState,
        after: Cursor,
        found: Load,
        verdict: Verdict,
        commit: Commit | None,
    ) -> None:
        """Apply reveals with the partition's cursor in one transaction: neither is there without the other."""
        ended = replace(begun.timed(found.times, self.lateness[source.name]), position=after.position)
        ended = replace(ended, arrival=after.arrival, count=0, end=0)
        with self.stores.online.write() as transaction:
            access = transaction.access(DATABASE)
            self._replace(transaction.access(CONTROL), source.name, partition, begun, ended)
            newest, reveals = self.path.newest(access.get) or 0, list(verdict.accepted.reveals())
            if self.stores.online.capabilities.remote:
                self.path.fetch(transaction, source.name, reveals)
            for reveal in reveals:
                self.path.apply(access, source.name, reveal)
                newest = max(newest, reveal.arrival)
                if self.applied is not None:
                    self.applied(source, reveal, access)
            self.path.commit(access, newest, {f"{source.name}/{partition}": ended.position})
            note_applied(transaction, source.name, commit)
        self.states[source.name, partition] = ended

    def _replace(
        self, control: Access, source: str, partition: int, known: PartitionState, new: PartitionState
    ) -> None:
        """Compare and set a partition's state.

        Raises:
            Conflict: another consumer has gone on from there.
        """
        key = state_key(source, partition)
        blob = control.get(key)
        if (PartitionState(position=known.position) if blob is None else PartitionState.load(blob)) != known:
            raise Conflict(
                "another consumer reads this partition",
                where=f"source {source}, partition {partition}",
                got="a position that this process did not write",
                expected=f"position {known.position}, batch {known.batch}",
                next_step="nothing: its group shares partitions anew, and nothing was applied twice",
            )
        control.put(key, new.dump())

    def _measure(self, source: SourceDefinition, bounds: Mapping[int, Bounds]) -> None:
        """Note how far each partition was applied, and how many positions it still lies behind its end."""
        for partition, state in self._load(source.name, bounds).items():
            self.states[source.name, partition] = state
            if self.streams.capabilities.distances:
                self.lags[source.name, partition] = max(bounds[partition].end - state.position, 0)
