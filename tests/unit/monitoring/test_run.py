"""One tick: due monitors are evaluated into one record, incidents follow, and what follows from them is returned."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

import numpy as np
import pytest

import headrace as hr
from headrace.core.errors import DefinitionError, Unavailable
from headrace.core.time import DAY
from headrace.monitoring.definition import Monitor
from headrace.monitoring.incidents import Incidents, StreamChannel
from headrace.monitoring.performance import LiveWindow
from headrace.monitoring.plan import Held, MonitoringState, Retrain
from headrace.monitoring.run import Monitoring, evaluate
from headrace.storage.ledger.protocol import Entry

NOW = 1_000 * DAY
AUC = hr.when(hr.live("auc", over="7d", matured="1d") < 0.68, every="1d").alert("ops").retrain()


class Flights(hr.Source):
    flight_id: hr.Column[str] = hr.row_id()
    sched_dep: hr.Column[hr.Instant] = hr.event_time()
    delay: hr.Column[float | None] = hr.column()


DATASET = hr.Dataset(rows=Flights, at=Flights.sched_dep - "1h", features=[], label=Flights.delay > 15, mature="1d")


def serve(live: LiveWindow, day: int, *, good: bool, rows: int = 60) -> None:
    rng = np.random.default_rng(day)
    for i in range(rows):
        t, row = NOW + day * DAY + i, f"{day}/{i}".encode()
        label = float(i % 2)
        score = 0.5 * rng.random() + (0.5 * label if good else 0)
        live.append(row, t, score, version="v1", latency=2_000.0)
        live.label(row, label, arrived=t + 1)


def started(ledger: list[Entry], text: io.StringIO) -> Monitoring:
    incidents = Incidents(ledger.extend, {"ops": StreamChannel(text)})
    state = MonitoringState(trained=NOW, attempted=NOW)
    return Monitoring([AUC], [], pipeline="late", live=LiveWindow(), incidents=incidents, state=state)


def test_a_model_that_decays_opens_one_incident_and_asks_for_one_retraining() -> None:
    ledger, text = list[Entry](), io.StringIO()
    monitoring, followed = started(ledger, text), list[tuple[int, Retrain | Held]]()
    for day in range(40):
        serve(monitoring.live, day, good=day < 12)
        for action in monitoring.tick(NOW + (day + 1) * DAY):
            followed.append((day, action))
            if isinstance(action, Retrain):
                monitoring.state = monitoring.state.retraining_began(NOW + (day + 1) * DAY)
    retrains = [day for day, action in followed if isinstance(action, Retrain)]
    assert len(retrains) == 1 and 13 <= retrains[0] <= 20
    assert text.getvalue().count("\n") == 1
    kinds = [entry.kind for entry in ledger]
    assert kinds.count("monitors.evaluated") == 40
    assert kinds.count("incident.opened") == 1
    cause = followed[0][1].causes[0]
    assert cause.rule == 'live("auc", over="7d", matured="1d") < 0.68'
    assert "labelled rows" in cause.found
    for entry in ledger:
        json.dumps(entry.body, allow_nan=False)


def test_a_monitoring_restored_from_its_checkpoint_goes_on_as_if_nothing_had_happened() -> None:
    first, second = (list[Entry](), io.StringIO()), (list[Entry](), io.StringIO())
    whole, halved = started(*first), started(*second)
    for day in range(30):
        if day == 17:
            body, live = json.loads(json.dumps(halved.dump())), LiveWindow.load(halved.live.dump())
            halved = started(*second)
            halved.live = live
            halved.restore(body)
        for monitoring in (whole, halved):
            serve(monitoring.live, day, good=day < 12)
            monitoring.tick(NOW + (day + 1) * DAY)
    assert first[0] == second[0]
    assert first[1].getvalue() == second[1].getvalue()


def test_a_tick_that_the_ledger_did_not_take_is_done_again() -> None:
    broken = True

    def append(entries: Sequence[Entry]) -> None:
        if broken:
            raise Unavailable("the ledger is gone")
        ledger.extend(entries)

    ledger, text = list[Entry](), io.StringIO()
    monitoring = Monitoring(
        [AUC], [], pipeline="late", live=LiveWindow(), incidents=Incidents(append, {"ops": StreamChannel(text)})
    )
    for day in range(8):
        serve(monitoring.live, day, good=False)
    with pytest.raises(Unavailable):
        monitoring.tick(NOW + 8 * DAY)
    broken = False
    assert isinstance(monitoring.tick(NOW + 8 * DAY)[0], Retrain)
    assert [entry.kind for entry in ledger] == ["monitors.evaluated", "incident.opened", "alert.sent"]


def test_what_cannot_be_measured_neither_opens_nor_retrains() -> None:
    live = LiveWindow()
    assert evaluate(AUC, NOW, live=live, drift=None).holds is None
    serve(live, 0, good=False, rows=49)
    found = evaluate(AUC, NOW + 2 * DAY, live=live, drift=None)
    assert (found.holds, found.found) == (None, "49 labelled rows, 50 are needed")
    drift = hr.when(hr.drift(DATASET).unusual(windows="1d", k=2, n=3), every="1d")
    assert evaluate(drift, NOW, live=live, drift=None).found == "no training profile yet"


def test_durations_are_shown_in_their_unit() -> None:
    live = LiveWindow()
    serve(live, 0, good=True)
    monitor = hr.when(hr.live("latency_p99", over="1d") > "1ms", every="1d")
    found = evaluate(monitor, NOW + DAY, live=live, drift=None)
    assert (found.holds, found.found) == (True, "2ms over 60 rows")


def test_a_gate_is_no_monitor() -> None:
    with pytest.raises(DefinitionError, match="not live"):
        evaluate(Monitor(hr.metric("auc") < 0.6, DAY), NOW, live=LiveWindow(), drift=None)
