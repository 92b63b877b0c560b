"""Open one incident for data that a run cannot take, whoever often it is tried, and close it once they pass."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from headrace.core.errors import DataError
from headrace.core.time import Clock
from headrace.monitoring.incidents import IncidentBook, Incidents, Observation, channels_of
from headrace.monitoring.record import Alert, Incident
from headrace.pipelines.project import Project
from headrace.pipelines.stores import Stores

OPENED, CLOSED, SENT = "incident.opened", "incident.closed", "alert.sent"
MANY = 100_000


@dataclass(frozen=True)
class DataIncidents:
    """Tell every channel of `[alerts]` when a source's data stop at the gate, and when they pass again."""

    project: Project
    stores: Stores
    clock: Clock

    @contextmanager
    def watch(self, source: str) -> Iterator[None]:
        """Watch over the ingestion of a source."""
        try:
            yield
        except DataError as error:
            self._observe(source, error)
            raise
        self._observe(source, None)

    def _observe(self, source: str, error: DataError | None) -> None:
        key = f"data/{source}"
        incident = self._open(key)
        if error is None and incident is None:
            return
        urls = self.project.settings.alerts
        channels = channels_of(list(urls), urls, folder=self.stores.state.folder("alerts"), stream=sys.stderr)
        book = IncidentBook({} if incident is None else {key: incident}, self._unsent(incident))
        what = "the data pass again" if error is None else error.what
        evidence = {} if error is None else error.to_dict()
        seen = Observation(key, error is not None, what, tuple(channels), evidence)
        incidents = Incidents(self.stores.ledger.append, channels, book=book, quiet_for=0)
        incidents.observe([seen], int(self.clock.now()))

    def _open(self, key: str) -> Incident | None:
        """Return the open incident of a key, as the ledger has it."""
        ledger = self.stores.ledger
        for record in ledger.read(kinds=[OPENED], newest_first=True, limit=MANY):
            if record.body["key"] == key:
                closed = ledger.read(kinds=[CLOSED], subject=record.subject, limit=1)
                return None if closed else Incident.from_dict(record.body)
        return None

    def _unsent(self, incident: Incident | None) -> tuple[Alert, ...]:
        """Return the alerts of an incident's opening that a killed run has not sent."""
        if incident is None:
            return ()
        sent = {
            i for r in self.stores.ledger.read(kinds=[SENT], limit=MANY, newest_first=True) for i in r.body["alerts"]
        }
        alerts = (
            Alert(f"{incident.id}-opened-{channel}", channel, "opened", incident.key, incident.opened, incident.what)
            for channel in incident.channels
        )
        return tuple(alert for alert in alerts if alert.id not in sent)
