"""Show a project's checks as one page: each with its severity, counts and history, each column beside its baseline."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from headrace.core.time import SECOND, Instant, SystemClock
from headrace.pipelines.project import Project
from headrace.pipelines.verdicts import CheckHistory, SourceVerdicts, read_verdicts
from headrace.stats.profiles import Profile, compare
from headrace.storage.paths import write_atomically

TEMPLATE = "checks.html.j2"
SHOWN_CHECKS, SHOWN_COLUMNS, SHOWN_BARS = 500, 60, 12
WIDTH, HEIGHT = 220, 64


def write_checks(project: Project, name: str | None, path: str, *, state: str | None, limit: int) -> str:
    """Write the page and return a note that says where it is."""
    found = read_verdicts(project, name, state=state, limit=limit)
    page = render_checks(project.name, found, at=int(SystemClock().now()))
    target = Path(path)
    write_atomically(target, page.encode(), temporary=target.with_name(f"{target.name}.new"), failpoint="checks")
    return f"Report: {target}"


def render_checks(title: str, sources: Sequence[SourceVerdicts], *, at: int) -> str:
    """Return the page: it works offline, all text is escaped, and light and dark follow the reader's system.

    At most 500 checks and 60 columns of a source are shown, the failed and the furthest first; the page says what was
    left out.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(files("headrace.web").joinpath(TEMPLATE).read_text("utf-8"))
    return template.render(
        title=title, at=Instant(at // SECOND * SECOND).isoformat(), sources=[_source(s) for s in sources]
    )


def _source(found: SourceVerdicts) -> dict[str, Any]:
    newest = found.verdicts[0] if found.verdicts else None
    columns = _columns(found)
    failed = sum(c.newest["status"] == "failed" for c in found.checks)
    return {
        "name": found.source,
        "newest": newest,
        "failed": failed,
        "count": len(found.checks),
        "checks": [_check(c) for c in found.checks[:SHOWN_CHECKS]],
        "more_checks": max(0, len(found.checks) - SHOWN_CHECKS),
        "columns": columns[:SHOWN_COLUMNS],
        "more_columns": max(0, len(columns) - SHOWN_COLUMNS),
        "verdicts": list(found.verdicts[:20]),
    }


def _check(check: CheckHistory) -> dict[str, Any]:
    newest = check.newest
    measured = newest.get("measured") or newest.get("reason") or ""
    if not measured and newest.get("value") is not None:
        measured = f"{newest['value']:.6g}"
    told = {"name": newest["name"], "severity": newest["severity"], "status": newest["status"], "measured": measured}
    told |= {"threshold": newest.get("threshold", ""), "samples": ", ".join(newest.get("samples", ()))}
    told |= {"rows": newest.get("rows", 0), "failing": newest.get("failing", 0), "share": newest.get("share")}
    return told | {"spark": sparkline(check.values, check.statuses)}


def sparkline(values: Sequence[float | None], statuses: Sequence[str]) -> Markup:
    """Draw a check's measured values as a line with a dot where it failed; nothing is drawn where it said nothing."""
    wide, tall, edge = 120, 26, 4
    known = [v for v in values if v is not None]
    if not known:
        return Markup("")
    low, span = min(known), (max(known) - min(known)) or 1.0
    step = (wide - 2 * edge) / max(len(values) - 1, 1)

    def point(place: int, value: float) -> tuple[float, float]:
        return edge + place * step, tall - edge - (value - low) / span * (tall - 2 * edge)

    spots = [(*point(i, v), i) for i, v in enumerate(values) if v is not None]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y, _ in spots)
    dots = "".join(
        f'<circle class="{"bad" if statuses[i] == "failed" else "fine"}" cx="{x:.1f}" cy="{y:.1f}" r="2.4"/>'
        for x, y, i in spots
        if statuses[i] == "failed" or i == len(values) - 1
    )
    label = f"{len(known)} verdicts, from {known[0]:.4g} to {known[-1]:.4g}"
    return Markup(
        f'<svg class="spark" viewBox="0 0 {wide} {tall}" role="img"><title>{escape(label)}</title>'
        f'<path d="M{path}"/>{dots}</svg>'
    )


def _columns(found: SourceVerdicts) -> list[dict[str, Any]]:
    """Return the columns that have a baseline, the furthest from it first."""
    rows = []
    for name, body in found.profiles.items():
        held, now = found.baseline.get(name), Profile.from_dict(body)
        if held is None or held.profile.kind != now.kind or held.profile.edges != now.edges:
            continue
        score = compare(held.profile, now) if held.profile.rows and now.rows else None
        told = {"name": name, "kind": now.kind, "rows": now.rows, "psi": None if score is None else score.psi}
        told |= {"nulls": now.null_share, "nulls_before": held.profile.null_share}
        rows.append(told | {"picture": histogram(held.profile, now)})
    return sorted(rows, key=lambda row: -(row["psi"] or 0.0))


def histogram(before: Profile, now: Profile) -> Markup:
    """Draw the shares of a column's bins as bars, and the baseline's as marks over them."""
    labels, shares, past = _bars(before, now)
    if not shares:
        return Markup('<p class="empty">No values.</p>')
    most, wide = max(*shares, *past, 1e-9), WIDTH / len(shares)
    parts = []
    for i, (label, share, was) in enumerate(zip(labels, shares, past, strict=True)):
        x, tall, mark = i * wide, share / most * (HEIGHT - 6), HEIGHT - was / most * (HEIGHT - 6)
        title = escape(f"{label}: {share:.1%}, baseline {was:.1%}")
        parts.append(
            f'<g><title>{title}</title><rect x="{x + 1:.1f}" y="{HEIGHT - tall:.1f}" width="{wide - 2:.1f}" '
            f'height="{tall:.1f}"/><path d="M{x:.1f} {mark:.1f}h{wide:.1f}"/></g>'
        )
    return Markup(f'<svg class="hist" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>')


def _bars(before: Profile, now: Profile) -> tuple[list[str], list[float], list[float]]:
    labels = list(before.categories) if before.kind == "categorical" else _ranges(before.edges)
    pairs = list(zip(labels, now.counts, before.counts, strict=False))
    if before.kind == "categorical":
        pairs = sorted(pairs, key=lambda pair: -pair[2])
        rest = pairs[SHOWN_BARS:]
        others = (now.other + sum(p[1] for p in rest), before.other + sum(p[2] for p in rest))
        pairs = pairs[:SHOWN_BARS] + ([("other", *others)] if any(others) else [])
    if now.nulls or before.nulls:
        pairs.append(("null", now.nulls, before.nulls))
    shares = [count / max(now.rows, 1) for _, count, _ in pairs]
    return [label for label, _, _ in pairs], shares, [count / max(before.rows, 1) for _, _, count in pairs]


def _ranges(edges: Sequence[float]) -> list[str]:
    if not edges:
        return ["all"]
    inner = [f"{low:.4g} to {high:.4g}" for low, high in pairwise(edges)]
    return [f"below {edges[0]:.4g}", *inner, f"{edges[-1]:.4g} and more"]
