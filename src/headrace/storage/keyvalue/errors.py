"""Say what is wrong with a key-value store in the same words, whatever keeps it."""

from __future__ import annotations

from collections.abc import Iterable

from headrace.core.errors import ConfigurationError, Corrupt, DataError, Unavailable, did_you_mean
from headrace.storage.keyvalue.protocol import MAX_KEY_BYTES


def closed(where: str) -> Unavailable:
    """Return the error for a call after `close`."""
    return Unavailable("the store is closed", where=where, next_step="open it again")


def absent(where: str, got: object = None) -> ConfigurationError:
    """Return the error for a store to read from that nobody has made yet."""
    return ConfigurationError(
        "there is no key-value store", where=where, got=got, next_step="headrace run, which creates one"
    )


def other_format(where: str, got: str, expected: str, choose: str) -> ConfigurationError:
    """Return the error for a layout that another version wrote; `choose` says how another place is named."""
    return ConfigurationError(
        "the store was written by another version of Headrace",
        where=where,
        got=got,
        expected=expected,
        next_step=f"{choose}, then headrace online rebuild",
    )


def other_writer(where: str, got: str, wait: float) -> Unavailable:
    """Return the error for a store on a server that another writer holds for longer than `wait` seconds."""
    return Unavailable(
        "the store has another writer",
        where=where,
        got=got,
        expected=f"it to end within {wait:g} s",
        next_step="end it, or raise wait=… in the URL",
    )


def damaged(where: str, got: str, expected: str = "what Headrace wrote, and nobody else") -> Corrupt:
    """Return the error for rows that are not what was written."""
    return Corrupt(
        "the store is damaged",
        where=where,
        got=got,
        expected=expected,
        next_step="headrace online rebuild",
    )


def unknown_database(name: str, known: Iterable[str], where: str) -> ConfigurationError:
    """Return the error for a database that was not named when the store was opened."""
    return ConfigurationError(
        f"the store has no database {name}",
        where=where,
        got=name,
        expected="a name given to open_keyvalue(databases=…)",
        next_step=did_you_mean(name, known),
    )


def bad_key(where: str, size: int | None = None) -> DataError:
    """Return the error for a key outside 1 to 511 bytes."""
    return DataError(
        "a key that the store cannot hold",
        where=where,
        got=None if size is None else f"{size} bytes",
        expected=f"1 to {MAX_KEY_BYTES} bytes",
        next_step="hash long keys before they are stored",
    )
