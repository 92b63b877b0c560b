"""Say where a dataset's labels come from: an expression over the row itself, or windows ahead over a table's rows. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from headrace.core.errors import DefinitionError
from headrace.core.expressions import Column, Expr, Moment, columns_of, type_of
from headrace.features.aggregates import Aggregate, Feature
from headrace.features.dataset import Dataset, Grid, WindowLabel
from headrace.features.definition import GroupDefinition
from headrace.features.lane_plan import LanePlan, plan_definition
from headrace.sources.definition import SourceDefinition, definition_of


@dataclass(frozen=True, eq=False)
class RowLabel:
    """Compute a label from the row's own columns; it is known at `moment`."""

    value: Expr[Any]
    moment: Moment

    names = ("label",)

    @cached_property
    def boolean(self) -> bool:
        """Return whether the label is yes or no."""
        return type_of(self.value) == "bool"

    @property
    def sources(self) -> tuple[SourceDefinition, ...]:
        """Return no source but the rows' own."""
        return ()

    def __str__(self) -> str:
        return str(self.value)


@dataclass(frozen=True, eq=False)
class TableLabel:
    """Compute labels from a lane of another table under the key that stands in `key`, columns of the row.

    Where any output of the `spoilt` lane is above zero there is no label: a row in the window fails `labelled_if`.
    """

    lane: LanePlan
    key: tuple[Column[Any], ...]
    boolean: bool
    fill: float | None
    names: tuple[str, ...]
    spoilt: LanePlan | None

    @property
    def sources(self) -> tuple[SourceDefinition, ...]:
        """Return the table's source."""
        return (self.lane.source,)

    def __str__(self) -> str:
        outputs = ", ".join(f"{o.aggregate} [{o.offset}, {o.window}]" for o in self.lane.outputs)
        values = ", ".join(map(str, self.lane.values))
        keys = ", ".join(map(str, self.lane.entity))
        return f"{'exists ' if self.boolean else ''}{outputs} of {values} where {self.lane.where} by {keys} fill {self.fill}"


def plan_label(dataset: Dataset, rows: SourceDefinition) -> RowLabel | TableLabel:
    """Return where a dataset's labels come from.

    Raises:
        DefinitionError: the label reads columns that neither the rows nor one other table has, or no key leads there.
    """
    label = dataset.label
    if isinstance(label, WindowLabel):
        return _table_label(dataset, label, rows)
    columns = columns_of(label)
    for column in columns:
        if column not in rows.index:
            raise DefinitionError(
                "the label must be computed from the rows' source",
                where=dataset.location,
                got=str(column),
                expected=f"columns of {rows.name}, hr.exists(…).within(…), or a feature with .ahead(…)",
            )
    return RowLabel(label, Moment.latest([rows.moments[c] for c in columns]))


def _table_label(dataset: Dataset, label: WindowLabel, rows: SourceDefinition) -> TableLabel:
    source = definition_of(label.source)
    entity = label.key if label.key is not None else dataset.rows.keys if isinstance(dataset.rows, Grid) else ()
    condition = dataset.labelled_if
    theirs = condition is not None and all(c in source.index for c in columns_of(condition))
    features = [label.feature.renamed("label", label.frames)]
    if theirs and condition is not None and not all(c in rows.index for c in columns_of(condition)):
        count = Aggregate("count", None, ~condition, location=dataset.location)
        unseen = Feature(count, label.frames, on=label.feature.on, zone=label.feature.zone, ahead=True)
        features.append(unseen.renamed("spoilt", label.frames))
    where = dataset.location
    lanes = plan_definition(GroupDefinition("label", label.source, entity, tuple(features), "", where)).lanes
    return TableLabel(
        lane=lanes[0],
        key=tuple(_row_key(part, rows, where) for part in entity),
        boolean=label.boolean,
        fill=label.feature.fill,
        names=tuple(c.name.removeprefix("label").strip("[]") for c in lanes[0].columns),
        spoilt=lanes[1] if len(lanes) > 1 else None,
    )


def _row_key(part: Column[Any], rows: SourceDefinition, where: str) -> Column[Any]:
    """Return the row's column that holds a key's part: the same column, what it refers to, or its namesake."""
    if part in rows.index:
        return part
    if part.references is not None and part.references in rows.index:
        return part.references
    namesake = rows.by_name.get(part.name)
    if namesake is not None and namesake.dtype == part.dtype:
        return namesake
    raise DefinitionError(
        "no key leads from a row to its label",
        where=where,
        got=str(part),
        expected=f"a column of {rows.name} that it refers to",
        next_step=f"{part.name}: hr.Column[{part.dtype}] = hr.foreign_key({rows.name}.…)",
    )
