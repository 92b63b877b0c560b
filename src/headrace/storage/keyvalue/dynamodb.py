"""Keep keys and values in one DynamoDB table, the same bytes under the same keys as in LMDB.

An item stands under (partition, key). Partition DATABASE holds a database's rows. A value above 32,000 bytes lies in
parts under `/parts/TRANSACTION`, and its row names them; `/large` lists such rows. One item, `/` `state`, holds the rest:

    hr_format    which layout this is
    hr_fence     who wrote or writes last; everything that a writer changes demands that this is still itself
    hr_held      there while somebody writes; hr_beat counts up meanwhile, and a writer whose count stands still for the
                 length of a lease is dead
    hr_commits   how many transactions were committed
    hr_writing   the transaction for which journal or parts are being written; what is there of a dead one is removed
    hr_pending   the transaction that is committed and not applied everywhere yet: its rows stand in the journal, under
                 `/journal/TRANSACTION/PARTITION`, where readers look first and from where the next writer goes on
    hr_journal   the transaction that was applied, and whose journal is being removed
    hr_drop      parts that the last commit made useless

DynamoDB changes at most 100 items together. A transaction of up to 99 rows is one such change; a larger one is written
to the journal first, then committed by one change of the state, then applied in steps.
"""

from __future__ import annotations

import heapq
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from headrace.core.errors import BadUrl, Unavailable
from headrace.core.failpoints import reach
from headrace.storage.keyvalue.dynamodb_commit import STATE, Writer, journal_place, parts_of, row_of
from headrace.storage.keyvalue.dynamodb_table import KEY, PARTITION, READ_TOGETHER, VALUE, Condition, Item, Place, Table
from headrace.storage.keyvalue.errors import absent, closed, damaged, other_format, unknown_database
from headrace.storage.keyvalue.location import WHERE, Option, read_options
from headrace.storage.keyvalue.pending import PendingTransaction
from headrace.storage.keyvalue.protocol import MAX_KEY_BYTES, Capabilities, Get, digest_rows

FORMAT = 1
PAUSE_SECONDS = 0.005
OPTIONS = {
    option.name: option
    for option in (
        Option("region", "text", ""),
        Option("endpoint", "text", ""),
        Option("timeout", "duration", 1.0, 0.001, 60),
        Option("commit", "duration", 30.0, 0.01, 3_600),
        Option("lease", "duration", 10.0, 0.05, 3_600),
        Option("wait", "duration", 30.0, 0.001, 3_600),
        Option("pool", "number", 16, 2, 1_000),
    )
}
CAPABILITIES = Capabilities(snapshot=False, transactions=True, durable=True, processes=True, remote=True)


