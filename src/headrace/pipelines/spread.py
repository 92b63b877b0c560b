"""Open the engine that a project's settings name, for as long as features of many rows are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from headrace.engines import check_engine, open_engine
from headrace.features.buckets import Spread, Told
from headrace.pipelines.project import Project
from headrace.pipelines.stores import WORK, Stores
from headrace.pipelines.view import Progress

OpenSpread = Callable[[], AbstractContextManager[Spread]]


def here() -> AbstractContextManager[Spread]:
    """Compute in this process, a bucket at a time."""
    return nullcontext(Spread())


def beside(project: Project, told: Told | None = None) -> Spread:
    """Compute in this process, in buckets outside the state folder, which is only read."""
    settings = project.settings.engines
    folder = None if settings.work is None else project.folder / settings.work
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    return Spread(folder=folder, bucket_rows=settings.bucket_rows, told=told)


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
            yield Spread(found, work_folder(project, stores), settings.bucket_rows, told)

    def told(what: str, done: int, total: int) -> None:
        progress.step("training set", done, total, what)

    return opened


def work_folder(project: Project, stores: Stores) -> Path:
    """Return the folder for files that are there only while something is computed: the settings' or the state's."""
    work = project.settings.engines.work
    folder = stores.state.folder(WORK) if work is None else project.folder / work
    folder.mkdir(parents=True, exist_ok=True)
    return folder
