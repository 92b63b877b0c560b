"""Read a server's URL: address, credentials and named settings, each with a default, a unit and a range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from headrace.core.errors import BadUrl, HeadraceError, did_you_mean
from headrace.core.time import SECOND, duration

WHERE = "[stores] keyvalue"


@dataclass(frozen=True)
class Option:
    """Describe one setting of a URL's query: `timeout=250ms`, `pool=16`, `prefix=shop`.

    A duration is handed on in seconds; its bounds are in seconds too.
    """

    name: str
    kind: Literal["duration", "number", "text"]
    default: float | str
    low: float = 0.0
    high: float = float("inf")

    def read(self, text: str) -> float | str:
        """Return the setting's value.

        Raises:
            BadUrl: it is of another kind or out of range.
        """
        if self.kind == "text":
            return text
        try:
            value = duration(text) / SECOND if self.kind == "duration" else int(text)
        except (HeadraceError, ValueError):
            value = float("nan")
        if not self.low <= value <= self.high:
            unit = " s, written as 250ms or 10s" if self.kind == "duration" else ""
            raise BadUrl(
                f"{self.name} does not fit", where=WHERE, got=text, expected=f"{self.low:g} to {self.high:g}{unit}"
            )
        return value


def read_options(query: str, options: Mapping[str, Option], scheme: str) -> dict[str, float | str]:
    """Return every option's value, the default where the query does not name it.

    Raises:
        BadUrl: the query names something else, twice the same, or a value that does not fit.
    """
    found: dict[str, float | str] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in options or name in found:
            known = ", ".join(sorted(options))
            what = f"{name} is said twice" if name in found else f"{scheme} has no setting {name}"
            raise BadUrl(what, where=WHERE, got=name, expected=known, next_step=did_you_mean(name, options))
        found[name] = options[name].read(text)
    return {name: option.default for name, option in options.items()} | found


@dataclass(frozen=True)
class Address:
    """Hold where a server listens and who asks; the password never shows in a repr."""

    host: str
    port: int
    path: str
    query: str
    username: str | None
    password: str | None

    def __repr__(self) -> str:
        return f"Address({self.host}:{self.port}{self.path})"


def read_address(location: str, scheme: str, port: int) -> Address:
    """Return the parts of `//user:password@host:port/path?query`.

    Raises:
        BadUrl: it has no host, or a port that is none.
    """
    try:
        parts = urlsplit(f"{scheme}:{location}")
        host, found = parts.hostname, parts.port
    except ValueError:
        host, found = None, None
    if not host or not location.startswith("//") or "#" in location:
        raise BadUrl(
            f"not a {scheme} URL",
            where=WHERE,
            expected=f"{scheme}://HOST:PORT",
            next_step=f"{scheme}://127.0.0.1:{port}",
        )
    username, password = (None if part is None else unquote(part) for part in (parts.username, parts.password))
    return Address(host, found or port, parts.path, parts.query, username or None, password)
