"""Hold what an evaluation decided, gate by gate, with everything that decided it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from headrace.core.errors import GateRefused
from headrace.storage.ledger.protocol import Entry

KIND = "gates"


@dataclass(frozen=True)
class SliceResult:
    """Hold a metric on one slice; `judged` is False for slices that are too small or where it is undefined."""

    name: str
    rows: int
    value: float | None
    judged: bool
    reason: str | None = None


@dataclass(frozen=True)
class GateResult:
    """Hold one gate's decision.

    `gate` is the sentence that the author wrote. `measured` is in the quantity's own unit (microseconds, bytes, or the
    metric's), None where it could not be measured: such a gate does not pass, and `reason` says why. `interval` is a
    95 % interval for information; `evidence` holds the numbers behind a comparison.
    """

    gate: str
    kind: str
    passed: bool
    measured: float | None
    threshold: float | tuple[float, float] | None
    interval: tuple[float, float] | None = None
    slices: tuple[SliceResult, ...] = ()
    evidence: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Read a result back."""
        threshold, interval = body["threshold"], body["interval"]
        read = {
            "threshold": tuple(threshold) if isinstance(threshold, (list, tuple)) else threshold,
            "interval": None if interval is None else tuple(interval),
            "slices": tuple(SliceResult(**one) for one in body["slices"]),
        }
        return cls(**{**body, **read})

    def __str__(self) -> str:
        found = "not measured" if self.measured is None else f"measured {self.measured:.6g}"
        why = f" ({self.reason})" if self.reason else ""
        return f"{'passed' if self.passed else 'FAILED'}  {self.gate}: {found}{why}"


@dataclass(frozen=True)
class Evaluation:
    """Hold a candidate's evaluation on test rows; it passed if every gate did."""

    rows: int
    gates: tuple[GateResult, ...]
    candidate: Mapping[str, float | None]
    champion: Mapping[str, float | None] | None

    @property
    def passed(self) -> bool:
        """Tell whether every gate passed."""
        return not self.failed

    @property
    def failed(self) -> tuple[GateResult, ...]:
        """Return the gates that did not pass."""
        return tuple(gate for gate in self.gates if not gate.passed)

    def raise_if_failed(self, version: str) -> None:
        """Raise a GateRefused that names the failed gates, if there are any."""
        if not self.passed:
            raise refused(version, self.failed)

    def to_json(self) -> dict[str, Any]:
        """Return the evaluation as plain JSON values."""
        return {**asdict(self), "passed": self.passed}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Read an evaluation back."""
        gates = tuple(GateResult.from_json(gate) for gate in body["gates"])
        return cls(body["rows"], gates, body["candidate"], body["champion"])

    def entry(self, version: str) -> Entry:
        """Return the gates' decision about a version as a ledger record."""
        return Entry(KIND, version, self.to_json())


def refused(version: str, failed: tuple[GateResult, ...]) -> GateRefused:
    """Return the error for promoting a version whose gates failed."""
    return GateRefused(
        f"version {version} did not pass its gates",
        where="; ".join(gate.gate for gate in failed),
        got="; ".join(str(gate) for gate in failed),
        expected="every gate passed",
        next_step=f"headrace explain {version}, or headrace promote {version} --force --why REASON",
    )
