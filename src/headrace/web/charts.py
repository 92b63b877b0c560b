"""Draw the report's pictures as SVG text: one time scale for all, colours from the page's style, a title on every mark."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby, pairwise

from markupsafe import Markup, escape

from headrace.core.time import DAY, EPOCH, HOUR, WEEK, Instant
from headrace.web.report_data import Delays, DriftDay, IncidentRow, PlantedFault, RolloutPart, TrafficDay, Week

WIDTH, LEFT, RIGHT = 1040, 56, 128
PALETTE = 8  # the style knows --v1 to --v8 for versions, and --v0 for the fallback
Height = Callable[[float], float]


@dataclass(frozen=True)
class TimeScale:
    """Map instants to x, the same for every picture, so that they can be read downwards."""

    start: int
    end: int

    def __call__(self, moment: float) -> float:
        """Return the x of an instant, cut to the picture."""
        inside = min(max(moment, self.start), self.end)
        return LEFT + (inside - self.start) / max(self.end - self.start, 1) * (WIDTH - LEFT - RIGHT)

    def months(self) -> Iterator[tuple[int, str]]:
        """Yield the first instant of each month inside, with its short name; January also names its year."""
        at = (EPOCH + timedelta(microseconds=self.start)).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        while (moment := int((at - EPOCH) / timedelta(microseconds=1))) < self.end:
            if moment >= self.start:
                yield moment, at.strftime("%b %Y" if at.month == 1 else "%b")
            at = datetime(at.year + at.month // 12, at.month % 12 + 1, 1, tzinfo=UTC)


def line_chart(weeks: Sequence[Week], faults: Sequence[PlantedFault], scale: TimeScale, metric: str) -> Markup:
    """Draw a metric of the managed system and of the frozen model, the area between them, and the rows below."""
    height, bottom = 340, 268
    values = [value for week in weeks for value in (week.managed, week.frozen) if value is not None]
    if not values:
        return nothing("No period has labels yet.")
    ticks = nice_ticks(min(values), max(values))
    low, high = ticks[0], ticks[-1]

    def y(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - 34)

    parts = [_grid(scale, bottom, 34), _value_axis(ticks, y), _fault_rules(faults, scale, 18, bottom)]
    parts += [_between(run, scale, y) for run in _runs(weeks)]
    for name in ("frozen", "managed"):
        parts += [_line(run, name, scale, y) for run in _runs(weeks)]
    parts += [_week_marks(weeks, scale, y, metric), _end_labels(weeks, y), _row_bars(weeks, scale, height)]
    title = f"{metric} by week: the managed system against the frozen model"
    return _svg(height, title, f"{len(weeks)} weeks; the same numbers stand in the table below.", parts)


def share_chart(days: Sequence[TrafficDay], colours: Mapping[str, int], scale: TimeScale) -> Markup:
    """Draw which share of each day's requests each version answered, as a stack of steps."""
    height, top, bottom = 214, 14, 190
    shown = [day for day in days if sum(day.answered.values())]
    if not shown:
        return nothing("Nothing was served.")
    parts, base = [_grid(scale, bottom, top)], [0.0] * len(shown)
    for name, colour in colours.items():
        shares = [day.answered.get(name, 0) / sum(day.answered.values()) for day in shown]
        upper = [low + share for low, share in zip(base, shares, strict=True)]
        if any(shares):
            parts.append(_band(name, colour, shown, base, upper, scale, (top, bottom)))
        base = upper
    for share in (0.0, 0.5, 1.0):
        y = bottom - share * (bottom - top)
        parts.append(f'<text class="axis" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    return _svg(height, "Share of requests answered by each version", f"{len(shown)} days.", parts)


def timeline(
    rollouts: Sequence[RolloutPart],
    drift: Sequence[DriftDay],
    incidents: Sequence[IncidentRow],
    faults: Sequence[PlantedFault],
    retrainings: Sequence[tuple[int, str]],
    scale: TimeScale,
) -> Markup:
    """Draw retrainings, rollouts, unusual features and incidents below each other, planted faults across all of them."""
    lanes: list[tuple[str, list[str]]] = [("Retrainings", [_dot(at, text, scale) for at, text in retrainings])]
    for version in dict.fromkeys(part.version for part in sorted(rollouts, key=lambda part: part.start)):
        steps = [_rollout_bar(part, scale) for part in rollouts if part.version == version]
        lanes.append((f"Rollout {version}", steps))
    lanes.append(("Unusual features", [_drift_cell(day, scale) for day in drift]))
    keys = dict.fromkeys(incident.key for incident in incidents)
    for key in keys:
        bars = [_incident_bar(incident, scale) for incident in incidents if incident.key == key]
        lanes.append((f"Incident: {key}", bars))
    lane, top = 34, 30
    height = top + lane * len(lanes) + 30
    parts = [_grid(scale, height - 26, top), _fault_rules(faults, scale, 14, height - 26)]
    for i, (label, marks) in enumerate(lanes):
        y = top + lane * i
        if i:
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y - 2}" y2="{y - 2}"/>')
        parts.append(f'<text class="lane" x="{LEFT}" y="{y + 11}">{escape(_short(label, 96))}</text>')
        parts.append(f'<g transform="translate(0,{y + 15})">{"".join(marks)}</g>')
    return _svg(
        height, "What happened, and when", f"{len(lanes)} lanes on the time scale of the other pictures.", parts
    )


