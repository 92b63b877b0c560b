"""Verdicts on deliveries: what passes, what is kept aside, what stops everything, and what is remembered between."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.errors import ChecksFailed, DataError, SchemaChanged
from headrace.core.expressions import Column
from headrace.core.time import DAY, HOUR, Instant
from headrace.sources.definition import Source, SourceDefinition, column, definition_of, event_time, row_id
from headrace.sources.plan import reveal_of
from headrace.sources.record import ARRIVAL, RevealBatch
from headrace.sources.run import batch_of
from headrace.sources.values import refusal_schema
from headrace.validation.definition import Checks, foreign_key, freshness, null_rate, row_count, warn
from headrace.validation.record import CheckResult, Held, Verdict
from headrace.validation.run import KnownKeys, Validator

START = Instant.parse("2013-07-01T00:00:00Z")
Event = dict[str, Any]


class Planes(Source):
    tail: Column[str] = row_id()
    built: Column[Instant] = event_time()


class Trips(Source):
    trip: Column[str] = row_id()
    start: Column[Instant] = event_time()
    plane: Column[str | None] = column()
    ended: Column[Instant | None] = column()
    delay: Column[float | None] = column(ge=-60, le=600, known_at=ended, due=start + "24h")


def source(*checks: Any, **options: Any) -> SourceDefinition:
    """Return the trips' definition with other checks."""
    definition = definition_of(Trips)
    fields = {name: getattr(definition, name) for name in definition.__dataclass_fields__}
    return SourceDefinition(**fields | {"checks": Checks(*checks, **options)})


def batch(definition: SourceDefinition, *events: Event) -> RevealBatch:
    return batch_of(definition, [reveal for event in events for reveal in reveal_of(definition, event)])


def trip(name: str, at: int = START, **more: Any) -> Event:
    return {"trip": name, "start": int(at), ARRIVAL: int(at), **more}


def result(verdict: Verdict, name: str) -> CheckResult:
    return next(r for r in verdict.results if r.name.startswith(name))


def test_a_clean_delivery_passes_whole() -> None:
    definition = source()
    delivery = batch(definition, trip("a"), trip("b", ended=int(START), delay=5.0))
    verdict = Validator(definition).validate(delivery, now=START + DAY)
    assert (verdict.action, verdict.rows, verdict.failed) == ("pass", 3, ())
    assert verdict.accepted.table is delivery.table
    assert verdict.quarantined.num_rows == 0
    verdict.raise_if_stopped()


def test_bad_rows_are_kept_aside_with_reason_payload_and_position() -> None:
    definition = source()
    bad = trip("b", ended=int(START), delay=900.0)
    verdict = Validator(definition).validate(batch(definition, trip("a"), bad), now=START, where="flights.csv")
    assert verdict.action == "quarantine"
    assert [reveal.values for reveal in verdict.accepted.reveals()] == [("a", START), ("b", START)]
    row = verdict.quarantined.to_pylist()[0]
    assert (len(row.pop("id")), row.pop("at"), row.pop("stated")) == (32, START, "19")
    assert row.pop("content") == next(r.content for r in reveal_of(definition, bad) if r.places == (0, 3, 4))
    assert json.loads(row.pop("payload")) == {"trip": "b", "ended": "2013-07-01T00:00:00Z", "delay": 900.0}
    assert row == {
        "source": "Trips",
        "position": "flights.csv",
        "reason": "Trips.delay <= 600",
        "row_id": b"s\0\0\0\1b",
        "arrival": START,
    }
    failed = verdict.failed[0]
    assert (failed.rows, failed.failing, failed.share, failed.samples) == (1, 1, 1.0, ("b",))


def test_bad_rows_that_only_warn_pass() -> None:
    definition = source(bad_rows="warn")
    delivery = batch(definition, trip("a"), trip("b", ended=int(START), delay=900.0))
    verdict = Validator(definition).validate(delivery, now=START)
    assert (verdict.action, len(verdict.accepted), verdict.failed[0].severity) == ("pass", 3, "warn")


def test_bad_rows_that_stop_accept_nothing() -> None:
    definition = source(bad_rows="stop")
    delivery = batch(definition, trip("a"), trip("b", ended=int(START), delay=900.0))
    verdict = Validator(definition).validate(delivery, now=START)
    assert (verdict.action, len(verdict.accepted), verdict.quarantined.num_rows) == ("stop", 0, 1)
    with pytest.raises(ChecksFailed) as error:
        verdict.raise_if_stopped()
    assert str(error.value) == (
        "Trips: a check stopped the delivery: Trips.delay <= 600\n"
        f"  where:    {definition.location}, verdict of 2013-07-01T00:00:00Z\n"
        "  got:      1 of 1 rows break it (b)\n"
        "  expected: none\n"
        "  next:     repair the data and deliver again; a check that may fail is written hr.warn(check)"
    )


