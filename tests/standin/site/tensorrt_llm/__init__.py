"""A stand-in for TensorRT-LLM: it compiles nothing. See tests/standin/README.md."""

import importlib
import os

from tensorrt_llm.version import STANDIN, __version__

__all__ = ["STANDIN", "__version__", "mpi_rank", "mpi_world_size"]


def mpi_rank() -> int:
    return int(os.environ.get("OMPI_COMM_WORLD_RANK", "0"))


def mpi_world_size() -> int:
    return int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1"))


def __getattr__(name: str) -> object:
    try:
        names = importlib.import_module("tensorrt_llm.lazy_names").NAMES
    except ModuleNotFoundError:
        names = {}
    if name not in names:
        raise AttributeError(f"the stand-in for tensorrt_llm has no {name!r}")
    return getattr(importlib.import_module(names[name]), name)