def delay_chart(delays: Delays) -> Markup:
    """Draw how many labels arrived how long after their prediction; bars past the maturity are marked as late."""
    height, top, bottom = 230, 24, 176
    total, most = max(sum(delays.counts), 1), max((*delays.counts, 1))
    step = (WIDTH - LEFT - 20) / len(delays.counts)
    parts = []
    for i, count in enumerate(delays.counts):
        x, share = LEFT + i * step, count / total
        tall = count / most * (bottom - top)
        late = i > 0 and delays.edges[i - 1] >= delays.matured
        label = _bin_label(delays.edges, i)
        parts.append(
            f'<rect class="bar{" late" if late else ""}" x="{x + 3:.1f}" y="{bottom - tall:.1f}" width="{step - 6:.1f}" '
            f'height="{tall:.1f}" rx="2"><title>{label}: {count:,} labels, {share:.1%}</title></rect>'
        )
        middle = x + step / 2
        parts.append(f'<text class="axis" x="{middle:.1f}" y="{bottom + 16}" text-anchor="middle">{label}</text>')
        if count:
            text = f"{share:.0%}" if share >= 0.005 else "<1%"
            parts.append(
                f'<text class="small" x="{middle:.1f}" y="{bottom - tall - 5:.1f}" text-anchor="middle">{escape(text)}</text>'
            )
    parts.append(f'<line class="base" x1="{LEFT}" x2="{WIDTH - 20}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text class="axis" x="{LEFT}" y="{bottom + 38}">time from prediction to label</text>')
    return _svg(height, "How long labels took", f"{total:,} labels.", parts)


