"""Keep an append-only, hash-chained record of everything that happened; open one with `open_ledger`."""

from __future__ import annotations

from headrace.core.time import Clock
from headrace.storage.backends import resolve
from headrace.storage.ledger.protocol import Capabilities, Entry, Head, Ledger, Record, Signer, Verification

__all__ = ["Capabilities", "Entry", "Head", "Ledger", "Record", "Signer", "Verification", "open_ledger"]


def open_ledger(url: str, *, clock: Clock, signer: Signer | None = None, read_only: bool = False) -> Ledger:
    """Open a ledger, creating or migrating it first where that is needed and allowed.

    Args:
        url: `sqlite:PATH`, or another installed backend's.
        clock: stamps every record.
        signer: signs checkpoints; None writes none.
        read_only: refuse to create, migrate and append.

    Raises:
        BadUrl, MissingExtra: no such backend.
        ConfigurationError: a newer release made it, or it does not exist and may not be created.
        Unavailable: it is locked or its folder cannot be used.
        Corrupt: it is no ledger.
    """
    factory, location = resolve("ledger", url)
    ledger: Ledger = factory(location, clock=clock, signer=signer, read_only=read_only)
    return ledger
