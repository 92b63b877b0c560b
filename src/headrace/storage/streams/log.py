"""Keep streams as local logs: a folder each, segments by base position, one fsync for each batch."""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

from headrace.core.errors import DataError, Unavailable
from headrace.core.failpoints import reach
from headrace.core.time import Clock
from headrace.storage.locks import take_lock
from headrace.storage.paths import inside, private_folder, sync_folder, write_all, write_atomically
from headrace.storage.streams.protocol import (
    EARLIEST,
    READ_BYTES,
    Appended,
    Bounds,
    Capabilities,
    Cursor,
    Everything,
    Membership,
    Message,
    ensure_small,
    not_kept,
)
from headrace.storage.streams.segment import (
    SEGMENT_HEADER,
    Frame,
    damaged,
    encode_frame,
    encode_segment_header,
    frames,
    read_segment_header,
)

SEGMENT_BYTES = 64 << 20
REMEMBERED_POSITIONS = 64
SUFFIX = ".log"
LOCK = "lock"
EMPTIED = b"{}"


class LogStreams:
    """Implement the store in a folder, every stream with one partition; writers of different streams do not meet.

    Args:
        location: the folder.
        clock: stamps arrival.
        segment_bytes: begin a new segment when a batch would make the present one larger.
    """

    def __init__(self, location: str, *, clock: Clock, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._root = Path(location)
        self._clock = clock
        self._segment_bytes = segment_bytes
        self._writers: dict[str, _Writer] = {}
        self._guard = threading.Lock()
        self._remembered: OrderedDict[tuple[str, int], tuple[int, int, int]] = OrderedDict()
        self._closed = False

    @property
    def capabilities(self) -> Capabilities:
        """Return what this backend can do."""
        return Capabilities(
            several_hosts=False,
            one_writer=True,
            whole_batches=True,
            counted=True,
            distances=True,
            drops=True,
            redacts=True,
        )

    def append(
        self, stream: str, records: Sequence[bytes], *, keys: Sequence[bytes] | None = None
    ) -> dict[int, Appended]:
        """Write a batch, creating the stream where there is none."""
        ensure_small(stream, records)
        with self._writer(stream) as writer:
            return {0: writer.append(records, int(self._clock.now()))}

    def read(
        self, stream: str, cursors: Mapping[int, Cursor], limit: int = 1_000, size: int = READ_BYTES
    ) -> list[Message]:
        """Return the records from the cursor on, at most `limit`, and no more once they are `size` bytes."""
        folder = self._folder(stream)
        if 0 not in cursors:
            return []
        position, held = cursors[0].position, 0
        found: list[Message] = []
        for base, frame in self._frames(stream, folder, position):
            records = frame.records()[max(position - frame.start, 0) :][: limit - len(found)]
            first = max(position, frame.start)
            records, held = _up_to(records, size, held)
            found += [Message(first + index, frame.arrival, data) for index, data in enumerate(records)]
            if len(found) >= limit or held >= size:
                self._remember(stream, first + len(records), base, frame)
                break
            self._remember(stream, frame.end, base, frame)
        return found

    def bounds(self, streams: Sequence[str]) -> dict[str, dict[int, Bounds]]:
        """Return what each stream holds; one that does not exist has no partition."""
        return {stream: {0: held} if (held := self._bounds(stream)) else {} for stream in streams}

    def streams(self) -> list[str]:
        """Return the names of all streams."""
        return sorted(entry.name for entry in self._root.iterdir() if entry.is_dir()) if self._root.is_dir() else []

    def drop(self, stream: str, before: Mapping[int, int]) -> None:
        """Remove old records where that frees whole segments; all positions from `before` on stay."""
        if 0 not in before or not self._folder(stream).is_dir():
            return
        with self._writer(stream):
            folder = self._folder(stream)
            bases = _bases(folder)
            for base, following in pairwise(bases):
                if following <= before[0]:
                    _segment(folder, base).unlink()
            sync_folder(folder)

    def join(self, streams: Sequence[str]) -> Membership:
        """Get every stream: a folder has one reader that applies it."""
        return Everything(self, streams)

    def redact(self, stream: str, chosen: Callable[[bytes], bool]) -> int:
        """Replace the chosen records by `{}` under the same positions and arrivals; return how many there were.

        Killed in between, the same call goes on: each segment is replaced whole.
        """
        redacted, folder = 0, self._folder(stream)
        with self._writer(stream):
            for base in _bases(folder):
                redacted += _redact(folder, base, chosen)
        with self._guard:
            self._writers.pop(stream).close()  # it holds the file that was replaced
            self._remembered.clear()
        return redacted

    def close(self) -> None:
        """Give writers' locks back; later calls raise Unavailable."""
        with self._guard:
            self._closed = True
            for writer in self._writers.values():
                writer.close()
            self._writers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _folder(self, stream: str) -> Path:
        if self._closed:
            raise Unavailable("the streams are closed", where=f"log:{self._root}", next_step="open them again")
        if "/" in stream:
            raise DataError("a stream's name has no slash", where=f"log:{self._root}", got=stream)
        return inside(self._root, stream)

    @contextmanager
    def _writer(self, stream: str) -> Iterator[_Writer]:
        """Hold a stream's writer. After a failure it is opened anew, which drops what is unfinished."""
        with self._guard:
            folder = self._folder(stream)
            try:
                if stream not in self._writers:
                    self._writers[stream] = _Writer(folder, self._segment_bytes)
                yield self._writers[stream]
            except OSError as error:
                if stream in self._writers:
                    self._writers.pop(stream).close()
                raise Unavailable(
                    "the batch was not acknowledged; it may have been written",
                    where=f"stream {stream} in log:{self._root}",
                    got=error,
                    next_step="read the stream's end, then append again",
                ) from error

    def _bounds(self, stream: str) -> Bounds | None:
        folder = self._folder(stream)
        bases = _bases(folder)
        if not bases:
            return None
        with self._guard:
            if stream in self._writers:
                return Bounds(bases[0], self._writers[stream].position)
        end = bases[-1]
        for base, frame in self._frames(stream, folder, bases[-1]):
            end = frame.end
            self._remember(stream, end, base, frame)
        return Bounds(bases[0], end)

    def _frames(self, stream: str, folder: Path, position: int) -> Iterator[tuple[int, Frame]]:
        """Walk the frames that hold `position` and what follows, with the base of their segment."""
        bases = _bases(folder)
        if position < 0 or (bases and position < bases[0]):
            raise not_kept(stream, 0, position, bases[0] if bases else 0)
        hint = self._remembered.get((stream, position))
        for index in range(max(bisect_right(bases, position) - 1, 0), len(bases)):
            base, following = bases[index], bases[index + 1] if index + 1 < len(bases) else None
            offset, start = hint[1:] if hint is not None and hint[0] == base else (SEGMENT_HEADER.size, base)
            end = start
            for frame in _segment_frames(folder, base, offset, start):
                end = frame.end
                if end > position:
                    yield base, frame
            if following is not None and end != following:
                raise damaged(str(_segment(folder, base)), 0, f"positions {end} to {following} are missing")

    def _remember(self, stream: str, position: int, base: int, frame: Frame) -> None:
        """Keep where `position` lies, so that a reader that goes on there does not walk the segment again."""
        inside_frame = position < frame.end
        offset, start = (frame.offset, frame.start) if inside_frame else (frame.next_offset, frame.end)
        with self._guard:
            self._remembered[stream, position] = (base, offset, start)
            while len(self._remembered) > REMEMBERED_POSITIONS:
                self._remembered.popitem(last=False)


class _Writer:
    """Hold a stream's writer lock and its last segment, open for appending."""

    def __init__(self, folder: Path, segment_bytes: int) -> None:
        self._folder = private_folder(folder)
        self._segment_bytes = segment_bytes
        self._descriptor = -1
        self._size = 0
        self.position, self._arrival = 0, EARLIEST
        self._lock = take_lock(folder / LOCK, partial(_has_writer, folder))
        try:
            self._recover()
        except BaseException:
            self.close()
            raise

    def append(self, records: Sequence[bytes], now: int) -> Appended:
        """Write and fsync one frame."""
        if not records:
            return Appended(self.position, self.position, self._arrival)
        arrival = max(now, self._arrival)
        frame = encode_frame(records, self.position, arrival)
        if self._size + len(frame) > self._segment_bytes and self._size > SEGMENT_HEADER.size:
            self._roll()
        write_all(self._descriptor, frame)
        reach("streams.before_fsync")
        os.fsync(self._descriptor)
        reach("streams.after_fsync")
        start = self.position
        self._size += len(frame)
        self.position, self._arrival = start + len(records), arrival
        return Appended(start, self.position, arrival)

    def close(self) -> None:
        """Give the lock back."""
        for descriptor in (self._descriptor, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptor = self._lock = -1

    def _recover(self) -> None:
        """Find the end of the last segment and cut off an unfinished batch."""
        bases = _bases(self._folder)
        if not bases:
            self._roll()
            return
        self._open_segment(bases[-1])
        for frame in _segment_frames(self._folder, bases[-1], SEGMENT_HEADER.size, bases[-1]):
            self.position, self._arrival, self._size = frame.end, frame.arrival, frame.next_offset
        if os.fstat(self._descriptor).st_size > self._size:
            os.ftruncate(self._descriptor, self._size)
            os.fsync(self._descriptor)

    def _roll(self) -> None:
        """Begin a new segment; it appears under its name with its header complete."""
        path = _segment(self._folder, self.position)
        header = encode_segment_header(self.position, self._arrival)
        write_atomically(path, header, temporary=self._folder / "segment.new", failpoint="streams.roll")
        self._open_segment(self.position)

    def _open_segment(self, base: int) -> None:
        path = _segment(self._folder, base)
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        self.position, self._arrival = read_segment_header(self._descriptor, str(path))
        self._size = SEGMENT_HEADER.size


def _segment_frames(folder: Path, base: int, offset: int, start: int) -> Iterator[Frame]:
    path = _segment(folder, base)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if read_segment_header(descriptor, str(path))[0] != base:
            raise damaged(str(path), 0, "the segment of another position")
        yield from frames(descriptor, str(path), offset=offset, position=start)
    finally:
        os.close(descriptor)


def _redact(folder: Path, base: int, chosen: Callable[[bytes], bool]) -> int:
    """Write a segment anew with some of its records emptied; leave it as it is where there are none."""
    path, redacted = _segment(folder, base), 0
    with path.open("rb") as file:
        written = bytearray(file.read(SEGMENT_HEADER.size))
    for frame in _segment_frames(folder, base, SEGMENT_HEADER.size, base):
        records = [(record, chosen(record)) for record in frame.records()]
        redacted += sum(wanted for _, wanted in records)
        kept = [EMPTIED if wanted else record for record, wanted in records]
        written += encode_frame(kept, frame.start, frame.arrival)
    if redacted:
        write_atomically(path, bytes(written), temporary=folder / "segment.new", failpoint="streams.redact")
    return redacted


def _segment(folder: Path, base: int) -> Path:
    return folder / f"{base:020d}{SUFFIX}"


def _bases(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return sorted(int(name.removesuffix(SUFFIX)) for name in os.listdir(folder) if name.endswith(SUFFIX))


def _has_writer(folder: Path, holder: str) -> Unavailable:
    return Unavailable(
        "the stream already has a writer",
        where=str(folder),
        got=f"process {holder or 'unknown'}",
        expected="one writer",
        next_step="send the records through that process",
    )


def _up_to(records: list[bytes], size: int, held: int) -> tuple[list[bytes], int]:
    """Return the records until `size` bytes are reached together with the `held` ones, at least one; and the bytes."""
    for index, data in enumerate(records):
        held += len(data)
        if held >= size:
            return records[: index + 1], held
    return records, held
