"""Find the backend of a storage shape by its URL, without importing any other backend."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from headrace.core.errors import BadUrl, MissingExtra, did_you_mean

Shape = Literal["tables", "blobs", "keyvalue", "ledger", "streams"]

EMBEDDED: dict[Shape, dict[str, str]] = {
    "tables": {"delta": "headrace.storage.tables.delta:DeltaTables"},
    "blobs": {"file": "headrace.storage.blobs.file:FileBlobs"},
    "keyvalue": {
        "lmdb": "headrace.storage.keyvalue.lmdb:LmdbKeyValue",
        "memory": "headrace.storage.keyvalue.memory:MemoryKeyValue",
    },
    "ledger": {"sqlite": "headrace.storage.ledger.sqlite:SqliteLedger"},
    "streams": {"log": "headrace.storage.streams.log:LogStreams"},
}
SERVERS: dict[Shape, dict[str, str]] = {
    "tables": {"s3": "headrace.storage.tables.s3:S3Tables"},
    "keyvalue": {
        "redis": "headrace.storage.keyvalue.redis:RedisKeyValue",
        "rediss": "headrace.storage.keyvalue.redis:tls_redis",
        "dynamodb": "headrace.storage.keyvalue.dynamodb:DynamoKeyValue",
    },
    "streams": {
        "kafka": "headrace.storage.streams.kafka:KafkaStreams",
        "redis": "headrace.storage.streams.redis:RedisStreams",
        "rediss": "headrace.storage.streams.redis:SecureRedisStreams",
    },
}
EXTRAS: dict[Shape, dict[str, str]] = {
    "blobs": {"s3": "s3"},
    "keyvalue": {"redis": "redis", "rediss": "redis", "dynamodb": "dynamodb"},
    "ledger": {"postgresql": "postgres", "postgres": "postgres"},
    "streams": {"kafka": "kafka", "redis": "redis", "rediss": "redis"},
}
_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*):(?P<location>.*)", re.DOTALL)


def resolve(shape: Shape, url: str) -> tuple[Callable[..., Any], str]:
    """Return the backend class that serves `url` and the part of the URL after its scheme.

    >>> resolve("ledger", "sqlite:project/ledger.sqlite")[1]
    'project/ledger.sqlite'

    Raises:
        BadUrl: the text is no URL, or no backend of this shape has its scheme.
        MissingExtra: the scheme belongs to an optional dependency that is not installed.
    """
    match = _URL.fullmatch(url)
    if match is None or "\0" in url:
        raise BadUrl(
            f"not a {shape} URL", where="[stores]", got=repr(url), expected="SCHEME:LOCATION", next_step=_example(shape)
        )
    scheme = match["scheme"]
    plugin = _plugin(shape, scheme)
    own = _own(shape, scheme)
    if own is not None:
        factory = _load(shape, scheme, own)
    elif plugin is not None:
        factory = plugin.load()
    else:
        raise _unknown(shape, scheme)
    return factory, match["location"]


def schemes(shape: Shape) -> Sequence[str]:
    """Return the schemes of a shape: the embedded ones, those of servers, and those of other packages."""
    plugins = (point.name for point in entry_points(group=f"headrace.{shape}"))
    return sorted({*EMBEDDED[shape], *SERVERS.get(shape, {}), *plugins})


def _own(shape: Shape, scheme: str) -> str | None:
    """Return `module:name` of a backend of Headrace itself."""
    return EMBEDDED[shape].get(scheme) or SERVERS.get(shape, {}).get(scheme)


def _load(shape: Shape, scheme: str, path: str) -> Callable[..., Any]:
    """Import a backend of Headrace itself.

    Raises:
        MissingExtra: the library that it needs is not installed.
    """
    module, _, name = path.partition(":")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if scheme not in EXTRAS[shape] or (error.name or "").startswith("headrace"):
            raise
        raise _missing(shape, scheme, f"no module {error.name}", "the library that it needs") from error
    return found


def _plugin(shape: Shape, scheme: str) -> EntryPoint | None:
    """Look a scheme up among installed packages; Headrace's own never pay for the scan."""
    if _own(shape, scheme) is not None:
        return None
    return next(iter(entry_points(group=f"headrace.{shape}", name=scheme)), None)


def _unknown(shape: Shape, scheme: str) -> BadUrl | MissingExtra:
    if scheme in EXTRAS[shape]:
        return _missing(
            shape, scheme, f"{scheme}:", f"a package that provides the entry point headrace.{shape}: {scheme}"
        )
    known = [*schemes(shape), *EXTRAS[shape]]
    return BadUrl(
        f"no {shape} backend is called {scheme}",
        where="[stores]",
        got=f"{scheme}:",
        expected=", ".join(sorted(known)),
        next_step=did_you_mean(scheme, known),
    )


def _missing(shape: Shape, scheme: str, got: str, expected: str) -> MissingExtra:
    return MissingExtra(
        f"{scheme} is not installed as a {shape} backend",
        where="[stores]",
        got=got,
        expected=expected,
        next_step=f'pip install "headrace[{EXTRAS[shape][scheme]}]"',
    )


def _example(shape: Shape) -> str:
    return f"write it as {next(iter(EMBEDDED[shape]))}:PATH"
