"""The job templates: what a run may choose, what it may not, and what Prefect has by itself."""

import asyncio
import configparser
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import prefect
import pytest
from prefect.utilities.schema_tools.validation import is_valid
from prefect.utilities.templating import apply_values
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker
from prefect_docker.worker import DockerWorker, DockerWorkerJobConfiguration

from deployments.errors import FileInvalidError, JobVariableError, SecretInFileError
from deployments.files import HERE, Pool, read
from deployments.templates import job_template
from trtforge import redaction
from trtforge.engines.base import image_digest
from trtforge.known_secrets import Known

FILES = read()
POOLS = {pool.name: pool for pool in FILES.pools}
DIGEST = "@sha256:" + "a" * 64


def template(name: str, **changes: Any) -> dict[str, Any]:
    pool = POOLS[name].model_copy(update=changes)
    return job_template(pool, FILES.templates[pool.template])


def container(name: str, **job_variables: Any) -> DockerWorkerJobConfiguration:
    """What Prefect's worker starts for a run that asks for `job_variables`."""
    made = DockerWorkerJobConfiguration.from_template_and_values(
        template(name),
        job_variables,
        client=object(),  # type: ignore[arg-type]
    )
    return asyncio.run(made)


def kubernetes_default() -> dict[str, Any]:
    views = Path(prefect.__file__).parent / "server/api/collections_data/views"
    workers = json.loads((views / "aggregate-worker-metadata.json").read_text())
    default: dict[str, Any] = workers["prefect-kubernetes"]["kubernetes"][
        "default_base_job_configuration"
    ]
    return default


@pytest.mark.parametrize(
    ("name", "default", "withheld", "changed"),
    [
        (
            "cpu",
            ProcessWorker.get_default_base_job_template(),
            {"command", "working_dir"},
            # A run outlives its worker.
            {"stream_output"},
        ),
        (
            "gpu-docker",
            DockerWorker.get_default_base_job_template(),
            {
                "command",
                "registry_credentials",
                "networks",
                "network_mode",
                "auto_remove",
                "volumes",
                "privileged",
                "container_create_kwargs",
                "memswap_limit",
            },
            {"image"},
        ),
        (
            "gpu-k8s",
            kubernetes_default(),
            {"command", "namespace", "service_account_name", "cluster_config"},
            {
                "image",
                "cpu_request",
                "memory_request",
                "memory_limit",
                "finished_job_ttl",
                "pod_watch_timeout_seconds",
            },
        ),
    ],
)
def test_a_template_is_prefects_own_but_for_what_is_said_here(
    name: str, default: dict[str, Any], withheld: set[str], changed: set[str]
) -> None:
    """Fails when an upgrade of Prefect brings an entry that nobody has thought about yet."""
    ours = template(name)
    assert ours["job_configuration"].keys() == default["job_configuration"].keys()
    properties, theirs = ours["variables"]["properties"], default["variables"]["properties"]
    assert theirs.keys() - properties.keys() == withheld
    kept = theirs.keys() - withheld - changed
    assert {key: properties[key] for key in kept} == {key: theirs[key] for key in kept}


def test_a_gpu_container_gets_its_cards_shared_memory_an_init_and_no_privileges() -> None:
    made = container("gpu-docker", gpu_ids=["0", "GPU-1234abcd"], shm_size="2g")
    assert made.container_create_kwargs == {
        "init": True,
        # The image's is that of a worker.
        "healthcheck": {"test": ["NONE"]},
        "shm_size": "2g",
        "security_opt": ["no-new-privileges:true"],
        "device_requests": [
            {
                "driver": "nvidia",
                "device_ids": ["0", "GPU-1234abcd"],
                "capabilities": [["gpu"]],
            }
        ],
    }
    assert made.privileged is False
    assert made.auto_remove
    assert made.stream_output


def test_a_cpu_container_asks_for_no_device() -> None:
    asked = container("cpu-docker").container_create_kwargs
    assert asked is not None
    assert "device_requests" not in asked


@pytest.mark.parametrize(
    ("override", "attribute"),
    [
        ({"command": "rm -rf /"}, "command"),
        ({"privileged": True}, "privileged"),
        ({"volumes": ["/:/host"]}, "volumes"),
        ({"networks": ["other"]}, "networks"),
        ({"network_mode": "host"}, "network_mode"),
        ({"container_create_kwargs": {"privileged": True}}, "container_create_kwargs"),
        ({"auto_remove": False}, "auto_remove"),
    ],
)
@pytest.mark.parametrize("name", ["cpu-docker", "gpu-docker"])
def test_who_may_start_a_run_may_not_take_the_host(
    name: str, override: dict[str, Any], attribute: str
) -> None:
    assert getattr(container(name, **override), attribute) == getattr(container(name), attribute)


def test_a_run_on_a_process_pool_brings_no_command_of_its_own() -> None:
    made = ProcessJobConfiguration.from_template_and_values(
        template("cpu"),
        {"command": "rm -rf /", "working_dir": "/"},
        client=object(),  # type: ignore[arg-type]
    )
    configuration = asyncio.run(made)
    assert configuration.command is None
    assert configuration.working_dir is None


