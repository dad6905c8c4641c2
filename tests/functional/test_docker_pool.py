"""The docker pools on a real engine: a build whose two halves run in containers.

The GPU is not there: the engine finds a stand-in for NVIDIA's hook, so the request for the cards
can be seen, and inside of the container aoti compiles for the CPU. By default the containers see
this machine's own files (tests/docker_images.py); the slow tests do the same with the CPU image.
"""

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from docker_engine import DockerEngine
from docker_images import WorkerImage
from forge import Forge, prefect_client_environment, tiny_spec
from models import write_tiny_model
from platform_crew import ENDED, Crew

from deployments.files import HERE
from trtforge.spec import EngineSpec
from trtforge.stack import StackInfo, service
from trtforge.stack import state as stack_state
from trtforge.stack.process import Command
from trtforge.stack.state import S3State
from trtforge.stack.worker import Worker, WorkerLogin

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

_RUN_LABEL = "io.prefect.flow-run-id"
_SECRETS = "/run/secrets"
_MODELS = "/models"
_POOLS = ("cpu-docker", "gpu-docker")
_MIB = 1 << 20
# Importing PyTorch in a container whose files nobody has read yet takes its time.
_PATIENCE_S = 900


class _DockerWorker(Worker):
    """As those of the stack, but its runs are containers."""

    runs_at_once = 2
    start_timeout_s = 300.0

    def __init__(self, home: Path, login: WorkerLogin, variables: dict[str, str]) -> None:
        super().__init__(home, login)
        self._variables = variables

    def command(self) -> Command:
        usual = super().command()
        argv = tuple("docker" if word == "process" else word for word in usual.argv)
        quick = {"PREFECT_WORKER_QUERY_SECONDS": "1"}
        return Command(argv, usual.environment | self._variables | quick, usual.directory)


class _CpuWorker(_DockerWorker):
    name, slug, pool = "docker CPU worker", "worker-cpu-docker", "cpu-docker"


class _GpuWorker(_DockerWorker):
    name, slug, pool = "docker GPU worker", "worker-gpu-docker", "gpu-docker"


@dataclass(frozen=True)
class Site:
    """What `trtforge deploy` told, who does the work, and where it is done."""

    report: dict[str, Any]
    crew: Crew
    engine: DockerEngine
    image: WorkerImage
    model: str

    def ask_for(self, deployment: str, **body: Any) -> str:
        """The id of a new run, made as the UI's form makes it."""
        found = self.crew.ask("GET", f"deployments/name/{deployment}")
        made = self.crew.ask("POST", f"deployments/{found['id']}/create_flow_run", body)
        return str(made["id"])

    def build(self) -> str:
        """The id of a build: one half in each pool."""
        spec = tiny_spec(Path(_MODELS) / self.model)
        parameters = {"spec": spec, "gpu_pool": "gpu-docker"}
        return self.ask_for("build-engine/cpu-docker", parameters=parameters)

    def containers(self, run_id: str) -> list[Any]:
        return self.engine.containers(f"{_RUN_LABEL}={run_id}")

    def container(self, run_id: str) -> Any:
        """The container of a run, once it is there."""
        [found] = self.crew.until("container", lambda: self.containers(run_id), _PATIENCE_S)
        return found

    def gpu_run(self, build_id: str) -> str:
        """The id of a build's GPU run, once there is one."""
        runs = self.crew.until("GPU run", lambda: self._gpu_runs(build_id), _PATIENCE_S)
        return str(runs[0]["id"])

    def _gpu_runs(self, build_id: str) -> list[dict[str, Any]]:
        self._must_go_on(build_id)
        return self.crew.gpu_runs(build_id)

    def until_compiling(self, build_id: str) -> str:
        """The id of a build's GPU run, once the compiler runs in its container."""
        run_id = self.gpu_run(build_id)
        container = self.container(run_id)

        def compiling() -> bool:
            self._must_go_on(build_id)
            told = container.top()["Processes"] or []
            return any("build_driver" in " ".join(process) for process in told)

        self.crew.until("compiler", compiling, _PATIENCE_S)
        return run_id

    def _must_go_on(self, run_id: str) -> None:
        state = self.crew.run(run_id)["state"]
        assert state["type"] not in ENDED, f"{state}\n{self.crew.story(run_id)}"

    def until_ended(self, run_id: str) -> str:
        return self.crew.until_ended(run_id, _PATIENCE_S)

    def until_gone(self, *run_ids: str) -> None:
        """Wait until no container of these runs is left, not even one that has ended."""

        def gone() -> bool:
            return not any(self.containers(run_id) for run_id in run_ids)

        self.crew.until("end of the containers", gone, 60)


