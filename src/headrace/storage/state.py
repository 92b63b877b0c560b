"""Own the project's state folder: its layout, its format version, and the lock that admits one writer."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from headrace.core.errors import ConfigurationError, Corrupt, HeadraceError, Unavailable
from headrace.core.identity import canonical
from headrace.core.time import Clock
from headrace.core.version import __version__
from headrace.storage.backends import Shape
from headrace.storage.locks import take_lock
from headrace.storage.paths import FOLDER_MODE, folder_bytes, inside, private_folder, write_atomically

FORMAT = 2
DEFAULT = Path(".headrace")
PASSPORT = "state.json"
LOCK = "lock"
UNFINISHED = "state.json.new"
LAYOUT: Mapping[Shape, tuple[str, str]] = {
    "ledger": ("sqlite", "ledger/ledger.sqlite"),
    "keyvalue": ("lmdb", "online"),
    "blobs": ("file", "blobs"),
    "tables": ("delta", "tables"),
    "streams": ("log", "streams"),
}


class StateFolder:
    """Hold an open state folder; use it in a `with` block, or call `close`.

    Readers may open it at any time, also while a writer holds it. The writer's lock ends with its process, however it
    ends.
    """

    def __init__(self, path: Path, passport: Mapping[str, Any], lock: int | None) -> None:
        self.path = path
        self.passport = passport
        self._lock = lock

    @classmethod
    def open(cls, path: str | Path = DEFAULT, *, clock: Clock, write: bool, create: bool = True) -> StateFolder:
        """Open a state folder; a writer may `create` it where nothing or an empty folder is.

        Raises:
            ConfigurationError: it does not exist (without `create`), belongs to something else, cannot be written, or was made by
                another format version.
            Unavailable: another process writes to it.
            Corrupt: its `state.json` is damaged.
        """
        folder = Path(path)
        if not (write and create):
            passport = _read_passport(folder)
            if not write:
                return cls(folder, passport, None)
        try:
            return _open_for_writing(folder, clock)
        except OSError as error:
            raise ConfigurationError(
                "the state folder cannot be written",
                where=str(folder),
                got=error,
                expected="a folder that you own on a disk with room",
                next_step="set [stores] state in headrace.toml to a folder that you may write to",
            ) from error

    @property
    def writable(self) -> bool:
        """Tell whether this holds the writer's lock."""
        return self._lock is not None

    def url(self, shape: Shape) -> str:
        """Return the URL of the embedded store of a shape."""
        scheme, name = LAYOUT[shape]
        return f"{scheme}:{self.path / name}"

    def folder(self, name: str) -> Path:
        """Return a folder of its own for a stage's files, as "predictions"; a writer creates it.

        Raises:
            ConfigurationError: the name would leave the state folder or belongs to a store.
        """
        path = inside(self.path, name)
        if path.relative_to(self.path).parts[0] in _reserved():
            raise ConfigurationError("a folder that belongs to a store", where=str(self.path), got=name)
        return private_folder(path) if self.writable else path

    def size(self) -> dict[str, int]:
        """Return the bytes on disk by top-level folder, for `headrace doctor`."""
        return {entry.name: folder_bytes(entry) for entry in sorted(self.path.iterdir()) if entry.is_dir()}

    def close(self) -> None:
        """Give the writer's lock back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open_for_writing(folder: Path, clock: Clock) -> StateFolder:
    if not (folder / PASSPORT).exists():
        _refuse_foreign(folder)
    private_folder(folder)
    lock = take_lock(folder / LOCK, partial(_in_use, folder))
    try:
        # Looked at again under the lock: another process may have created it meanwhile.
        if not (folder / PASSPORT).exists():
            _refuse_foreign(folder)
            _write_passport(folder, clock)
        passport = _read_passport(folder)
        folder.chmod(FOLDER_MODE)
        for _, name in LAYOUT.values():
            private_folder((folder / name).parent if "." in name else folder / name)
    except BaseException:
        os.close(lock)
        raise
    return StateFolder(folder, passport, lock)


def _refuse_foreign(folder: Path) -> None:
    """Raise unless there is nothing at the path, or only what a killed creation leaves behind."""
    if folder.exists() and not folder.is_dir():
        raise _foreign(folder, "a file")
    found = {entry.name for entry in folder.iterdir()} - {LOCK, UNFINISHED} if folder.exists() else set()
    if found:
        raise _foreign(folder, sorted(found))


def _foreign(folder: Path, got: object) -> ConfigurationError:
    return ConfigurationError(
        "not a Headrace state folder",
        where=str(folder),
        got=got,
        expected=f"{PASSPORT}, or an empty or missing folder",
        next_step="set [stores] state in headrace.toml to another folder",
    )


def _in_use(folder: Path, holder: str) -> Unavailable:
    return Unavailable(
        "the state folder is in use by another process",
        where=str(folder),
        got=f"process {holder or 'unknown'}",
        next_step=f"wait for it or stop it: kill {holder or 'PID'}",
    )


def _write_passport(folder: Path, clock: Clock) -> None:
    passport = {"format": FORMAT, "created_by": __version__, "created_at": int(clock.now())}
    (folder / UNFINISHED).unlink(missing_ok=True)
    write_atomically(folder / PASSPORT, canonical(passport), temporary=folder / UNFINISHED, failpoint="state")


def _read_passport(folder: Path) -> Mapping[str, Any]:
    try:
        data = (folder / PASSPORT).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise _absent(folder) from None
    except OSError as error:
        raise ConfigurationError(
            "the state folder cannot be read", where=str(folder), got=error, next_step=f"ls -ld {folder}"
        ) from error
    passport: Any = None
    with suppress(ValueError, RecursionError):
        passport = json.loads(data)
    if not isinstance(passport, dict) or not isinstance(passport.get("format"), int):
        raise Corrupt(
            f"{PASSPORT} is damaged",
            where=str(folder / PASSPORT),
            got=repr(data[:60]),
            expected='{"created_at":…,"created_by":…,"format":2}',
            next_step="restore it from a backup",
        )
    if passport["format"] != FORMAT:
        raise _other_format(folder, passport)
    return passport


def _absent(folder: Path) -> HeadraceError:
    if folder.is_dir() and any(folder.iterdir()):
        return _foreign(folder, sorted(entry.name for entry in folder.iterdir()))
    return ConfigurationError(
        "there is no state folder",
        where=str(folder),
        got="nothing at this path",
        next_step="headrace run, which creates one",
    )


def _other_format(folder: Path, passport: Mapping[str, Any]) -> ConfigurationError:
    newer = passport["format"] > FORMAT
    made_by = passport.get("created_by", "another release")
    return ConfigurationError(
        f"the state folder was made by {'a newer' if newer else 'an older'} Headrace",
        where=str(folder),
        got=f"format {passport['format']}, made by {made_by}",
        expected=f"format {FORMAT}, as {__version__} writes",
        next_step="pip install --upgrade headrace"
        if newer
        else f'pip install "headrace=={made_by}", or begin a new folder: headrace run --state NEW',
    )


def _reserved() -> set[str]:
    return {name.split("/")[0] for _, name in LAYOUT.values()}
