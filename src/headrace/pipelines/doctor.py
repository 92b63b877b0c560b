"""Examine installation, settings and state: what works, what does not, and the command that helps."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from typing import Any

from headrace.core.errors import HeadraceError
from headrace.core.time import SystemClock
from headrace.core.version import __version__
from headrace.pipelines.dead_letters import open_letters
from headrace.pipelines.feed import lag_of, open_project_streams, stream_name
from headrace.pipelines.project import Project, load_project
from headrace.pipelines.stores import open_stores
from headrace.pipelines.view import Table, View

LIBRARIES = ("numpy", "pyarrow", "duckdb", "deltalake", "lmdb", "lightgbm", "onnxruntime", "sqlalchemy", "optuna")


def examine(target: str | None, *, state: str | None) -> View:
    """Return the outcome of every check; with a target also of its project and state folder."""
    checks: list[list[Any]] = [
        [
            "headrace",
            True,
            f"{__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        ]
    ]
    _check(checks, "feature kernel", _kernel)
    for name in LIBRARIES:
        _check(checks, name, lambda name=name: _version(name))  # type: ignore[misc]
    if target is not None:
        project: list[Project] = []
        _check(checks, "project", lambda: project.append(load_project(target)) or f"{target} loads")  # type: ignore[func-returns-value]
        if project:
            _check(checks, "plan", lambda: f"{len(project[0].plan.columns)} features")
            _check(checks, "state folder", lambda: _state(project[0], state))
            _check(checks, "streams", lambda: _streams(project[0], state))
    ok = all(passed for _, passed, _ in checks)
    table = Table("Checks", ["check", "ok", "found"], checks)
    data = {"ok": ok, "checks": [{"check": c, "ok": p, "found": f} for c, p, f in checks], "python": sys.executable}
    return View("Everything works" if ok else "Something needs attention", data, [table])


def _check(checks: list[list[Any]], name: str, examine: Callable[[], str]) -> None:
    try:
        checks.append([name, True, examine()])
    except HeadraceError as error:
        checks.append([name, False, str(error).replace("\n", " ")])
    except ImportError as error:
        checks.append([name, False, f"{error}; next: pip install --force-reinstall headrace"])


def _kernel() -> str:
    from headrace.features.windows import KERNEL_VERSION

    return f"version {KERNEL_VERSION} loads"


def _version(name: str) -> str:
    from importlib import import_module
    from importlib.metadata import version

    import_module(name)
    return version(name)


def _state(project: Project, state: str | None) -> str:
    with open_stores(project, state, clock=SystemClock(), write=False) as stores:
        sizes = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in stores.state.size().items())
        head = stores.ledger.head()
        return f"{stores.state.path}: {sizes}; {head.seq} ledger records"


def _streams(project: Project, state: str | None) -> str:
    clock = SystemClock()
    with (
        open_stores(project, state, clock=clock, write=False) as stores,
        open_project_streams(project, stores, clock) as streams,
    ):
        found = []
        for source in project.plan.sources:
            lag, letters = (
                lag_of(stores, streams, source, stream_name(project, source)),
                open_letters(stores.tables, source),
            )
            found.append(f"{source.name}: {lag}, {letters} open dead letters")
        return "; ".join(found)
