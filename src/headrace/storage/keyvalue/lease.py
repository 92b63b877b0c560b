"""Keep the lease of an open transaction alive, from a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from headrace.core.errors import ConfigurationError, Unavailable

Token = TypeVar("Token")


class Keeper(threading.Thread, Generic[Token]):
    """Renew the lease of an open transaction until it ends; a missed renewal is found out by the commit.

    The thread begins with the first transaction. `renew(token)` is called every `seconds` while there is one.
    """

    def __init__(self, name: str, seconds: float, renew: Callable[[Token], object]) -> None:
        super().__init__(name=name, daemon=True)
        self._seconds, self._renew = seconds, renew
        self._ended = threading.Event()
        self._token: Token | None = None

    def hold(self, token: Token) -> None:
        """Renew the lease of a transaction from now on."""
        self._token = token
        if not self.ident:
            self.start()

    def let_go(self) -> None:
        """Renew no more."""
        self._token = None

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        if self.ident:
            self.join()

    def run(self) -> None:
        """Renew until the thread is ended."""
        while not self._ended.wait(self._seconds):
            token = self._token
            if token is not None:
                with suppress(Unavailable, ConfigurationError):
                    self._renew(token)
