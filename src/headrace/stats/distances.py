"""Measure how far two distributions lie apart. Every function names its source, its base and its binning."""

from __future__ import annotations

import warnings
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from headrace.core.errors import DataError
from headrace.stats.binning import Floats, quantile_edges

FLOOR = 1e-4  # the share that an empty bin is given, the convention under which "PSI > 0.2" was tuned


class Significance(NamedTuple):
    """Hold a test's statistic, its p-value and, where it has them, its degrees of freedom."""

    statistic: float
    p_value: float
    dof: int | None = None


def shares(weights: ArrayLike) -> Floats:
    """Return non-negative weights (counts or shares) divided by their sum.

    Raises:
        DataError: there are none, their sum is zero, or one is negative or not finite.
    """
    values = np.asarray(weights, dtype=np.float64)
    total = float(values.sum()) if values.size else 0.0
    if not (total > 0 and np.isfinite(total)) or float(values.min()) < 0:
        raise DataError(
            "not a distribution",
            where="stats.distances",
            got=values.tolist(),
            expected="non-negative counts or shares with a positive sum",
            next_step="compare only columns and windows that have rows",
        )
    return values / total


def aligned(p: ArrayLike, q: ArrayLike) -> tuple[Floats, Floats]:
    """Return two distributions over the same bins as shares.

    Raises:
        DataError: they have different bins, or one is no distribution.
    """
    first, second = shares(p), shares(q)
    if first.shape != second.shape:
        raise DataError(
            "two distributions over different bins",
            where="stats.distances",
            got=f"{first.size} and {second.size} bins",
            expected="the same bins",
            next_step="count both samples with numeric_counts or category_counts",
        )
    return first, second


def psi(reference: ArrayLike, current: ArrayLike, *, floor: float = FLOOR) -> float:
    """Return the population stability index of two binned samples (counts or shares), in nats.

    Sum of (c - r) ln(c / r), where a share below `floor` counts as `floor` and nothing is renormalised; it is the
    symmetrised Kullback-Leibler divergence. By custom 0.1 is a small and 0.2 a significant change.

    Source: Siddiqi, Credit Risk Scorecards (2006), chapter 9. Bins: the caller's; deciles of the reference by custom.

    >>> round(psi([0.4, 0.3, 0.3], [0.35, 0.25, 0.4]), 6)
    0.044561
    """
    expected, actual = aligned(reference, current)
    expected, actual = np.maximum(expected, floor), np.maximum(actual, floor)
    return float(np.sum((actual - expected) * np.log(actual / expected)))


def psi_noise(bins: int, reference_rows: int, current_rows: int) -> float:
    """Return the PSI that two samples of one distribution show on average: (bins - 1) (1/n + 1/m).

    Source: Yurdakul, Statistical Properties of Population Stability Index (2018): PSI / (1/n + 1/m) tends to
    chi-squared with bins - 1 degrees of freedom.
    """
    return max(bins - 1, 0) * (1 / reference_rows + 1 / current_rows)


def kl_divergence(p: ArrayLike, q: ArrayLike, *, base: float = np.e, floor: float = 0.0) -> float:
    """Return D(p || q), the Kullback-Leibler divergence, in units of `base` (nats unless stated).

    Infinite where p has mass and q has none, unless `floor` lifts the shares of both; nothing is renormalised then.

    Source: Kullback and Leibler (1951), equation 2.2; checked against `scipy.stats.entropy`.

    >>> kl_divergence([0.5, 0.5], [0.5, 0.5])
    0.0
    """
    first, second = aligned(p, q)
    if floor:
        first, second = np.maximum(first, floor), np.maximum(second, floor)
    held = first > 0
    if np.any(second[held] == 0):
        return float("inf")
    return float(np.sum(first[held] * np.log(first[held] / second[held])) / np.log(base))


def js_divergence(p: ArrayLike, q: ArrayLike, *, base: float = 2.0) -> float:
    """Return the Jensen-Shannon divergence in units of `base`; with base 2 it lies from 0 to 1.

    Source: Lin, Divergence Measures Based on the Shannon Entropy (1991), equation 3.4.

    >>> js_divergence([1, 0, 0], [0, 1, 0])
    1.0
    """
    first, second = aligned(p, q)
    middle = (first + second) / 2
    return max(0.0, (kl_divergence(first, middle, base=base) + kl_divergence(second, middle, base=base)) / 2)


def js_distance(p: ArrayLike, q: ArrayLike, *, base: float = 2.0) -> float:
    """Return the square root of the Jensen-Shannon divergence, which is a metric.

    Source: Endres and Schindelin (2003); checked against `scipy.spatial.distance.jensenshannon`, whose base is e.

    >>> round(js_distance([1, 0], [0.5, 0.5], base=np.e), 6)
    0.464501
    """
    return float(np.sqrt(js_divergence(p, q, base=base)))


def hellinger(p: ArrayLike, q: ArrayLike) -> float:
    """Return the Hellinger distance, from 0 to 1: sqrt(sum of (sqrt(p) - sqrt(q))^2 / 2).

    Source: Le Cam and Yang, Asymptotics in Statistics (2000), section 2.1.

    >>> hellinger([1, 0], [0, 1])
    1.0
    """
    first, second = aligned(p, q)
    return float(np.sqrt(np.sum((np.sqrt(first) - np.sqrt(second)) ** 2) / 2))


def ks_binned(p: ArrayLike, q: ArrayLike) -> float:
    """Return the largest gap between two cumulative distributions over the same ordered bins.

    It never exceeds the exact Kolmogorov-Smirnov statistic of the values themselves, and reaches it with fine bins.

    >>> ks_binned([1, 1], [2, 0])
    0.5
    """
    first, second = aligned(p, q)
    return float(np.max(np.abs(np.cumsum(first) - np.cumsum(second))))


