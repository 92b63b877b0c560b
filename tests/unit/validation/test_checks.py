"""Checks beyond single columns: what they mean for reveals, what they refuse, and what bad input cannot do to them."""

from __future__ import annotations

import decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import headrace as hr
from headrace.core.errors import DataError, DefinitionError, SchemaChanged, UsageError, UserCodeError
from headrace.core.time import DAY, HOUR, Instant
from headrace.sources.definition import SourceDefinition, definition_of
from headrace.sources.plan import reveal_of
from headrace.sources.record import ARRIVAL, RevealBatch
from headrace.sources.run import batch_of
from headrace.validation import keys
from headrace.validation.baseline import baseline_from_dict, baseline_of, baseline_to_dict
from headrace.validation.examine import validate
from headrace.validation.keys import KeySet
from headrace.validation.plan import plan_validation
from headrace.validation.run import Validator

START = Instant.parse("2013-07-01T00:00:00Z")
BIG = 2**53


class Trips(hr.Source):
    trip: hr.Column[str] = hr.row_id()
    start: hr.Column[hr.Instant] = hr.event_time()
    left: hr.Column[hr.Instant | None] = hr.column()
    ended: hr.Column[hr.Instant | None] = hr.column()
    seat: hr.Column[int | None] = hr.column()
    delay: hr.Column[float | None] = hr.column(known_at=ended, allow_nan=True)
    gone: hr.Column[bool | None] = hr.column(known_at=left)


class Numbers(hr.Source):
    name: hr.Column[int] = hr.row_id()
    at: hr.Column[hr.Instant] = hr.event_time()
    size: hr.Column[int | None] = hr.column(ge=0, le=BIG)
    text: hr.Column[str | None] = hr.column(matches=r"(a+)+b")
    checks = hr.Checks(hr.max(size) <= BIG, hr.unique(text), max_bad=1.0)


def source(*checks: Any, **options: Any) -> SourceDefinition:
    definition = definition_of(Trips)
    fields = {name: getattr(definition, name) for name in definition.__dataclass_fields__}
    return SourceDefinition(**fields | {"checks": hr.Checks(*checks, **{"max_bad": 1.0} | options)})


def batch(definition: SourceDefinition, *events: dict[str, Any]) -> RevealBatch:
    return batch_of(definition, [reveal for event in events for reveal in reveal_of(definition, event)])


def trip(name: str, at: int = START, **more: Any) -> dict[str, Any]:
    return {"trip": name, "start": int(at), ARRIVAL: int(at), **more}


def bad_ids(definition: SourceDefinition, *events: dict[str, Any], **options: Any) -> list[tuple[str, int]]:
    verdict = Validator(definition).validate(batch(definition, *events), now=START + DAY, **options)
    found = verdict.quarantined.to_pylist()
    return sorted((row["row_id"].decode()[5:], row["arrival"] - START) for row in found)


def numbers(**columns: Any) -> pa.Table:
    size = len(next(iter(columns.values())))
    fixed = {"name": pa.array(range(size), pa.int64()), "at": pa.array([START] * size, pa.timestamp("us", "UTC"))}
    empty = {"size": pa.nulls(size, pa.int64()), "text": pa.nulls(size, pa.string())}
    return pa.table(fixed | empty | columns)


def test_a_condition_is_asked_once_all_its_columns_are_known() -> None:
    definition = source(Trips.ended > Trips.left)
    out = trip("a", left=START + 2, gone=True)
    home = trip("a", START + 1, ended=START + 1, delay=0.0)
    assert bad_ids(definition, out) == []
    assert bad_ids(definition, out, home) == [("a", 1)]
    assert bad_ids(definition, out, trip("b", START + 1, ended=START + 1, delay=0.0)) == []


def test_a_condition_sees_what_was_accepted_before() -> None:
    definition = source(Trips.ended > Trips.left)
    before = batch(definition, trip("a", left=START + 5, gone=True)).table
    home = trip("a", START + 9, ended=START + 4, delay=0.0)
    assert bad_ids(definition, home) == []
    assert bad_ids(definition, home, earlier=lambda ids: before) == [("a", 9)]


def test_two_rows_with_one_key_are_one_too_many_and_a_correction_is_none() -> None:
    definition = source(hr.unique(Trips.seat))
    assert bad_ids(definition, trip("a", seat=1), trip("a", START + 1, seat=1)) == []
    assert bad_ids(definition, trip("a", seat=1), trip("b", START + 1, seat=1), trip("c", seat=None)) == [("b", 1)]


def test_a_row_stated_twice_is_told_where_its_id_is_to_be_unique() -> None:
    definition = source(hr.unique(Trips.trip))
    assert bad_ids(definition, trip("a", seat=1), trip("a", START + 1, seat=2), trip("b")) == [("a", 1)]


