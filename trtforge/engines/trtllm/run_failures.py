"""What the runtime prints when it fails, and what to do about it. Standard library only.

The texts are upstream's and TensorRT's, as users report them (NVIDIA/TensorRT-LLM issues #1543,
#210, #401, #235, #424, #1838, #222, #3031, #2405, #1826, #2717; the numbers are in the patterns'
comments).
"""

import re
from dataclasses import dataclass

from trtforge.engines.driver_main import DriverError


@dataclass(frozen=True)
class _Known:
    cause: str
    pattern: "re.Pattern[str]"
    problem: str
    remedy: str


def _known(cause: str, pattern: str, problem: str, remedy: str) -> _Known:
    return _Known(cause, re.compile(pattern, re.IGNORECASE), problem, remedy)


# What mpirun says of a rank that the kernel killed (Open MPI 4.1.6).
_RANK_KILLED = re.compile(r"exited on signal 9")
_EXCEPTION = re.compile(r"(?:\[[^\]]*\])?(?:\w+\.)*\w*(?:Error|Exception|Exit|Interrupt)\b")
# What mpirun adds after any rank's failure.
_MPIRUN = re.compile(
    r"Primary job|non-zero exit code|mpirun (?:detected|noticed)|Process name:|Exit code:"
)
_KNOWN = (
    # #235, #424, #1838: before the others, they follow from it.
    _known(
        "wrong-tensorrt",
        r"stdVersionRead == kSERIALIZATION_VERSION|plan file is not compatible with this version of"
        r" TensorRT|Version tag does not match",
        "the engine was built by another version of TensorRT",
        "Run it with the release that built it (its config.json and manifest say which), or build "
        "it again",
    ),
    # #222, #3031
    _known(
        "wrong-gpu",
        r"generated on (?:a different|an incompatible) device|no kernel image is available",
        "the engine was built on another type of GPU",
        "Run it on the type of GPU that built it, or build it again here",
    ),
    # #401, #303 of tensorrtllm_backend
    _known(
        "gpu-out-of-memory",
        r"CUDA out of memory|torch\.OutOfMemoryError|cudaMalloc\w*\(.*out of memory|CUDA runtime"
        r" error in .*out of memory|OutOfMemory|Requested amount of GPU memory"
        r"|No available blocks|Can.?t allocate enough (?:GPU )?memory|NVML.*insufficient memory",
        "the GPU ran out of memory while the engine was loaded or ran",
        "See that nothing else uses the GPU (nvidia-smi); then lower engine.max_batch_size, "
        "engine.max_seq_len or engine.max_num_tokens, or split the model over more GPUs "
        "(checkpoint.tp)",
    ),
    # #9277, #2717, #6539
    _known(
        "prompt-too-long",
        r"exceeds maximum input length|should not exceed max_seq_len|exceeds max_num_tokens"
        r"|exceeds the engine or specified limit",
        "the engine refused a request as too long",
        "Raise engine.max_seq_len or engine.max_num_tokens and build it again, or ask for less",
    ),
    _known(
        "wrong-world-size",
        r"MPI size \d+ != TP size|mpiSize == tp \* pp|Only \d+ GPUs are available",
        "the number of ranks or GPUs is not what the engine was built for",
        "Give the run as many GPUs as checkpoint.tp × checkpoint.pp",
    ),
    # #2405, #1826, #2172
    _known(
        "mpi",
        r"MPI_ABORT was invoked|MPI_Init|ORTE (?:has|was|does)|PRTE (?:has|was)|\borted\b"
        r"|There are not enough slots|All nodes which are allocated for this job",
        "MPI could not start or keep the ranks",
        "In a container give it --ipc=host --ulimit memlock=-1 and enough shared memory; see the "
        "log for the rank that ended first",
    ),
    _known(
        "driver-too-old",
        r"CUDA driver version is insufficient",
        "the NVIDIA driver is older than this release's CUDA needs",
        "Update the driver; `trtforge doctor` says which one is needed",
    ),
    _known(
        "missing-library",
        r"(?:ImportError|OSError): lib\S+: cannot open shared object file",
        "a library of the toolchain is missing",
        "libmpi.so.40 is in libopenmpi-dev; libcuda.so.1 comes with the driver (in a container: "
        "--gpus all)",
    ),
    _known(
        "no-gpu",
        r"No CUDA GPUs are available|no CUDA-capable device is detected",
        "CUDA finds no GPU",
        "In a container start it with --gpus all; see CUDA_VISIBLE_DEVICES",
    ),
)


def recognise(log: "list[str]") -> "DriverError | None":
    """The known cause of a failure, by the first line of its log that shows one."""
    if any(_RANK_KILLED.search(line) for line in log):
        return _killed()
    for known in _KNOWN:
        for line in log:
            if known.pattern.search(line):
                problem = f"{known.problem}: {short(line)}"
                return DriverError(known.cause, problem, known.remedy)
    return None


def unknown(log: list[str], exit_code: int) -> DriverError:
    """A failure nobody wrote a remedy for, in its own words: an exception, or its last line."""
    if exit_code in (-9, 137):
        return _killed()
    words = next((line for line in reversed(log) if _EXCEPTION.match(line)), None)
    if words is None:
        said = (line for line in reversed(log) if line.strip(" -") and not _MPIRUN.search(line))
        words = next(said, "no output")
    how = f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
    return DriverError(
        "engine-run-failed", f"the engine's run ended with {how}: {short(words)}", ""
    )


def _killed() -> DriverError:
    return DriverError(
        "killed",
        "the process that ran the engine was killed (signal 9)",
        "Most likely the machine ran out of memory: free some; loading an engine needs about its "
        "size of host memory",
    )


def short(line: str) -> str:
    """A log line without its time stamp, on one line of bearable length."""
    text = re.sub(r"^\[[^\]]*\]\s*(?:\[TRT-LLM\]|\[TensorRT-LLM\])?\s*", "", " ".join(line.split()))
    return text if len(text) <= 300 else f"{text[:297]}..."
