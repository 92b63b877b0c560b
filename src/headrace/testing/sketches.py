"""Estimate as the kernel's sketches do, the slow and obvious way: the same bits, with nothing shared but the formulas.

Sources: HyperLogLog (Flajolet, Fusy, Gandouet, Meunier, AofA 2007) with the improved raw estimator of Ertl
(arXiv:1702.01284, algorithms 4 to 6); SplitMix64 (Steele, Lea, Flood, OOPSLA 2014); DDSketch (Masson, Rim, Lee, PVLDB
12(12), 2019) with linearly interpolated buckets. All are computed from a list of values.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

from headrace.core.identity import text_id

__all__ = ["distinct_estimate", "hash_of", "quantile_estimate"]

LEAST_NORMAL = Fraction(2) ** -1022


def hash_of(value: Any) -> int:
    """Return the 64-bit hash of a value: SplitMix64 of its 8 bytes, of a text's 63-bit id.

    >>> hash_of(0.0) == hash_of(-0.0), hex(hash_of(0))
    (True, '0xe220a8397b1dcdaf')
    """
    if isinstance(value, str):
        value = text_id(value)
    if isinstance(value, float):
        value = struct.unpack("<q", struct.pack("<d", math.nan if value != value else value + 0.0))[0]
    x = (int(value) + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def distinct_estimate(values: Iterable[Any], bits: int) -> int:
    """Estimate how many values differ, from 2^bits registers."""
    rest = 64 - bits
    registers = [0] * 2**bits
    for value in values:
        place, low = divmod(hash_of(value), 2**rest)
        registers[place] = max(registers[place], rest - low.bit_length() + 1)
    if not any(registers):
        return 0
    often, m = Counter(registers), float(2**bits)
    z = m * _tau(1.0 - often[rest + 1] / m)
    for position in range(rest, 0, -1):
        z = 0.5 * (z + often[position])
    z += m * _sigma(often[0] / m)
    return math.floor(0.7213475204444817 * m * m / z + 0.5)  # 1 / (2 ln 2)


def _sigma(x: float) -> float:
    y, z, before = 1.0, x, -1.0
    while z != before:
        x, before = x * x, z
        z, y = z + x * y, y + y
    return z


def _tau(x: float) -> float:
    if x in (0.0, 1.0):
        return 0.0
    y, z, before = 1.0, 1.0 - x, -1.0
    while z != before:
        x, y, before = math.sqrt(x), 0.5 * y, z
        z -= (1.0 - x) * (1.0 - x) * y
    return z / 3.0


def quantile_estimate(values: Sequence[int | float], q: float, bits: int) -> float:
    """Estimate the inverse-CDF quantile of at least one value, from counts in buckets that part powers of two in 2^bits."""
    counted = Counter(_bucket(value, bits) for value in values)
    rank = max(math.ceil(q * len(values)), 1)
    for bucket in sorted(counted):
        rank -= counted[bucket]
        if rank <= 0:
            break
    return bucket[1]


def _bucket(value: int | float, bits: int) -> tuple[int, float]:
    """Return a value's bucket: where NaN stands behind all others, and the middle, which is in order and stands for it."""
    if value != value:
        return 1, math.nan
    if math.isinf(value):
        return 0, float(value)
    size = abs(Fraction(value))
    if size < LEAST_NORMAL:
        return 0, 0.0
    power = Fraction(2) ** (value.bit_length() if isinstance(value, int) else math.frexp(value)[1]) / 2
    part = math.floor((size / power - 1) * 2**bits)
    middle = float(power * (1 + (part + Fraction(1, 2)) / 2**bits))
    return 0, middle if value > 0 else -middle
