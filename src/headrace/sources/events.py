"""Read events of streams as reveals; what is none is refused with its payload, never raised."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
import pyarrow as pa

from headrace.core.settings import LimitSettings, SourceSettings
from headrace.sources.codecs import JsonCodec
from headrace.sources.definition import SourceDefinition
from headrace.sources.payload import Codec, Decoded
from headrace.sources.plan import reveal_of
from headrace.sources.record import ARRIVAL, Reveal
from headrace.sources.run import Load, batch_of
from headrace.sources.values import EventReader, refusal_schema
from headrace.storage.streams.protocol import Message

SHOWN_PAYLOAD = 10_000  # characters of an undecodable event that the quarantine's text keeps


class Events:
    """Read one source's events.

    Args:
        definition: the source.
        settings: where its columns stand in the data, and the zone of timestamps without one.
        limits: how large an event may be.
        codec: decodes payloads; JSON by default.
    """

    def __init__(
        self,
        definition: SourceDefinition,
        settings: SourceSettings | None = None,
        limits: LimitSettings | None = None,
        codec: Codec | None = None,
    ) -> None:
        settings = settings or SourceSettings()
        self.definition, self.codec = definition, codec or JsonCodec()
        self.reader = EventReader(definition, zone=settings.zone, columns=settings.columns)
        self.names = frozenset(self.reader.by_name)
        self.largest = (limits or LimitSettings()).event_bytes

    def load(self, messages: Iterable[Message], *, where: str = "stream") -> Load:
        """Return the reveals of events; they arrived when the stream says, whatever they say themselves.

        An event is one object with a row's id and any of its columns. What is no such object is refused, never raised:
        one bad event must not hold up the good ones.

        Raises:
            Unavailable: what a payload needs beside itself, as its schema, cannot be reached now.
        """
        reveals: list[Reveal] = []
        refused, times, rows = [], [], 0
        for message in messages:
            for decoded in self._decoded(message):
                rows += 1
                values, problems = self.read(decoded)
                if problems:
                    refused.append(self._refusal(message, decoded, problems, where))
                    continue
                reveals += reveal_of(self.definition, values | {ARRIVAL: message.arrival})
                if values.get(self.definition.time.name) is not None:
                    times.append(values[self.definition.time.name])
        table = pa.Table.from_pylist(refused, refusal_schema())
        return Load(batch_of(self.definition, reveals), table, rows, observed=True, times=tuple(times))

    def read(self, decoded: Decoded) -> tuple[dict[str, Any], list[str]]:
        """Return an event's typed values, and why it is none."""
        if decoded.problem is not None:
            return {}, [decoded.problem]
        return self.reader.read(decoded.event)

    def decode(self, data: bytes) -> list[Decoded]:
        """Return a payload's events."""
        if len(data) > self.largest:
            return [Decoded({}, f"{len(data)} bytes, more than [limits] event_bytes = {self.largest}")]
        return self.codec.decode(data, self.names)

    def _decoded(self, message: Message) -> list[Decoded]:
        return self.decode(message.data) if message.problem is None else [Decoded({}, message.problem)]

    def _refusal(self, message: Message, decoded: Decoded, problems: list[str], where: str) -> dict[str, Any]:
        place = f"{where}, partition {message.partition}, position {message.position}"
        if decoded.event:
            text = orjson.dumps(decoded.event, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
        else:
            text = orjson.dumps({"undecodable": message.data[:SHOWN_PAYLOAD].decode("utf-8", "replace")}).decode()
        return {
            "position": place if decoded.row is None else f"{place}, row {decoded.row}",
            "reason": "; ".join(problems),
            "payload": text,
            "raw": message.data,
            "format": self.codec.name,
            "partition": message.partition,
            "offset": str(message.position),
            "row": decoded.row,
            "arrival": message.arrival,
        }
