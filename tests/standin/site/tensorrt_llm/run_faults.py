"""Ways a run can fail, asked for with TRTFORGE_STANDIN_FAULT; each prints what upstream prints.

run-oom             out of GPU memory while the engine is loaded
run-host-oom        killed as the kernel's killer does
run-wrong-tensorrt  the serialization assertion of another TensorRT
run-wrong-gpu       the engine is of another GPU
run-mpi-abort       one rank calls MPI_Abort
run-hang            loading never ends, with SIGTERM ignored
run-request-error   a request is refused by the executor
run-no-logits       answers without the logits that were asked for
run-short           answers end one token early
run-hang-at-exit    shutting down never ends
run-crash-at-exit   SIGSEGV while shutting down
"""

import os
import signal
import sys
import time


def asked(name: str) -> bool:
    return name in os.environ.get("TRTFORGE_STANDIN_FAULT", "").split(",")


def while_loading(rank: int) -> None:
    if asked("run-oom"):
        message = (
            "[TensorRT-LLM][ERROR] CUDA runtime error in ::cudaMallocAsync(ptr, n, "
            "mCudaStream->get()): out of memory (/app/tensorrt_llm/cpp/tensorrt_llm/runtime/"
            "tllmBuffers.h:112)"
        )
        raise RuntimeError(message)
    if asked("run-wrong-tensorrt"):
        print(
            "[TensorRT-LLM][ERROR] 1: [stdArchiveReader.cpp::StdArchiveReaderInitCommon::46] Error "
            "Code 1: Serialization (Serialization assertion stdVersionRead == "
            "kSERIALIZATION_VERSION failed.Version tag does not match. Note: Current Version: 240, "
            "Serialized Engine Version: 239)",
            file=sys.stderr,
        )
        raise RuntimeError(
            "[TensorRT-LLM][ERROR] Assertion failed: Failed to deserialize cuda engine."
        )
    if asked("run-wrong-gpu"):
        print(
            "[TensorRT-LLM][ERROR] 6: The engine plan file is generated on an incompatible device, "
            "expecting compute 9.0 got compute 8.0, please rebuild.",
            file=sys.stderr,
        )
        raise RuntimeError(
            "[TensorRT-LLM][ERROR] Assertion failed: Failed to deserialize cuda engine."
        )
    if asked("run-host-oom"):
        os.kill(os.getpid(), signal.SIGKILL)
    if asked("run-mpi-abort") and rank == 0:
        print("MPI_ABORT was invoked on rank 0 in communicator MPI_COMM_WORLD", file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)
    if asked("run-hang"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(60)


def while_closing() -> None:
    if asked("run-hang-at-exit"):
        while True:
            time.sleep(60)
    if asked("run-crash-at-exit"):
        os.kill(os.getpid(), signal.SIGSEGV)
