"""Put reveals that were kept aside into a source's table and its online state, also beside a running server.

Killed anywhere and called again with the same reveals, it leaves what one call leaves: the table takes them once, and the
online state is a pure function of the set of reveals that were applied. A server takes in streams meanwhile: every store
takes several writers, and their order does not matter.
"""

from __future__ import annotations

from headrace.core.failpoints import reach
from headrace.features.stream import DATABASE, StreamPath
from headrace.pipelines.project import Project
from headrace.pipelines.reveals import append_reveals, reveals_table, without_known
from headrace.pipelines.stores import Stores, note_applied
from headrace.sources.record import ARRIVAL, CONTENT, ROW_ID, RevealBatch
from headrace.storage.tables.protocol import Commit, Position

APPLY_AT_ONCE = 10_000  # reveals to a commit of the online store


def ingest_reveals(project: Project, stores: Stores, batch: RevealBatch, position: Position | None = None) -> None:
    """Put reveals into their source's table and, where it exists already, into the online state.

    With a `position` the table takes them once; without one, those that it does not have.

    Raises:
        ConfigurationError: the online rows are of other columns than the class; nothing was written.
        SchemaConflict: the class changed otherwise than by a new nullable column; nothing was written.
    """
    path, source = StreamPath([project.plan]), batch.source
    with stores.online.read() as snapshot:
        path.uncovered(snapshot.getter(DATABASE))
    reveals = batch.table
    if position is None:
        reveals = without_known(stores.tables, reveals_table(source.name), reveals, [ROW_ID, ARRIVAL, CONTENT])
    commit = append_reveals(stores.tables, source, reveals, position) if reveals.num_rows else None
    reach("ingest.stored")
    starts = range(0, len(batch), APPLY_AT_ONCE)
    for start in starts:
        part = RevealBatch(source, batch.table.slice(start, APPLY_AT_ONCE))
        _apply(stores, path, part, commit if start == starts[-1] else None)
    reach("ingest.applied")


def _apply(stores: Stores, path: StreamPath, batch: RevealBatch, commit: Commit | None) -> None:
    """Apply reveals to the online state; where nothing was applied yet, `run` applies the tables as a whole.

    With the last of them it is noted that what a `commit` brought to the table is applied.
    """
    with stores.online.write() as transaction:
        access, reveals = transaction.access(DATABASE), list(batch.reveals())
        newest = path.newest(access.get)
        if newest is None:
            return
        if stores.online.capabilities.remote:
            path.fetch(transaction, batch.source.name, reveals)
        for reveal in reveals:
            path.apply(access, batch.source.name, reveal)
            newest = max(newest, reveal.arrival)
        path.commit(access, newest, {})
        note_applied(transaction, batch.source.name, commit)
