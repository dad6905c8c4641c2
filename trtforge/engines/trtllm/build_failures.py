"""What went wrong in a build, by the words of its log: one error class per cause.

Sources: upstream's issues. The lines are TensorRT's, TensorRT-LLM's, PyTorch's, MPI's and the
kernel's; several may be there, so the order of `_CAUSES` matters: causes come before what they
cause.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trtforge.errors import BuildError


class GpuMemoryError(BuildError):
    """The GPU's memory was not enough."""


class HostMemoryError(BuildError):
    """The machine's memory was not enough; the kernel ended a process of the build."""


class DiskFullError(BuildError):
    """The disk was full."""


class NoGpuError(BuildError):
    """TensorRT-LLM sees no GPU."""


class DriverTooOldError(BuildError):
    """The NVIDIA driver is older than the toolchain's CUDA needs."""


class TensorRtMismatchError(BuildError):
    """Libraries of another TensorRT or CUDA than TensorRT-LLM was built for."""


class GpuUnsupportedError(BuildError):
    """The toolchain has no code for this GPU."""


class MpiFailedError(BuildError):
    """MPI could not start, or started another number of processes."""


class OptionRefusedError(BuildError):
    """`trtllm-build` does not know an option that is in its release's table."""


class CheckpointRefusedError(BuildError):
    """TensorRT-LLM cannot load the checkpoint."""


class PluginTypeError(BuildError):
    """A plugin was asked to work in a type that is not the checkpoint's."""


class TrtllmBuildFailedError(BuildError):
    """`trtllm-build` failed, and its log has none of the known causes."""


class TrtllmCrashedError(BuildError):
    """`trtllm-build` was ended by a signal that nobody here sent."""


_KILL, _TERM = 9, 15
_LAST_LINES = 6
_SCRATCH = re.compile(r"requires (\d+) bytes of scratch space|needs? (\d+) bytes of scratch")
_SIZE = re.compile(r"Tried to allocate ([\d.]+ [KMGT]iB)|Requested size was (\d+) bytes")


@dataclass(frozen=True)
class _Cause:
    error: type[BuildError]
    pattern: re.Pattern[str]
    problem: Callable[["re.Match[str]", str], str]
    remedy: str


def _says(text: str) -> Callable[["re.Match[str]", str], str]:
    return lambda match, _log: f"{text} ({_shown(match)})"


def _gpu_memory(match: "re.Match[str]", log: str) -> str:
    scratch = _SCRATCH.search(log)
    if scratch:
        size_bytes = int(scratch[1] or scratch[2])
        return (
            f"the GPU has not enough memory: a tactic asked for {size_bytes} bytes "
            f"({size_bytes / 1e9:.1f} GB) of scratch space"
        )
    size = _SIZE.search(log)
    wanted = f" for {size[1] or size[2] + ' bytes'}" if size else ""
    return f"the GPU has not enough memory{wanted} ({_shown(match)})"


def _shown(match: "re.Match[str]") -> str:
    """The line of the log, without the logger's prefix."""
    line = match.string[match.string.rfind("\n", 0, match.start()) + 1 :].partition("\n")[0]
    text = " ".join(re.sub(r"^(?:\[[^\]]*\]\s*)+", "", line.strip()).split())
    return text if len(text) <= 200 else f"{text[:199]}…"


