"""Compute buckets in Spark's `mapInArrow`: on a Spark of its own on this machine, on a cluster, or in a session that is there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
from py4j.protocol import Py4JError
from pyspark import SparkConf, SparkContext
from pyspark.errors import PySparkException, PythonException
from pyspark.java_gateway import launch_gateway
from pyspark.sql import SparkSession

from headrace.core.errors import ConfigurationError, Unavailable
from headrace.engines.processes import died, unfit
from headrace.engines.protocol import Buckets, Capabilities, Function, Progress, Tables
from headrace.engines.wire import pack_function, pack_tables, perform, read_answer

MEMORY = "1g"
LOOPBACK = "127.0.0.1"
EACH = 2  # buckets of a job for each worker: more need memory, fewer leave workers idle
FAREWELL = 20.0  # seconds that Java has to end by itself
ANSWERS = pa.schema([("place", pa.int64()), ("answer", pa.binary())])


class SparkEngine:
    """Compute on `master=…` with `memory=…` for the driver; without a master on all cores of this machine.

    A session that is already there (in a notebook of a Spark platform) is used as it is and not stopped.
    """

    def __init__(self, options: Mapping[str, str], *, retries: int) -> None:
        self.retries, self.folder = retries, ""
        given = SparkSession.getActiveSession()
        self.owner = given is None
        self.session: Any = given or self._start(options)
        context = self.session.sparkContext
        several = not str(context.master).startswith("local")
        self.capabilities = Capabilities(context.defaultParallelism, isolated=True, several_hosts=several)

    def _start(self, options: Mapping[str, str]) -> Any:
        self.folder = tempfile.mkdtemp(prefix=f"hr-{os.getpid()}-spark-")
        conf = SparkConf().setAppName("headrace").setMaster(self._master(options.get("master", "local[*]")))
        conf.set("spark.driver.memory", options.get("memory", MEMORY))
        for name, value in self._settings(conf.get("spark.master", "")).items():
            conf.set(name, value)
        try:
            with Path(self.folder, "java.log").open("wb") as log:
                gateway = launch_gateway(conf, {"stdout": log, "stderr": log})  # type: ignore[no-untyped-call]
            with _quiet():
                return SparkSession(SparkContext(conf=conf, gateway=gateway))
        except (PySparkException, Py4JError, OSError) as error:
            self.owner = False
            _end_java()
            shutil.rmtree(self.folder, ignore_errors=True)
            raise self._unavailable(error) from error

    def _master(self, master: str) -> str:
        """Return a master that tries a bucket again: a local one does not unless told how often it may fail."""
        inside = master.removeprefix("local").strip("[]") or "1"
        return f"local[{inside},{self.retries + 1}]" if master.startswith("local") and "," not in master else master

    def _settings(self, master: str) -> dict[str, str]:
        found = {
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
            "spark.driver.maxResultSize": "0",
            "spark.task.maxFailures": str(self.retries + 1),
            "spark.local.dir": self.folder,
            "spark.sql.warehouse.dir": f"{self.folder}/warehouse",
            "spark.sql.artifact.isolation.enabled": "false",
            "spark.log.level": "ERROR",
        }
        if master.startswith("local"):
            os.environ.setdefault("SPARK_LOCAL_IP", LOOPBACK)
            os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # else the first python3 of the PATH
            found |= {"spark.driver.host": LOOPBACK, "spark.driver.bindAddress": LOOPBACK}
        return found

    def _unavailable(self, error: Exception) -> ConfigurationError | Unavailable:
        home = os.environ.get("JAVA_HOME")
        java = shutil.which("java", path=f"{home}/bin" if home else None)
        got = str(error).splitlines()[0]
        if java is None:
            step = "apt-get install openjdk-17-jre-headless, or set JAVA_HOME"
            return ConfigurationError(
                "Spark needs Java", where="[engines]", got=got, expected="Java 17", next_step=step
            )
        return Unavailable("Spark cannot be started or reached", where="[engines]", got=got, next_step="java -version")

    def map_buckets(
        self, function: Function, buckets: Buckets, *, progress: Progress | None = None
    ) -> Iterator[Tables]:
        """Yield the function's answer to each bucket, in order; some buckets for each worker to a job."""
        packed, total, wave = pack_function(function), len(buckets), EACH * self.capabilities.workers
        for first in range(0, total, wave):
            places = range(first, min(first + wave, total))
            for place, blob in zip(places, self._job(packed, buckets, places), strict=True):
                answer = read_answer(blob, place, total)
                if progress is not None:
                    progress(place + 1, total)
                yield answer

    def _job(self, function: bytes, buckets: Buckets, places: range) -> list[bytes]:
        """Return the answers to some buckets, each a task of its own."""

        def compute(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in batches:
                answers = [perform(function, work) for work in batch.column(1).to_pylist()]
                yield pa.record_batch([batch.column(0), pa.array(answers, pa.binary())], schema=ANSWERS)

        work = pa.table(
            {"place": list(places), "work": pa.array([pack_tables(buckets[p]) for p in places], pa.binary())}
        )
        try:
            self.session.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "1")
            with _quiet():
                frame = self.session.createDataFrame(work).mapInArrow(compute, "place long, answer binary")
                found = frame.toArrow()
        except PythonException as error:
            raise unfit("spark", str(error).strip().splitlines()[-1]) from error
        except (PySparkException, Py4JError) as error:
            raise died(places[0], len(buckets), self.retries, type(error).__name__) from error
        answers = dict(zip(found["place"].to_pylist(), found["answer"].to_pylist(), strict=True))
        return [answers[place] for place in places]

    def close(self) -> None:
        """End the Spark that was started, its Java too."""
        if self.owner:
            self.session.stop()
            _end_java()
            shutil.rmtree(self.folder, ignore_errors=True)
        self.owner = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep PySpark's warnings about pandas to itself: no pandas is used."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="pyspark")
        yield


def _end_java() -> None:
    """End the Java process, which would else wait for this one's end."""
    gateway: Any = SparkContext._gateway
    SparkContext._gateway = SparkContext._jvm = None
    if gateway is None:
        return
    process: subprocess.Popen[bytes] | None = getattr(gateway, "proc", None)
    gateway.shutdown()
    if process is not None:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(FAREWELL)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
