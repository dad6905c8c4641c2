"""Backends by name.

Importing this package imports nothing: drivers live below it, and they are run by toolchains that
have none of trtforge's dependencies.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trtforge.engines.base import Backend


def open_backend(name: str, python: Path = Path(sys.executable)) -> "Backend":
    """The backend `name` (a value of `engine.backend`), driven by the interpreter `python`."""
    from trtforge.engines.aoti.backend import AotiBackend

    return {"aoti": AotiBackend}[name](python)
