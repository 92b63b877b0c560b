"""Find the line of the user's file that made a definition, for error messages."""

from __future__ import annotations

import os
import sys
from types import FrameType

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def user_frame() -> FrameType | None:
    """Return the innermost frame outside Headrace, or None."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (frame.f_code.co_filename.startswith(PACKAGE) or _generated(frame)):
        frame = frame.f_back
    return frame


def _generated(frame: FrameType) -> bool:
    """Tell whether a frame is a dataclass's own `__init__`, which has no file."""
    return frame.f_code.co_filename == "<string>" and frame.f_code.co_name == "__init__"


def user_location() -> str:
    """Return `file:line` of the code that called into Headrace; the path is relative where that is shorter."""
    frame = user_frame()
    if frame is None:
        return "<unknown>"
    return f"{shown(frame.f_code.co_filename)}:{frame.f_lineno}"


def shown(path: str) -> str:
    """Return a path relative to the working folder if it lies inside, else as it is."""
    if not os.path.isabs(path):
        return path
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative
