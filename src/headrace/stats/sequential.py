"""Test while data arrive: always-valid p-values, confidence sequences, group-sequential bounds, and CUSUM charts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri

from headrace.core.errors import DefinitionError
from headrace.stats.binning import Floats

NODES, WEIGHTS = np.polynomial.legendre.leggauss(128)  # error below 1e-9 for ten looks, see the tests
FAR = 9.0  # standard deviations at which a normal tail is zero in float64


class Sample(NamedTuple):
    """Hold one arm of an experiment: how many units, their mean and their variance."""

    rows: int
    mean: float
    variance: float

    @classmethod
    def from_sums(cls, rows: int, total: float, squares: float) -> Sample:
        """Return the arm of a numeric metric, by its sum and sum of squares; the variance has rows - 1 below it."""
        return cls(rows, total / rows, (squares - total * total / rows) / (rows - 1))

    @classmethod
    def from_successes(cls, rows: int, successes: float) -> Sample:
        """Return the arm of a yes/no metric; the variance is p (1 - p)."""
        share = successes / rows
        return cls(rows, share, share * (1 - share))


class SequentialResult(NamedTuple):
    """Hold treatment less control, an interval and a p-value that stay valid however often one looks."""

    difference: float
    low: float
    high: float
    p_value: float


class CusumPath(NamedTuple):
    """Hold both one-sided sums after each value, and the position (from 0) of the first signal, or None."""

    upper: Floats
    lower: Floats
    signal: int | None


def msprt_ratio(rows: int, mean: float, *, null: float, variance: float, mixing: float) -> float:
    """Return the mixture sequential probability ratio of a normal mean: evidence against `null`.

    The prior of the effect is normal around `null` with variance `mixing`.

    Source: Robbins (1970); Johari, Pekelis and Walsh (2017), equation 5.

    >>> round(msprt_ratio(100, 0.25, null=0.0, variance=1.0, mixing=0.1), 6)
    5.165291
    """
    spread = variance + rows * mixing
    power = rows * rows * mixing * (mean - null) ** 2 / (2 * variance * spread)
    return float(np.sqrt(variance / spread) * np.exp(min(power, 700.0)))


def always_valid_p(ratios: Sequence[float]) -> float:
    """Return the p-value after a series of looks: 1 over the largest ratio so far, at most 1.

    >>> always_valid_p([0.5, 4.0, 2.0])
    0.25
    """
    return min(1.0, 1.0 / max(ratios)) if ratios and max(ratios) > 0 else 1.0


def sequence_rho(alpha: float, best_at: float) -> float:
    """Return the mixing parameter that makes a confidence sequence tightest at `best_at` rows.

    Source: Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (2021), appendix B.2.
    """
    return float(np.sqrt((-2 * np.log(alpha) + np.log(-2 * np.log(alpha) + 1)) / best_at))


def sequence_half_width(rows: float, sd: float, *, alpha: float = 0.05, best_at: float = 5000) -> float:
    """Return the half-width of the asymptotic confidence sequence of a mean after `rows` rows.

    Source: Waudby-Smith et al. (2021), theorem 2.2.

    >>> round(sequence_half_width(100, 1.0, best_at=100), 6)
    0.303521
    """
    grown = rows * sequence_rho(alpha, best_at) ** 2
    return float(sd * np.sqrt(2 * (grown + 1) / (rows * grown) * np.log(np.sqrt(grown + 1) / alpha)))


def sequential_difference(
    control: Sample, treatment: Sample, *, alpha: float = 0.05, best_at: float = 5000
) -> SequentialResult:
    """Compare two arms at any moment, as often as one likes, at the stated error.

    Source: Waudby-Smith et al. (2021), theorem 2.2 and its inverse; checked against gbstats 0.8 (GrowthBook).
    """
    rows = control.rows + treatment.rows
    variance = control.variance / control.rows + treatment.variance / treatment.rows
    difference = treatment.mean - control.mean
    half = sequence_half_width(rows, float(np.sqrt(variance * rows)), alpha=alpha, best_at=best_at)
    grown = rows * sequence_rho(alpha, best_at) ** 2
    exponent = grown / (grown + 1) * difference**2 / variance / 2
    p_value = min(1.0, float(np.sqrt(grown + 1) * np.exp(-exponent)))
    return SequentialResult(difference, difference - half, difference + half, p_value)


def exit_probabilities(
    upper: Sequence[float], *, information: Sequence[float] | None = None, symmetric: bool = True, drift: float = 0.0
) -> Floats:
    """Return the probability of first crossing the upper bound at each look.

    `upper` are z-values, `information` the share of the data at each look (equal steps unless given). With `symmetric`
    a path that falls below -upper ends as well. `drift` is the mean of z at full information.

    Source: Armitage, McPherson and Rowe (1969); Jennison and Turnbull (2000), chapter 19.

    >>> round(2 * float(exit_probabilities([2.178272, 2.178272]).sum()), 5)
    0.05
    """
    times = looks_of(len(upper), information)
    path = Path(symmetric, drift)
    found = []
    for time, bound in zip(times, upper, strict=True):
        found.append(path.exit(time, bound))
        path = path.advance(time, bound)
    return np.asarray(found)


class Path:
    """Hold the density of the score process among paths that no bound has stopped yet, on quadrature nodes."""

    def __init__(
        self, symmetric: bool, drift: float, time: float = 0.0, nodes: Floats | None = None, mass: Floats | None = None
    ) -> None:
        self.symmetric, self.drift, self.time = symmetric, drift, time
        self.nodes = np.zeros(1) if nodes is None else nodes
        self.mass = np.ones(1) if mass is None else mass

    def exit(self, time: float, bound: float) -> float:
        """Return the probability of being above the bound (a z-value) at this time."""
        step = time - self.time
        ahead = (bound * np.sqrt(time) - self.nodes - self.drift * step) / np.sqrt(step)
        return float(np.sum(self.mass * ndtr(-ahead)))

    def bound(self, time: float, share: float) -> float:
        """Return the z-value above which this share of all paths is at this time."""
        return falling_root(lambda z: self.exit(time, z) - share, 0.0, FAR)

    def advance(self, time: float, bound: float) -> Path:
        """Return the paths that are still inside the bounds at this time."""
        step, root = time - self.time, np.sqrt(time)
        low = -bound * root if self.symmetric else self.drift * time - FAR * root
        half = (bound * root - low) / 2
        nodes = low + half * (NODES + 1.0)
        apart = (nodes[:, None] - self.nodes[None, :] - self.drift * step) / np.sqrt(step)
        density = np.exp(-0.5 * apart**2) @ self.mass / np.sqrt(2 * np.pi * step)
        return Path(self.symmetric, self.drift, time, nodes, density * WEIGHTS * half)


def pocock_bounds(looks: int, alpha: float = 0.05) -> list[float]:
    """Return equal two-sided z-bounds for equally spaced looks at an overall error of `alpha`.

    Source: Pocock (1977); reproduces Jennison and Turnbull (2000), table 2.1.
    """
    return scaled_bounds([1.0] * looks, alpha)


def obrien_fleming_bounds(looks: int, alpha: float = 0.05) -> list[float]:
    """Return two-sided z-bounds that fall as 1 / sqrt(look) for equally spaced looks.

    Source: O'Brien and Fleming (1979); reproduces Jennison and Turnbull (2000), table 2.3.
    """
    return scaled_bounds([float(np.sqrt(looks / look)) for look in range(1, looks + 1)], alpha)


def scaled_bounds(shape: Sequence[float], alpha: float) -> list[float]:
    """Return the multiple of a shape whose two-sided error is `alpha`."""

    def excess(constant: float) -> float:
        return 2 * float(exit_probabilities([constant * part for part in shape]).sum()) - alpha

    constant = falling_root(excess, 0.5, 8.0)
    return [constant * part for part in shape]


def spending_bounds(
    information: Sequence[float] | int, spending: Literal["obrien_fleming", "pocock"], alpha: float = 0.05
) -> list[float]:
    """Return two-sided z-bounds for looks at any share of the data, by an error-spending function.

    Each side spends alpha / 2: 2 - 2 Phi(z / sqrt(t)), or alpha ln(1 + (e - 1) t).

    Source: Lan and DeMets (1983); the functions as gsDesign's sfLDOF and sfLDPocock.
    """
    times = looks_of(information) if isinstance(information, int) else looks_of(len(information), information)
    side = alpha / 2
    if spending == "obrien_fleming":
        spent = 2 * ndtr(ndtri(side / 2) / np.sqrt(times))
    else:
        spent = side * np.log1p((np.e - 1) * times)
    path, bounds = Path(True, 0.0), []
    for time, part in zip(times, np.diff(spent, prepend=0.0), strict=True):
        bound = path.bound(time, part)
        bounds.append(bound)
        path = path.advance(time, bound)
    return bounds


def looks_of(looks: int, information: Sequence[float] | None = None) -> Floats:
    """Return the share of the data at each look.

    Raises:
        DefinitionError: the shares do not rise from above 0 to at most 1.
    """
    times = np.arange(1, looks + 1) / looks if information is None else np.asarray(information, dtype=np.float64)
    if times.size == 0 or np.any(np.diff(times, prepend=0.0) <= 0) or times[-1] > 1 + 1e-12:
        raise DefinitionError(
            "looks must lie in order within the planned data",
            where="stats.sequential",
            got=times.tolist(),
            expected="shares rising from above 0 to at most 1",
            next_step="give each look as a share of the planned rows",
        )
    return times


def falling_root(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where a falling function crosses zero, to 1e-10, by bisection."""
    while high - low > 1e-10:
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
    return (low + high) / 2


