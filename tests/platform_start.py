"""Starting the crew of a platform: a stack of its own, deployed to, with workers of the test's."""

import atexit
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from forge import Forge
from platform_crew import POOL, Crew
from pydantic import SecretStr
from standin.environment import STANDIN_REFERENCE_PYTHON, standin_environment

from trtforge.engines.standin import ALLOW_VARIABLE
from trtforge.stack import StackInfo, StackPorts, down, service, up
from trtforge.stack import state as stack_state
from trtforge.stack.process import Command
from trtforge.stack.worker import CpuWorker, StandInGpuWorker, Worker, WorkerLogin
from trtforge.store import Store
from trtforge.store.client import make_client


@contextmanager
def crew_of_its_own() -> Iterator[Crew]:
    """A stack that may be killed, deployed to, with both workers at work; all ended afterwards."""
    home = Path(tempfile.mkdtemp(prefix="trtforge-crew-"))
    home.chmod(0o711)  # PostgreSQL runs as somebody else, should this be root
    crew: Crew | None = None

    def clean_up() -> None:
        if crew is not None:
            for worker in (crew.cpu, crew.gpu):
                worker.end_runs()
                service.stop(worker)
        down(home)
        shutil.rmtree(home, ignore_errors=True)

    atexit.register(clean_up)
    try:
        info = up(home, StackPorts.free(), workers=False)
        crew = make_crew(forge_of(info, home / "cache-of-the-test"), home)
        deploy(crew)
        crew.up()
        yield crew
    finally:
        clean_up()
        atexit.unregister(clean_up)


def make_crew(forge: Forge, directory: Path) -> Crew:
    """The workers of a running stack; not started."""
    state = stack_state.read(forge.home)
    assert state is not None
    assert state.prefect_auth is not None
    login = WorkerLogin(state.prefect_api_url, state.prefect_auth)
    fault_file = directory / "fault"
    fault_file.write_text("")
    cpu, gpu = CrewCpuWorker(forge.home, login), CrewGpuWorker(forge.home, login)
    cpu.extra = {}
    gpu.extra = standin_environment(
        TRTFORGE_STANDIN_FAULT_FILE=str(fault_file),
        TRTFORGE_TOOLCHAIN_PYTHON=str(STANDIN_REFERENCE_PYTHON),
        **{ALLOW_VARIABLE: "1"},
    )
    return Crew(forge, fault_file, cpu, gpu)


def forge_of(info: StackInfo, cache: Path) -> Forge:
    """The command and the store of a stack."""
    state = stack_state.read(info.home)
    assert state is not None
    client = make_client(
        endpoint_url=state.s3.endpoint_url,
        region=state.s3.region,
        access_key_id=state.s3.access_key_id,
        secret_access_key=SecretStr(state.s3.secret_access_key),
    )
    return Forge(info.home, info, client, Store(client, state.s3.bucket, cache))


def deploy(crew: Crew) -> None:
    """The pools `cpu` and `gpu-standin` with their deployments; the GPU one takes one run."""
    done = subprocess.run(
        [sys.executable, "-m", "trtforge.cli", "deploy", "--json", "--pool", "cpu", "--pool", POOL],
        env=crew.forge.environment(),
        cwd=crew.forge.home,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    json.loads(done.stdout)
    for name in ("build-engine/cpu", f"gpu-stage/{POOL}"):
        found = crew.ask("GET", f"deployments/name/{name}")
        variables = found["job_variables"]
        # The shortest that there is.
        variables["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] = "30"
        crew.ask("PATCH", f"deployments/{found['id']}", {"job_variables": variables})
    crew.limit_gpu_runs(1)


class _TestWorker(Worker):
    """A worker of the stack that looks for work often, with variables of the test's."""

    extra: dict[str, str]

    def command(self) -> Command:
        usual = super().command()
        quick = {"PREFECT_WORKER_QUERY_SECONDS": "1"}
        return Command(usual.argv, usual.environment | quick | self.extra, usual.directory)


class CrewCpuWorker(_TestWorker, CpuWorker):
    """Pool `cpu`."""


class CrewGpuWorker(_TestWorker, StandInGpuWorker):
    """Pool `gpu-standin`, with the stand-in for TensorRT-LLM."""
