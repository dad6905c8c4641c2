"""Convert with a release's own script: the parent's side of `convert_driver`.

For what the built-in converter does not know. Which script and which arguments is known to
`trtforge.checkpoint.upstream`; a backend's `convert_upstream` is this one.
"""

import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trtforge.checkpoint.config_keys import CONFIG_NAME
from trtforge.checkpoint.dialect import normalised_config
from trtforge.checkpoint.inspect import inspect_checkpoint
from trtforge.checkpoint.target import Target
from trtforge.checkpoint.upstream import command_arguments, script_for
from trtforge.engines.driver_process import DriverFailedError, run_driver
from trtforge.engines.trtllm.probe import TrtllmMissingError, named_error
from trtforge.engines.trtllm.run import RUN_ERRORS
from trtforge.errors import BuildError, InputError, TrtforgeError
from trtforge.files import FileRef, describe_directory
from trtforge.progress import OnProgress

_DRIVER = "trtforge.engines.trtllm.convert_driver"
_TIMEOUT_S = 4 * 3600.0
# Code and pickles of a model are not shown to the scripts, which would run them.
_HIDDEN_SUFFIXES = (".py", ".bin", ".pt", ".pth", ".pkl", ".ckpt", ".msgpack", ".h5")
_log = logging.getLogger("trtforge")


class TargetMismatchError(InputError):
    """The checkpoint is to be for another release than the one whose script would write it."""


class ExamplesMissingError(BuildError):
    """The release's examples, which its scripts are part of, are nowhere or of another release."""


class ScriptRefusedError(BuildError):
    """The release's script does not convert this model, or not in this way."""


class WeightsBrokenError(BuildError):
    """The script could not read the model's weights."""


class UpstreamCheckpointError(BuildError):
    """The script said it was done, and its checkpoint is not whole or not what was asked for."""


class ConversionResourcesError(BuildError):
    """The machine has too little disk or memory for the script."""


_ERRORS: Mapping[str, type[TrtforgeError]] = {
    **RUN_ERRORS,
    "wrong-target": TargetMismatchError,
    "no-tensorrt-llm": TrtllmMissingError,
    "broken-tensorrt-llm": TrtllmMissingError,
    "no-examples": ExamplesMissingError,
    "wrong-examples": ExamplesMissingError,
    "unknown-argument": ExamplesMissingError,
    "wrong-script": ScriptRefusedError,
    "cannot-split": ScriptRefusedError,
    "needs-remote-code": ScriptRefusedError,
    "broken-weights": WeightsBrokenError,
    "missing-weights": WeightsBrokenError,
    "incomplete-checkpoint": UpstreamCheckpointError,
    "disk-full": ConversionResourcesError,
    "host-out-of-memory": ConversionResourcesError,
    "killed": ConversionResourcesError,
}


def convert_upstream(
    python: Path,
    model_dir: Path,
    out_dir: Path,
    target: Target,
    on_progress: OnProgress,
    *,
    timeout_s: float = _TIMEOUT_S,
) -> list[FileRef]:
    """Convert with the script of the release that `python` has.

    `out_dir` appears complete or not at all; see `trtforge.checkpoint.upstream.UpstreamConverter`.

    Raises:
        BuildError: One subclass per cause, see above, or a driver error.
        InputError: TargetMismatchError, and what choosing the script raises.
    """
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out_dir.name}-", dir=out_dir.parent) as name:
        scratch = Path(name)
        config = shadow_model(model_dir, scratch / "model")
        partial = scratch / "checkpoint"
        request = {
            "target": target.version,
            "script": str(script_for(config, target.version)),
            "arguments": command_arguments(config, target, scratch / "model", partial),
            "out_dir": str(partial),
            "ranks": target.ranks,
        }
        result = _run(python, request, scratch, timeout_s, on_progress)
        for warning in result["warnings"]:
            _log.info("%s", warning)
        _require_sound(partial, target)
        files = describe_directory(partial, result["files"])
        partial.rename(out_dir)
    return files


def _run(
    python: Path,
    request: dict[str, Any],
    scratch: Path,
    timeout_s: float,
    on_progress: OnProgress,
) -> dict[str, Any]:
    try:
        return run_driver(
            _DRIVER,
            request,
            work_dir=scratch,
            timeout_s=timeout_s,
            python=python,
            on_progress=on_progress,
            on_log=lambda line: _log.debug("%s", line),
        )
    except DriverFailedError as error:
        raise named_error(
            error, _ERRORS, field="checkpoint.target", value=request["target"]
        ) from error


def shadow_model(model_dir: Path, shadow: Path) -> dict[str, Any]:
    """Make `shadow` look like the model, in the words the release's transformers understand.

    Its files are links to the model's. Code and pickles are left out, and so is what would fetch
    code; a script that insists on them fails, rather than running what came with the weights.

    Returns:
        The config.json that the script sees.
    """
    shadow.mkdir()
    for path in sorted(model_dir.iterdir()):
        hidden = path.suffix in _HIDDEN_SUFFIXES or path.name == CONFIG_NAME
        if path.is_file() and not hidden:
            (shadow / path.name).symlink_to(os.path.realpath(path))
    raw = json.loads((model_dir / CONFIG_NAME).read_text(encoding="utf-8"))
    config = normalised_config({key: value for key, value in raw.items() if key != "auto_map"})
    (shadow / CONFIG_NAME).write_text(json.dumps(config, indent=2), encoding="utf-8")
    return config


def _require_sound(checkpoint: Path, target: Target) -> None:
    """What the built-in reader of checkpoints finds wrong; it checks tensors of some families."""
    report = inspect_checkpoint(checkpoint)
    problems = list(report.problems)
    if (report.tp, report.pp, report.dtype) != (target.tp, target.pp, target.dtype):
        problems.append(
            f"it is {report.dtype}, tp {report.tp}, pp {report.pp} instead of {target.dtype}, "
            f"tp {target.tp}, pp {target.pp}"
        )
    if problems:
        raise UpstreamCheckpointError(
            f"the script ended well but its checkpoint is wrong: {problems[0]}",
            remedy="See `trtforge inspect`; another release of TensorRT-LLM may convert it right",
        )
