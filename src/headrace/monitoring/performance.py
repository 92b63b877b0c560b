"""Keep what was served in columns, join labels as they arrive, and measure live quantities over any period."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import orjson
from numpy.typing import NDArray

from headrace.core.errors import Corrupt
from headrace.core.time import DAY
from headrace.evaluation.metrics import METRICS
from headrace.evaluation.metrics import measure as measure_metric
from headrace.monitoring import evidence
from headrace.monitoring.definition import LiveQuantity
from headrace.monitoring.labels import LabelBook, delays_of
from headrace.monitoring.record import LabelDelays, Measurement
from headrace.serving.record import ERROR, FALLBACK
from headrace.stats.binning import Floats
from headrace.stats.intervals import auc_interval
from headrace.stats.profiles import Profile

DEFAULT_PERIOD = DAY  # what is measured where neither `over` nor a beginning is said
KEEP = 60 * DAY
LOOKED_AT = 22 * DAY  # how long matured labels are looked back at: two weeks of a monitor, and a week of lateness
SERVED_ROW = np.dtype(
    [
        ("place", "<i4"),
        ("t", "<i8"),
        ("variant", "i1"),
        ("version", "<i2"),
        ("score", "<f8"),
        ("decision", "i1"),
        ("flags", "u1"),
        ("latency", "<f4"),
    ]
)
SHADOW_ROW = np.dtype([("position", "<i8"), ("version", "<i2"), ("score", "<f8")])


@dataclass(frozen=True)
class Scope:
    """Say whose predictions are measured: those of a version, answered or in its shadow, from an instant on.

    Without a version it is what was answered, whoever answered. `against` says what a comparison's word stands for:
    another version, or the scores of the training set as a profile.
    """

    version: str | None = None
    since: int | None = None
    against: Mapping[str, str | Profile] = field(default_factory=dict)


EVERYTHING = Scope()


class Growing:
    """Hold rows of a NumPy type in one buffer that doubles when it is full; rows come as tuples and are read as arrays."""

    def __init__(self, dtype: np.dtype[Any], rows: NDArray[Any] | None = None) -> None:
        self._buffer = np.empty(0, dtype=dtype) if rows is None else rows.copy()
        self._size = self._buffer.size
        self.pending: list[tuple[Any, ...]] = []

    @property
    def rows(self) -> NDArray[Any]:
        """Return all rows; a view that is valid until rows are dropped."""
        if self.pending:
            size = self._size + len(self.pending)
            if size > self._buffer.size:
                larger = np.empty(max(size, 2 * self._buffer.size), dtype=self._buffer.dtype)
                larger[: self._size] = self._buffer[: self._size]
                self._buffer = larger
            self._buffer[self._size : size] = np.array(self.pending, dtype=self._buffer.dtype)
            self._size = size
            self.pending.clear()
        return self._buffer[: self._size]

    def keep(self, mask: NDArray[np.bool_]) -> None:
        """Drop the rows that the mask leaves out."""
        self._buffer = self.rows[mask]
        self._size = self._buffer.size


class LiveWindow:
    """Hold the served predictions of the newest `keep` microseconds, and measure them.

    `threshold` is the score from which a decision is positive. `append` costs about a microsecond: rows are put into
    columns when they are next read. Everything follows from what was appended; no clock is read.
    """

    def __init__(self, *, keep: int = KEEP, threshold: float = 0.5) -> None:
        self.keep, self.threshold = keep, threshold
        self.labels = LabelBook()
        self._codes: dict[str, int] = {}
        self._variants: dict[str, int] = {}
        self._dropped = 0
        self._served, self._shadows = Growing(SERVED_ROW), Growing(SHADOW_ROW)
        self._count = 0

    def append(
        self,
        row_id: bytes,
        t: int,
        score: float,
        *,
        version: str,
        variant: str = "champion",
        decision: bool = False,
        flags: int = 0,
        latency: float = 0.0,
        shadows: Iterable[tuple[str, float]] = (),
    ) -> None:
        """Add one answered request.

        `version` is the one that routing chose; `flags` are those of the prediction log. Where the version failed they
        hold ERROR, `score` is what was answered instead, and the version that stood in is among the shadows. `shadows`
        are (version, score) of those that scored beside; a score of NaN is a shadow that failed. `latency` is in
        microseconds.
        """
        code = self._codes.setdefault(version, len(self._codes))
        kind = self._variants.setdefault(variant, len(self._variants))
        place = self.labels.place(row_id)
        self._served.pending.append((place, t, kind, code, score, decision, flags, latency))
        for name, other in shadows:
            shadow = self._codes.setdefault(name, len(self._codes))
            self._shadows.pending.append((self._count, shadow, other))
        self._count += 1

    @classmethod
    def lasting(cls, mature: int, *, least: int = KEEP, threshold: float = 0.5) -> Self:
        """Return a window that keeps predictions until labels that take `mature` microseconds have been looked at."""
        return cls(keep=max(least, mature + LOOKED_AT), threshold=threshold)

    def label(self, row_id: bytes, label: float, *, arrived: int) -> None:
        """State a row's label as it arrived; a label for a row that was never served does no harm."""
        self.labels.state(row_id, label, arrived=arrived)

    def drop_old(self, now: int) -> int:
        """Drop what is older than `keep`; return how many predictions were dropped."""
        served = self._served.rows
        kept = served["t"] >= now - self.keep
        # Positions of shadows count from the first row ever, so only whole beginnings are dropped.
        first = int(np.argmax(kept)) if kept.any() else served.size
        kept[first:] = True
        self._served.keep(kept)
        self._dropped += first
        self._shadows.keep(self._shadows.rows["position"] >= self._dropped)
        served = self._served.rows
        served["place"] = self.labels.forget(served["place"], before=now - self.keep)[served["place"]]
        return first

    def forget(self, row_ids: Collection[bytes]) -> int:
        """Drop every prediction about some rows, with its label and shadows; return how many there were."""
        moved = self.labels.remove(row_ids)
        served = self._served.rows
        kept = moved[served["place"]] >= 0
        places = np.cumsum(kept) - 1
        shadows = self._shadows.rows
        positions = shadows["position"] - self._dropped
        shadows["position"] = places[positions] + self._dropped
        self._shadows.keep(kept[positions])
        self._served.keep(kept)
        served = self._served.rows
        served["place"] = moved[served["place"]]
        self._count = self._dropped + served.size
        return int(np.count_nonzero(~kept))

    def rows_of(self, version: str, *, since: int, now: int) -> int:
        """Return how many rows of a period a version was asked for: to answer, or in the shadow; failures count."""
        return self._asked(version, since, now)[0].size

    def measure(self, quantity: LiveQuantity, now: int, scope: Scope = EVERYTHING) -> Measurement:
        """Measure a live quantity at an instant.

        A metric is taken over the predictions from `now - over - matured` to `now - matured` whose labels have arrived by
        now; everything else over the `over` newest, or since the scope began, or the newest day.
        """
        name = str(quantity)
        if quantity.name in METRICS:
            end = now - (quantity.matured or 0)
            start = max(end - (quantity.over or DEFAULT_PERIOD), scope.since or 0)
            return self.metric(quantity.name, start, end, now=now, version=scope.version, called=name)
        start = scope.since if scope.since is not None else now - (quantity.over or DEFAULT_PERIOD)
        if quantity.over is not None:
            start = max(start, now - quantity.over)
        return self._served_quantity(quantity, name, start, now, scope)

    def metric(
        self, name: str, start: int, end: int, *, now: int, version: str | None = None, called: str | None = None
    ) -> Measurement:
        """Measure a metric over the predictions of `[start, end)` whose labels had arrived by `now`."""
        positions, scores = self._scored(version, start, end)
        places = self._served.rows["place"][positions]
        labels, arrived = self.labels.labels[places], self.labels.arrived[places]
        held = (arrived <= now) & np.isfinite(labels)
        found = measure_metric(name, labels[held], scores[held], threshold=self.threshold)
        low, high = None, None
        if name == "auc" and found.value is not None:
            interval = auc_interval(labels[held], scores[held], evidence.CONFIDENCE)
            low, high = (None, None) if interval is None else (interval.low, interval.high)
        basis = f"{found.rows} labelled of {positions.size} predictions"
        return Measurement(called or name, found.value, found.rows, found.reason, low, high, basis=basis)

    def delays(self, now: int, *, matured: int, over: int) -> LabelDelays:
        """Summarise label delays of the predictions from `now - over - matured` to `now - matured`."""
        served = self._served.rows
        chosen = (served["t"] >= now - over - matured) & (served["t"] < now - matured)
        arrived = self.labels.arrived[served["place"][chosen]]
        return delays_of(served["t"][chosen], arrived, matured=matured)

    def matured_labels(self, start: int, end: int, *, now: int) -> int:
        """Count the predictions of `[start, end)` whose label had arrived by `now`."""
        served = self._served.rows
        places = served["place"][(served["t"] >= start) & (served["t"] < end)]
        arrived = self.labels.arrived[places]
        return int(np.count_nonzero((arrived <= now) & np.isfinite(self.labels.labels[places])))

    def traffic(self, start: int, end: int) -> dict[str, int]:
        """Count the answered requests of `[start, end)` by version, in the order in which versions first appeared."""
        served = self._served.rows
        codes = served["version"][(served["t"] >= start) & (served["t"] < end)]
        counts = np.bincount(codes, minlength=len(self._codes))
        return {name: int(counts[code]) for name, code in self._codes.items() if counts[code]}

    def scores(self, version: str | None, start: int, end: int) -> Floats:
        """Return the scores that a version gave in `[start, end)`, answered or in its shadow; without one all answers."""
        return self._scored(version, start, end)[1]

    def _served_quantity(self, quantity: LiveQuantity, name: str, start: int, now: int, scope: Scope) -> Measurement:
        if quantity.name == "prediction_psi":
            return self._psi(quantity, name, start, now, scope)
        if quantity.name == "prediction_mean":
            return evidence.mean(name, self._scored(scope.version, start, now)[1])
        if quantity.name == "error_rate":
            errors, asked = self._errors(scope.version, start, now)
            return evidence.share(name, errors, asked)
        answered = self._answered(scope.version, start, now)
        if quantity.name == "fallback_rate":
            return evidence.share(name, int(np.count_nonzero(answered["flags"] & FALLBACK)), answered.size)
        return evidence.percentile(name, answered["latency"], int(quantity.name.removeprefix("latency_p")) / 100)

    def _psi(self, quantity: LiveQuantity, name: str, start: int, now: int, scope: Scope) -> Measurement:
        word = quantity.against or "training"
        other = scope.against.get(word)
        scores = self._scored(scope.version, start, now)[1]
        if other is None:
            return Measurement(name, None, 0, f"nothing stands for {word!r} here")
        if isinstance(other, Profile):
            return evidence.psi_of_profile(name, other, scores)
        return evidence.psi_of_scores(name, self._scored(other, start, now)[1], scores)

    def _answered(self, version: str | None, start: int, end: int) -> NDArray[Any]:
        served = self._served.rows
        chosen = (served["t"] >= start) & (served["t"] < end)
        if version is not None:
            chosen &= served["version"] == self._codes.get(version, -1)
        return served[chosen]

    def _asked(self, version: str, start: int, end: int) -> tuple[NDArray[np.int64], Floats]:
        """Return the positions of the rows for which a version was asked, and its scores; NaN where it failed."""
        served, shadows = self._served.rows, self._shadows.rows
        code = self._codes.get(version, -1)
        inside = (served["t"] >= start) & (served["t"] < end)
        own = np.flatnonzero(inside & (served["version"] == code))
        scores = np.where(served["flags"][own] & ERROR, np.nan, served["score"][own])
        beside = shadows[shadows["version"] == code]
        beside = beside[inside[beside["position"] - self._dropped]]
        positions = np.concatenate([own, beside["position"] - self._dropped])
        return positions, np.concatenate([scores, beside["score"]])

    def _scored(self, version: str | None, start: int, end: int) -> tuple[NDArray[np.int64], Floats]:
        if version is not None:
            positions, scores = self._asked(version, start, end)
        else:
            served = self._served.rows
            positions = np.flatnonzero((served["t"] >= start) & (served["t"] < end))
            scores = served["score"][positions]
        held = np.isfinite(scores)
        return positions[held], scores[held]

    def _errors(self, version: str | None, start: int, end: int) -> tuple[int, int]:
        if version is None:
            flags = self._answered(None, start, end)["flags"]
            return int(np.count_nonzero(flags & ERROR)), flags.size
        scores = self._asked(version, start, end)[1]
        return int(np.count_nonzero(np.isnan(scores))), scores.size

    def dump(self) -> bytes:
        """Return everything as bytes, from which `load` makes an equal window."""
        header = {
            "keep": self.keep,
            "threshold": self.threshold,
            "codes": list(self._codes),
            "variants": list(self._variants),
            "dropped": self._dropped,
            "count": self._count,
        }
        written = io.BytesIO()
        arrays = self.labels.arrays() | {"served": self._served.rows, "shadows": self._shadows.rows}
        np.savez(written, allow_pickle=False, header=np.frombuffer(orjson.dumps(header), dtype=np.uint8), **arrays)
        return written.getvalue()

    @classmethod
    def load(cls, content: bytes) -> Self:
        """Return the window that `dump` wrote.

        Raises:
            Corrupt: the bytes are none.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as read:
                arrays = {name: read[name] for name in read.files}
            header = orjson.loads(arrays["header"].tobytes())
            window = cls(keep=header["keep"], threshold=header["threshold"])
            window.labels = LabelBook.from_arrays(arrays)
            window._codes = {name: code for code, name in enumerate(header["codes"])}
            window._variants = {name: code for code, name in enumerate(header["variants"])}
            window._dropped, window._count = header["dropped"], header["count"]
            window._served = Growing(SERVED_ROW, arrays["served"].astype(SERVED_ROW))
            window._shadows = Growing(SHADOW_ROW, arrays["shadows"].astype(SHADOW_ROW))
        except (EOFError, KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
            raise Corrupt(
                "not a live window",
                where="monitoring checkpoint",
                got=error,
                expected="the bytes that LiveWindow.dump wrote",
                next_step="headrace doctor",
            ) from error
        return window
