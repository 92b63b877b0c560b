"""Read the URL of a stream store on a server: addresses, the options that are ours, and those of its client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

from headrace.core.errors import BadUrl, DefinitionError
from headrace.core.time import duration


@dataclass(frozen=True)
class Location:
    """Hold what a URL says; its repr and `shown` have no secrets.

    Attributes:
        shown: the URL without credentials and options, for messages.
        netloc: what stands between `//` and the path.
        path: the path, without its slash.
        partitions: of a stream that is created here.
        group: whose members share the partitions; None reads all of them.
        ahead: how far a record's stamp may lie before the reader's clock, in microseconds.
        rest: all other options.
    """

    shown: str
    netloc: str = field(repr=False)
    path: str
    partitions: int
    group: str | None
    ahead: int
    rest: Mapping[str, str] = field(repr=False)


def read_location(scheme: str, location: str) -> Location:
    """Return what `SCHEME://ADDRESSES/PATH?partitions=4&group=NAME&ahead=5m&…` says.

    >>> read_location("kafka", "//a:9092,b:9092?partitions=4").partitions
    4

    Raises:
        BadUrl: it names no address, or an option has a value that does not fit.
    """
    parts = urlsplit(f"{scheme}:{location}")
    shown = f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if not parts.netloc:
        raise _bad(shown, "no address", f"{scheme}://HOST:PORT")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    partitions = options.pop("partitions", "1")
    if not partitions.isascii() or not partitions.isdigit() or not 0 < int(partitions) <= 10_000:
        raise _bad(shown, f"partitions={partitions}", "partitions from 1 to 10000")
    try:
        ahead = duration(options.pop("ahead", "5m"))
    except DefinitionError as error:
        raise _bad(shown, f"ahead={error.got}", "a duration, as ahead=5m") from error
    group = options.pop("group", None)
    return Location(shown, parts.netloc, parts.path.strip("/"), int(partitions), group or None, ahead, options)


def _bad(shown: str, got: str, expected: str) -> BadUrl:
    return BadUrl(
        "a streams URL that cannot be read",
        where=f"[stores] streams, {shown}",
        got=got,
        expected=expected,
        next_step="correct it in headrace.toml",
    )
