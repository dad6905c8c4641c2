"""Backends by name.

Importing this package imports nothing: drivers live below it, and they are run by toolchains that
have none of trtforge's dependencies.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trtforge.engines.base import Backend

TEACHER_FORCING = frozenset({"aoti"})
"""Backends whose run driver obeys `forced` (`trtforge.engines.jobs`)."""


def open_backend(name: str, python: Path | None = None) -> "Backend":
    """The backend `name` (a value of `engine.backend`), driven by the interpreter `python`.

    Without one, aoti is driven by this process's own; trtllm can only check options then.
    """
    if name == "trtllm":
        from trtforge.engines.trtllm.backend import TrtllmBackend

        return TrtllmBackend(python)
    from trtforge.engines.aoti.backend import AotiBackend

    return {"aoti": AotiBackend}[name](python or Path(sys.executable))