def nice_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Return evenly spaced round numbers that enclose a range: steps of 1, 2 or 5 times a power of ten.

    >>> nice_ticks(0.66, 0.74)
    [0.66, 0.68, 0.7, 0.72, 0.74]
    """
    span = max(high - low, abs(high) * 1e-3, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / wanted))
    step = next((m * power for m in (1, 2, 5) if m * power >= span / wanted * 0.999), 10 * power)
    # A value within a thousandth of a step of a tick is that tick: 0.66 / 0.02 is 33 only to rounding.
    first, last = int((low / step + 1e-3) // 1), -int((-high / step + 1e-3) // 1)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def nothing(why: str) -> Markup:
    """Return what stands where there is nothing to draw."""
    return Markup('<p class="empty">{}</p>').format(why)


def _svg(height: int, title: str, description: str, parts: Sequence[str]) -> Markup:
    name = "".join(c if c.isalnum() else "-" for c in title.lower())[:40]
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="{name}-t {name}-d">'
        f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(description)}</desc>'
        f"{''.join(parts)}</svg>"
    )


def _grid(scale: TimeScale, bottom: float, top: float) -> str:
    lines = []
    for moment, name in scale.months():
        x = scale(moment)
        lines.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>')
        lines.append(f'<text class="axis" x="{x + 4:.1f}" y="{bottom + 16}">{name}</text>')
    lines.append(f'<line class="base" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    return "".join(lines)


def _value_axis(ticks: Sequence[float], y: Height) -> str:
    lines, digits = [], max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    for tick in ticks:
        at = y(tick)
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        lines.append(f'<text class="axis" x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{tick:.{digits}f}</text>')
    return "".join(lines)


def _fault_rules(faults: Sequence[PlantedFault], scale: TimeScale, top: float, bottom: float) -> str:
    lines, free = [], 0.0
    for fault in sorted(faults, key=lambda fault: fault.day):
        x, text = scale(fault.day), f"planted: {fault.name}, {Instant(fault.day).day()}: {fault.what}"
        # A name that would run into the one before it is left to the title.
        name = f'<text x="{x + 9:.1f}" y="{top - 1}">{escape(fault.name)}</text>' if x >= free else ""
        free = x + 20 + 7 * len(fault.name) if name else free
        lines.append(
            f'<g class="fault"><title>{escape(text)}</title><line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>'
            f'<path d="M{x - 5:.1f} {top - 8}h10l-5 8z"/>{name}</g>'
        )
    return "".join(lines)


def _runs(weeks: Sequence[Week]) -> list[list[Week]]:
    """Cut the weeks where one has no value, so that no line is drawn over what is not known."""
    groups = groupby(weeks, key=lambda week: week.gap is not None)
    return [list(group) for known, group in groups if known]


def _middle(week: Week) -> float:
    return week.start + WEEK / 2


def _line(run: Sequence[Week], name: str, scale: TimeScale, y: Height) -> str:
    points = [f"{scale(_middle(week)):.1f} {y(getattr(week, name)):.1f}" for week in run]
    return f'<path class="line {name}" d="M{"L".join(points)}"/>'


def _between(run: Sequence[Week], scale: TimeScale, y: Height) -> str:
    """Fill the area between both lines, cut where they cross, so that each piece has one sign."""
    pieces = []
    for first, second in pairwise(run):
        ends = [
            (scale(_middle(week)), y(week.managed), y(week.frozen))
            for week in (first, second)
            if week.managed is not None and week.frozen is not None
        ]
        (x0, m0, f0), (x1, m1, f1) = ends
        before, after = f0 - m0, f1 - m1
        if before * after < 0:
            part = before / (before - after)
            cross = (x0 + (x1 - x0) * part, m0 + (m1 - m0) * part)
            pieces.append(_area([(x0, m0), cross, (x0, f0)], gains=before > 0))
            pieces.append(_area([cross, (x1, m1), (x1, f1)], gains=after > 0))
        else:
            pieces.append(_area([(x0, m0), (x1, m1), (x1, f1), (x0, f0)], gains=before + after > 0))
    return "".join(pieces)


def _area(points: Sequence[tuple[float, float]], *, gains: bool) -> str:
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path class="{"gain" if gains else "loss"}" d="M{path}Z"/>'


def _week_marks(weeks: Sequence[Week], scale: TimeScale, y: Height, metric: str) -> str:
    marks = []
    for week in weeks:
        x, day = scale(_middle(week)), Instant(week.start).day()
        values = (("frozen", week.frozen), ("managed", week.managed))
        text = ", ".join(f"{name} {value:.3f}" for name, value in reversed(values) if value is not None)
        title = f"<title>{escape(f'week of {day}: {metric} {text}; n = {week.n:,}')}</title>"
        for name, value in values:
            if value is not None:
                marks.append(f'<circle class="{name}" cx="{x:.1f}" cy="{y(value):.1f}" r="2.6">{title}</circle>')
    return "".join(marks)


def _end_labels(weeks: Sequence[Week], y: Height) -> str:
    """Name each line at its end with its last value, pushed apart where the names would overlap."""
    ends: list[tuple[float, str, float]] = []
    for name in ("managed", "frozen"):
        known = [value for week in weeks if (value := getattr(week, name)) is not None]
        if known:
            ends.append((y(known[-1]), name, known[-1]))
    ends.sort()
    if len(ends) == 2 and ends[1][0] - ends[0][0] < 16:
        centre = (ends[0][0] + ends[1][0]) / 2
        ends = [(centre - 8, *ends[0][1:]), (centre + 8, *ends[1][1:])]
    x = WIDTH - RIGHT + 10
    return "".join(
        f'<text class="name {name}" x="{x}" y="{at + 4:.1f}">{name} {value:.3f}</text>' for at, name, value in ends
    )


def _row_bars(weeks: Sequence[Week], scale: TimeScale, height: float) -> str:
    most, room = max((week.n for week in weeks), default=0) or 1, 30
    bars = []
    for week in weeks:
        x, wide = scale(week.start), max(scale(week.start + WEEK) - scale(week.start) - 2, 1)
        tall = week.n / most * room
        title = f"<title>week of {Instant(week.start).day()}: n = {week.n:,}</title>"
        shape = f'x="{x + 1:.1f}" y="{height - 6 - tall:.1f}" width="{wide:.1f}" height="{tall:.1f}"'
        bars.append(f'<rect class="rows" {shape}>{title}</rect>')
    label = f'<text class="axis" x="{LEFT - 8}" y="{height - 8}" text-anchor="end">n</text>'
    top = f'<text class="axis" x="{WIDTH - RIGHT + 10}" y="{height - 26}">{most:,} a week</text>'
    return label + top + "".join(bars)


def _band(
    name: str,
    colour: int,
    days: Sequence[TrafficDay],
    base: Sequence[float],
    upper: Sequence[float],
    scale: TimeScale,
    extent: tuple[float, float],
) -> str:
    """Draw one version's share as a band of steps, with its name where the band is thickest for longest."""
    top, bottom = extent

    def y(share: float) -> float:
        return bottom - share * (bottom - top)

    edges = [(scale(day.day), scale(day.day + DAY)) for day in days]
    there = [f"{x:.1f} {y(high):.1f}" for pair, high in zip(edges, upper, strict=True) for x in pair]
    forth = [f"{x:.1f} {y(low):.1f}" for pair, low in zip(edges, base, strict=True) for x in pair]
    back = forth[::-1]
    total = sum(day.answered.get(name, 0) for day in days)
    title = f"<title>{escape(name or 'fallback')}: {total:,} requests</title>"
    band = f'<path class="share v{colour}" d="M{"L".join([*there, *back])}Z">{title}</path>'
    held = [i for i, (low, high) in enumerate(zip(base, upper, strict=True)) if high - low > 0.5]
    if not held or edges[held[-1]][1] - edges[held[0]][0] < 9 * len(name or "fallback") + 6:
        return band
    x, i = (edges[held[0]][0] + edges[held[-1]][1]) / 2, held[len(held) // 2]
    label = f'<text class="inside" x="{x:.1f}" y="{y((base[i] + upper[i]) / 2) + 4:.1f}">{escape(name or "fallback")}</text>'
    return band + label


def _dot(at: int, text: str, scale: TimeScale) -> str:
    title = f"<title>{escape(f'{Instant(at).day()}: {text}')}</title>"
    return f'<circle class="retrain" cx="{scale(at):.1f}" cy="6" r="5">{title}</circle>'


def _rollout_bar(part: RolloutPart, scale: TimeScale) -> str:
    x = scale(part.start)
    wide = max(scale(scale.end if part.end is None else part.end) - x, 3)
    text = f"{part.version}: {part.label}, from {Instant(part.start).day()}"
    text += f": {part.reason}" if part.reason else ""
    bar = f'<rect class="step {part.kind}" x="{x:.1f}" y="0" width="{wide:.1f}" height="12" rx="2">'
    if part.kind == "aborted":
        bar = f'<path class="step aborted" d="M{x - 5:.1f} 1l10 10m0 -10l-10 10">'
        return f'{bar}<title>{escape(text)}</title></path><text class="aborted" x="{x + 12:.1f}" y="10">aborted</text>'
    return f"{bar}<title>{escape(text)}</title></rect>"


def _drift_cell(day: DriftDay, scale: TimeScale) -> str:
    x, wide = scale(day.day), max(scale(day.day + DAY) - scale(day.day), 1)
    share = day.unusual / max(day.judged, 1)
    text = f"{Instant(day.day).day()}: {day.unusual} of {day.judged} features unusual"
    text += f"; furthest: {day.worst}" if day.worst else ""
    opacity = 0.0 if not day.unusual else 0.25 + 0.75 * min(share * 3, 1)
    title = f"<title>{escape(text)}</title>"
    return f'<rect class="cell" x="{x:.1f}" y="0" width="{wide:.2f}" height="12" fill-opacity="{opacity:.2f}">{title}</rect>'


def _incident_bar(incident: IncidentRow, scale: TimeScale) -> str:
    end = scale.end if incident.closed is None else incident.closed
    x, wide = scale(incident.opened), max(scale(end) - scale(incident.opened), 4)
    until = "open" if incident.closed is None else f"closed {Instant(incident.closed).day()}"
    text = f"{Instant(incident.opened).day()}, {until}: {incident.what}"
    kind = "planted" if incident.fault else "found"
    text += f" (planted: {incident.fault})" if incident.fault else ""
    bar = f'<rect class="incident {kind}" x="{x:.1f}" y="0" width="{wide:.1f}" height="12" rx="2">'
    return f"{bar}<title>{escape(text)}</title></rect>"


def _bin_label(edges: Sequence[int], i: int) -> str:
    if i == 0:
        return f"under {_span(edges[0])}"
    return f"{_span(edges[-1])}+" if i == len(edges) else f"{_span(edges[i - 1])}–{_span(edges[i])}"


def _span(microseconds: int) -> str:
    hours = microseconds / HOUR
    return f"{hours:g}h" if hours < 48 else f"{hours / 24:g}d"


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
