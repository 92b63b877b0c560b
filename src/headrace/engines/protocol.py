"""Say what an engine promises: a function applied to buckets of Arrow tables, wherever its workers run.

Promises, each checked by `headrace.testing.engines.EngineContract`:

- Answers come in the order of the buckets, one for each, whatever the order in which they were computed.
- A bucket is read when its turn comes, and only so many are on their way at a time as there are workers to spare: memory
  is bounded by the buckets' size, not by their number.
- Functions go to the workers by value, tables as Arrow; what comes back is Arrow or JSON. Nothing that a worker wrote is
  ever unpickled.
- What the function raises is raised here, typed and with its cause, with the bucket's number. Other buckets are dropped.
- A bucket whose worker dies is computed again by another, at most `retries` times; then the engine is Unavailable. No
  answer comes twice.
- `close` ends every process that `open_engine` started and removes its files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    import pyarrow as pa

    Tables = Sequence[pa.Table]
else:
    Tables = Sequence

Buckets = Sequence[Tables]
Function = Callable[[Tables], Tables]
Progress = Callable[[int, int], None]  # how many buckets are answered, of how many


@dataclass(frozen=True)
class Capabilities:
    """Say what an engine can do.

    Attributes:
        workers: how many buckets it computes at a time.
        isolated: whether a function runs in another process than its caller.
        several_hosts: whether workers may be on other machines.
    """

    workers: int
    isolated: bool
    several_hosts: bool


class Engine(Protocol):
    """Apply functions to buckets of tables."""

    @property
    def capabilities(self) -> Capabilities:
        """Return what this engine can do."""
        ...

    def map_buckets(
        self, function: Function, buckets: Buckets, *, progress: Progress | None = None
    ) -> Iterator[Tables]:
        """Yield the function's answer to each bucket, in order.

        Raises:
            UserCodeError: the function raised something that is no error of Headrace's own, or cannot be sent.
            HeadraceError: the function raised it.
            Unavailable: workers died too often, or have no memory for a bucket.
        """
        ...

    def close(self) -> None:
        """End what was started; a second call does nothing."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
