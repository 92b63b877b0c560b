"""Measure served quantities with the range that their true value may have: a limit is judged beyond chance or not."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import bdtrc, betaincinv

from headrace.monitoring.record import Measurement
from headrace.stats.binning import Floats, numeric_counts, quantile_edges
from headrace.stats.distances import FLOOR, aligned, psi, psi_noise
from headrace.stats.intervals import Interval, quantile_of
from headrace.stats.profiles import Profile, profile

CONFIDENCE = 0.998  # two-sided: a rule judged a hundred times a rollout may err once in a thousand at each end
MAX_BINS = 10
ROWS_A_BIN = 20  # fewer would leave bins empty by chance, and an empty decile alone adds 0.69 to a PSI


def exact_share(successes: int, rows: int, confidence: float = CONFIDENCE) -> Interval:
    """Return the exact interval of a share: it covers at least as often as it says, also for one error in forty rows.

    Source: Clopper and Pearson (1934).

    >>> tuple(round(end, 4) for end in exact_share(1, 10, 0.95))
    (0.0025, 0.445)
    """
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(betaincinv(successes, rows - successes + 1, tail))
    high = 1.0 if successes == rows else float(betaincinv(successes + 1, rows - successes, 1 - tail))
    return Interval(low, high)


def share(name: str, successes: int, rows: int) -> Measurement:
    """Measure a share of rows."""
    if not rows:
        return Measurement(name, None, 0, "no rows in the period")
    low, high = exact_share(successes, rows)
    return Measurement(name, successes / rows, rows, None, low, high, basis=f"{successes} of {rows} rows")


def mean(name: str, values: Floats) -> Measurement:
    """Measure the mean of values, with the normal interval."""
    if not values.size:
        return Measurement(name, None, 0, "no rows in the period")
    value = float(values.mean())
    if values.size < 2:
        return Measurement(name, value, 1)
    half = quantile_of(CONFIDENCE) * float(values.std(ddof=1)) / float(np.sqrt(values.size))
    return Measurement(name, value, int(values.size), None, value - half, value + half)


def percentile(name: str, values: ArrayLike, q: float) -> Measurement:
    """Measure a quantile (inverse CDF, the smallest value with at least the share `q` at or below it).

    The interval is that of order statistics, free of any distribution; an end is None where the rows do not suffice.

    Source: David and Nagaraja, Order Statistics (2003), section 7.1.

    >>> found = percentile("latency_p50", range(100), 0.5)
    >>> found.value, found.low, found.high
    (49.0, 34.0, 65.0)
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    rows = ordered.size
    if not rows:
        return Measurement(name, None, 0, "no rows in the period")
    value = float(ordered[max(int(np.ceil(q * rows)) - 1, 0)])
    # The i-th smallest value lies at or below the quantile when at least i of the rows do.
    reached = bdtrc(np.arange(rows), rows, q)
    tail = (1 - CONFIDENCE) / 2
    below = np.flatnonzero(reached >= 1 - tail)
    above = np.flatnonzero(reached <= tail)
    low = float(ordered[below[-1]]) if below.size else None
    high = float(ordered[above[0]]) if above.size else None
    return Measurement(name, value, int(rows), None, low, high)


def psi_of_scores(name: str, reference: Floats, current: Floats) -> Measurement:
    """Measure the PSI of two samples of scores over the reference's quantile bins, at least 20 rows to a bin.

    With 400 rows and more these are deciles; with fewer the bins are fewer, so that none is empty by chance.
    """
    rows = min(reference.size, current.size)
    bins = min(MAX_BINS, rows // ROWS_A_BIN)
    if bins < 2:
        return Measurement(
            name,
            None,
            int(current.size),
            f"{current.size} rows against {reference.size}; {2 * ROWS_A_BIN} are needed on both sides",
        )
    counts = numeric_counts(reference, current, edges=quantile_edges(reference, bins))
    return _psi(name, *counts, int(reference.size), int(current.size))


def psi_of_profile(name: str, reference: Profile, current: Floats) -> Measurement:
    """Measure the PSI of a sample of scores against the profile of the training set's scores, over its bins."""
    if current.size < ROWS_A_BIN * len(reference.counts) or not reference.rows:
        needed = ROWS_A_BIN * len(reference.counts)
        return Measurement(name, None, int(current.size), f"{current.size} rows, {needed} are needed")
    now = profile(current, like=reference)
    return _psi(name, reference.counts, now.counts, reference.rows, now.rows)


def _psi(name: str, before: ArrayLike, after: ArrayLike, reference_rows: int, current_rows: int) -> Measurement:
    """Return a PSI with its noise and an interval for the PSI of the two populations.

    The interval takes the noise off and adds the delta method's variance to that of chi-squared noise, both samples
    independent; scores of the same rows vary less, so there it is too wide rather than too narrow.
    """
    value = psi(before, after)
    expected, actual = (np.maximum(side, FLOOR) for side in aligned(before, after))
    bins = expected.size
    noise = psi_noise(bins, reference_rows, current_rows)
    ratio = np.log(actual / expected)
    spread = _variance(actual, ratio + 1 - expected / actual) / current_rows
    spread += _variance(expected, -ratio + 1 - actual / expected) / reference_rows
    error = np.sqrt(spread + 2 * (bins - 1) * (1 / reference_rows + 1 / current_rows) ** 2)
    half = quantile_of(CONFIDENCE) * float(error)
    low, high = max(0.0, value - noise - half), max(0.0, value - noise + half)
    basis = f"{bins} quantile bins of the reference, {reference_rows} rows"
    return Measurement(name, value, current_rows, None, low, high, noise, basis)


def _variance(weights: Floats, values: Floats) -> float:
    return float(np.sum(weights * values**2) - np.sum(weights * values) ** 2)
