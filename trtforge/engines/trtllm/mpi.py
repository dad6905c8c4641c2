"""Start the ranks of a parallel engine, away from any MPI or Slurm that trtforge itself runs in.

Standard library only: drivers use it.
"""

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from trtforge.engines.driver_main import DriverError

# What an outer mpirun, srun or PMIx daemon leaves in the environment: a child that finds it takes
# itself for one of theirs, and waits for ranks that never come (NVIDIA/TensorRT-LLM#2405, #2172).
_FOREIGN = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "SLURM_", "SLURMD_", "MPI_LOCALRANKID", "HYDRA_")
_RANK_VARIABLE = "OMPI_COMM_WORLD_RANK"
_PARENT_CHECK_S = 0.5


def clean_environment(environment: "Mapping[str, str]") -> "dict[str, str]":
    """The environment without what belongs to another job, for a process that starts one.

    Settings of Open MPI (`OMPI_MCA_…`) stay: administrators make a network work with them.
    """
    kept = {
        name: value
        for name, value in environment.items()
        if name.startswith("OMPI_MCA_") or not name.startswith(_FOREIGN)
    }
    # The drivers of a container run as root; mpirun refuses that unless it is told twice.
    return {**kept, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def mpirun_command(ranks: int, command: "list[str]") -> "list[str]":
    """`command` as the job of `ranks` ranks on this machine.

    Raises:
        DriverError: `no-mpirun`.
    """
    beside = Path(sys.executable).parent / "mpirun"
    mpirun = str(beside) if os.access(beside, os.X_OK) else shutil.which("mpirun")
    if mpirun is None:
        raise DriverError(
            "no-mpirun",
            f"the engine has {ranks} ranks, and there is no mpirun to start them with",
            "Install Open MPI (Debian, Ubuntu: apt-get install libopenmpi-dev openmpi-bin); "
            "NVIDIA's release image has it",
        )
    # A small container may have fewer cores than GPUs, and mpirun counts cores.
    crowded = ["--oversubscribe"] if ranks > (os.cpu_count() or 1) else []
    return [mpirun, "-n", str(ranks), "--allow-run-as-root", *crowded, *command]


def rank_of_this_process() -> int:
    """The rank mpirun gave this process; 0 without one."""
    return int(os.environ.get(_RANK_VARIABLE, "0"))


def end_with_parent() -> None:
    """End this process when the one that started it is gone.

    mpirun puts every rank into a process group of its own: the signal that ends the driver's group
    does not reach it.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()
