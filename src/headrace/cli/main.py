"""Offer every verb on the command line; each command imports what it needs when it is called."""

from __future__ import annotations

import gc
import sys
from typing import Annotated, Any

import typer

from headrace.cli import checks
from headrace.cli.features import verbs as feature_verbs
from headrace.cli.options import BehindProxy, Default, Env, Host, Json, Port, State, Target
from headrace.cli.output import Output, finish
from headrace.core.version import __version__

app = typer.Typer(
    name="headrace",
    help="Run an ML system that one file describes, close its loop, and replay it over history.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
audit_app = typer.Typer(help="Read and check the ledger.", no_args_is_help=True)
letters = typer.Typer(help="Look after events and rows that could not be read.", no_args_is_help=True)
app.add_typer(feature_verbs)
app.add_typer(letters, name="dead-letters")
app.add_typer(audit_app, name="audit")
app.add_typer(checks.quarantine, name="quarantine")
app.add_typer(checks.baseline, name="baseline")
app.add_typer(checks.contract, name="contract")
app.command("checks")(checks.checks)

# Python looks for cycles after every 700 new containers; rows and reveals are none. This saves 14 % of a replay.
COLLECT = (50_000, 20, 100)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"headrace {__version__}")
        raise typer.Exit


@app.callback()
def root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    """Run an ML system that one file describes, close its loop, and replay it over history."""


