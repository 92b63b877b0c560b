"""Encode and read the segments of a local stream: a header, then one checked frame for each batch. Little-endian.

    segment   magic and format (8 bytes), base position u64, arrival floor i64, CRC-32 of these u32
    frame     magic (4), payload length u32, payload CRC-32 u32, record count u32, first position u64, arrival i64,
              CRC-32 of these u32; payload: every record's length u32, then the records

A batch is one frame, so it is whole or not there. The header's own checksum keeps a flipped length from being taken for
an unfinished frame at the end, which would drop every batch behind it.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from headrace.core.errors import Corrupt

SEGMENT_MAGIC = b"HRLOG\0\0\1"
FRAME_MAGIC = b"HRfr"
SEGMENT_HEADER = struct.Struct("<8sQqI")
FRAME_HEADER = struct.Struct("<4sIIIQqI")
CHECKSUM_BYTES = 4


@dataclass(frozen=True, slots=True)
class Frame:
    """Hold one batch as it lies in a segment: where it begins, its first position, arrival and records' bytes."""

    offset: int
    start: int
    count: int
    arrival: int
    payload: bytes

    @property
    def next_offset(self) -> int:
        """Return where the next frame begins."""
        return self.offset + FRAME_HEADER.size + len(self.payload)

    @property
    def end(self) -> int:
        """Return the position after its last record."""
        return self.start + self.count

    def records(self) -> list[bytes]:
        """Return the records' bytes."""
        lengths = struct.unpack_from(f"<{self.count}I", self.payload)
        found, offset = [], 4 * self.count
        for length in lengths:
            found.append(self.payload[offset : offset + length])
            offset += length
        return found


def encode_segment_header(base: int, floor: int) -> bytes:
    """Return the first bytes of a segment whose first record has position `base` and arrives at `floor` or later."""
    return _sealed(SEGMENT_HEADER, SEGMENT_MAGIC, base, floor)


def encode_frame(records: Sequence[bytes], start: int, arrival: int) -> bytes:
    """Return a batch as bytes."""
    payload = struct.pack(f"<{len(records)}I", *map(len, records)) + b"".join(records)
    header = _sealed(FRAME_HEADER, FRAME_MAGIC, len(payload), zlib.crc32(payload), len(records), start, arrival)
    return header + payload


def read_segment_header(descriptor: int, path: str) -> tuple[int, int]:
    """Return a segment's base position and arrival floor.

    Raises:
        Corrupt: it is no segment of this format.
    """
    data = os.pread(descriptor, SEGMENT_HEADER.size, 0)
    if not _intact(SEGMENT_HEADER, data) or not data.startswith(SEGMENT_MAGIC):
        raise damaged(path, 0, "no segment header of this format")
    _, base, floor, _ = SEGMENT_HEADER.unpack(data)
    return base, floor


def frames(descriptor: int, path: str, *, offset: int, position: int) -> Iterator[Frame]:
    """Walk a segment's frames from the one that begins at `offset` with `position`, each checked.

    The walk ends before an unfinished frame; in an older segment its positions are missed before the next one's.

    Raises:
        Corrupt: a frame's bytes changed or one is missing.
    """
    size = os.fstat(descriptor).st_size
    while offset < size:
        frame = _frame_at(descriptor, path, offset, size)
        if frame is None:
            return
        if frame.start != position:
            raise damaged(path, offset, f"no frame that begins with position {position}")
        yield frame
        offset, position = frame.next_offset, frame.end


def damaged(path: str, offset: int, got: str) -> Corrupt:
    """Return the error for stream bytes that are not what was written."""
    return Corrupt(
        "a stream is damaged",
        where=f"{path}, byte {offset}",
        got=got,
        expected="the bytes that were acknowledged",
        next_step="restore the stream from a backup, or replay its source",
    )


def _frame_at(descriptor: int, path: str, offset: int, size: int) -> Frame | None:
    """Return the frame at `offset`, or None if what lies there is the beginning of an unfinished last batch."""
    header = os.pread(descriptor, FRAME_HEADER.size, offset)
    if not _intact(FRAME_HEADER, header) or not header.startswith(FRAME_MAGIC):
        _refuse_if_frames_follow(descriptor, path, offset, size)
        return None
    _, length, checksum, count, start, arrival, _ = FRAME_HEADER.unpack(header)
    payload = os.pread(descriptor, length, offset + FRAME_HEADER.size)
    frame = Frame(offset, start, count, arrival, payload)
    if len(payload) < length:
        return None
    if zlib.crc32(payload) != checksum:
        if frame.next_offset < size:
            raise damaged(path, offset, "a batch whose checksum differs")
        return None
    return frame


def _refuse_if_frames_follow(descriptor: int, path: str, offset: int, size: int) -> None:
    """Raise Corrupt if a whole header lies behind unreadable bytes: then they are no unfinished last batch."""
    rest = os.pread(descriptor, size - offset, offset)
    found = rest.find(FRAME_MAGIC, 1)
    while found >= 0:
        if _intact(FRAME_HEADER, rest[found : found + FRAME_HEADER.size]):
            raise damaged(path, offset, "unreadable bytes before a whole batch")
        found = rest.find(FRAME_MAGIC, found + 1)


def _sealed(layout: struct.Struct, *fields: object) -> bytes:
    """Pack the fields and put the CRC-32 of all of them behind."""
    body = layout.pack(*fields, 0)[:-CHECKSUM_BYTES]
    return body + struct.pack("<I", zlib.crc32(body))


def _intact(layout: struct.Struct, data: bytes) -> bool:
    body, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    return len(data) == layout.size and struct.pack("<I", zlib.crc32(body)) == checksum
