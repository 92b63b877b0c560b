"""Ask a lane for aggregates, and put what is asked into the words that the kernel reads."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

from headrace.core.errors import DefinitionError
from headrace.features.lanes import Lane, ValueType

AGGREGATES = {"count": 0, "sum": 1, "mean": 2, "min": 3, "max": 4, "stddev": 5, "latest": 6, "quantile": 7}
AGGREGATES |= {"distinct": 9, "mode": 10, "last": 11, "first": 12, "fold": 13}
COUNT_ROWS = 8
SKETCHES = {"distinct": (14, range(4, 17)), "quantile": (15, range(1, 14))}  # and how fine each can be, in bits
LISTED = ("quantile", "distinct", "mode", "last", "first", "fold")  # these need single values
OF_TEXTS = ("count", "latest", "distinct", "mode", "last", "first", "fold")
ANY_AGE = 2**63 - 1


@dataclass(frozen=True)
class Output:
    """Ask for an aggregate of a value column (None: of rows) over a window in microseconds.

    `aggregate` is count, sum, mean, min, max, stddev, quantile, distinct, mode, last, first, fold or latest; only latest
    takes no window. `parameter` is the quantile in [0, 1], the greatest age of a latest value in microseconds (None: any
    age), or the k of the k-th last or first. The window is [t - offset - window, t - offset), its begin floored to a
    multiple of `hop` where that is not 0; a negative offset lies ahead. A latest value holds until the instant in the
    column `until`, if that is there. `bits` other than 0 ask for an estimate from a sketch (`sketch_bits`).
    """

    column: int | None
    aggregate: str
    window: int | None
    parameter: float | None
    offset: int = 0
    hop: int = 0
    until: int | None = None
    bits: int = 0


class CompiledOutput(ctypes.Structure):
    """Hold an output as the kernel reads it."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("column", "kind", "window", "place", "until", "bits", "sketch")),
        ("share", ctypes.c_double),
        ("age", ctypes.c_int64),
    )


def error_of(aggregate: str, bits: int) -> float:
    """Return the relative error of an estimate from a sketch that is so fine.

    Of distinct it is the standard error, 1.04 / sqrt(2^bits) (Flajolet et al. 2007, section 1); of a quantile the greatest
    one, 2^-(bits + 1): half a bucket's width, over where the bucket begins.

    >>> error_of("distinct", 12), error_of("quantile", 6)
    (0.01625, 0.0078125)
    """
    return 1.04 / 2 ** (bits / 2) if aggregate == "distinct" else 0.5 ** (bits + 1)


def sketch_bits(aggregate: str, error: float) -> int:
    """Return how fine a sketch must be for a relative error: the coarsest that keeps it; 0 if none does.

    >>> sketch_bits("distinct", 0.02), sketch_bits("quantile", 0.01), sketch_bits("distinct", 0.0001)
    (12, 6, 0)
    """
    return next((bits for bits in SKETCHES[aggregate][1] if error_of(aggregate, bits) <= error), 0)


def compiled(lane: Lane, output: Output, windows: Sequence[int], place: int) -> CompiledOutput:
    """Return an output for the kernel; its result goes to `place`, and `windows` are the lane's that are asked for.

    Raises:
        DefinitionError: the lane cannot give it.
    """
    known = output.aggregate in AGGREGATES and (output.aggregate != "latest" or output.column is not None)
    windowless = output.aggregate == "latest"
    if not known or (output.column is not None and not 0 <= output.column < len(lane.values)):
        raise DefinitionError("an output that the lane cannot give", got=output, expected=sorted(AGGREGATES))
    if (output.window is None) is not windowless or (not windowless and output.window not in lane.windows):
        raise DefinitionError("an output over a window that the lane lacks", got=output, expected=lane.windows)
    if output.column is None:
        if output.aggregate != "count":
            raise DefinitionError("rows can only be counted", got=output, expected="count")
        return CompiledOutput(-1, COUNT_ROWS, windows.index(output.window or 0), place, -1, 0, 0, 0.0, ANY_AGE)
    if lane.values[output.column] is ValueType.REF and output.aggregate not in OF_TEXTS:
        raise DefinitionError("texts are no numbers", got=output, expected=OF_TEXTS)
    share, age = 0.0, ANY_AGE
    if output.aggregate == "quantile":
        share = -1.0 if output.parameter is None else float(output.parameter)
        if not 0.0 <= share <= 1.0:
            raise DefinitionError("not a quantile", got=output.parameter, expected="between 0 and 1")
    elif output.parameter is not None:
        age = int(output.parameter)
    until = -1 if output.until is None else output.until
    window = -1 if output.window is None else windows.index(output.window)
    return CompiledOutput(output.column, _kind(output), window, place, until, output.bits, 0, share, age)


def _kind(output: Output) -> int:
    """Return the kernel's number of an aggregate, or of its sketch."""
    if not output.bits:
        return AGGREGATES[output.aggregate]
    if output.aggregate not in SKETCHES or output.bits not in SKETCHES[output.aggregate][1]:
        raise DefinitionError("an estimate that no sketch gives", got=output, expected=SKETCHES)
    return SKETCHES[output.aggregate][0]
