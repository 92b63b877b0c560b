"""Compute buckets as Ray tasks: on a Ray of its own on this machine, or on a cluster."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import Any, Self

import ray
from ray._private import ray_constants
from ray.exceptions import RayError, RayTaskError

from headrace.core.errors import Unavailable
from headrace.engines.ahead import in_order
from headrace.engines.find import whole
from headrace.engines.processes import SPARE, died, unfit
from headrace.engines.protocol import Buckets, Capabilities, Function, Progress, Tables
from headrace.engines.wire import pack_function, pack_tables, perform, read_answer

OBJECTS = 256 * 2**20  # bytes of the object store of a Ray of our own; what does not fit goes to its folder
PATIENCE = 5.0  # seconds for a cluster to take a connection
REACHABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
TOKEN_LOGGER = "ray._private.authentication.authentication_token_setup"  # says that access needs a token


class RayEngine:
    """Compute on `address=…`, or on a Ray of `cpus=N` that is started on loopback and ended with the engine."""

    def __init__(self, options: Mapping[str, str], *, retries: int) -> None:
        self.retries, self.folder = retries, ""
        address = options.get("address")
        self.owner = not ray.is_initialized()
        if self.owner:
            self._start(address, whole(options, "cpus", os.cpu_count() or 1))
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        workers = max(int(resources.get("CPU", 1)), 1)
        self.capabilities = Capabilities(workers=workers, isolated=True, several_hosts=address is not None)
        self.task: Any = ray.remote(max_retries=retries, num_cpus=1)(perform)

    def _start(self, address: str | None, cpus: int) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        settings: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        if address is None:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray writes one to the home folder
            logging.getLogger(TOKEN_LOGGER).setLevel(logging.ERROR)
            self.folder = tempfile.mkdtemp(prefix=f"hr-{os.getpid()}-")  # short: socket names end at 107 bytes
            settings |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": OBJECTS}
            settings |= {"_node_ip_address": "127.0.0.1", "_temp_dir": self.folder}
        try:
            if address is not None:
                _knock(address)
            with _on_loopback() if address is None else nullcontext():
                ray.init(address, **settings)
        except (RayError, OSError, RuntimeError, ValueError) as error:
            self.close()
            raise Unavailable(
                "Ray cannot be started or reached",
                where="[engines]",
                got=str(error).splitlines()[0] if str(error) else type(error).__name__,
                next_step="ray status" if address else "free memory and disk, then try again",
            ) from error

    def map_buckets(
        self, function: Function, buckets: Buckets, *, progress: Progress | None = None
    ) -> Iterator[Tables]:
        """Yield the function's answer to each bucket, in order."""
        packed, total = ray.put(pack_function(function)), len(buckets)

        def start(place: int) -> Any:
            return self.task.remote(packed, pack_tables(buckets[place]))

        def finish(place: int, reference: Any) -> Tables:
            try:
                blob = ray.get(reference)
            except RayTaskError as error:
                raise unfit("ray", error.cause) from error
            except RayError as error:
                raise died(place, total, self.retries, type(error).__name__) from error
            answer = read_answer(blob, place, total)
            if progress is not None:
                progress(place + 1, total)
            return answer

        return in_order(total, self.capabilities.workers + SPARE, start, finish, _drop)

    def close(self) -> None:
        """End the Ray that was started, or leave the cluster."""
        if self.owner:
            ray.shutdown()
        self.owner = False
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Keep a Ray of our own off the network: told 127.0.0.1, Ray on Linux would take an address that others reach."""
    constant, variable = ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(REACHABLE)
    ray_constants.ENABLE_RAY_CLUSTER, os.environ[REACHABLE] = False, "0"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = constant
        if variable is None:
            del os.environ[REACHABLE]
        else:
            os.environ[REACHABLE] = variable


def _knock(address: str) -> None:
    """Find out within seconds whether something listens: Ray itself tries for minutes.

    Raises:
        OSError: nothing does.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), PATIENCE).close()


def _drop(reference: Any) -> None:
    ray.cancel(reference, force=False)
