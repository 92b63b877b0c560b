"""Infer a source from a table that somebody holds: types, nullability, keys; and write it down as code to review.

Nothing of the data ever becomes code: names that are no Python names are replaced, and stand in the code as texts.
"""

from __future__ import annotations

import keyword
import re
import types
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice
from typing import TYPE_CHECKING, Any

from headrace.core.errors import DefinitionError, UsageError, did_you_mean
from headrace.core.expressions import Column
from headrace.core.location import user_frame, user_location
from headrace.core.time import Date, Instant
from headrace.sources.definition import (
    MOST_COLUMNS,
    Source,
    SourceDefinition,
    SourceMeta,
    column,
    definition_of,
    entity,
    event_time,
    is_reserved,
    row_id,
)

if TYPE_CHECKING:
    import pyarrow as pa

PYTHON = {"str": str, "int": int, "float": float, "bool": bool, "instant": Instant, "date": Date}
TIMES = ("event_time", "event_timestamp", "timestamp", "ts", "time", "datetime", "occurred_at", "created_at", "date")
THINGS = ("user", "customer", "card", "account", "shop", "store", "merchant", "device", "product", "sku", "item")
SPOKEN = ("hr", "int", "str", "float", "bool", "known_at", "checks", "to_code", "mro")  # mean something in the class
PAIRS = 50  # of columns that are tried, whether they name a row together
REPEATED = 3  # rows to a key, on average: what comes less often is hardly a thing that has features


@dataclass(frozen=True, eq=False)
class Held:
    """Hold the rows of an inferred source, and the zone of timestamps that carry none."""

    table: pa.Table
    zone: str | None


class InferredMeta(SourceMeta):
    """Give the columns of an inferred source, which no type checker can know."""

    if TYPE_CHECKING:

        def __getattr__(cls, name: str) -> Any: ...  # noqa: N805


class InferredSource(Source, metaclass=InferredMeta, abstract=True):
    """Be a source that was inferred from a table; its rows are those of the table."""

    @classmethod
    def to_code(cls) -> str:
        """Return the class as code, to be reviewed and kept in the project file; it gives the same definition."""
        return code_of(definition_of(cls))


def source(
    table: Any,
    name: str = "Rows",
    *,
    row_id: str | Sequence[str] | None = None,
    event_time: str | None = None,
    entity: str | Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    zone: str | None = None,
) -> type[InferredSource]:
    """Infer a source from a table of any library that speaks Arrow (pandas, polars, Arrow, DuckDB), ready for features.

    Types and nullability are those of the data. What names a row, when it happened and which things it is about is
    guessed by name and uniqueness unless it is said, by the columns' names in the data. `columns` takes some only, `zone`
    is that of timestamps that carry none. Columns of other types are left out. Every value counts as known at the event
    time: `print(T.to_code())`, keep the class in the project file and say there which are known later.

        >>> T = source(my_table, row_id="order_id")            # doctest: +SKIP
        >>> print(T.to_code())                                  # doctest: +SKIP

    Raises:
        UsageError: the table speaks no Arrow, or a name is none of its columns.
        DefinitionError: no column names a row or tells when it happened.
    """
    return infer(
        held_table(table),
        name,
        row_id=_names(row_id),
        event_time=event_time,
        entity=None if entity is None else _names(entity),
        columns=columns,
        zone=zone,
    )


def held_table(table: Any) -> pa.Table:
    """Return a table of any library that speaks Arrow as an Arrow table.

    Raises:
        UsageError: it does not.
    """
    import pyarrow as pa

    if not hasattr(table, "__arrow_c_stream__"):
        raise UsageError(
            "a table that speaks no Arrow",
            where=user_location(),
            got=type(table).__name__,
            expected="a table of pandas, polars, pyarrow, DuckDB or another library with __arrow_c_stream__",
        )
    return plain_table(pa.RecordBatchReader.from_stream(table).read_all())


