"""Score a file of rows with the live model, through the same core that serves requests."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.core.errors import DataError, HeadraceError
from headrace.core.time import SystemClock
from headrace.pipelines.project import Project
from headrace.pipelines.serve import PipelineService
from headrace.pipelines.stores import open_stores
from headrace.pipelines.view import Progress, Table, View

AT_ONCE = 1_000
SHOWN = 10


def predict_file(project: Project, rows: str, *, to: str | None, state: str | None, progress: Progress) -> View:
    """Answer every row of a JSON-lines, CSV or Parquet file ("-": JSON lines on standard input).

    Bad rows are answered with their error; the rest are logged like any request.

    Raises:
        DataError: the file cannot be read.
        ConfigurationError: no endpoint is declared, or another process writes to the state folder.
    """
    given, answers = list(_rows(rows)), list[dict[str, Any]]()
    clock = SystemClock()
    with open_stores(project, state, clock=clock, write=True) as stores:
        service = PipelineService(project, stores, clock)
        for start in range(0, len(given), AT_ONCE):
            for one in service.predict(given[start : start + AT_ONCE]):
                answers.append(_answer(one))
            service.commit()
            progress.step("predicting", min(start + AT_ONCE, len(given)), len(given))
        service.log.close()
    if to is not None:
        _write(answers, Path(to))
    bad = sum("error" in a for a in answers)
    versions = Counter(a.get("version") or "fallback" for a in answers if "error" not in a)
    data: dict[str, Any] = {"rows": len(answers), "errors": bad, "versions": dict(versions), "written": to}
    shown = answers[:SHOWN]
    table = Table(
        f"The first {len(shown)} of {len(answers)}",
        ["prediction", "score", "decision", "version", "error"],
        [[a.get(k) for k in ("prediction_id", "score", "decision", "version", "error")] for a in shown],
    )
    if to is None:
        data["predictions"] = answers
    return View(f"{len(answers) - bad} rows answered, {bad} refused", data, [table])


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


def _write(answers: list[dict[str, Any]], path: Path) -> None:
    if path.suffix == ".parquet":
        names = ("prediction_id", "score", "decision", "version", "variant", "error")
        pq.write_table(pa.table({n: [a.get(n) for a in answers] for n in names}), path)
    else:
        path.write_bytes(b"".join(orjson.dumps(a) + b"\n" for a in answers))
