"""Open, follow and close incidents, and tell each channel once: what flaps is one incident, and no alert is lost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TextIO

from headrace.core.errors import BackendError, BadUrl, ConfigurationError, Unavailable, did_you_mean
from headrace.core.identity import content_hash
from headrace.core.time import DAY, Instant
from headrace.monitoring.record import Alert, Incident
from headrace.storage.ledger.protocol import Entry

QUIET_FOR = (
    2 * DAY
)  # an incident closes when its condition has not held for this long; what comes back sooner is a flap
Append = Callable[[Sequence[Entry]], object]


@dataclass(frozen=True)
class Observation:
    """Hold what an evaluation found for a key; `holds` is None where it could not be decided."""

    key: str
    holds: bool | None
    what: str
    channels: tuple[str, ...] = ()
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class IncidentBook:
    """Hold the open incidents by key, and the alerts that no channel has taken yet."""

    open: Mapping[str, Incident] = field(default_factory=dict)
    outbox: tuple[Alert, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the book as plain JSON values."""
        incidents = {key: incident.to_dict() for key, incident in self.open.items()}
        return {"open": incidents, "outbox": [alert.to_dict() for alert in self.outbox]}

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Self:
        """Return the book that `to_dict` wrote, also after a round trip through JSON."""
        incidents = {key: Incident.from_dict(incident) for key, incident in body["open"].items()}
        return cls(incidents, tuple(Alert.from_dict(alert) for alert in body["outbox"]))


def observe(
    book: IncidentBook, seen: Observation, now: int, *, quiet_for: int = QUIET_FOR
) -> tuple[IncidentBook, list[Entry]]:
    """Return the book after an evaluation, and what the ledger must hold of it; alerts wait in the outbox.

    A condition that holds opens an incident, or counts on the open one. One that does not hold closes it once it has
    not held for `quiet_for` microseconds. Opening and closing alert each channel once; nothing between does.
    """
    incident = book.open.get(seen.key)
    if seen.holds is None or (incident is None and not seen.holds):
        return book, []
    if incident is None:
        return _opened(book, seen, now)
    if seen.holds:
        flapped = incident.quiet > 0
        counted = replace(incident, evaluations=incident.evaluations + 1, last_held=now, quiet=0, what=seen.what)
        counted = replace(counted, flaps=incident.flaps + flapped, evidence=dict(seen.evidence))
        entries = [_entry("incident.flapped", counted)] if flapped else []
        return replace(book, open={**book.open, seen.key: counted}), entries
    if now - incident.last_held < quiet_for:
        quieter = replace(incident, quiet=incident.quiet + 1)
        return replace(book, open={**book.open, seen.key: quieter}), []
    return _closed(book, incident, now)


def _opened(book: IncidentBook, seen: Observation, now: int) -> tuple[IncidentBook, list[Entry]]:
    identity = content_hash([seen.key, now])[:16]
    incident = Incident(identity, seen.key, seen.what, now, now, seen.channels, evidence=dict(seen.evidence))
    outbox = book.outbox + _alerts(incident, "opened", now)
    return IncidentBook({**book.open, seen.key: incident}, outbox), [_entry("incident.opened", incident)]


def _closed(book: IncidentBook, incident: Incident, now: int) -> tuple[IncidentBook, list[Entry]]:
    closed = replace(incident, closed=now)
    still = {key: other for key, other in book.open.items() if key != incident.key}
    return IncidentBook(still, book.outbox + _alerts(closed, "closed", now)), [_entry("incident.closed", closed)]


def _entry(kind: str, incident: Incident) -> Entry:
    return Entry(kind, incident.id, incident.to_dict())


def _alerts(incident: Incident, event: Literal["opened", "closed"], now: int) -> tuple[Alert, ...]:
    return tuple(
        Alert(f"{incident.id}-{event}-{channel}", channel, event, incident.key, now, incident.what, incident.evidence)
        for channel in dict.fromkeys(incident.channels)
    )


class Channel(Protocol):
    """Carry alerts to people. A channel that can must drop an alert whose id it has carried before."""

    def send(self, alerts: Sequence[Alert]) -> None:
        """Carry alerts, in order.

        Raises:
            BackendError: some were not carried; all are sent again later.
        """
        ...


class StreamChannel:
    """Write each alert as one line to an open text stream, such as the process's stderr."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def send(self, alerts: Sequence[Alert]) -> None:
        """Write alerts, one line each; characters that would move a terminal's cursor are escaped."""
        for alert in alerts:
            line = f"{Instant(alert.at).isoformat()} {alert.channel} {alert.event}: {alert.key}: {alert.what}"
            self._stream.write(json.dumps(line, ensure_ascii=not line.isprintable())[1:-1].replace('\\"', '"') + "\n")
        self._stream.flush()


