"""Keep the online state: apply reveals one by one to rows and lanes inside the caller's transaction.

The state is a pure function of the set of applied reveals; order, duplicates and lateness do not matter.
Keys: `L…` lanes, `R` source, row id: rows; `T` id: texts that no id spells; `E` day, source, row id: when to look at a row for expiry;
`F…` facts: positions, which groups are there whole, of which columns rows are; behind `E`, so that a commit of a new row, which
changes the end of `E`, writes no page more for them; `B` lane's key: to be rebuilt from history; `S`, `s` source: copies of its
table (`snapshots`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from headrace.core.errors import DataError
from headrace.core.expressions import Moment
from headrace.core.identity import row_hash
from headrace.core.time import DAY, Instant
from headrace.features.aggregates import FOR_EVER
from headrace.features.events import EventMaker, LaneEvent, text_key
from headrace.features.lane_plan import GRACE, GroupPlan
from headrace.features.layout import layout_of, refuse_other_layout, rewrite_rows
from headrace.features.plan import FeaturePlan
from headrace.features.rows import RowCodec, StoredRow
from headrace.features.snapshots import copy_told, count_coming, note_copies
from headrace.features.windows import OnlineLane
from headrace.sources.definition import SourceDefinition, definition_of
from headrace.sources.record import Reveal
from headrace.storage.keyvalue import Access, Get, Transaction

DATABASE = "online"
NEWEST, COMMITS = b"Fnewest", b"Fcommits"
WAITING = b"B"
COVERED, SOURCE = b"Fcovered", b"Fsource"


class _LaneWriter:
    def __init__(self, maker: EventMaker) -> None:
        self.maker = maker
        self.online = OnlineLane(maker.plan.lane, maker.plan.outputs)

    def move(self, store: Access, old: LaneEvent | None, new: LaneEvent | None) -> None:
        """Replace a row's old event in the lane by its new one."""
        if old is not None and new is not None and old.key == new.key:
            lost = self.online.change(store, new.key, new[1:], old[1:4])
        else:
            lost = old is not None and self.online.change(store, old.key, None, old[1:4])
            if new is not None:
                self.online.change(store, new.key, new[1:], None)
        if lost and old is not None:
            store.put(WAITING + old.key, b"")


class SourceState:
    """Apply one source's reveals to its rows and to every lane that reads it."""

    def __init__(self, definition: SourceDefinition, groups: Sequence[GroupPlan]) -> None:
        self.definition = definition
        self.codec = RowCodec(definition.name, [c.dtype for c in definition.columns])
        self.prefix = b"R" + definition.name.encode() + b"\0"
        self.writers = [
            _LaneWriter(EventMaker(lane)) for group in groups for lane in group.lanes if lane.source is definition
        ]
        self.affected: dict[tuple[int, ...], list[_LaneWriter]] = {}
        self.keep = max([w.maker.plan.lane.keep for w in self.writers], default=0) + GRACE
        dues = [Moment.of(c.due).terms[0] for c in definition.columns if c.due is not None]
        dues += [term for w in self.writers if w.maker.plan.on is not None for term in w.maker.plan.on.terms]
        moments = [term for c in definition.columns for term in definition.moments[c].terms]
        # A day of a zone stands for its end, which is at most two days after its own midnight in UTC.
        places = {
            (definition.index[c], offset + (0 if c.zone is None else 2 * DAY))
            for c, offset in [*dues, *moments, (definition.time, 0)]
        }
        self.ends = tuple(sorted(places))
        self.copy = copy_told(definition) if definition.history == "snapshots" else None

    def apply(self, store: Access, reveal: Reveal, *, coming: bool = False) -> bool:
        """Apply a reveal; return False if it changed nothing: a copy, or older than what is held."""
        if self.copy is not None and (moment := self.copy(reveal)) is not None:
            note_copies(store, self.definition.name, reveal.arrival, [moment], coming=coming)
        key = self.prefix + reveal.row_id
        blob = store.get(key)
        old = self.codec.empty if blob is None else self.codec.decode(blob)
        new = old.apply(reveal)
        if new is None:
            return False
        identity = row_hash(key)
        for writer in self._affected(reveal.places):
            before = None if blob is None else writer.maker.event(old, identity)
            after = writer.maker.event(new, identity)
            if before != after:
                writer.move(store, before, after)
                for number, text in writer.maker.longer_texts(new) if writer.maker.references else ():
                    store.put(text_key(number), text.encode())
        store.put(key, self.codec.encode(new))
        if blob is None:
            self._remember(store, key, new)
        return True

    def touched(self, get: Get, reveals: Iterable[Reveal]) -> list[bytes]:
        """Return the keys of lanes that reveals would change, each applied to its row as it is held now."""
        found: dict[bytes, None] = {}
        for reveal in reveals:
            key = self.prefix + reveal.row_id
            blob = get(key)
            old = self.codec.empty if blob is None else self.codec.decode(blob)
            new = old.apply(reveal)
            if new is None:
                continue
            identity = row_hash(key)
            for writer in self._affected(reveal.places):
                events = (
                    writer.maker.event(old, identity) if blob is not None else None,
                    writer.maker.event(new, identity),
                )
                found |= dict.fromkeys(event.key for event in events if event is not None)
        return list(found)

    def _affected(self, places: tuple[int, ...]) -> list[_LaneWriter]:
        found = self.affected.get(places)
        if found is None:
            stated = {self.definition.columns[p] for p in places}
            found = self.affected[places] = [w for w in self.writers if w.maker.plan.reads & stated]
        return found

    def expires(self, row: StoredRow) -> int:
        """Return the instant from which no admissible reveal or read needs the row."""
        values, newest = row.values, max(row.arrivals)
        for place, offset in self.ends:
            if (value := values[place]) is not None and value + offset > newest:
                newest = value + offset
        return newest + self.keep

    def _remember(self, store: Access, key: bytes, row: StoredRow) -> None:
        if self.keep < FOR_EVER:
            store.put(due_key(key, self.expires(row)), b"")

    def expire(self, store: Access, key: bytes, now: int) -> bool:
        """Drop a row whose time is over, or note when to look again; return whether it was dropped."""
        blob = store.get(key)
        if blob is None:
            return False
        row = self.codec.decode(blob)
        if self.expires(row) > now:
            self._remember(store, key, row)
            return False
        store.delete(key)
        return True


