"""Keep a column's distribution in a few hundred bytes, and compare later data with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headrace.core.errors import DataError
from headrace.stats.binning import bin_counts, quantile_edges
from headrace.stats.distances import chi_square, js_distance, ks_binned, psi, psi_noise

Kind = Literal["numeric", "categorical"]
MAX_CATEGORIES = 256
NAMED_NEW = 10  # how many new categories a score names


@dataclass(frozen=True)
class Profile:
    """Hold a column's distribution: counts over bins or categories, nulls apart, and moments of the finite values.

    Numeric: `counts[i]` values lie in the half-open bin from `edges[i-1]` to `edges[i]`, the first and last bin open.
    Categorical: `counts[i]` rows hold `categories[i]`; `other` rows hold something that the bound left unnamed.
    `squares` is the sum of squared deviations from the mean. Null and NaN are one thing: `nulls`.
    """

    kind: Kind
    rows: int
    nulls: int
    counts: tuple[int, ...]
    edges: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()
    other: int = 0
    finite: int = 0
    mean: float | None = None
    squares: float | None = None
    minimum: float | None = None
    maximum: float | None = None

    @property
    def sd(self) -> float | None:
        """Return the sample standard deviation of the finite values; None below two."""
        return (
            float(np.sqrt(self.squares / (self.finite - 1))) if self.squares is not None and self.finite > 1 else None
        )

    @property
    def null_share(self) -> float:
        """Return the share of rows without a value; 0 without rows."""
        return self.nulls / self.rows if self.rows else 0.0

    def merge(self, later: Profile) -> Profile:
        """Return the profile of both columns' rows together.

        Counts are exact; mean and squares are combined by Chan, Golub and LeVeque (1979), true to rounding.

        Raises:
            DataError: their bins differ, or a bound left categories unnamed, so that no exact merge exists.
        """
        if self.kind == "numeric" and later.kind == "numeric" and self.edges == later.edges:
            pairs = zip(self.counts, later.counts, strict=True)
            rows, nulls = self.rows + later.rows, self.nulls + later.nulls
            moments = merged_moments(self, later)
            return Profile("numeric", rows, nulls, tuple(a + b for a, b in pairs), self.edges, **moments)
        named = self.categories == later.categories or not (self.other or later.other)
        if self.kind == "categorical" and later.kind == "categorical" and named:
            return merged_categories(self, later)
        raise DataError(
            "profiles over different bins cannot be merged exactly",
            where="stats.profiles",
            got=f"{self.kind} with {len(self.counts)} bins, {later.kind} with {len(later.counts)}",
            expected="profiles made with the same `like`",
            next_step="profile both samples with like=<the reference profile>",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Profile:
        """Return the profile that `to_dict` wrote, also after a round trip through JSON.

        Raises:
            DataError: the body is no profile.
        """
        try:
            listed = {name: tuple(body[name]) for name in ("counts", "edges", "categories")}
            return cls(**{**body, **listed})
        except (KeyError, TypeError) as error:
            raise DataError(
                "not a profile",
                where="stats.profiles",
                got=error,
                expected="the JSON that Profile.to_dict writes",
                next_step="profile the reference again",
            ) from error


@dataclass(frozen=True)
class DriftScore:
    """Tell how far a column has moved, in several units, with the noise that equal distributions would show.

    `psi` counts nulls as a bin of their own. `mean_shift` is in reference standard deviations, `null_shift` and
    `new_share` are shares of rows. `noise` is the mean PSI, and `p_value` the chance of one as large, if nothing moved.
    """

    psi: float
    js: float
    ks: float | None
    mean_shift: float | None
    null_shift: float
    new_share: float
    new_categories: tuple[str, ...]
    noise: float
    p_value: float
    reference_rows: int
    current_rows: int

    @property
    def distances(self) -> dict[str, float]:
        """Return the three distances whose history is worth keeping: none is negative, larger is further.

        PSI sees every change of shape, the mean a small shift long before PSI does, the null share a few lost values.
        """
        shift = {} if self.mean_shift is None else {"mean_shift": abs(self.mean_shift)}
        return {"psi": self.psi, **shift, "null_shift": abs(self.null_shift)}

    def drifted(self, *, minimum_effect: float = 0.005, alpha: float = 1e-6) -> bool:
        """Tell whether the shift is both large enough to matter and too large for chance.

        With a million rows everything is significant, with a hundred nothing is small: neither test suffices alone.
        """
        return self.psi - self.noise >= minimum_effect and self.p_value <= alpha


def profile(values: ArrayLike | Sequence[Any], *, bins: int = 10, like: Profile | None = None) -> Profile:
    """Profile a column: numbers over their quantile bins, everything else (booleans too) by category.

    With `like`, over the bins and categories of that profile, so that both can be compared and merged.

    >>> column = profile([1.0, 2.0, 3.0, float("nan")], bins=2)
    >>> column.counts, column.nulls, column.mean, column.sd
    ((1, 2), 1, 2.0, 1.0)
    >>> profile(["a", "b", "a", None]).categories
    ('a', 'b')
    """
    data = np.asarray(values)
    if like is not None:
        numeric = like.kind == "numeric"
    else:
        numeric = data.dtype.kind in "iuf"
    if not numeric:
        return profile_counts(Counter(data.tolist()), like=like)
    return profile_numbers(as_numbers(data), bins, like)


def profile_counts(tally: Mapping[Any, int], *, like: Profile | None = None) -> Profile:
    """Profile a categorical column that was already counted; the keys None and NaN are nulls.

    Keeps the 256 commonest categories (those of `like` first), the rest in `other`.

    >>> profile_counts({"a": 3, None: 1}).null_share
    0.25
    """
    named: Counter[str] = Counter()
    nulls = 0
    for value, count in tally.items():
        if value is None or value != value:
            nulls += count
        else:
            named[category(value)] += count
    known = like.categories if like is not None else ()
    fresh = sorted(named.keys() - set(known), key=lambda name: (-named[name], name))
    kept = (*known, *fresh[: max(MAX_CATEGORIES - len(known), NAMED_NEW if like is not None else 0)])
    counts = tuple(named[name] for name in kept)
    total = named.total()
    return Profile("categorical", total + nulls, nulls, counts, categories=kept, other=total - sum(counts))


def compare(reference: Profile, current: Profile | ArrayLike | Sequence[Any]) -> DriftScore:
    """Measure how far a column has moved from its reference profile.

    Raises:
        DataError: one side has no rows, the kinds differ, or the current profile was made over other numeric bins.
    """
    now = current if isinstance(current, Profile) else profile(current, like=reference)
    if not reference.rows or not now.rows or reference.kind != now.kind or reference.edges != now.edges:
        raise DataError(
            "these profiles cannot be compared",
            where="stats.profiles",
            got=f"{reference.kind}, {reference.rows} rows; {now.kind}, {now.rows} rows",
            expected="rows on both sides and the same bins",
            next_step="profile the current data with like=<the reference profile>",
        )
    before, after = common_bins(reference, now)
    fresh = new_categories(reference, now)
    held = np.vstack([before, after])
    test = chi_square(held)
    return DriftScore(
        psi=psi(before, after),
        js=js_distance(before, after),
        ks=ks_binned(before[:-1], after[:-1]) if reference.kind == "numeric" and with_values(before, after) else None,
        mean_shift=mean_shift(reference, now),
        null_shift=now.null_share - reference.null_share,
        new_share=sum(fresh.values()) / now.rows,
        new_categories=tuple(fresh)[:NAMED_NEW],
        noise=psi_noise(int(np.count_nonzero(held.sum(axis=0))), reference.rows, now.rows),
        p_value=test.p_value,
        reference_rows=reference.rows,
        current_rows=now.rows,
    )


def profile_numbers(data: NDArray[np.float64], bins: int, like: Profile | None) -> Profile:
    """Profile numbers; NaN is null, infinities count in the end bins but not in the moments."""
    nulls = int(np.count_nonzero(np.isnan(data)))
    edges = np.asarray(like.edges) if like is not None else quantile_edges(data, bins)
    counts = tuple(int(count) for count in bin_counts(data, edges))
    inner = data
    if nulls or not np.isfinite(data.sum()):
        inner = data[np.isfinite(data)]
    moments: dict[str, Any] = {"finite": int(inner.size)}
    if inner.size:
        centre = float(inner.mean())
        deviations = inner - centre
        # No BLAS: its sums depend on how many threads it has.
        moments |= {"mean": centre, "squares": float(np.square(deviations).sum())}
        moments |= {"minimum": float(inner.min()), "maximum": float(inner.max())}
    return Profile("numeric", int(data.size), nulls, counts, tuple(float(edge) for edge in edges), **moments)


def as_numbers(data: NDArray[Any]) -> NDArray[np.float64]:
    """Return a column as float64, None as NaN.

    Raises:
        DataError: it holds something that is no number.
    """
    try:
        return np.asarray(data, dtype=np.float64).ravel()
    except (TypeError, ValueError) as error:
        raise DataError(
            "a numeric column holds something else",
            where="stats.profiles",
            got=error,
            expected="numbers or nulls",
            next_step="check the column's type at the source",
        ) from error


def category(value: Any) -> str:
    """Return a category's name: text as it is, booleans as in JSON."""
    return str(value).lower() if isinstance(value, (bool, np.bool_)) else str(value)


