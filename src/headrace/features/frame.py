"""Hold rows with their features as people look at them: Arrow inside, pandas, polars, NumPy or PyTorch on request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.core.errors import MissingExtra, UsageError
from headrace.core.time import Instant
from headrace.features.explain import FeatureExplanation, explain_row
from headrace.features.history import History
from headrace.features.offline import Values
from headrace.features.plan import DatasetPlan, FeaturePlan
from headrace.features.record import OK, STATUS, label_columns, unlabelled

AT, LABEL = "at", "label"
PRINTED = 3  # used and refused events of each feature that an explanation prints
UTC_MICROSECONDS = pa.timestamp("us", "UTC")


@dataclass(frozen=True, eq=False, repr=False)
class FeatureFrame:
    """Hold n rows: what names them (`rows`), their moments `t` (int64 microseconds UTC), their features and labels.

    `label` is float64 (0 and 1 for a bool label, NaN where no label had arrived), None where no label is declared; with
    several `labels` it has shape (rows, labels).
    `status` has shape (n, features): why a feature is null (`headrace.features.record.STATUS`). `manifest` says from
    which definition and data the rows follow, as plain JSON.
    """

    plan: FeaturePlan
    rows: pa.Table
    keys: pa.Table
    t: NDArray[np.int64]
    values: Values
    label: NDArray[np.float64] | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)
    histories: Mapping[str, History] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.t)

    def __repr__(self) -> str:
        labelled = "" if self.label is None else f", {len(self) - unlabelled(self.label):,} with a label"
        span = ""
        if len(self):
            first, last = (Instant(int(t)).isoformat() for t in (self.t.min(), self.t.max()))
            span = f", {first} to {last}"
        shape = f"{len(self):,} rows x {len(self.plan.columns)} features"
        return f"<{shape}{labelled}{span}; .to_pandas() .to_polars() .arrow() .numpy() .torch() .explain(row)>"

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the features' names, in the order of `numpy()`."""
        return tuple(column.name for column in self.plan.columns)

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the names of the labels: `label`, or `label[7d+14d]` where there are several."""
        names = self.plan.label.names if isinstance(self.plan, DatasetPlan) else (LABEL,)
        return (LABEL,) if len(names) == 1 else tuple(f"{LABEL}[{name}]" for name in names)

    @property
    def status(self) -> NDArray[np.uint8]:
        """Return each feature's status, shape (rows, features)."""
        return self.values.status

    def arrow(self) -> pa.Table:
        """Return what names the rows, `at` (UTC), the features (text as a dictionary) and `label` as one Arrow table."""
        table = self.rows
        if AT not in table.column_names:
            table = table.append_column(AT, pa.array(self.t, UTC_MICROSECONDS))
        features = self.values.table(self.plan)
        for column in self.plan.columns:
            values = features[column.name]
            if column.dtype == "instant":
                values = values.cast(UTC_MICROSECONDS)
            elif column.dtype == "str":
                values = values.dictionary_encode()
            table = table.append_column(column.name, values)
        if self.label is not None:
            names = self.plan.label.names if isinstance(self.plan, DatasetPlan) else (LABEL,)
            for name, label in label_columns(names, self.label).items():
                table = table.append_column(name, label)
        return table

    def to_pandas(self) -> Any:
        """Return `arrow()` as a pandas DataFrame; text features are categories.

        Raises:
            MissingExtra: pandas is not installed.
        """
        _module("pandas")
        return self.arrow().to_pandas()

    def to_polars(self) -> Any:
        """Return `arrow()` as a polars DataFrame; text features are categories.

        Raises:
            MissingExtra: polars is not installed.
        """
        return _module("polars").from_arrow(self.arrow())

    def numpy(self) -> NDArray[np.float64]:
        """Return the features as float64, shape (rows, features): null is NaN, text its place among the sorted texts.

        For looking and quick models: integers beyond 2**53 lose digits here, and a text's number depends on the rows
        at hand. A trained version's own encoding comes from its training rows and travels with it.
        """
        table = self.values.table(self.plan)
        matrix = np.empty((len(self), len(self.plan.columns)))
        for i, column in enumerate(self.plan.columns):
            values = table[column.name].combine_chunks()
            if column.dtype == "str":
                words = pc.array_sort_indices(values.unique().drop_null())
                values = pc.index_in(values, value_set=values.unique().drop_null().take(words))
            elif column.dtype == "bool":
                values = values.cast(pa.int8())
            matrix[:, i] = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        return matrix

    def torch(self) -> Any:
        """Return `numpy()` as a float32 tensor.

        Raises:
            MissingExtra: PyTorch is not installed.
        """
        return _module("torch").from_numpy(self.numpy().astype(np.float32))

    def statuses(self) -> dict[str, dict[str, int]]:
        """Count each feature's statuses: `{"Origin.dep_delay[1h]": {"OK": 900, "NULL": 100}}`."""
        found = {}
        for i, name in enumerate(self.columns):
            counts = np.bincount(self.status[:, i], minlength=len(STATUS)).tolist()
            found[name] = {status: count for status, count in zip(STATUS, counts, strict=True) if count}
        return found

    def to_dict(self, row: int) -> dict[str, Any]:
        """Return one row's features by name; null is None, an instant is an `hr.Instant`."""
        table = self.values.table(self.plan).slice(row, 1)
        found = {}
        for i, column in enumerate(self.plan.columns):
            value = table[column.name][0].as_py() if self.status[row, i] == OK else None
            found[column.name] = Instant(value) if column.dtype == "instant" and value is not None else value
        return found

    def explain(self, row: int, feature: str | None = None) -> RowExplanation:
        """Return for each feature of a row, by its place, which events were used, which were refused, and why.

        Raises:
            UsageError: there is no such row, or the frame was read online, where no events are kept.
            UnknownColumn: no such feature.
        """
        if not 0 <= row < len(self):
            raise UsageError("no such row", got=row, expected=f"0 to {len(self) - 1}")
        if not self.histories:
            raise UsageError("online state keeps no events", next_step="dataset.explain(…), or headrace explain")
        key = self.keys.slice(row, 1).to_pylist()[0]
        t = int(self.t[row])
        found = explain_row(self.plan, self.histories, [key[c.name] for c in self.plan.row], t, feature)
        shown = self.to_dict(row)
        direct = {name: shown[name] for name in self.columns if feature in (None, name)}
        return RowExplanation(Instant(t), self.rows.slice(row, 1).to_pylist()[0], direct, tuple(found))


