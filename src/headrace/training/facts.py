"""Gather what surrounds a run: the commit and local changes of the project, versions, the machine."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from headrace.core.version import __version__
from headrace.training.record import Facts

PACKAGES = ("numpy", "scikit-learn", "lightgbm", "onnx", "onnxruntime", "skl2onnx", "optuna", "pyarrow", "duckdb")
GIT_TIMEOUT = 10.0


def gather(folder: Path | None = None) -> Facts:
    """Return the facts of this process; `folder` is the project's, for its commit (none outside a git checkout)."""
    environment = {"python": platform.python_version(), "platform": platform.platform(), "headrace": __version__}
    for package in PACKAGES:
        try:
            environment[package] = version(package)
        except PackageNotFoundError:
            environment[package] = "absent"
    hardware = {"machine": platform.machine(), "cpus": os.cpu_count(), "usable_cpus": len(os.sched_getaffinity(0))}
    return Facts(code_state(folder), environment, hardware)


def code_state(folder: Path | None) -> dict[str, str | None]:
    """Return the commit of a git checkout and the SHA-256 of what differs from it, None where nothing does."""
    commit = None if folder is None else _git(folder, "rev-parse", "HEAD")
    if folder is None or commit is None:
        return {"commit": None, "dirty": None}
    changes = _git(folder, "diff", "HEAD", "--binary") or b""
    untracked = _git(folder, "ls-files", "--others", "--exclude-standard") or b""
    digest = hashlib.sha256(changes + b"\0" + untracked).hexdigest() if changes or untracked else None
    return {"commit": commit.decode().strip(), "dirty": digest}


def _git(folder: Path, *arguments: str) -> bytes | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, timeout=GIT_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None  # no git, or one that hangs: the run is recorded without its commit
    return done.stdout if done.returncode == 0 else None
