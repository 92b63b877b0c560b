"""Measure what the flights features are worth: AUC of one LightGBM, train January to August, test October to December.

Prints the ladder from the timetable alone to the project's features, and what a leak would promise and deliver.
Run it where the flights data are prepared (`make demo`, or examples/flights/prepare.py).
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from lightgbm import LGBMClassifier
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from headrace.core.time import Instant, SystemClock
from headrace.features.retrieval import dataset_rows
from headrace.pipelines.project import load_project

FLIGHTS = Path(__file__).parents[1] / "examples" / "flights"
TRAIN_END, TEST_START = Instant.parse("2013-09-01"), Instant.parse("2013-10-01")
CATEGORIES = ("Flights.carrier", "Flights.dest")
TIMETABLE = (*CATEGORIES, "Flights.distance_km", "dep_hour", "weekday")
LEAK = "dep_delay"


def model() -> LGBMClassifier:
    """Return the yardstick's model, the same for every set of features."""
    return LGBMClassifier(
        n_estimators=200,
        num_leaves=63,
        learning_rate=0.05,
        min_child_samples=100,
        colsample_bytree=0.5,
        subsample=0.7,
        subsample_freq=1,
        random_state=0,
        n_jobs=2,
        deterministic=True,
        verbose=-1,
    )


def main() -> None:
    """Print the ladder."""
    sys.path.insert(0, str(FLIGHTS))
    project = load_project("flights:pipeline", folder=FLIGHTS)
    rows = dataset_rows(project.pipeline.model.dataset, clock=SystemClock(), as_of=None, limit=None, env=None)
    frame, label = rows.frame(), rows.found.label
    matrix, names = frame.numpy(), list(frame.columns)
    known = ~np.isnan(label)
    train, test = known & (frame.t < TRAIN_END), known & (frame.t >= TEST_START)

    def area(columns: Sequence[int], tested: NDArray[np.float64] | None = None) -> float:
        shown = matrix if tested is None else tested
        codes = [place for place, i in enumerate(columns) if i < len(names) and names[i] in CATEGORIES]
        fitted = model().fit(matrix[train][:, columns], label[train], categorical_feature=codes)
        return float(roc_auc_score(label[test], np.asarray(fitted.predict_proba(shown[test][:, columns]))[:, 1]))

    print(
        f"Python {platform.python_version()}, LightGBM {version('lightgbm')}; {train.sum():,} training rows, ", end=""
    )
    print(f"{test.sum():,} test rows")
    timetable = [i for i, name in enumerate(names) if name in TIMETABLE]
    weather = [*timetable, *(i for i, name in enumerate(names) if name.startswith("Sky."))]
    everything = list(range(len(names)))
    for title, columns in (("timetable", timetable), ("+ weather", weather), ("+ point-in-time features", everything)):
        print(f"{title:<32} {len(columns):>3} features   AUC {area(columns):.3f}")
    delays = pq.read_table(FLIGHTS / "data" / "flights.parquet", columns=["flight_id", LEAK])
    by_id = dict(zip(delays["flight_id"].to_pylist(), delays[LEAK].to_pylist(), strict=True))
    leaked = np.array([by_id[i] for i in frame.rows["flight_id"].to_pylist()], np.float64)[:, None]
    matrix = np.hstack([matrix, leaked])
    served = np.hstack([matrix[:, :-1], np.full_like(leaked, np.nan)])
    columns = [*everything, len(names)]
    print(
        f"{'+ its own departure delay':<32} {len(columns):>3} features   AUC {area(columns):.3f} promised offline, ",
        end="",
    )
    print(f"{area(columns, served):.3f} in serving, where it is not known yet")


if __name__ == "__main__":
    main()
