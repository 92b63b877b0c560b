"""However a library passes Ctrl-C on, a command ends as one that was stopped, and any other error as itself."""

from __future__ import annotations

import time

import pytest

from headrace.cli.output import INTERRUPTED, finish
from headrace.core.errors import DataError


def interrupted_as(other: Exception, *, direct: bool) -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt as stop:
        if direct:
            raise other from stop
        raise other  # noqa: B904


@pytest.mark.parametrize("other", [ImportError("initialization failed"), DataError("no such thing")])
@pytest.mark.parametrize("direct", [True, False])
def test_ctrl_c_inside_a_library_is_ctrl_c(other: Exception, direct: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert finish(lambda: interrupted_as(other, direct=direct), as_json=False) == INTERRUPTED
    assert capsys.readouterr().err == "\nstopped; what was done is kept, and the same command goes on from there\n"


def test_ctrl_c_in_a_finalizer_is_not_lost(capsys: pytest.CaptureFixture[str]) -> None:
    class Interrupted:
        def __del__(self) -> None:
            raise KeyboardInterrupt

    def work() -> int:
        found = Interrupted()
        del found
        end = time.monotonic() + 30
        while time.monotonic() < end:
            pass
        return 0

    assert finish(work, as_json=False) == INTERRUPTED
    assert "Traceback" not in capsys.readouterr().err


def test_an_error_of_its_own_stays_one() -> None:
    def fail() -> None:
        raise ImportError("no such module")

    with pytest.raises(ImportError, match="no such module"):
        finish(fail, as_json=False)