@pytest.mark.parametrize(("bad", "action"), [(1, "quarantine"), (2, "stop")])
def test_too_many_bad_rows_stop(bad: int, action: str) -> None:
    definition = source(max_bad=0.34)
    refused = pa.Table.from_pylist(
        [{"position": "x, row 7", "reason": "no id", "payload": "{}"}] * bad, refusal_schema()
    )
    delivery = batch(definition, trip("a"), trip("b"))
    verdict = Validator(definition).validate(delivery, now=START, refused=refused)
    assert (verdict.action, verdict.rows) == (action, 2 + bad)
    assert result(verdict, "rows can be read").samples == ("x, row 7",) * bad
    assert verdict.quarantined["reason"].to_pylist() == ["no id"] * bad
    assert verdict.quarantined["row_id"].null_count == bad


def test_a_row_that_breaks_several_rules_names_them_all() -> None:
    definition = source()
    delivery = batch(definition, *[trip(n) for n in "abc"], {"trip": "d", "start": 2**60, ARRIVAL: 0})
    verdict = Validator(definition).validate(delivery, now=START)
    assert verdict.quarantined["reason"].to_pylist() == ["Trips.start is in the years 1 to 9999"]
    assert result(verdict, "Trips.start is in the years").failing == 1


def test_retyped_and_removed_columns_stop() -> None:
    definition = source()
    table = batch(definition, trip("a")).table
    place = table.schema.get_field_index("delay")
    changed = table.set_column(place, "delay", pa.nulls(1, pa.string())).drop_columns(["plane"])
    verdict = Validator(definition).validate(RevealBatch(definition, changed), now=START)
    assert (verdict.action, len(verdict.accepted)) == ("stop", 0)
    with pytest.raises(SchemaChanged) as error:
        verdict.raise_if_stopped()
    assert error.value.got == "plane: absent; delay: string"
    assert error.value.expected == "plane: string; delay: double"


def test_extra_columns_pass() -> None:
    definition = source()
    table = batch(definition, trip("a")).table
    delivery = RevealBatch(definition, table.append_column("more", pa.array([1])))
    assert Validator(definition).validate(delivery, now=START).action == "pass"


def test_a_schema_change_found_while_reading_is_a_verdict_too() -> None:
    error = SchemaChanged("Trips.delay was retyped", got="delay (retyped): string", expected="delay: float")
    verdict = Validator(source()).stopped_by(error, START)
    assert verdict.to_dict()["results"][0]["reason"] == "Trips.delay was retyped"
    with pytest.raises(SchemaChanged):
        verdict.raise_if_stopped()


def test_references_to_nothing_are_bad_rows() -> None:
    definition = source(foreign_key(Trips.plane, Planes.tail))
    keys = KnownKeys([Planes.tail])
    keys.learn(batch(definition_of(Planes), {"tail": "N1", "built": 0, ARRIVAL: 0}))
    delivery = batch(definition, *[trip(str(i), plane=p) for i, p in enumerate(["N1", "N2", None])])
    verdict = Validator(definition).validate(delivery, now=START, known=keys)
    assert verdict.quarantined["reason"].to_pylist() == ["foreign_key(Trips.plane, Planes.tail)"]
    assert (result(verdict, "foreign_key").rows, result(verdict, "foreign_key").samples) == (2, ("1",))
    again = KnownKeys([Planes.tail], json.loads(json.dumps(keys.dump())))
    assert again(Planes.tail, ["N1", "N2"]) == {"N1"}
    undecided = Validator(definition).validate(delivery, now=START)
    assert (undecided.action, result(undecided, "foreign_key").status) == ("pass", "undefined")


def test_references_that_only_warn_pass() -> None:
    definition = source(warn(foreign_key(Trips.plane, Planes.tail)))
    delivery = batch(definition, trip("a", plane="N2"))
    verdict = Validator(definition).validate(delivery, now=START, known=KnownKeys([Planes.tail]))
    assert (verdict.action, len(verdict.accepted), verdict.failed[0].failing) == ("pass", 1, 1)


def test_the_share_that_known_at_held_for_is_measured() -> None:
    definition = source()
    early = trip("b", ended=int(START + HOUR), delay=1.0) | {ARRIVAL: int(START)}
    late = trip("c", ended=int(START), delay=1.0) | {ARRIVAL: int(START + HOUR)}
    verdict = Validator(definition).validate(batch(definition, trip("a"), early, late), now=START)
    assert verdict.held == {"trip": Held(3, 3), "start": Held(3, 3), "ended": Held(2, 1), "delay": Held(2, 1)}
    assert verdict.to_dict()["known_at"]["delay"] == {"values": 2, "share": 0.5}
    assumed = Validator(definition).validate(batch(definition, early), now=START, observed=False)
    assert assumed.held == {}


