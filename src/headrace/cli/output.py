"""Print results for people or programs, show progress, and turn errors into messages and exit codes."""

from __future__ import annotations

import _thread
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import typer

from headrace.core.errors import HeadraceError, UsageError

if TYPE_CHECKING:
    from headrace.pipelines.view import Progress, View

AGAIN_S = 0.02
LINE_EVERY_S = 5.0
# What a shell gives a command that Ctrl-C ended; typer returns it in place of KeyboardInterrupt.
INTERRUPTED = 130
# typer carries its own copy of click, whose base class for wrong use it exports through this one only.
WRONG_USE: Any = typer.BadParameter.__mro__[2]


class Output:
    """Print a verb's answer: tables and notes on a terminal, or one JSON document."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def show(self, view: View) -> None:
        """Print the answer on standard output."""
        if self.as_json:
            import orjson

            options = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
            sys.stdout.write(orjson.dumps(view.data, option=options).decode() + "\n")
            return
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console(highlight=False)
        console.print(Text(view.title, style="bold"))
        for table in view.tables:
            shown = Table(title=Text(table.title), title_justify="left", header_style="bold", box=None, pad_edge=False)
            for column in table.columns:
                shown.add_column(Text(column), overflow="fold")
            for row in table.rows:
                shown.add_row(*(Text(_cell(value)) for value in row))
            console.print()
            console.print(shown)
        if view.notes:
            console.print()
        for note in view.notes:
            console.print(Text(note), soft_wrap=True)

    def print(self, renderable: Any) -> None:
        """Print something that rich can draw."""
        from rich.console import Console

        Console(highlight=False).print(renderable)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """Show progress on standard error: a bar on a terminal, else a line every few seconds."""
        if sys.stderr.isatty() and not self.as_json:
            from headrace.cli.bar import Bar

            with Bar() as bar:
                yield bar
        else:
            yield Lines()


class Lines:
    """Write a line whenever a step begins or ends, and every few seconds in between."""

    def __init__(self) -> None:
        self.name, self.at, self.began = "", 0.0, time.perf_counter()

    def step(self, name: str, done: int, total: int, note: str = "") -> None:
        """Report progress, unless the last line is only just written."""
        now = time.perf_counter()
        if name == self.name and done < total and now - self.at < LINE_EVERY_S:
            return
        self.name, self.at = name, now
        share = f"{100 * done / total:5.1f} %" if total else ""
        sys.stderr.write(f"[{now - self.began:6.1f} s] {name} {share} {note}".rstrip() + "\n")
        sys.stderr.flush()


def finish(command: Callable[[], Any], *, as_json: bool) -> int:
    """Run a command; print what went wrong and return the exit code."""
    before, sys.unraisablehook = sys.unraisablehook, partial(_unraisable, sys.unraisablehook)
    try:
        return _ended(command, as_json=as_json)
    finally:
        sys.unraisablehook = before


def _unraisable(before: Callable[[sys.UnraisableHookArgs], object], found: sys.UnraisableHookArgs) -> None:
    """Hand a Ctrl-C on that fell into a finalizer, once that is over: Python would print it and go on."""
    if issubclass(found.exc_type, KeyboardInterrupt):
        again = threading.Timer(AGAIN_S, _thread.interrupt_main)
        again.daemon = True
        again.start()
    else:
        before(found)


def _ended(command: Callable[[], Any], *, as_json: bool) -> int:
    try:
        code = command()
        if code == INTERRUPTED:
            return _stopped()
        return code if isinstance(code, int) else 0
    except typer.Exit as stop:
        return int(stop.exit_code)
    except WRONG_USE as error:
        if as_json:
            asked = error.ctx.command_path if error.ctx is not None else "headrace"
            _report(UsageError(error.format_message(), next_step=f"{asked} --help"), as_json)
        else:
            error.show()
        return 2
    except (KeyboardInterrupt, typer.Abort):
        return _stopped()
    except HeadraceError as error:
        if _interrupted(error):
            return _stopped()
        _report(error, as_json)
        return error.exit_code
    except BrokenPipeError:
        return 1
    except Exception as error:
        if _interrupted(error):
            return _stopped()
        raise


def _interrupted(error: BaseException | None) -> bool:
    """Tell whether an error came of Ctrl-C: a library's own code may turn that into another, as while it is imported."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _stopped() -> int:
    sys.stderr.write("\nstopped; what was done is kept, and the same command goes on from there\n")
    return INTERRUPTED


def _report(error: HeadraceError, as_json: bool) -> None:
    if as_json:
        import orjson

        sys.stderr.write(orjson.dumps(error.to_dict(), option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        sys.stderr.write(f"{error.code}: {error}\n")


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
