"""Open the engine that a project's settings name, for as long as features of many rows are computed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from headrace.engines import check_engine, open_engine
from headrace.features.buckets import Spread
from headrace.pipelines.project import Project
from headrace.pipelines.stores import Stores
from headrace.pipelines.view import Progress

WORK = "work"
OpenSpread = Callable[[], AbstractContextManager[Spread]]


def here() -> AbstractContextManager[Spread]:
    """Compute in this process, a bucket at a time."""
    return nullcontext(Spread())


def spread_of(project: Project, stores: Stores, progress: Progress, *, engine: str | None = None) -> OpenSpread:
    """Return what opens the engine that was asked for, the settings' unless said; nothing is started before.

    Raises:
        BadUrl, MissingExtra: there is no such engine.
    """
    settings = project.settings.engines
    url = engine or settings.features
    check_engine(url)

    @contextmanager
    def opened() -> Iterator[Spread]:
        with open_engine(url, retries=settings.retries) as found:
            folder = stores.state.folder(WORK) if settings.work is None else project.folder / settings.work
            if settings.work is None:
                _clear(folder)
            folder.mkdir(parents=True, exist_ok=True)
            yield Spread(found, folder, settings.bucket_rows, told)

    def told(what: str, done: int, total: int) -> None:
        progress.step("training set", done, total, what)

    return opened


def _clear(folder: Path) -> None:
    """Remove what a killed process left; the state folder's lock says that no other is at work."""
    for left in folder.iterdir():
        shutil.rmtree(left)
