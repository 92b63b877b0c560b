"""Read what a command was given, and say of which option it was that it cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from headrace.core.errors import DefinitionError, UsageError

T = TypeVar("T")


def given(option: str, text: str, read: Callable[[str], T]) -> T:
    """Return what an option's text means.

    Raises:
        UsageError: it cannot be read as that.
    """
    try:
        return read(text)
    except DefinitionError as error:
        raise UsageError(
            f"{option}: {error.what}", got=text, expected=error.expected, next_step=f"write {option} so, and try again"
        ) from error
