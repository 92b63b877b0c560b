"""Keep a source's distributions as a baseline, and measure how far a delivery's lie from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.core.errors import DataError
from headrace.core.expressions import Column
from headrace.sources.definition import SourceDefinition
from headrace.stats.binning import below_counts, quantile_edges
from headrace.stats.distances import FLOOR, js_distance, kl_divergence, psi
from headrace.stats.profiles import Profile, profile_counts, profile_numbers
from headrace.validation.blocks import Block
from headrace.validation.definition import Distance
from headrace.validation.plan import Measure
from headrace.validation.record import CheckResult
from headrace.validation.rules import numbers_of
from headrace.validation.statistics import outcome

FORMAT = 1
DECILES, FINE = 10, 200
NAMED_SHARE = 0.5  # a column whose named categories hold less than this of its rows has no distribution worth keeping

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class ColumnBaseline:
    """Hold a column's distribution: its profile, and for numbers how many lie below each of its 200 quantiles."""

    profile: Profile
    edges: tuple[float, ...] = ()
    below: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the baseline as plain JSON."""
        return {"profile": self.profile.to_dict(), "edges": list(self.edges), "below": list(self.below)}


Baseline = Mapping[str, ColumnBaseline]


def baseline_of(
    definition: SourceDefinition, table: pa.Table, *, only: Column[Any] | None = None
) -> dict[str, ColumnBaseline]:
    """Return the distributions of a table's columns, or of one of them, by the columns' names.

    Left out are what only names or places rows, what is `pii`, instants, and texts that mostly differ from each other.
    """
    found = {}
    for column in definition.columns if only is None else (only,):
        if any(column is c for c in definition.id_columns) or column.pii or column.dtype in ("instant", "date"):
            continue
        values = table[column.name].combine_chunks()
        if column.dtype in ("int", "float"):
            found[column.name] = _numeric(values)
            continue
        counted = profile_counts({entry["values"]: entry["counts"] for entry in pc.value_counts(values).to_pylist()})
        if counted.rows and sum(counted.counts) >= NAMED_SHARE * (counted.rows - counted.nulls):
            found[column.name] = ColumnBaseline(counted)
    return found


def given(distance: Distance) -> ColumnBaseline:
    """Return the baseline that a check itself names: shares of categories, as of a million rows."""
    rows = 1_000_000
    names = tuple(name for name, _ in distance.against)
    counts = tuple(round(share * rows) for _, share in distance.against)
    return ColumnBaseline(Profile("categorical", rows, 0, counts, categories=names))


def baseline_to_dict(baseline: Baseline) -> dict[str, Any]:
    """Return a baseline as plain JSON."""
    return {"format": FORMAT, "columns": {name: column.to_dict() for name, column in sorted(baseline.items())}}


def baseline_from_dict(body: Mapping[str, Any]) -> dict[str, ColumnBaseline]:
    """Return the baseline that `baseline_to_dict` wrote.

    Raises:
        DataError: it is none, or of another version.
    """
    if body.get("format") != FORMAT:
        raise DataError(
            "not a baseline of this version",
            got=body.get("format"),
            expected=FORMAT,
            next_step="headrace baseline set SOURCE --why …",
        )
    return {
        name: ColumnBaseline(Profile.from_dict(c["profile"]), tuple(c["edges"]), tuple(c["below"]))
        for name, c in body["columns"].items()
    }


class ColumnTally:
    """Count a column of a delivery over its baseline's bins."""

    def __init__(self, column: Column[Any], baseline: ColumnBaseline, *, fine: bool) -> None:
        self.column, self.baseline = column, baseline
        reference = baseline.profile
        self.numeric = reference.kind == "numeric"
        self.categories = pa.array(reference.categories, pa.string())
        self.fine = fine and self.numeric
        size = len(reference.edges) if self.numeric else len(reference.categories)
        self.counts = np.zeros(size, np.int64)
        self.below = np.zeros(len(baseline.edges), np.int64)
        self.rows = self.nulls = 0

    def part(self, block: Block) -> Any:
        """Return what a block contributes: counts of rows, nulls, bins, and values below the fine edges."""
        values = block.values(self.column)
        rows, nulls = len(values), values.null_count
        if not self.numeric:
            return rows, nulls, self._named(values), self.below[:0]
        numbers = numbers_of(values.drop_null() if nulls else values).astype(np.float64, copy=False)
        nans = int(np.count_nonzero(numbers != numbers))
        fine = _sorted_below(numbers, self.baseline.edges) if self.fine else self.below[:0]
        return rows, nulls + nans, below_counts(numbers, np.array(self.baseline.profile.edges)), fine

    def take(self, part: Any) -> None:
        """Take in what a block contributed."""
        rows, nulls, counts, fine = part
        self.rows, self.nulls = self.rows + rows, self.nulls + nulls
        self.counts += counts
        if self.fine:
            self.below += fine

    def profile(self) -> Profile:
        """Return the delivery's profile over the baseline's bins."""
        reference, there = self.baseline.profile, self.rows - self.nulls
        if self.numeric:
            counts = np.diff(self.counts, prepend=0, append=there)
            return Profile("numeric", self.rows, self.nulls, tuple(counts.tolist()), reference.edges)
        named, other = tuple(self.counts.tolist()), there - int(self.counts.sum())
        return Profile("categorical", self.rows, self.nulls, named, categories=reference.categories, other=other)

    def distance(self, kind: str) -> float | None:
        """Return one of the distances between baseline and delivery; None where one of them holds nothing."""
        reference, now = self.baseline.profile, self.profile()
        if kind == "ks":
            values, held = self.rows - self.nulls, reference.rows - reference.nulls
            if not values or not held:
                return None
            gaps = np.abs(self.below / values - np.array(self.baseline.below) / held)
            return float(gaps.max(initial=0.0))
        if not reference.rows or not now.rows:
            return None
        before, after = (np.array([*p.counts, p.other, p.nulls], np.float64) for p in (reference, now))
        if kind == "psi":
            return psi(before, after)
        # With floors the shares no longer add up to one, and the sum may fall below zero by as much.
        return js_distance(before, after) if kind == "js" else max(0.0, kl_divergence(after, before, floor=FLOOR))

    def _named(self, values: pa.Array) -> Counts:
        """Count the known categories; booleans are named as in JSON."""
        texts = values.dictionary if pa.types.is_dictionary(values.type) else values
        if pa.types.is_boolean(texts.type):
            texts = texts.cast(pa.string())
        places = pc.fill_null(pc.index_in(texts, value_set=self.categories), -1).to_numpy(zero_copy_only=False)
        if pa.types.is_dictionary(values.type):
            indices = values.indices.drop_null().to_numpy(zero_copy_only=False)
            each = np.bincount(indices, minlength=len(places))
            found = np.zeros(len(self.categories) + 1, np.int64)
            np.add.at(found, places, each)
            return found[:-1]
        return np.bincount(places + 1, minlength=len(self.categories) + 1)[1:]


