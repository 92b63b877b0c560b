"""Assemble a replay's report from its ledger: nothing is shown that was not recorded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from headrace.core.limits import SIZES
from headrace.core.time import DAY, WEEK, Instant, format_duration
from headrace.storage.ledger import Record
from headrace.web.report_data import (
    Delays,
    DriftDay,
    GateRow,
    Headline,
    IncidentRow,
    PlantedFault,
    ReportData,
    Retraining,
    RolloutPart,
    TrafficDay,
    Version,
    Week,
)


def assemble(records: Iterable[Record], *, title: str, reproduce: tuple[str, ...]) -> ReportData:
    """Return the report of the replay that the records tell of."""
    by_kind: dict[str, list[Record]] = {}
    for record in records:
        by_kind.setdefault(record.kind, []).append(record)
    begun = by_kind["replay.begun"][0].body
    finished = by_kind["replay.finished"][0].body if "replay.finished" in by_kind else {}
    weeks = _weeks(by_kind.get("performance", []))
    frozen = by_kind.get("frozen", [])
    faults = _faults(begun, by_kind)
    return ReportData(
        title=title,
        start=begun["start"],
        end=begun["end"],
        metric="AUC",
        frozen_since=f"{_short(frozen[0].subject)}, left alone since {Instant(frozen[0].at).day()}" if frozen else "",
        headlines=_headlines(by_kind, finished, weeks),
        weeks=weeks,
        traffic=_traffic(by_kind.get("performance", [])),
        versions=_versions(by_kind),
        rollouts=_rollouts(by_kind),
        drift=_drift(by_kind.get("monitors.evaluated", [])),
        incidents=_incidents(by_kind, faults),
        gates=_gates(by_kind.get("gates", [])),
        delays=_delays(by_kind.get("performance", [])),
        retrainings=_retrainings(by_kind),
        faults=faults,
        digests=finished.get("digests", {}),
        reproduce=reproduce,
        notes=_notes(by_kind),
    )


def _short(version: str) -> str:
    return version.rsplit("/", 1)[-1]


def _headlines(
    by_kind: Mapping[str, list[Record]], finished: Mapping[str, Any], weeks: tuple[Week, ...]
) -> tuple[Headline, ...]:
    gaps = [w.gap for w in weeks if w.gap is not None]
    trained = len(by_kind.get("retrained", []))
    aborted = sum(r.body["decision"] == "abort" for r in by_kind.get("rollout", []))
    found = []
    if finished:
        by_model = finished["by_model"]
        found.append(
            Headline(
                "predictions answered and logged", f"{finished['predictions']:,}", f"{by_model:,} by a trained model"
            )
        )
    if gaps:
        mean = sum(gaps) / len(gaps)
        ahead = f"better in {sum(g > 0 for g in gaps)} of {len(gaps)} weeks"
        found.append(Headline("weekly AUC over the frozen model", f"{mean:+.3f}", ahead, "good" if mean > 0 else "bad"))
    promoted = len(by_kind.get("promotion", []))
    found.append(Headline("trainings", str(trained), f"{promoted} promoted"))
    found.append(Headline("rollouts aborted", str(aborted), "by their own rules, without labels"))
    found.append(Headline("incidents", str(len(by_kind.get("incident.opened", [])))))
    return tuple(found)


def _weeks(records: list[Record]) -> tuple[Week, ...]:
    found = []
    for record in records:
        managed, frozen = record.body["managed"], record.body.get("frozen", {})
        if managed["n"]:
            found.append(Week(record.body["end"] - WEEK, managed.get("value"), frozen.get("value"), managed["n"]))
    return tuple(found)


def _traffic(records: list[Record]) -> tuple[TrafficDay, ...]:
    found = []
    for record in records:
        for day, counts in record.body["traffic"]:
            answered = {"" if name == "fallback" else _short(name): n for name, n in counts.items()}
            if answered:
                found.append(TrafficDay(day, answered))
    return tuple(found)


def _versions(by_kind: Mapping[str, list[Record]]) -> tuple[Version, ...]:
    runs = {r.subject: r.body for r in by_kind.get("run", [])}
    why = {r.subject: "; ".join(_cause(c) for c in r.body["causes"]) for r in by_kind.get("retrained", [])}
    outcomes: dict[str, str] = {}
    for kind, text in (("archive", "refused"), ("promotion", "promoted")):
        for record in by_kind.get(kind, []):
            outcomes[record.subject] = text if kind == "promotion" else record.body["why"].split(":")[0]
    found = []
    for record in by_kind.get("version", []):
        run = runs.get(record.body["run"], {})
        rows = run.get("split", {}).get("rows", {}).get("train", 0)
        metric = record.body["metrics"].get("test", {}).get("auc")
        name = record.subject
        found.append(Version(_short(name), record.at, why.get(name, ""), rows, metric, outcomes.get(name, "kept")))
    return tuple(found)


def _cause(cause: Mapping[str, Any]) -> str:
    return f"{cause['rule']}: {cause['found']}"


def _rollouts(by_kind: Mapping[str, list[Record]]) -> tuple[RolloutPart, ...]:
    found: list[RolloutPart] = []
    for record in by_kind.get("rollout", []):
        state, decision = record.body.get("state"), record.body.get("decision")
        if state is None:
            continue
        version = _short(record.subject)
        if found and found[-1].version == version and found[-1].end is None:
            last = found.pop()
            found.append(RolloutPart(last.version, last.kind, last.label, last.start, record.at, last.reason))
        if decision == "abort":
            found.append(RolloutPart(version, "aborted", "aborted", record.at, record.at + DAY, record.body["why"]))
        elif decision == "promote":
            found.append(RolloutPart(version, "promoted", "promoted", record.at, record.at + DAY, record.body["why"]))
        else:
            label = "shadow" if state["status"] == "shadow" else f"canary {100 * state['share']:g} %"
            found.append(RolloutPart(version, state["status"], label, record.at, None))
    return tuple(found)


def _drift(records: list[Record]) -> tuple[DriftDay, ...]:
    found = []
    for record in records:
        for key, told in record.body["monitors"].items():
            if key.startswith("drift") and told.get("holds") is not None:
                names = {f["feature"] for f in told.get("findings", [])}
                worst = told["findings"][0]["feature"] if names else ""
                found.append(DriftDay(record.at - DAY, len(names), told.get("judged", 0), worst))
    return tuple(found)


def _incidents(by_kind: Mapping[str, list[Record]], faults: tuple[PlantedFault, ...]) -> tuple[IncidentRow, ...]:
    closed = {r.subject: r for r in by_kind.get("incident.closed", [])}
    found = []
    for record in by_kind.get("incident.opened", []):
        end = closed.get(record.subject)
        near = [f.name for f in faults if 0 <= record.at - f.day <= 3 * DAY]
        flaps = end.body["flaps"] if end else 0
        body = record.body
        found.append(IncidentRow(body["key"], body["what"], record.at, end.at if end else None, flaps, ", ".join(near)))
    return tuple(found)


def _gates(records: list[Record]) -> tuple[GateRow, ...]:
    return tuple(
        GateRow(
            _short(record.subject),
            record.at,
            gate["gate"],
            _in_unit(gate["kind"], gate["measured"]),
            _in_unit(gate["kind"], gate["threshold"]),
            gate["passed"],
            gate["reason"] or "",
        )
        for record in records
        for gate in record.body["gates"]
    )


def _in_unit(kind: str, value: Any) -> str:
    if value is None:
        return "–"
    if kind == "latency":
        return format_duration(int(value)) if value % 1_000 == 0 else f"{value / 1_000:.2f}ms"
    if kind == "model_size":
        return f"{value / SIZES['MB']:.2f}MB"
    return " to ".join(f"{v:g}" for v in value) if isinstance(value, (list, tuple)) else f"{value:.4f}"


def _delays(records: list[Record]) -> Delays | None:
    told = [r.body["delays"] for r in records if r.body["delays"]["rows"]]
    if not told:
        return None
    counts = tuple(sum(column) for column in zip(*(d["counts"] for d in told), strict=True))
    totals = {name: sum(d[name] for d in told) for name in ("rows", "late", "missing")}
    medians = sorted(d["quantiles"][2] for d in told if d["quantiles"])
    median = medians[len(medians) // 2] if medians else None
    return Delays(tuple(told[0]["edges"]), counts, 2 * DAY, totals["rows"], totals["late"], totals["missing"], median)


def _retrainings(by_kind: Mapping[str, list[Record]]) -> tuple[Retraining, ...]:
    found = []
    for record in by_kind.get("retrained", []) + by_kind.get("retrain.failed", []):
        causes = tuple(_cause(c) for c in record.body["causes"])
        if record.kind == "retrain.failed":
            found.append(Retraining(record.at, causes, "", f"failed: {record.body['error']['what']}"))
        else:
            failed = record.body["failed_gates"]
            outcome = "gates passed" if record.body["passed"] else f"refused: {'; '.join(failed)}"
            found.append(Retraining(record.at, causes, _short(record.subject), outcome))
    return tuple(sorted(found, key=lambda r: r.at))


def _faults(begun: Mapping[str, Any], by_kind: Mapping[str, list[Record]]) -> tuple[PlantedFault, ...]:
    found = []
    for text in begun["faults"]:
        name, _, day = text.partition("@")
        at = Instant.parse(day)
        found.append(PlantedFault(name, at, text, _response(name, at, by_kind)))
    return tuple(found)


def _response(name: str, at: int, by_kind: Mapping[str, list[Record]]) -> str:
    if name in ("bad_data", "schema_change"):
        stopped = [r for r in by_kind.get("verdict", []) if at <= r.at <= at + 2 * DAY and r.body["action"] == "stop"]
        return f"stopped at the gate: {stopped[0].body['results'][0]['name']}" if stopped else ""
    if name == "late_labels":
        told = [r.body["delays"] for r in by_kind.get("performance", []) if at < r.at <= at + 4 * WEEK]
        return f"{sum(d['late'] for d in told):,} labels came after their maturity; they were censored until then"
    if name == "bad_model":
        aborted = [r for r in by_kind.get("rollout", []) if r.at >= at and r.body["decision"] == "abort"]
        return f"{_short(aborted[0].subject)} aborted: {aborted[0].body['why']}" if aborted else ""
    return ""


def _notes(by_kind: Mapping[str, list[Record]]) -> tuple[str, ...]:
    quarantined = sum(r.body["quarantined"] for r in by_kind.get("verdict", []))
    notes = ["Arrival instants of flights are approximated: actual departure + air time + 30 min."]
    notes.append("Latencies are modelled from the seed; a replay measures no real clock.")
    if quarantined:
        notes.append(f"{quarantined:,} rows were quarantined.")
    return tuple(notes)
