"""Score a file of rows: with the live model through the core that serves requests, or from the offline features."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.core.errors import DataError, HeadraceError
from headrace.core.time import Clock, Instant, SystemClock
from headrace.pipelines.batch import named, predict_from_history
from headrace.pipelines.project import Project
from headrace.pipelines.serve import PipelineService
from headrace.pipelines.stores import open_stores
from headrace.pipelines.view import Progress, Table, View

AT_ONCE = 1_000
SHOWN = 10
LIVE = ("prediction_id", "score", "decision", "version", "variant", "error")
BATCH = ("t", "score", "decision", "version", "error")


def predict(
    project: Project,
    rows: str | None,
    *,
    to: str | None,
    version: str | None,
    as_of: str | None,
    state: str | None,
    progress: Progress,
    clock: Clock | None = None,
) -> View:
    """Answer every row of a JSON-lines, CSV or Parquet file ("-": JSON lines on standard input); of a grid, its own rows.

    A pipeline with an endpoint answers as it serves, and logs each answer; bad rows are answered with their error. Without
    one, or where a version or a moment is named, features come from history (`headrace.pipelines.batch`).

    Raises:
        DataError: the file cannot be read, or there is no such version.
        ConfigurationError: rows are missing, or another process writes to the state folder.
        Refused: the version was trained on other features.
    """
    given, now = None if rows is None else list(_rows(rows)), clock or SystemClock()
    if project.pipeline.endpoint is not None and given is not None and version is None and as_of is None:
        return _shown(_served(project, given, state, progress, now), LIVE, to)
    found = predict_from_history(
        project, given, version=version, as_of=as_of, state=state, progress=progress, clock=now
    )
    view = _shown(found.answers, (*(c.name for c in named(project.plan)), *BATCH), to)
    view.data.update({"as_of": Instant(found.as_of).isoformat(), "version": found.version})
    return view


def _served(
    project: Project, given: Sequence[Any], state: str | None, progress: Progress, clock: Clock
) -> list[dict[str, Any]]:
    """Answer rows with the live model, through the online store; each is logged like a request."""
    answers = list[dict[str, Any]]()
    with open_stores(project, state, clock=clock, write=True) as stores:
        service = PipelineService(project, stores, clock)
        for start in range(0, len(given), AT_ONCE):
            for one in service.predict(given[start : start + AT_ONCE]):
                answers.append(_answer(one))
            service.commit()
            progress.step("predicting", min(start + AT_ONCE, len(given)), len(given))
        service.log.close()
    return answers


def _shown(answers: list[dict[str, Any]], names: Sequence[str], to: str | None) -> View:
    """Write answers where asked, and return what is shown of them."""
    if to is not None:
        _write(answers, names, Path(to))
    bad = sum("error" in a for a in answers)
    versions = Counter(a.get("version") or "fallback" for a in answers if "error" not in a)
    data: dict[str, Any] = {"rows": len(answers), "errors": bad, "versions": dict(versions), "written": to}
    columns = [name for name in names if name != "variant"]
    table = Table(
        f"The first {min(SHOWN, len(answers))} of {len(answers):,}",
        columns,
        [[a.get(name) for name in columns] for a in answers[:SHOWN]],
    )
    if to is None:
        data["predictions"] = answers
    return View(f"{len(answers) - bad:,} rows answered, {bad:,} refused", data, [table])


def _answer(one: Any) -> dict[str, Any]:
    if isinstance(one, HeadraceError):
        return {"error": one.what}
    shown = {"prediction_id": one.id, "score": one.score, "decision": one.decision, "version": one.version}
    return shown | {"variant": one.variant}


def _rows(name: str) -> Iterator[Any]:
    try:
        if name == "-":
            yield from (orjson.loads(line) for line in sys.stdin.buffer if line.strip())
            return
        path = Path(name)
        if path.suffix == ".parquet":
            for row in pq.read_table(path).to_pylist():
                yield {k: v.isoformat() if hasattr(v, "isoformat") else v for k, v in row.items()}
        elif path.suffix == ".csv":
            import pyarrow.csv

            for row in pyarrow.csv.read_csv(path).to_pylist():
                yield {k: v.isoformat() if hasattr(v, "isoformat") else v for k, v in row.items()}
        else:
            yield from (orjson.loads(line) for line in path.read_bytes().splitlines() if line.strip())
    except (OSError, pa.ArrowException, orjson.JSONDecodeError) as error:
        raise DataError(
            "the rows cannot be read", where=name, got=error, expected="JSON lines, .csv or .parquet"
        ) from error


def _write(answers: list[dict[str, Any]], names: Sequence[str], path: Path) -> None:
    """Write answers to a file that is there as a whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    if path.suffix == ".parquet":
        pq.write_table(pa.table({name: [a.get(name) for a in answers] for name in names}), part)
    else:
        part.write_bytes(b"".join(orjson.dumps(a) + b"\n" for a in answers))
    part.replace(path)
