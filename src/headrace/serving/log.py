"""Log every prediction in a write-ahead file: appended in memory, written in groups, synced as the policy says."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from headrace.core.errors import Corrupt, Unavailable, UsageError
from headrace.core.failpoints import reach
from headrace.features.record import OK, STATUS, FeatureColumn, FeatureVector
from headrace.serving import record
from headrace.serving.record import FIXED, FRAME, MEASURED, NAME, NO_DECISION, Prediction, Shadow, prediction_id
from headrace.storage.paths import write_atomically

GROUP_BYTES = 1 << 20
WINDOW = 100_000


@dataclass
class Block:
    """Hold feature vectors and answers of the open segment as growing columns, for monitoring.

    Of more than `limit` rows every second one is kept, then every fourth, and so on; none with a limit of 0.
    """

    limit: int
    every: int = 1
    seen: int = 0
    words: bytearray = field(default_factory=bytearray)
    status: bytearray = field(default_factory=bytearray)
    texts: list[list[str | None]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def add(self, words: bytes, status: bytes, texts: list[str | None], score: float) -> None:
        """Take in a prediction, unless it is one of those that are left out."""
        self.seen += 1
        if not self.limit or self.seen % self.every:
            return
        if len(self.scores) == self.limit:
            self._thin()
            if self.seen % self.every:
                return
        self.words += words
        self.status += status
        self.texts.append(texts)
        self.scores.append(score)

    def _thin(self) -> None:
        rows = len(self.scores)
        for buffer in (self.words, self.status):
            kept = np.frombuffer(bytes(buffer), np.uint8).reshape(rows, -1)[1::2].tobytes()
            buffer[:] = kept
        self.texts, self.scores, self.every = self.texts[1::2], self.scores[1::2], self.every * 2

    def arrays(self, columns: int) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.float64]]:
        """Return words and statuses, shape (rows, columns), and scores."""
        words = np.frombuffer(bytes(self.words), np.int64).reshape(-1, columns)
        status = np.frombuffer(bytes(self.status), np.uint8).reshape(-1, columns)
        return words, status, np.array(self.scores, np.float64)


class PredictionLog:
    """Append predictions to numbered segments in a folder; one writer.

    With `durable=True` every prediction is handed to the operating system before `append` returns its id, so a kill of the
    process loses none; `commit` syncs to the disk, so after a crash of the machine at most the time since the last one is
    missing (`headrace serve` commits as often as `[serving] log_sync` says). `block` holds the feature vectors of at most
    `window` of the open segment's predictions. `durable=False` writes in groups and leaves syncing to the system,
    for runs that can be repeated. `definition` names the features' meaning; `in_step` says that every reveal is applied at
    its own arrival.
    """

    def __init__(
        self,
        folder: Path,
        columns: Sequence[FeatureColumn],
        request: Sequence[str],
        *,
        segment: int,
        durable: bool = True,
        window: int = WINDOW,
        definition: str = "",
        in_step: bool = False,
    ) -> None:
        self.folder, self.columns, self.request = folder, tuple(columns), tuple(request)
        self.durable, self.window = durable, window
        self.definition, self.in_step = definition, in_step
        self._buffer = bytearray()
        self._file: Any = None
        self.open_segment(segment)

    def open_segment(self, segment: int) -> None:
        """Begin a segment afresh; what an interrupted run left under its number is dropped."""
        self.close()
        self.segment, self.count, self.block = segment, 0, Block(self.window)
        self._names: dict[str, int] = {}
        self._applied: Mapping[str, int] | None = None
        self._digest = hashlib.sha256()
        self._file = open(self.folder / segment_name(segment), "wb", buffering=0, opener=_private)  # noqa: SIM115 - held open
        header = {"segment": segment, "columns": [[c.name, c.dtype, c.origin] for c in self.columns]}
        header |= {"request": list(self.request), "definition": self.definition, "in_step": self.in_step}
        self._frame(bytes([record.KIND_HEADER]) + orjson.dumps(header))

    def note_applied(self, versions: Mapping[str, int] | None) -> None:
        """Say of which versions of the sources' tables the features of the following predictions are; None: not known."""
        if versions != self._applied:
            body = bytes([record.KIND_APPLIED]) + orjson.dumps(versions, option=orjson.OPT_SORT_KEYS)
            self._digest.update(body)
            self._frame(body)
            self._applied = versions

    def append(
        self,
        row_id: bytes,
        t: int,
        request: Sequence[Any],
        vector: FeatureVector,
        score: float,
        *,
        version: str,
        variant: str,
        threshold: str,
        decision: bool | None,
        flags: int,
        shadows: Sequence[tuple[str, float | None]],
        latency_us: float,
    ) -> str:
        """Add a prediction and return its id; it is on disk after the next `commit`.

        Raises:
            Unavailable: the disk takes no more; nothing that was added is forgotten, and the next call writes it first.
        """
        codes = [self._names.get(n, -1) for n in (version, variant, threshold)]
        if -1 in codes:
            codes = [self._code(n) for n in (version, variant, threshold)]
        words, status = vector.words.tobytes(), vector.status.tobytes()
        texts = vector.texts.copy()
        rest = orjson.dumps([request, texts, shadows])
        number = self.count
        decided = NO_DECISION if decision is None else int(decision)
        sizes = (len(row_id), len(words), len(status))
        body = FIXED.pack(record.KIND_PREDICTION, number, t, score, *codes, decided, flags, *sizes)
        body += row_id + words + status + rest
        self._digest.update(body)
        self._frame(body + MEASURED.pack(latency_us))
        self.block.add(words, status, texts, score)
        self.count = number + 1
        if self.durable or len(self._buffer) >= GROUP_BYTES:
            self._write()
        return prediction_id(self.segment, number)

    def _code(self, name: str) -> int:
        code = self._names.get(name)
        if code is None:
            code = self._names[name] = len(self._names)
            body = NAME.pack(record.KIND_NAME, code) + name.encode()
            self._digest.update(body)
            self._frame(body)
        return code

    def _frame(self, body: bytes) -> None:
        self._buffer += FRAME.pack(len(body), length_check(len(body)), zlib.crc32(body)) + body

    def _write(self) -> None:
        """Write what is waiting; after a failure exactly the rest waits, so that no frame is doubled or cut."""
        try:
            while self._buffer:
                del self._buffer[: self._file.write(self._buffer)]
        except OSError as error:
            raise self._failed(error) from error

    def commit(self, lock: AbstractContextManager[object] | None = None) -> None:
        """Hand everything appended so far to the operating system, and with `durable` to the disk.

        `lock` is what other threads hold while they append; it is not held while the disk works.

        Raises:
            Unavailable: the disk is full or fails.
        """
        with lock or nullcontext():
            self._write()
            descriptor = os.dup(self._file.fileno())
        try:
            reach("predictions.before_sync")
            if self.durable:
                os.fsync(descriptor)
        except OSError as error:
            raise self._failed(error) from error
        finally:
            os.close(descriptor)

    def _failed(self, error: OSError) -> Unavailable:
        return Unavailable(
            "the prediction log cannot be written",
            where=segment_name(self.segment),
            got=error.strerror or str(error),
            expected=f"{len(self._buffer)} bytes more",
            next_step="make room on the disk; what waits is written then",
        )

    def seal(self) -> str:
        """Commit the segment and return the digest of its content, measured fields left out."""
        self.commit()
        return self._digest.hexdigest()

    def close(self) -> None:
        """Commit and close the open segment."""
        if self._file is not None:
            self.commit()
            self._file.close()
            self._file = None