def plain_table(table: pa.Table) -> pa.Table:
    """Return a table with texts of one kind, and dictionaries as their values."""
    import pyarrow as pa

    fields = []
    for field in table.schema:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        fields.append(field.with_type(pa.string() if pa.types.is_string_view(kind) else kind))
    return table.cast(pa.schema(fields))


def infer(
    table: pa.Table,
    name: str,
    *,
    row_id: tuple[str, ...] = (),
    event_time: str | None = None,
    entity: tuple[str, ...] | None = None,
    columns: Sequence[str] | None = None,
    zone: str | None = None,
) -> type[InferredSource]:
    """Return the source that a table shows; see `source`."""
    stated = [*row_id, *([event_time] if event_time else []), *(entity or ()), *(columns or ())]
    for missing in [n for n in stated if n not in table.column_names]:
        raise UsageError(
            "no such column", where=user_location(), got=missing, next_step=did_you_mean(missing, table.column_names)
        )
    chosen = _Chosen(table, table.column_names if columns is None else stated)
    time = event_time or chosen.time()
    ids = row_id or chosen.row_id(time)
    things = entity if entity is not None else chosen.entities(ids, time)
    made = _class(name, chosen, ids, time, things)
    made.__definition__ = replace(definition_of(made), held=Held(table, zone))
    return made


def class_name(place: str) -> str:
    """Return a name for the class of a file's, a folder's or an object's rows.

    >>> class_name("data/my orders.csv.gz"), class_name("2024/*.parquet"), class_name("none.csv")
    ('MyOrders', 'Rows2024', 'RowsNone')
    """
    for part in reversed(place.rstrip("/").split("/")):
        stem = "".join(c if c.isascii() and c.isalnum() else " " for c in part.rpartition(":")[2].partition(".")[0])
        if found := "".join(word[:1].upper() + word[1:] for word in stem.split()):
            return f"Rows{found}" if found[0].isdigit() or keyword.iskeyword(found) else found
    return "Rows"


def declarable(table: pa.Table) -> dict[str, str]:
    """Return the types that a source can declare for a table's columns, by their names in the data.

    Columns of other types, without a name, or with one of Headrace's own are left out.
    """
    kinds = ((field.name, _dtype(field.type)) for field in table.schema)
    return {name: dtype for name, dtype in kinds if name and not is_reserved(name) and dtype}


def code_of(
    definition: SourceDefinition,
    *,
    constraints: Mapping[str, Mapping[str, Any]] | None = None,
    checks: Sequence[str] = (),
) -> str:
    """Return an inferred source as code.

    `constraints` are further arguments of `hr.column` and `hr.entity` by the columns' names; `checks` are the
    expressions of its `hr.Checks`.
    """
    rows = f"{definition.held.table.num_rows:,} rows" if definition.held is not None else "data"
    composite = definition.id_columns if definition.id_columns[0].role != "row_id" else ()
    lines = [
        f"class {definition.name}(hr.Source):",
        f'    """Inferred from {rows}. Review what names a row, the types, and when each value is known (known_at=)."""',
        "",
    ]
    for c in definition.columns:
        text = {"instant": "hr.Instant", "date": "hr.Date"}.get(c.dtype, c.dtype) + (" | None" if c.nullable else "")
        given = {"name": c.renamed, **(constraints or {}).get(c.name, {}), "allow_nan": c.allow_nan or None}
        arguments = ", ".join(f"{key}={_literal(value)}" for key, value in given.items() if value is not None)
        lines.append(f"    {c.name}: hr.Column[{text}] = hr.{c.role}({arguments})")
    if composite:
        lines.append(f"    {_unused('key', definition)} = hr.row_id({', '.join(c.name for c in composite)})")
    if checks:
        lines += ["", "    checks = hr.Checks(", *(f"        {check}," for check in checks), "    )"]
    return "\n".join([*lines, ""])


