"""Name every failure by who must act; say what, where, got against expected, and the next command to type."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar


class HeadraceError(Exception):
    """Carry a message in four parts, readable by people (`str`) and by programs (`to_dict`).

    >>> print(DefinitionError("unknown column", where="flights.py:12", got="dep_dely", expected="dep_delay",
    ...                       next_step="fix the name"))
    unknown column
      where:    flights.py:12
      got:      dep_dely
      expected: dep_delay
      next:     fix the name
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        got: object = None,
        expected: object = None,
        next_step: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.got = None if got is None else bounded(got)
        self.expected = None if expected is None else bounded(expected)
        self.next_step = next_step

    def __str__(self) -> str:
        parts = (("where", self.where), ("got", self.got), ("expected", self.expected), ("next", self.next_step))
        return "\n".join([self.what, *(f"  {name + ':':<9} {text}" for name, text in parts if text is not None)])

    def to_dict(self) -> dict[str, Any]:
        """Return the error as plain JSON values, for `--json` and HTTP."""
        body = {"error": self.code, "what": self.what, "where": self.where, "got": self.got}
        return {k: v for k, v in {**body, "expected": self.expected, "next": self.next_step}.items() if v is not None}


class DefinitionError(HeadraceError):
    """Report a mistake in a project file, found before any data is read: its author must act."""

    code = "definition"


class UnknownColumn(DefinitionError):
    """Report a name that no source, group or dataset has."""

    code = "unknown_column"


class LeakageError(DefinitionError):
    """Report a value that would not yet be known at the prediction's moment."""

    code = "leakage"


class SchemaConflict(DefinitionError):
    """Report two definitions of one thing that cannot both hold."""

    code = "schema_conflict"


class ConfigurationError(HeadraceError):
    """Report settings, installation or surroundings that do not fit: the operator must act."""

    code = "configuration"


class MissingExtra(ConfigurationError):
    """Report a technology whose optional dependency is not installed."""

    code = "missing_extra"


class BadUrl(ConfigurationError):
    """Report a location that names no known technology or is malformed."""

    code = "bad_url"


class UsageError(ConfigurationError):
    """Report a command or call with wrong arguments."""

    code = "usage"
    exit_code = 2


class DataError(HeadraceError):
    """Report data that breaks its contract: the data's owner must act."""

    code = "data"


class NoVersion(DataError):
    """Report a version of a table that is not there, or no longer."""

    code = "no_version"


class SchemaChanged(DataError):
    """Report a column that was removed or changed its type upstream."""

    code = "schema_changed"


class ChecksFailed(DataError):
    """Report checks of severity `stop` that failed."""

    code = "checks_failed"


class Stale(DataError):
    """Report data that is older than its contract allows."""

    code = "stale"


class Refused(HeadraceError):
    """Report that a policy said no; nothing is broken."""

    code = "refused"
    exit_code = 3


class GateRefused(Refused):
    """Report a model that did not pass its gates."""

    code = "gate_refused"


class RolloutAborted(Refused):
    """Report a rollout that its abort rules ended."""

    code = "rollout_aborted"


class UserCodeError(HeadraceError):
    """Report that a function of the project raised; the cause is kept as `__cause__`."""

    code = "user_code"


class BackendError(HeadraceError):
    """Report a store or engine that failed; `retryable` says whether the same call may succeed later."""

    code = "backend"
    retryable: ClassVar[bool] = False


class Unavailable(BackendError):
    """Report a store that cannot be reached or is locked; try again."""

    code = "unavailable"
    retryable = True


class Conflict(BackendError):
    """Report that somebody else changed the same thing first; nothing was written."""

    code = "conflict"
    retryable = True


class Corrupt(BackendError):
    """Report stored bytes that are not what was written."""

    code = "corrupt"


class InternalError(HeadraceError):
    """Report a fault of Headrace itself."""

    code = "internal"


def bounded(value: object, limit: int = 200) -> str:
    """Return `value` as text of at most `limit` characters, lists as a few examples."""
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [str(item) for item in value]
        text = ", ".join(items[:8]) + (f", … ({len(items)} in all)" if len(items) > 8 else "")
    else:
        text = str(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """Return a next step that names the closest known name, or lists what there is; None if there is nothing.

    >>> did_you_mean("dep_dely", ["dep_delay", "arr_delay"])
    'did you mean dep_delay?'
    """
    names: Sequence[str] = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"known: {bounded(names)}" if names else None
