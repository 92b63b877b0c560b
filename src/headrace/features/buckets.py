"""Answer for the past bucket by bucket, on any engine, from files: for logs that are larger than memory, or many workers.

Reveals are dealt out to buckets by row id, since a row's versions follow from its own reveals alone; each bucket's versions
become lane events, which are dealt out again by the lane's key, since windows read one key's events alone. The kernel then
scans each bucket's keys. A key is never cut, so the results are those of one bucket, bit for bit.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from headrace.core.errors import Unavailable
from headrace.core.expressions import Column
from headrace.core.settings import EngineSettings
from headrace.engines import Engine, Tables
from headrace.engines.local import LocalEngine
from headrace.features.bucket_work import (
    FIRST,
    LABEL,
    PLACE,
    SEEN,
    VERSION,
    Rows,
    Scan,
    Shown,
    T,
    Unfold,
    bare_lane,
    bare_source,
)
from headrace.features.history import History, Ints, Late
from headrace.features.keys import Keys, dense_keys
from headrace.features.label_plan import TableLabel
from headrace.features.lane_plan import LanePlan
from headrace.features.offline import LaneAnswers, fill_queries, refuse_missing
from headrace.features.past import HistoryPast, OwnRows, RowsAsked, WholePast
from headrace.features.plan import DatasetPlan, FeaturePlan
from headrace.features.record import NULL
from headrace.features.snapshots import Copies
from headrace.sources.definition import SourceDefinition
from headrace.sources.record import ARRIVAL, ROW_ID
from headrace.storage.work import work_in

BUCKET_ROWS: int = EngineSettings.model_fields["bucket_rows"].default
SMALLEST = 65_536  # rows of a dataset that are read at a time
PACKED = pa.ipc.IpcWriteOptions(compression="lz4")
DEALT, PARTS = 262_144, 256  # rows that are dealt at a time, unless that would make more files than these


@dataclass(frozen=True)
class Streamed:
    """Hold reveals that are read piece by piece, in their order: about how many, and what yields them.

    Where they may be in memory together, `whole` reads them at once, if that is quicker.
    """

    rows: int
    read: Callable[[], Iterator[pa.Table]]
    whole: Callable[[], pa.Table | Late] | None = None


Reveals: TypeAlias = pa.Table | pads.Dataset | Streamed
Told = Callable[[str, int, int], None]  # what is done, how many buckets, of how many


@dataclass
class Shuffle:
    """Deal rows out to buckets through files of a folder: each holds one Arrow batch for every bucket."""

    folder: Path
    count: int
    files: list[Path] = field(default_factory=list)
    rows: int = 0

    def add(self, table: pa.Table, bucket: Ints) -> None:
        """Write rows, each to its bucket.

        Raises:
            Unavailable: the folder is full or cannot be written.
        """
        order = np.argsort(bucket, kind="stable")
        ends = np.searchsorted(bucket[order], np.arange(self.count), side="right")
        batches = table.take(pa.array(order)).combine_chunks().to_batches()
        nothing = _nothing(table.schema)
        dealt = batches[0] if batches else nothing
        path = self.folder / f"{len(self.files)}.arrow"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema, options=PACKED) as writer:
                for start, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
                    # A slice without rows would be written with all of the texts that it was cut from.
                    writer.write_batch(dealt.slice(start, end - start) if end > start else nothing)
        except OSError as error:
            raise Unavailable(
                "buckets cannot be written",
                where=str(self.folder),
                got=error.strerror or error,
                expected="room for about twice the data",
                next_step="free disk space, or set [engines] work to a folder with more",
            ) from error
        self.files.append(path)
        self.rows += table.num_rows

    def opened(self) -> Callable[[int], pa.Table]:
        """Return a function that reads one bucket, in the order in which its rows were added; files stay open with it."""
        files = [pa.ipc.open_file(pa.OSFile(str(path))) for path in self.files]
        return lambda place: pa.Table.from_batches([file.get_batch(place) for file in files])


def _nothing(schema: pa.Schema) -> pa.RecordBatch:
    return pa.record_batch([pa.array([], f.type) for f in schema], schema=schema)


@dataclass(frozen=True)
class _Work(Sequence[Tables]):
    """Hold buckets that are read when they are asked for."""

    total: int
    read: Callable[[int], Tables]

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, place: Any) -> Any:
        return self.read(place)


class BucketedPast:
    """Answer for the past from the buckets of some sources' reveals; `folder` is its own and holds them.

    Args:
        lanes: the lanes that will be asked for.
        reveals: each source's reveals, as a table or as a dataset that is read piece by piece.
        as_of: what arrived later is left out (microseconds UTC).
        engine: where buckets are computed.
        folder: an empty folder; the caller removes it.
        bucket_rows: how many reveals a bucket should hold; it bounds memory.
        told: is told how far each step has come.
        living: hold of lanes only the events that hold at `as_of`, for who stores them; then nothing can be asked.
        samples: some of a source's row ids, in order: its buckets are then ranges of ids, one behind the other.
    """

    def __init__(
        self,
        sources: Sequence[SourceDefinition],
        lanes: Sequence[LanePlan],
        reveals: Mapping[str, Reveals],
        *,
        as_of: int,
        engine: Engine,
        folder: Path,
        bucket_rows: int,
        told: Told | None = None,
        living: bool = False,
        samples: Mapping[str, Sequence[bytes]] | None = None,
    ) -> None:
        self.as_of, self.engine, self.folder, self.told, self.living = as_of, engine, folder, told, living
        self.count, self.samples = buckets_for(reveals, engine, bucket_rows), samples or {}
        dated = {lane.source.name for lane in lanes if lane.dated}
        self.copies: dict[str, Copies] = {}
        self.newest: dict[str, int] = {}
        self.reveals = {s.name: self._deal(s, reveals[s.name], bucket_rows, dated=s.name in dated) for s in sources}
        self.lanes: dict[LanePlan, tuple[LanePlan, Shuffle]] = {}
        for source in sources:
            mine = [lane for lane in lanes if lane.source.name == source.name]
            self._unfold(source, list(dict.fromkeys(mine)))

    def _deal(self, source: SourceDefinition, reveals: Reveals, at_once: int, *, dated: bool) -> Shuffle:
        found, place, number = Shuffle(self.folder / source.name, self.count), 0, self._dealer(source.name)
        copies: list[Copies] = []
        for table in _pieces(reveals, min(at_once, max(DEALT, -(-_rows(reveals) // PARTS)))):
            numbered = table.append_column(PLACE, pa.array(np.arange(place, place + table.num_rows)))
            place += table.num_rows
            numbered = numbered.filter(pc.less_equal(numbered[ARRIVAL], self.as_of))
            if dated:
                copies.append(Copies.of(source, numbered))
            newest = pc.max(numbered[ARRIVAL]).as_py()
            if newest is not None:
                self.newest[source.name] = max(newest, self.newest.get(source.name, newest))
            found.add(numbered, number(numbered[ROW_ID].to_pylist()))
        if dated:
            self.copies[source.name] = Copies.joined(copies)
        return found

    def _dealer(self, source: str) -> Callable[[Sequence[bytes]], Ints]:
        """Return what numbers the buckets of some row ids."""
        sample = self.samples.get(source)
        if sample is None:
            return lambda ids: hashes_of(ids) % self.count
        cuts = [sample[len(sample) * i // self.count] for i in range(1, self.count)] if sample else []
        return lambda ids: np.fromiter((bisect_right(cuts, row) for row in ids), np.int64, len(ids))

    def _unfold(self, source: SourceDefinition, lanes: Sequence[LanePlan]) -> None:
        if not lanes:
            return
        plain, stored = [bare_lane(lane) for lane in lanes], self.reveals[source.name].opened()
        shuffles = [Shuffle(self.folder / f"{source.name}-{i}", self.count) for i in range(len(lanes))]
        work = Unfold(bare_source(source), tuple(plain), self.as_of, self.living)
        for tables in self._run(work, f"events of {source.name}", lambda place: [stored(place)]):
            for shuffle, table in zip(shuffles, tables, strict=True):
                encoded = table["key"].combine_chunks().dictionary_encode()
                number = hashes_of(encoded.dictionary.to_pylist())[encoded.indices.to_numpy()]
                shuffle.add(table, number % self.count)
        for lane, bare, shuffle in zip(lanes, plain, shuffles, strict=True):
            self.lanes[lane] = bare, shuffle

    def _run(self, work: Callable[[Tables], Tables], name: str, read: Callable[[int], Tables]) -> Iterator[Tables]:
        told = self.told
        progress = None if told is None else lambda done, total: told(name, done, total)
        return self.engine.map_buckets(work, _Work(self.count, read), progress=progress)

    def ask(self, lane: LanePlan, keys: Keys, t: Ints, *, as_of: int | None = None) -> LaneAnswers:
        """Return a lane's outputs for rows at moments `t`, see `Past.ask`."""
        bare, shuffle = self.lanes[lane]
        stored = shuffle.opened()
        bucket = np.append(hashes_of(keys.distinct.to_pylist()) % self.count, self.count)[keys.place]
        order = np.argsort(bucket, kind="stable")
        ends = np.append(0, np.searchsorted(bucket[order], np.arange(self.count), side="right"))
        distinct = pa.concat_arrays([keys.distinct, pa.nulls(1, pa.binary())])

        def read(place: int) -> Tables:
            rows = order[ends[place] : ends[place + 1]]
            asked = {"key": distinct.take(pa.array(keys.place[rows])), "t": pa.array(t[rows])}
            return [stored(place), pa.table(asked)]

        words = np.zeros((len(t), len(lane.outputs)), np.int64)
        status = np.full((len(t), len(lane.outputs)), NULL, np.uint8)
        texts: dict[int, list[pa.Array]] = {i: [] for i, c in enumerate(lane.columns) if c.dtype == "str"}
        name = f"windows of {lane.columns[0].name}"
        copies = self.copies[lane.source.name] if lane.dated else None
        for place, (found,) in enumerate(self._run(Scan(bare, as_of, copies), name, read)):
            rows = order[ends[place] : ends[place + 1]]
            for i in range(len(lane.outputs)):
                words[rows, i], status[rows, i] = found[f"w{i}"].to_numpy(), found[f"s{i}"].to_numpy()
            for i, parts in texts.items():
                parts.append(found[f"t{i}"].combine_chunks())
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        place_of = pa.array(back, mask=back >= ends[-1])
        return LaneAnswers(words, status, {i: pa.concat_arrays(parts).take(place_of) for i, parts in texts.items()})

    def own_rows(self, asked: RowsAsked) -> OwnRows:
        """Return a source's rows."""
        stored = self.reveals[asked.source.name].opened()
        work = Rows(replace(asked, source=bare_source(asked.source)))
        parts = [found for (found,) in self._run(work, f"rows of {asked.source.name}", lambda place: [stored(place)])]
        table = pa.concat_tables(parts)
        t, first = table[T].to_numpy(), table[FIRST].to_numpy()
        order = np.lexsort((first, t))
        table = table.take(pa.array(order)).combine_chunks()
        rows = table.select([c.name for c in asked.source.columns])
        return OwnRows(rows, t[order], table[LABEL].to_numpy().copy(), table[SEEN].to_numpy())

    def keys(self, source: SourceDefinition, columns: tuple[Column[Any], ...]) -> tuple[pa.Table, int]:
        """Return the different keys that rows have shown, see `WholePast.keys`."""
        stored = self.reveals[source.name].opened()
        work = Shown(bare_source(source), columns, self.as_of)
        parts = list(self._run(work, f"keys of {source.name}", lambda place: [stored(place)]))
        shown = pa.concat_tables([found for found, _ in parts]).sort_by([(FIRST, "ascending"), (VERSION, "ascending")])
        earliest = [value for _, found in parts for value in found["arrival"].to_pylist()]
        keys, place = dense_keys([shown[c.name] for c in columns])
        first = np.zeros(len(keys), np.int64)
        first[place[::-1]] = np.arange(len(place))[::-1]
        return shown.select([c.name for c in columns]).take(pa.array(first)), min(earliest, default=0)