def due_key(key: bytes, expires: int) -> bytes:
    """Return under which key it stands when to look at a row for expiry."""
    return b"E" + max(expires // DAY + 1, 0).to_bytes(4, "big") + key


def moment_of_read(get: Get, stated: int | None, *, now: int) -> int:
    """Return the moment of an online read: the stated one, else now, in microseconds UTC.

    Where the machine's clock lags behind the newest applied arrival, that arrival counts as now.

    Raises:
        DataError: the stated moment is older than the newest applied arrival; such a question belongs to offline.
    """
    newest = StreamPath.newest(get) or 0
    if stated is None:
        return max(now, newest)
    if stated < newest:
        raise DataError(
            "t is older than what the online features have seen",
            got=Instant(stated).isoformat(),
            expected=f"{Instant(newest).isoformat()} or later",
            next_step="leave t out, or ask offline: headrace explain",
        )
    return stated


class StreamPath:
    """Apply the reveals of all sources of some datasets to one online state; what queries compute is not in it."""

    def __init__(self, plans: Sequence[FeaturePlan], *, in_parts: bool = False) -> None:
        """Take the groups of some plans.

        With `in_parts` a copy of a table is applied in several transactions: what it lacks holds until `whole`.
        """
        self.in_parts = in_parts
        found = {g.hash: g for plan in plans for g in plan.groups}
        groups = [g for g in found.values() if definition_of(g.definition.source).query is None]
        self.groups = groups
        definitions = {definition_of(g.definition.source).name: definition_of(g.definition.source) for g in groups}
        self.sources = {name: SourceState(definition, groups) for name, definition in definitions.items()}

    def uncovered(self, get: Get) -> list[GroupPlan]:
        """Return the groups that do not hold all that was applied: new ones, or ones that were left out for a while.

        Raises:
            ConfigurationError: a source has other columns than when its rows were stored.
        """
        for name, state in self.sources.items():
            held = get(SOURCE + name.encode())
            if held is not None:
                refuse_other_layout(state.definition, held, grows=False)
        return [group for group in self.groups if get(COVERED + bytes.fromhex(group.hash)) is None]

    def grow(self, transaction: Transaction) -> None:
        """Bring the rows of sources whose class gained columns into its new layout.

        Raises:
            ConfigurationError: a class changed otherwise than by new nullable columns.
        """
        get = transaction.access(DATABASE).get
        for name, state in self.sources.items():
            held, now = get(SOURCE + name.encode()), layout_of(state.definition)
            if held is not None and held != now:
                refuse_other_layout(state.definition, held, grows=True)
                rewrite_rows(transaction, DATABASE, state.prefix, state.definition, held)
                transaction.put(DATABASE, SOURCE + name.encode(), now)

    def begin(self, transaction: Transaction) -> None:
        """Note, before anything is applied, what will not be whole afterwards: every group that this path leaves out."""
        ours = {COVERED + bytes.fromhex(group.hash) for group in self.groups}
        empty = self.newest(transaction.access(DATABASE).get) is None
        for key in [key for key, _ in transaction.items(DATABASE, COVERED) if key not in ours]:
            transaction.delete(DATABASE, key)
        if empty:
            self.cover(transaction)

    def cover(self, transaction: Transaction) -> None:
        """Note that every group of this path holds all that was applied."""
        for group in self.groups:
            transaction.put(DATABASE, COVERED + bytes.fromhex(group.hash), b"")
        for name, state in self.sources.items():
            transaction.put(DATABASE, SOURCE + name.encode(), layout_of(state.definition))

    def apply(self, store: Access, source: str, reveal: Reveal) -> bool:
        """Apply one reveal; return False if it changed nothing. Sources that no feature reads are passed over."""
        state = self.sources.get(source)
        return False if state is None else state.apply(store, reveal, coming=self.in_parts)

    def whole(self, store: Access) -> None:
        """Note that copies of tables are applied as far as they have arrived: a key that they lack holds no longer."""
        for name, state in self.sources.items():
            if state.copy is not None:
                count_coming(store, name)

    def fetch(self, transaction: Transaction, source: str, reveals: Sequence[Reveal]) -> None:
        """Have a store that is reached over a network read, in two round trips, most of what applying reveals will read.

        It changes nothing but the time: a transaction there remembers what it has read.
        """
        state = self.sources.get(source)
        if state is not None:
            transaction.get_many(DATABASE, [state.prefix + reveal.row_id for reveal in reveals])
            transaction.get_many(DATABASE, state.touched(transaction.getter(DATABASE), reveals))

    def row(self, get: Get, source: str, row_id: bytes) -> StoredRow | None:
        """Return a row as it is held, or None."""
        state = self.sources[source]
        blob = get(state.prefix + row_id)
        return None if blob is None else state.codec.decode(blob)

    def expire(self, transaction: Transaction, now: int) -> int:
        """Drop the rows that no admissible reveal or read needs any more; return how many.

        Run it at checkpoints; it is housekeeping and changes no value.
        """
        due, limit = [], b"E" + max(now // DAY, 0).to_bytes(4, "big")
        for key, _ in transaction.items(DATABASE, b"E"):
            if key[:5] > limit:
                break
            due.append(key)
        dropped, store = 0, transaction.access(DATABASE)
        for key in due:
            store.delete(key)
            row = key[5:]
            dropped += self.sources[row[1 : row.index(b"\0")].decode()].expire(store, row, now)
        return dropped

    def commit(self, store: Access, newest: int, positions: dict[str, int]) -> None:
        """Note how far each source (of a stream: each partition, as "Orders/0") has been applied, with what was applied."""
        store.put(NEWEST, newest.to_bytes(8, "big", signed=True))
        store.put(COMMITS, (self.commits(store.get) + 1).to_bytes(8, "big"))
        for source, position in positions.items():
            store.put(b"Fposition" + source.encode(), str(position).encode())

    @staticmethod
    def waiting(transaction: Transaction) -> list[bytes]:
        """Return the lanes' keys that have to be rebuilt from history."""
        return [key[len(WAITING) :] for key, _ in transaction.items(DATABASE, WAITING)]

    @staticmethod
    def repaired(store: Access, key: bytes) -> None:
        """Note that a lane's key was rebuilt."""
        store.delete(WAITING + key)

    @staticmethod
    def commits(get: Get) -> int:
        """Return how often reveals were applied: who finds the number of before knows that nothing came between."""
        return int.from_bytes(get(COMMITS) or b"", "big")

    @staticmethod
    def newest(get: Get) -> int | None:
        """Return the newest applied arrival, None before the first."""
        blob = get(NEWEST)
        return None if blob is None else int.from_bytes(blob, "big", signed=True)