@pytest.fixture(
    scope="module", params=["machine_image", pytest.param("cpu_image", marks=pytest.mark.slow)]
)
def image(request: pytest.FixtureRequest) -> WorkerImage:
    found: WorkerImage = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def site(
    docker_engine: DockerEngine,
    image: WorkerImage,
    forge: Forge,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    """Both docker pools, deployed as a site would, with a worker each."""
    if not _knows_of_gpus(docker_engine, image):
        pytest.skip("this Docker engine has no hook for GPUs (NVIDIA Container Toolkit)")
    state = stack_state.read(forge.home)
    assert state is not None
    assert state.prefect_auth is not None
    directory = tmp_path_factory.mktemp("site")
    # Not compiled before, with another image.
    model = image.tag.partition("/")[2].partition(":")[0]
    write_tiny_model(directory / "models" / model, seed=sum(model.encode()))
    report = _deploy(_files_of_the_site(directory, image, state.s3), forge.stack)

    login = WorkerLogin(state.prefect_api_url, state.prefect_auth)
    cpu, gpu = (
        kind(forge.home, login, docker_engine.environment) for kind in (_CpuWorker, _GpuWorker)
    )
    try:
        for worker in (cpu, gpu):
            service.ensure_running(worker, lambda _: None)
        crew = Crew(forge, directory / "no-faults", cpu, gpu)
        yield Site(report, crew, docker_engine, image, model)
    finally:
        for worker in (cpu, gpu):
            service.stop(worker)
        _leave_nothing(docker_engine, image)


def _knows_of_gpus(engine: DockerEngine, image: WorkerImage) -> bool:
    errors = importlib.import_module("docker.errors")
    request = {"Driver": "nvidia", "DeviceIDs": ["all"], "Capabilities": [["gpu"]]}
    container = engine.client.containers.create(
        image.tag,
        ["sh", "-c", "exit 0"],
        network_mode="host",
        volumes=list(image.volumes),
        device_requests=[request],
    )
    try:
        container.start()
    except errors.APIError:
        return False
    finally:
        container.remove(force=True, v=True)
    return True


def _files_of_the_site(directory: Path, image: WorkerImage, s3: S3State) -> Path:
    """trtforge's own files, with the store's address and where the secrets are in pools.yaml."""
    models, secrets = directory / "models", directory / "secrets"
    secrets.mkdir()
    (secrets / "s3_access_key_id").write_text(s3.access_key_id)
    (secrets / "s3_secret_access_key").write_text(s3.secret_access_key)
    for path in (models, secrets, *models.rglob("*"), *secrets.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)

    files = directory / "files"
    shutil.copytree(HERE, files, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    content = yaml.safe_load((files / "pools" / "pools.yaml").read_text())
    environment = {
        "TRTFORGE_S3_ENDPOINT_URL": s3.endpoint_url,
        "TRTFORGE_S3_BUCKET": s3.bucket,
        "TRTFORGE_S3_REGION": s3.region,
        "TRTFORGE_S3_ACCESS_KEY_ID_FILE": f"{_SECRETS}/s3_access_key_id",
        "TRTFORGE_S3_SECRET_ACCESS_KEY_FILE": f"{_SECRETS}/s3_secret_access_key",
    }
    for pool in content["pools"]:
        if pool["name"] not in _POOLS:
            continue
        pool["variables"] = {
            "image": {"default": image.tag},
            "image_pull_policy": {"default": "Never"},
            "env": {"default": environment},
        }
        volumes = [_cache(pool["name"]), f"{secrets}:{_SECRETS}:ro", *image.volumes]
        if pool["name"] == "cpu-docker":
            volumes.append(f"{models}:{_MODELS}:ro")
        pool["fixed"] = {"volumes": volumes}
    (files / "pools" / "pools.yaml").write_text(yaml.safe_dump(content))
    return files


def _cache(pool: str) -> str:
    return f"trtforge-test-{pool}:/var/lib/trtforge"


def _deploy(files: Path, stack: StackInfo) -> dict[str, Any]:
    pools = [word for pool in _POOLS for word in ("--pool", pool)]
    done = subprocess.run(
        [sys.executable, "-m", "trtforge.cli", "deploy", "--json", "--files", files, *pools],
        env=prefect_client_environment(stack),
        cwd=files,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def _leave_nothing(engine: DockerEngine, image: WorkerImage) -> None:
    errors = importlib.import_module("docker.errors")
    for container in engine.containers(_RUN_LABEL):
        if container.attrs["Config"]["Image"] == image.tag:
            container.remove(force=True, v=True)
    for pool in _POOLS:
        with suppress(errors.NotFound):
            engine.client.volumes.get(_cache(pool).partition(":")[0]).remove()


def test_deploy_makes_both_pools_with_the_sites_image(site: Site) -> None:
    for name in _POOLS:
        pool = site.crew.ask("GET", f"work_pools/{name}")
        assert pool["type"] == "docker"
        variables = pool["base_job_template"]["variables"]["properties"]
        assert variables["image"]["default"] == site.image.tag
    made = {(change["kind"], change["name"]) for change in site.report["changes"]}
    assert made >= {("pool", name) for name in _POOLS}


def test_a_run_gets_the_cards_it_asks_for_and_nothing_that_it_may_not_have(site: Site) -> None:
    asked = {
        "gpu_ids": ["0", "2"],
        "shm_size": "256m",
        # All of these are the template's to say.
        "command": "sleep 600",
        "volumes": ["/:/host"],
        "networks": ["elsewhere"],
        "privileged": True,
        "auto_remove": False,
        "container_create_kwargs": {"cap_add": ["ALL"], "pid_mode": "host"},
    }
    run_id = site.ask_for("gpu-stage/gpu-docker", job_variables=asked)
    made = site.container(run_id).attrs
    assert site.until_ended(run_id) == "COMPLETED", site.crew.story(run_id)

    host, image = made["HostConfig"], made["Config"]
    [cards] = host["DeviceRequests"]
    assert (cards["Driver"], cards["DeviceIDs"]) == ("nvidia", ["0", "2"])
    assert cards["Capabilities"] == [["gpu"]]
    assert host["ShmSize"] == 256 * _MIB
    assert host["Init"] is True
    assert image["Cmd"] == ["prefect", "flow-run", "execute"]
    assert image["User"] == "10001:10001"
    assert not host["Privileged"]
    assert not host["CapAdd"]
    assert not host["PidMode"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["AutoRemove"] is True
    inside = {mount["Destination"] for mount in made["Mounts"]}
    of_image = {volume.split(":")[1] for volume in site.image.volumes}
    assert inside == {"/var/lib/trtforge", _SECRETS} | of_image
    state = stack_state.read(site.crew.forge.home)
    assert state is not None
    assert state.s3.secret_access_key not in json.dumps(made)
    # What it was started for: the toolchain of that pool, which is one for the CPU.
    seen = site.crew.forge.store.sightings.get("gpu-docker", EngineSpec())
    assert seen is not None
    assert seen.found.device == "cpu"
    site.until_gone(run_id)


@pytest.mark.parametrize("asked", ["elsewhere.example/miner:latest", "trtforge/cpu --privileged"])
def test_another_image_is_refused_before_a_container_is_made(site: Site, asked: str) -> None:
    with pytest.raises(httpx.HTTPStatusError) as refused:
        site.ask_for("gpu-stage/gpu-docker", job_variables={"image": asked})
    assert refused.value.response.status_code in (409, 422)
    assert asked in refused.value.response.text


def test_a_build_that_is_cancelled_takes_both_containers_with_it(site: Site) -> None:
    build = site.build()
    gpu_run = site.until_compiling(build)
    site.crew.cancel(build)
    assert site.until_ended(build) == "CANCELLED", site.crew.story(build)
    assert site.until_ended(gpu_run) == "CANCELLED", site.crew.story(build)
    site.until_gone(build, gpu_run)
    assert not any(site.crew.cards())
    assert not list(site.crew.forge.store.list_aliases(site.model))
    site.crew.assert_the_store_is_whole()


def test_the_gpu_half_of_a_build_runs_in_a_container_of_the_gpu_pool(site: Site) -> None:
    build = site.build()
    assert site.until_ended(build) == "COMPLETED", site.crew.story(build)
    # Of the build that was cancelled.
    assert site.crew.found_in_the_store(build) == {"pull", "convert"}
    [gpu_run] = site.crew.gpu_runs(build)
    assert site.crew.run(build)["work_pool_name"] == "cpu-docker"
    assert gpu_run["work_pool_name"] == "gpu-docker"
    assert {"compile", "benchmark", "publish"} <= site.crew.made(gpu_run["id"])
    [(_, latest)] = site.crew.forge.store.list_aliases(site.model)
    manifest = site.crew.forge.store.get_manifest(latest.engine_id)
    assert manifest.core.config["device"] == "cpu"
    site.until_gone(build, gpu_run["id"])
    assert not any(site.crew.cards())
