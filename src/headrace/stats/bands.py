"""Decide whether the newest windows are unusual for a quantity's own history, instead of against a fixed threshold.

A p-value against the training data alarms every day once windows are large, a fixed PSI threshold misses what is small
but new. A band of the column's own past, a minimum effect and "k of n" together do neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from headrace.core.errors import DefinitionError
from headrace.stats.binning import Floats

NORMAL_MAD = 1.4826022185056018  # 1 / the upper quartile of the standard normal: MAD x this estimates a sd


# What a change must amount to before anyone should look: PSI, reference standard deviations, share of rows.
MINIMUM_EFFECTS = {"psi": 0.01, "mean_shift": 0.05, "null_shift": 0.01}


@dataclass(frozen=True)
class Verdict:
    """Tell whether the newest windows are unusual, with every number that decided.

    `flagged` of the `judged` newest windows lie above `limit`; `needed` must. `reason` is None once decided, and says
    why not where the history is too short.
    """

    unusual: bool
    flagged: int
    judged: int
    needed: int
    centre: float | None
    spread: float | None
    limit: float | None
    recent: tuple[float, ...]
    reason: str | None = None


@dataclass(frozen=True)
class Band:
    """Hold the usual range of a quantity: its median, its robust standard deviation and the limit above it."""

    centre: float
    spread: float
    limit: float


def band(history: ArrayLike, *, minimum_effect: float, width: float = 5.0) -> Band | None:
    """Return the band of a history; None without a finite value.

    The limit is the median plus the larger of `width` robust standard deviations and the minimum effect. A window's
    median and MAD ignore up to half of bad days, so a past incident does not widen the band. The MAD of m values is
    itself uncertain: it is widened by (1 + 1.5 / sqrt(m)), which keeps the false alarm rate of 14 and of 300 days alike.

    Source: Hampel (1974); Leys et al. (2013) for median and MAD instead of mean and standard deviation.

    >>> band([0.01, 0.02, 0.03], minimum_effect=0.5).limit
    0.52
    """
    values = finite(history)
    if values.size == 0:
        return None
    centre = float(np.median(values))
    spread = NORMAL_MAD * float(np.median(np.abs(values - centre))) * (1.0 + 1.5 / np.sqrt(values.size))
    return Band(centre, spread, centre + max(width * spread, minimum_effect))


def unusual(
    history: Sequence[float],
    recent: Sequence[float],
    *,
    k: int,
    n: int,
    minimum_effect: float,
    width: float = 5.0,
    minimum_history: int = 14,
) -> Verdict:
    """Decide whether at least `k` of the `n` newest windows lie above the band of the history.

    `history` holds the distances of earlier windows, `recent` of the newest ones in time order (its last `n` count);
    they must not overlap. Values that are not finite (a window without rows) are left out on both sides. With fewer
    than `minimum_history` windows nothing is unusual, and `reason` says so.

    >>> unusual([0.01, 0.02] * 10, [0.02, 0.3, 0.4], k=2, n=3, minimum_effect=0.01).unusual
    True

    Raises:
        DefinitionError: k and n do not fit.
    """
    if not 1 <= k <= n:
        raise DefinitionError(
            "k of n windows",
            where="stats.bands",
            got=f"k={k}, n={n}",
            expected="1 <= k <= n",
            next_step="ask for at most as many windows as are looked at",
        )
    past, newest = finite(history), finite(list(recent)[-n:])
    shown = tuple(float(value) for value in newest)
    usual = band(past, minimum_effect=minimum_effect, width=width)
    if usual is None or past.size < minimum_history:
        reason = f"history has {past.size} windows, {minimum_history} are needed"
        return Verdict(False, 0, newest.size, k, None, None, None, shown, reason)
    flagged = int(np.count_nonzero(newest > usual.limit))
    return Verdict(flagged >= k, flagged, newest.size, k, usual.centre, usual.spread, usual.limit, shown)


def unusual_drift(
    history: Sequence[Mapping[str, float]],
    recent: Sequence[Mapping[str, float]],
    *,
    k: int,
    n: int,
    minimum_effects: Mapping[str, float] = MINIMUM_EFFECTS,
    width: float = 5.0,
    minimum_history: int = 14,
) -> dict[str, Verdict]:
    """Judge one column by each of its distances (`DriftScore.distances`, one mapping a window, in time order).

    Returns a verdict for each distance in `minimum_effects` that the newest windows have; the column is unusual if any
    is. A window that lacks a distance is left out of its history.

    >>> quiet, loud = [{"psi": 0.01}, {"psi": 0.02}] * 10, [{"psi": 0.3}, {"psi": 0.4}]
    >>> {name: verdict.unusual for name, verdict in unusual_drift(quiet, loud, k=2, n=3).items()}
    {'psi': True}
    """
    newest = list(recent)[-n:]
    named = [name for name in minimum_effects if any(name in window for window in newest)]

    def series(windows: Sequence[Mapping[str, float]], name: str) -> list[float]:
        return [window[name] for window in windows if name in window]

    return {
        name: unusual(
            series(history, name),
            series(newest, name),
            k=k,
            n=n,
            minimum_effect=minimum_effects[name],
            width=width,
            minimum_history=minimum_history,
        )
        for name in named
    }


def finite(values: ArrayLike) -> Floats:
    """Return the finite values of a sequence."""
    data = np.asarray(values, dtype=np.float64).ravel()
    return data[np.isfinite(data)]