class FileChannel:
    """Append alerts to a file, one JSON object a line; an alert that is in the file is not written again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def send(self, alerts: Sequence[Alert]) -> None:
        """Append alerts and wait until they are on disk.

        Raises:
            Unavailable: the file cannot be read or written.
        """
        try:
            content = self.path.read_bytes() if self.path.exists() else b""
            known = {name for line in content.splitlines() if (name := _id_of(line)) is not None}
            fresh = [alert for alert in alerts if alert.id not in known]
            # A line that a crash cut off is closed, so that it cannot swallow the next one.
            start = b"" if not content or content.endswith(b"\n") else b"\n"
            lines = [json.dumps(alert.to_dict(), sort_keys=True).encode() + b"\n" for alert in fresh]
            if lines:
                self._append(start + b"".join(lines))
        except OSError as error:
            raise Unavailable(
                "alerts cannot be written",
                where=str(self.path),
                got=error,
                expected="a file that can be appended to",
                next_step="check the folder and its free space, or set another [alerts] channel in headrace.toml",
            ) from error

    def _append(self, content: bytes) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def _id_of(line: bytes) -> str | None:
    """Return the id of an alert in a file; None for a line that is none, as one that a crash cut off."""
    try:
        return str(json.loads(line)["id"])
    except (ValueError, KeyError, TypeError):
        return None


def channels_of(
    names: Sequence[str], urls: Mapping[str, str], *, folder: Path, stream: TextIO, default: str | None = "stderr:"
) -> dict[str, Channel]:
    """Return the channels that monitors name, as `[alerts]` in the settings says: `stderr:` or `file:PATH`.

    A path is taken from `folder`; `stream` stands for stderr. A name that the settings lack is `default`.

    Raises:
        ConfigurationError: a name without a URL, and no default.
        BadUrl: a URL of another kind.
    """
    found: dict[str, Channel] = {}
    for name in dict.fromkeys(names):
        url = urls.get(name, default)
        if url is None:
            raise ConfigurationError(
                f"no alert channel {name}",
                where="headrace.toml",
                got=did_you_mean(name, urls) or "no [alerts]",
                expected=f"[alerts] {name} = URL",
                next_step=f'add to headrace.toml: [alerts] {name} = "stderr:"',
            )
        found[name] = _channel(name, url, folder, stream)
    return found


def _channel(name: str, url: str, folder: Path, stream: TextIO) -> Channel:
    scheme, _, rest = url.partition(":")
    if scheme == "stderr" and not rest:
        return StreamChannel(stream)
    if scheme == "file" and rest:
        return FileChannel(folder / rest)
    # The URL itself may hold a token, so only its scheme is shown.
    raise BadUrl(
        f"alert channel {name}",
        where="headrace.toml [alerts]",
        got=f"{scheme}:…",
        expected="stderr: or file:PATH",
        next_step=f'write [alerts] {name} = "stderr:"',
    )


class Incidents:
    """Keep the book of incidents, write what happens to the ledger, and carry alerts to their channels.

    An alert is written to the ledger before it is sent and again when a channel has taken it. A process that dies
    between sends it once more under the same id; a file drops it then, a terminal shows it twice.
    """

    def __init__(
        self,
        append: Append,
        channels: Mapping[str, Channel],
        *,
        book: IncidentBook | None = None,
        quiet_for: int = QUIET_FOR,
    ) -> None:
        self.append, self.channels, self.quiet_for = append, channels, quiet_for
        self.book = book if book is not None else IncidentBook()

    def observe(self, observations: Sequence[Observation], now: int, *, also: Sequence[Entry] = ()) -> None:
        """Take in evaluations of one moment; write what changed, after what stands in `also`, in one append; send alerts."""
        book, entries = self.book, list(also)
        for seen in observations:
            book, written = observe(book, seen, now, quiet_for=self.quiet_for)
            entries += written
        if entries:
            self.append(entries)
        self.book = book
        self.deliver()

    def deliver(self) -> list[BackendError]:
        """Send what waits, channel by channel; what a channel refuses waits on, and its error is returned."""
        failures: list[BackendError] = []
        for name in dict.fromkeys(alert.channel for alert in self.book.outbox):
            waiting = [alert for alert in self.book.outbox if alert.channel == name]
            try:
                self.channels[name].send(waiting)
            except BackendError as error:
                failures.append(error)
                continue
            body = {"channel": name, "alerts": [alert.id for alert in waiting]}
            self.append([Entry("alert.sent", name, body)])
            left = tuple(alert for alert in self.book.outbox if alert.channel != name)
            self.book = replace(self.book, outbox=left)
        return failures
