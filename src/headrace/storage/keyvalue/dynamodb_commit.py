"""Write to a DynamoDB table as one writer at a time, all of a transaction or nothing; the layout is `dynamodb.py`'s.

Whatever a killed writer leaves, the next one finishes if it was committed and removes if it was not.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from headrace.core.errors import Conflict, Unavailable
from headrace.core.failpoints import reach
from headrace.storage.keyvalue.dynamodb_table import (
    KEY,
    PARTITION,
    VALUE,
    WRITE_TOGETHER,
    Condition,
    Item,
    Place,
    Table,
)
from headrace.storage.keyvalue.errors import other_writer
from headrace.storage.keyvalue.lease import Keeper
from headrace.storage.keyvalue.pending import Changes

INLINE = 32_000  # bytes of a value inside its row, so that 99 rows stay below the 4 MB of one transaction
PART = 350_000  # an item holds 400 kB at most
STATE: Place = ("/", b"state")
LARGE = "/large"
STEP = WRITE_TOGETHER - 1  # rows beside the state in one transaction of DynamoDB
RENEWALS = 3
PAUSES = 0.005, 0.2
OURS = "hr_fence = :fence"


class Writer:
    """Hold the table for one process's transactions, one after the other.

    Args:
        table: the table.
        lease: seconds without a sign of life after which another writer is dead.
        wait: seconds to wait for another writer.
    """

    def __init__(self, table: Table, *, lease: float, wait: float) -> None:
        self.table, self.lease, self.wait = table, lease, wait
        self._large: dict[Place, str] = {}
        self._last = ""  # the fence when this process knew what the table holds
        self._token = ""
        self._begun = False
        self._keeper = Keeper("headrace-dynamodb-lease", lease / RENEWALS, self._show_life)

    def take(self, token: str) -> None:
        """Wait until nobody else writes, take over, and finish what a dead writer left.

        Raises:
            Unavailable: somebody else writes all the time, or the table cannot be reached.
        """
        end, pause = time.monotonic() + self.wait, PAUSES[0]
        seen, since = None, 0.0
        before = self._try("attribute_not_exists(hr_held)", token, {})
        while before is None:
            state = self.table.get(STATE) or {}
            mark, now = (str(state.get("hr_fence")), int(state.get("hr_beat", 0))), time.monotonic()
            if mark != seen:
                seen, since = mark, now
            if now - since >= self.lease:
                before = self._try(f"{OURS} AND hr_beat = :beat", token, {":fence": mark[0], ":beat": mark[1]})
            else:
                before = self._try("attribute_not_exists(hr_held)", token, {})
            if before is None and now + pause > end:
                raise self.busy("another process writes")
            if before is None:
                time.sleep(pause)
                pause = min(2 * pause, PAUSES[1])
        if "hr_format" not in before:
            raise Unavailable("DynamoDB answered in part", where=self.table.where, next_step="try again")
        self._token, self._begun = token, False
        self._keeper.hold(token)
        if before.get("hr_fence") != self._last:
            self._clear_up(before)

    def _show_life(self, token: str) -> None:
        """Count the beat up: whoever waits for the lease sees that its holder lives."""
        ours = Condition(f"{OURS} AND attribute_exists(hr_held)", {":fence": token, ":one": 1})
        self.table.update(STATE, "ADD hr_beat :one", ours)

    def _try(self, demand: str, token: str, values: Mapping[str, object]) -> Item | None:
        change = "SET hr_fence = :token, hr_held = :one, hr_beat = :none"
        return self.table.update(STATE, change, Condition(demand, {":token": token, ":one": 1, ":none": 0, **values}))

    def busy(self, got: str) -> Unavailable:
        """Return the error for a table that another writer holds for too long."""
        return other_writer(self.table.where, got, self.wait)

    def _clear_up(self, before: Item) -> None:
        """Finish or remove what other writers left, and learn which values are large now."""
        partitions = str(before.get("hr_partitions", "")).split("\0")
        if "hr_pending" in before:
            self._apply(before["hr_pending"], partitions)
        elif "hr_journal" in before:
            self._forget_journal(before["hr_journal"], partitions)
        if "hr_writing" in before:
            wanted = before["hr_writing"]
            self._drop(f"/parts/{wanted}")
            self._forget_journal(wanted, partitions)
            self._change("REMOVE hr_writing")
        self._drop_parts(str(before.get("hr_drop", "")))
        self._large = {_place(row[KEY]): row["hr_parts"] for row in self.table.walk(LARGE)}

    def release(self) -> None:
        """Let the next writer in; where the table cannot be reached, the lease runs out."""
        self._keeper.let_go()
        with suppress(Unavailable, Conflict):
            self._change("REMOVE hr_held, hr_beat")
            if not self._begun:
                self._last = self._token

    def close(self) -> None:
        """End the sign of life."""
        self._keeper.close()

    def commit(self, changes: Mapping[str, Changes]) -> None:
        """Apply changes as a whole, and let the next writer in.

        Raises:
            Conflict: another writer took over; nothing was written.
            Unavailable: the table cannot be reached; the changes were applied as a whole or not at all.
        """
        self._begun = True  # where this fails, the next transaction clears up
        plan = _Plan.of(changes, self._large, self._token)
        small = len(plan.puts) + len(plan.deletes) <= STEP
        if plan.parts or not small:
            self._change("SET hr_writing = :txn, hr_partitions = :all", {":txn": self._token, ":all": plan.partitions})
            self.table.write_batch(plan.parts)
            reach("keyvalue.after_parts")
        if small:
            self._commit_at_once(plan)
        else:
            self._commit_by_journal(plan)
        self._keeper.let_go()
        self._large, self._last = plan.large, self._token
        with suppress(Unavailable):  # the next writer of another process drops them too
            self._drop_parts(plan.dropped)

    def _commit_at_once(self, plan: _Plan) -> None:
        change = "SET hr_drop = :drop REMOVE hr_held, hr_beat, hr_writing ADD hr_commits :one"
        values = {":fence": self._token, ":drop": plan.dropped, ":one": 1}
        guard = self.table.guard(STATE, Condition(OURS, values), change)
        if not self.table.write_together(guard, plan.puts, plan.deletes, self._token):
            raise self._lost()

    def _commit_by_journal(self, plan: _Plan) -> None:
        self.table.write_batch(plan.journal(self._token))
        reach("keyvalue.after_journal")
        self._change(
            "SET hr_pending = :txn, hr_drop = :drop REMOVE hr_writing ADD hr_commits :one",
            {":txn": self._token, ":drop": plan.dropped, ":one": 1},
        )
        reach("keyvalue.after_decision")
        self._apply(self._token, plan.partitions.split("\0"))
        self._change("REMOVE hr_held, hr_beat")

    def _apply(self, transaction: str, partitions: Iterable[str]) -> None:
        """Bring a committed transaction's rows from the journal to their places; a repetition changes nothing."""
        ours = Condition(f"{OURS} AND hr_pending = :txn", {":fence": self._token, ":txn": transaction})
        step = 0
        for partition in partitions:
            for rows in _steps(self.table.walk(_journal_of(transaction, partition))):
                places = {(partition, row[KEY]): row_of((partition, row[KEY]), row) for row in rows}
                puts = [row for row in places.values() if row is not None]
                deletes = [place for place, row in places.items() if row is None]
                name = f"{self._token[:16]}{transaction[:12]}{step:08d}"
                if not self.table.write_together(self.table.guard(STATE, ours), puts, deletes, name):
                    raise self._lost()
                reach("keyvalue.after_step")
                step += 1
        self._change("SET hr_journal = :txn REMOVE hr_pending", {":txn": transaction})
        reach("keyvalue.after_application")
        self._forget_journal(transaction, partitions)

    def _forget_journal(self, transaction: str, partitions: Iterable[str]) -> None:
        for partition in partitions:
            self._drop(_journal_of(transaction, partition))
        self._change("REMOVE hr_journal")

    def _drop(self, partition: str) -> None:
        self.table.write_batch(deletes=[(partition, row[KEY]) for row in self.table.walk(partition)])

    def _drop_parts(self, references: str) -> None:
        self.table.write_batch(deletes=[place for ref in references.split() for place in parts_of(ref)])

    def _change(self, change: str, values: Mapping[str, object] | None = None) -> None:
        if self.table.update(STATE, change, Condition(OURS, {":fence": self._token, **(values or {})})) is None:
            raise self._lost()

    def _lost(self) -> Conflict:
        return Conflict(
            "another writer took over while this transaction was open",
            where=self.table.where,
            got=f"no sign of life for {self.lease:g} s",
            expected="nothing of it to be there, or, if it was committed by then, all of it",
            next_step="run it again; if processes pause for so long, raise lease=… in the URL",
        )


