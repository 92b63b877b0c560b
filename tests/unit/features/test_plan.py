"""Plans: what would leak, lacks a key or does not fit is refused before any data is read, with its line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import headrace as hr
from headrace.core.errors import DefinitionError, HeadraceError, LeakageError, SchemaConflict, UnknownColumn
from headrace.core.time import DAY, HOUR
from headrace.features.lane_plan import plan_group
from headrace.features.plan import plan_dataset
from headrace.features.windows import ValueType


class Flights(hr.Source):
    flight: hr.Column[str] = hr.row_id()
    sched: hr.Column[hr.Instant] = hr.event_time()
    origin: hr.Column[str] = hr.entity()
    dest: hr.Column[str] = hr.entity()
    tail: hr.Column[str | None] = hr.entity(known_at=sched - "12h")
    left: hr.Column[hr.Instant | None] = hr.column()
    landed: hr.Column[hr.Instant | None] = hr.column()
    dep: hr.Column[float | None] = hr.column(known_at=left)
    arr: hr.Column[float | None] = hr.column(known_at=landed)

    known_at = sched - "30d"


class Sky(hr.Source):
    place: hr.Column[str] = hr.entity()
    hour: hr.Column[hr.Instant] = hr.event_time()
    temp: hr.Column[float | None] = hr.column()
    row_id = hr.row_id(place, hour)


class Origin(hr.FeatureGroup, of=Flights, entity=Flights.origin):
    dep = hr.mean(Flights.dep).over("1h", "24h")
    late = hr.rate(Flights.arr > 15).over("24h")


class Now(hr.FeatureGroup, of=Sky, entity=Sky.place):
    temp = hr.latest(Sky.temp, max_age="3h")


def dataset(*features: Any, at: Any = None, label: Any = None) -> hr.Dataset:
    moment = Flights.sched - "1h" if at is None else at
    return hr.Dataset(
        rows=Flights,
        at=moment,
        features=list(features),
        label=Flights.arr > 15 if label is None else label,
        mature="2d",
    )


def test_a_lane_holds_what_shares_a_moment_and_is_known_when_everything_it_reads_is() -> None:
    lanes = plan_group(Origin).lanes
    assert [str(lane.moment) for lane in lanes] == [
        "latest of Flights.left, (Flights.sched - 30d)",
        "latest of Flights.landed, (Flights.sched - 30d)",
    ]
    assert [lane.lane.windows for lane in lanes] == [(HOUR, DAY), (DAY,)]
    assert lanes[1].lane.values == (ValueType.BOOL,)


def test_columns_are_named_and_typed_in_the_order_of_the_features() -> None:
    plan = plan_dataset(dataset(Flights.dest, Origin, Now.on(Flights.origin)))
    assert [(c.name, c.dtype, c.origin) for c in plan.columns] == [
        ("Flights.dest", "str", "row"),
        ("Origin.dep[1h]", "float", "window"),
        ("Origin.dep[24h]", "float", "window"),
        ("Origin.late[24h]", "float", "window"),
        ("Now.temp", "float", "latest"),
    ]
    assert [c.name for c in plan.request] == ["flight", "sched", "origin", "dest", "tail"]


def test_a_group_in_two_roles_gets_two_names() -> None:
    plan = plan_dataset(dataset(Now.on(Flights.origin), Now.on(Flights.dest)))
    assert [c.name for c in plan.columns] == ["Now@origin.temp", "Now@dest.temp"]
    assert len(plan.groups) == 1


def test_one_part_of_a_feature_can_be_chosen() -> None:
    assert [c.name for c in plan_dataset(dataset(Origin.dep["24h"])).columns] == ["Origin.dep[24h]"]


@pytest.mark.parametrize(
    "features",
    [lambda: [Flights.dep], lambda: [Flights.arr, Origin], lambda: [Flights.left]],
    ids=["departure", "arrival", "instant"],
)
def test_what_may_become_known_later_is_leakage(features: Callable[[], list[Any]]) -> None:
    with pytest.raises(LeakageError, match="would leak") as error:
        plan_dataset(dataset(*features()))
    message = str(error.value)
    assert "test_plan.py:" in message
    assert "expected: known at or before (Flights.sched - 1h)" in message
    assert "next:     use a window over earlier rows" in message


def test_a_key_must_be_known_too() -> None:
    class Aircraft(hr.FeatureGroup, of=Flights, entity=Flights.tail):
        last = hr.latest(Flights.arr)

    plan_dataset(dataset(Aircraft))
    with pytest.raises(LeakageError, match=r"Flights.tail would leak"):
        plan_dataset(dataset(Aircraft, at=Flights.sched - "13h"))


def wrong_group() -> Any:
    class Wrong(hr.FeatureGroup, of=Sky, entity=Sky.place):
        x = hr.mean(Flights.dep).over("1h")

    return plan_group(Wrong)


def no_window() -> Any:
    class Windowless(hr.FeatureGroup, of=Flights, entity=Flights.origin):
        x = hr.mean(Flights.dep)

    return Windowless


def mean_of_text() -> Any:
    class Text(hr.FeatureGroup, of=Flights, entity=Flights.origin):
        x = hr.mean(Flights.dest).over("1h")  # type: ignore[arg-type]

    return plan_group(Text)


def two_of_one_name() -> Any:
    group = other_flights()
    return plan_dataset(dataset(group.on(Flights.dest)))


def other_flights() -> Any:
    class Flights(hr.Source):
        flight: hr.Column[str] = hr.row_id()
        at: hr.Column[hr.Instant] = hr.event_time()
        x: hr.Column[float] = hr.column()

    class Group(hr.FeatureGroup, of=Flights, entity=Flights.flight):
        x = hr.mean(Flights.x).over("1h")

    return Group


MISTAKES: dict[str, tuple[Callable[[], Any], type[HeadraceError], str]] = {
    "a group without its key": (lambda: plan_dataset(dataset(Now)), DefinitionError, "which no row of Flights has"),
    "a column of another source": (lambda: plan_dataset(dataset(Sky.temp)), DefinitionError, "no column of Flights"),
    "another source's column in a group": (wrong_group, DefinitionError, "reads a column of another source"),
    "no window": (no_window, DefinitionError, "has no window"),
    "an impossible window": (lambda: hr.mean(Flights.dep).over("-1h"), DefinitionError, "not a duration"),
    "a window twice": (lambda: hr.mean(Flights.dep).over("60m", "1h"), DefinitionError, "each once"),
    "a mean of texts": (mean_of_text, DefinitionError, "cannot take str values"),
    "a feature twice": (lambda: plan_dataset(dataset(Origin, Origin.late)), SchemaConflict, "listed twice"),
    "an unknown part": (lambda: Origin.dep["2h"], UnknownColumn, "has no part 2h"),
    "no features": (lambda: plan_dataset(dataset()), DefinitionError, "without features"),
    "a quantile outside": (lambda: hr.quantile(Flights.dep, 1.5), DefinitionError, "not a quantile"),
    "a misspelt feature": (lambda: Origin.depp, UnknownColumn, "did you mean dep?"),  # type: ignore[attr-defined]
    "a misspelt column": (lambda: Flights.orign, UnknownColumn, "did you mean origin?"),  # type: ignore[attr-defined]
    "a label elsewhere": (lambda: plan_dataset(dataset(Origin, label=Sky.temp > 1)), DefinitionError, "the label"),
    "two sources of one name": (two_of_one_name, SchemaConflict, "two sources of one name"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_its_place(name: str) -> None:
    make, kind, text = MISTAKES[name]
    with pytest.raises(kind) as error:
        make()
    assert text in str(error.value)
    assert error.value.where
    assert "test_plan.py:" in error.value.where


def test_a_changed_definition_is_another_version() -> None:
    class A(hr.FeatureGroup, of=Flights, entity=Flights.origin):
        x = hr.mean(Flights.dep).over("1h")

    first = plan_group(A).hash

    class A(hr.FeatureGroup, of=Flights, entity=Flights.origin):  # type: ignore[no-redef]
        x = hr.mean(Flights.dep).over("1h")

    assert plan_group(A).hash == first

    class A(hr.FeatureGroup, of=Flights, entity=Flights.origin):  # type: ignore[no-redef]
        x = hr.mean(Flights.dep).over("2h")

    assert plan_group(A).hash != first


def test_an_on_demand_function_binds_every_parameter() -> None:
    with pytest.raises(DefinitionError, match="each parameter needs a column"):

        @hr.on_demand(x=Flights.dest)
        def f(x: str, y: str) -> int:
            return 1

    @hr.on_demand(dep=Origin.dep["1h"])
    def doubled(dep: float) -> float:
        return dep * 2

    assert plan_dataset(dataset(Origin, doubled)).columns[-1].name == "doubled"
    with pytest.raises(DefinitionError, match="which the dataset does not have"):
        plan_dataset(dataset(Flights.dest, doubled))


def test_a_bound_of_zero_is_part_of_a_sources_definition() -> None:
    from headrace.sources.definition import definition_of, describe

    class Rides(hr.Source):
        ride: hr.Column[str] = hr.row_id()
        at: hr.Column[hr.Instant] = hr.event_time()
        fare: hr.Column[float] = hr.column(ge=0, le=0)

    assert {"ge": 0, "le": 0}.items() <= describe(Rides.fare).items()
    assert definition_of(Rides).hash
