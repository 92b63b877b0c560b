"""Run one side of a workload of `feature_store.py`: a repeat for every line of standard input, its figures as a line of JSON."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType


class WithoutPandas(MetaPathFinder):
    """Hide pandas, which is here for tests: Arrow would load it, 45 MB, and neither side needs it."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        """Say that there is no pandas."""
        if name == "pandas":
            raise ModuleNotFoundError(name)


def main() -> None:
    """Set one side up, then run its repeats; tell the memory held before and, at most, meanwhile (MiB)."""
    import store_limits
    import store_ours

    side, workload = sys.argv[1:]
    sides = {"ours": store_ours.WORKLOADS, "limit": store_limits.WORKLOADS}
    with sides[side][workload]() as repeat:
        print("{}", flush=True)
        before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
        for _ in sys.stdin:
            began = time.process_time()
            found = dict(repeat())
            found |= {"cpu_s": time.process_time() - began}
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(json.dumps(found | {"mb": most, "before_mb": before}), flush=True)


if __name__ == "__main__":
    sys.meta_path.insert(0, WithoutPandas())
    main()
