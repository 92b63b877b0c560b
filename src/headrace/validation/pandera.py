"""Read a pandera schema as checks of a source; what it demands that no check here says is refused, never left out."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from headrace.core.errors import DefinitionError, MissingExtra
from headrace.core.expressions import Column
from headrace.sources.definition import SourceDefinition
from headrace.validation.definition import Severity, Unique
from headrace.validation.rules import Rule, declared_bounds, membership, no_nulls, pattern

KINDS = {  # how pandera names a type, in any of its backends, and what sources call it
    "str": ("str", "string", "object", "large_string", "utf8", "category"),
    "int": ("int", "uint"),
    "float": ("float", "double"),
    "bool": ("bool", "boolean"),
    "instant": ("datetime", "timestamp"),
    "date": ("date",),
}


def borrowed_from(schema: Any, definition: SourceDefinition, where: str) -> tuple[Any, ...]:
    """Return the rules and checks that a pandera schema makes for a source; columns are matched by their data's names.

    Raises:
        DefinitionError: it is no schema of pandera, or demands what cannot be taken over.
        MissingExtra: pandera is not installed.
    """
    return _translated(_container(schema, where), definition, where)


def _container(schema: Any, where: str) -> Any:
    """Return a schema object; a model class is asked for its own."""
    try:
        import pandera  # noqa: F401
    except ImportError as error:
        raise MissingExtra(
            "pandera is not installed", where=where, next_step='pip install "headrace[pandera]"'
        ) from error
    found = schema.to_schema() if isinstance(schema, type) and hasattr(schema, "to_schema") else schema
    if not isinstance(getattr(found, "columns", None), dict) or not hasattr(found, "checks"):
        raise DefinitionError(
            "not a pandera schema",
            where=where,
            got=type(schema).__name__,
            expected="a DataFrameSchema or DataFrameModel",
        )
    return found


def _translated(schema: Any, definition: SourceDefinition, where: str) -> tuple[Any, ...]:
    names = {c.renamed or c.name: c for c in definition.columns}
    found: list[Any] = []
    for name, field in schema.columns.items():
        if field.regex:
            raise _untold(definition, where, f"the column pattern {name}", "name the columns one by one")
        if name not in names:
            if field.required:
                raise _untold(definition, where, f"the column {name}, which {definition.name} has not", "declare it")
            continue
        found += _column_checks(definition, names[name], field, where)
    if schema.checks:
        raise _untold(definition, where, f"{len(schema.checks)} checks of whole tables", "write them as expressions")
    if schema.unique:
        columns = tuple(names[n] for n in ([schema.unique] if isinstance(schema.unique, str) else schema.unique))
        found.append(Unique(columns, where))
    return tuple(found)


def _column_checks(definition: SourceDefinition, column: Column[Any], field: Any, where: str) -> list[Any]:
    _same_type(definition, column, field, where)
    place = definition.index[column]
    found: list[Any] = []
    if not field.nullable and column.nullable:
        found.append(no_nulls(column, place))
    if field.unique:
        found.append(Unique((column,), where))
    for check in field.checks:
        found += _check(definition, column, place, check, where)
    return found


def _same_type(definition: SourceDefinition, column: Column[Any], field: Any, where: str) -> None:
    if field.dtype is None:
        return
    name = re.sub(r"[^a-z_].*", "", str(field.dtype).lower().removeprefix("pandas.").removeprefix("numpy."))
    if not any(name.startswith(kind) for kind in KINDS[column.dtype]):
        raise DefinitionError(
            f"{definition.name}: pandera's schema says another type",
            where=where,
            got=f"{column}: {field.dtype}",
            expected=column.dtype,
            next_step="make the two agree: the class decides what is read",
        )


def _check(definition: SourceDefinition, column: Column[Any], place: int, check: Any, where: str) -> list[Any]:
    given, name = check.statistics or {}, check.name
    rules: dict[str, Callable[[], list[Rule]]] = {
        "greater_than_or_equal_to": lambda: declared_bounds(column, place, given["min_value"], None),
        "less_than_or_equal_to": lambda: declared_bounds(column, place, None, given["max_value"]),
        "greater_than": lambda: declared_bounds(column, place, given["min_value"], None, strict=True),
        "less_than": lambda: declared_bounds(column, place, None, given["max_value"], strict=True),
        "in_range": lambda: _range(column, place, given),
        "equal_to": lambda: [membership(column, place, (given["value"],))],
        "not_equal_to": lambda: [membership(column, place, (given["value"],), refused=True)],
        "isin": lambda: [membership(column, place, tuple(given["allowed_values"]))],
        "notin": lambda: [membership(column, place, tuple(given["forbidden_values"]), refused=True)],
        "str_matches": lambda: [pattern(column, place, f"(?:{_text(given['pattern'])})(?s:.*)")],
        "str_contains": lambda: [pattern(column, place, f"(?s:.*)(?:{_text(given['pattern'])})(?s:.*)")],
        "str_startswith": lambda: [pattern(column, place, f"(?s:{re.escape(given['string'])}.*)")],
        "str_endswith": lambda: [pattern(column, place, f"(?s:.*{re.escape(given['string'])})")],
        "str_length": lambda: [pattern(column, place, _length(given))],
    }
    if name not in rules or getattr(check, "groupby", None) is not None:
        raise _untold(definition, where, f"{column}: the check {name}", "write it as hr.check_rows(…) or an expression")
    found = rules[name]()
    severity: Severity | None = "warn" if getattr(check, "raise_warning", False) else None
    return [replace(rule, severity=severity) for rule in found]


def _range(column: Column[Any], place: int, given: dict[str, Any]) -> list[Rule]:
    low = declared_bounds(column, place, given["min_value"], None, strict=not given.get("include_min", True))
    return low + declared_bounds(column, place, None, given["max_value"], strict=not given.get("include_max", True))


def _length(given: dict[str, Any]) -> str:
    exact = given.get("exact_value")
    low = exact if exact is not None else given.get("min_value") or 0
    high = exact if exact is not None else given.get("max_value")
    return f"(?s:.{{{low},{'' if high is None else high}}})"


def _text(given: Any) -> str:
    return given.pattern if isinstance(given, re.Pattern) else str(given)


def _untold(definition: SourceDefinition, where: str, what: str, step: str) -> DefinitionError:
    return DefinitionError(
        f"{definition.name}: pandera's schema demands what cannot be taken over",
        where=where,
        got=what,
        expected="types, nulls, unique, and pandera's own checks of single values",
        next_step=step,
    )
