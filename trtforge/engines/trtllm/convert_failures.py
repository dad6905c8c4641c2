"""What upstream's conversion scripts say when they fail. Standard library only.

The texts of the first group were produced by running upstream's scripts on broken input (see the
notes in `trtforge.checkpoint.upstream`); those of libraries are PyTorch's, transformers' and the
kernel's own.
"""

import re

from trtforge.engines.driver_main import DriverError
from trtforge.engines.trtllm.run_failures import recognise as recognise_runtime
from trtforge.engines.trtllm.run_failures import short

_KNOWN: "tuple[tuple[str, str, str, str], ...]" = (
    (
        "wrong-script",
        r"Unsupported Qwen type|Invalid model type|Unsupported model architecture",
        "the script does not convert this type of model",
        "Correct model_type in the model's config.json, or choose a release that knows the model",
    ),
    (
        "cannot-split",
        r"must be divisible by tp_size|Auto padding failed|not divisible by (?:tp|world)",
        "the model cannot be split in this way",
        "Choose checkpoint.tp so that it divides heads and intermediate size",
    ),
    (
        "broken-weights",
        r"SafetensorError|incomplete metadata, file not fully covered|HeaderTooLarge",
        "a file of the weights is broken",
        "Pull the model again",
    ),
    (
        "missing-weights",
        r"'NoneType' object has no attribute 'to'|File does not contain tensor",
        "a tensor that the script needs is not in the model's files",
        "Pull the model again; tied embeddings need a release that knows them (0.15 or newer)",
    ),
    (
        "needs-remote-code",
        r"does not recognize this architecture|Unrecognized (?:model|configuration class)"
        r"|requires you to execute the configuration file|trust_remote_code",
        "the release's transformers do not know this model without the code it brings",
        "trtforge runs no code of models; choose a newer release, or a model that needs none",
    ),
    (
        "unknown-argument",
        r"unrecognized arguments:",
        "the script does not know an option it was given",
        "The examples are not of the release that is installed; set TRTLLM_EXAMPLES",
    ),
    (
        "disk-full",
        r"No space left on device|Errno 28",
        "the disk is full",
        "Free as much as the model is large, and run again",
    ),
    (
        "host-out-of-memory",
        r"^MemoryError|Cannot allocate memory|DefaultCPUAllocator: can't allocate memory",
        "the machine ran out of memory",
        "The script holds the whole model in memory, once for each of its workers; use a larger "
        "machine, or the built-in converter (checkpoint.tool trtforge), which streams",
    ),
)


def recognise(log: "list[str]") -> "DriverError | None":
    """The known cause of a failure, by the first line of its log that shows one."""
    for cause, pattern, problem, remedy in _KNOWN:
        for line in log:
            if re.search(pattern, line):
                return DriverError(cause, f"{problem}: {short(line)}", remedy)
    return recognise_runtime(log)
