"""Carry functions, tables and failures between processes: functions by value, tables as Arrow, failures as JSON."""

from __future__ import annotations

import builtins
import json
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa

from headrace.core import errors
from headrace.core.errors import HeadraceError, Unavailable, UserCodeError
from headrace.engines.protocol import Function, Tables

PACKAGE = __name__.partition(".")[0]
SIZE = 8  # bytes of a length
ANSWER, FAILURE = b"A", b"F"
TRACE = 4_000  # characters of a worker's traceback that are told


def pack_function(function: Function) -> bytes:
    """Return a function with everything of the project that it uses; installed packages are named, not carried.

    Raises:
        UserCodeError: it holds something that cannot be sent, as an open file.
    """
    import cloudpickle

    with _by_value():
        try:
            return bytes(cloudpickle.dumps(function))
        except Exception as error:
            raise UserCodeError(
                "a function cannot be sent to the engine's workers",
                got=f"{type(error).__name__}: {error}",
                expected="functions of plain values",
                next_step="keep open files, locks and connections out of what the function uses, or use the engine local:",
            ) from error


@contextmanager
def _by_value() -> Iterator[None]:
    """Let modules that belong to no installed package travel whole: workers do not have them."""
    import cloudpickle

    own = [module for module in list(sys.modules.values()) if _own(module)]
    fresh = [module for module in own if module.__name__ not in cloudpickle.list_registry_pickle_by_value()]
    for module in fresh:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in fresh:
            cloudpickle.unregister_pickle_by_value(module)


def _own(module: object) -> bool:
    if not isinstance(module, ModuleType) or module.__name__.partition(".")[0] in (PACKAGE, "__main__"):
        return False
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and sys.modules.get(module.__name__) is module and not _installed(file)


@lru_cache(maxsize=10_000)
def _installed(file: str) -> bool:
    path = Path(file)
    return any(path.is_relative_to(folder) for folder in _INSTALLED) or not path.is_absolute()


_INSTALLED = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
_INSTALLED |= {path.resolve() for path in _INSTALLED}


def pack_tables(tables: Tables) -> bytes:
    """Return tables as bytes: for each its length and an Arrow stream."""
    sink = pa.BufferOutputStream()
    for table in tables:
        inner = pa.BufferOutputStream()
        with pa.ipc.new_stream(inner, table.schema) as writer:
            writer.write_table(table)
        stream = inner.getvalue()
        sink.write(stream.size.to_bytes(SIZE, "little"))
        sink.write(stream)
    found: bytes = sink.getvalue().to_pybytes()
    return found


def unpack_tables(blob: bytes | memoryview) -> list[pa.Table]:
    """Return the tables of `pack_tables`, their columns in the same memory."""
    view, at, found = memoryview(blob), 0, []
    while at < len(view):
        size = int.from_bytes(view[at : at + SIZE], "little")
        at += SIZE
        found.append(pa.ipc.open_stream(pa.py_buffer(view[at : at + size])).read_all())
        at += size
    return found


def perform(function: bytes, work: bytes) -> bytes:
    """Apply a packed function to packed tables, in a worker; return the packed answer or failure."""
    try:
        return ANSWER + pack_tables(_loaded(function)(unpack_tables(work)))
    except (Exception, SystemExit) as error:  # noqa: BLE001  whatever it is, its caller must hear of it
        return FAILURE + json.dumps(describe_failure(error)).encode()


@lru_cache(maxsize=1)
def _loaded(function: bytes) -> Callable[[Tables], Tables]:
    import cloudpickle

    found: Callable[[Tables], Tables] = cloudpickle.loads(function)
    return found


def read_answer(blob: bytes, bucket: int, total: int) -> list[pa.Table]:
    """Return the tables of an answer of `perform`.

    Raises:
        HeadraceError: it is a failure; see `failure`.
    """
    view = memoryview(blob)
    if view[:1] == ANSWER:
        return unpack_tables(view[1:])
    raise failure(json.loads(bytes(view[1:])), bucket, total)


def describe_failure(error: BaseException) -> dict[str, Any]:
    """Return an exception as plain JSON: what it says, and its cause."""
    told = error.to_dict() if isinstance(error, HeadraceError) else {}
    inner = error.__cause__ if isinstance(error, HeadraceError) else error
    if inner is not None:
        trace = "".join(traceback.format_exception(inner))[-TRACE:]
        told |= {"cause": {"type": type(inner).__name__, "text": str(inner), "trace": trace}}
    return told


def failure(told: dict[str, Any], bucket: int, total: int, cause: BaseException | None = None) -> HeadraceError:
    """Return the error that `describe_failure` told of, with the number of its bucket; `cause` is the original if it is here."""
    where = f"bucket {bucket + 1} of {total}"
    inner = told.get("cause")
    if "error" in told:
        place = f"{told['where']}, {where}" if "where" in told else where
        rest = {"got": told.get("got"), "expected": told.get("expected"), "next_step": told.get("next")}
        found = _kinds().get(told["error"], UserCodeError)(told["what"], where=place, **rest)
    elif inner is not None and inner["type"] == "MemoryError":
        step = "lower [engines] bucket_rows"
        found = Unavailable("no memory for a bucket", where=where, got=inner["text"], next_step=step)
    else:
        assert inner is not None
        found = UserCodeError(f"a function raised {inner['type']}: {inner['text']}", where=where)
    found.__cause__ = cause or (None if inner is None else _rebuilt(inner))
    return found


def _kinds() -> dict[str, type[HeadraceError]]:
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, HeadraceError)]
    return {kind.code: kind for kind in classes}


def _rebuilt(inner: dict[str, str]) -> Exception:
    """Return an exception of the same built-in type, a RuntimeError for others, with the worker's traceback as a note."""
    kind = getattr(builtins, inner["type"], None)
    plain = isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, UnicodeError)
    found = kind(inner["text"]) if plain and kind is not None else RuntimeError(f"{inner['type']}: {inner['text']}")
    assert isinstance(found, Exception)
    found.add_note(f"in a worker:\n{inner['trace']}")
    return found
