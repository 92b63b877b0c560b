"""Contracts from samples hold for their sample; pandera's schemas are taken over whole or refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandera.pandas as pandas_schema
import pandera.polars as polars_schema
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import headrace as hr
from headrace.core.errors import DefinitionError
from headrace.core.time import DAY, Instant
from headrace.pipelines.project import import_file
from headrace.sources.definition import definition_of
from headrace.sources.infer import infer
from headrace.validation.examine import validate
from headrace.validation.infer import around, contract_of, facts_of, rounded_up
from headrace.validation.plan import plan_validation

START = Instant.parse("2026-01-01T00:00:00Z")


def sample(rows: int = 600) -> pa.Table:
    rng = np.random.default_rng(3)
    at = START + np.arange(rows) * DAY // 30
    return pa.table(
        {
            "Customer ID": [f"c-{i:05d}" for i in range(rows)],
            "at": pa.array(at, pa.timestamp("us", "UTC")),
            "done": pa.array(at + 5, pa.timestamp("us", "UTC"), mask=np.arange(rows) % 9 == 0),
            "country": [("CH", "DE", "FR")[i % 3] for i in range(rows)],
            "plate": [f"ZH {1000 + i * 7 % 9000}" for i in range(rows)],
            "amount": pa.array(np.round(rng.lognormal(3, 1, rows), 2), mask=rng.random(rows) < 0.1),
            "balance": rng.normal(0, 100, rows),
            "large": pa.array([2**60 + i % 3 for i in range(rows)]),
            "class": pa.array([i % 2 == 0 for i in range(rows)]),
            "parts": [[1]] * rows,
        }
    )


def contract(name: str, table: pa.Table) -> str:
    return contract_of(definition_of(infer(table, name)), facts_of(table))


def test_an_inferred_contract_holds_for_its_sample(tmp_path: Path) -> None:
    table = sample()
    code = contract("Orders", table)
    (tmp_path / "inferred_orders.py").write_text(f"import headrace as hr\n\n\n{code}")
    module = import_file(tmp_path / "inferred_orders.py")
    end = Instant(START + 20 * DAY).isoformat()
    found = validate(module.Orders, table, as_of=end)
    assert found.action == "pass", [(r.name, r.measured) for r in found.failed]
    for line in (
        'customer_id: hr.Column[str] = hr.row_id(name="Customer ID")',
        'country: hr.Column[str] = hr.entity(isin=["CH", "DE", "FR"])',
        'plate: hr.Column[str] = hr.column(matches=r"[A-Z]{2}\\ [0-9]{4}")',
        'class_: hr.Column[bool] = hr.column(name="class")',
        "hr.unique(customer_id),",
        "done >= at,",
        'hr.missing("1d") <= 0,',
    ):
        assert line in code, code
    assert "parts" not in code


def test_a_sample_that_names_no_row_or_no_moment_is_refused() -> None:
    same = pa.table({"a": [1, 1], "at": pa.array([START, START], pa.timestamp("us", "UTC"))})
    with pytest.raises(DefinitionError, match="no column names a row"):
        contract("T", same)
    with pytest.raises(DefinitionError, match="no column tells when a row happened"):
        contract("T", pa.table({"a": [1, 2]}))


@pytest.mark.parametrize(("other", "names"), [("at", "a, at"), ("b", "a, b")])
def test_two_columns_together_may_name_a_row(other: str, names: str) -> None:
    columns = {"a": [1, 1, 2], "at": pa.array([START] * 3, pa.timestamp("us", "UTC"))}
    values = {"b": [1, 2, 1], "at": pa.array([START, START + 1, START], pa.timestamp("us", "UTC"))}
    assert f"key = hr.row_id({names})" in contract("T", pa.table(columns | {other: values[other]}))


def kept(table: pa.Table) -> list[tuple[str, str]]:
    """Return which of its own checks a sample fails."""
    space: dict[str, Any] = {"hr": hr}
    exec(contract("T", table), space)  # noqa: S102  # what is tested is what this code demands
    newest = Instant(int(table["at"].cast(pa.int64()).to_numpy().max()))
    return [(r.name, r.measured) for r in validate(space["T"], table, as_of=newest.isoformat()).failed]


def test_a_mean_beside_which_the_values_hardly_differ_is_kept() -> None:
    rows = 200
    offset = pa.array([1e9 + i % 7 / 10 for i in range(rows)])
    at = pa.array(START + np.arange(rows), pa.timestamp("us", "UTC"))
    table = pa.table({"id": [f"x{i}y" for i in range(rows)], "at": at, "offset": offset})
    assert "hr.mean(offset).between(1000000000.19, 1000000000.40)" in contract("T", table)
    assert kept(table) == []


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    "values",
    [[0.0, INF, 0.0], [-INF, 1.0, 1.0], [NAN, 2.0, 2.0], [NAN, NAN, None], [1e308, 1e308, -1e308], [2e-60, 0.0, 0.0]],
)
def test_numbers_at_the_ends_of_their_range_keep_what_is_said_of_them(values: list[float | None]) -> None:
    at = pa.array([START] * 3, pa.timestamp("us", "UTC"))
    assert kept(pa.table({"id": range(3), "at": at, "x": pa.array(values, pa.float64())})) == []


def test_days_that_differ_in_number_are_not_compared() -> None:
    days = [day for day in range(28) for _ in range(30 if day % 7 < 5 else 2)]
    at = pa.array([START + day * DAY + i for i, day in enumerate(days)], pa.timestamp("us", "UTC"))
    table = pa.table({"id": range(len(days)), "at": at})
    code = contract("T", table)
    assert "hr.row_count()" not in code
    assert 'hr.missing("1d") <= 0' in code
    assert kept(table) == []


@settings(max_examples=100)
@given(st.data())
def test_every_sample_passes_its_own_contract(data: st.DataObject) -> None:
    rows = data.draw(st.integers(2, 60))
    texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
    kinds: list[tuple[Any, Any]] = [
        (st.integers(-(2**62), 2**62), pa.int64()),
        (st.floats(allow_subnormal=False), pa.float64()),
        (st.floats(-1e9, 1e9), pa.float64()),
        (texts, pa.string()),
        (st.sampled_from(["a", '"b"', "c\n", "\\"]), pa.string()),
        (st.booleans(), pa.bool_()),
        (st.decimals(-1000, 1000, places=2), pa.decimal128(8, 2)),
        (st.integers(0, 10**15), pa.timestamp("us", "UTC")),
        (st.integers(0, 20_000), pa.date32()),
    ]
    columns: dict[str, Any] = {"id": range(rows), "at": pa.array([START] * rows, pa.timestamp("us", "UTC"))}
    for place, (values, kind) in enumerate(data.draw(st.lists(st.sampled_from(kinds), max_size=5))):
        drawn = data.draw(st.lists(st.none() | values, min_size=rows, max_size=rows))
        columns[data.draw(texts.filter(bool)) + f" {place}"] = pa.array(drawn, kind)
    assert kept(pa.table(columns)) == []


@pytest.mark.parametrize(("middle", "width"), [(0.0, 1e-9), (1e18, 1.0), (-5.0, 1e12), (2.5, 2.5)])
def test_limits_lie_around_their_middle(middle: float, width: float) -> None:
    low, high = map(float, around(middle, width))
    assert low <= middle - width <= middle + width <= high


@pytest.mark.parametrize(
    ("value", "up"),
    [
        (8140, 9000),
        (0.31, 0.4),
        (0, 0),
        (1000, 1000),
        (99.5, 100),
        (2.0, 2),
        (2.4e-60, 3e-60),
        (1.1e308, 1.1e308),
        (9.0000001, 10),
        (1e22, 1e22),
    ],
)
def test_bounds_are_rounded_outwards(value: float, up: float) -> None:
    assert rounded_up(value) == up


class Rows(hr.Source):
    key: hr.Column[str] = hr.row_id()
    at: hr.Column[hr.Instant] = hr.event_time()
    size: hr.Column[float | None] = hr.column()
    kind: hr.Column[str | None] = hr.column()


def taken_over(schema: Any, table: Any) -> dict[str, int]:
    """Return how many rows break which check that a schema demands."""
    definition = definition_of(Rows)
    fields = {name: getattr(definition, name) for name in definition.__dataclass_fields__}
    checks = hr.Checks.from_pandera(schema, max_bad=1.0)
    borrowing = type("Rows", (), {"__definition__": type(definition)(**fields | {"checks": checks})})
    return {r.name: r.failing for r in validate(borrowing, table).failed}


def table(**columns: Any) -> pa.Table:
    size = len(next(iter(columns.values())))
    fixed = {"key": [f"k{i}" for i in range(size)], "at": pa.array([START] * size, pa.timestamp("us", "UTC"))}
    empty: dict[str, Any] = {"size": pa.nulls(size, pa.float64()), "kind": pa.nulls(size, pa.string())}
    return pa.table(fixed | empty | columns)


@pytest.mark.parametrize("library", [pandas_schema, polars_schema])
def test_pandera_and_we_find_the_same_rows(library: Any) -> None:
    check, number, text = library.Check, float if library is pandas_schema else pl.Float64, str
    schema = library.DataFrameSchema(
        {
            "size": library.Column(number, [check.in_range(0, 10, include_max=False), check.ne(3)], nullable=True),
            "kind": library.Column(
                text, [check.isin(["ab", "abc", "xyz"]), check.str_matches("a"), check.str_length(2, 2)], nullable=True
            ),
        }
    )
    rows = table(size=[0.0, 10.0, -1.0, 3.0, None], kind=["ab", "abc", "xyz", "q", None])
    frame = rows.to_pandas() if library is pandas_schema else pl.from_arrow(rows)
    with pytest.raises(library.errors.SchemaErrors) as theirs:
        schema.validate(frame, lazy=True)
    cases = theirs.value.failure_cases
    count = len(cases)
    assert sum(taken_over(schema, rows).values()) == count == 9


def test_a_pandera_model_is_a_schema_too_and_warnings_stay_warnings() -> None:
    class Model(polars_schema.DataFrameModel):
        key: str = polars_schema.Field(unique=True)
        size: float = polars_schema.Field(gt=0, raise_warning=True)

    found = taken_over(Model, table(size=[0.0, 1.0, None]))
    assert found == {"Rows.size is not null": 1, "Rows.size > 0": 1}


@pytest.mark.parametrize(
    ("schema", "what"),
    [
        (polars_schema.DataFrameSchema({"size": polars_schema.Column(pl.String)}), "says another type"),
        (polars_schema.DataFrameSchema({"other": polars_schema.Column(pl.String)}), "the column other"),
        (
            polars_schema.DataFrameSchema({"size": polars_schema.Column(checks=polars_schema.Check(lambda d: True))}),
            "the check",
        ),
        (polars_schema.DataFrameSchema(checks=polars_schema.Check(lambda d: True)), "whole tables"),
        (7, "not a pandera schema"),
    ],
)
def test_what_cannot_be_taken_over_is_refused(schema: Any, what: str) -> None:
    definition = definition_of(Rows)
    fields = {name: getattr(definition, name) for name in definition.__dataclass_fields__}
    with pytest.raises(DefinitionError) as refused:
        plan_validation(type(definition)(**fields | {"checks": hr.Checks.from_pandera(schema)}))
    assert re.search(what, str(refused.value))