class _Chosen:
    """Look at a table's columns: which can be taken, and what they may be."""

    def __init__(self, table: pa.Table, names: Sequence[str]) -> None:
        self.table, present = table, Counter(table.column_names)
        wanted = {*names}
        self.dtypes = {name: dtype for name, dtype in declarable(table).items() if name in wanted}
        doubled = sorted(name for name in self.dtypes if present[name] > 1)
        if doubled or len(self.dtypes) > MOST_COLUMNS:
            raise DefinitionError(
                "two columns of one name" if doubled else "more columns than a source can have",
                where=user_location(),
                got=doubled or len(self.dtypes),
                expected=f"at most {MOST_COLUMNS} columns, each name once",
                next_step='name those to take: columns=["…"]',
            )
        self.own = _python_names(self.dtypes)

    def time(self) -> str:
        """Return the column that tells when a row happened."""
        instants = [n for n, d in self.dtypes.items() if d in ("instant", "date") and not self.nulls(n)]
        named = [n for wanted in TIMES for n in instants if self.own[n].lower() == wanted]
        exact = [n for n in instants if self.dtypes[n] == "instant"]
        if not instants:
            raise DefinitionError(
                "no column tells when a row happened",
                where=user_location(),
                got=[f"{n}: {self.table.schema.field(n).type}" for n in self.table.column_names],
                expected="timestamps without a null",
                next_step="write timestamps with an offset, as 2026-11-21T08:00:00Z; in a table, cast the column",
            )
        found: str = [*named, *exact, *instants][0]
        return found

    def row_id(self, time: str) -> tuple[str, ...]:
        """Return the columns that name a row: one, or two together."""
        rows, whole = self.table.num_rows, [n for n in self.dtypes if not self.nulls(n)]
        keys = sorted((n for n in whole if self.dtypes[n] in ("str", "int")), key=self.unlike_an_id)
        counts = {n: self.distinct(n) for n in whole if self.dtypes[n] in ("str", "int", "instant", "date")}
        alone = [n for n in keys if counts[n] == rows]
        if alone:
            return (alone[0],)
        others = [n for n in counts if n not in keys and n != time]
        pairs = [*((n, time) for n in keys), *combinations((*keys, *others), 2)]
        able = islice((p for p in pairs if counts[p[0]] * counts[p[1]] >= rows), PAIRS)
        pair = next((p for p in able if self._distinct_pairs(p) == rows), None)
        if pair is None:
            raise DefinitionError(
                "no column names a row: none has another value in every row",
                where=user_location(),
                got=[f"{n}: {counts[n]:,} values" for n in keys],
                expected=f"{rows:,} different values without a null",
                next_step='say what does: row_id="…", or several: row_id=("…", "…"); to a file, add an id where it is made',
            )
        return pair

    def entities(self, ids: tuple[str, ...], time: str) -> tuple[str, ...]:
        """Return the columns that name things: by their names, else the one with the most values that come back."""
        keys = [n for n, d in self.dtypes.items() if d in ("str", "int") and n not in (*ids[: len(ids) == 1], time)]
        named = tuple(n for n in keys if self.own[n].lower().removesuffix("_id") in THINGS or not self.unlike_an_id(n))
        rows = self.table.num_rows
        back = [n for n in keys if self.dtypes[n] == "str" and 1 < self.distinct(n) <= rows // REPEATED]
        return named or tuple(sorted(back, key=self.distinct, reverse=True)[:1])

    def unlike_an_id(self, name: str) -> bool:
        """Tell whether a name is not one that ids have."""
        return re.search(r"(?i)(^|[_\W])(id|uuid|guid|key|number|no)$|[a-z]I[dD]$", name) is None

    def nulls(self, name: str) -> bool:
        """Tell whether a column has a null."""
        return bool(self.table[name].null_count) or self.dtypes[name] == "null"

    def distinct(self, name: str) -> int:
        """Return how many values a column has."""
        import pyarrow.compute as pc

        return int(pc.count_distinct(self.table[name], mode="all").as_py())

    def _distinct_pairs(self, names: Sequence[str]) -> int:
        return int(self.table.select(names).group_by(list(names)).aggregate([]).num_rows)


def _class(
    name: str, chosen: _Chosen, ids: tuple[str, ...], time: str, things: tuple[str, ...]
) -> type[InferredSource]:
    import pyarrow.compute as pc

    body: dict[str, Any] = {}
    annotations: dict[str, Any] = {}
    for data, dtype in chosen.dtypes.items():
        own, renamed = chosen.own[data], data if chosen.own[data] != data else None
        nullable = chosen.nulls(data) and data not in (*ids, time)
        kind = PYTHON[dtype]
        annotations[own] = Column[kind | None] if nullable else Column[kind]  # type: ignore[valid-type]
        if data == time:
            body[own] = event_time(name=renamed)
        elif ids == (data,):
            body[own] = row_id(name=renamed)
        elif data in things:
            body[own] = entity(name=renamed)
        else:
            has_nan = dtype == "float" and not pc.all(pc.is_finite(chosen.table[data]), min_count=0).as_py()
            body[own] = column(name=renamed, allow_nan=has_nan)
    if len(ids) > 1:
        key = next(n for n in ("key", "row", "row_key", "headrace_key") if n not in body)
        body[key] = row_id(*(body[chosen.own[n]] for n in ids))
    frame = user_frame()
    body |= {"__annotations__": annotations, "__module__": frame.f_globals.get("__name__", "") if frame else ""}
    if not name.isidentifier() or keyword.iskeyword(name):
        raise UsageError("not a name for a class", where=user_location(), got=name, expected="as in Orders")
    return types.new_class(name, (InferredSource,), exec_body=lambda space: space.update(body))


def _dtype(kind: pa.DataType) -> str | None:
    """Return the declared type that holds an Arrow type, None if none does."""
    import pyarrow.types as pt

    if pt.is_dictionary(kind):
        return _dtype(kind.value_type)
    if pt.is_decimal(kind):
        return "int" if kind.scale == 0 else "float"
    if pt.is_integer(kind):
        return None if pt.is_uint64(kind) else "int"
    checks = {
        "str": (pt.is_string, pt.is_large_string, pt.is_string_view),
        "float": (pt.is_floating,),
        "bool": (pt.is_boolean,),
        "instant": (pt.is_timestamp,),
        "date": (pt.is_date,),
    }
    return next((dtype for dtype, tests in checks.items() if any(test(kind) for test in tests)), None)


def _python_names(names: Sequence[str] | dict[str, str]) -> dict[str, str]:
    """Return a Python name for each name in the data, its own where it is one.

    >>> _python_names(["order", "Size (km)", "class", "size_km"])
    {'order': 'order', 'Size (km)': 'size_km_2', 'class': 'class_', 'size_km': 'size_km'}
    """
    found = {n: n for n in names if _usable(n)}
    for name in names:
        if name in found:
            continue
        base = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").lower() or "column"
        base = f"c{base}" if base[0].isdigit() else base
        base = base if _usable(base) else f"{base}_"
        taken, count, own = set(found.values()), 1, base
        while own in taken:
            count += 1
            own = f"{base}_{count}"
        found[name] = own
    return {name: found[name] for name in names}


def _usable(name: str) -> bool:
    plain = name.isascii() and name.isidentifier() and not name.startswith("_") and not keyword.iskeyword(name)
    return plain and name not in SPOKEN


def _literal(value: object) -> str:
    """Return a value as code; a pattern that is no danger to the quotes around it stays readable."""
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, str) and "\\" in value[:-1] and value[-1] != "\\" and '"' not in value and value.isprintable():
        return f'r"{value}"'
    text = repr(value)
    return f'"{text[1:-1]}"' if text.startswith("'") and '"' not in text else text


def _unused(name: str, definition: SourceDefinition) -> str:
    return next(n for n in (name, "row", "row_key", "headrace_key") if n not in definition.by_name)


def _names(value: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)
