"""Which TensorRT-LLM this interpreter has, without importing it. Standard library only."""

import importlib.metadata
import importlib.util
import runpy
import sys
from pathlib import Path

from trtforge.engines.driver_main import DriverError


def installed_release() -> "tuple[str, bool]":
    """Its version, and whether it is the tests' stand-in.

    Raises:
        DriverError: `no-tensorrt-llm`, `broken-tensorrt-llm`.
    """
    spec = importlib.util.find_spec("tensorrt_llm")
    if spec is None or spec.origin is None:
        raise DriverError(
            "no-tensorrt-llm",
            f"{sys.executable} has no tensorrt_llm",
            "Point TRTFORGE_TRTLLM_PYTHON at the interpreter that has it: in NVIDIA's release "
            "image that is /usr/bin/python3. `trtforge doctor` looks for one",
        )
    path = Path(spec.origin).with_name("version.py")
    try:
        constants = runpy.run_path(str(path))
        return str(constants["__version__"]), bool(constants.get("STANDIN", False))
    except (OSError, KeyError):
        version = metadata_version("tensorrt_llm")
    if version is None:
        raise DriverError(
            "broken-tensorrt-llm",
            f"the tensorrt_llm in {path.parent} does not say its version",
            "Install it again; a directory of that name on the path is no TensorRT-LLM",
        )
    return version, False


def metadata_version(name: str) -> "str | None":
    """The version of an installed distribution."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