def segment_name(segment: int) -> str:
    """Return the file name of a segment."""
    return f"segment-{segment:06d}.log"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def segments(folder: Path) -> list[int]:
    """Return the numbers of the segments in a folder, ascending."""
    return sorted(int(p.stem.removeprefix("segment-")) for p in folder.glob("segment-*.log"))


def frames(content: bytes, where: str) -> Iterator[bytes]:
    """Yield the frames of a segment; a torn tail, which was never acknowledged, is dropped.

    Raises:
        Corrupt: damage that is not a torn tail.
    """
    # A crash of the machine may leave the file's end longer than what reached it: zeros, which are no frame.
    at, end = 0, len(content.rstrip(b"\0"))
    while at + FRAME.size <= len(content):
        size, check, crc = FRAME.unpack_from(content, at)
        behind = at + FRAME.size
        if check == length_check(size):
            behind += size
            body = content[at + FRAME.size : behind]
            if len(body) == size and zlib.crc32(body) == crc:
                yield body
                at = behind
                continue
        if behind >= end:
            return
        raise Corrupt(
            "the prediction log is damaged", where=f"{where}, byte {at}", next_step="restore it from a backup"
        )


def length_check(size: int) -> int:
    """Return the CRC-32 of a frame's length: a damaged length must not pass for a frame that was cut off."""
    return zlib.crc32(size.to_bytes(4, "little"))


