"""Watch features and scores for drift: a profile of each window against the training set's, judged by its own history."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from headrace.core.errors import DataError
from headrace.core.time import DAY, WEEK
from headrace.features.record import OK, FeatureColumn, FeatureVector
from headrace.monitoring.record import ColumnWindow, DriftVerdict, DriftWindow, FeatureFinding
from headrace.stats.bands import MINIMUM_EFFECTS, band
from headrace.stats.binning import Floats
from headrace.stats.profiles import Profile, compare, profile, profile_counts

if TYPE_CHECKING:
    from headrace.features.record import TrainingSet

SCORE = "prediction score"  # the name under which the model's own output is watched beside its features
LEAST_ROWS = 50  # a window with fewer rows says nothing: the mean of 30 rows lies 0.2 sd off by chance
LEAST_HISTORY = 14
LEAST_WEEKS = 4  # windows at the same point of the week from which they have a band of their own
HISTORY = 90  # windows kept to know what is usual
SEED_WINDOWS = 60  # newest windows of the training rows that stand for the history before anything was served


@dataclass(frozen=True)
class VectorBlock:
    """Hold the feature vectors of a window as served.

    `words` and `status` have shape (rows, columns), as in `FeatureVector`: float64 bits for float columns, int64 for the
    others. `texts` has one list for each str column, in their order. `scores` are the answered scores, NaN for none.
    """

    columns: tuple[FeatureColumn, ...]
    words: NDArray[np.int64]
    status: NDArray[np.uint8]
    texts: Sequence[Sequence[str | None]]
    scores: Floats

    def __len__(self) -> int:
        return int(self.words.shape[0])

    @classmethod
    def of(cls, columns: tuple[FeatureColumn, ...], vectors: Sequence[FeatureVector], scores: Floats) -> Self:
        """Collect single vectors (copies: a reader reuses its buffers)."""
        shape = (len(vectors), len(columns))
        words = np.array([vector.words for vector in vectors], dtype=np.int64).reshape(shape)
        status = np.array([vector.status for vector in vectors], dtype=np.uint8).reshape(shape)
        count = sum(column.dtype == "str" for column in columns)
        texts = [[vector.texts[i] for vector in vectors] for i in range(count)]
        return cls(columns, words, status, texts, scores)

    def profiles(self, like: Mapping[str, Profile]) -> Iterator[tuple[str, Profile]]:
        """Profile every column that has a reference, over the reference's bins; the score's under `SCORE`."""
        texts = iter(self.texts)
        for i, column in enumerate(self.columns):
            values = next(texts) if column.dtype == "str" else None
            reference = like.get(column.name)
            if reference is None:
                continue
            if values is not None:
                yield column.name, profile_counts(Counter(values), like=reference)
            else:
                yield column.name, self._profile(i, column.dtype, reference)
        if SCORE in like:
            yield SCORE, profile(self.scores, like=like[SCORE])

    def _profile(self, i: int, dtype: str, like: Profile) -> Profile:
        words = np.ascontiguousarray(self.words[:, i])
        held = self.status[:, i] == OK
        if dtype == "bool":
            counts = {"true": int(np.count_nonzero(words[held])), None: int(np.count_nonzero(~held))}
            return profile_counts(counts | {"false": int(np.count_nonzero(words[held] == 0))}, like=like)
        values = words.view(np.float64) if dtype == "float" else words.astype(np.float64)
        return profile(np.where(held, values, np.nan), like=like)


def reference_profiles(data: TrainingSet, scores: Floats | None = None) -> dict[str, Profile]:
    """Profile the columns of a training set, and the scores that the model gives its rows, as what is expected later."""
    found = {column.name: _profile_column(data, column, None) for column in data.columns}
    return found if scores is None else found | {SCORE: profile(scores)}


def training_history(
    data: TrainingSet, reference: Mapping[str, Profile], *, period: int = DAY, windows: int = SEED_WINDOWS
) -> list[DriftWindow]:
    """Return the drift of the training set's own newest windows: what is usual for a feature before anything is served.

    The newest window is cut off where the rows end, so only whole ones are taken; they have no score.
    """
    if not len(data):
        return []
    number = data.t // period
    whole = np.unique(number)[:-1][-windows:]
    found = []
    for window in whole:
        chosen = np.flatnonzero(number == window)
        profiles = {
            column.name: _profile_column(data, column, chosen, reference[column.name])
            for column in data.columns
            if column.name in reference
        }
        found.append(score_window(int(window) * period, int(chosen.size), profiles, reference))
    return found


def score_window(
    start: int, rows: int, profiles: Mapping[str, Profile], reference: Mapping[str, Profile]
) -> DriftWindow:
    """Compare a window's profiles with the reference; with fewer than `LEAST_ROWS` rows it has no columns."""
    columns = {}
    if rows >= LEAST_ROWS:
        for name, now in profiles.items():
            score = compare(reference[name], now)
            shown = (score.psi, score.noise, score.p_value, score.distances)
            columns[name] = ColumnWindow(*shown, now.null_share, score.new_categories)
    return DriftWindow(start, rows, columns)