@pytest.mark.parametrize(
    ("image", "allowed"),
    [
        ("trtforge/gpu:0.1.0", True),
        ("trtforge/gpu", True),
        ("elsewhere.example/trtforge/gpu:0.1.0", False),
        ("ubuntu", False),
        ("trtforge/gpu:0.1.0 --privileged", False),
        ("trtforge/../gpu", False),
    ],
)
@pytest.mark.parametrize("name", ["cpu-docker", "gpu-docker", "gpu-k8s"])
def test_only_the_images_of_the_pattern_may_be_started(
    name: str, image: str, allowed: bool
) -> None:
    assert is_valid({"image": image}, template(name)["variables"]) is allowed


def test_a_site_names_its_registry_in_the_pool_and_not_in_the_template() -> None:
    image = {
        "default": "registry.example.org/trtforge/gpu:0.1.0",
        "pattern": r"^registry\.example\.org/trtforge/gpu(:[\w.-]+)?$",
    }
    made = template("gpu-docker", variables={"image": image})
    assert is_valid({"image": "registry.example.org/trtforge/gpu:0.2.0"}, made["variables"])
    assert not is_valid({"image": "trtforge/gpu:0.1.0"}, made["variables"])


def test_the_digest_that_is_started_is_the_one_that_the_toolchain_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = container("gpu-docker", image_digest=DIGEST, env={"PREFECT_CLIENT_MAX_RETRIES": "8"})
    assert made.image == f"trtforge/gpu:0.1.0{DIGEST}"
    assert made.env["PREFECT_CLIENT_MAX_RETRIES"] == "8"
    monkeypatch.setenv("TRTFORGE_IMAGE_DIGEST", str(made.env["TRTFORGE_IMAGE_DIGEST"]))
    assert image_digest() == DIGEST.removeprefix("@")


def test_without_a_digest_the_toolchain_names_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    made = container("gpu-docker")
    assert made.image == "trtforge/gpu:0.1.0"
    monkeypatch.setenv("TRTFORGE_IMAGE_DIGEST", str(made.env["TRTFORGE_IMAGE_DIGEST"]))
    assert image_digest() is None


def test_a_pool_may_fix_what_no_run_can_change() -> None:
    volumes = ["trtforge-gpu:/var/lib/trtforge", "/etc/trtforge/secrets:/run/secrets:ro"]
    assert template("gpu-docker", fixed={"volumes": volumes})["job_configuration"]["volumes"] == (
        volumes
    )


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"variables": {"gpu_id": {}}}, JobVariableError, r"no such variable.*'gpu_ids'"),
        ({"variables": {"image": {"defualt": "x"}}}, JobVariableError, r"'defualt'.*'default'"),
        (
            {"variables": {"gpu_ids": {"default": "0"}}},
            JobVariableError,
            r"gpu-docker\.variables\.gpu_ids = '0'",
        ),
        ({"fixed": {"volume": []}}, JobVariableError, r"no such entry.*'volumes'"),
        (
            {"fixed": {"mem_limit": "{{ memory }}"}},
            FileInvalidError,
            r"gpu-docker\.json: job_configuration = 'memory'",
        ),
        (
            {"variables": {"env": {"default": {"HF_TOKEN": "hf_abc"}}}},
            SecretInFileError,
            r"variables\.env\.default = 'HF_TOKEN': this looks like a secret",
        ),
        (
            {"variables": {"env": {"default": {"STORE": "https://me:hf_abc@host"}}}},
            SecretInFileError,
            r"variables\.env\.default = 'STORE'",
        ),
        (
            {"fixed": {"env": {"TRTFORGE_S3_SECRET_ACCESS_KEY": "abc"}}},
            SecretInFileError,
            r"fixed\.env = 'TRTFORGE_S3_SECRET_ACCESS_KEY'",
        ),
    ],
)
def test_a_wrong_change_is_named_with_what_was_meant(
    change: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said) as caught:
        template("gpu-docker", **change)
    assert "\n" not in str(caught.value)
    assert "hf_abc" not in str(caught.value)


def test_names_and_files_of_secrets_are_not_secrets() -> None:
    environment = {
        "TRTFORGE_S3_SECRET_ACCESS_KEY_FILE": "/run/secrets/s3",
        "TRTFORGE_S3_ACCESS_KEY_ID": "trtforge",
        "HF_TOKEN": "{{ prefect.blocks.secret.hf-token }}",
        "TOKENIZERS_PARALLELISM": "false",
    }
    made = template("gpu-docker", variables={"env": {"default": environment}})
    assert made["variables"]["properties"]["env"]["default"] == environment


