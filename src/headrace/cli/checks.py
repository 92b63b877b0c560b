"""Offer the verbs that look after data: checks, quarantine, baselines, contracts."""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.cli.options import Env, Json, State
from headrace.cli.output import Output

quarantine = typer.Typer(help="Look at rows that broke checks; release or drop them.", no_args_is_help=True)
baseline = typer.Typer(help="Set the distributions that deliveries are compared with.", no_args_is_help=True)
contract = typer.Typer(help="Write and compare contracts: what a source's data must satisfy.", no_args_is_help=True)

Source = Annotated[str, typer.Argument(metavar="SOURCE", help="The source's class name, as Flights.")]
Pipeline = Annotated[
    str | None,
    typer.Option(
        "--pipeline",
        metavar="FILE:PIPELINE",
        help="The pipeline; by default that of [project] modules in headrace.toml.",
    ),
]
Why = Annotated[str, typer.Option(help="The reason, for the audit trail.")]
Ids = Annotated[str | None, typer.Option(help="Ids, or their first 8 digits and more, separated by commas.")]
Check = Annotated[str | None, typer.Option(help="Rows that broke this check, by its full name.")]
Run = Annotated[str | None, typer.Option(help="Rows of one verdict: its record's number, or its moment.")]
Everything = Annotated[bool, typer.Option("--everything", help="All rows that wait.")]


def checks(
    source: Annotated[str | None, typer.Argument(metavar="[SOURCE]", help="One source; by default all.")] = None,
    report: Annotated[str | None, typer.Option(help="Also write a page with histories and distributions here.")] = None,
    limit: Annotated[int, typer.Option(help="At most so many verdicts of a source, the newest.")] = 50,
    pipeline: Pipeline = None,
    state: State = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """List each check's newest result and history."""
    from headrace.pipelines.project import load_project
    from headrace.pipelines.verdicts import list_checks

    project = load_project(pipeline, env=env, state=state)
    found = list_checks(project, source, state=state, limit=limit)
    if report is not None:
        from headrace.web.checks import write_checks

        found = found.noted(write_checks(project, source, report, state=state, limit=limit))
    Output(json).show(found)


@quarantine.command("list")
def quarantine_list(
    source: Source,
    everything: Annotated[bool, typer.Option("--all", help="Also rows that were released or dropped.")] = False,
    limit: Annotated[int, typer.Option(help="At most so many, the newest.")] = 50,
    pipeline: Pipeline = None,
    state: State = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """List a source's rows that wait in quarantine."""
    from headrace.pipelines.project import load_project
    from headrace.pipelines.quarantine import list_quarantine

    project = load_project(pipeline, env=env, state=state)
    Output(json).show(list_quarantine(project, source, everything=everything, limit=limit, state=state))


@quarantine.command("show")
def quarantine_show(
    source: Source,
    row: Annotated[str, typer.Argument(metavar="ID", help="The row's id, or its first 8 digits and more.")],
    pipeline: Pipeline = None,
    state: State = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """Show a quarantined row, what it stated and what it broke."""
    from headrace.pipelines.project import load_project
    from headrace.pipelines.quarantine import show_quarantined

    Output(json).show(show_quarantined(load_project(pipeline, env=env, state=state), source, row, state=state))


def _decision(decision: str, told: str) -> None:
    """Offer a decision about quarantined rows: all take the same options."""

    def decide_rows(
        source: Source,
        why: Why,
        ids: Ids = None,
        check: Check = None,
        run: Run = None,
        everything: Everything = False,
        pipeline: Pipeline = None,
        state: State = None,
        env: Env = None,
        json: Json = False,
    ) -> None:
        from headrace.pipelines.project import load_project
        from headrace.pipelines.quarantine import Selection, decide

        named = tuple(part.strip() for part in ids.split(",") if part.strip()) if ids else ()
        selection = Selection(named, check, run, everything)
        project = load_project(pipeline, env=env, state=state)
        Output(json).show(decide(project, source, decision, selection, why=why, state=state))

    quarantine.command(decision, help=told)(decide_rows)


_decision("release", "Let rows pass after all: they enter the source with the arrival they had.")
_decision("drop", "Decide that rows stay out for good; they are kept, and no longer listed.")


@baseline.command("set")
def baseline_set(
    source: Source,
    why: Why,
    since: Annotated[
        str | None, typer.Option("--from", help="Only rows from this instant on, ISO 8601 in UTC.")
    ] = None,
    until: Annotated[str | None, typer.Option("--to", help="Only rows before this instant.")] = None,
    pipeline: Pipeline = None,
    state: State = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """Make the distributions of a source's accepted rows its baseline."""
    from headrace.pipelines.baselines import set_baseline
    from headrace.pipelines.project import load_project

    project = load_project(pipeline, env=env, state=state)
    Output(json).show(set_baseline(project, source, why=why, since=since, until=until, state=state))


@baseline.command("show")
def baseline_show(
    source: Source, pipeline: Pipeline = None, state: State = None, env: Env = None, json: Json = False
) -> None:
    """Show a source's baseline and the versions before it."""
    from headrace.pipelines.baselines import show_baseline
    from headrace.pipelines.project import load_project

    Output(json).show(show_baseline(load_project(pipeline, env=env, state=state), source, state=state))


@contract.command("infer")
def contract_infer(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A source's class name, or a data file.")],
    to: Annotated[str | None, typer.Option(help="Write the code to this new file.")] = None,
    pipeline: Pipeline = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """Write a source's class, column constraints and checks from its data, as code to review and keep."""
    from headrace.pipelines.contract import infer_contract

    Output(json).show(infer_contract(source, pipeline=pipeline, env=env, to=to))


@contract.command("check")
def contract_check(source: Source, pipeline: Pipeline = None, env: Env = None, json: Json = False) -> None:
    """Tell how a source's class differs from what its data would suggest, and what of its data breaks it."""
    from headrace.pipelines.contract import check_contract
    from headrace.pipelines.project import load_project

    Output(json).show(check_contract(load_project(pipeline, env=env), source))
