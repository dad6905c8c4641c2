"""The releases of TensorRT-LLM that engines can be built with, and what each of them needs.

Standard library only: drivers use it too. Sources: the release's `requirements.txt`, `setup.py`
and release notes. 1.2.1 is the last stable release with the engine workflow (`trtllm-build`); it
was removed upstream in 1.3.0rc21.
"""

import re
from dataclasses import dataclass

from trtforge.errors import InputError

SUPPORTED = ("1.2.1", "1.2.0", "1.1.0", "1.0.0", "0.16.0")
DEFAULT = "1.2.1"

_FIELD = "engine.version"
_PATTERN = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?(?:\.?(?:rc|dev)(\d+))?(?:\.post\d+)?")
_STABLE = 1 << 30
_REMOVED = (1, 3, 0, 21)
_KNOWN = f"Use one of {', '.join(SUPPORTED)}"


class ReleaseUnknownError(InputError):
    """This is not the number of a release of TensorRT-LLM that trtforge has a table for."""


class ReleaseTooOldError(InputError):
    """The release is older than those trtforge knows."""


class ReleaseTooNewError(InputError):
    """A pre-release after the last stable one with the engine workflow."""


class EngineWorkflowRemovedError(InputError):
    """The release has no `trtllm-build` any more."""


@dataclass(frozen=True)
class Release:
    """One release.

    Attributes:
        version: `1.2.1`.
        table: The option table of its `trtllm-build`: `1.2`, `1.0` or `0.16`.
        tensorrt: The TensorRT it is built against; another patch release may be installed.
        cuda: Of its base image.
        checkpoint_target: What its checkpoints must be written for (`checkpoint.target`).
        llm_api: What runs an engine in it.
        examples_layout: Below the sources, with `{}` for a converter's folder.
        transformers: The newest version it accepts.
    """

    version: str
    table: str
    tensorrt: str
    cuda: str
    checkpoint_target: str
    llm_api: str
    examples_layout: str
    transformers: str

    @property
    def tensorrt_series(self) -> str:
        """Major and minor number of TensorRT: another one cannot be what is installed."""
        return ".".join(self.tensorrt.split(".")[:2])


_LLM = "_tensorrt_engine.LLM"
_RUNNER = "ModelRunnerCpp"
_MODELS = "examples/models/{}"
_RELEASES = {
    release.version: release
    for release in (
        Release("1.2.1", "1.2", "10.14.1", "13.1", "1.2", _LLM, _MODELS, "4.57.3"),
        Release("1.2.0", "1.2", "10.14.1", "13.1", "1.2", _LLM, _MODELS, "4.57.3"),
        Release("1.1.0", "1.0", "10.13.3", "13.0", "1.1", _LLM, _MODELS, "4.56.0"),
        Release("1.0.0", "1.0", "10.11.0", "12.9", "1.0", _LLM, _MODELS, "4.53.1"),
        Release("0.16.0", "0.16", "10.7.0", "12.6", "0.16", _RUNNER, "examples/{}", "4.45.1"),
    )
}


def release(version: str) -> Release:
    """The release of that number; an empty one is the default.

    Raises:
        EngineWorkflowRemovedError: From 1.3.0rc21 on.
        ReleaseTooNewError: The pre-releases of 1.3.0 before that.
        ReleaseTooOldError: Before 0.16.0.
        ReleaseUnknownError: Anything else.
    """
    found = _RELEASES.get(version or DEFAULT)
    if found is not None:
        return found
    match = _PATTERN.fullmatch(version)
    if match is None:
        raise ReleaseUnknownError(
            "this is not the number of a release of TensorRT-LLM",
            field=_FIELD,
            value=version,
            remedy=_KNOWN,
        )
    major, minor, patch, pre = (int(part) if part else None for part in match.groups())
    number = (major or 0, minor or 0, patch or 0, _STABLE if pre is None else pre)
    if number >= _REMOVED:
        raise EngineWorkflowRemovedError(
            "TensorRT-LLM has no trtllm-build from 1.3.0rc21 on; engines cannot be built with it",
            field=_FIELD,
            value=version,
            remedy=f"Use {DEFAULT}, the last stable release with engines",
        )
    if number[:3] >= (1, 3, 0):
        raise ReleaseTooNewError(
            "the pre-releases of 1.3.0 are not supported; 1.3.0 never became stable",
            field=_FIELD,
            value=version,
            remedy=f"Use {DEFAULT}, the last stable release with engines",
        )
    if number[:2] < (0, 16):
        raise ReleaseTooOldError(
            "releases before 0.16.0 are not supported",
            field=_FIELD,
            value=version,
            remedy=_KNOWN,
        )
    near = [known for known in SUPPORTED if known.startswith(f"{major}.{minor}.")]
    raise ReleaseUnknownError(
        "trtforge has no option table for this release of TensorRT-LLM",
        field=_FIELD,
        value=version,
        remedy=f"Did you mean {near[0]!r}?" if near else _KNOWN,
    )


def public_version(installed: str) -> str:
    """The number of the release, without a local part: `1.2.1` of `1.2.1+standin`."""
    return installed.partition("+")[0]
