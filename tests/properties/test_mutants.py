"""The oracle can fail: each way to get time or arithmetic wrong, built into a copy of the package, is caught by some test.

The mutants are those that the design names, and those of what was added since. A copy runs in a process of its own; a mutant
of the kernel is compiled for it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ORACLE = "tests/properties/test_oracle.py::test_offline_online_and_the_reference_agree_to_the_bit"
WINDOWS = "tests/properties/test_oracle_windows.py::test_every_kind_of_window_agrees_to_the_bit"
AGGREGATES = "tests/unit/features/test_aggregates.py"
KERNEL_ITSELF = "tests/properties/test_kernel.py::test_any_order_of_changes_is_the_scan_and_the_definition"
EXACT = "tests/properties/test_kernel_exact.py"
SKETCHES = "tests/unit/features/test_sketches.py"
TRAINING = "tests/unit/features/test_training_set.py"
BUCKETS = "tests/unit/features/test_buckets.py"


@dataclass(frozen=True)
class Mutant:
    """Say which text of which file is replaced, and which test must then fail."""

    file: str
    old: str
    new: str
    caught_by: str = WINDOWS


KERNEL = "kernel.c"
MUTANTS = {
    "the bound of a window is flipped": Mutant(KERNEL, "lane->state ? minus(at, -1) : at,", "minus(at, -1),"),
    "copies and older reveals count": Mutant(
        "rows.py", "if arrival > held or (arrival == held and content > self.contents[place]):", "if arrival >= 0:"
    ),
    "arrival is ignored": Mutant("offline.py", "moment=moment, arrival=arrival,", "moment=moment, arrival=arrival * 0,"),
    "a row arrives as a whole": Mutant(
        "history.py",
        "newest = np.maximum(newest, np.where(origin >= 0, self.arrival[np.maximum(origin, 0)], ABSENT))",
        "newest = self.arrival.copy()",
        AGGREGATES,
    ),
    "history arrives when it is loaded": Mutant(
        "../sources/plan.py",
        "moment[rows] + lag if observed is None",
        "np.full(len(rows), moment.max() + lag) if observed is None",
        "tests/unit/sources/test_expand.py",
    ),
    "max_age is off by a microsecond": Mutant(KERNEL, "column->last_moment) > o->age)", "column->last_moment) >= o->age)", KERNEL_ITSELF),
    "ties are in any order": Mutant(KERNEL, "sort_places(rows, stride, MASK, place, spare, n);", "sort_places(rows, stride, 1, place, spare, n);"),
    "hops are passed over": Mutant(KERNEL, "if (lane->hop <= 0) return lower;", "return lower;"),
    "null counts as a value": Mutant(KERNEL, "return !null_at(e, c) && holds(lane, run, e);", "return holds(lane, run, e);"),
    "null does not end a state": Mutant(KERNEL, "if (column->seen || (null && !lane->state)) return;", "if (column->seen || null) return;"),
    "late events are dropped": Mutant(
        "stream.py", "        if new is None:\n            return False", "        if new is None or reveal.arrival < max(old.arrivals):\n            return False"
    ),
    "labels come before they are mature": Mutant("training_set.py", "as_of - plan.mature + 1)", "as_of + 1)", TRAINING),
    "labels are looked for at the row's moment": Mutant("offline.py", "np.full(len(t), as_of, np.int64)", "t", TRAINING),
    "means are rounded twice": Mutant(
        KERNEL, "sum_over(&column->sum, kind == SUM ? 1 : n)", "sum_over(&column->sum, 1) / (kind == SUM ? 1 : n)", EXACT
    ),
    "what is placed elsewhere is known at once": Mutant(
        KERNEL, "if (lane->known >= 0 && e[EVENT + lane->known]", "if (0 && e[EVENT + lane->known]"
    ),
    "rows of changing tables never end": Mutant(KERNEL, "until->last <= lane->t) return NONE;", "0) return NONE;"),
    "civil days are days of UTC": Mutant("reads.py", "t if zone is None else civil_time(t, zone)", "t"),
    "an offset is forgotten": Mutant(KERNEL, ": at, lane->shift);", ": at, 0);"),
    "a tie in a bucket forgets its rows": Mutant("bucket_work.py", "row_hash(prefix + row) for row in rows", "0 for row in rows", BUCKETS),
    "a key is cut between buckets": Mutant(
        "buckets.py", "shuffle.add(table, number % self.count)", "shuffle.add(table, np.arange(len(number)) % self.count)", BUCKETS
    ),
    "rows of one moment come bucket by bucket": Mutant("buckets.py", "order = np.lexsort((first, t))", "order = np.argsort(t, kind='stable')", BUCKETS),
    "a key with a null part is a key": Mutant(
        "keys.py", "null |= column.is_null().to_numpy()", "null |= False", "tests/unit/features/test_newest.py"
    ),
    "zeros of two signs are two values": Mutant(KERNEL, "return type == FLOAT && order == -1 ? 0 : order;", "return order;"),
    "folds see the newest first": Mutant(
        KERNEL, "while (n--) lane->pool[lane->pooled++] = canonical(nth(lane, column, n), type);",
        "for (int64_t i = 0; i < n; i++) lane->pool[lane->pooled++] = canonical(nth(lane, column, i), type);",
    ),
    "registers remember what has left": Mutant(
        KERNEL, "there ? (int)(codes[number] % POSITIONS) : 0", "there ? (int)(codes[number] % POSITIONS) : (int)position", SKETCHES
    ),
    "estimates tell zeros apart": Mutant("sketch.h", "if (type == FLOAT && (word & INT64_MAX) == 0) word = 0;", "", SKETCHES),
    "a quantile is where its bucket begins": Mutant("sketch.h", "else size |= (int64_t)1 << (51 - bits);", "", SKETCHES),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name: str, tmp_path: Path) -> None:
    mutant = MUTANTS[name]
    package = tmp_path / "src" / "headrace"
    shutil.copytree(ROOT / "src" / "headrace", package, ignore=shutil.ignore_patterns("__pycache__"))
    changed = package / "features" / mutant.file
    text = changed.read_text()
    assert text.count(mutant.old) == 1, f"{mutant.file} has it {text.count(mutant.old)} times"
    changed.write_text(text.replace(mutant.old, mutant.new))
    if mutant.file.endswith((".c", ".h")):
        flags = ["-O1", "-ffp-contract=off", "-std=c11", "-shared", "-fPIC", "-o", "_kernel.so", KERNEL, "-lm"]
        target = ["-target", "x86_64-linux-gnu.2.17"] if os.uname().machine == "x86_64" else []
        subprocess.run([sys.executable, "-m", "ziglang", "cc", *target, *flags], cwd=package / "features", check=True)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "--hypothesis-seed=1", mutant.caught_by],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 1, (
        f"{mutant.caught_by} did not notice that {name}\n{found.stdout[-2000:]}{found.stderr[-500:]}"
    )
    assert "AssertionError" in found.stdout or "Error" in found.stdout