@dataclass
class _Plan:
    """Hold what a commit writes: rows, parts of large values, and which older parts are of no use afterwards."""

    puts: list[Item] = field(default_factory=list)
    deletes: list[Place] = field(default_factory=list)
    parts: list[Item] = field(default_factory=list)
    large: dict[Place, str] = field(default_factory=dict)
    dropped: str = ""

    @classmethod
    def of(cls, changes: Mapping[str, Changes], large: Mapping[Place, str], transaction: str) -> _Plan:
        plan = cls(large=dict(large))
        old = []
        for database, changed in changes.items():
            for key, value in changed.items():
                reference = plan.large.pop((database, key), None)
                if reference is not None:
                    old.append(reference)
                plan._add((database, key), value, transaction, was_large=reference is not None)
        plan.dropped = " ".join(old)
        return plan

    def _add(self, place: Place, value: bytes | None, transaction: str, *, was_large: bool) -> None:
        index = LARGE, place[0].encode() + b"\0" + place[1]
        if value is not None and len(value) > INLINE:
            first = len(self.parts)
            for at in range(0, len(value), PART):
                number = struct.pack(">I", len(self.parts))
                self.parts.append({PARTITION: f"/parts/{transaction}", KEY: number, VALUE: value[at : at + PART]})
            reference = f"{transaction}/{first}/{len(self.parts) - first}"
            self.large[place] = reference
            self.puts += [{PARTITION: p, KEY: k, "hr_parts": reference} for p, k in (place, index)]
            return
        if was_large:
            self.deletes.append(index)
        if value is None:
            self.deletes.append(place)
        else:
            self.puts.append({PARTITION: place[0], KEY: place[1], VALUE: value})

    @property
    def partitions(self) -> str:
        """Return the partitions in which rows change, joined by NUL."""
        return "\0".join(sorted({*(row[PARTITION] for row in self.puts), *(place[0] for place in self.deletes)}))

    def journal(self, transaction: str) -> Iterator[Item]:
        """Yield the rows as they stand in the journal until they are applied."""
        for row in self.puts:
            yield row | {PARTITION: _journal_of(transaction, row[PARTITION])}
        for partition, key in self.deletes:
            yield {PARTITION: _journal_of(transaction, partition), KEY: key, "hr_gone": 1}


def journal_place(transaction: str, place: Place) -> Place:
    """Return where a transaction's change of a row stands until it is applied."""
    return _journal_of(transaction, place[0]), place[1]


def row_of(place: Place, change: Item) -> Item | None:
    """Return the row that a change in the journal makes; None if it removes it."""
    return None if "hr_gone" in change else change | {PARTITION: place[0], KEY: place[1]}


def parts_of(reference: str) -> list[Place]:
    """Return where the parts of a large value lie."""
    transaction, first, count = reference.split("/")
    return [(f"/parts/{transaction}", struct.pack(">I", int(first) + i)) for i in range(int(count))]


def _journal_of(transaction: str, partition: str) -> str:
    return f"/journal/{transaction}/{partition}"


def _place(index: bytes) -> Place:
    database, _, key = index.partition(b"\0")
    return database.decode(), key


def _steps(rows: Iterator[Item]) -> Iterator[list[Item]]:
    step: list[Item] = []
    for row in rows:
        step.append(row)
        if len(step) == STEP:
            yield step
            step = []
    if step:
        yield step