@app.command()
def new(
    folder: Annotated[str, typer.Argument(help="The folder to write; it must not exist or be empty.")],
    data: Annotated[
        str | None, typer.Option("--from", help="A Parquet, CSV or JSON Lines file of your own to begin with.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="The column of that file to predict; guessed unless said.")] = None,
    zone: Annotated[str | None, typer.Option(help="The zone of its timestamps that carry none.")] = None,
    json: Json = False,
) -> None:
    """Write a small project that runs: a file, its settings and generated data, or one around your own data."""
    if data is not None:
        from headrace.cli.from_data import write_project_from

        Output(json).show(write_project_from(folder, data, label=label, zone=zone))
        return
    from headrace.cli.template import write_project

    Output(json).show(write_project(folder))


@app.command()
def plan(target: Default = None, state: State = None, env: Env = None, json: Json = False) -> None:
    """Show what would run and why, and what a changed definition would touch; reads no rows."""
    from headrace.pipelines.plan import describe_plan
    from headrace.pipelines.project import load_project

    Output(json).show(describe_plan(load_project(target, env=env, state=state), state=state))


@app.command()
def run(
    target: Default = None,
    state: State = None,
    env: Env = None,
    seed: int = 0,
    engine: Annotated[str | None, typer.Option(help="Where the training set is computed, as ray: or spark:.")] = None,
    json: Json = False,
) -> None:
    """Ingest, validate, compute features, train, evaluate, gate, register and promote. Resumes after a crash."""
    from headrace.pipelines.project import load_project
    from headrace.pipelines.run import run as run_pipeline

    out = Output(json)
    with out.progress() as progress:
        project = load_project(target, env=env, state=state)
        result = run_pipeline(project, state=state, seed=seed, progress=progress, engine=engine)
    out.show(result)


@app.command()
def replay(
    target: Default = None,
    *,
    start: Annotated[str, typer.Option("--from", help="The first day, as 2013-01-01.")],
    end: Annotated[str, typer.Option("--to", help="The day after the last.")],
    seed: Annotated[int, typer.Option(help="The seed of everything random.")] = 0,
    fault: Annotated[list[str] | None, typer.Option(help="Plant a fault: NAME@DATE; may be repeated.")] = None,
    freeze: Annotated[str | None, typer.Option(help="Keep this day's champion scoring in the shadow.")] = None,
    state: State = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """Live through a span of history with a virtual clock, and report what the policies would have done."""
    from headrace.pipelines.project import load_project
    from headrace.pipelines.replay import ReplayPlan
    from headrace.pipelines.supervise import supervised_replay
    from headrace.web.write import write_report

    out = Output(json)
    wanted = ReplayPlan.parse(start, end, seed=seed, faults=fault or [], freeze=freeze)
    project = load_project(target, env=env, state=state)
    with out.progress() as progress:
        result = supervised_replay(project, wanted, state=state, progress=progress)
        report = write_report(project, str(result["state"]), progress)
    out.show(result.noted(*report))


@app.command()
def serve(
    target: Default = None,
    state: State = None,
    env: Env = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    behind_proxy: BehindProxy = False,
    json: Json = False,
) -> None:
    """Answer predictions over HTTP with the live model."""
    from headrace.pipelines.project import load_project
    from headrace.pipelines.serve import serve as serve_pipeline

    project = load_project(target, env=env, state=state)
    serve_pipeline(project, state=state, host=host, port=port, behind_proxy=behind_proxy, json=json)


@app.command()
def up(
    target: Default = None,
    state: State = None,
    env: Env = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    behind_proxy: BehindProxy = False,
    json: Json = False,
) -> None:
    """Serve, and run the control loop beside it: streams, monitors, retraining, rollout."""
    from headrace.pipelines.project import load_project
    from headrace.pipelines.up import up as run_up

    run_up(
        load_project(target, env=env, state=state),
        state=state,
        host=host,
        port=port,
        behind_proxy=behind_proxy,
        json=json,
    )


@app.command()
def predict(
    target: Target,
    rows: Annotated[
        str | None,
        typer.Argument(help="A JSON-lines, CSV or Parquet file of rows; - reads JSON lines. A grid has its own."),
    ] = None,
    to: Annotated[str | None, typer.Option(help="Write the answers to this Parquet or JSON-lines file.")] = None,
    version: Annotated[str | None, typer.Option(help="The version that answers: v3, champion or challenger.")] = None,
    as_of: Annotated[str | None, typer.Option(help="From what was known then, ISO 8601 with a zone.")] = None,
    state: State = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """Score many rows: as they are served, or from history with a version and a moment of your choice."""
    from headrace.pipelines.predict import predict as predict_rows
    from headrace.pipelines.project import load_project

    out = Output(json)
    with out.progress() as progress:
        project = load_project(target, env=env, state=state)
        result = predict_rows(project, rows, to=to, version=version, as_of=as_of, state=state, progress=progress)
    out.show(result)


@app.command()
def promote(
    target: Target,
    version: Annotated[str, typer.Argument(help="The version to make champion, as v3.")],
    why: Annotated[str, typer.Option(help="The reason, for the audit trail.")],
    force: Annotated[bool, typer.Option(help="Promote although gates failed; recorded.")] = False,
    state: State = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """Make a version the champion."""
    from headrace.pipelines.operate import promote as promote_version
    from headrace.pipelines.project import load_project

    Output(json).show(
        promote_version(load_project(target, env=env, state=state), version, why=why, force=force, state=state)
    )


@app.command()
def approve(
    target: Target,
    version: Annotated[str, typer.Argument(help="The version to approve, as v3.")],
    why: Annotated[str, typer.Option(help="The reason, for the audit trail.")],
    state: State = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """Approve a version, for the audit trail."""
    from headrace.pipelines.operate import approve as approve_version
    from headrace.pipelines.project import load_project

    Output(json).show(approve_version(load_project(target, env=env, state=state), version, why=why, state=state))


@app.command()
def rollback(
    target: Default = None,
    to: Annotated[str | None, typer.Option(help="The version to go back to, as v2; by default the one before.")] = None,
    why: Annotated[str, typer.Option(help="The reason, for the audit trail.")] = "rolled back by hand",
    state: State = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """Make an earlier version the champion again, at once."""
    from headrace.pipelines.operate import rollback as roll_back
    from headrace.pipelines.project import load_project

    Output(json).show(roll_back(load_project(target, env=env, state=state), to=to, why=why, state=state))


@app.command()
def models(target: Default = None, state: State = None, env: Env = None, json: Json = False) -> None:
    """List the registered versions."""
    from headrace.pipelines.inspect import list_models
    from headrace.pipelines.project import load_project

    Output(json).show(list_models(load_project(target, env=env, state=state), state=state))


@app.command()
def runs(target: Default = None, state: State = None, env: Env = None, json: Json = False) -> None:
    """List the training runs."""
    from headrace.pipelines.inspect import list_runs
    from headrace.pipelines.project import load_project

    Output(json).show(list_runs(load_project(target, env=env, state=state), state=state))


@app.command()
def incidents(target: Default = None, state: State = None, env: Env = None, json: Json = False) -> None:
    """List incidents, the newest first."""
    from headrace.pipelines.inspect import list_incidents
    from headrace.pipelines.project import load_project

    Output(json).show(list_incidents(load_project(target, env=env, state=state), state=state))


@app.command()
def explain(
    target: Target,
    prediction: Annotated[str | None, typer.Argument(help="A prediction id.")] = None,
    feature: Annotated[str | None, typer.Option(help="A feature, as Origin.dep_delay.")] = None,
    key: Annotated[str | None, typer.Option(help="The entity's key, parts separated by commas.")] = None,
    at: Annotated[str | None, typer.Option(help="The moment, ISO 8601 with a zone.")] = None,
    state: State = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """Explain a prediction, or a feature of a key at a moment with the events used and refused."""
    from headrace.pipelines.explain import explain_feature, explain_prediction
    from headrace.pipelines.project import load_project

    project = load_project(target, env=env, state=state)
    if prediction is not None:
        Output(json).show(explain_prediction(project, prediction, state=state))
    else:
        Output(json).show(explain_feature(project, feature, key, at, state=state))


@audit_app.command("verify")
def audit_verify(target: Default = None, state: State = None, env: Env = None, json: Json = False) -> None:
    """Check the ledger's hash chain, pointers and checkpoints."""
    from headrace.pipelines.inspect import verify_ledger
    from headrace.pipelines.project import load_project

    result = verify_ledger(load_project(target, env=env, state=state), state=state)
    Output(json).show(result)
    if not result["ok"]:
        raise typer.Exit(1)


@audit_app.command("log")
def audit_log(
    target: Default = None,
    kind: Annotated[str | None, typer.Option(help="Only records of this kind.")] = None,
    limit: Annotated[int, typer.Option(help="At most so many, the newest first.")] = 50,
    state: State = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """List ledger records, the newest first."""
    from headrace.pipelines.inspect import list_records
    from headrace.pipelines.project import load_project

    Output(json).show(list_records(load_project(target, env=env, state=state), kind=kind, limit=limit, state=state))


Source = Annotated[str | None, typer.Option(help="Only this source's.")]


@letters.command("list")
def letters_list(
    target: Default = None,
    source: Source = None,
    status: Annotated[str, typer.Option(help="open, replayed, dropped or any.")] = "open",
    limit: Annotated[int, typer.Option(help="At most so many, the newest first.")] = 50,
    state: State = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """List what could not be read: where it stood and why."""
    from headrace.pipelines.dead_letters import list_letters
    from headrace.pipelines.project import load_project

    project = load_project(target, env=env, state=state)
    Output(json).show(list_letters(project, source, status=status, limit=limit, state=state))


@letters.command("show")
def letters_show(
    target: Target,
    letter: Annotated[str, typer.Argument(help="The letter's id.")],
    payload: Annotated[bool, typer.Option(help="Show the payload although the source has pii; recorded.")] = False,
    state: State = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """Show a dead letter and its payload."""
    from headrace.pipelines.dead_letters import show_letter
    from headrace.pipelines.project import load_project

    project = load_project(target, env=env, state=state)
    Output(json).show(show_letter(project, letter, payload=payload, state=state))


@letters.command("replay")
def letters_replay(
    target: Target,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Letters; by default all open ones.")
    ] = None,
    source: Source = None,
    state: State = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """Read dead letters again, after a fix, and ingest those that are events now."""
    from headrace.pipelines.dead_letters import replay_letters
    from headrace.pipelines.project import load_project

    project = load_project(target, env=env, state=state)
    Output(json).show(replay_letters(project, source, ids or [], state=state))


@letters.command("drop")
def letters_drop(
    target: Target,
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Letters; or give --source.")] = None,
    *,
    why: Annotated[str, typer.Option(help="The reason, for the audit trail.")],
    source: Source = None,
    state: State = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """Give dead letters up; they stay in their table, marked as dropped."""
    from headrace.pipelines.dead_letters import drop_letters
    from headrace.pipelines.project import load_project

    project = load_project(target, env=env, state=state)
    Output(json).show(drop_letters(project, source, ids or [], why=why, state=state))


@app.command()
def doctor(target: Annotated[str | None, typer.Argument()] = None, state: State = None, json: Json = False) -> None:
    """Check the installation, the settings and the state folder."""
    from headrace.pipelines.doctor import examine

    result = examine(target, state=state)
    Output(json).show(result)
    if not result["ok"]:
        raise typer.Exit(1)


@app.command()
def demo(
    state: Annotated[str, typer.Option(help="Where the demo keeps its state.")] = ".headrace-demo",
    end: Annotated[str, typer.Option("--to", help="The day after the last one to live through.")] = "2014-01-01",
    json: Json = False,
) -> None:
    """Replay a year of real flights through the whole loop, and report."""
    from headrace.pipelines.demo import demo_project, run_demo
    from headrace.web.write import write_report

    out = Output(json)
    with out.progress() as progress:
        result = run_demo(state, end=end, progress=progress)
        report = write_report(demo_project(state), state, progress)
    if not json:
        out.print(report.terminal)
    out.show(
        result.noted(
            *report,
            f"Everything else is in {state}; rm -r {state} removes it, make clean the environment too.",
            f"Serve the live model: .venv/bin/headrace serve examples/flights/flights.py:pipeline --state {state}",
        )
    )


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exit with 0 done, 1 error, 2 wrong use, 3 a policy refused."""
    arguments = sys.argv[1:] if arguments is None else arguments
    gc.set_threshold(*COLLECT)
    sys.exit(finish(lambda: _invoke(arguments), as_json="--json" in arguments))


def _invoke(arguments: list[str]) -> Any:
    command = typer.main.get_command(app)
    return command.main(arguments, prog_name="headrace", standalone_mode=False)