def cusum(values: ArrayLike, *, target: float, sd: float, slack: float = 0.5, limit: float = 5.0) -> CusumPath:
    """Return the tabular CUSUM of a series, in the unit of the values; `slack` and `limit` are in sd.

    Source: Page (1954); Montgomery, Introduction to Statistical Quality Control, section 9.1.

    >>> cusum([0.0, 4.0, 4.0], target=0.0, sd=1.0).signal
    2
    """
    data = np.asarray(values, dtype=np.float64)
    upper, lower = np.empty(data.size), np.empty(data.size)
    high = low = 0.0
    for row, value in enumerate(data):
        high = max(0.0, high + value - target - slack * sd)
        low = max(0.0, low + target - value - slack * sd)
        upper[row], lower[row] = high, low
    over = np.flatnonzero(np.maximum(upper, lower) > limit * sd)
    return CusumPath(upper, lower, int(over[0]) if over.size else None)


def cusum_run_length(
    *, slack: float = 0.5, limit: float = 5.0, shift: float = 0.0, two_sided: bool = True, states: int = 300
) -> float:
    """Return how many values pass on average until a CUSUM chart signals; all arguments in standard deviations.

    Source: Brook and Evans (1972), a Markov chain over `states` steps of the sum; two sides combine as 1/a + 1/b
    (Montgomery, section 9.1). Reproduces Montgomery's table 9.3.
    """
    lengths = [one_sided_run_length(slack, limit, side * shift, states) for side in ((1, -1) if two_sided else (1,))]
    return 1.0 / sum(1.0 / length for length in lengths)


def one_sided_run_length(slack: float, limit: float, shift: float, states: int) -> float:
    """Return the average run length of an upper CUSUM that starts at zero."""
    width = 2.0 * limit / (2 * states - 1)
    level = np.arange(states) * width
    above = ndtr(level[None, :] + width / 2 - level[:, None] + slack - shift)
    stay = np.diff(above, axis=1, prepend=0.0)
    return float(np.linalg.solve(np.eye(states) - stay, np.ones(states))[0])