def distance_result(check: Measure, tally: ColumnTally | None) -> CheckResult:
    """Return the result of a distance check; without a baseline it is undefined, and passes."""
    quantity = check.limit.quantity
    assert isinstance(quantity, Distance)
    if tally is None:
        return outcome(check, None, "", 0, f"{quantity.column} has no baseline: headrace baseline set")
    value = tally.distance(quantity.kind)
    text = "" if value is None else f"{value:.4g} over {tally.rows} rows"
    return outcome(check, value, text, tally.rows, "no rows")


def _numeric(values: pa.Array) -> ColumnBaseline:
    numbers = numbers_of(values.drop_null()).astype(np.float64)
    padded = np.concatenate([numbers, np.full(values.null_count, np.nan)])
    edges = np.unique(quantile_edges(numbers, FINE))
    return ColumnBaseline(
        profile_numbers(padded, DECILES, None),
        tuple(edges.tolist()),
        tuple(_sorted_below(numbers, tuple(edges.tolist())).tolist()),
    )


def _sorted_below(numbers: NDArray[np.float64], edges: tuple[float, ...]) -> Counts:
    """Count the values below each of many edges: one sort, then a search for each edge."""
    held = np.sort(numbers[numbers == numbers])
    return np.searchsorted(held, np.array(edges), side="left").astype(np.int64)
