"""Keep how far a cursor has come as text, and read it back as the value that a query compares with."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import orjson

from headrace.core.errors import ConfigurationError


def position_of(value: Any, where: str) -> str:
    """Return a cursor's value as text.

    >>> position_of(datetime(2024, 1, 2, 3), "orders")
    '{"instant":"2024-01-02T03:00:00"}'

    Raises:
        ConfigurationError: a value of this type has no order that a position could keep.
    """
    if isinstance(value, datetime):
        told: Any = {"instant": value.isoformat()}
    elif isinstance(value, date):
        told = {"date": value.isoformat()}
    elif isinstance(value, Decimal):
        told = {"decimal": str(value)}
    elif isinstance(value, (int, str)) and not isinstance(value, bool):
        told = {"value": value}
    else:
        raise ConfigurationError(
            "a column that cannot be a cursor",
            where=where,
            got=type(value).__name__,
            expected="integers, texts, dates or instants that only grow",
        )
    return orjson.dumps(told).decode()


def value_of(position: str) -> Any:
    """Return the value that `position_of` wrote down."""
    told = orjson.loads(position)
    readers: dict[str, Callable[[str], Any]] = {
        "instant": datetime.fromisoformat,
        "date": date.fromisoformat,
        "decimal": Decimal,
    }
    kind, value = next(iter(told.items()))
    return readers[kind](value) if kind in readers else value


def earlier(value: Any, overlap: int) -> Any:
    """Return a position `overlap` microseconds before another.

    Raises:
        ConfigurationError: the cursor holds no instants.
    """
    if not overlap:
        return value
    if not isinstance(value, date):
        raise ConfigurationError(
            "only instants have an overlap",
            got=type(value).__name__,
            expected="cursor_overlap = 0, or a cursor of instants",
        )
    return value - timedelta(microseconds=overlap)
