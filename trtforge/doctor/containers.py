"""Docker, the NVIDIA Container Toolkit, and TensorRT-LLM in a container."""

import importlib
import shutil
from pathlib import Path
from typing import Any

from trtforge.doctor.findings import Finding
from trtforge.engines.gpu import LocalGpus
from trtforge.engines.trtllm.versions import DEFAULT
from trtforge.images import DockerSdkMissingError, open_docker

_AREA = "container"
_TIMEOUT_S = 10
_CONTAINER_S = 300
RELEASE_IMAGE = f"nvcr.io/nvidia/tensorrt-llm/release:{DEFAULT}"
_VERSIONS = (
    "import importlib.metadata as m; "
    "print(m.version('tensorrt_llm'), m.version('torch'), sep=', PyTorch ')"
)
_CDI_FOLDERS = (Path("/etc/cdi"), Path("/var/run/cdi"))
_TOOLKIT = (
    "Install the NVIDIA Container Toolkit (package nvidia-container-toolkit), then run "
    "`sudo nvidia-ctk runtime configure --runtime=docker` and restart Docker"
)


def check_containers(gpus: LocalGpus, probe: bool) -> list[Finding]:
    """What could run an image, and whether it would see the GPUs.

    A container runtime is one way among others: aoti and a TensorRT-LLM of this machine's own
    need none.
    """
    client, finding = _docker()
    findings = [finding]
    info = _info(client) if client else None
    if gpus.models:
        findings.append(_toolkit(info))
    if client is not None:
        findings.append(_release_image(client, gpus, probe))
        client.close()
    return findings


def _docker() -> "tuple[Any, Finding]":
    try:
        client = open_docker(_TIMEOUT_S)
        version = client.version()
    except DockerSdkMissingError:
        return None, Finding(
            _AREA,
            "Docker",
            "not checked",
            "the Docker SDK for Python is not installed",
            "pip install 'trtforge[docker]'",
        )
    except Exception:  # no engine, or one that fails: whatever the SDK raises
        binaries = [name for name in ("docker", "podman") if shutil.which(name)]
        there = f"; {' and '.join(binaries)} is on PATH" if binaries else ""
        return None, Finding(
            _AREA,
            "Docker",
            "missing",
            f"no Docker engine answers{there}",
            "Only images and containers need it. Install and start Docker, or set DOCKER_HOST to "
            "an engine's socket; the user must be allowed to use it (group docker)",
        )
    return client, Finding(
        _AREA, "Docker", "ok", f"engine {version.get('Version')}, API {version.get('ApiVersion')}"
    )


def _info(client: Any) -> "dict[str, Any] | None":
    try:
        return dict(client.info())
    except Exception:  # whatever the SDK or its transport raises: nothing is known then
        return None


def _toolkit(info: "dict[str, Any] | None") -> Finding:
    """Docker reaches GPUs through the runtime `nvidia`, or through CDI."""
    name = "NVIDIA Container Toolkit"
    tools = [tool for tool in ("nvidia-ctk", "nvidia-container-cli") if shutil.which(tool)]
    described = [
        folder / file.name
        for folder in _CDI_FOLDERS
        if folder.is_dir()
        for file in folder.iterdir()
        if "nvidia" in file.name
    ]
    if info is not None and "nvidia" in (info.get("Runtimes") or {}):
        return Finding(_AREA, name, "ok", "Docker has the runtime nvidia")
    if described:
        return Finding(_AREA, name, "ok", f"CDI: {described[0]}")
    if tools:
        return Finding(
            _AREA,
            name,
            "missing",
            f"{', '.join(tools)} is there, but Docker has neither its runtime nor CDI",
            "Run `sudo nvidia-ctk runtime configure --runtime=docker` and restart Docker",
        )
    return Finding(_AREA, name, "missing", "containers cannot use the GPUs", _TOOLKIT)


def _release_image(client: Any, gpus: LocalGpus, probe: bool) -> Finding:
    name = "TensorRT-LLM image"
    errors = importlib.import_module("docker.errors")
    try:
        client.images.get(RELEASE_IMAGE)
    except errors.ImageNotFound:
        return Finding(
            _AREA,
            name,
            "not checked",
            f"{RELEASE_IMAGE} is not on this machine",
            "`trtforge image build gpu` fetches it (about 30 GB) and builds the worker's image",
        )
    except (errors.DockerException, OSError) as error:
        return Finding(_AREA, name, "not checked", f"Docker failed ({type(error).__name__})")
    if not probe or not gpus.models:
        return Finding(
            _AREA,
            name,
            "not checked",
            f"{RELEASE_IMAGE} is here, and was not started",
            "`trtforge doctor --container` asks it for its versions" if gpus.models else "",
        )
    return _ask_image(client, name)


def _ask_image(client: Any, name: str) -> Finding:
    """Start the image with all GPUs, as the worker would be started."""
    types = importlib.import_module("docker.types")
    container = None
    try:
        container = client.containers.create(
            RELEASE_IMAGE,
            ["-c", _VERSIONS],
            entrypoint="/usr/bin/python3",
            network_mode="none",
            device_requests=[types.DeviceRequest(count=-1, capabilities=[["gpu"]])],
        )
        container.start()
        status = container.wait(timeout=_CONTAINER_S)["StatusCode"]
        said = container.logs(tail=3).decode(errors="replace").strip()
    except Exception as error:  # of the SDK, or of requests when it takes too long
        return Finding(
            _AREA,
            name,
            "missing",
            f"a container with GPUs failed ({type(error).__name__})",
            _TOOLKIT,
        )
    finally:
        if container is not None:
            container.remove(force=True)
    if status == 0:
        return Finding(_AREA, name, "ok", f"with GPUs: TensorRT-LLM {said}")
    return Finding(_AREA, name, "missing", f"its interpreter ended with {status}: {said}", "")
