"""Backends by name."""

import sys
from pathlib import Path

from trtforge.engines.aoti.backend import AotiBackend
from trtforge.engines.base import Backend


def open_backend(name: str, python: Path = Path(sys.executable)) -> Backend:
    """The backend `name` (a value of `engine.backend`), driven by the interpreter `python`."""
    return {"aoti": AotiBackend}[name](python)
