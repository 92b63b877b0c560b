"""Bring the online store up to the tables: what `run` does after ingestion, and what rebuilds a lost or damaged store."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from headrace.core.errors import Conflict, UsageError, did_you_mean
from headrace.core.failpoints import reach
from headrace.core.time import Clock, SystemClock
from headrace.engines.local import LocalEngine
from headrace.features.asked import Asked, asked_by
from headrace.features.buckets import BucketedPast
from headrace.features.bulk import store_rows
from headrace.features.digest import state_digest
from headrace.features.history import Late
from headrace.features.lane_plan import GroupPlan
from headrace.features.repair import backfill, repair
from headrace.features.stock import BucketedStock, Stock, WholeStock
from headrace.features.stream import COVERED, DATABASE, StreamPath
from headrace.pipelines.graph import group_hashes
from headrace.pipelines.project import Project
from headrace.pipelines.reveals import (
    ensure_there,
    extent_of,
    late_source,
    reveals_of_keys,
    reveals_since,
    reveals_table,
    sample_ids,
    stream_reveals,
)
from headrace.pipelines.spread import work_folder
from headrace.pipelines.stores import (
    CONTROL,
    REBUILD,
    Stores,
    applied_floor,
    applied_key,
    damage_of_online,
    forget_applied,
    open_stores,
    renew_online,
    settle_applied,
    suspend_applied,
)
from headrace.pipelines.view import Progress, Table, View
from headrace.sources.record import ARRIVAL, CONTENT, ROW_ID, RevealBatch
from headrace.storage.keyvalue import Transaction, drop_rows
from headrace.storage.ledger import Entry
from headrace.storage.work import work_in

SAMPLED = 1_000  # row ids of a bucket of rows, by which large tables are cut into ranges
APPLY_AT_ONCE = 10_000  # reveals to a commit of the online store
MATERIALIZED = "materialized"


@dataclass(frozen=True)
class Fresh:
    """Hold the reveals that changes of a source's table brought, from one version (None: no table) to another."""

    before: int | None
    version: int
    table: pa.Table


@dataclass(frozen=True)
class Materialized:
    """Hold what was done: reveals applied, keys filled from history in which groups, and the newest applied arrival.

    `rows` counts the reveals that were read for it.
    """

    reveals: int
    keys: int
    filled: tuple[str, ...]
    newest: int
    rows: int


@dataclass(frozen=True)
class _Missing:
    """Hold reveals of a source that are to be applied, and the version of its table that is held after them."""

    source: str
    version: int
    rows: int
    tables: Iterator[pa.Table]


