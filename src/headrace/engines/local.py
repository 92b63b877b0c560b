"""Compute buckets one after the other, in this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Self

from headrace.engines.protocol import Buckets, Capabilities, Function, Progress, Tables
from headrace.engines.wire import describe_failure, failure


class LocalEngine:
    """Compute in process: nothing is started, nothing is copied."""

    def __init__(self, options: Mapping[str, str] | None = None, *, retries: int = 0) -> None:
        self.capabilities = Capabilities(workers=1, isolated=False, several_hosts=False)

    def map_buckets(
        self, function: Function, buckets: Buckets, *, progress: Progress | None = None
    ) -> Iterator[Tables]:
        """Yield the function's answer to each bucket, in order."""
        for place in range(len(buckets)):
            try:
                answer = function(buckets[place])
            except (Exception, SystemExit) as error:  # noqa: BLE001  it is raised again, typed
                told = describe_failure(error)
                found = failure(told, place, len(buckets), error.__cause__ if "error" in told else error)
                raise found from found.__cause__
            if progress is not None:
                progress(place + 1, len(buckets))
            yield answer

    def close(self) -> None:
        """Do nothing: nothing was started."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