def test_private_ids_are_not_shown() -> None:
    class Patients(Source):
        patient: Column[str] = row_id()
        at: Column[Instant] = event_time()
        age: Column[int] = column(le=130)

    object.__setattr__(Patients.patient, "pii", True)
    definition = definition_of(Patients)
    people = [{"patient": f"Ada{i}", "at": 0, "age": 99 + i * 50, ARRIVAL: 0} for i in range(2)]
    verdict = Validator(definition).validate(batch(definition, *people), now=START)
    assert verdict.failed[0].failing == 1
    assert "Ada" not in json.dumps(verdict.to_dict())


def test_null_rates_count_rows_past_due() -> None:
    definition = source(warn(null_rate(Trips.delay) <= 0.5))
    validator = Validator(definition)

    def share(now: int, *events: Event) -> float | None:
        return result(validator.validate(batch(definition, *events), now=now), "null_rate").value

    assert share(START + HOUR, trip("a"), trip("b"), trip("c"), trip("d", START + DAY)) is None
    in_time = {"trip": "a", "ended": START + 2 * HOUR, "delay": 5.0, ARRIVAL: int(START + 2 * HOUR)}
    assert share(START + DAY - 1, in_time) is None
    assert share(START + DAY) == pytest.approx(2 / 3)
    too_late = {"trip": "b", "ended": START + DAY, "delay": 5.0, ARRIVAL: int(START + DAY + 1)}
    assert share(START + DAY + HOUR, too_late, trip("a")) == pytest.approx(2 / 3)
    assert share(START + 2 * DAY) == pytest.approx(3 / 4)


def test_a_null_rate_above_its_limit_stops_or_warns() -> None:
    for check, action in ((null_rate(Trips.delay) <= 0.5, "stop"), (warn(null_rate(Trips.delay) <= 0.5), "pass")):
        definition = source(check)
        verdict = Validator(definition).validate(batch(definition, trip("a")), now=START + DAY)
        assert verdict.action == action
        assert verdict.failed[0].measured == "1 of 1 rows due in 30d"
        assert verdict.failed[0].threshold == "<= 0.5"


def test_null_rates_forget_what_is_past_their_period() -> None:
    definition = source(warn(null_rate(Trips.delay) <= 0.5))
    validator = Validator(definition, null_period=2 * DAY)
    first = validator.validate(batch(definition, trip("a")), now=START + DAY)
    later = validator.validate(batch(definition), now=START + 3 * DAY)
    assert (first.failed[0].rows, result(later, "null_rate").status) == (1, "undefined")


