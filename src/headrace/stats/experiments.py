"""Plan and read experiments: sample sizes, sample-ratio check, CUPED, many tests at once, interleaving."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import nctdtr, ndtr, ndtri, stdtrit

from headrace.core.errors import DefinitionError
from headrace.stats.binning import Floats
from headrace.stats.distances import chi_square_fit

Correction = Literal["bonferroni", "fdr_bh", "fdr_by"]


class Cuped(NamedTuple):
    """Hold the pre-period's coefficient, the adjusted effect, and the variance left over by the adjustment."""

    theta: float
    effect: float
    variance_ratio: float
    adjusted: Floats


class TeamDraft(NamedTuple):
    """Hold an interleaved list and the documents that the first ranker contributed to it."""

    shown: tuple[str, ...]
    first: frozenset[str]


def rows_for_means(
    effect: float, *, alpha: float = 0.05, power: float = 0.8, distribution: Literal["t", "normal"] = "t"
) -> float:
    """Return the rows of each arm that a two-sided test needs to see a shift of `effect` standard deviations.

    Source: Cohen (1988), section 2.4, with both tails; checked against `statsmodels.stats.power`.

    >>> round(rows_for_means(0.5), 3)
    63.766
    """
    check_plan(effect, alpha, power)

    def reached(rows: float) -> float:
        shift = abs(effect) * float(np.sqrt(rows / 2))
        if distribution == "normal":
            limit = float(ndtri(1 - alpha / 2))
            return float(ndtr(shift - limit) + ndtr(-shift - limit))
        dof = 2 * rows - 2
        limit = float(stdtrit(dof, 1 - alpha / 2))
        return float(1 - nctdtr(dof, shift, limit) + nctdtr(dof, shift, -limit))

    return smallest(reached, power)


def rows_for_shares(
    first: float,
    second: float,
    *,
    alpha: float = 0.05,
    power: float = 0.8,
    null: Literal["control", "pooled"] = "pooled",
) -> float:
    """Return the rows of each arm that a two-sided test needs to tell two shares apart.

    The variance without an effect is that of the control's share ("control": the calculator of Evan Miller), or that
    of both shares' mean ("pooled": Fleiss, Levin and Paik 2003, equation 4.14, without continuity correction, as
    `statsmodels.stats.proportion.samplesize_proportions_2indep_onetail`).

    >>> round(rows_for_shares(0.2, 0.25, null="control"), 2)
    1030.22
    """
    check_plan(second - first, alpha, power)
    base = first if null == "control" else (first + second) / 2
    without = np.sqrt(2 * base * (1 - base))
    within = np.sqrt(first * (1 - first) + second * (1 - second))
    return float(((ndtri(1 - alpha / 2) * without + ndtri(power) * within) / (second - first)) ** 2)


def check_plan(effect: float, alpha: float, power: float) -> None:
    """Refuse a plan that no number of rows fulfils.

    Raises:
        DefinitionError: no effect, or an error or power that is no probability.
    """
    if effect == 0 or not 0 < alpha < 1 or not alpha < power < 1:
        raise DefinitionError(
            "no sample size fits this plan",
            where="stats.experiments",
            got=f"effect={effect}, alpha={alpha}, power={power}",
            expected="an effect that is not zero, and 0 < alpha < power < 1",
            next_step="state the smallest effect that matters",
        )


def smallest(reached: Callable[[float], float], power: float) -> float:
    """Return the (fractional) rows at which a rising power curve reaches `power`."""
    low, high = 2.0, 4.0
    while reached(high) < power:
        low, high = high, high * 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) < power else (low, middle)
    return (low + high) / 2


def sample_ratio_p(observed: Sequence[int], planned: Sequence[float] | None = None) -> float:
    """Return the p-value that the arms' sizes come from the planned ratio (equal unless given).

    Below 0.001 the assignment is broken, and no result of the experiment may be read.

    Source: Fabijan et al. (2019); Kohavi, Tang and Xu (2020), chapter 21.

    >>> f"{sample_ratio_p([821588, 815482]):.2e}"
    '1.82e-06'
    """
    return chi_square_fit(observed, planned).p_value


def adjusted_p_values(p_values: ArrayLike, method: Correction = "fdr_bh") -> Floats:
    """Return p-values corrected for being many; reject where one is at most alpha.

    Source: Benjamini and Hochberg (1995) for "fdr_bh", Benjamini and Yekutieli (2001) for "fdr_by" (any dependence).

    >>> adjusted_p_values([0.01, 0.04], "bonferroni").tolist()
    [0.02, 0.08]
    """
    p = np.asarray(p_values, dtype=np.float64)
    count = p.size
    if method == "bonferroni":
        return np.minimum(p * count, 1.0)
    order = np.argsort(p, kind="stable")
    ranks = np.arange(1, count + 1)
    scale = count * (float(np.sum(1.0 / ranks)) if method == "fdr_by" else 1.0)
    stepped = np.minimum.accumulate((p[order] * scale / ranks)[::-1])[::-1]
    found = np.empty(count)
    found[order] = np.minimum(stepped, 1.0)
    return found


def cuped(before: ArrayLike, after: ArrayLike, treated: ArrayLike) -> Cuped:
    """Return the effect of a treatment with the variance that the time before explains taken out.

    Source: Deng, Xu, Kohavi and Walker (2013), equation 4: adjusted = after - theta (before - mean of before), where
    theta = cov(before, after) / var(before) over both arms.

    >>> round(cuped([1, 2, 3, 4], [1, 3, 3, 5], [False, True, False, True]).theta, 6)
    1.2
    """
    pre, post = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    arm = np.asarray(treated, dtype=bool)
    spread = float(np.var(pre, ddof=1))
    theta = float(np.cov(pre, post)[0, 1]) / spread if spread > 0 else 0.0
    adjusted = post - theta * (pre - pre.mean())
    effect = float(adjusted[arm].mean() - adjusted[~arm].mean())
    return Cuped(theta, effect, float(np.var(adjusted, ddof=1) / np.var(post, ddof=1)), adjusted)


def team_draft(first: Sequence[str], second: Sequence[str], length: int, coins: Iterable[bool]) -> TeamDraft:
    """Interleave two rankings fairly: the ranker with fewer picks draws next, a coin (True: the first) breaks ties.

    `coins` yields at most `length` values; pass `(bool(x) for x in rng.integers(0, 2, length))`.

    Source: Radlinski, Kurup and Joachims (2008), algorithm 2.

    >>> team_draft("ab", "ba", 2, [True]).shown
    ('a', 'b')
    """
    flips = iter(coins)
    shown: list[str] = []
    teams: tuple[set[str], set[str]] = (set(), set())
    lists = (first, second)
    while len(shown) < length:
        left = [next((item for item in ranking if item not in shown), None) for ranking in lists]
        if left[0] is None or left[1] is None:
            break
        sizes = [len(team) for team in teams]
        drawing = int(sizes[1] < sizes[0]) if sizes[0] != sizes[1] else int(not next(flips))
        pick = left[drawing]
        shown.append(str(pick))
        teams[drawing].add(str(pick))
    return TeamDraft(tuple(shown), frozenset(teams[0]))


def team_draft_distribution(first: Sequence[str], second: Sequence[str], length: int) -> dict[TeamDraft, float]:
    """Return every interleaving with its probability, by trying all coins; for lists of at most a dozen documents."""
    found: dict[TeamDraft, float] = {}
    for coins in product((True, False), repeat=length):
        drafted = team_draft(first, second, length, coins)
        found[drafted] = found.get(drafted, 0.0) + 0.5**length
    return found
