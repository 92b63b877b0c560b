"""Choose how payloads of stream events are decoded: JSON here, Avro and Arrow in modules that are imported when used."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import orjson

from headrace.core.settings import SourceSettings
from headrace.sources.payload import Codec, Decoded


class JsonCodec:
    """Decode one JSON object to a payload."""

    name = "json"

    def decode(self, data: bytes, names: Collection[str]) -> list[Decoded]:
        """Return the object."""
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            return [Decoded({}, f"not JSON: {error}")]
        if not isinstance(event, dict):
            return [Decoded({}, f"expected an object, got {type(event).__name__}")]
        return [Decoded(event)]


def codec_of(settings: SourceSettings, folder: Path) -> Codec:
    """Return the codec that `[sources.X]` names; a relative folder of schemas starts from `folder`.

    Raises:
        ConfigurationError: Avro without a place of schemas.
        MissingExtra: its library is not installed.
    """
    if settings.codec == "avro":
        from headrace.sources.avro import AvroCodec, schemas_of

        return AvroCodec(schemas_of(settings.schemas, folder))
    if settings.codec == "arrow":
        from headrace.sources.arrow import ArrowCodec

        return ArrowCodec()
    return JsonCodec()
