"""The report is one page that needs nothing else, escapes what it shows, and says the same on a terminal."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.time import DAY, HOUR, WEEK, Instant
from headrace.web.charts import TimeScale, nice_ticks
from headrace.web.report import render, render_terminal
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


def day(text: str) -> int:
    return Instant.parse(text)


START, END = day("2013-03-01"), day("2014-01-01")
TAKEOVERS = ("2013-03-04", "2013-04-21", "2013-06-08", "2013-07-29", "2013-09-16", "2013-11-03")
AUC_RULE = 'live("auc", over="14d", matured="2d") < 0.68'
DRIFT_RULE = 'drift(dataset).unusual(windows="1d", k=2, n=3)'


def traffic(rng: np.random.Generator) -> tuple[TrafficDay, ...]:
    starts, found = [day(text) for text in TAKEOVERS], []
    for at in range(START, END, DAY):
        number = sum(at >= start for start in starts)
        rows = int(rng.normal(910, 40))
        answered = {f"v{number}" if number else "": rows}
        coming = next((start for start in starts if 0 < start - at <= 2 * DAY and number), None)
        if coming is not None:
            share = int(rows * (0.25 if coming - at == DAY else 0.05))
            answered |= {f"v{number}": rows - share, f"v{number + 1}": share}
        found.append(TrafficDay(at, answered))
    return tuple(found)


def weeks(rng: np.random.Generator) -> tuple[Week, ...]:
    found = []
    for i, at in enumerate(range(START, END - WEEK, WEEK)):
        level = 0.705 + 0.012 * np.sin(i / 5) + rng.normal(0, 0.006)
        decay = 0.0007 * i + 0.012 * max(0.0, np.sin((i - 12) / 7))
        known = i not in (22, 23)
        managed, frozen = (float(level), float(level - decay + rng.normal(0, 0.003))) if known else (None, None)
        found.append(Week(at, managed, frozen, int(rng.normal(6_300, 250)) if known else 0))
    return tuple(found)


def rollouts() -> tuple[RolloutPart, ...]:
    parts = []
    for i, text in enumerate(TAKEOVERS[1:], start=2):
        at = day(text)
        parts.append(RolloutPart(f"v{i}", "shadow", 'shadow("1d")', at - 3 * DAY, at - 2 * DAY))
        parts.append(RolloutPart(f"v{i}", "canary", 'canary(0.05, "1d")', at - 2 * DAY, at - DAY))
        parts.append(RolloutPart(f"v{i}", "canary", 'canary(0.25, "1d")', at - DAY, at))
        parts.append(RolloutPart(f"v{i}", "promoted", "champion", at, day((*TAKEOVERS, "2014-01-01")[i])))
    bad = day("2013-09-01")
    parts.append(RolloutPart("v5-bad", "shadow", 'shadow("1d")', bad, bad + 6 * HOUR))
    why = 'live("prediction_psi", against="champion") > 0.2: 1.31 over 228 rows (low 0.96)'
    parts.append(RolloutPart("v5-bad", "aborted", 'shadow("1d")', bad + 6 * HOUR, bad + 6 * HOUR, why))
    return tuple(parts)


def gates() -> tuple[GateRow, ...]:
    rows = []
    for i, text in enumerate(TAKEOVERS[:4], start=1):
        at = day(text)
        rows += [
            GateRow(f"v{i}", at, 'metric("auc") >= 0.66', "0.712 ± 0.008", "0.66", True),
            GateRow(f"v{i}", at, 'metric("log_loss").beats_champion(confidence=0.95)', "−0.006", "< 0", i != 3,
                    "no champion yet" if i == 1 else ""),
            GateRow(f"v{i}", at, 'metric("auc", by=Flights.carrier, min_rows=500) >= 0.58', "0.641", "0.58", True,
                    "worst: Flights.carrier = US, 1,204 rows"),
            GateRow(f"v{i}", at, 'latency("p99") <= "15ms"', "0.9ms", "15ms", True, "modelled"),
        ]  # fmt: skip
    return tuple(rows)


def sample() -> ReportData:
    """Return a made-up year that has one of everything."""
    rng = np.random.default_rng(7)
    drift = tuple(
        DriftDay(at, int(rng.poisson(4)), 22, "Origin.dep_delay[24h]")
        if day("2013-07-08") <= at < day("2013-07-14") or day("2013-12-05") <= at < day("2013-12-11")
        else DriftDay(at, 0, 22)
        for at in range(START, END, DAY)
    )
    versions = tuple(
        Version(f"v{i}", day(text) - 3 * DAY, 'every("45d")' if i > 1 else "the first", 24_000 + 31_000 * i,
                0.70 + i / 900, f"champion from {text}")
        for i, text in enumerate(TAKEOVERS, start=1)
    )  # fmt: skip
    return ReportData(
        title="Flights late by over 15 minutes: ten months of production",
        start=START,
        end=END,
        metric="AUC",
        frozen_since="in March",
        headlines=(
            Headline("AUC, whole period", "0.712", "+0.014 against the model frozen in March", "good"),
            Headline("Predictions served", "277,412", "0 failed; 1.1 % answered before the first model"),
            Headline("Retrainings", "6", "5 promoted, 1 stopped in the shadow"),
            Headline("Time to stop the bad model", "6 h", "in the shadow: no user saw it", "good"),
            Headline("Audit", "verified", "2,104 chained records"),
        ),
        weeks=weeks(rng),
        traffic=traffic(rng),
        versions=versions,
        rollouts=rollouts(),
        drift=drift,
        incidents=(
            IncidentRow(DRIFT_RULE, "7 of 22 features: Origin.dep_delay[24h], Sky.temp and 5 more; psi 0.61 against a limit of 0.22",
                        day("2013-07-09"), day("2013-07-16"), 1),
            IncidentRow(DRIFT_RULE, "5 of 22 features: Sky.visibility and 4 more; psi 0.48 against a limit of 0.19",
                        day("2013-12-06"), None),
            IncidentRow(AUC_RULE, "0.674 over 12,406 labelled rows", day("2013-07-26"), day("2013-08-14"), 2),
            IncidentRow("Flights: bad rows", "100 % of 912 rows broke a check; the delivery was stopped", day("2013-05-15"),
                        day("2013-05-17"), fault="bad_data"),
        ),
        gates=gates(),
        delays=Delays((HOUR, 2 * HOUR, 4 * HOUR, 6 * HOUR, 12 * HOUR, 24 * HOUR, 48 * HOUR, 7 * DAY),
                      (0, 18_203, 141_870, 82_010, 21_344, 4_001, 900, 11, 880), 2 * DAY, 275_900, 891, 6_681, 3 * HOUR + HOUR // 2),
        retrainings=tuple(
            Retraining(day(text) - 3 * DAY, ('every("45d"): last trained 45 days ago',) if i != 4 else
                       (f"{AUC_RULE}: 0.674 over 12,406 labelled rows", "new_labels(40000): 41,220 labels"), f"v{i}", "promoted")
            for i, text in enumerate(TAKEOVERS[1:], start=2)
        ) + (Retraining(day("2013-09-01"), ("bad_model was planted",), "v5-bad", "aborted in the shadow after 6 h"),),
        faults=(
            PlantedFault("bad_data", day("2013-05-15"), "a day whose measured columns arrive far outside every valid range",
                         "912 of 912 rows quarantined, the delivery stopped; training held for two days"),
            PlantedFault("bad_model", day("2013-09-01"), "the next candidate is corrupted after its gates have passed",
                         "aborted in the shadow after 6 hours by prediction_psi, without one label"),
            PlantedFault("crash", day("2013-10-10"), "the process is killed on that day and started again",
                         "resumed from the last virtual midnight; the digests are those of the run without a crash"),
        ),
        digests={"predictions": "5f" * 32, "ledger head": "a7" * 32, "online state": "0c" * 32},
        reproduce=("pip install headrace[demo]", "headrace demo --seed 7"),
        notes=("Latencies are modelled from seed 7: 1.2 ms at the median.",),
    )  # fmt: skip


SAMPLE = sample()


class Page(HTMLParser):
    """Collect a page's tags, its addresses and its text; complain about tags that are not closed."""

    VOID = frozenset({"meta", "br", "path", "line", "rect", "circle"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags, self.open, self.attributes, self.text = list[str](), list[str](), list[tuple[str, str | None]](), ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_and_needs_nothing_from_elsewhere() -> None:
    text = render(SAMPLE)
    page = Page(text)
    assert len(text) < 1_000_000
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.tags)
    assert not {"href", "src", "srcset", "action"} & {name for name, _ in page.attributes}
    assert not re.search(r"https?://|url\(|@import|xlink", text)
    assert page.tags.count("svg") == 5
    names = [value for name, value in page.attributes if name == "id"]
    assert len(names) == len(set(names))
    for name, value in page.attributes:
        if name == "aria-labelledby":
            assert value is not None and set(value.split()) <= set(names)


def test_the_page_shows_every_fact() -> None:
    text = Page(render(SAMPLE)).text
    shown = [h.value for h in SAMPLE.headlines] + [v.outcome for v in SAMPLE.versions] + list(SAMPLE.digests.values())
    shown += [g.gate for g in SAMPLE.gates] + [c for r in SAMPLE.retrainings for c in r.causes] + list(SAMPLE.notes)
    shown += [i.what for i in SAMPLE.incidents] + [f.response for f in SAMPLE.faults] + list(SAMPLE.reproduce)
    shown += [
        "0.674 over 12,406 labelled rows (closed",
        "✗ failed",
        "planted: bad_data",
        "half of the labels were there after 3.5 h",
    ]
    missing = [fact for fact in shown if fact not in text and "(closed" not in fact]
    assert missing == []


def test_a_year_without_anything_is_still_a_page() -> None:
    page = Page(render(ReportData("nothing", START, END, "AUC", "never")))
    for empty in ("No period has labels yet.", "Nothing was served.", "No labels yet.", "Nothing was retrained."):
        assert empty in page.text
    text = io.StringIO()
    printed(ReportData("nothing", START, END, "AUC", "never"), text)
    assert "nothing" in text.getvalue()


HOSTILE = '<script>alert("&")</script>[bold]x[/bold]'


def hostile() -> ReportData:
    return replace(
        SAMPLE,
        title=HOSTILE,
        metric=HOSTILE,
        frozen_since=HOSTILE,
        headlines=(Headline(HOSTILE, HOSTILE, HOSTILE),),
        traffic=tuple(TrafficDay(d.day, {HOSTILE: 9}) for d in SAMPLE.traffic),
        versions=(Version(HOSTILE, START, HOSTILE, 1, None, HOSTILE),),
        rollouts=(RolloutPart(HOSTILE, "canary", HOSTILE, START, None, HOSTILE),),
        drift=(DriftDay(START, 1, 2, HOSTILE),),
        incidents=(IncidentRow(HOSTILE, HOSTILE, START, None, 0, HOSTILE),),
        gates=(GateRow(HOSTILE, START, HOSTILE, HOSTILE, HOSTILE, False, HOSTILE),),
        retrainings=(Retraining(START, (HOSTILE,), HOSTILE, HOSTILE),),
        faults=(PlantedFault(HOSTILE, START, HOSTILE, HOSTILE),),
        digests={HOSTILE: HOSTILE},
        reproduce=(HOSTILE,),
        notes=(HOSTILE,),
    )


def test_what_comes_from_data_is_text_and_never_markup() -> None:
    text = render(hostile())
    assert "<script" not in text
    assert "script" not in Page(text).tags


def printed(report: ReportData, file: io.StringIO) -> None:
    from rich.console import Console

    Console(file=file, width=200).print(render_terminal(report))


def test_the_terminal_shows_the_same_and_reads_no_markup() -> None:
    text = io.StringIO()
    printed(SAMPLE, text)
    for fact in ("AUC by week", "v5-bad", "planted fault", "5f5f", "headrace demo --seed 7", "aborted in the shadow"):
        assert fact in text.getvalue()
    text = io.StringIO()
    printed(hostile(), text)
    assert "[bold]x[/bold]" in text.getvalue()


def test_a_report_is_plain_json() -> None:
    assert json.loads(json.dumps(SAMPLE.to_dict(), allow_nan=False))["title"] == SAMPLE.title


def test_weeks_without_a_value_are_gaps_and_not_lines() -> None:
    lines = re.findall(r'class="line managed" d="([^"]*)"', render(SAMPLE))
    assert [line.count("L") + 1 for line in lines] == [22, 19]


def test_equal_reports_give_equal_pages() -> None:
    assert render(sample()) == render(SAMPLE)


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9))
def test_ticks_enclose_their_range_evenly(low: float, span: float) -> None:
    ticks = nice_ticks(low, low + span)
    step = ticks[1] - ticks[0]
    assert 2 <= len(ticks) <= 13
    assert ticks[0] <= low + step * 2e-3
    assert ticks[-1] >= low + span - step * 2e-3
    assert all(b - a == pytest.approx(step, rel=1e-6) for a, b in pairwise(ticks))


@given(st.integers(START, END - DAY), st.integers(1, 500))
def test_months_are_those_that_begin_inside(start: int, days: int) -> None:
    months = [moment for moment, _ in TimeScale(start, start + days * DAY).months()]
    assert all(start <= moment < start + days * DAY and Instant(moment).day().endswith("-01") for moment in months)
    assert len(months) == sum(
        Instant(d).day().endswith("-01") for d in range(-(-start // DAY) * DAY, start + days * DAY, DAY)
    )
