"""Hold what the registry knows of a version, and the names under which it keeps that in the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Stage = Literal["development", "staging", "production", "archived"]
VERSION, PROMOTION, ROLLBACK, CHALLENGER, ARCHIVE = "version", "promotion", "rollback", "challenger", "archive"


@dataclass(frozen=True)
class Version:
    """Describe a registered version.

    `name` is `PIPELINE/vN`; `manifest` the digest under which its files are kept; `stage` development until it is a
    challenger, staging from then on, production while it is the champion, archived for good.
    """

    name: str
    manifest: str
    run: str
    stage: Stage
    registered: int
    metrics: Mapping[str, Any]
    size: int
    data: Mapping[str, Any]

    @property
    def number(self) -> int:
        """Return N of `PIPELINE/vN`."""
        return int(self.name.rsplit("/v", 1)[1])


def champion_of(pipeline: str) -> str:
    """Return the name of the pointer to the serving version."""
    return f"{pipeline}/champion"


def challenger_of(pipeline: str) -> str:
    """Return the name of the pointer to the version that is being rolled out."""
    return f"{pipeline}/challenger"


def newest_of(pipeline: str) -> str:
    """Return the name of the pointer to the version registered last."""
    return f"{pipeline}/newest"


def stage_of(version: str) -> str:
    """Return the name of the pointer to a version's stage; without one it is in development."""
    return f"{version}/stage"
