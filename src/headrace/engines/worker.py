"""Compute what comes on standard input, until it ends: the processes of `local:processes=N`.

A message is a letter (`F`: a function from now on, `W`: work for it), its length in 8 bytes, its bytes. Each work is answered
by a length and bytes. What functions print goes to standard error.
"""

from __future__ import annotations

import os
import sys
from typing import BinaryIO

from headrace.engines.wire import SIZE, perform

FUNCTION, WORK = b"F", b"W"


def main() -> None:
    """Answer until the caller closes the pipe or dies."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, answers)


def serve(calls: BinaryIO, answers: BinaryIO) -> None:
    """Answer every message of `calls`."""
    function = b""
    while kind := calls.read(1):
        body = calls.read(int.from_bytes(calls.read(SIZE), "little"))
        if kind == FUNCTION:
            function = body
            continue
        answer = perform(function, body)
        answers.write(len(answer).to_bytes(SIZE, "little"))
        answers.write(answer)
        answers.flush()


if __name__ == "__main__":
    main()