def test_severities_are_those_of_the_check() -> None:
    late = trip("a", seat=1), trip("b", seat=1)
    warned = Validator(source(hr.warn(hr.unique(Trips.seat))))
    assert warned.validate(batch(warned.definition, *late), now=START).action == "pass"
    stopped = Validator(source(hr.stop(hr.unique(Trips.seat))))
    assert stopped.validate(batch(stopped.definition, *late), now=START).action == "stop"


def test_known_at_is_honest_where_values_arrived_in_time() -> None:
    definition = source(hr.known_at_honest(Trips.delay, within="1h") >= 0.9)
    early = trip("a", START + HOUR, ended=START, delay=1.0)
    late = trip("b", START + HOUR + 1, ended=START, delay=1.0)
    found = Validator(definition).validate(batch(definition, early, late), now=START)
    assert (found["known_at_honest"].value, found["known_at_honest"].status) == (0.5, "failed")
    assumed = Validator(definition).validate(batch(definition, early), now=START, observed=False)
    assert assumed["known_at_honest"].reason == "arrivals were not observed"


def test_a_missing_day_is_told_once_also_after_a_restart() -> None:
    validator = Validator(source(hr.warn(hr.missing("1d") <= 0)))
    validator.validate(batch(validator.definition, trip("a")), now=START + HOUR)
    later = batch(validator.definition, trip("b", START + 3 * DAY))
    validator = Validator(validator.definition, state=validator.dump())
    found = validator.validate(later, now=START + 3 * DAY)["missing"]
    assert (found.failing, found.samples, found.status) == (2, ("2013-07-02", "2013-07-03"), "failed")
    again = validator.validate(batch(validator.definition), now=START + 4 * DAY)["missing"]
    assert (again.status, again.rows) == ("passed", 1)


def test_functions_and_sql_judge_rows_and_deliveries() -> None:
    even = hr.check_rows(lambda table: pc.equal(pc.bit_wise_and(table["seat"], 1), 0), Trips.seat, name="even seats")
    definition = source(even, hr.measure("select count(distinct trip) from data") <= 2)
    found = Validator(definition).validate(
        batch(definition, trip("a", seat=2), trip("b", seat=3), trip("c", seat=4), trip("d")), now=START
    )
    assert (found["even seats"].failing, found["even seats"].rows, found["measure"].value) == (1, 3, 3.0)


@pytest.mark.parametrize(
    ("check", "what"),
    [
        (lambda: hr.measure("drop table data") <= 1, "reads, and does nothing else"),
        (lambda: hr.measure("select 1; select 2") <= 1, "reads, and does nothing else"),
        (lambda: hr.measure("selec 1") <= 1, "does not parse"),
        (lambda: hr.ks(Trips.trip) <= 0.1, "a distance that means nothing"),
        (lambda: hr.psi(Trips.start) <= 0.1, "a distance that means nothing"),
        (lambda: hr.mean(Trips.trip) <= 1, "nothing that can be computed"),  # type: ignore[arg-type]
        (lambda: hr.psi(Trips.trip, against={"a": 0.5}) <= 1, "shares of categories"),
        (lambda: Trips.left, "not a condition"),
        (lambda: hr.foreign_key(Trips.seat, Numbers.text), "values of another type"),
        (lambda: hr.unique(), "unique needs a column"),
        (lambda: hr.missing("0d") <= 0, "not a duration"),
        (lambda: hr.mean(Trips.seat) <= float("inf"), "a limit is a finite number"),
        (lambda: Numbers.size > 1, "another source's column"),
    ],
)
def test_what_cannot_be_checked_is_refused_before_data_are_read(check: Any, what: str) -> None:
    with pytest.raises(DefinitionError, match=what):
        plan_validation(source(check()))


def test_a_check_that_stands_there_twice_is_refused() -> None:
    with pytest.raises(DefinitionError, match="a check stands there twice"):
        plan_validation(source(hr.mean(Trips.seat) <= 1, hr.mean(Trips.seat) <= 1))


def test_sql_reaches_no_files(tmp_path: Any) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    definition = source(hr.measure(f"select count(*) from '{tmp_path}/secret.csv'") <= 0)
    with pytest.raises(UserCodeError, match="a check's SQL failed"):
        Validator(definition).validate(batch(definition, trip("a")), now=START)


def test_a_function_that_raises_or_answers_wrongly_is_the_users_own() -> None:
    for function, what in ((lambda table: 1 / 0, "raised ZeroDivisionError"), (lambda table: [1], "for each row")):
        definition = source(hr.check_rows(function, Trips.trip))
        with pytest.raises(UserCodeError, match=what):
            Validator(definition).validate(batch(definition, trip("a"), trip("b")), now=START)


