"""Open every store of a project's state folder together, and close them together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson

from headrace.core.errors import Corrupt
from headrace.core.failpoints import reach
from headrace.core.time import Clock
from headrace.features.stream import DATABASE
from headrace.pipelines.project import Project
from headrace.registry.run import Registry
from headrace.storage.blobs import Blobs, open_blobs
from headrace.storage.keyvalue import Get, KeyValue, Transaction, drop_keyvalue, examine_keyvalue, open_keyvalue
from headrace.storage.ledger import Ledger, open_ledger
from headrace.storage.paths import write_atomically
from headrace.storage.state import StateFolder
from headrace.storage.tables import Commit, Tables, open_tables
from headrace.storage.work import clear_work

CONTROL = "control"
DATABASES = (DATABASE, CONTROL)
PREDICTIONS = "predictions"
WORK = "work"  # files that are there only while something is computed
SAFE = "renewing"
APPLIED = b"Fapplied"  # in the features' database, so that one read gets it with the features
FLOOR = b"Ffloor"  # of a source: the version that is applied whole, while some more of the table is being applied
APART = b"Fapart"  # of a source: spans of applied versions, while some between them are missing
REBUILD = b"rebuild"  # in the control database while a rebuild is unfinished


@dataclass(frozen=True)
class Stores:
    """Hold a project's open stores."""

    state: StateFolder
    ledger: Ledger
    online: KeyValue
    blobs: Blobs
    tables: Tables

    @property
    def predictions(self) -> Path:
        """Return the folder of the prediction log."""
        return self.state.folder(PREDICTIONS)


def applied_key(source: str) -> bytes:
    """Return under which key of the features' database the table version stands that was applied to them."""
    return APPLIED + source.encode()


def applied_versions(get: Get, sources: Sequence[str]) -> dict[str, int] | None:
    """Return the version of each source's reveals table that the online features hold whole; None if that is not known."""
    held = {source: get(applied_key(source)) for source in sources}
    known = {source: int(version) for source, version in held.items() if version is not None}
    return known if len(known) == len(held) else None


def note_applied(transaction: Transaction, source: str, commit: Commit | None) -> None:
    """Note that all that a commit of a source's reveals table brought is applied now, in the transaction that did it.

    Processes that share a source's partitions may apply their commits in another order than the table took them: which
    version is held is unknown while one is missing, and known again when it comes. A commit that a killed process had
    made is told under the table's newest version, never under an older one; its own is missing then, and the version stays
    unknown until the features are brought up to the table (`headrace.pipelines.materialize`).
    """
    if commit is not None:
        _add_applied(transaction, source, commit.version, commit.version)


def settle_applied(transaction: Transaction, source: str, version: int) -> None:
    """Note that a source's table is applied up to a version; what a stream has applied of later ones counts too."""
    transaction.delete(DATABASE, FLOOR + source.encode())
    _add_applied(transaction, source, 0, version)


def _add_applied(transaction: Transaction, source: str, first: int, last: int) -> None:
    whole, parts = applied_key(source), APART + source.encode()
    held, apart = transaction.get(DATABASE, whole), transaction.get(DATABASE, parts)
    spans = _joined([[0, int(held or 0)], [first, last], *orjson.loads(apart or b"[]")])
    if len(spans) == 1:
        transaction.put(DATABASE, whole, str(spans[0][1]).encode())
        transaction.delete(DATABASE, parts)
    else:
        transaction.delete(DATABASE, whole)
        transaction.put(DATABASE, parts, orjson.dumps(spans))


def applied_floor(get: Get, source: str) -> int | None:
    """Return up to which version of a source's table all is applied, whatever more is; None if that is not known."""
    held = [int(blob) for blob in (get(applied_key(source)), get(FLOOR + source.encode())) if blob is not None]
    spans = orjson.loads(get(APART + source.encode()) or b"[]")
    return max([*held, *(last for first, last in spans if first == 0)], default=None)


def suspend_applied(transaction: Transaction, source: str) -> None:
    """Note that more of a source's table is being applied: what is held is no version, until `settle_applied` says one."""
    floor = applied_floor(transaction.access(DATABASE).get, source)
    forget_applied(transaction, source)
    if floor is not None:
        transaction.put(DATABASE, FLOOR + source.encode(), str(floor).encode())


def forget_applied(transaction: Transaction, source: str) -> None:
    """Note that nobody may count on any version of a source's table to be applied."""
    for key in (applied_key(source), APART + source.encode(), FLOOR + source.encode()):
        transaction.delete(DATABASE, key)


