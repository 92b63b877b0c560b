"""Incidents: one for what flaps, one alert for its opening and one for its closing, none lost and none doubled."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.errors import BadUrl, ConfigurationError, Unavailable
from headrace.core.time import DAY, HOUR, Instant, VirtualClock
from headrace.monitoring.incidents import (
    FileChannel,
    IncidentBook,
    Incidents,
    Observation,
    StreamChannel,
    channels_of,
    observe,
)
from headrace.monitoring.record import Alert
from headrace.storage.ledger.protocol import Entry

NOW = 1_000 * DAY


def seen(holds: bool | None, key: str = "auc < 0.68", channels: tuple[str, ...] = ("ops",)) -> Observation:
    return Observation(key, holds, "0.61 over 900 rows", channels, {"value": 0.61})


def test_an_incident_opens_counts_and_closes_after_it_has_been_quiet() -> None:
    book, kinds = IncidentBook(), []
    for day, holds in enumerate([False, True, True, None, False, True, False, False, True, False, False, False]):
        book, entries = observe(book, seen(holds), NOW + day * DAY, quiet_for=3 * DAY)
        kinds += [(day, entry.kind) for entry in entries]
    assert kinds == [(1, "incident.opened"), (5, "incident.flapped"), (8, "incident.flapped"), (11, "incident.closed")]
    assert [(alert.event, alert.at) for alert in book.outbox] == [("opened", NOW + DAY), ("closed", NOW + 11 * DAY)]
    assert book.open == {}


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.sampled_from([True, False, None])), max_size=60))
def test_every_opening_and_closing_alerts_each_channel_once(steps: list[tuple[str, bool | None]]) -> None:
    book, events = IncidentBook(), []
    for hour, (key, holds) in enumerate(steps):
        book, entries = observe(book, seen(holds, key, ("ops", "log", "ops")), NOW + hour * HOUR, quiet_for=3 * HOUR)
        events += [(entry.subject, entry.kind) for entry in entries if entry.kind != "incident.flapped"]
        assert IncidentBook.from_dict(json.loads(json.dumps(book.to_dict()))) == book
    ids = [alert.id for alert in book.outbox]
    assert len(ids) == len(set(ids)) == 2 * len(events)
    assert set(book.open) == {
        key for key in ("a", "b") if sum(1 if a.event == "opened" else -1 for a in book.outbox if a.key == key)
    }


class Flaky:
    """Be a channel that is unreachable until it is mended, and remembers what it carried."""

    def __init__(self) -> None:
        self.works, self.carried = False, list[Alert]()

    def send(self, alerts: Sequence[Alert]) -> None:
        if not self.works:
            raise Unavailable("no route")
        self.carried += alerts


def test_no_alert_is_lost_while_a_channel_is_unreachable() -> None:
    ledger, flaky, text = list[Entry](), Flaky(), io.StringIO()
    incidents = Incidents(ledger.extend, {"ops": flaky, "log": StreamChannel(text)}, quiet_for=DAY)
    incidents.observe([seen(True, channels=("ops", "log"))], NOW)
    incidents.observe([seen(False, channels=("ops", "log"))], NOW + DAY)
    assert [error.what for error in incidents.deliver()] == ["no route"]
    flaky.works = True
    assert incidents.deliver() == []
    assert incidents.deliver() == []
    assert [alert.event for alert in flaky.carried] == ["opened", "closed"]
    assert text.getvalue().count("\n") == 2
    kinds = [entry.kind for entry in ledger]
    assert kinds == ["incident.opened", "alert.sent", "incident.closed", "alert.sent", "alert.sent"]


def test_an_incident_that_the_ledger_did_not_take_is_opened_again() -> None:
    class Gone:
        broken = True

        def __call__(self, entries: Sequence[Entry]) -> None:
            if self.broken:
                raise Unavailable("the ledger is gone")

    gone, text = Gone(), io.StringIO()
    incidents = Incidents(gone, {"ops": StreamChannel(text)})
    with pytest.raises(Unavailable):
        incidents.observe([seen(True)], NOW)
    assert (incidents.book, text.getvalue()) == (IncidentBook(), "")
    gone.broken = False
    incidents.observe([seen(True)], NOW)
    assert "ops opened: auc < 0.68: 0.61 over 900 rows" in text.getvalue()


def test_incidents_live_in_a_real_ledger(tmp_path: Path) -> None:
    from headrace.storage.ledger.sqlite import SqliteLedger

    clock = VirtualClock(Instant(NOW))
    with SqliteLedger(str(tmp_path / "ledger.sqlite"), clock=clock) as ledger:
        incidents = Incidents(ledger.append, {"ops": FileChannel(tmp_path / "ops.jsonl")})
        incidents.observe([seen(True)], NOW)
        records = ledger.read()
        assert [record.kind for record in records] == ["incident.opened", "alert.sent"]
        assert records[0].body["evidence"] == {"value": 0.61}
        assert ledger.verify().ok
    assert json.loads((tmp_path / "ops.jsonl").read_text())["event"] == "opened"


def test_a_file_takes_each_alert_once_also_after_a_crash_in_the_middle_of_a_line(tmp_path: Path) -> None:
    book, _ = observe(IncidentBook(), seen(True), NOW)
    book, _ = observe(book, seen(True, "other"), NOW)
    path = tmp_path / "alerts.jsonl"
    FileChannel(path).send(book.outbox[:1])
    with path.open("ab") as file:
        file.write(b'{"id": "cut')
    for _ in range(3):
        FileChannel(path).send(book.outbox)
    lines = path.read_bytes().splitlines()
    assert [json.loads(line)["key"] for line in (lines[0], lines[2])] == ["auc < 0.68", "other"]
    assert (lines[1], len(lines)) == (b'{"id": "cut', 3)
    assert path.stat().st_mode & 0o077 == 0


def test_a_file_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    book, _ = observe(IncidentBook(), seen(True), NOW)
    with pytest.raises(Unavailable, match="alerts cannot be written"):
        FileChannel(tmp_path / "no folder" / "alerts.jsonl").send(book.outbox)


def test_a_line_on_a_terminal_cannot_move_its_cursor() -> None:
    text = io.StringIO()
    StreamChannel(text).send([Alert("1", "ops", "opened", 'x\x1b[2J\n"y"', NOW, "é")])
    assert text.getvalue() == '1972-09-27T00:00:00Z ops opened: x\\u001b[2J\\n"y": \\u00e9\n'


def test_channels_are_found_by_the_settings(tmp_path: Path) -> None:
    text = io.StringIO()
    found = channels_of(["ops", "log", "ops"], {"log": "file:alerts.jsonl"}, folder=tmp_path, stream=text)
    assert isinstance(found["ops"], StreamChannel)
    assert isinstance(found["log"], FileChannel) and found["log"].path == tmp_path / "alerts.jsonl"
    with pytest.raises(ConfigurationError, match="no alert channel ops"):
        channels_of(["ops"], {"opps": "stderr:"}, folder=tmp_path, stream=text, default=None)
    with pytest.raises(BadUrl) as raised:
        channels_of(["ops"], {"ops": "https://user:token@host"}, folder=tmp_path, stream=text)
    assert "token" not in str(raised.value)
