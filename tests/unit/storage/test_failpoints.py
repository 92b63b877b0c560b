"""Failpoints do exactly what their text says, and nothing when there is none."""

import os
import signal
import subprocess
import sys

import pytest

from headrace.core.errors import ConfigurationError
from headrace.core.failpoints import Failpoint, armed, parse, reach


def test_the_text_is_read() -> None:
    assert parse(" a:kill , b.c:raise:2,d:sleep=0.5:1,") == {
        "a": Failpoint("a", "kill"),
        "b.c": Failpoint("b.c", "raise", hit=2),
        "d": Failpoint("d", "sleep", 0.5, 1),
    }


@pytest.mark.parametrize("text", ["a", "a:", ":kill", "a:stop", "a:raise:x", "a:raise=1", "a:sleep=x", "a:kill:1:2"])
def test_malformed_text_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(text)
    assert str(caught.value) == (
        "a malformed failpoint\n"
        "  where:    HEADRACE_FAILPOINTS\n"
        f"  got:      {text}\n"
        "  expected: name:kill, name:raise or name:sleep=SECONDS, then :N for the N-th hit only\n"
        "  next:     unset HEADRACE_FAILPOINTS"
    )


def test_a_point_acts_on_every_hit_or_on_the_named_one() -> None:
    def outcomes(text: str) -> list[bool]:
        found = []
        with armed(text):
            for _ in range(3):
                try:
                    reach("p")
                    found.append(False)
                except OSError:
                    found.append(True)
        return found

    assert outcomes("p:raise") == [True, True, True]
    assert outcomes("p:raise:2") == [False, True, False]
    assert outcomes("other:raise") == [False, False, False]
    reach("p")


def test_the_variable_arms_a_new_process_and_kill_is_sigkill() -> None:
    code = (
        "from headrace.core.failpoints import reach; reach('p'); print('once', flush=True); reach('p'); print('twice')"
    )
    environment = {**os.environ, "HEADRACE_FAILPOINTS": "p:kill:2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "once\n")
