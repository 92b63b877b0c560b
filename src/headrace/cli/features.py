"""Offer the verbs that look after features: catalogue, online state, comparison with history, erasure."""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.cli.options import Default, Env, Json, State, Words, aimed
from headrace.cli.output import Output

verbs = typer.Typer()
online = typer.Typer(help="Look after the online store.", no_args_is_help=True)
verbs.add_typer(online, name="online")


@online.command("rebuild")
def online_rebuild(
    target: Default = None,
    group: Annotated[str | None, typer.Option(help="Rebuild only this feature group.")] = None,
    state: State = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """Rebuild the online store from the offline tables; a damaged one is replaced. Resumes after a crash."""
    from headrace.pipelines.materialize import rebuild_online
    from headrace.pipelines.project import load_project

    out = Output(json)
    project = load_project(target, env=env, state=state)
    with out.progress() as progress:
        result = rebuild_online(project, group=group, state=state, progress=progress)
    out.show(result)


@verbs.command()
def backfill(
    target: Default = None,
    group: Annotated[list[str] | None, typer.Option(help="Fill this group again; may be repeated.")] = None,
    start: Annotated[str | None, typer.Option("--from", help="Write rows with features from this day on.")] = None,
    end: Annotated[str | None, typer.Option("--to", help="The day after the last.")] = None,
    state: State = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """Bring the online features up to the tables; with --from and --to write a span's features as a table."""
    from headrace.pipelines.materialize import materialize
    from headrace.pipelines.project import load_project
    from headrace.pipelines.ranges import materialize_range

    if (start is None) != (end is None) or (start is not None and group):
        raise typer.BadParameter("a span needs --from and --to, and has every group")
    out = Output(json)
    project = load_project(target, env=env, state=state)
    with out.progress() as progress:
        if start is not None and end is not None:
            result = materialize_range(project, start, end, state=state, progress=progress)
        else:
            result = materialize(project, groups=group or [], state=state, progress=progress)
    out.show(result)


@verbs.command()
def features(
    words: Words = None,
    health: Annotated[bool, typer.Option("--health", help="Measure freshness, coverage and null rates.")] = False,
    state: State = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """Search the catalogue of features: names, owners, descriptions, tags, columns, and who uses each."""
    from headrace.pipelines.catalogue import list_features
    from headrace.pipelines.project import load_project

    target, rest = aimed(words)
    project = load_project(target, env=env, state=state)
    Output(json).show(list_features(project, " ".join(rest), state=state, health=health))


@verbs.command()
def lineage(words: Words = None, state: State = None, env: Env = None, json: Json = False) -> None:
    """Follow a column, feature or model version: what it follows from, and what follows from it."""
    from headrace.pipelines.lineage import lineage as follow
    from headrace.pipelines.project import load_project

    target, rest = aimed(words)
    if len(rest) != 1:
        raise typer.BadParameter("one name is needed: a column, feature, group, source or version")
    Output(json).show(follow(load_project(target, env=env, state=state), rest[0], state=state))


@verbs.command()
def erase(
    words: Words = None,
    why: Annotated[str, typer.Option(help="The reason, for the audit trail; it must not name the value.")] = "",
    source: Annotated[str | None, typer.Option(help="Only this source's column.")] = None,
    group: Annotated[str | None, typer.Option(help="Only the key of this feature group.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without it only say what would go.")] = False,
    state: State = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """Erase every trace of one key, COLUMN=VALUE; exit with 3 if some cannot be erased. Resumes after a crash."""
    from headrace.pipelines.erase import erase as erase_key
    from headrace.pipelines.project import load_project

    target, rest = aimed(words)
    if len(rest) != 1:
        raise typer.BadParameter("one key is needed, as Orders.shop=shop-3")
    out = Output(json)
    project = load_project(target, env=env, state=state)
    with out.progress() as progress:
        result = erase_key(
            project, rest[0], source=source, group=group, why=why, yes=yes, state=state, progress=progress
        )
    out.show(result)
    if any(result.data.get("left", {}).values()):
        raise typer.Exit(3)


@verbs.command()
def reproduce(
    words: Words = None,
    to: Annotated[str | None, typer.Option(help="Write the training set to this Parquet file.")] = None,
    state: State = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """Build a version's training set again and compare it with what was trained on; exit with 1 if it differs."""
    from headrace.pipelines.project import load_project
    from headrace.pipelines.reproduce import reproduce as build_again

    target, rest = aimed(words)
    if len(rest) != 1:
        raise typer.BadParameter("one version is needed, as v3")
    result = build_again(load_project(target, env=env, state=state), rest[0], to=to, state=state)
    Output(json).show(result)
    if not result["same"]:
        raise typer.Exit(1)


@verbs.command()
def compact(target: Default = None, state: State = None, env: Env = None, json: Json = False) -> None:
    """Merge the tables' small files, cluster them by key and time, and drop versions past [offline] retention."""
    from headrace.pipelines.compact import compact as compact_tables
    from headrace.pipelines.project import load_project

    out = Output(json)
    project = load_project(target, env=env, state=state)
    with out.progress() as progress:
        result = compact_tables(project, state=state, progress=progress)
    out.show(result)


@verbs.command()
def verify(
    target: Default = None,
    sample: Annotated[int, typer.Option(min=1, help="How many predictions to compare.")] = 200,
    since: Annotated[
        str | None,
        typer.Option(help="How far back: a duration as 7d, or an instant; by default [serving] verify_period."),
    ] = None,
    state: State = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """Compare features that were served with history, bit for bit; exit with 3 if any differ."""
    from headrace.pipelines.project import load_project
    from headrace.pipelines.verify import verify as verify_served

    result = verify_served(load_project(target, env=env, state=state), sample=sample, since=since, state=state)
    Output(json).show(result)
    if result["differing"]:
        raise typer.Exit(3)