def _pieces(reveals: Reveals, at_once: int) -> Iterator[pa.Table]:
    """Yield reveals in portions, at least one."""
    if isinstance(reveals, pa.Table):
        yield from (reveals.slice(start, at_once) for start in range(0, max(reveals.num_rows, 1), at_once))
        return
    waiting: list[pa.Table] = []
    rows = 0
    for part in _parts(reveals, min(at_once, SMALLEST)):
        if rows + part.num_rows > at_once and rows:
            yield pa.concat_tables(waiting)
            waiting, rows = [], 0
        waiting.append(part)
        rows += part.num_rows
    yield pa.concat_tables(waiting)


def _parts(reveals: pads.Dataset | Streamed, small: int) -> Iterator[pa.Table]:
    """Yield what a dataset's files or a table store give at a time; the first may be empty."""
    if isinstance(reveals, Streamed):
        yield from reveals.read()
        return
    yield reveals.schema.empty_table()
    for batch in reveals.to_batches(batch_size=small, batch_readahead=1, fragment_readahead=1):
        yield pa.Table.from_batches([batch])


def hashes_of(keys: Sequence[bytes]) -> Ints:
    """Return a number for each key that says to which bucket it is dealt."""
    return np.fromiter((zlib.crc32(key) for key in keys), np.int64, len(keys))