class DriftWatch:
    """Keep what training looked like and how far each served window lay from it.

    A retrained model brings a new reference: make a new watch from its training set. `dump` and `load` carry one
    through plain JSON.
    """

    def __init__(
        self, reference: Mapping[str, Profile], history: Sequence[DriftWindow] = (), *, keep: int = HISTORY
    ) -> None:
        self.reference = dict(reference)
        self.keep = keep
        self.windows = list(history)[-keep:]
        self.served = 0

    def close_window(self, start: int, block: VectorBlock) -> DriftWindow:
        """Judge the vectors of one window, keep the result and return it.

        Raises:
            DataError: the block's columns are not those of the reference.
        """
        missing = self.reference.keys() - {column.name for column in block.columns} - {SCORE}
        if missing:
            raise DataError(
                "served vectors lack columns of the training set",
                where="monitoring.drift",
                got=sorted(missing),
                expected="the columns of the model's training set",
                next_step="make the watch from the training set of the model that serves",
            )
        rows = len(block)
        found = score_window(start, rows, dict(block.profiles(self.reference)), self.reference)
        self.windows = [*self.windows, found][-self.keep :]
        self.served += 1
        return found

    def verdict(self, *, k: int, n: int) -> DriftVerdict:
        """Tell which features are unusual: at least `k` of the `n` newest served windows above the band of the others.

        A feature is judged by each of its distances (`DriftScore.distances`), as `headrace.stats.bands` says: median
        and robust spread of its own history, and a minimum effect. A weekly rhythm is usual. Windows of the training
        set only make the band; they are never judged.
        """
        count = min(n, self.served, len(self.windows))
        newest = self.windows[len(self.windows) - count :]
        history = self.windows[: len(self.windows) - count]
        findings: list[FeatureFinding] = []
        undecided: dict[str, str] = {}
        for name in self.reference:
            before = [window for window in history if name in window.columns]
            recent = [window for window in newest if name in window.columns]
            if not recent:
                undecided[name] = "no window with enough rows"
            elif len(before) < LEAST_HISTORY:
                undecided[name] = f"history has {len(before)} windows, {LEAST_HISTORY} are needed"
            else:
                judged = (_judge(name, distance, before, recent) for distance in MINIMUM_EFFECTS)
                findings += [finding for finding in judged if finding is not None and finding.flagged >= k]
        findings.sort(key=lambda finding: -max(finding.recent) / finding.limit)
        return DriftVerdict(bool(findings), tuple(findings), len(self.reference), undecided)

    def dump(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {
            "reference": {name: column.to_dict() for name, column in self.reference.items()},
            "windows": [window.to_dict() for window in self.windows],
            "keep": self.keep,
            "served": self.served,
        }

    @classmethod
    def load(cls, body: Mapping[str, Any]) -> Self:
        """Return the watch that `dump` wrote, also after a round trip through JSON."""
        reference = {name: Profile.from_dict(column) for name, column in body["reference"].items()}
        watch = cls(reference, [DriftWindow.from_dict(window) for window in body["windows"]], keep=body["keep"])
        watch.served = body["served"]
        return watch


def _judge(
    name: str, distance: str, history: Sequence[DriftWindow], newest: Sequence[DriftWindow]
) -> FeatureFinding | None:
    """Count the newest windows above their limit; the limit shown is that of the newest one above it, if any."""
    past, recent = _values(history, name, distance), _values(newest, name, distance)
    whole = band(list(past.values()), minimum_effect=MINIMUM_EFFECTS[distance])
    if whole is None:
        return None
    suspects = {start: value for start, value in recent.items() if value > whole.limit}
    limits = {start: max(float(whole.limit), _weekly_limit(start, past, distance)) for start in suspects}
    above = [limits[start] for start, value in suspects.items() if value > limits[start]]
    if not above:
        return None
    return FeatureFinding(name, distance, len(above), len(recent), whole.centre, above[-1], tuple(recent.values()))


def _weekly_limit(start: int, past: Mapping[int, float], distance: str) -> float:
    """Return the limit that windows at the same point of earlier weeks set; 0 with fewer than four of them.

    Weekends are two days of seven, so the median and MAD of all days know nothing of them; without their own band every
    Sunday would be unusual.
    """
    same = [value for moment, value in past.items() if (start - moment) % WEEK == 0]
    found = band(same, minimum_effect=MINIMUM_EFFECTS[distance]) if len(same) >= LEAST_WEEKS else None
    return 0.0 if found is None else float(found.limit)


def _values(windows: Sequence[DriftWindow], name: str, distance: str) -> dict[int, float]:
    return {
        window.start: value for window in windows if (value := window.columns[name].distances.get(distance)) is not None
    }


def _profile_column(
    data: TrainingSet, column: FeatureColumn, chosen: NDArray[np.int64] | None, like: Profile | None = None
) -> Profile:
    values = data.features[column.name]
    if chosen is not None:
        values = values.take(chosen)
    if column.dtype in ("str", "bool"):
        return profile_counts(Counter(values.to_pylist()), like=like)
    numbers = values.cast("float64").to_numpy()
    return profile(numbers, like=like)