def common_bins(reference: Profile, now: Profile) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return both profiles' counts over the same bins; the last bin holds the nulls, the last but one the unnamed."""
    if reference.kind == "numeric":
        return np.array([*reference.counts, reference.nulls]), np.array([*now.counts, now.nulls])
    known = dict.fromkeys((*reference.categories, *now.categories))
    sides = [dict(zip(side.categories, side.counts, strict=True)) for side in (reference, now)]
    before, after = ([side.get(name, 0) for name in known] for side in sides)
    return np.array([*before, reference.other, reference.nulls]), np.array([*after, now.other, now.nulls])


def with_values(before: NDArray[np.int64], after: NDArray[np.int64]) -> bool:
    """Tell whether both sides hold anything beside nulls."""
    return bool(before[:-1].any() and after[:-1].any())


def new_categories(reference: Profile, now: Profile) -> dict[str, int]:
    """Return the categories that the reference never showed, commonest first; none if its bound left some unnamed."""
    if reference.kind == "numeric" or reference.other:
        return {}
    known = set(reference.categories)
    fresh = [
        (name, count) for name, count in zip(now.categories, now.counts, strict=True) if name not in known and count
    ]
    return dict(sorted(fresh, key=lambda pair: (-pair[1], pair[0])))


def mean_shift(reference: Profile, now: Profile) -> float | None:
    """Return how far the mean has moved, in the reference's standard deviations; None where it has none."""
    if reference.mean is None or now.mean is None or not reference.sd:
        return None
    return (now.mean - reference.mean) / reference.sd


