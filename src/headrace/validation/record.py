"""Hold what validation found: for each check what was measured, and which rows may pass."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from headrace.core.errors import ChecksFailed, SchemaChanged, UsageError, did_you_mean
from headrace.core.time import Instant
from headrace.sources.record import RevealBatch
from headrace.stats.profiles import Profile
from headrace.validation.definition import Severity

if TYPE_CHECKING:
    import pyarrow as pa

Status = Literal["passed", "failed", "undefined"]
Action = Literal["pass", "quarantine", "stop"]
WORST = {"stop": 0, "quarantine": 1, "warn": 2}
SHOWN_PROFILES = 200  # columns whose distribution a verdict keeps; each takes some kilobytes at most
NAMED = 3  # failed checks that an error names; the verdict has them all


@dataclass(frozen=True)
class CheckResult:
    """Say how one check came out.

    `measured` and `threshold` are texts in the quantity's own unit, `value` the measured number. `failing` rows of
    `rows` broke a rule; `samples` names a few of them by id (by a hash of it where the id is `pii`), or a few days.
    """

    name: str
    severity: Severity
    status: Status
    value: float | None = None
    measured: str = ""
    threshold: str = ""
    rows: int = 0
    failing: int = 0
    samples: tuple[str, ...] = ()
    reason: str = ""

    @property
    def share(self) -> float:
        """Return the share of failing rows among those that the check saw."""
        return self.failing / self.rows if self.rows else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON, without what is empty."""
        body: dict[str, Any] = {
            "name": self.name,
            "severity": self.severity,
            "status": self.status,
            "value": self.value,
        }
        body |= {"measured": self.measured, "threshold": self.threshold, "rows": self.rows, "failing": self.failing}
        body |= {"share": self.share, "samples": list(self.samples), "reason": self.reason}
        return {key: value for key, value in body.items() if value not in (None, "", [], 0)}


@dataclass(frozen=True)
class Held:
    """Say for how many values `known_at` held: they arrived no earlier than the moment it names."""

    values: int
    held: int

    @property
    def share(self) -> float:
        """Return the share that held; 1 of nothing."""
        return self.held / self.values if self.values else 1.0


@dataclass(frozen=True, eq=False)
class Findings:
    """Say what checking some rows found, and what they may do: pass, pass without the bad ones, or stop.

    `quarantined` holds bad rows (see `quarantine_schema`). `profiles` are the columns' distributions over the bins of
    their baseline, where there is one.
    """

    source: str
    location: str
    at: Instant
    action: Action
    rows: int
    results: tuple[CheckResult, ...]
    quarantined: pa.Table
    profiles: Mapping[str, Profile]

    @property
    def failed(self) -> tuple[CheckResult, ...]:
        """Return the failed checks, the gravest first, then those with the most failing rows."""
        found = [r for r in self.results if r.status == "failed"]
        return tuple(sorted(found, key=lambda r: (WORST[r.severity], -r.share, r.name)))

    def raise_if_stopped(self) -> None:
        """Raise what stopped the delivery.

        Raises:
            SchemaChanged: its columns are not as declared.
            ChecksFailed: other checks of severity `stop` failed; the worst are named.
        """
        if self.action != "stop":
            return
        stopping = [r for r in self.failed if r.severity == "stop"]
        kind = SchemaChanged if any(r.name == SCHEMA for r in stopping) else ChecksFailed
        many = f"{len(stopping)} checks" if len(stopping) > 1 else "a check"
        raise kind(
            f"{self.source}: {many} stopped the delivery: {'; '.join(r.name for r in stopping[:NAMED])}",
            where=f"{self.location}, verdict of {self.at.isoformat()}",
            got="; ".join(r.measured + (f" ({', '.join(r.samples)})" if r.samples else "") for r in stopping[:NAMED]),
            expected="; ".join(r.threshold for r in stopping[:NAMED]),
            next_step="repair the data and deliver again; a check that may fail is written hr.warn(check)",
        )

    def __getitem__(self, name: str) -> CheckResult:
        """Return the result of the check whose name is, or begins with, `name`."""
        for fits in (str.__eq__, str.startswith):
            for result in self.results:
                if fits(result.name, name):
                    return result
        raise UsageError(
            f"{self.source} has no such check",
            got=name,
            expected=[r.name for r in self.results],
            next_step=did_you_mean(name, [r.name for r in self.results]),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the findings as plain JSON: results that did not pass in full, the others by name and measured value."""
        passed = [r for r in self.results if r.status == "passed"]
        return {
            "source": self.source,
            "at": int(self.at),
            "action": self.action,
            "rows": self.rows,
            "quarantined": int(self.quarantined.num_rows),
            "results": [r.to_dict() for r in self.results if r.status != "passed"],
            "passed": [[r.name, r.severity, r.rows, r.value] for r in passed],
        }


@dataclass(frozen=True, eq=False)
class Verdict(Findings):
    """Say what a delivery may do: `accepted` goes on (nothing of a stopped delivery does), the rest is kept aside."""

    held: Mapping[str, Held]
    accepted: RevealBatch

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as plain JSON."""
        known = {name: {"values": h.values, "share": h.share} for name, h in self.held.items()}
        profiles = {name: profile.to_dict() for name, profile in list(self.profiles.items())[:SHOWN_PROFILES]}
        told = {"accepted": len(self.accepted), "known_at": known}
        return super().to_dict() | told | ({"profiles": profiles} if profiles else {})


SCHEMA = "columns as declared"


def quarantine_schema() -> pa.Schema:
    """Return the Arrow schema of quarantined rows.

    `id` names the row by what it is, so that the same row found again is the same. `at` is the verdict's moment,
    `position` where the row stood in what was delivered, `reason` which checks it broke, one a line, and `payload` what
    it stated, as JSON. `row_id`, `arrival` (microseconds UTC), `stated` (see `stated_text`) and `content` are the reveal's, null for rows
    that could not become one.
    """
    import pyarrow as pa

    texts = [(name, pa.string()) for name in ("id", "source", "position", "reason", "payload", "stated")]
    numbers = [(name, pa.int64()) for name in ("at", "arrival", "content")]
    return pa.schema([*texts, ("row_id", pa.binary()), *numbers])


def stated_text(places: Sequence[int]) -> str:
    """Return places of columns as a quarantined row keeps them: the number whose bits they are, in hexadecimal."""
    return f"{sum(1 << place for place in places):x}"


def quarantine_id(*parts: bytes | str | int) -> str:
    """Return the name of a quarantined row: 16 bytes in hexadecimal."""
    encoded = [part if isinstance(part, bytes) else str(part).encode() for part in parts]
    return hashlib.blake2b(b"".join(len(p).to_bytes(8, "big") + p for p in encoded), digest_size=16).hexdigest()
