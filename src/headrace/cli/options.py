"""Hold the options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Target = Annotated[str, typer.Argument(metavar="FILE:PIPELINE", help="The pipeline, as in flights:pipeline.")]
Default = Annotated[
    str | None,
    typer.Argument(
        metavar="FILE:PIPELINE",
        help="The pipeline, as in flights:pipeline; by default that of [project] modules in headrace.toml.",
    ),
]
State = Annotated[str | None, typer.Option(help="The state folder; by default the one in headrace.toml.")]
Env = Annotated[str | None, typer.Option(help="The environment of headrace.toml to use.")]
Host = Annotated[str, typer.Option(help="Where to listen; another than loopback needs --behind-proxy.")]
Port = Annotated[int, typer.Option(help="The port to listen on.")]
BehindProxy = Annotated[bool, typer.Option(help="A proxy in front does authentication and TLS.")]
Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[FILE:PIPELINE] [WORD]...", help="The pipeline, where there are several; then words."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


def aimed(words: list[str] | None) -> tuple[str | None, list[str]]:
    """Part the pipeline, where the first word names one, from the rest."""
    first, rest = (words[0], words[1:]) if words else ("", [])
    named = ":" in first.partition("=")[0] or first.endswith(".py") or Path(f"{first}.py").is_file()
    return (first, rest) if first and named else (None, words or [])
