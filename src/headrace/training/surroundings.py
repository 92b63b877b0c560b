"""Bound what a training function takes from its surroundings: threads that it did not ask for, and standard output."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

JOBLIB_CORES = "LOKY_MAX_CPU_COUNT"


@contextmanager
def bounded(threads: int) -> Iterator[None]:
    """Let estimators that are not told otherwise use `threads` threads, and LightGBM speak to the logger `lightgbm`.

    Left alone, LightGBM takes every core and waits for the others by spinning: on a busy machine of two cores a fit of
    1 s took 15 s.
    """
    lightgbm = sys.modules.get("lightgbm")
    if lightgbm is not None:
        lightgbm.register_logger(logging.getLogger("lightgbm"))
    before = os.environ.get(JOBLIB_CORES)
    os.environ[JOBLIB_CORES] = str(threads)
    try:
        with threadpool_limits(threads):
            yield
    finally:
        if before is None:
            del os.environ[JOBLIB_CORES]
        else:
            os.environ[JOBLIB_CORES] = before