def test_null_rates_without_due_count_on_arrival() -> None:
    definition = source(warn(null_rate(Trips.plane) <= 0.4))
    delivery = batch(definition, trip("a", plane=None), trip("b", plane="N1"))
    assert Validator(definition).validate(delivery, now=START).failed[0].value == 0.5


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), min_size=1, max_size=12), st.integers(1, 40))
def test_null_rates_do_not_depend_on_how_deliveries_are_cut(trips: list[tuple[int, bool]], hours: int) -> None:
    definition = source(warn(null_rate(Trips.delay) <= 0.5))
    events = [
        trip(str(i), START + at * HOUR) | ({"ended": int(START + at * HOUR), "delay": 1.0} if there else {})
        for i, (at, there) in enumerate(trips)
    ]
    whole = Validator(definition).validate(batch(definition, *events), now=START + 3 * DAY)
    validator = Validator(definition)
    for begin in range(0, 72, hours):
        part = [e for e in events if begin <= (e[ARRIVAL] - START) // HOUR < begin + hours]
        now = min(START + (begin + hours) * HOUR, START + 3 * DAY)
        last = validator.validate(batch(definition, *part), now=now)
        validator = Validator(definition, state=json.loads(json.dumps(validator.dump())))
    assert result(last, "null_rate") == result(whole, "null_rate")
    assert result(whole, "null_rate").value == sum(not there for _, there in trips) / len(trips)


def count_after(validator: Validator, definition: SourceDefinition, day: int, rows: int) -> CheckResult:
    events = [trip(f"{day}-{i}", START + day * DAY) for i in range(rows)]
    return result(validator.validate(batch(definition, *events), now=START + (day + 1) * DAY), "row_count")


def test_row_counts_are_compared_with_the_days_before() -> None:
    definition = source(row_count().within(0.5, of="3d"))
    validator = Validator(definition)
    first = [count_after(validator, definition, day, 4) for day in range(3)]
    assert [r.status for r in first] == ["undefined"] * 3
    assert first[2].reason == "fewer than 3 days before 2013-07-03 have been seen"
    assert count_after(validator, definition, 3, 6).status == "passed"
    low = count_after(validator, definition, 4, 2)
    assert (low.status, low.value, low.samples) == ("failed", 2.0, ("2013-07-05",))
    assert low.measured == "2 rows on 2013-07-05"
    assert low.threshold == "within 0.5 of 4.7, the mean of 3d before"


def test_a_day_without_rows_fails() -> None:
    definition = source(warn(row_count() >= 1))
    validator = Validator(definition)
    assert count_after(validator, definition, 0, 2).status == "passed"
    silent = result(validator.validate(batch(definition), now=START + 3 * DAY), "row_count")
    assert (silent.status, silent.rows, silent.samples) == ("failed", 2, ("2013-07-02", "2013-07-03"))
    assert result(validator.validate(batch(definition), now=START + 3 * DAY), "row_count").status == "undefined"


def test_restated_and_moved_rows_count_once() -> None:
    definition = source(warn(row_count() >= 1))
    validator = Validator(definition)
    validator.validate(batch(definition, trip("a"), trip("b")), now=START)
    again = [trip("a"), trip("a") | {"start": int(START + DAY), ARRIVAL: int(START + 1)}]
    found = result(validator.validate(batch(definition, *again), now=START + DAY), "row_count")
    assert found.measured == "1 rows on 2013-07-01"


def test_announced_rows_count_on_their_own_day() -> None:
    definition = source(warn(row_count() >= 2))
    validator = Validator(definition)
    announced = [trip(n, START + 5 * DAY) | {ARRIVAL: int(START)} for n in "ab"]
    assert result(validator.validate(batch(definition, *announced), now=START + DAY), "row_count").status == "undefined"
    assert result(validator.validate(batch(definition), now=START + 6 * DAY), "row_count").status == "passed"


def test_freshness_is_the_age_of_the_newest_arrival() -> None:
    definition = source(freshness() <= "3h")
    validator = Validator(definition)
    assert result(validator.validate(batch(definition), now=START), "freshness").status == "undefined"
    assert validator.validate(batch(definition, trip("a")), now=START + 3 * HOUR).action == "pass"
    stale = validator.validate(batch(definition, trip("b", START - HOUR)), now=START + 3 * HOUR + 1)
    assert stale.action == "stop"
    assert stale.failed[0].measured == "10800000001us, since 2013-07-01T00:00:00Z"
    assert stale.failed[0].threshold == "<= 3h"


def test_a_stopped_delivery_leaves_no_trace() -> None:
    definition = source(null_rate(Trips.delay) <= 0.5, warn(row_count() >= 1), warn(freshness() <= "3h"))
    validator = Validator(definition)
    validator.validate(batch(definition, trip("a"), trip("b", START + DAY)), now=START + HOUR)
    before = validator.dump()
    assert validator.validate(batch(definition, trip("c", START + HOUR)), now=START + DAY).action == "stop"
    assert validator.dump() == before


def test_a_stream_keeps_its_good_rows_when_a_measure_fails_and_nothing_when_rows_do() -> None:
    definition = source(freshness() <= "3h", max_bad=0.4)
    validator = Validator(definition)
    stale = validator.validate(batch(definition, trip("a")), now=START + DAY, streaming=True)
    assert (stale.action, len(stale.accepted)) == ("stop", 1)
    bad = batch(definition, {"trip": "b", "start": 2**60, ARRIVAL: int(START + DAY)})
    before = validator.dump()
    flooded = validator.validate(bad, now=START + DAY, streaming=True)
    assert (flooded.action, len(flooded.accepted), flooded.quarantined.num_rows) == ("stop", 0, 1)
    assert validator.dump() == before


def test_a_state_of_another_version_is_refused() -> None:
    with pytest.raises(DataError) as error:
        Validator(source(), state={"format": 99})
    assert error.value.next_step == "start without state: the checks then begin a new history"


def test_a_verdict_is_plain_json() -> None:
    definition = source(row_count().within(0.5, of="7d"))
    verdict = Validator(definition).validate(batch(definition, trip("a")), now=START + DAY)
    found = json.loads(json.dumps(verdict.to_dict()))
    assert (found["action"], found["rows"], found["accepted"], found["quarantined"]) == ("pass", 1, 1, 0)
    assert found["results"] == [
        {
            "name": "row_count() within 0.5 of the mean day of 7d",
            "severity": "stop",
            "status": "undefined",
            "reason": "fewer than 7 days before 2013-07-01 have been seen",
        }
    ]
    assert ["Trips.delay <= 600", "quarantine", 0, None] in found["passed"]
