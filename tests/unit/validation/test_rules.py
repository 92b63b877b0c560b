"""Rules of rows: the same verdict for one event and for a table, and only for what is stated."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.errors import DefinitionError
from headrace.core.expressions import Column
from headrace.core.limits import number_text
from headrace.core.time import Date, Instant
from headrace.monitoring.definition import live
from headrace.sources.definition import Source, column, definition_of, event_time, row_id
from headrace.sources.plan import reveal_of
from headrace.sources.record import ARRIVAL, RevealBatch
from headrace.sources.run import batch_of
from headrace.sources.zones import EARLIEST, LATEST
from headrace.validation.definition import Checks, foreign_key, null_rate, row_count
from headrace.validation.plan import ValidationPlan, plan_validation
from headrace.validation.reveals import judge_reveals

BIG = 2**53 + 1


class Rows(Source):
    key: Column[str] = row_id()
    at: Column[Instant] = event_time()
    code: Column[str] = column(matches=r"[A-Z]{2}|\d+")
    kind: Column[str | None] = column(isin=["a", "b"])
    size: Column[float | None] = column(ge=0, le=10.5)
    odd: Column[float] = column(allow_nan=True, ge=-1)
    level: Column[int] = column(ge=0.5, le=float(2**53))
    deep: Column[int | None] = column(ge=float(2**54))
    step: Column[int | None] = column(isin=[1, 2.0, 2.5, BIG])
    share: Column[float | None] = column(isin=[0, 0.5, math.nan])
    flag: Column[bool | None] = column(isin=[True])
    day: Column[Date | None] = column()


ROWS = definition_of(Rows)
PLAN = plan_validation(ROWS)
EDGES: dict[str, list[Any]] = {
    "code": ["AB", "ABC", "12", "AB\n", ""],
    "kind": ["a", "c"],
    "size": [0.0, -0.0, 10.5, 10.6, math.nan, math.inf],
    "odd": [-1.0, math.nan, -1.5],
    "level": [0, 1, 2**53, BIG],
    "deep": [2**54, 2**54 - 1],
    "step": [1, 2, 3, 2**53, BIG],
    "share": [0.0, -0.0, 0.5, math.nan],
    "flag": [True, False],
    "day": [0, EARLIEST, EARLIEST - 1, LATEST + 1],
}
ANY = {"str": st.text(max_size=3), "float": st.floats(), "int": st.integers(-(2**63), 2**63 - 1), "bool": st.booleans()}


def cell(name: str) -> st.SearchStrategy[Any]:
    return st.sampled_from([*EDGES[name], None]) | ANY.get(ROWS.by_name[name].dtype, st.integers(-(2**62), 2**62))


EVENTS = st.fixed_dictionaries(
    {"key": st.just("k"), "at": st.integers(-(2**60), 2**60), ARRIVAL: st.just(0)},
    optional={name: cell(name) for name in EDGES},
)


def broken(event: dict[str, Any]) -> list[str]:
    """Return the names of the rules that an event breaks, by what its columns declare and Python's own comparisons."""
    return [f"{c} {says}" for c in ROWS.columns if c.name in event for says in faults(c, event[c.name])]


def faults(c: Column[Any], v: Any) -> Iterator[str]:
    if v is None:
        yield from [] if c.nullable else ["is not null"]
        return
    if c.dtype == "float" and not c.allow_nan and not math.isfinite(v):
        yield "is finite"
    if c.dtype in ("instant", "date") and not EARLIEST <= v <= LATEST:
        yield "is in the years 1 to 9999"
    if c.ge is not None and v < c.ge:
        yield f">= {number_text(c.ge)}"
    if c.le is not None and v > c.le:
        yield f"<= {number_text(c.le)}"
    if c.matches is not None and re.fullmatch(c.matches, v, re.ASCII) is None:
        yield f"matches {c.matches}"
    if c.allowed is not None and not any(v == one for one in c.allowed):
        yield f"is one of {', '.join(map(str, c.allowed))}"


def judged(batch: RevealBatch) -> dict[str, tuple[Any, int]]:
    """Return each rule's bad rows, and how many rows state its column."""
    rules = {rule.name for rule in PLAN.rules}
    return {j.name: (j.bad, j.rows) for j in judge_reveals(PLAN, batch, None, None) if j.name in rules}


@given(st.lists(EVENTS, min_size=1, max_size=5))
def test_one_event_and_a_table_are_judged_alike(events: list[dict[str, Any]]) -> None:
    for event in events:
        batch = batch_of(ROWS, reveal_of(ROWS, event))
        assert len(batch) == 1
        assert [name for name, (bad, _) in judged(batch).items() if bad[0]] == broken(event)
    together = batch_of(ROWS, [reveal for event in events for reveal in reveal_of(ROWS, event)])
    counts = {name: int(bad.sum()) for name, (bad, _) in judged(together).items()}
    assert counts == {rule.name: sum(rule.name in broken(event) for event in events) for rule in PLAN.rules}