class DynamoKeyValue:
    """Implement the store in a DynamoDB table; any number of processes on any hosts may open it.

    Credentials are AWS's own: its environment variables, files or roles.

    Args:
        location: `TABLE[?SETTINGS]`, where the settings are
            region, endpoint: where the table lies, AWS's own settings unless said;
            timeout: for one read, 1s;
            commit: for every other call, 30s;
            lease: after how long a dead writer's place is free, 10s;
            wait: how long a writer waits for another, 30s;
            pool: connections at most, 16.
        databases: the names that it holds.
        read_only: refuse to create and to write.
    """

    def __init__(self, location: str, *, databases: Sequence[str], read_only: bool = False) -> None:
        parts = urlsplit(f"dynamodb:{location}")
        name = parts.path
        if not 3 <= len(name) <= 255 or not all(c.isalnum() or c in "_.-" for c in name):
            raise BadUrl(
                "not a dynamodb URL",
                where=WHERE,
                got=name,
                expected="dynamodb:TABLE, of 3 to 255 letters, digits, _, . or -",
            )
        settings = read_options(parts.query, OPTIONS, "dynamodb")
        self._where, self._read_only, self._databases = f"dynamodb:{name}", read_only, tuple(databases)
        self._table = Table(
            name,
            region=str(settings["region"]),
            endpoint=str(settings["endpoint"]),
            timeout=float(settings["timeout"]),
            commit=float(settings["commit"]),
            pool=int(settings["pool"]),
            where=self._where,
        )
        self._writing = threading.Lock()
        self._writer = Writer(self._table, lease=float(settings["lease"]), wait=float(settings["wait"]))
        self._closed = False
        self._ensure_fit()

    @property
    def capabilities(self) -> Capabilities:
        """Return what this backend can do."""
        return CAPABILITIES

    def read(self) -> _DynamoRead:
        """Open a view for the length of a `with` block; each of its calls sees one moment, a later one a later moment."""
        return _DynamoRead(self)

    def write(self) -> _DynamoWrite:
        """Open a transaction for the length of a `with` block; it commits unless the block raises."""
        return _DynamoWrite(self)

    def digest(self, *databases: str) -> str:
        """Return the SHA-256 of all rows in key order; nobody may write meanwhile."""
        with self.read() as view:
            return digest_rows(view, databases or self._databases)

    def close(self) -> None:
        """Release the store; later calls raise Unavailable."""
        self._closed = True
        self._writer.close()
        self._table.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ensure_fit(self) -> None:
        """Create what is missing, and raise unless the stored layout is this one."""
        if not self._read_only:
            if not self._table.exists():
                self._table.create()
            self._table.update(
                STATE,
                "SET hr_format = :format, hr_commits = :none, hr_fence = :nobody",
                Condition("attribute_not_exists(hr_format)", {":format": FORMAT, ":none": 0, ":nobody": "-"}),
            )
        state = self._table.get(STATE)
        if state is None:
            raise absent(self._where)
        if state.get("hr_format") != FORMAT:
            found = f"format {state.get('hr_format')}"
            raise other_format(self._where, found, f"format {FORMAT}", "name another table")

    def _ensure_open(self) -> None:
        if self._closed:
            raise closed(self._where)

    def _ensure_known(self, database: str) -> None:
        if database not in self._databases:
            raise unknown_database(database, self._databases, self._where)

    def _whole(self, rows: Iterable[Item | None]) -> dict[Place, bytes | None] | None:
        """Return the values of rows, large ones put together; None if one was replaced meanwhile."""
        found: dict[Place, bytes | None] = {}
        large = []
        for row in rows:
            if row is not None:
                found[row[PARTITION], row[KEY]] = row.get(VALUE)
                if "hr_parts" in row:
                    large.append(row)
        parts = self._table.get_batch(place for row in large for place in parts_of(row["hr_parts"]))
        for row in large:
            pieces = [parts.get(place) for place in parts_of(row["hr_parts"])]
            if None in pieces:
                return None
            found[row[PARTITION], row[KEY]] = b"".join(piece[VALUE] for piece in pieces if piece is not None)
        return found


