"""Decode Avro in the schema registry's wire format: a zero byte, the schema's id in four bytes, the record.

Schemas come from a folder of `ID.avsc` files or from a registry over HTTP, each when it is first met, and are kept.
"""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, date, datetime, timedelta
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPSHandler,
    OpenerDirector,
    Request,
)
from uuid import UUID

import orjson

from headrace.core.errors import ConfigurationError, MissingExtra, Unavailable
from headrace.sources.payload import Decoded

HEADER_BYTES = 5
SCHEMA_BYTES = 4 << 20
TIMEOUT = 5.0  # seconds
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
WRONG = (ValueError, LookupError, TypeError, ArithmeticError, EOFError, AttributeError, MemoryError, struct.error)

Fetch = Callable[[int], bytes | None]


class UnfitSchema(ValueError):
    """Report a schema whose payloads are not read."""


class Schemas:
    """Keep schemas by id; `fetch` returns a schema's JSON text, None where there is none with this id."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._parsed: dict[int, Any] = {}

    def get(self, number: int) -> Any:
        """Return a schema as fastavro parsed it.

        Raises:
            UnfitSchema: there is none, or none that can be read.
            Unavailable: the registry cannot be reached.
        """
        if number not in self._parsed:
            text = self._fetch(number)
            if text is None:
                raise UnfitSchema(f"there is no schema {number}")
            self._parsed[number] = _parse(number, text)
        return self._parsed[number]


class AvroCodec:
    """Decode one Avro record to a payload."""

    name = "avro"

    def __init__(self, schemas: Schemas) -> None:
        self._schemas = schemas

    def decode(self, data: bytes, names: Collection[str]) -> list[Decoded]:
        """Return the record's fields; timestamps become microseconds UTC, local ones and dates ISO 8601 texts."""
        import fastavro

        if len(data) < HEADER_BYTES or data[0] != 0:
            return [Decoded({}, "not in the schema registry's wire format: a zero byte and four bytes of schema id")]
        stream, number = io.BytesIO(data[HEADER_BYTES:]), int.from_bytes(data[1:HEADER_BYTES], "big")
        try:
            record = fastavro.schemaless_reader(stream, self._schemas.get(number), None)
        except UnfitSchema as error:
            return [Decoded({}, str(error))]
        except WRONG as error:
            return [Decoded({}, f"not a record of schema {number}: {type(error).__name__}")]
        left = len(data) - HEADER_BYTES - stream.tell()
        if left or not isinstance(record, dict):
            kind = f"{left} bytes are left behind the record" if left else f"it is {type(record).__name__}"
            return [Decoded({}, f"not a record of schema {number}: {kind}")]
        return [Decoded({name: _plain(value) for name, value in record.items() if name in names})]


def schemas_of(place: str | None, folder: Path) -> Schemas:
    """Return the schemas of a folder (relative to `folder`) or of a registry's URL.

    Raises:
        ConfigurationError: settings name neither.
        MissingExtra: fastavro is not installed.
    """
    try:
        import fastavro  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtra(
            "fastavro is not installed, which reads Avro",
            where='[sources.…] codec = "avro"',
            next_step='pip install "headrace[avro]"',
        ) from error
    if place is None:
        raise ConfigurationError(
            "nothing says where the Avro schemas lie",
            where='[sources.…] codec = "avro"',
            expected="schemas",
            next_step='add schemas = "schemas" (a folder of ID.avsc) or schemas = "https://REGISTRY"',
        )
    if place.startswith(("http://", "https://")):
        return Schemas(_registry(place))
    return Schemas(_files(folder / place))


def _files(folder: Path) -> Fetch:
    if not folder.is_dir():
        raise ConfigurationError(
            "there is no folder of Avro schemas",
            where="[sources.…] schemas",
            got=folder,
            expected="a folder of ID.avsc, or an http:// or https:// URL",
        )

    def fetch(number: int) -> bytes | None:
        path = folder / f"{number}.avsc"
        return path.read_bytes() if path.is_file() else None

    return fetch


def _registry(url: str) -> Fetch:
    """Return a function that asks a registry; it follows no redirects and knows no proxies."""
    parts = urlsplit(url)
    where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
    headers = {"Accept": "application/vnd.schemaregistry.v1+json, application/json"}
    if parts.username is not None:
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(credentials.encode()).decode()
    opener = OpenerDirector()
    for handler in (HTTPHandler(), HTTPSHandler(), HTTPDefaultErrorHandler(), HTTPErrorProcessor()):
        opener.add_handler(handler)

    def fetch(number: int) -> bytes | None:
        try:
            with opener.open(Request(f"{where}/schemas/ids/{number}", headers=headers), timeout=TIMEOUT) as answer:
                body: Any = orjson.loads(answer.read(SCHEMA_BYTES))
        except HTTPError as error:
            if error.code == 404:
                return None
            raise _unreachable(where, number, error) from error
        except (OSError, HTTPException, orjson.JSONDecodeError) as error:
            raise _unreachable(where, number, error) from error
        kind = body.get("schemaType", "AVRO") if isinstance(body, Mapping) else type(body).__name__
        if kind != "AVRO" or not isinstance(body.get("schema"), str):
            raise UnfitSchema(f"schema {number} is no Avro schema: {kind}")
        return str(body["schema"]).encode()

    return fetch


def _unreachable(where: str, number: int, error: Exception) -> Unavailable:
    return Unavailable(
        "the schema registry cannot be reached",
        where=f"schema {number} at {where}",
        got=error,
        next_step="check the registry; events wait until it answers",
    )


def _parse(number: int, text: bytes) -> Any:
    import fastavro
    from fastavro.schema import SchemaParseException, UnknownType

    try:
        schema = orjson.loads(text)
        _refuse_unbounded(schema, ())
        return fastavro.parse_schema(schema)
    except (SchemaParseException, UnknownType, RecursionError, *WRONG) as error:
        raise UnfitSchema(f"schema {number} cannot be read: {error}") from error


def _refuse_unbounded(schema: Any, inside: tuple[str, ...]) -> None:
    """Refuse schemas by which a few bytes could become a value without end: recursive ones, and arrays of nothing."""
    if isinstance(schema, str) and schema in inside:
        raise UnfitSchema(f"the type {schema} contains itself")
    if isinstance(schema, list):
        for branch in schema:
            _refuse_unbounded(branch, inside)
    if not isinstance(schema, dict):
        return
    kind = schema.get("type")
    if kind == "array" and _may_be_empty(schema.get("items")):
        raise UnfitSchema("an array of values without bytes")
    if kind in ("record", "error"):
        name, space = str(schema.get("name", "")), str(schema.get("namespace", ""))
        within = (*inside, name, f"{space}.{name}", name.rpartition(".")[2])
        for field in schema.get("fields", ()):
            _refuse_unbounded(field.get("type"), within)
    for part in ("items", "values", *(() if isinstance(kind, str) else ("type",))):
        _refuse_unbounded(schema.get(part), inside)


def _may_be_empty(schema: Any) -> bool:
    if isinstance(schema, dict):
        kind = schema.get("type")
        if kind == "fixed":
            return not schema.get("size")
        if kind in ("record", "error"):
            return all(_may_be_empty(field.get("type")) for field in schema.get("fields", ()))
        return _may_be_empty(kind)
    known = ("boolean", "int", "long", "float", "double", "bytes", "string", "enum", "array", "map")
    return isinstance(schema, str) and schema not in known


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            return value.isoformat()
        return (value - EPOCH) // timedelta(microseconds=1)
    if isinstance(value, date):
        return value.isoformat()
    return str(value) if isinstance(value, UUID) else value
