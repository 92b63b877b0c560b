"""Tell whether payloads of a source's events state a value, in whatever format they came."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from headrace.core.settings import SourceSettings
from headrace.pipelines.project import Project
from headrace.sources.codecs import codec_of
from headrace.sources.definition import SourceDefinition
from headrace.sources.letters import CELLS
from headrace.sources.payload import Codec
from headrace.sources.values import data_names

TEXTUAL = ("json", CELLS)


@dataclass(frozen=True, eq=False)
class Traces:
    """Look for a value in payloads: in the fields `names` of what can be decoded, else anywhere in the bytes."""

    value: str | int
    word: re.Pattern[str]
    names: frozenset[str]
    known: frozenset[str]
    codec: Codec

    @classmethod
    def of(
        cls,
        project: Project,
        source: SourceDefinition,
        columns: Collection[str],
        value: str | int,
        word: re.Pattern[str],
    ) -> Traces:
        """Return what looks for a value of some columns in a source's payloads, as its settings say that they come.

        Raises:
            ConfigurationError, MissingExtra: the codec cannot be used.
        """
        where = project.settings.sources.get(source.name, SourceSettings())
        names = {c.name: name for c, name in data_names(source, where.columns).items()}
        known = frozenset(names.values())
        return cls(value, word, frozenset(names[c] for c in columns), known, codec_of(where, project.folder))

    def states(self, data: bytes) -> bool:
        """Tell whether an event of a stream states the value; of what cannot be decoded the bytes decide."""
        found = self.codec.decode(data, self.known)
        if any(one.problem is not None for one in found):
            return self._stands(data, self.codec.name)
        return any(one.event.get(name) == self.value for one in found for name in self.names)

    def in_letter(self, letter: Mapping[str, Any]) -> bool:
        """Tell whether a dead letter holds the value: in its payload, or in what is said of it."""
        told = any(self.word.search(text) for text in letter.values() if isinstance(text, str))
        payload, form = letter["payload"], letter["format"]
        return told or self._stands(payload, form) or (form == self.codec.name and self.states(payload))

    def can_tell(self, letter: Mapping[str, Any]) -> bool:
        """Tell whether the value would be found in a dead letter: a number in undecodable binary data would not."""
        if isinstance(self.value, str) or letter["format"] in TEXTUAL:
            return True
        if letter["format"] != self.codec.name:
            return False
        return all(one.problem is None for one in self.codec.decode(letter["payload"], self.known))

    def _stands(self, data: bytes, form: str) -> bool:
        """Tell whether the value stands in a payload: as a word of a text, else as bytes."""
        if form not in TEXTUAL:
            return isinstance(self.value, str) and self.value.encode() in data
        if self.word.search(data.decode("utf-8", "replace")):
            return True
        try:
            held = orjson.loads(data)
        except orjson.JSONDecodeError:
            return False
        return any(self.word.search(text) for text in _texts(held))


def _texts(held: Any) -> Iterator[str]:
    """Yield every text of plain JSON, without the escapes that its bytes may have."""
    if isinstance(held, str):
        yield held
    elif isinstance(held, dict):
        for name, value in held.items():
            yield name
            yield from _texts(value)
    elif isinstance(held, list):
        for value in held:
            yield from _texts(value)
