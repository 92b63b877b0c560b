"""Read a source class's annotations: `hr.Column[float | None]` is a column of floats that may be null."""

from __future__ import annotations

import inspect
import sys
import typing
from datetime import date
from typing import Any, ClassVar

from headrace.core.errors import DefinitionError
from headrace.core.expressions import Column
from headrace.core.location import user_frame, user_location
from headrace.core.time import Instant

DTYPES: dict[Any, str] = {str: "str", int: "int", float: "float", bool: "bool", Instant: "instant", date: "date"}


def annotations_of(cls: type[Any]) -> dict[str, Any]:
    """Return the class's own annotations, evaluated where the class was written."""
    frame = user_frame()
    scope: dict[str, Any] = dict(vars(sys.modules[cls.__module__])) if cls.__module__ in sys.modules else {}
    local = {**frame.f_globals, **frame.f_locals} if frame else {}
    hints = {}
    for name, text in inspect.get_annotations(cls).items():
        holder = type("holder", (), {"__annotations__": {name: text}})
        try:
            hint = typing.get_type_hints(holder, scope, local)[name]
        except NameError as error:
            raise DefinitionError(
                f"{cls.__name__}.{name}: its type is unknown", where=user_location(), got=text
            ) from error
        if typing.get_origin(hint) is not ClassVar:
            hints[name] = hint
    return hints


def column_type(hint: Any, label: str, location: str) -> tuple[str, bool]:
    """Read `hr.Column[float | None]` as ("float", True)."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Column and len(arguments) == 1:
        options = typing.get_args(arguments[0]) or (arguments[0],)
        inner = [o for o in options if o is not type(None)]
        if len(inner) == 1 and inner[0] in DTYPES:
            return DTYPES[inner[0]], len(inner) < len(options)
    expected = "hr.Column[T] or hr.Column[T | None], T one of str, int, float, bool, hr.Instant, hr.Date"
    raise DefinitionError(f"{label}: not a column type", where=location, got=hint, expected=expected)
