"""A stand-in for a toolchain, as tests use where the real one cannot run: never to be published."""

import os

from trtforge.engines.base import Toolchain
from trtforge.errors import BuildError

ALLOW_VARIABLE = "TRTFORGE_ALLOW_STANDIN"
STANDIN_NOTICE = (
    "> **STAND-IN: this is no engine.** A stand-in for the toolchain made these files, for a test; "
    "they run nowhere."
)
_MARK = "+standin"


class StandinError(BuildError):
    """A stand-in for the toolchain made the engine; it must not be published."""


def is_standin(backend_version: str) -> bool:
    """Whether a toolchain's `backend_version` is a stand-in's."""
    return backend_version.endswith(_MARK)


def refuse_standin(toolchain: Toolchain) -> None:
    """Refuse to publish what a stand-in made, unless the environment says that this is a test.

    Raises:
        StandinError: The toolchain is a stand-in.
    """
    if is_standin(toolchain.backend_version) and os.environ.get(ALLOW_VARIABLE) != "1":
        raise StandinError(
            "a stand-in for the toolchain made this engine; it runs nowhere",
            field="toolchain.backend_version",
            value=toolchain.backend_version,
            remedy="Point TRTFORGE_TRTLLM_PYTHON at a real TensorRT-LLM and build again",
        )
