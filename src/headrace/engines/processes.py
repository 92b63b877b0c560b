"""Compute buckets in processes of this machine, each started afresh: nothing is forked, nothing of the caller is run again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from headrace.core.errors import ConfigurationError, Unavailable
from headrace.core.version import __version__
from headrace.engines.ahead import in_order
from headrace.engines.find import whole
from headrace.engines.protocol import Buckets, Capabilities, Function, Progress, Tables
from headrace.engines.wire import SIZE, pack_function, pack_tables, read_answer
from headrace.engines.worker import FUNCTION, WORK

SPARE = 1  # buckets made ready while all workers are busy
FAREWELL = 5.0  # seconds that a worker has to end by itself


class _Process:
    """Own one worker, started when it is first needed and again after it died."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.function = b""

    def ask(self, function: bytes, work: bytes) -> bytes:
        """Return the worker's answer.

        Raises:
            OSError: it died; the next call starts another.
        """
        if self.process is None:
            path = os.pathsep.join(part for part in sys.path if part)
            environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
            command = [sys.executable, "-m", "headrace.engines.worker"]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            self.function = b""
        try:
            if function is not self.function:
                self._send(FUNCTION, function)
                self.function = function
            self._send(WORK, work)
            return self._read(int.from_bytes(self._read(SIZE), "little"))
        except OSError:
            self.end(at_once=True)
            raise

    def _send(self, kind: bytes, body: bytes) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(kind + len(body).to_bytes(SIZE, "little"))
        self.process.stdin.write(body)
        self.process.stdin.flush()

    def _read(self, size: int) -> bytes:
        assert self.process is not None
        assert self.process.stdout is not None
        found = self.process.stdout.read(size)
        if len(found) < size:
            raise BrokenPipeError(f"the worker ended with {self.process.wait(FAREWELL)}")
        return found

    def end(self, *, at_once: bool) -> None:
        """End the worker; `at_once` without waiting for what it does."""
        process, self.process = self.process, None
        if process is None:
            return
        with suppress(OSError):
            assert process.stdin is not None
            process.stdin.close()
        try:
            process.wait(0 if at_once else FAREWELL)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


class ProcessEngine:
    """Compute in `processes=N` processes of this machine."""

    def __init__(self, options: Mapping[str, str], *, retries: int) -> None:
        self.retries, count = retries, whole(options, "processes", 1)
        self.capabilities = Capabilities(workers=count, isolated=True, several_hosts=False)
        self.processes = [_Process() for _ in range(count)]
        self.idle: SimpleQueue[_Process] = SimpleQueue()
        for process in self.processes:
            self.idle.put(process)
        self.threads = ThreadPoolExecutor(count, thread_name_prefix="headrace-engine")

    def map_buckets(
        self, function: Function, buckets: Buckets, *, progress: Progress | None = None
    ) -> Iterator[Tables]:
        """Yield the function's answer to each bucket, in order."""
        packed, total = pack_function(function), len(buckets)

        def start(place: int) -> Future[bytes]:
            return self.threads.submit(self._compute, packed, buckets, place)

        def finish(place: int, future: Future[bytes]) -> Tables:
            answer = read_answer(future.result(), place, total)
            if progress is not None:
                progress(place + 1, total)
            return answer

        return in_order(total, self.capabilities.workers + SPARE, start, finish, _drop)

    def _compute(self, function: bytes, buckets: Buckets, place: int) -> bytes:
        process, cause = self.idle.get(), OSError()
        try:
            work = pack_tables(buckets[place])
            for _ in range(1 + self.retries):
                try:
                    return process.ask(function, work)
                except OSError as error:
                    cause = error
        finally:
            self.idle.put(process)
        raise died(place, len(buckets), self.retries, cause) from cause

    def close(self) -> None:
        """End the processes."""
        self.threads.shutdown(cancel_futures=True)
        for process in self.processes:
            process.end(at_once=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _drop(future: Future[bytes]) -> None:
    if not future.cancel():
        future.exception()  # wait: the worker must be idle when the next call wants it


def died(place: int, total: int, retries: int, cause: object) -> Unavailable:
    """Return the error for a bucket whose workers died each time."""
    return Unavailable(
        "the workers that computed a bucket died",
        where=f"bucket {place + 1} of {total}",
        got=f"{cause}, {retries + 1} times",
        expected="a worker that lives until it answers",
        next_step="give workers more memory, or lower [engines] bucket_rows",
    )


def unfit(scheme: str, got: object) -> ConfigurationError:
    """Return the error for workers that cannot even begin: they have another Python, or no Headrace."""
    return ConfigurationError(
        f"the workers of {scheme}: cannot run Headrace",
        where="[engines]",
        got=got,
        expected=f"Headrace {__version__} on Python {sys.version_info.major}.{sys.version_info.minor}, as here",
        next_step=f'pip install "headrace[{scheme}]=={__version__}" where the workers are',
    )
