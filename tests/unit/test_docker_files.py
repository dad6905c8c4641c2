"""The Dockerfiles, compose.yaml and their scripts, checked without an engine.

These are checks of our own, of the kind hadolint makes; hadolint and `docker compose config` run
too where they are installed. `sh` really runs the scripts.
"""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from deployments.files import read as read_deployments
from trtforge.engines.base import IMAGE_DIGEST_VARIABLE
from trtforge.engines.trtllm.versions import DEFAULT
from trtforge.images import DOCKERFILES, default_tag
from trtforge.settings import Settings

ROOT = Path(__file__).parents[2]
# Beside this interpreter first: an environment need not be activated.
_PROGRAMS = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
DOCKER = ROOT / "docker"
FILES = sorted(DOCKER.glob("Dockerfile*"))
TEMPLATES = ROOT / "deployments" / "pools"
SCRIPTS = sorted(DOCKER.glob("*.sh"))
UID = "10001"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SECRET_WORDS = re.compile(r"PASSWORD|SECRET|TOKEN|AUTH|CREDENTIAL")


@dataclass(frozen=True)
class Instruction:
    """One instruction, continuation lines joined."""

    stage: int
    word: str
    rest: str


def parse(path: Path) -> list[Instruction]:
    lines = (line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    found, stage = [], -1
    for line in filter(str.strip, joined.splitlines()):
        word, _, rest = line.partition(" ")
        stage += word == "FROM"
        found.append(Instruction(stage, word, rest.strip()))
    return found


def of(instructions: list[Instruction], word: str) -> Iterator[Instruction]:
    return (i for i in instructions if i.word == word)


def default_arguments(instructions: list[Instruction]) -> dict[str, str]:
    """The arguments before the first FROM, and what they are."""
    pairs = (i.rest.partition("=") for i in of(instructions, "ARG") if i.stage < 0)
    return {name: value for name, _, value in pairs}


def pinned(image: str) -> bool:
    """By digest, or by a tag with a version in it."""
    tag = image.rpartition("/")[2].partition(":")[2]
    return "@sha256:" in image or bool(re.match(r"\d+\.\d+", tag))


@pytest.fixture(params=FILES, ids=lambda path: path.name)
def instructions(request: pytest.FixtureRequest) -> list[Instruction]:
    return parse(request.param)


class TestDockerfiles:
    def test_each_image_that_can_be_built_has_one(self) -> None:
        assert {f"docker/{path.name}" for path in FILES} == set(DOCKERFILES.values())

    def test_bases_are_pinned_and_can_be_exchanged(self, instructions: list[Instruction]) -> None:
        bases = default_arguments(instructions)
        stages = [i.rest.split() for i in of(instructions, "FROM")]
        assert len(stages) >= 2, "multi-stage"
        for words in stages:
            argument = re.fullmatch(r"\$\{(\w+)\}", words[0])
            assert argument, f"{words[0]}: no mirror can be given"
            assert pinned(bases[argument[1]]), bases
            assert words[1] == "AS"

    def test_nothing_runs_as_root_in_the_end(self, instructions: list[Instruction]) -> None:
        last = list(of(instructions, "FROM"))[-1].stage
        users = [i.rest for i in of(instructions, "USER") if i.stage == last]
        assert users[-1] == f"{UID}:{UID}"
        after = instructions[[i.rest for i in instructions].index(users[-1]) :]
        assert not list(of(after, "RUN"))

    def test_the_last_stage_is_labelled_checked_and_takes_signals(
        self, instructions: list[Instruction]
    ) -> None:
        last = [i for i in instructions if i.stage == list(of(instructions, "FROM"))[-1].stage]
        labels = " ".join(i.rest for i in of(last, "LABEL"))
        for name in ("title", "description", "licenses", "version", "revision", "base.name"):
            assert f"org.opencontainers.image.{name}=" in labels
        assert {"VERSION", "REVISION"} <= {i.rest.partition("=")[0] for i in of(last, "ARG")}
        (check,) = of(last, "HEALTHCHECK")
        assert "--timeout=" in check.rest
        for word in ("ENTRYPOINT", "CMD"):
            (instruction,) = of(last, word)
            assert json.loads(instruction.rest), "the exec form: a shell would keep the signals"
        assert "exec " in next(of(last, "CMD")).rest

    def test_packages_are_installed_lean_and_pipes_may_fail(
        self, instructions: list[Instruction]
    ) -> None:
        shells = {i.stage for i in of(instructions, "SHELL") if "pipefail" in i.rest}
        for run in of(instructions, "RUN"):
            assert run.stage in shells
            if "apt-get install" in run.rest:
                assert run.rest.startswith("apt-get update &&")
                assert run.rest.endswith("rm -rf /var/lib/apt/lists/*")
                for option in ("--yes", "--no-install-recommends"):
                    assert option in run.rest
            if "pip install" in run.rest:
                assert "--no-cache-dir" in run.rest
            for unwanted in ("sudo", "curl", "wget", "apt-get upgrade", "--privileged"):
                assert unwanted not in run.rest
        assert not list(of(instructions, "ADD"))

    def test_dependencies_are_those_of_the_constraints(
        self, instructions: list[Instruction]
    ) -> None:
        installs = [
            i.rest for i in of(instructions, "RUN") if "/opt/trtforge/bin/pip install" in i.rest
        ]
        assert len(installs) == 2
        assert "--constraint constraints.txt" in installs[0]
        assert "--no-deps" in installs[1]

    def test_what_is_copied_exists_and_is_not_ignored(
        self, instructions: list[Instruction]
    ) -> None:
        build = pytest.importorskip("docker.utils.build")
        patterns = [
            line
            for line in (ROOT / ".dockerignore").read_text().splitlines()
            if line and not line.startswith("#")
        ]
        sent = set(build.exclude_paths(str(ROOT), patterns))
        for copy in of(instructions, "COPY"):
            if "--from=" in copy.rest:
                continue
            for source in copy.rest.split()[:-1]:
                assert source in sent, source
        assert not {".git", ".venv", ".trtforge", "docker/secrets", "tests"} & sent

    def test_no_secret_is_an_argument_or_a_variable(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            if instruction.word in ("ARG", "ENV"):
                names = re.findall(r"(\w+)=", instruction.rest + "=")
                assert not [name for name in names if SECRET_WORDS.search(name)]

    def test_every_package_is_installed(self, instructions: list[Instruction]) -> None:
        packages = {"trtforge", "flows", "tasks", "deployments"}
        copied = {word for i in of(instructions, "COPY") for word in i.rest.split()[:-1]}
        assert packages <= copied
        [empty] = [i.rest for i in of(instructions, "RUN") if i.rest.startswith("mkdir")]
        assert all(f"{package}/__init__.py" in empty for package in packages)

    def test_job_templates_name_the_images_logging(self, instructions: list[Instruction]) -> None:
        [path] = re.findall(
            r"PREFECT_LOGGING_SETTINGS_PATH=(\S+)",
            " ".join(i.rest for i in of(instructions, "ENV")),
        )
        assert f"trtforge/logging.yml {path}" in [i.rest for i in of(instructions, "COPY")]
        for kind in ("cpu", "gpu"):
            template = json.loads((TEMPLATES / f"{kind}-docker.json").read_text())
            assert template["job_configuration"]["env"]["PREFECT_LOGGING_SETTINGS_PATH"] == path
        pod = json.loads((TEMPLATES / "gpu-k8s.json").read_text())["job_configuration"]
        [main] = pod["job_manifest"]["spec"]["template"]["spec"]["containers"]
        assert {"name": "PREFECT_LOGGING_SETTINGS_PATH", "value": path} in main["env"]

    def test_variables_are_settings_that_exist(self, instructions: list[Instruction]) -> None:
        names = re.findall(
            r"\b((?:TRTFORGE|PREFECT)_\w+)=", " ".join(i.rest for i in of(instructions, "ENV"))
        )
        assert names
        assert [name for name in names if not _is_setting(name)] == []

    def test_the_release_is_the_default_one(self) -> None:
        gpu = default_arguments(parse(DOCKER / "Dockerfile.gpu"))
        assert gpu["TRTLLM_IMAGE"] == f"nvcr.io/nvidia/tensorrt-llm/release:{DEFAULT}"
        assert (
            f"ARG TRTLLM_VERSION={DEFAULT}\n" in (DOCKER / "Dockerfile.gpu-from-cuda").read_text()
        )

    @pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
    def test_hadolint_finds_nothing(self, path: Path) -> None:
        hadolint = shutil.which("hadolint", path=_PROGRAMS)
        assert hadolint, "hadolint is part of the extra 'dev'"
        done = subprocess.run([hadolint, path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


class TestPackage:
    def test_data_files_are_installed_with_it(self) -> None:
        wanted = PROJECT["tool"]["setuptools"]["package-data"]
        declared = {
            path
            for package, patterns in wanted.items()
            for pattern in patterns
            for path in (ROOT / package.replace(".", "/")).glob(pattern)
        }
        data = {
            path
            for package in ("trtforge", "deployments")
            for path in (ROOT / package).rglob("*")
            if path.is_file() and path.suffix not in (".py", ".pyc") and path.name != "py.typed"
        }
        assert data <= declared, data - declared


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return document


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose["services"]
    return found


class TestCompose:
    def test_it_is_the_whole_stack(self, services: dict[str, Any]) -> None:
        assert set(services) == {
            "postgres",
            "redis",
            "prefect-server",
            "object-store",
            "set-up",
            "cpu-worker",
            "gpu-worker",
        }

    def test_it_is_set_up_as_the_embedded_stack_is(self, services: dict[str, Any]) -> None:
        command = services["set-up"]["command"]
        assert command == ["sh", "-c", "trtforge store init && trtforge deploy"]

    def test_its_workers_are_of_pools_that_are_deployed(self, services: dict[str, Any]) -> None:
        files = read_deployments()
        pools = {pool.name: pool.type for pool in files.pools}
        used = {of.work_pool.name for of in files.deployments}
        for kind in ("cpu", "gpu"):
            named = services[f"{kind}-worker"]["environment"]["TRTFORGE_POOL"]
            # What the command of the images starts.
            assert pools[named] == "process"
            assert named in used
            image = " ".join(i.rest for i in of(parse(DOCKER / f"Dockerfile.{kind}"), "ENV"))
            assert f"TRTFORGE_POOL={named} " in image

    def test_its_clients_outlast_a_server_that_restarts(self, services: dict[str, Any]) -> None:
        """As long as the runs of the deployments do."""
        clients = {
            name: service["environment"]
            for name, service in services.items()
            if "PREFECT_API_URL" in service.get("environment", {})
        }
        assert set(clients) == {"set-up", "cpu-worker", "gpu-worker"}
        for deployment in read_deployments().deployments:
            patience = patience_of(deployment.work_pool.job_variables["env"])
            assert patience.keys() == {
                "PREFECT_CLIENT_MAX_RETRIES",
                "PREFECT_CLIENT_RETRY_EXTRA_CODES",
            }
            for name, environment in clients.items():
                assert patience_of(environment) == patience, name

    def test_images_are_pinned_and_those_of_this_version(self, services: dict[str, Any]) -> None:
        for name, service in services.items():
            image = re.sub(r"\$\{\w+:-(.*)\}", r"\1", service["image"])
            assert pinned(image), name
            if "build" in service:
                kind = service["build"]["dockerfile"].rpartition(".")[2]
                assert image == default_tag(kind)
                assert (DOCKER / service["build"]["context"]).resolve() == ROOT
                assert service["build"]["dockerfile"] in DOCKERFILES.values()
        (weed,) = (r for r in PROJECT["project"]["optional-dependencies"]["stack"] if "weed" in r)
        tag = services["object-store"]["image"].rpartition(":")[2]
        assert Requirement(weed).specifier.contains(tag)

    def test_services_wait_for_each_others_health(self, services: dict[str, Any]) -> None:
        once = {name for name, service in services.items() if service.get("restart") == "no"}
        for service in services.values():
            for name, wait in service.get("depends_on", {}).items():
                expected = "service_completed_successfully" if name in once else "service_healthy"
                assert wait == {"condition": expected}, name
        for name, service in services.items():
            check = service.get("healthcheck", {})
            # The workers' is in their images.
            assert check.get("test") or name in once or name.endswith("-worker"), name
            assert service["restart"] == ("no" if name in once else "unless-stopped")

    def test_no_secret_is_in_it_and_each_one_can_be_made(
        self, compose: dict[str, Any], services: dict[str, Any]
    ) -> None:
        for service in services.values():
            for name, value in service.get("environment", {}).items():
                if name.endswith("_FILE"):
                    assert Path(value).name in service["secrets"]
                else:
                    assert not SECRET_WORDS.search(name), name
        used = {name for service in services.values() for name in service.get("secrets", [])}
        assert used == set(compose["secrets"])
        for secret in compose["secrets"].values():
            assert (DOCKER / f"{secret['file']}.example").is_file()
        assert "*" in (DOCKER / "secrets" / ".gitignore").read_text().split()

    def test_only_loopback_is_reached_until_somebody_says_otherwise(
        self, services: dict[str, Any]
    ) -> None:
        ports = [port for service in services.values() for port in service.get("ports", [])]
        assert len(ports) == 2
        assert all(port.startswith("${TRTFORGE_BIND_ADDRESS:-127.0.0.1}:") for port in ports)
        assert services["postgres"]["networks"] == services["redis"]["networks"] == ["prefect"]

    def test_the_server_asks_for_a_password_and_for_a_token(self, services: dict[str, Any]) -> None:
        environment = services["prefect-server"]["environment"]
        assert "PREFECT_SERVER_API_AUTH_STRING_FILE" in environment
        assert environment["PREFECT_SERVER_CSRF_PROTECTION_ENABLED"] == "true"
        # Where its own pages come from, and no page else.
        origin = environment["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"].removesuffix("}")
        api = environment["PREFECT_SERVER_UI_API_URL"].removesuffix("}")
        assert api.partition(":-")[2] == f"{origin.partition(':-')[2]}/api"

    def test_volumes_and_networks_are_declared(
        self, compose: dict[str, Any], services: dict[str, Any]
    ) -> None:
        volumes = {
            volume.partition(":")[0]
            for service in services.values()
            for volume in service.get("volumes", [])
        }
        assert volumes == set(compose["volumes"])
        networks = {name for service in services.values() for name in service.get("networks", [])}
        assert networks <= set(compose["networks"])

    def test_the_gpu_worker_gets_every_gpu_and_is_asked_for(self, services: dict[str, Any]) -> None:
        worker = services["gpu-worker"]
        assert worker["profiles"] == ["gpu"]
        (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
        assert worker["shm_size"] == "8g"
        assert not [name for name, s in services.items() if "profiles" in s and s is not worker]

    def test_the_digest_of_the_workers_images_reaches_their_toolchains(
        self, services: dict[str, Any]
    ) -> None:
        for kind in ("cpu", "gpu"):
            digest = services[f"{kind}-worker"]["environment"][IMAGE_DIGEST_VARIABLE]
            assert digest == f"${{TRTFORGE_{kind.upper()}_IMAGE_DIGEST:-}}"

    def test_variables_are_settings_that_exist(self, services: dict[str, Any]) -> None:
        names = {name for s in services.values() for name in s.get("environment", {})}
        ours = {name for name in names if name.startswith(("PREFECT_", "TRTFORGE_"))}
        assert [name for name in sorted(ours) if not _is_setting(name.removesuffix("_FILE"))] == []

    def test_the_example_names_the_variables_that_it_reads(self) -> None:
        read = set(re.findall(r"\$\{(\w+):-", (DOCKER / "compose.yaml").read_text()))
        shown = set(re.findall(r"^# (\w+)=", (DOCKER / ".env.example").read_text(), re.MULTILINE))
        assert shown == read | {"COMPOSE_PROFILES"}

    def test_docker_compose_accepts_it(self, tmp_path: Path) -> None:
        shutil.copytree(DOCKER, tmp_path / "docker")
        subprocess.run(["sh", tmp_path / "docker" / "make-secrets.sh"], check=True)
        command = _compose_command()
        assert command, "Docker Compose 2 is part of the extra 'dev'"
        file = tmp_path / "docker" / "compose.yaml"
        done = subprocess.run(
            [*command, "--file", file, "--profile", "gpu", "config", "--quiet"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


class TestScripts:
    @pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
    def test_they_are_executable_and_parse(self, path: Path) -> None:
        assert os.access(path, os.X_OK)
        subprocess.run(["sh", "-n", path], check=True)

    def test_secrets_are_made_once_and_agree(self, tmp_path: Path) -> None:
        shutil.copytree(DOCKER, tmp_path / "docker", ignore=shutil.ignore_patterns("*_key"))
        script = tmp_path / "docker" / "make-secrets.sh"
        made = tmp_path / "docker" / "secrets"
        names = ("postgres_password", "prefect_auth", "s3_secret_access_key", "hf_token")

        subprocess.run(["sh", script], check=True, capture_output=True)
        first = {name: (made / name).read_text() for name in names}
        assert len(first["postgres_password"]) == 48
        assert first["prefect_auth"].startswith("trtforge:")
        identity = json.loads((made / "s3_identities.json").read_text())["identities"][0]
        assert identity["credentials"] == [
            {"accessKey": "trtforge", "secretKey": first["s3_secret_access_key"]}
        ]
        assert stat.S_IMODE(made.stat().st_mode) == 0o700
        # Readable for the users of the containers, behind a directory that is closed.
        assert stat.S_IMODE((made / "s3_identities.json").stat().st_mode) == 0o644

        (made / "hf_token").write_text("hf_mine")
        again = subprocess.run(["sh", script], check=True, capture_output=True, text=True)
        assert again.stdout == ""
        assert (made / "postgres_password").read_text() == first["postgres_password"]
        assert (made / "hf_token").read_text() == "hf_mine"

    def test_secrets_in_files_become_variables_of_the_command_alone(self, tmp_path: Path) -> None:
        secret = tmp_path / "key"
        secret.write_text("a key with 'quotes' and $signs\n")
        empty = tmp_path / "empty"
        empty.touch()
        script = "import json, os; print(json.dumps(dict(os.environ)))"
        environment = {
            "PATH": os.environ["PATH"],
            "TRTFORGE_S3_SECRET_ACCESS_KEY_FILE": str(secret),
            "HF_TOKEN_FILE": str(empty),
            # Other programs' files stay files.
            "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "none"),
        }
        done = self.run(environment, "python3", "-c", script)
        seen = json.loads(done.stdout)
        assert seen["TRTFORGE_S3_SECRET_ACCESS_KEY"] == "a key with 'quotes' and $signs"
        assert seen["AWS_WEB_IDENTITY_TOKEN_FILE"] == str(tmp_path / "none")
        assert not {"HF_TOKEN", "HF_TOKEN_FILE", "TRTFORGE_S3_SECRET_ACCESS_KEY_FILE"} & set(seen)

    def test_a_missing_secret_is_named_and_nothing_is_started(self, tmp_path: Path) -> None:
        environment = {
            "PATH": os.environ["PATH"],
            "PREFECT_API_AUTH_STRING_FILE": str(tmp_path / "prefect_auth"),
        }
        done = self.run(environment, "echo", "started")
        assert done.returncode == 78
        assert done.stdout == ""
        assert "PREFECT_API_AUTH_STRING_FILE" in done.stderr
        assert "make-secrets.sh" in done.stderr

    @staticmethod
    def run(environment: dict[str, str], *command: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["sh", DOCKER / "with-secrets.sh", *command],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )


def patience_of(environment: dict[str, str]) -> dict[str, str]:
    """How long a client of the Prefect server goes on trying, and after what."""
    return {k: v for k, v in environment.items() if k.startswith("PREFECT_CLIENT_")}


def _is_setting(name: str) -> bool:
    if name.startswith("TRTFORGE_"):
        own = {"TRTFORGE_POOL", IMAGE_DIGEST_VARIABLE}
        return name in own or name.removeprefix("TRTFORGE_").lower() in Settings.model_fields
    if name.startswith("PREFECT_REDIS_"):  # of prefect-redis
        return name == "PREFECT_REDIS_MESSAGING_URL"
    from prefect.settings import Settings as PrefectSettings
    from prefect.settings.legacy import _get_settings_fields

    return name in _get_settings_fields(PrefectSettings)


def _compose_command() -> list[str] | None:
    """Compose 2 or newer: the first one read another format."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if found := shutil.which(command[0], path=_PROGRAMS):
            command[0] = found
            version = [*command, "version", "--short"]
            done = subprocess.run(version, capture_output=True, text=True, check=False)
            if done.returncode == 0 and not done.stdout.strip().removeprefix("v").startswith("1."):
                return command
    return None
