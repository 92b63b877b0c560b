"""Keep models by content and load them safely: bytes are checked first, then tried in a child, and only then served.

Native model parsers crash on flipped bytes and can run forever; whatever a child process meets in its trial, the caller
gets a typed error and keeps serving what it served.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from headrace.core.errors import Corrupt
from headrace.models.record import Manifest
from headrace.models.servable import Servable
from headrace.storage.blobs.protocol import Blobs

REPORTED = 2_000


@dataclass(frozen=True)
class LoadLimits:
    """Bound the trial of a model: seconds until it must have answered, bytes of memory beyond the empty process's."""

    timeout: float = 30.0
    memory: int = 2 * 1024**3


def save(blobs: Blobs, servable: Servable) -> str:
    """Keep a servable's bytes and then its manifest; return the manifest's digest, which names the version."""
    check_files(servable.manifest, {file.path: servable.content for file in servable.manifest.files})
    blobs.put(servable.content)
    return blobs.put(servable.manifest.to_bytes()).digest


def load(blobs: Blobs, digest: str, *, limits: LoadLimits | None = None, trial: bool = True) -> Servable:
    """Return the servable whose manifest has this digest: verified, tried in a child process, then loaded.

    `trial=False` leaves out the child, for a model that this process made itself.

    Raises:
        Corrupt: the bytes are not what was kept, or the model failed its trial.
        DataError: there is no such model.
    """
    manifest = Manifest.from_bytes(blobs.get(digest))
    contents = {file.path: blobs.get(file.sha256) for file in manifest.files}
    check_files(manifest, contents)
    (content,) = contents.values()
    if trial:
        rehearse(manifest, content, limits=limits)
    return Servable(manifest, content)


def check_files(manifest: Manifest, contents: Mapping[str, bytes]) -> None:
    """Compare a model's files with its manifest, before any parser sees them.

    Raises:
        Corrupt: a file is missing, extra or changed.
    """
    expected = {file.path: file for file in manifest.files}
    if len(expected) != 1 or set(expected) != set(contents):
        raise damaged("a model's files are not those of its manifest", sorted(contents), sorted(expected))
    for path, content in contents.items():
        digest = hashlib.sha256(content).hexdigest()
        if len(content) != expected[path].size or digest != expected[path].sha256:
            got = f"{len(content)} bytes, sha256 {digest[:16]}…"
            wanted = f"{expected[path].size} bytes, sha256 {expected[path].sha256[:16]}…"
            raise damaged(f"{path} is not what was registered", got, wanted)


def damaged(what: str, got: object, expected: object) -> Corrupt:
    """Return the error for a model that must not be served."""
    return Corrupt(what, where="model", got=got, expected=expected, next_step="headrace rollback, then headrace doctor")


def rehearse(manifest: Manifest, content: bytes, *, limits: LoadLimits | None = None) -> None:
    """Parse a model and score its probe rows in a child process.

    Raises:
        Corrupt: it crashed, hung, outgrew its memory, refers to files outside, or does not repeat its manifest's scores.
    """
    limits = limits or LoadLimits()
    header = orjson.dumps({"memory": limits.memory, "manifest": manifest.to_bytes().decode()})
    command = [sys.executable, "-m", "headrace.models.rehearsal"]
    try:
        done = subprocess.run(
            command,
            input=len(header).to_bytes(8, "big") + header + content,
            capture_output=True,
            timeout=limits.timeout,
            env=_environment(),
            cwd=os.sep,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise damaged("the model hung in its trial", f"no answer in {limits.timeout:g} s", "a score") from error
    if done.returncode != 0:
        raise damaged("the model crashed in its trial", _ending(done.returncode, done.stderr), "a score")
    fault = orjson.loads(done.stdout)["fault"]
    if fault is not None:
        raise damaged("the model failed its trial", fault, "the scores of its manifest")


def _environment() -> dict[str, str]:
    """Give the child what it needs to import Headrace, and nothing else: no secret of the caller's."""
    return {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def _ending(code: int, stderr: bytes) -> str:
    cause = signal.Signals(-code).name if code < 0 else f"exit status {code}"
    last = stderr.decode(errors="replace")[-REPORTED:].strip().splitlines()
    return f"{cause}: {last[-1]}" if last else cause
