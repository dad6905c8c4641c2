"""Prefect workers of the stack: one for the CPU half of a build, one in the place of a GPU box.

A run is a process of its own, in a session of its own: it outlives a worker that is killed, and
the next `up` starts a worker beside it. `end_runs` is what `down` ends the runs with.
Checked with Prefect 3.8.8; see docs/embedded-stack.md for what a killed worker costs.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import httpx
import psutil

from trtforge.stack import process
from trtforge.stack.prefect_api import PrefectApi
from trtforge.stack.process import Command
from trtforge.stack.service import Service

# Prefect puts it into the environment of a run, and so of all that the run starts.
RUN_ID = "PREFECT__FLOW_RUN_ID"
# A driver gets ten seconds of these for ending its compiler.
_RUN_GRACE_S = 15.0
_LEAST_RUNS_AT_ONCE = 4


@dataclass(frozen=True)
class WorkerLogin:
    """Where a worker finds its server: `auth` is `user:password`."""

    api_url: str
    auth: str

    def __repr__(self) -> str:
        return f"WorkerLogin({self.api_url!r}, ***)"


class Worker(Service):
    """A process worker of one pool. It works with the environment of whoever ran `up`.

    Args:
        home: Home directory of the stack.
        login: The stack's Prefect server.
    """

    pool: ClassVar[str]
    runs_at_once: ClassVar[int]
    start_timeout_s: ClassVar[float] = 120.0
    stop_grace_s: ClassVar[float] = 5.0
    # A run goes on when its worker has to be replaced.
    ends_children: ClassVar[bool] = False

    def __init__(self, home: Path, login: WorkerLogin) -> None:
        super().__init__(home)
        self._login = login
        self._api = PrefectApi(login.api_url, login.auth)
        self.secrets = (login.auth, login.auth.partition(":")[2])

    @property
    def worker_name(self) -> str:
        """As the Prefect UI shows it."""
        return f"trtforge-{self.pool}"

    @property
    def address(self) -> str:
        return f"work pool {self.pool}"

    @property
    def ports(self) -> dict[int, str]:
        return {}

    def prepare(self) -> None:
        (self.home / "prefect-client").mkdir(mode=0o700, parents=True, exist_ok=True)

    def command(self) -> Command:
        start = ("-m", "prefect", "--no-prompt", "worker", "start", "--type", "process")
        options = {
            "--pool": self.pool,
            "--name": self.worker_name,
            "--limit": str(self.runs_at_once),
            "--install-policy": "never",
        }
        flat = [word for option in options.items() for word in option]
        # Pools are made by `trtforge deploy`, with what a run may and may not ask for.
        argv = (sys.executable, *start, *flat, "--no-create-pool-if-not-found")
        environment = client_environment(self.home, self._login) | {
            # Default 15 s: how long a run waits to be noticed.
            "PREFECT_WORKER_QUERY_SECONDS": "3",
            "PREFECT_WORKER_HEARTBEAT_SECONDS": "10",
            # The automation that ends zombies waits for ten of these.
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "60",
            "PYTHONUNBUFFERED": "1",
        }
        return Command(argv, environment, self.home / "prefect-client")

    def unhealthy(self) -> str:
        try:
            seen = self._api.online_since(self.pool, self.worker_name)
        except (httpx.HTTPError, ValueError, KeyError) as error:
            return f"the Prefect API does not answer: {error}"
        leader = self.find()
        # A worker that was killed counts as online until it misses some heartbeats.
        if seen is None or leader is None or seen < _started(leader):
            return f"it has not reported to the pool {self.pool}"
        return ""

    def runs(self) -> set[str]:
        """Ids of the runs whose processes live here, of this worker or of an earlier one."""
        found = (environment.get(RUN_ID) for _, environment in process.marked(self.mark))
        return {run_id for run_id in found if run_id}

    def end_runs(self) -> None:
        """End the worker and the processes of its runs, however those hide: within seconds."""
        leader = self.find()
        if leader is not None:
            # First, and at once: it would only get in the way, and take up the next run.
            process.kill([leader])
        members = _of_runs(process.marked(self.mark))
        for engine in _outermost(members):
            with contextlib.suppress(ProcessLookupError):
                # Once: what a run does to end its compiler must not be interrupted again.
                os.killpg(engine.pid, signal.SIGTERM)
        process.wait_gone(members, _RUN_GRACE_S)
        process.kill(of for of, _ in process.marked(self.mark))


class CpuWorker(Worker):
    """Plans, pulls, converts; and looks after the store and the catalogue."""

    name = "CPU worker"
    slug = "worker-cpu"
    pool = "cpu"
    runs_at_once = max(_LEAST_RUNS_AT_ONCE, os.cpu_count() or 1)


class StandInGpuWorker(Worker):
    """Compiles and measures on the CPU, where the other pools have a GPU: one run at a time."""

    name = "GPU stand-in worker"
    slug = "worker-gpu-standin"
    pool = "gpu-standin"
    runs_at_once = 1


def client_environment(home: Path, login: WorkerLogin) -> dict[str, str]:
    """The caller's environment, for a process that works with this home's Prefect server."""
    # Not above: the settings read the state of the stack.
    from pydantic import SecretStr

    from trtforge.settings import Settings, prefect_environment

    settings = Settings.model_construct(
        home=home, prefect_api_url=login.api_url, prefect_auth=SecretStr(login.auth)
    )
    # Of Prefect's settings only ours; they may be for another server.
    others = ("TRTFORGE_PREFECT_API_URL", "TRTFORGE_PREFECT_AUTH")
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PREFECT_") and name not in others
    }
    return inherited | prefect_environment(settings) | {"TRTFORGE_HOME": str(home)}


def _started(leader: psutil.Process) -> datetime:
    return datetime.fromtimestamp(leader.create_time(), UTC)


def _of_runs(found: Iterable[tuple[psutil.Process, dict[str, str]]]) -> list[psutil.Process]:
    return [of for of, environment in found if environment.get(RUN_ID)]


def _outermost(members: list[psutil.Process]) -> list[psutil.Process]:
    """The engines: those of the runs' processes that lead a group and came of none other."""
    pids = {member.pid for member in members}
    outermost = []
    for member in members:
        with contextlib.suppress(psutil.Error, OSError):
            if os.getpgid(member.pid) == member.pid and member.ppid() not in pids:
                outermost.append(member)
    return outermost