def segment_digest(folder: Path, segment: int) -> tuple[str, int]:
    """Return the digest that sealing a segment would have given, and the number of its predictions.

    Raises:
        UsageError: there is no such segment.
        Corrupt: the file is damaged.
    """
    digest, rows = hashlib.sha256(), 0
    for body in _frames_of(folder, segment):
        if body[0] == record.KIND_PREDICTION:
            rows += 1
            body = body[: -MEASURED.size]
        if body[0] != record.KIND_HEADER:
            digest.update(body)
    return digest.hexdigest(), rows


def read_segment(folder: Path, segment: int) -> Iterator[Prediction]:
    """Yield the predictions of a segment in order.

    Raises:
        UsageError: there is no such segment.
        Corrupt: the file is damaged.
    """
    names: dict[int, str] = {}
    header: Mapping[str, Any] = {}
    applied: Mapping[str, int] | None = None
    for body in _frames_of(folder, segment):
        if body[0] == record.KIND_NAME:
            names[NAME.unpack_from(body)[1]] = body[NAME.size :].decode()
        elif body[0] == record.KIND_PREDICTION:
            yield _decode(body, names, header, applied)
        elif body[0] == record.KIND_APPLIED:
            applied = orjson.loads(body[1:])
        else:
            header = orjson.loads(body[1:])


def _frames_of(folder: Path, segment: int) -> Iterator[bytes]:
    path = folder / segment_name(segment)
    if not path.is_file():
        raise UsageError("no such part of the prediction log", where=path.name, next_step="headrace doctor")
    return frames(path.read_bytes(), path.name)


def _decode(
    body: bytes, names: Mapping[int, str], header: Mapping[str, Any], applied: Mapping[str, int] | None
) -> Prediction:
    fields = FIXED.unpack_from(body)
    _, number, t, score, version, variant, threshold, decision, flags, *sizes = fields
    at, parts = FIXED.size, []
    for size in sizes:
        parts.append(body[at : at + size])
        at += size
    request, texts, shadows = orjson.loads(body[at : -MEASURED.size])
    columns = tuple(FeatureColumn(*c) for c in header["columns"])
    words, status = np.frombuffer(parts[1], np.int64), np.frombuffer(parts[2], np.uint8)
    features = FeatureVector(columns, words, status, texts).to_dict()
    return Prediction(
        id=prediction_id(header["segment"], number),
        t=t,
        row_id=parts[0],
        request=dict(zip(header["request"], request, strict=True)),
        features=features,
        status={c.name: STATUS[s] for c, s in zip(columns, status.tolist(), strict=True) if s != OK},
        score=score,
        decision=None if decision == NO_DECISION else bool(decision),
        version=names[version],
        variant=names[variant],
        threshold=names[threshold],
        flags=flags,
        shadows=tuple(Shadow(v, s) for v, s in shadows),
        latency_us=round(MEASURED.unpack(body[-MEASURED.size :])[0], 3),
        definition=header.get("definition", ""),
        applied=applied,
        in_step=header.get("in_step", False),
    )


@dataclass(frozen=True)
class Rewritten:
    """Hold what a segment is after some predictions were taken out: how many, its digest now, and how many are left."""

    removed: int
    digest: str
    rows: int


def rewrite_segment(folder: Path, segment: int, drop: Callable[[Prediction], bool]) -> Rewritten:
    """Take predictions out of a segment for good; the others keep their ids. Nobody may be writing to it.

    Killed in between, the segment is as it was or as it shall be.

    Raises:
        UsageError: there is no such segment.
        Corrupt: the file is damaged.
    """
    path, written, removed = folder / segment_name(segment), bytearray(), 0
    predictions = read_segment(folder, segment)
    for body in _frames_of(folder, segment):
        if body[0] == record.KIND_PREDICTION and drop(next(predictions)):
            removed += 1
        else:
            written += FRAME.pack(len(body), length_check(len(body)), zlib.crc32(body)) + body
    if removed:
        write_atomically(path, bytes(written), temporary=folder / "segment.new", failpoint="predictions.rewrite")
    digest, rows = segment_digest(folder, segment)
    return Rewritten(removed, digest, rows)


def find(folder: Path, wanted: str) -> Prediction:
    """Return a prediction by its id.

    Raises:
        UsageError: no such prediction.
        Corrupt: the log is damaged.
    """
    segment, _, number = wanted.removeprefix("p").partition("-")
    if wanted[:1] == "p" and segment.isdigit() and number.isdigit() and int(segment) in segments(folder):
        for prediction in read_segment(folder, int(segment)):
            if prediction.id == wanted:
                return prediction
    known = segments(folder)
    example = prediction_id(known[-1], 0) if known else "p000001-000000"
    raise UsageError("no such prediction", got=wanted, expected=f"an id that was answered, as {example}")