def merged_moments(first: Profile, second: Profile) -> dict[str, Any]:
    """Combine count, mean, sum of squared deviations and range of two samples."""
    sides = [side for side in (first, second) if side.mean is not None and side.squares is not None]
    if len(sides) < 2:
        only = sides[0] if sides else first
        kept = ("finite", "mean", "squares", "minimum", "maximum")
        return {name: getattr(only, name) for name in kept}
    total = first.finite + second.finite
    means, squares = [side.mean or 0.0 for side in sides], [side.squares or 0.0 for side in sides]
    gap = means[1] - means[0]
    lows = [side.minimum for side in sides if side.minimum is not None]
    highs = [side.maximum for side in sides if side.maximum is not None]
    return {
        "finite": total,
        "mean": means[0] + gap * second.finite / total,
        "squares": sum(squares) + gap * gap * first.finite * second.finite / total,
        "minimum": min(lows),
        "maximum": max(highs),
    }


def merged_categories(first: Profile, second: Profile) -> Profile:
    """Add two categorical profiles whose categories are all named, or the same."""
    tally: Counter[str] = Counter()
    for side in (first, second):
        tally.update(dict(zip(side.categories, side.counts, strict=True)))
    order = dict.fromkeys((*first.categories, *second.categories))
    counts = tuple(tally[name] for name in order)
    rows, nulls = first.rows + second.rows, first.nulls + second.nulls
    return Profile("categorical", rows, nulls, counts, categories=tuple(order), other=first.other + second.other)
