"""Ways a build can fail, asked for with TRTFORGE_STANDIN_FAULT: see tests/standin/README.md.

Each prints what upstream, TensorRT, PyTorch, MPI or the kernel print then.
"""

import os
import signal
import subprocess
import sys
import time

SCRATCH_BYTES = 210571452800

_RAISED = {
    "cuda-oom": (
        RuntimeError,
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total "
        "capacity of 79.15 GiB of which 1.20 GiB is free.",
    ),
    "wrong-gpu": (
        RuntimeError,
        "CUDA error: no kernel image is available for execution on the device",
    ),
    "wrong-tensorrt": (
        RuntimeError,
        "[TensorRT-LLM][ERROR] 1: [stdArchiveReader.cpp::StdArchiveReaderInitCommon::46] Error "
        "Code 1: Serialization (Serialization assertion stdVersionRead == kSERIALIZATION_VERSION "
        "failed.Version tag does not match. Note: Current Version: 240, Serialized Engine "
        "Version: 239)",
    ),
    "driver-old": (
        RuntimeError,
        "CUDA error: CUDA driver version is insufficient for CUDA runtime version",
    ),
    "mpi-size": (
        RuntimeError,
        "[TensorRT-LLM][ERROR] Assertion failed: mpiSize == tp * pp (/app/tensorrt_llm/cpp/"
        "tensorrt_llm/runtime/worldConfig.cpp:80)",
    ),
    "missing-libmpi": (
        ImportError,
        "libmpi.so.40: cannot open shared object file: No such file or directory",
    ),
    "mapping-keys": (
        TypeError,
        "Mapping.__init__() got an unexpected keyword argument 'auto_parallel'",
    ),
    "plugin-dtype": (
        AssertionError,
        "gpt_attention_plugin dtype float16 does not match the model's data type bfloat16",
    ),
    "missing-weights": (
        RuntimeError,
        "Required but not provided tensors:{'transformer.layers.0.attention.qkv.bias'}",
    ),
    "unknown": (ValueError, "the moon is in the wrong house"),
}


def asked(name):
    return name in _faults().split(",")


def _faults():
    # The file's words change while a build goes on.
    path = os.environ.get("TRTFORGE_STANDIN_FAULT_FILE")
    if path is None:
        return os.environ.get("TRTFORGE_STANDIN_FAULT", "")
    try:
        with open(path) as file:  # noqa: PTH123 - nothing but the built-in here
            return file.read().strip()
    except FileNotFoundError:
        return ""


def at_start():
    """Before the arguments are looked at."""
    if asked("ignore-sigterm"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if asked("grandchildren"):
        _start_grandchildren()
    if asked("missing-libmpi"):
        _raise("missing-libmpi")
    if asked("mpi"):
        print(
            "--------------------------------------------------------------------------\n"
            "It looks like orte_init failed for some reason; your parallel process is\n"
            "likely to abort.\n"
            "[node:00042] [[INVALID],INVALID] ORTE_ERROR_LOG: Not found in file "
            "ess_singleton_module.c at line 716",
            file=sys.stderr,
        )
        sys.exit(1)
    if asked("exit-3"):
        sys.exit(3)
    if asked("segfault"):
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGSEGV)
    if asked("rubbish-output"):
        sys.stdout.buffer.write(b"\xff\xfe\x00\x80 no text\n" + b"x" * (1 << 20) + b"\n")
        sys.stdout.flush()
    if asked("hang"):
        while True:
            time.sleep(60)
    while asked("wait"):
        time.sleep(0.1)


def while_loading():
    for name in _RAISED:
        if asked(name):
            _raise(name)
    if asked("no-gpu"):
        raise RuntimeError("No CUDA GPUs are available")


def in_worker():
    if asked("host-oom-worker"):
        os.kill(os.getpid(), signal.SIGKILL)


def while_compiling():
    if asked("gpu-oom"):
        print(
            "[11/22/2026-10:11:12] [TRT] [W] Tactic Device request: 200816MB Available: 78987MB. "
            "Device memory is insufficient to use tactic.\n"
            "[11/22/2026-10:11:12] [TRT] [E] [virtualMemoryBuffer.cpp::resizePhysical::127] Error "
            "Code 2: OutOfMemory (Requested size was 210571452800 bytes.)\n"
            "[11/22/2026-10:11:12] [TRT] [E] IBuilder::buildSerializedNetwork: Error Code 4: "
            "Internal Error (Internal error: plugin node requires "
            f"{SCRATCH_BYTES} bytes of scratch space, but only 84825604096 is available.)",
            flush=True,
        )
        return False
    if asked("host-oom"):
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    return not asked("engine-none")


def disk_full(name):
    if asked(name):
        raise OSError(28, "No space left on device")


def _raise(name):
    kind, text = _RAISED[name]
    raise kind(text)


def _start_grandchildren():
    sleeper = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    for how in ({}, {"process_group": 0}, {"start_new_session": True}):
        if "process_group" in how and sys.version_info < (3, 11):
            how = {"preexec_fn": os.setpgrp}
        subprocess.Popen([sys.executable, "-c", sleeper], **how)
    # A daemon: its parent is gone, and so nobody's child.
    daemon = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {sleeper!r}])"
    subprocess.run([sys.executable, "-c", daemon], start_new_session=True, check=True)
