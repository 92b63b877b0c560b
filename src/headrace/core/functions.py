"""Tell a function's meaning by its text: its own, and that of what it uses of the project."""

from __future__ import annotations

import dis
import inspect
import sys
import sysconfig
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from headrace.core.location import PACKAGE

GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME")


def function_source(function: Callable[..., Any]) -> str:
    """Return a function's source text, dedented, and that of everything of the project's own that it uses.

    Followed, over any number of steps, are functions and classes of the project that the code names, as globals, as
    `module.name` or from the function around it, and plain constants under such names: what they say follows the
    function's own text, in an order that depends on nothing else. Installed packages, Headrace's own definitions, and what
    is imported inside a function or reached through an object are not: those do not change with the project's files, have
    versions of their own, or cannot be told. Where no file is, bytecode stands for the text.
    """
    found: dict[int, str] = {}
    constants: set[str] = set()
    _follow(function, found, constants)
    own = found.pop(id(_function_of(function)))
    return "\n".join([own, *sorted(constants), *sorted(found.values())])


def _follow(value: Any, found: dict[int, str], constants: set[str]) -> None:
    """Note a function or class, and all that it uses."""
    value = _function_of(value)
    if id(value) in found:
        return
    found[id(value)] = _text(value)
    if isinstance(value, type):
        for base in [base for base in value.__bases__ if _is_own(base)]:
            _follow(base, found, constants)
    for function in _methods(value) if isinstance(value, type) else [value]:
        for name, used in _used(function):
            if _is_constant(used):
                constants.add(f"{name} = {_told(used)}")
            elif _is_own(_function_of(used)):
                _follow(used, found, constants)


def _function_of(value: Any) -> Any:
    """Return the function that a wrapper calls, or an object of Headrace's holds; anything else as it is."""
    value = inspect.unwrap(value) if callable(value) else value
    if isinstance(value, (FunctionType, type)):
        return value
    held = getattr(value, "function", None)
    return held if isinstance(held, FunctionType) else value


def _methods(owner: type) -> list[FunctionType]:
    found = [getattr(value, "fget", None) or getattr(value, "__func__", value) for value in vars(owner).values()]
    return [inspect.unwrap(value) for value in found if isinstance(value, FunctionType)]


def _text(value: Any) -> str:
    try:
        return textwrap.dedent(inspect.getsource(value))
    except (OSError, TypeError):
        return _bytecode(value.__code__) if isinstance(value, FunctionType) else repr(value)


def _bytecode(code: CodeType) -> str:
    """Return a function's instructions, names and constants; no address of this process is among them."""
    constants = [_bytecode(c) if isinstance(c, CodeType) else _told(c) for c in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def _used(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield what a function's code names outside of itself."""
    around = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # not bound yet: the function around it has not come so far
            around[name] = cell.cell_contents
    for code in _codes(function.__code__):
        yield from _named(code, function.__globals__, around)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _named(code: CodeType, scope: Mapping[str, Any], around: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield what is loaded by name; of a module of the project, what is taken from it next."""
    name, held = "", None  # the module that the next step may take something from
    names: Mapping[str, Any]
    kinds = {"LOAD_DEREF": around, **dict.fromkeys(GLOBAL, scope)}
    for step in dis.get_instructions(code):
        if held is not None and step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            name, names = f"{name}.{step.argval}", vars(held)
        else:
            name, names = str(step.argval), kinds.get(step.opname, {})
        held, missing = None, step.argval not in names or str(step.argval).startswith("__")
        if missing:
            continue
        value = names[step.argval]
        if not isinstance(value, ModuleType):
            yield name, value
        elif not _installed(getattr(value, "__file__", None)):
            held = value


def _is_own(value: Any) -> bool:
    """Tell whether a value is a function or class that is written in the project, and no definition of Headrace's."""
    if not isinstance(value, (FunctionType, type)) or "__definition__" in vars(value):
        return False
    home = sys.modules.get(value.__module__)
    return value.__module__ not in sys.builtin_module_names and not _installed(getattr(home, "__file__", None))


def _installed(file: str | None) -> bool:
    """Tell whether a module's file belongs to Python, to an installed package or to Headrace; a notebook has none."""
    if file is None:
        return False
    path = Path(file).resolve()
    return bool({"site-packages", "dist-packages"} & {*path.parts}) or str(path).startswith(_homes())


@cache
def _homes() -> tuple[str, ...]:
    paths = [PACKAGE, *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib"))]
    return tuple(f"{Path(path).resolve()}/" for path in paths)


def _is_constant(value: Any) -> bool:
    if isinstance(value, (list, tuple, set, frozenset)):
        return type(value) in (list, tuple, set, frozenset) and all(map(_is_constant, value))
    if type(value) is dict:
        return all(map(_is_constant, value.keys())) and all(map(_is_constant, value.values()))
    return type(value) in (bool, int, float, complex, str, bytes, type(None))


def _told(value: Any) -> str:
    """Write a constant: sets in the order of what their members are written as."""
    if isinstance(value, (set, frozenset)):
        return "{" + ", ".join(sorted(map(_told, value))) + "}"
    if isinstance(value, (list, tuple)):
        inner = ", ".join(map(_told, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_told(k)}: {_told(v)}" for k, v in value.items()) + "}"
    return repr(value)