@dataclass(frozen=True)
class RowExplanation:
    """Hold a row's features and the events behind those that are computed from events; print it to read it."""

    at: Instant
    row: Mapping[str, Any]
    values: Mapping[str, Any]
    features: Sequence[FeatureExplanation]

    def __str__(self) -> str:
        named = ", ".join(f"{k}={v}" for k, v in self.row.items())
        lines = [f"{named} at {self.at.isoformat()}"]
        explained = {found.name for found in self.features}
        lines += [f"  {name} = {value}" for name, value in self.values.items() if name not in explained]
        for found in self.features:
            value = self.values.get(found.name)
            lines.append(f"  {found.name} = {value}: {found.used} used, {found.refused} refused")
            lines.append(f"    {', '.join(found.expressions)}, known at {found.known_at}")
            used = [event for event in found.events if event.used][:PRINTED]
            refused = [event for event in found.events if not event.used]
            near = sorted(refused, key=lambda event: abs(event.moment - self.at))[:PRINTED]
            for event in sorted([*used, *near], key=lambda event: -event.moment):
                verdict = "used   " if event.used else "refused"
                shown = ", ".join(map(str, event.values))
                lines.append(f"    {verdict} {event.moment.isoformat()}  {shown}  {event.why}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        step = 'pip install "headrace[torch]"' if name == "torch" else f"pip install {name}"
        raise MissingExtra(f"{name} is not installed", next_step=step) from error