def buckets_for(reveals: Mapping[str, Reveals], engine: Engine, bucket_rows: int) -> int:
    """Return how many buckets to make: none holds many more rows than asked for, and every worker has one."""
    return max(-(-_largest(reveals) // bucket_rows), engine.capabilities.workers, 1)


def _largest(reveals: Mapping[str, Reveals]) -> int:
    return max(map(_rows, reveals.values()), default=0)


def _rows(reveals: Reveals) -> int:
    if isinstance(reveals, Streamed):
        return reveals.rows
    return int(reveals.num_rows if isinstance(reveals, pa.Table) else reveals.count_rows())


@dataclass(frozen=True)
class Spread:
    """Say where features of many rows are computed, and in which portions.

    Attributes:
        engine: in this process unless said.
        folder: where buckets lie meanwhile; it must exist. The system's folder for temporary files unless said.
        bucket_rows: how many reveals a bucket should hold; it bounds memory.
        told: is told how far each step has come.
    """

    engine: Engine = field(default_factory=LocalEngine)
    folder: Path | None = None
    bucket_rows: int = BUCKET_ROWS
    told: Told | None = None

    @contextmanager
    def past(
        self, sources: Sequence[SourceDefinition], lanes: Sequence[LanePlan], reveals: Mapping[str, Reveals], as_of: int
    ) -> Iterator[WholePast]:
        """Answer for some sources' reveals that had arrived by `as_of`: from memory where they fit into one bucket here.

        Queries are asked here, over whole tables, and what they give is dealt out like any source's reveals.

        Raises:
            DataError: a source has no reveals, or a query fails on its rows.
            Unavailable: buckets cannot be written, or workers died.
        """
        refuse_missing(sources, reveals)
        queried = [source for source in sources if source.query is not None]
        if queried:
            read = {feed.name: _table(reveals[feed.name]) for source in queried for feed in source.feeds}
            reveals = {**reveals, **fill_queries(queried, read, as_of)}
        reveals = {source.name: reveals[source.name] for source in sources}
        here = not self.engine.capabilities.isolated and _largest(reveals) <= self.bucket_rows
        if here:
            built = {s.name: History.build(s, _table(reveals[s.name]), as_of) for s in sources}
            yield HistoryPast({name: history.holding(_shared(name, lanes)) for name, history in built.items()})
            return
        with work_in(self.folder) as folder:
            yield BucketedPast(
                sources,
                lanes,
                reveals,
                as_of=as_of,
                engine=self.engine,
                folder=folder,
                bucket_rows=self.bucket_rows,
                told=self.told,
            )


def _shared(source: str, lanes: Sequence[LanePlan]) -> list[str]:
    """Return the columns of a source that more than one lane reads."""
    reads = Counter(column.name for lane in dict.fromkeys(lanes) if lane.source.name == source for column in lane.reads)
    return [name for name, lanes_reading in reads.items() if lanes_reading > 1]


def _table(reveals: Reveals) -> pa.Table | Late:
    if isinstance(reveals, Streamed):
        return pa.concat_tables(reveals.read()) if reveals.whole is None else reveals.whole()
    return reveals if isinstance(reveals, pa.Table) else reveals.to_table()


def lanes_of(plan: FeaturePlan, *, labels: bool = True) -> list[LanePlan]:
    """Return the lanes that a plan's features read, and for a dataset's those of its grid and of its label."""
    found = [lane for binding in plan.bindings for lane in binding.lanes]
    if isinstance(plan, DatasetPlan):
        found += [] if plan.active is None else plan.active.lanes
        if labels and isinstance(plan.label, TableLabel):
            found += [lane for lane in (plan.label.lane, plan.label.spoilt) if lane is not None]
    return found
