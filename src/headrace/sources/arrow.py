"""Decode Arrow: a payload is one IPC stream of record batches, every row of them an event."""

from __future__ import annotations

import struct
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa

from headrace.core.time import DAY
from headrace.sources.payload import Decoded

LOCAL_EPOCH = datetime(1970, 1, 1)
PER_MICROSECOND = {"s": (10**6, 1), "ms": (10**3, 1), "us": (1, 1), "ns": (1, 1_000)}
HEADER_SLOT, COMPRESSION_SLOT, DICTIONARY_DATA_SLOT = 2, 3, 1
WRONG = (pa.ArrowException, ValueError, OverflowError, OSError, KeyError, struct.error)


class ArrowCodec:
    """Decode one IPC stream to a payload; a column that the stream lacks is not stated by its rows."""

    name = "arrow"

    def decode(self, data: bytes, names: Collection[str]) -> list[Decoded]:
        """Return the rows; timestamps with a zone become microseconds UTC, those without ISO 8601 texts."""
        try:
            _refuse_compressed(data)
            with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
                kept = [name for name in reader.schema.names if name in names]
                doubled = [name for name in kept if kept.count(name) > 1]
                if doubled:
                    return [Decoded({}, f"not an Arrow stream that can be read: two columns {doubled[0]}")]
                found: list[Decoded] = []
                for batch in reader:
                    if len(found) + batch.num_rows > 8 * len(data):  # a row takes a bit or more
                        return [Decoded({}, "not an Arrow stream that can be read: more rows than it has bits")]
                    batch.validate(full=True)
                    columns = [_plain(batch.column(name)) for name in kept]
                    rows = zip(*columns, strict=True) if kept else ((),) * batch.num_rows
                    found += [
                        Decoded(dict(zip(kept, row, strict=True)), None, len(found) + n) for n, row in enumerate(rows)
                    ]
        except WRONG as error:
            return [Decoded({}, f"not an Arrow stream that can be read: {type(error).__name__}")]
        return found


def _plain(values: pa.Array) -> list[Any]:
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kind = values.type
    if pa.types.is_timestamp(kind):
        times, by = PER_MICROSECOND[kind.unit]
        counts = [None if n is None else n * times // by for n in values.cast(pa.int64()).to_pylist()]
        return counts if kind.tz is not None else [_local(n) for n in counts]
    if pa.types.is_date32(kind):
        return [None if n is None else n * DAY for n in values.cast(pa.int32()).to_pylist()]
    if pa.types.is_date64(kind):
        return [None if n is None else n * 1_000 for n in values.cast(pa.int64()).to_pylist()]
    found: list[Any] = values.to_pylist()
    return found


def _local(microseconds: int | None) -> Any:
    """Return local microseconds as ISO 8601 text; those beyond its years stay a text that is no instant."""
    if microseconds is None:
        return None
    try:
        return (LOCAL_EPOCH + timedelta(microseconds=microseconds)).isoformat()
    except OverflowError:
        return f"{microseconds} microseconds"


def _refuse_compressed(data: bytes) -> None:
    """Raise if a batch's buffers are compressed: a few bytes could become gigabytes.

    Reads the flatbuffer of each message: https://arrow.apache.org/docs/format/Columnar.html#encapsulated-message-format
    """
    source = pa.BufferReader(data)
    for message in pa.ipc.MessageReader.open_stream(source):
        metadata = message.metadata.to_pybytes()
        header = _follow(metadata, _root(metadata), HEADER_SLOT)
        if message.type == "dictionary" and header is not None:
            header = _follow(metadata, header, DICTIONARY_DATA_SLOT)
        if message.type != "schema" and header is not None and _slot(metadata, header, COMPRESSION_SLOT):
            raise ValueError("compressed")


def _root(metadata: bytes) -> int:
    (at,) = struct.unpack_from("<I", metadata, 0)
    return int(at)


def _slot(metadata: bytes, table: int, slot: int) -> int:
    """Return where a table's field lies, counted from the table; 0 if it is left out."""
    (back,) = struct.unpack_from("<i", metadata, table)
    (size,) = struct.unpack_from("<H", metadata, table - back)
    if size < 6 + 2 * slot:
        return 0
    (offset,) = struct.unpack_from("<H", metadata, table - back + 4 + 2 * slot)
    return int(offset)


def _follow(metadata: bytes, table: int, slot: int) -> int | None:
    offset = _slot(metadata, table, slot)
    if not offset:
        return None
    (forward,) = struct.unpack_from("<I", metadata, table + offset)
    return table + offset + int(forward)
