"""Read rows from a function of the project that returns Arrow; only files beside `headrace.toml` are ever imported."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from headrace.core.errors import ConfigurationError, DataError, HeadraceError, UserCodeError, did_you_mean
from headrace.core.location import shown
from headrace.core.settings import LimitSettings, SourceSettings
from headrace.sources.cursors import earlier, position_of, value_of
from headrace.sources.definition import SourceDefinition
from headrace.sources.readers import Conformer, Extract, Raw, RawRows, numbered
from headrace.storage.paths import inside


@dataclass(frozen=True)
class FunctionPart:
    """Read what a function returns: a table of any library that speaks Arrow, or several, one after the other.

    A function with a parameter `since` gets the newest value of the cursor that was read before, None at first.

    Every method raises UserCodeError where the function raises, ConfigurationError where there is none, DataError where
    it returns no Arrow.
    """

    definition: SourceDefinition
    settings: SourceSettings
    limits: LimitSettings
    folder: Path
    since: str | None = None
    name: str = "function"
    mark: str = ""

    @property
    def where(self) -> str:
        """Return what messages name."""
        return f"function {self.settings.function}"

    @cached_property
    def header(self) -> list[str]:
        """Return the names of the columns that the function returns."""
        return list(self._reader.schema.names)

    def extracts(self, absent_ok: Collection[str] = ()) -> Iterator[Extract]:
        """Yield the rows that the function returns."""
        conformer = Conformer(self.definition, self.settings, self.header, self.where, absent_ok=absent_ok)
        numbers, newest = numbered(), None if self.since is None else value_of(self.since)
        for batch in self._batches():
            newest = _newest(batch, self.settings.cursor, newest)
            for start in range(0, batch.num_rows, self.limits.read_rows):
                piece = batch.slice(start, self.limits.read_rows)
                yield conformer.table(pa.Table.from_batches([piece]), numbers(piece.num_rows))
        conformer.finish()
        if newest is not None:  # only now: nothing says that the rows came in the cursor's order
            nothing = pa.Table.from_batches([], self._reader.schema)
            reached = {"reached": position_of(newest, self.where)}
            yield Extract(**(vars(conformer.table(nothing, numbers(0))) | reached))

    def raw(self) -> RawRows:
        """Yield the rows that the function returns as they stand."""
        for batch in self._batches():
            for start in range(0, batch.num_rows, self.limits.read_rows):
                piece = batch.slice(start, self.limits.read_rows)
                yield Raw(pa.Table.from_batches([piece]), piece.nbytes)

    @cached_property
    def _reader(self) -> pa.RecordBatchReader:
        """Call the function, once, and return its rows as a stream."""
        function = self._function()
        since = None if self.since is None else earlier(value_of(self.since), self.settings.cursor_overlap)
        takes = "since" in inspect.signature(function).parameters
        found = self._calling(lambda: function(since=since) if takes else function())
        if hasattr(found, "__arrow_c_stream__"):
            return pa.RecordBatchReader.from_stream(found)
        rest = iter(found) if isinstance(found, (list, tuple)) or inspect.isgenerator(found) else iter([found])
        first = self._calling(lambda: next(rest, None))
        if not hasattr(first, "__arrow_c_stream__"):
            raise DataError(
                f"{self.definition.name}: the function returned no Arrow",
                where=self.where,
                got=type(first).__name__,
                expected="a table of pyarrow, polars, pandas or DuckDB, or an iterator of such",
            )
        opened = pa.RecordBatchReader.from_stream(first)
        return pa.RecordBatchReader.from_batches(opened.schema, self._chained(opened, rest))

    def _chained(self, first: pa.RecordBatchReader, rest: Iterator[Any]) -> Iterator[pa.RecordBatch]:
        yield from first
        while (table := self._calling(lambda: next(rest, None))) is not None:
            yield from pa.RecordBatchReader.from_stream(table, schema=first.schema)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._reader
        except pa.ArrowException as error:
            raise DataError(
                f"{self.definition.name}: the function's rows cannot be read",
                where=self.where,
                got=str(error).splitlines()[0],
                expected="tables of one schema",
            ) from error

    def _calling(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except HeadraceError:
            raise
        except Exception as error:
            raise UserCodeError(
                f"{self.definition.name}: the function raised {type(error).__name__}", where=self.where, got=str(error)
            ) from error

    def _function(self) -> Callable[..., Any]:
        module_name, _, name = str(self.settings.function).partition(":")
        path = inside(self.folder, module_name.replace(".", "/") + ".py")
        setting = f"[sources.{self.definition.name}] function"
        if not name or not path.is_file():
            near = [p.stem for p in sorted(self.folder.glob("*.py"))]
            raise ConfigurationError(
                f"{self.definition.name}: no such project file",
                where=setting,
                got=self.settings.function,
                expected=f"MODULE:NAME, MODULE a file in {shown(str(self.folder))}",
                next_step=did_you_mean(module_name, near),
            )
        module = self._calling(lambda: _imported(module_name, path))
        found = getattr(module, name, None)
        if not inspect.isfunction(found):
            names = [n for n, value in vars(module).items() if inspect.isfunction(value)]
            raise ConfigurationError(
                f"{self.definition.name}: no such function",
                where=setting,
                got=self.settings.function,
                next_step=did_you_mean(name, names),
            )
        return found


def _imported(name: str, path: Path) -> Any:
    """Return a file's module, the one that is imported already where there is one."""
    there = sys.modules.get(name)
    if there is not None and getattr(there, "__file__", None) == str(path):
        return there
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigurationError("not a Python file", got=shown(str(path)))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _newest(batch: pa.RecordBatch, cursor: str | None, newest: Any) -> Any:
    if cursor is None:
        return None
    import pyarrow.compute as pc

    here = pc.max(batch.column(cursor)).as_py()
    return here if newest is None or (here is not None and here > newest) else newest
