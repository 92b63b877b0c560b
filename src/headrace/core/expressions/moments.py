"""Say when values are known, and prove that one moment is never later than another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.core.errors import DefinitionError
from headrace.core.expressions.algebra import Expr, Row, Shift
from headrace.core.expressions.columns import Column
from headrace.core.expressions.rows import per_row
from headrace.core.time import Instant


@dataclass(frozen=True)
class Moment:
    """Say when a value is known: the latest of some instants, each a column plus a constant offset (microseconds)."""

    terms: tuple[tuple[Column[Any], int], ...]

    @classmethod
    def of(cls, expr: Expr[Any]) -> Moment:
        """Read a moment from a column of instants, moved by constants at most.

        Raises:
            DefinitionError: the expression is something else.
        """
        offset, inner = 0, expr
        while isinstance(inner, Shift):
            offset, inner = offset + inner.offset, inner.value
        if not isinstance(inner, Column):
            raise DefinitionError(
                "not a moment",
                where=expr.location,
                got=str(expr),
                expected='a column of instants, plus or minus a duration: sched_dep - "1h"',
            )
        return cls(((inner, offset),))

    @classmethod
    def latest(cls, moments: Sequence[Moment]) -> Moment:
        """Return the latest of several moments; of terms on one column only the largest offset matters."""
        largest: dict[Column[Any], int] = {}
        for column, offset in (term for moment in moments for term in moment.terms):
            largest[column] = max(offset, largest.get(column, offset))
        return cls(tuple(sorted(largest.items(), key=lambda term: term[0].name)))

    def certainly_by(self, other: Moment) -> bool:
        """Tell whether this is provably never later than `other`, from constant offsets alone."""
        bounds = dict(other.terms)
        return all(column in bounds and offset <= bounds[column] for column, offset in self.terms)

    def per_row(self, index: Mapping[Column[Any], int]) -> Callable[[Row], Instant | None]:
        """Lower to a function of one row; null if any of the instants is null."""
        if len(self.terms) == 1 and self.terms[0][0].zone is None:
            return per_row(Shift(*self.terms[0]), index) if self.terms[0][1] else per_row(self.terms[0][0], index)
        places = [(index[column], column.instant, offset) for column, offset in self.terms]

        def latest(row: Row) -> Any:
            found = None
            for place, instant, offset in places:
                value = row[place]
                if value is None:
                    return None
                moment = instant(value) + offset
                if found is None or moment > found:
                    found = moment
            return found

        return latest

    def __str__(self) -> str:
        texts = [str(Shift(column, offset)) if offset else str(column) for column, offset in self.terms]
        return texts[0] if len(texts) == 1 else f"latest of {', '.join(texts)}"