class _DynamoView:
    """Read the store as it is; each `get` and `get_many` sees one moment.

    The writer's own view (`alone`) reads in batches: nobody else changes anything meanwhile.
    """

    def __init__(self, store: DynamoKeyValue, *, alone: bool = False) -> None:
        self._store, self._alone = store, alone

    def get(self, database: str, key: bytes) -> bytes | None:
        """Return the value of a key, or None."""
        return self.get_many(database, [key])[0]

    def get_many(self, database: str, keys: Iterable[bytes]) -> list[bytes | None]:
        """Return the values of keys, in their order, all as they were at one moment."""
        self._store._ensure_known(database)
        asked = list(keys)
        places: list[Place] = [(database, key) for key in dict.fromkeys(asked) if 0 < len(key) <= MAX_KEY_BYTES]
        found = self._at_one_moment(places) if places else {}
        return [found.get((database, key)) for key in asked]

    def _at_one_moment(self, places: list[Place]) -> dict[Place, bytes | None]:
        """Read rows in as many steps as they need, until no commit lies between them."""
        store, end = self._store, time.monotonic() + self._store._table.timeout
        pause = PAUSE_SECONDS
        while True:
            rows = list(store._table.get_batch(places).values()) if self._alone else self._attempt(places)
            found = None if rows is None else store._whole(rows)
            if found is not None:
                return found
            if time.monotonic() + pause > end:
                raise Unavailable("the rows kept changing while they were read", where=store._where, next_step="again")
            time.sleep(pause)

    def _attempt(self, places: list[Place]) -> Sequence[Item | None] | None:
        """Return rows, those of a committed transaction that is not applied yet from its journal; None to try again."""
        table, step = self._store._table, READ_TOGETHER - 1
        rows: list[Item | None] = []
        marks = set()
        for start in range(0, len(places), step):
            state, *part = table.get_together([STATE, *places[start : start + step]])
            marks.add(_mark(state))
            rows += part
        if len(marks) > 1:
            return None
        ((_, pending),) = marks
        if pending is None:
            return rows
        for start in range(0, len(places), step):
            part_of = places[start : start + step]
            state, *changed = table.get_together([STATE, *(journal_place(pending, place) for place in part_of)])
            if _mark(state) not in marks:
                return None
            for at, (place, change) in enumerate(zip(part_of, changed, strict=True), start):
                rows[at] = rows[at] if change is None else row_of(place, change)
        return rows

    def getter(self, database: str) -> Get:
        """Return the function that reads one database, a round trip a key; ask `get_many` for several."""
        self._store._ensure_known(database)
        return lambda key: self.get_many(database, [key])[0]

    def items(self, database: str, prefix: bytes = b"", after: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Walk the rows whose key begins with `prefix`, in key order, those above `after` only, as commits leave them."""
        store = self._store
        store._ensure_known(database)
        low = prefix if after is None or after < prefix else after
        pending = (store._table.get(STATE) or {}).get("hr_pending")
        changed = {}
        if pending is not None:
            for change in store._table.walk(f"/journal/{pending}/{database}", low):
                changed[change[KEY]] = row_of((database, change[KEY]), change)
        new = sorted((key, row) for key, row in changed.items() if row is not None)
        old = ((row[KEY], row) for row in store._table.walk(database, low) if row[KEY] not in changed)
        for key, row in heapq.merge(old, new, key=lambda pair: pair[0]):
            if not key.startswith(prefix):
                break
            if after is None or key > after:
                values = store._whole([row])
                if values is None:
                    raise damaged(store._where, f"parts of key {key[:80]!r} are absent")
                yield key, values[database, key] or b""

    def count(self, database: str) -> int:
        """Return the number of rows, by walking them."""
        return sum(1 for _ in self.items(database))


class _DynamoRead:
    """Open a view; it holds nothing on the server."""

    def __init__(self, store: DynamoKeyValue) -> None:
        self._store = store

    def __enter__(self) -> _DynamoView:
        self._store._ensure_open()
        return _DynamoView(self._store)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave nothing behind: the view holds nothing."""


class _DynamoWrite:
    """Become the one writer, and commit when the block ends well and nobody took over."""

    def __init__(self, store: DynamoKeyValue) -> None:
        self._store = store

    def __enter__(self) -> PendingTransaction:
        store, writer = self._store, self._store._writer
        store._ensure_open()
        if store._read_only:
            raise Unavailable("the store was opened for reading only", where=store._where)
        if not store._writing.acquire(timeout=writer.wait):
            raise writer.busy("another thread's transaction is open")
        try:
            writer.take(uuid.uuid4().hex)
        except BaseException:
            store._writing.release()
            raise
        self._transaction = PendingTransaction(_DynamoView(store, alone=True), store._where)
        return self._transaction

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        store, committed = self._store, False
        try:
            if kind is None:
                reach("keyvalue.before_commit")
                if any(self._transaction.changes.values()):
                    store._writer.commit(self._transaction.changes)
                    committed = True
                reach("keyvalue.after_commit")
        except OSError as failure:
            raise Unavailable("the store could not be written", where=store._where, got=failure) from failure
        finally:
            try:
                if not committed:
                    store._writer.release()
            finally:
                store._writing.release()


def _mark(state: Item | None) -> tuple[int, str | None]:
    """Return what is the same in two reads exactly if no commit and no application lies between them."""
    found = state or {}
    return int(found.get("hr_commits", 0)), found.get("hr_pending")
