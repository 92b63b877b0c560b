"""Show a replay: one self-contained page that works offline, and the same as tables on a terminal."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Any

import jinja2

from headrace.core.time import HOUR, Instant
from headrace.web import charts
from headrace.web.report_data import ReportData

if TYPE_CHECKING:
    from rich.console import Group

TEMPLATE = "report.html.j2"
SPARKS = "▁▂▃▄▅▆▇█"


def render(report: ReportData) -> str:
    """Return the report as one HTML page: no script, no font, no picture and no style comes from elsewhere.

    All text is escaped; light and dark follow the reader's system.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters.update(day=_day, number=_number, count=_count, span=_span)
    template = environment.from_string(files("headrace.web").joinpath(TEMPLATE).read_text("utf-8"))
    return template.render(report=report, colours=_colours(report), palette=charts.PALETTE, **_pictures(report))


def render_terminal(report: ReportData) -> Group:
    """Return the report as tables for `rich`'s console; no text in it is read as markup."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = [Text(report.title, style="bold"), Text(f"{_day(report.start)} to {_day(report.end)}"), Text()]
    parts.append(_table("", ("", "", ""), [(h.label, h.value, h.note) for h in report.headlines], header=False))
    spark = "".join(_spark([week.managed for week in report.weeks]))
    parts += [Text(), Text(f"{report.metric} of the managed system by week: {spark}")]
    for title, columns, rows in _tables(report):
        if rows:
            parts += [Text(), _table(title, columns, rows)]
    parts += [Text(), *(Text(f"{name}: {digest}") for name, digest in report.digests.items())]
    parts += [Text(f"again: {line}") for line in report.reproduce]
    parts += [Text(note, style="dim") for note in report.notes]
    return Group(*parts)


def _pictures(report: ReportData) -> dict[str, Any]:
    scale = charts.TimeScale(report.start, report.end)
    causes = [(r.at, f"{'; '.join(r.causes)}: {r.outcome}") for r in report.retrainings]
    return {
        "performance": charts.line_chart(report.weeks, report.faults, scale, report.metric),
        "shares": charts.share_chart(report.traffic, _colours(report), scale),
        "events": charts.timeline(report.rollouts, report.drift, report.incidents, report.faults, causes, scale),
        "delays": charts.delay_chart(report.delays) if report.delays else charts.nothing("No labels yet."),
    }


def _colours(report: ReportData) -> dict[str, int]:
    """Give each version that answered one of the style's colours, in order of appearance; the fallback has its own, 0."""
    names = dict.fromkeys(name for day in report.traffic for name, count in day.answered.items() if count)
    versions = [name for name in names if name]
    return {name: versions.index(name) % charts.PALETTE + 1 if name else 0 for name in names}


def _tables(report: ReportData) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    return [
        (
            f"{report.metric} by week",
            ("week", "managed", f"frozen {report.frozen_since}", "gap", "n"),
            [
                (_day(w.start), _number(w.managed), _number(w.frozen), _number(w.gap, signed=True), _count(w.n))
                for w in report.weeks
            ],
        ),
        (
            "Versions",
            ("version", "trained", "why", "rows", report.metric, "outcome"),
            [(v.name, _day(v.trained), v.why, _count(v.rows), _number(v.metric), v.outcome) for v in report.versions],
        ),
        (
            "Gates",
            ("version", "gate", "measured", "threshold", "passed", "reason"),
            [(g.version, g.gate, g.measured, g.threshold, "yes" if g.passed else "NO", g.reason) for g in report.gates],
        ),
        (
            "Rollouts",
            ("version", "step", "from", "to", "reason"),
            [(p.version, p.label, _day(p.start), _day(p.end), p.reason) for p in report.rollouts],
        ),
        (
            "Retrainings",
            ("at", "causes", "version", "outcome"),
            [(_day(r.at), "; ".join(r.causes), r.version or "–", r.outcome) for r in report.retrainings],
        ),
        (
            "Incidents",
            ("opened", "closed", "what is watched", "found", "planted fault"),
            [(_day(i.opened), _day(i.closed), i.key, i.what, i.fault) for i in report.incidents],
        ),
        (
            "Faults planted on purpose",
            ("day", "fault", "what it was", "what the system did"),
            [(_day(f.day), f.name, f.what, f.response) for f in report.faults],
        ),
        ("Label delays", ("rows", "late", "missing", "median"), _delay_rows(report)),
    ]


def _delay_rows(report: ReportData) -> list[tuple[str, ...]]:
    found = report.delays
    return (
        [] if found is None else [(_count(found.rows), _count(found.late), _count(found.missing), _span(found.median))]
    )


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]], *, header: bool = True) -> Any:
    from rich.table import Table
    from rich.text import Text

    shown = Table(
        title=Text(title) if title else None,
        title_justify="left",
        header_style="bold",
        box=None,
        pad_edge=False,
        show_header=header,
    )
    for column in columns:
        shown.add_column(Text(column), overflow="fold")
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))
    return shown


def _spark(values: list[float | None]) -> list[str]:
    known = [value for value in values if value is not None]
    if not known:
        return []
    low, span = min(known), (max(known) - min(known)) or 1.0
    return [" " if v is None else SPARKS[round((v - low) / span * (len(SPARKS) - 1))] for v in values]


def _day(moment: int | None) -> str:
    return "–" if moment is None else Instant(moment).day()


def _number(value: float | None, digits: int = 3, *, signed: bool = False) -> str:
    return "–" if value is None else f"{value:{'+' if signed else ''}.{digits}f}"


def _count(value: int) -> str:
    return f"{value:,}"


def _span(microseconds: int | None) -> str:
    if microseconds is None:
        return "–"
    hours = microseconds / HOUR
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} d"
