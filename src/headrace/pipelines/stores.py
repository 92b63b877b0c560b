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

CONTROL = "control"
DATABASES = (DATABASE, CONTROL)
PREDICTIONS = "predictions"
SAFE = "renewing"
APPLIED = b"Mapplied"  # in the features' database, so that one read gets it with the features
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

    Where the online features lacked something before, which version they hold stays unknown until they are brought up
    to the table (`headrace.pipelines.materialize`).
    """
    if commit is None:
        return
    held = transaction.get(DATABASE, applied_key(source))
    whole = commit.version <= 1 if held is None else int(held) >= commit.version - 1
    if whole:
        transaction.put(DATABASE, applied_key(source), str(commit.version).encode())
    else:
        transaction.delete(DATABASE, applied_key(source))


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
        urls = project.settings.stores
        ledger = open_ledger(urls.ledger or folder.url("ledger"), clock=clock, read_only=not (write or note))
        stack.enter_context(ledger)
        online = open_keyvalue(urls.keyvalue or folder.url("keyvalue"), databases=DATABASES, read_only=not write)
        stack.enter_context(online)
        blobs = open_blobs(urls.blobs or folder.url("blobs"))
        tables = open_tables(urls.tables or folder.url("tables"))
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
