"""What TensorRT-LLM is installed, and on which GPU: the parent's side of `probe_driver`."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtforge.engines.base import Toolchain, image_digest
from trtforge.engines.driver_process import DriverFailedError, run_driver
from trtforge.errors import BuildError, InputError, TrtforgeError

_DRIVER = "trtforge.engines.trtllm.probe_driver"
_TIMEOUT_S = 120.0
_DEEP_TIMEOUT_S = 600.0
_PYTHON = "TRTFORGE_TRTLLM_PYTHON"


class TrtllmPythonUnsetError(InputError):
    """Nothing says which interpreter has TensorRT-LLM."""


class TrtllmMissingError(InputError):
    """The interpreter has no TensorRT-LLM, or a part of it is missing."""


class TrtllmVersionError(InputError):
    """Another release is installed than the spec asks for."""


class EngineWorkflowGoneError(InputError):
    """The release that is installed has no engines any more."""


class GpuMissingError(BuildError):
    """TensorRT needs an NVIDIA GPU and this machine, or container, has none it can use."""


_ERRORS: Mapping[str, type[TrtforgeError]] = {
    "no-tensorrt-llm": TrtllmMissingError,
    "broken-tensorrt-llm": TrtllmMissingError,
    "no-trtllm-build": TrtllmMissingError,
    "no-tensorrt": TrtllmMissingError,
    "import-failed": TrtllmMissingError,
    "wrong-version": TrtllmVersionError,
    "no-engine-workflow": EngineWorkflowGoneError,
    "no-gpu": GpuMissingError,
}


@dataclass(frozen=True)
class Probe:
    """What was found.

    Attributes:
        facts: What does not decide whether an engine is valid: `standin`, `tools` (name → path or
            None), `gpus` (how many can be used), `memory_bytes` of the first, `python`,
            `torch_version`, `transformers_version`, `examples`, `import_s` of a deep probe.
    """

    toolchain: Toolchain
    facts: dict[str, Any]


def probe(python: Path | None, version: str, work_dir: Path, *, deep: bool = False) -> Probe:
    """Ask `python` for its toolchain.

    Args:
        version: The release that the spec asks for.
        deep: Import tensorrt_llm too: tens of seconds.

    Raises:
        InputError: TrtllmPythonUnsetError, TrtllmMissingError, TrtllmVersionError,
            EngineWorkflowGoneError.
        BuildError: GpuMissingError, or another driver error.
    """
    python = require_python(python)
    try:
        found = run_driver(
            _DRIVER,
            {"version": version, "image_digest": image_digest(), "deep": deep},
            work_dir=work_dir,
            timeout_s=_DEEP_TIMEOUT_S if deep else _TIMEOUT_S,
            python=python,
        )
    except DriverFailedError as error:
        raise named_error(error, _ERRORS, field=_PYTHON, value=str(python)) from error
    return Probe(Toolchain.from_json(found["toolchain"]), found["facts"])


def require_python(python: Path | None) -> Path:
    """The interpreter, when one is set and there.

    Raises:
        TrtllmPythonUnsetError: None is set.
        TrtllmMissingError: It is no program.
    """
    if python is not None:
        if shutil.which(python) is None:
            raise TrtllmMissingError(
                "there is no such interpreter",
                field=_PYTHON,
                value=str(python),
                remedy="Point it at the python of TensorRT-LLM's environment (/usr/bin/python3 in "
                "NVIDIA's release image); `trtforge doctor` looks for one",
            )
        return python
    raise TrtllmPythonUnsetError(
        "nothing says which interpreter has TensorRT-LLM",
        field=_PYTHON,
        value=None,
        remedy="Set it to the python of TensorRT-LLM's environment (/usr/bin/python3 in NVIDIA's "
        "release image); `trtforge doctor` looks for one",
    )


def named_error(
    error: DriverFailedError,
    classes: Mapping[str, type[TrtforgeError]],
    *,
    field: str = "",
    value: object = None,
) -> TrtforgeError:
    """The driver's failure as the class of its cause; a cause nobody named stays as it is."""
    kind = classes.get(error.cause)
    if kind is None:
        return error
    # The driver's name, which `run_driver` puts before its words, says nothing to a person.
    problem = error.problem.split(": ", 1)[-1]
    # What to set instead is in the remedy; a GPU that is missing is no setting's fault.
    where = {"field": field, "value": value} if issubclass(kind, InputError) else {}
    return kind(problem, remedy=error.remedy, **where)  # type: ignore[arg-type]