class Materializer:
    """Bring the online store up to the tables; whoever is killed is run again and ends in the same state."""

    def __init__(self, project: Project, stores: Stores, progress: Progress) -> None:
        self.project, self.stores, self.progress = project, stores, progress
        self.path = StreamPath([project.plan], in_parts=True)
        self.sources = {source.name: source for source in project.plan.sources}

    def bring_up(self, fresh: Mapping[str, Fresh] | None = None) -> Materialized:
        """Apply what the tables hold beyond the online store, and fill new or changed groups from history.

        `fresh` spares reading a source's whole table where only its last changes are missing.

        Raises:
            ConfigurationError: a source's class changed otherwise than by new nullable columns.
        """
        began = time.perf_counter()
        if self._mark():
            return self.rebuild()  # a killed one left the store half empty
        if self._first():
            return self._fill_whole("online features", fresh or {})
        with self.stores.online.write() as transaction:
            self.path.grow(transaction)
            self.path.begin(transaction)
        with self.stores.online.read() as snapshot:
            missing = self.path.uncovered(snapshot.getter(DATABASE))
        applied = self._apply_missing([self._missing(name, at, fresh or {}) for name, at in self.behind().items()])
        keys = self.fill(missing) if missing else 0
        names = tuple(group.definition.name for group in missing)
        done = Materialized(applied, keys, names, self.newest(), applied + self._rows(missing))
        self.record(done, time.perf_counter() - began)
        return done

    def _first(self) -> bool:
        """Return whether nothing was ever applied, and every source has a table."""
        with self.stores.online.read() as snapshot:
            empty = self.path.newest(snapshot.getter(DATABASE)) is None
        return empty and all(self.stores.tables.describe(reveals_table(name)) is not None for name in self.sources)

    def fill(self, groups: Sequence[GroupPlan]) -> int:
        """Fill groups from history and note that they are whole; return how many keys they have."""
        told, newest = partial(self.progress.step, "new features"), self.newest()
        with ExitStack() as held:

            def read() -> Stock:
                return held.enter_context(self._stock("new features", groups, newest))

            keys = backfill(self.stores.online, groups, newest, read, told)
        with self.stores.online.write() as transaction:
            self.path.cover(transaction)
        return keys

    def newest(self) -> int:
        """Return the newest applied arrival, 0 before the first."""
        with self.stores.online.read() as snapshot:
            return self.path.newest(snapshot.getter(DATABASE)) or 0

    def record(self, done: Materialized, seconds: float) -> None:
        """Enter into the ledger what was materialized and how long it took: the next one's cost is estimated from it."""
        if done.reveals or done.keys:
            groups = group_hashes(self.project.plan)
            body: dict[str, Any] = {
                "groups": groups,
                "reveals": done.reveals,
                "keys": done.keys,
                "filled": list(done.filled),
            }
            body |= {"rows": done.rows}
            entry = Entry(MATERIALIZED, self.project.name, body | {"measured": {"seconds": round(seconds, 3)}})
            self.stores.ledger.append([entry])

    def behind(self) -> dict[str, int]:
        """Return the newest table version of each source of which the online store does not hold all."""
        names = [source.name for source in self.project.plan.sources]
        described = {name: self.stores.tables.describe(reveals_table(name)) for name in names}
        versions = {name: table.version for name, table in described.items() if table is not None}
        with self.stores.online.read() as snapshot:
            held = {name: snapshot.get(DATABASE, applied_key(name)) for name in versions}
        return {name: version for name, version in versions.items() if held[name] != str(version).encode()}

    def _missing(self, name: str, version: int, fresh: Mapping[str, Fresh]) -> _Missing:
        """Return the reveals that the online store lacks of a source: what came to its table since all was applied."""
        with self.stores.online.read() as snapshot:
            get = snapshot.getter(DATABASE)
            held, floor = get(applied_key(name)), applied_floor(get, name)
        new = fresh.get(name)
        if new is not None and (None if held is None else int(held)) == new.before:
            return _Missing(name, new.version, new.table.num_rows, iter([new.table]))
        tables, source = self.stores.tables, self.sources[name]
        rows, _ = extent_of(tables, source, version, since=floor)
        at_once = self.project.settings.limits.delivery_rows
        return _Missing(name, version, rows, reveals_since(tables, source, version, floor, at_once=at_once))

    def _apply_missing(self, parts: Sequence[_Missing]) -> int:
        total, done = sum(part.rows for part in parts), 0
        for part in parts:
            with self.stores.online.write() as transaction:
                suspend_applied(transaction, part.source)  # until all of it is applied nobody may count on any
            for table in part.tables:
                ordered = table.sort_by([(column, "ascending") for column in (ARRIVAL, ROW_ID, CONTENT)])
                for start in range(0, ordered.num_rows, APPLY_AT_ONCE):
                    piece = ordered.slice(start, APPLY_AT_ONCE)
                    self.apply(part.source, part.version, piece)
                    done += piece.num_rows
                    self.progress.step("online features", done, total, part.source)
            self._settle({part.source: part.version})
        return done

    def apply(self, name: str, version: int, piece: pa.Table) -> None:
        """Apply reveals in one transaction."""
        with self.stores.online.write() as transaction:
            access, reveals = transaction.access(DATABASE), list(RevealBatch(self.sources[name], piece).reveals())
            newest = max(self.path.newest(access.get) or 0, int(pc.max(piece[ARRIVAL]).as_py()))
            if self.stores.online.capabilities.remote:
                self.path.fetch(transaction, name, reveals)
            for reveal in reveals:
                self.path.apply(access, name, reveal)
            self.path.commit(access, newest, {name: version})

    def _settle(self, versions: Mapping[str, int]) -> None:
        """Note which versions are applied whole, and look after rows that are too old and keys that wait for history."""
        newest = self.newest()
        with self.stores.online.write() as transaction:
            self._close(transaction, versions, newest)

    def _close(self, transaction: Transaction, versions: Mapping[str, int], newest: int) -> None:
        for name, version in versions.items():
            settle_applied(transaction, name, version)
        self.path.whole(transaction.access(DATABASE))
        self.path.expire(transaction, newest)
        repair(transaction, self.project.plan, partial(reveals_of_keys, self.stores.tables))

    def rebuild(self) -> Materialized:
        """Empty the features and fill them again from the tables, or go on where a killed rebuild was.

        Raises:
            DataError: a source has no table.
            Conflict: another process fills the store at the same time.
        """
        return self._fill_whole("rebuilding", {})

    def _fill_whole(self, step: str, fresh: Mapping[str, Fresh]) -> Materialized:
        """Fill the whole store from the tables in bulk: rows first, then group after group, and last what makes it whole.

        A stream may go on meanwhile: what it applied is neither lost nor overwritten, as `store_rows` and `backfill` say.
        """
        began, way = time.perf_counter(), self._begun_from_all()
        extents = {n: extent_of(self.stores.tables, self.sources[n], version) for n, version in way["versions"].items()}
        total, newest = sum(rows for rows, _ in extents.values()), max([0, *(newest for _, newest in extents.values())])
        groups = [group for group in self.path.groups if group.hash not in way["groups"]]
        with ExitStack() as held:
            stock = held.enter_context(self._stock(step, groups, newest, way["versions"], fresh))
            rows, done = sum(extents[name][0] for name in self.path.sources), 0
            for name in self.path.sources:
                if name not in way["rows"]:
                    told = partial(self._told, step, began, f"rows of {name}", done, rows)
                    store_rows(self.stores.online, self.path, name, stock, newest, told)
                    self._go_on(way, "rows", name)
                done += extents[name][0]

            def read() -> Stock:
                with self.stores.online.read() as snapshot:
                    alone = StreamPath.commits(snapshot.getter(DATABASE)) == 0
                # A stream may have applied what came to the tables later.
                return stock if alone else held.enter_context(self._stock(step, groups, newest))

            def told_of_lanes(done: int, total: int) -> None:
                self._told(step, began, "windows", 0, total, done)

            noted = partial(self._covered, way)
            keys = backfill(self.stores.online, groups, newest, read, told_of_lanes, noted) if groups else 0
        self._end(way, newest, total)
        found = Materialized(total, keys, tuple(g.definition.name for g in groups), self.newest(), total)
        self.record(found, time.perf_counter() - began)
        return found

    @contextmanager
    def _stock(
        self,
        step: str,
        groups: Sequence[GroupPlan],
        newest: int,
        versions: Mapping[str, int] | None = None,
        fresh: Mapping[str, Fresh] | None = None,
    ) -> Iterator[Stock]:
        """Give what the tables say up to `newest`: from memory, or from files where a source has more than a bucket's rows.

        With `versions` of all streamed sources, as they were then and for rows too; else of the groups' sources alone.
        """
        lanes = [lane for group in groups for lane in group.lanes]
        names = list(self.path.sources if versions is not None else dict.fromkeys(lane.source.name for lane in lanes))
        sources, engines = [self.sources[name] for name in names], self.project.settings.engines
        asked: Asked = asked_by(lanes) if versions is None else {}  # rows are stored whole
        streamed = stream_reveals(self.stores.tables, sources, versions, asked)
        pinned = {name: None if versions is None else versions[name] for name in names}
        if max((each.rows for each in streamed.values()), default=0) <= engines.bucket_rows:
            at = partial(self._at, fresh=fresh or {}, asked=asked)
            yield WholeStock(sources, {name: at(name, version) for name, version in pinned.items()}, newest)
            return

        def told(what: str, done: int, total: int) -> None:
            self.progress.step(step, done, total, f"sorting {what}")

        one_of = max(engines.bucket_rows // SAMPLED, 1)
        ids = {name: sample_ids(self.stores.tables, name, version, one_of=one_of) for name, version in pinned.items()}
        with work_in(work_folder(self.project, self.stores)) as folder:
            yield BucketedStock(
                BucketedPast(
                    sources,
                    lanes,
                    streamed,
                    as_of=newest,
                    engine=LocalEngine(),
                    folder=folder,
                    bucket_rows=engines.bucket_rows,
                    told=told,
                    living=True,
                    samples=ids,
                )
            )

    def _begun_from_all(self) -> dict[str, Any]:
        """Make sure that every source has a table, then return how far the store is filled."""
        for source in self.project.plan.sources:
            ensure_there(self.stores.tables, source)
        return self._begun()

    def _at(self, name: str, version: int | None, fresh: Mapping[str, Fresh], asked: Asked) -> pa.Table | Late:
        """Return what a source's table held at a version, the newest if None."""
        new = fresh.get(name)
        if new is not None and new.before is None and new.version == version:
            return new.table
        return late_source(self.stores.tables, self.sources[name], version=version, columns=asked.get(name))

    def _told(self, step: str, began: float, what: str, before: int, total: int, done: int) -> None:
        self.progress.step(step, before + done, total, f"{what}, {_rate(before + done, began)}")

    def _begun(self) -> dict[str, Any]:
        """Return how far a killed process had filled the store from the same tables; else empty the features."""
        way, asked = self._mark(), self._asked()
        if {name: way.get(name) for name in asked} == asked and "groups" in way:
            return way
        with self.stores.online.write() as transaction:
            # First of all nobody may take what is left for whole: not a server, not a run, not a later rebuild.
            for source in self.project.plan.sources:
                forget_applied(transaction, source.name)
            for key in [key for key, _ in transaction.items(DATABASE, COVERED)]:
                transaction.delete(DATABASE, key)
            transaction.put(CONTROL, REBUILD, orjson.dumps(asked))
        reach("rebuild.emptying")
        drop_rows(self.stores.online, DATABASE)
        # Asked only now: what a stream applied before the features were gone is in the tables already.
        way = {**self._asked(), "rows": [], "groups": []}
        with self.stores.online.write() as transaction:
            transaction.put(CONTROL, REBUILD, orjson.dumps(way))
        return way

    def _asked(self) -> dict[str, Any]:
        """Return from what the store is to be filled: definitions, and the newest versions of the tables."""
        sources = self.project.plan.sources
        described = {source.name: self.stores.tables.describe(reveals_table(source.name)) for source in sources}
        versions = {name: table.version for name, table in described.items() if table is not None}
        hashes = {source.name: source.hash for source in sources}
        return {"features": self.project.plan.features, "versions": versions, "sources": hashes}

    def _covered(self, way: dict[str, Any], group: GroupPlan) -> None:
        self._go_on(way, "groups", group.hash)

    def _go_on(self, way: dict[str, Any], part: str, done: str) -> None:
        """Note that a part is there whole, so that nobody has to fill it again."""
        with self.stores.online.write() as transaction:
            self._refuse_others(transaction, way)
            way[part].append(done)
            transaction.put(CONTROL, REBUILD, orjson.dumps(way))

    def _end(self, way: dict[str, Any], newest: int, total: int) -> None:
        """Make the store whole, in one transaction."""
        with self.stores.online.write() as transaction:
            self._refuse_others(transaction, way)
            access = transaction.access(DATABASE)
            newest = max(self.path.newest(access.get) or 0, newest)
            if total:
                self.path.commit(access, newest, way["versions"])
            self._close(transaction, way["versions"], newest)
            self.path.cover(transaction)
            transaction.delete(CONTROL, REBUILD)

    def _refuse_others(self, transaction: Transaction, way: Mapping[str, Any]) -> None:
        if orjson.loads(transaction.get(CONTROL, REBUILD) or b"{}") != way:
            raise Conflict(
                "another process fills the online store",
                got="a mark of how far it is filled that this process did not write",
                next_step="wait for it, then run this again",
            )

    def _mark(self) -> dict[str, Any]:
        """Return what an unfinished rebuild left of its way, {} where there is none."""
        with self.stores.online.read() as snapshot:
            blob = snapshot.get(CONTROL, REBUILD)
        found: dict[str, Any] = {} if blob is None else orjson.loads(blob)
        return found

    def refill(self, group: GroupPlan) -> Materialized:
        """Drop what is kept of one group and fill it again from history; a killed one is filled by the next run."""
        began = time.perf_counter()
        if self._mark():
            return self.rebuild()
        with self.stores.online.write() as transaction:
            self.path.grow(transaction)
            transaction.delete(DATABASE, COVERED + bytes.fromhex(group.hash))
        for lane in group.lanes:
            drop_rows(self.stores.online, DATABASE, lane.prefix)
        with self.stores.online.read() as snapshot:
            missing = self.path.uncovered(snapshot.getter(DATABASE))
        names, rows = tuple(g.definition.name for g in missing), self._rows(missing)
        found = Materialized(0, self.fill(missing), names, self.newest(), rows)
        self.record(found, time.perf_counter() - began)
        return found

    def digest(self) -> str:
        """Return the digest of what reads can see."""
        with self.stores.online.read() as snapshot:
            return state_digest(snapshot, self.project.plan)

    def _rows(self, groups: Sequence[GroupPlan]) -> int:
        """Return how many reveals filling some groups reads."""
        names = {lane.source.name for group in groups for lane in group.lanes}
        described = [self.stores.tables.describe(reveals_table(name)) for name in names]
        return sum(d.rows for d in described if d is not None)


def _rate(done: int, began: float) -> str:
    return f"{done / max(time.perf_counter() - began, 1e-3):,.0f} reveals/s"


def rebuild_online(
    project: Project, *, group: str | None = None, state: str | None, progress: Progress, clock: Clock | None = None
) -> View:
    """Empty the online store, or one group of it, and fill it again from the offline tables; a damaged store is replaced.

    Raises:
        DataError: nothing was ingested yet.
        UsageError: the project has no such group.
    """
    now, began = clock or SystemClock(), time.perf_counter()
    wanted = None if group is None else find_group(project, group)
    damage = damage_of_online(project, state, clock=now)
    if damage is not None:
        renew_online(project, state, clock=now, purge=None)
    with open_stores(project, state, clock=now, write=True, create=False) as stores:
        work = Materializer(project, stores, progress)
        done = work.rebuild() if wanted is None or damage is not None else work.refill(wanted)
        return _shown("Rebuilt the online store", work, done, time.perf_counter() - began, damage)


def materialize(
    project: Project, *, groups: Sequence[str], state: str | None, progress: Progress, clock: Clock | None = None
) -> View:
    """Bring the online store up to the tables without training; `groups` are filled again even where they are whole.

    Raises:
        DataError: nothing was ingested yet.
        UsageError: the project has no such group.
    """
    wanted, began = [find_group(project, name) for name in groups], time.perf_counter()
    with open_stores(project, state, clock=clock or SystemClock(), write=True, create=False) as stores:
        for source in project.plan.sources:
            ensure_there(stores.tables, source)
        work = Materializer(project, stores, progress)
        with stores.online.write() as transaction:
            for group in wanted:
                transaction.delete(DATABASE, COVERED + bytes.fromhex(group.hash))
        done = work.bring_up()
        return _shown("Backfilled the online store", work, done, time.perf_counter() - began, None)


def find_group(project: Project, name: str) -> GroupPlan:
    """Return a group of the pipeline's dataset by its name.

    Raises:
        UsageError: there is none.
    """
    known = {group.definition.name: group for group in project.plan.groups}
    if name not in known:
        raise UsageError("no such feature group", got=name, expected=list(known), next_step=did_you_mean(name, known))
    return known[name]


def _shown(title: str, work: Materializer, done: Materialized, seconds: float, damage: object) -> View:
    digest = work.digest()
    data: dict[str, Any] = {"reveals": done.reveals, "keys": done.keys, "groups": list(done.filled)}
    data |= {"newest": done.newest, "digest": digest, "seconds": round(seconds, 3)}
    rows = [["reveals applied", f"{done.reveals:,}"], ["keys filled from history", f"{done.keys:,}"]]
    rows += [["groups filled", ", ".join(done.filled) or "none"], ["took", f"{seconds:.1f} s"], ["digest", digest]]
    notes = []
    if damage is not None:
        data["damaged"] = str(damage).splitlines()[0]
        notes.append(
            "The store was damaged and was replaced; what a control loop had in it begins anew from the ledger."
        )
    return View(title, data, [Table("What was done", ["", ""], rows)], notes)
