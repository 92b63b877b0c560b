"""Features of computed values are the same offline and online: `Group.test` computes both and compares the bits."""

from __future__ import annotations

from random import Random
from typing import Any

import headrace as hr
from headrace.core.expressions import Column
from headrace.core.time import DAY
from headrace.features.plan import plan_features
from headrace.sources.definition import definition_of
from headrace.testing.oracle import parity, reveal


class Trips(hr.Source):
    trip: hr.Column[str] = hr.row_id()
    started: hr.Column[hr.Instant] = hr.event_time()
    city: hr.Column[str] = hr.entity()
    meters: hr.Column[int | None] = hr.column()
    fare: hr.Column[float | None] = hr.column(allow_nan=True)
    note: hr.Column[str | None] = hr.column()


class City(hr.FeatureGroup, of=Trips, entity=Trips.city):
    km = hr.sum(Trips.meters // 1000).over("1d")
    huge = hr.count(Trips.meters * Trips.meters).over("1d")  # an overflow is null, and not counted
    night = hr.rate(Trips.started.hour("Europe/Paris").isin([0, 1, 2])).over("1d")
    noted = hr.count(Trips.note.strip().lower(), where=Trips.note.contains("Rain") & ~Trips.fare.is_nan()).over("1d")
    fare = hr.max(hr.if_else(Trips.fare.is_nan(), None, Trips.fare.clip(0, 9))).over("1d")


EVENTS: list[dict[str, Any]] = [
    {"trip": "a", "started": "2024-03-30T23:30:00Z", "city": "x", "meters": 1999, "fare": 12.5, "note": " Rain "},
    {
        "trip": "b",
        "started": "2024-03-31T01:30:00Z",
        "city": "x",
        "meters": 2**40,
        "fare": float("nan"),
        "note": "Rain",
    },
    {"trip": "c", "started": "2024-03-31T02:00:00Z", "city": "x", "meters": None, "fare": 0.1, "note": None},
]


def test_computed_values_are_the_same_offline_and_online() -> None:
    assert City.test(EVENTS, at="2024-03-31T03:00:00Z") == {
        "City.km[1d]": 1 + 2**40 // 1000,
        "City.huge[1d]": 1,
        "City.night[1d]": 1 / 3,
        "City.noted[1d]": 1,
        "City.fare[1d]": 9.0,
    }


class Parcels(hr.Source):
    parcel: hr.Column[str] = hr.row_id()
    sent: hr.Column[hr.Instant] = hr.event_time()
    city: hr.Column[str] = hr.entity()
    street: hr.Column[str | None] = hr.column(known_at=sent + "1h")
    house: hr.Column[str | None] = hr.column(known_at=sent + "2h")


class Address(hr.FeatureGroup, of=Parcels, entity=Parcels.city):
    newest = hr.last(Parcels.street + Parcels.house).over("3d")


def test_a_text_of_cells_that_came_apart_is_the_same_offline_and_online() -> None:
    sent: dict[Column[Any], Any] = {Parcels.parcel: "1", Parcels.sent: 0}
    said: list[tuple[Column[Any], str, int]] = [
        (Parcels.city, "x", 0),
        (Parcels.street, "Rue ", DAY),
        (Parcels.house, "7", DAY + 1),
    ]
    log = [("Parcels", reveal(definition_of(Parcels), sent | {cell: text}, at)) for cell, text, at in said]
    assert parity(plan_features([Address], ""), log, [(["x"], DAY), (["x"], 2 * DAY)], random=Random(1)) == 4
