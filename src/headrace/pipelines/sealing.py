"""Seal segments of the prediction log: their digests into the ledger, their feature vectors to the drift monitors."""

from __future__ import annotations

from pathlib import Path

from headrace.monitoring.drift import VectorBlock
from headrace.serving.log import PredictionLog, segment_digest, segment_name, segments
from headrace.storage.ledger import Entry, Ledger

SEALED = "log.sealed"


def window_of(log: PredictionLog) -> VectorBlock:
    """Return the feature vectors and scores of the open segment."""
    words, status, scores = log.block.arrays(len(log.columns))
    texts = [list(column) for column in zip(*log.block.texts, strict=True)]
    return VectorBlock(log.columns, words, status, texts, scores)


def seal(log: PredictionLog, ledger: Ledger) -> str:
    """Commit the open segment, enter its digest into the ledger, and return it."""
    digest = log.seal()
    ledger.append([_entry(log.segment, digest, log.count)])
    return digest


def seal_left_open(folder: Path, ledger: Ledger) -> int:
    """Enter the digests of segments that a killed process left unsealed; return how many there were.

    Raises:
        Corrupt: a segment is damaged.
    """
    left = [s for s in segments(folder) if not ledger.read(kinds=[SEALED], subject=_subject(s), limit=1)]
    for segment in left:
        digest, rows = segment_digest(folder, segment)
        ledger.append([_entry(segment, digest, rows)])
    return len(left)


def _entry(segment: int, digest: str, rows: int) -> Entry:
    return Entry(SEALED, _subject(segment), {"digest": digest, "rows": rows})


def _subject(segment: int) -> str:
    return segment_name(segment).removesuffix(".log")