def test_large_integers_are_never_rounded() -> None:
    found = validate(Numbers, numbers(size=pa.array([BIG, BIG + 1, None], pa.int64())))
    assert found[f"Numbers.size <= {BIG}"].samples == ("1",)
    assert found["max"].status == "failed"
    assert found["max"].measured == f"{BIG + 1} over 2 values"


def test_a_pattern_takes_linear_time_whatever_the_text() -> None:
    found = validate(Numbers, numbers(text=["a" * 200_000, "aab", None]))
    assert found["Numbers.text matches"].samples == ("0",)


def test_decimals_and_texts_for_numbers_are_another_type() -> None:
    for values in (pa.array([decimal.Decimal("1.5")]), pa.array(["1"])):
        with pytest.raises(SchemaChanged, match="retyped"):
            validate(Numbers, numbers(size=values))
    with pytest.raises(SchemaChanged, match="removed"):
        validate(Numbers, numbers(size=[1]).drop_columns(["text"]))
    with pytest.raises(UsageError, match="nothing that can be checked"):
        validate(Numbers, 7)


def test_empty_and_null_tables_pass_with_every_check_listed() -> None:
    empty, null = (
        validate(Numbers, numbers(size=pa.array([], pa.int64()))),
        validate(Numbers, numbers(size=pa.nulls(3))),
    )
    assert (empty.action, null.action) == ("pass", "pass")
    assert [r.name for r in empty.results] == [r.name for r in null.results]
    assert empty["max"].status == null["max"].status == "undefined"


def test_columns_among_ten_thousand_are_checked() -> None:
    columns: dict[str, Any] = {f"c{i}": hr.column(ge=0) for i in range(9_940, 10_000)}
    fixed = {"__annotations__": {"name": hr.Column[int], "at": hr.Column[hr.Instant]}, "name": hr.row_id()}
    fixed["__annotations__"] |= dict.fromkeys(columns, hr.Column[int])
    wide = type("Wide", (hr.Source,), fixed | {"at": hr.event_time(), "__module__": __name__} | columns)
    table = numbers(size=[1, 2]).select(["name", "at"])
    for i in range(10_000):
        table = table.append_column(f"c{i}", pa.array([1, -1 if i == 9_999 else 1]))
    found = validate(wide, table)
    assert [r.name for r in found.failed if r.severity == "quarantine"] == ["Wide.c9999 >= 0"]


def test_files_are_read_in_pieces_and_a_broken_one_is_named(tmp_path: Any) -> None:
    path = tmp_path / "numbers.parquet"
    table = numbers(size=pa.array(range(1_000)), text=pa.array(["ab", "aab"] * 500))
    pq.write_table(table, path, row_group_size=300)
    found = validate(Numbers, path, block_rows=70)
    assert (found.rows, found["unique"].failing, found["unique"].rows) == (1_000, 998, 1_000)
    assert found.quarantined.num_rows == 998
    (tmp_path / "broken.parquet").write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="the data cannot be read"):
        validate(Numbers, [path, tmp_path / "broken.parquet"])


def test_more_keys_than_memory_holds_go_to_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "HELD", 500)
    names = np.random.default_rng(1).permutation(3_000)
    names[2_900:] = names[:100]
    table = numbers(text=pa.array([f"a{n}" for n in names])).set_column(0, "name", pa.array(names))
    found = validate(Numbers, table, block_rows=250)
    assert found["unique"].failing == 100


@pytest.mark.parametrize("values", [["north", "south", ""], [3, 5, 2**62, -(2**62)], [1.5, -0.0, 3.0]])
def test_a_set_of_keys_knows_its_own(values: list[Any]) -> None:
    known = KeySet(pa.array(values))
    strange = {str: "east", int: 4, float: 2.5}[type(values[0])]
    lacking = known.lacks(pa.array([*values, strange, None]))
    assert lacking is not None
    assert lacking.tolist() == [False] * len(values) + [True, False]
    assert KeySet(pa.array([], pa.array(values).type)).lacks(pa.array(values)) is not None
    assert known.lacks(pa.array(values)) is None


def test_a_baseline_survives_json_and_holds_nothing_private() -> None:
    class People(hr.Source):
        name: hr.Column[str] = hr.row_id()
        at: hr.Column[hr.Instant] = hr.event_time()
        mail: hr.Column[str] = hr.column(pii=True)
        city: hr.Column[str] = hr.column()

    definition = definition_of(People)
    table = pa.table({"name": ["a", "b"], "at": [0, 1], "mail": ["x@y", "z@y"], "city": ["Bern", "Bern"]})
    held = baseline_of(definition, table)
    assert list(held) == ["city"]
    assert baseline_from_dict(baseline_to_dict(held)) == held
    with pytest.raises(DataError, match="not a baseline of this version"):
        baseline_from_dict({"format": 99})