def ks_statistic(a: ArrayLike, b: ArrayLike) -> float:
    """Return the two-sample Kolmogorov-Smirnov statistic: the largest gap between the two empirical CDFs, ties exact.

    Source: Smirnov (1939); checked against `scipy.stats.ks_2samp`.

    >>> ks_statistic([1, 1, 2, 2], [1, 2, 3, 4])
    0.5
    """
    first, second = sample(a), sample(b)
    where = np.concatenate([first, second])
    left = np.searchsorted(first, where, side="right") / first.size
    right = np.searchsorted(second, where, side="right") / second.size
    return float(np.max(np.abs(left - right)))


def ks_test(a: ArrayLike, b: ArrayLike, *, method: Literal["auto", "exact", "asymp"] = "auto") -> Significance:
    """Return the two-sided Kolmogorov-Smirnov test of two samples.

    The exact p-value counts lattice paths (Hodges 1958), the asymptotic one takes the one-sample distribution at
    nm/(n+m) rows; both as scipy computes them. "auto" is exact up to 10,000 rows a side, and asymptotic where the
    exact count would lose itself in rounding.
    """
    from scipy.stats import ks_2samp  # loaded on use: scipy.stats costs half a second, and monitors seldom need it

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "ks_2samp: Exact calculation unsuccessful", RuntimeWarning)
        found = ks_2samp(sample(a), sample(b), method=method)
    return Significance(ks_statistic(a, b), float(found.pvalue))


def ks_critical(rows: int, alpha: float = 0.05) -> float:
    """Return the one-sample, two-sided Kolmogorov-Smirnov statistic that a sample exceeds with probability `alpha`.

    Source: the exact distribution of Simard and L'Ecuyer (2011); reproduces the tables of Massey (1951).
    """
    from scipy.stats import kstwo

    return float(kstwo.isf(alpha, rows))


def wasserstein(
    a: ArrayLike, b: ArrayLike, *, a_weights: ArrayLike | None = None, b_weights: ArrayLike | None = None
) -> float:
    """Return the first Wasserstein (earth mover's) distance of two samples, in the unit of the values.

    The integral of the absolute difference of the two CDFs: no binning.

    Source: Vallender (1974); checked against `scipy.stats.wasserstein_distance`.

    >>> wasserstein([0, 1, 3], [5, 6, 8])
    5.0
    """
    values = np.concatenate([np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)])
    order = np.argsort(values, kind="stable")
    mass = np.concatenate([weights_of(a, a_weights), -weights_of(b, b_weights)])[order]
    gaps = np.abs(np.cumsum(mass)[:-1])
    return float(np.sum(gaps * np.diff(values[order])))


def chi_square(table: ArrayLike) -> Significance:
    """Test whether the rows of a table of counts come from one distribution (Pearson's test, no correction).

    For drift the rows are reference and current, the columns the categories; empty rows and columns are left out.

    Source: Pearson (1900); checked against `scipy.stats.chi2_contingency(correction=False)`.

    >>> result = chi_square([[10, 10, 20], [20, 20, 20]])
    >>> round(result.statistic, 4), round(result.p_value, 5), result.dof
    (2.7778, 0.24935, 2)
    """
    counts = np.asarray(table, dtype=np.float64)
    counts = counts[counts.sum(axis=1) > 0][:, counts.sum(axis=0) > 0]
    if min(counts.shape) < 2:
        return Significance(0.0, 1.0, 0)
    expected = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / counts.sum()
    dof = (counts.shape[0] - 1) * (counts.shape[1] - 1)
    statistic = float(np.sum((counts - expected) ** 2 / expected))
    return Significance(statistic, chi_square_tail(statistic, dof), dof)


def chi_square_fit(observed: ArrayLike, expected_shares: ArrayLike | None = None) -> Significance:
    """Test counts against expected shares (equal ones unless given).

    >>> chi_square_fit([10, 10]).p_value
    1.0
    """
    counts = np.asarray(observed, dtype=np.float64)
    wanted = shares(np.ones(counts.size) if expected_shares is None else expected_shares) * counts.sum()
    statistic = float(np.sum((counts - wanted) ** 2 / wanted))
    return Significance(statistic, chi_square_tail(statistic, counts.size - 1), counts.size - 1)


def chi_square_tail(statistic: float, dof: int) -> float:
    """Return the probability that a chi-squared variable with `dof` degrees of freedom exceeds `statistic`."""
    from scipy.special import chdtrc

    return float(chdtrc(dof, statistic)) if dof > 0 else 1.0


def psi_of_samples(reference: ArrayLike, current: ArrayLike, *, bins: int = 10, floor: float = FLOOR) -> float:
    """Return the PSI of two numeric samples over the reference's quantile bins (deciles unless stated), ends open.

    >>> psi_of_samples(range(100), range(100))
    0.0
    """
    from headrace.stats.binning import numeric_counts

    first, second = numeric_counts(reference, current, edges=quantile_edges(reference, bins))
    return psi(first, second, floor=floor)


def sample(values: ArrayLike) -> Floats:
    """Return a sample sorted, without NaN.

    Raises:
        DataError: nothing is left.
    """
    data = np.asarray(values, dtype=np.float64)
    data = np.sort(data[~np.isnan(data)])
    if data.size == 0:
        raise DataError(
            "an empty sample",
            where="stats.distances",
            expected="at least one value that is not null",
            next_step="compare only columns and windows that have rows",
        )
    return data


def weights_of(values: ArrayLike, weights: ArrayLike | None) -> Floats:
    """Return one share for each value: equal ones, or the weights divided by their sum."""
    return shares(np.ones(np.size(np.asarray(values))) if weights is None else weights)
