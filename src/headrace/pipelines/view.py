"""Hold what a verb answers: plain data for programs, tables and notes for people; and how long work tells its progress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol


@dataclass(frozen=True)
class Table:
    """Hold a table: a title, column names, and rows of texts or numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class View:
    """Hold a verb's answer; `data` is all of it as plain JSON values."""

    title: str
    data: dict[str, Any]
    tables: Sequence[Table] = ()
    notes: Sequence[str] = field(default_factory=tuple)

    def noted(self, *notes: str) -> View:
        """Return the answer with further notes."""
        return replace(self, notes=(*self.notes, *notes))

    def __getitem__(self, name: str) -> Any:
        """Return one of the data's values."""
        return self.data[name]


class Progress(Protocol):
    """Be told how far long work has come."""

    def step(self, name: str, done: int, total: int, note: str = "") -> None:
        """Report that `done` of `total` parts of a step are done."""
        ...


class Silent:
    """Ignore progress."""

    def step(self, name: str, done: int, total: int, note: str = "") -> None:
        """Ignore a step."""