_SMALLER = (
    "Lower engine.max_batch_size, max_num_tokens or max_seq_len, split the model with "
    "checkpoint.tp, or end what else uses the GPU"
)
_MEMORY = (
    "Lower engine.options.workers, give the machine or the container more memory, or split the "
    "model with checkpoint.tp"
)
_INSTALL = (
    "Use the release's own image, or install the wheel with the versions it names; `trtforge "
    "doctor` shows what is there"
)
_CAUSES = (
    _Cause(
        OptionRefusedError,
        re.compile(r"error: unrecognized arguments: .*|error: argument .*: invalid choice: .*"),
        _says("trtllm-build does not take an option that its release's table has"),
        "The toolchain is another release than engine.version: compare `trtllm-build --help`; "
        "`trtforge doctor` shows the release",
    ),
    _Cause(
        DiskFullError,
        re.compile(r"No space left on device|Disk quota exceeded|\[Errno (?:28|122)\]"),
        _says("the disk is full"),
        "Free some space or set TRTFORGE_HOME to a larger disk: a build needs the model's size "
        "three times",
    ),
    _Cause(
        DriverTooOldError,
        re.compile(
            r"CUDA driver version is insufficient for CUDA runtime version"
            r"|The NVIDIA driver on your system is too old|CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"
        ),
        _says("the NVIDIA driver is too old for this CUDA"),
        "Install a newer driver on the machine, or use an older engine.version",
    ),
    _Cause(
        NoGpuError,
        re.compile(
            r"max_workers must be greater than 0|No CUDA GPUs are available"
            r"|Found no NVIDIA driver|no CUDA-capable device|CUDA_ERROR_NO_DEVICE"
            r"|libcuda\.so\.1: cannot open shared object file"
        ),
        _says("TensorRT-LLM sees no GPU"),
        "Run on a GPU worker, with the container given its GPUs (`--gpus all`) and "
        "CUDA_VISIBLE_DEVICES unset; `trtforge doctor` says what is missing",
    ),
    _Cause(
        TensorRtMismatchError,
        re.compile(
            r"stdVersionRead == kSERIALIZATION_VERSION"
            r"|not compatible with this version of TensorRT"
            r"|libnvinfer[\w.]*: cannot open shared object file"
            r"|(?:libnvinfer|libtensorrt_llm|libth_common|bindings)\S*: undefined symbol"
            r"|TensorRT was linked against [\w ]+ but loaded"
        ),
        _says("TensorRT is not the version that this TensorRT-LLM was built for"),
        _INSTALL,
    ),
    _Cause(
        MpiFailedError,
        re.compile(
            r"mpiSize != |mpiSize == |libmpi[\w.]*: cannot open shared object file|ORTE_ERROR|"
            r"\bORTE\b|\bPRTE\b|PMIx_Init failed|PMIX ERROR|MPI_Init(?:_thread)?\b.*(?:fail|abort)"
            r"|There are not enough slots available|mpi4py.*(?:Error|cannot)"
        ),
        _says("MPI failed"),
        "Install the MPI of the release (Debian: libopenmpi-dev), and start the worker outside of "
        "any MPI or Slurm job",
    ),
    _Cause(
        GpuUnsupportedError,
        re.compile(
            r"no kernel image is available|generated on a different device"
            r"|Unsupported (?:SM|architecture|GPU)|not supported on (?:SM|this GPU)"
        ),
        _says("this release does not support the GPU"),
        "Use a release that knows the GPU's compute capability, or another GPU",
    ),
    _Cause(
        GpuMemoryError,
        re.compile(
            r"requires \d+ bytes of scratch space|OutOfMemoryError|CUDA out of memory"
            r"|Cuda Runtime \(out of memory\)|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY"
            r"|GPU memory allocation error|OutOfMemory \(|Could not allocate memory on (?:the )?GPU"
        ),
        _gpu_memory,
        _SMALLER,
    ),
    _Cause(
        HostMemoryError,
        re.compile(
            r"BrokenProcessPool|terminated abruptly while the future|std::bad_alloc|\bMemoryError"
            r"|Cannot allocate memory|exited on signal 9|oom-kill"
        ),
        _says("the machine has not enough memory"),
        _MEMORY,
    ),
    _Cause(
        PluginTypeError,
        re.compile(
            r"(?=.*[Pp]lugin)(?=.*(?:dtype|data ?type))"
            r".*(?:Error|[Aa]ssert|mismatch|not match|not support|must be).*"
        ),
        _says("a plugin works in another type than the checkpoint has"),
        "Set gpt_attention_plugin and gemm_plugin in engine.options to auto, or leave them out",
    ),
    _Cause(
        CheckpointRefusedError,
        re.compile(
            r"unexpected keyword argument '\w+'|Required but not provided tensors"
            r"|SafetensorError|Unsupported model architecture|object has no attribute 'seq_length'"
            r"|KeyError: '(?:architecture|dtype|mapping|quantization)'"
        ),
        _says("TensorRT-LLM does not load the checkpoint"),
        "Convert again with the checkpoint.target of engine.version; for another tool's "
        "checkpoint, compare its config.json with a converted one",
    ),
)


def diagnose(exit_code: int, log: str, log_path: Path) -> BuildError:
    """The error of a `trtllm-build` that failed.

    Args:
        exit_code: Negative when a signal ended it.
        log: What it printed.
        log_path: Where that is kept; the remedy names it.
    """
    where = f"the log is {log_path}"
    for cause in _CAUSES:
        match = cause.pattern.search(log)
        if match:
            return cause.error(cause.problem(match, log), remedy=f"{cause.remedy}; {where}")
    # A shell tells of a signal by 128 more.
    number = -exit_code if exit_code < 0 else exit_code - 128 if exit_code > 128 else 0
    if number == _KILL:
        return HostMemoryError(
            "trtllm-build was killed (signal 9), most likely by the kernel for want of memory",
            remedy=f"{_MEMORY}; {where}",
        )
    said = _last_words(log)
    if number and number != _TERM:
        return TrtllmCrashedError(
            f"trtllm-build was ended by signal {number}: {said}",
            remedy=f"Report it to TensorRT-LLM with the log, if the GPU is healthy; {where}",
        )
    return TrtllmBuildFailedError(
        f"trtllm-build ended with exit code {exit_code}: {said}",
        remedy=f"None of the known causes: {where}",
    )


def _last_words(log: str) -> str:
    lines: Sequence[str] = [line.strip() for line in log.splitlines() if line.strip()]
    shown = [line if len(line) <= 300 else f"{line[:299]}…" for line in lines[-_LAST_LINES:]]
    return " | ".join(shown) or "no output"