@pytest.mark.parametrize("known", ["AKIAIOSFODNN7EXAMPLE", "trtforge-of-this-site"])
@pytest.mark.parametrize("name", ["TRTFORGE_S3_ACCESS_KEY_ID", "AWS_ACCESS_KEY_ID"])
def test_the_id_of_an_access_key_may_be_named_and_its_secret_may_not(
    name: str, known: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where whoever deploys has the same key, and their logs hide both of its parts."""
    secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
    monkeypatch.setenv("TRTFORGE_HOME", str(tmp_path))
    monkeypatch.setenv(name, known)
    monkeypatch.setenv(name.replace("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"), secret)
    monkeypatch.setattr(redaction, "_known", Known())
    assert redaction.redact(f"{known} {secret}") == "*** ***"

    made = template("gpu-docker", variables={"env": {"default": {name: known}}})
    assert made["variables"]["properties"]["env"]["default"] == {name: known}
    for variable in (name.replace("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"), name):
        with pytest.raises(SecretInFileError, match=variable) as caught:
            template("gpu-docker", variables={"env": {"default": {variable: secret}}})
        assert secret not in str(caught.value)


def kubernetes_job(**job_variables: Any) -> dict[str, Any]:
    """The manifest, as prefect-kubernetes fills it in: defaults, values, then env as a list."""
    made = template("gpu-k8s")
    properties = made["variables"]["properties"]
    defaults = {k: v["default"] for k, v in properties.items() if v.get("default") is not None}
    labels = {"prefect.io/flow-run-name": "amber-lynx"}
    given = {"name": "amber-lynx", "labels": labels, **defaults, **job_variables}
    manifest: dict[str, Any] = apply_values(made["job_configuration"]["job_manifest"], given)
    main = manifest["spec"]["template"]["spec"]["containers"][0]
    main["env"] = [{"name": "PREFECT_API_URL", "value": "http://prefect/api"}, *main["env"]]
    main["args"] = ["prefect", "flow-run", "execute"]
    return manifest


@pytest.mark.parametrize(
    "job_variables", [{}, {"gpu_count": 8, "cpu_limit": "64", "image_digest": DIGEST}]
)
def test_the_kubernetes_job_is_valid_against_the_schema_of_kubernetes(
    job_variables: dict[str, Any],
) -> None:
    job = kubernetes_job(**job_variables)
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)


def test_the_kubernetes_job_asks_for_one_product_of_gpu_and_no_privileges() -> None:
    pod = kubernetes_job(gpu_product="NVIDIA-L4", gpu_count=2)["spec"]["template"]["spec"]
    main = pod["containers"][0]
    assert main["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-L4"}
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in (
        pod["tolerations"]
    )
    assert main["securityContext"]["allowPrivilegeEscalation"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert not pod["automountServiceAccountToken"]
    mounted = {mount["name"]: mount["mountPath"] for mount in main["volumeMounts"]}
    assert mounted == {"cache": "/var/lib/trtforge", "shared-memory": "/dev/shm"}


def test_pools_of_gpus_have_no_limit_where_the_cards_have_theirs() -> None:
    limited = {name for name, pool in POOLS.items() if pool.concurrency_limit is not None}
    assert limited == {"cpu", "cpu-docker", "gpu-standin"}


def test_the_pool_of_a_machine_without_gpu_says_so() -> None:
    assert "without a GPU" in POOLS["gpu-standin"].description


def test_pools_hold_what_a_pool_model_holds() -> None:
    assert all(isinstance(pool, Pool) for pool in FILES.pools)
    assert POOLS.keys() == {
        "cpu",
        "cpu-docker",
        "gpu-docker",
        "gpu-process",
        "gpu-standin",
        "gpu-k8s",
    }


UNIT = HERE / "systemd" / "trtforge-gpu-worker.service"


def test_the_systemd_unit_ends_a_compiler_that_does_not_listen_and_starts_again() -> None:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT.read_text())
    service = parser["Service"]
    assert service["KillMode"] == "mixed"
    assert service["TimeoutStopSec"] == "60"
    assert service["Restart"] == "always"
    assert service["EnvironmentFile"].startswith("/etc/trtforge/")
    assert not re.search(r"(TOKEN|SECRET|AUTH_STRING)\w*=\S", UNIT.read_text())


def test_a_worker_of_the_systemd_unit_outlasts_a_server_that_restarts() -> None:
    """As long as the runs that it starts do."""
    lines = re.findall(r"^Environment=(.*)$", UNIT.read_text(), re.MULTILINE)
    environment = dict(pair.split("=", 1) for line in lines for pair in line.split())
    for deployment in FILES.deployments:
        patience = {
            name: value
            for name, value in deployment.work_pool.job_variables["env"].items()
            if name.startswith("PREFECT_CLIENT_")
        }
        assert patience.keys() >= {
            "PREFECT_CLIENT_MAX_RETRIES",
            "PREFECT_CLIENT_RETRY_EXTRA_CODES",
        }
        assert patience.items() <= environment.items(), deployment.name


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    # The command is not installed here; everything else is as it is.
    text = UNIT.read_text().replace("/opt/trtforge/bin/prefect", "/bin/true")
    copy = tmp_path / UNIT.name
    copy.write_text(text)
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", copy],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stderr) == (0, "")
