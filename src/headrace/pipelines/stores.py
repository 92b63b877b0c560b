"""Open every store of a project's state folder together, and close them together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from headrace.core.time import Clock
from headrace.features.stream import DATABASE
from headrace.pipelines.project import Project
from headrace.registry.run import Registry
from headrace.storage.blobs import Blobs, open_blobs
from headrace.storage.keyvalue import KeyValue, open_keyvalue
from headrace.storage.ledger import Ledger, open_ledger
from headrace.storage.state import StateFolder
from headrace.storage.tables import Tables, open_tables

CONTROL = "control"
DATABASES = (DATABASE, CONTROL)
PREDICTIONS = "predictions"


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
    """Return under which key of the control database the table version stands that was applied to the online store."""
    return b"applied/" + source.encode()


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
    project: Project, state: str | None, *, clock: Clock, write: bool, alone: bool = True
) -> Iterator[Stores]:
    """Open the state folder and its stores; a writer creates what is missing and holds the folder's lock.

    Without `alone` a writer joins the process that holds the lock, if one does: every store takes several writers.

    Raises:
        ConfigurationError, Unavailable, Corrupt: as `StateFolder.open` and the stores say.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(StateFolder.open(state_path(project, state), clock=clock, write=write and alone))
        urls = project.settings.stores
        ledger = open_ledger(urls.ledger or folder.url("ledger"), clock=clock, read_only=not write)
        stack.enter_context(ledger)
        online = open_keyvalue(urls.keyvalue or folder.url("keyvalue"), databases=DATABASES, read_only=not write)
        stack.enter_context(online)
        blobs = open_blobs(urls.blobs or folder.url("blobs"))
        tables = open_tables(urls.tables or folder.url("tables"))
        yield Stores(folder, ledger, online, blobs, tables)