def test_every_edge_is_judged_alike() -> None:
    for name, value in [(name, value) for name, values in EDGES.items() for value in [*values, None]]:
        event = {"key": "k", "at": 0, name: value, ARRIVAL: 0}
        found = judged(batch_of(ROWS, reveal_of(ROWS, event)))
        assert [rule for rule, (bad, _) in found.items() if bad[0]] == broken(event), (name, value)


@pytest.mark.parametrize(
    ("name", "value", "names"),
    [
        ("code", "AB\n", ["Rows.code matches [A-Z]{2}|\\d+"]),
        ("code", None, ["Rows.code is not null"]),
        ("code", "2013", []),
        ("kind", "c", ["Rows.kind is one of a, b"]),
        ("kind", None, []),
        ("size", 0.0, []),
        ("size", 10.5, []),
        ("deep", 2**54 - 1, ["Rows.deep >= 1.80144e+16"]),
        ("share", math.nan, ["Rows.share is finite", "Rows.share is one of 0, 0.5, nan"]),
        ("size", -0.5, ["Rows.size >= 0"]),
        ("size", 11.0, ["Rows.size <= 10.5"]),
        ("size", math.nan, ["Rows.size is finite"]),
        ("size", math.inf, ["Rows.size is finite", "Rows.size <= 10.5"]),
        ("odd", math.nan, []),
        ("odd", -2.0, ["Rows.odd >= -1"]),
        ("level", 0, ["Rows.level >= 0.5"]),
        ("level", BIG, ["Rows.level <= 9.0072e+15"]),
        ("step", BIG, []),
        ("step", 2**53, ["Rows.step is one of 1, 2.0, 2.5, 9007199254740993"]),
        ("share", -0.0, []),
        ("flag", False, ["Rows.flag is one of True"]),
        ("day", LATEST + 1, ["Rows.day is in the years 1 to 9999"]),
    ],
)
def test_each_rule_has_its_edge(name: str, value: Any, names: list[str]) -> None:
    assert broken({name: value}) == names


def test_what_is_not_stated_breaks_nothing() -> None:
    assert broken({"key": "k"}) == []
    batch = batch_of(ROWS, reveal_of(ROWS, {"key": "k", "kind": "a", ARRIVAL: 0}))
    found = judged(batch)
    assert not any(bad.any() for bad, _ in found.values())
    told = {rule.column.name: found[rule.name][1] for rule in PLAN.rules}
    assert told == {name: int(name in ("key", "kind")) for name in ROWS.by_name}


def test_no_reveals_are_judged() -> None:
    found = judged(batch_of(ROWS, []))
    assert all(bad.dtype == np.bool_ and not len(bad) and not rows for bad, rows in found.values())


def planned(checks: Checks | None = None, **options: Any) -> ValidationPlan:
    class Other(Source):
        key: Column[str] = row_id()
        at: Column[Instant] = event_time()
        text: Column[str] = column(**{k: v for k, v in options.items() if k != "number"})
        number: Column[int] = column(**options.get("number", {}))

    object.__setattr__(definition_of(Other), "checks", checks)
    return plan_validation(definition_of(Other))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"ge": 1}, "Other.text: ge and le are finite numbers, for numbers"),
        ({"matches": "a(?=b)"}, "Other.text: not a pattern"),
        ({"isin": ["a", 1]}, "Other.text: isin= lists values of the column's type"),
        ({"isin": []}, "Other.text: isin= lists values of the column's type"),
        ({"number": {"matches": "a"}}, "Other.number: matches= is for texts"),
        ({"number": {"le": math.inf}}, "Other.number: ge and le are finite numbers, for numbers"),
        ({"number": {"isin": ["a"]}}, "Other.number: isin= lists values of the column's type"),
    ],
)
def test_rules_that_cannot_hold_are_mistakes_of_the_definition(options: dict[str, Any], what: str) -> None:
    with pytest.raises(DefinitionError) as error:
        planned(**options)
    assert error.value.what == what
    assert "test_rules.py" in str(error.value.where)


@pytest.mark.parametrize(
    ("check", "what"),
    [
        (null_rate(Rows.size) <= 0.1, "Other: a check of another source's column"),
        (foreign_key(Rows.kind, Rows.key), "Other: a check of another source's column"),
        (live("error_rate") >= 0.5, "Other: nothing a delivery can be measured by"),
        (row_count().within(0.5, of="36h"), "Other: row counts are compared by whole days"),
    ],
)
def test_checks_that_cannot_be_measured_are_mistakes_of_the_definition(check: Any, what: str) -> None:
    with pytest.raises(DefinitionError) as error:
        planned(Checks(check))
    assert error.value.what == what
    assert "test_rules.py" in str(error.value.where)
