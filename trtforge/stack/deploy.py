"""Pools and deployments for the workers: `trtforge deploy`, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

from trtforge.errors import ServiceError
from trtforge.stack.service import Announce
from trtforge.stack.worker import (
    CpuWorker,
    StandInGpuWorker,
    WorkerLogin,
    client_environment,
)

_TIMEOUT_S = 180.0
_QUOTED_LINES = 12


class StackDeployError(ServiceError):
    """The pools and deployments could not be made on the stack's server."""


def deploy(home: Path, login: WorkerLogin, announce: Announce) -> None:
    """Make the stack's server match the installed `deployments`. Changes nothing the second time.

    Only the pools that have a worker here, with what runs on them. Not in this process, whose
    settings of Prefect are somebody else's.

    Raises:
        StackDeployError: It failed; what it said is quoted.
    """
    announce("deploying pools, flows and automations")
    pools = [f"--pool={worker.pool}" for worker in (CpuWorker, StandInGpuWorker)]
    directory = home / "prefect-client"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "trtforge.cli", "deploy", "--json", *pools],
            cwd=directory,
            env=client_environment(home, login),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _failed(f"did not end within {_TIMEOUT_S:.0f} s", "") from error
    if done.returncode != 0:
        raise _failed(f"ended with status {done.returncode}", done.stderr or done.stdout)
    try:
        json.loads(done.stdout)
    except ValueError as error:
        raise _failed("printed no report", done.stdout) from error


def _failed(what: str, said: str) -> StackDeployError:
    from trtforge.redaction import redact

    lines = [f"    {line}" for line in redact(said).splitlines()[-_QUOTED_LINES:]]
    return StackDeployError(
        "\n".join([f"`trtforge deploy` {what}", *lines]),
        remedy="Run `trtforge deploy` to see it alone, or `trtforge up --no-workers`",
    )