def _joined(spans: Sequence[list[int]]) -> list[list[int]]:
    """Return spans of versions, [first, last] each, ascending and as few as there can be."""
    found: list[list[int]] = []
    for first, last in sorted(spans):
        if found and first <= found[-1][1] + 1:
            found[-1][1] = max(found[-1][1], last)
        else:
            found.append([first, last])
    return found


def state_path(project: Project, state: str | None) -> Path:
    """Return the state folder: the one asked for (from the working folder), or the settings' (from the project's)."""
    return Path(state) if state is not None else project.folder / project.settings.stores.state


@contextmanager
def open_registry(project: Project, state: str | None, *, clock: Clock) -> Iterator[Registry]:
    """Open the ledger for a move of versions; other processes may serve and write meanwhile.

    Raises:
        ConfigurationError, Unavailable, Corrupt: as `StateFolder.open` and the stores say.
    """
    with StateFolder.open(state_path(project, state), clock=clock, write=False) as folder:
        urls = project.settings.stores
        with open_ledger(urls.ledger or folder.url("ledger"), clock=clock) as ledger:
            yield Registry(ledger, open_blobs(urls.blobs or folder.url("blobs")), project.name)


@contextmanager
def open_stores(
    project: Project,
    state: str | None,
    *,
    clock: Clock,
    write: bool,
    alone: bool = True,
    note: bool = False,
    create: bool = True,
) -> Iterator[Stores]:
    """Open the state folder and its stores; a writer creates what is missing and holds the folder's lock.

    Without `create` it is an error that there is no state folder, as for who only reads.

    Without `alone` a writer joins the process that holds the lock, if one does: every store takes several writers. With
    `note` the ledger alone may be written to, beside a process that holds the lock.

    Raises:
        ConfigurationError, Unavailable, Corrupt: as `StateFolder.open` and the stores say.
    """
    with ExitStack() as stack:
        path = state_path(project, state)
        folder = stack.enter_context(StateFolder.open(path, clock=clock, write=write and alone, create=create))
        if write and alone and (folder.path / WORK).exists():
            clear_work(folder.path / WORK)
        urls = project.settings.stores
        ledger = open_ledger(urls.ledger or folder.url("ledger"), clock=clock, read_only=not (write or note))
        stack.enter_context(ledger)
        online = open_keyvalue(urls.keyvalue or folder.url("keyvalue"), databases=DATABASES, read_only=not write)
        stack.enter_context(online)
        blobs = open_blobs(urls.blobs or folder.url("blobs"))
        tables = open_tables(urls.tables or folder.url("tables"), s3=project.settings.s3)
        yield Stores(folder, ledger, online, blobs, tables)


def damage_of_online(project: Project, state: str | None, *, clock: Clock) -> Corrupt | None:
    """Return what is wrong with the online store's files, None if they are whole; every page is looked at."""
    with StateFolder.open(state_path(project, state), clock=clock, write=True, create=False) as folder:
        url = project.settings.stores.keyvalue or folder.url("keyvalue")
        try:
            examine_keyvalue(url)
            open_keyvalue(url, databases=DATABASES).close()
        except Corrupt as error:
            return error
    return None


def renew_online(
    project: Project, state: str | None, *, clock: Clock, purge: Callable[[bytes, bytes], bytes | None] | None
) -> None:
    """Replace the online store's files by new ones that hold none of the features, so that no old byte stays.

    `purge(key, value)` returns what stays of the control loop's own memory, None for nothing; without it all of that goes
    too, as where the files cannot be read. Killed in between, the same call goes on.
    """
    with StateFolder.open(state_path(project, state), clock=clock, write=True) as folder:
        url = project.settings.stores.keyvalue or folder.url("keyvalue")
        kept = folder.folder(SAFE) / "control"
        if purge is not None and not kept.exists():
            with open_keyvalue(url, databases=DATABASES) as store, store.read() as snapshot:
                rows = [(key, purge(key, value)) for key, value in snapshot.items(CONTROL)]
            packed = orjson.dumps([[key.hex(), value.hex()] for key, value in rows if value is not None])
            write_atomically(kept, packed, temporary=kept.with_suffix(".new"), failpoint="renew")
        reach("renew.before_drop")
        drop_keyvalue(url, DATABASES)
        reach("renew.after_drop")
        with open_keyvalue(url, databases=DATABASES) as store, store.write() as transaction:
            for key, value in orjson.loads(kept.read_bytes()) if kept.exists() else []:
                transaction.put(CONTROL, bytes.fromhex(key), bytes.fromhex(value))
        kept.unlink(missing_ok=True)
