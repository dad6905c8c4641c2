"""The container images of the workers, built and pushed through the Docker SDK.

The Dockerfiles are those of `docker/` in the project's sources; an image is built from the sources,
so that what runs can be told from its digest. Works with a Docker engine and with what speaks its
API (Podman's socket, a remote engine in DOCKER_HOST).
"""

import importlib
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trtforge.errors import BuildError, InputError, ServiceError
from trtforge.progress import OnProgress, Progress, ignore

OnLog = Callable[[str], None]

DOCKERFILES: Mapping[str, str] = MappingProxyType(
    {
        "cpu": "docker/Dockerfile.cpu",
        "gpu": "docker/Dockerfile.gpu",
        "gpu-from-cuda": "docker/Dockerfile.gpu-from-cuda",
    }
)
_STEP = re.compile(r"Step (\d+)/(\d+) : (.*)")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# Installing TensorRT-LLM can be silent for that long.
_SILENCE_S = 3600
_TAIL = 6


class DockerSdkMissingError(InputError):
    """The extra `docker` is not installed."""


class DockerUnreachableError(ServiceError):
    """No Docker engine answers."""


class ImageContextError(InputError):
    """The directory does not hold the project's sources."""


class ImageKindError(InputError):
    """There is no such image."""


class ImageBuildError(BuildError):
    """A step of the Dockerfile failed."""


class ImagePushError(ServiceError):
    """The registry did not take the image."""


@dataclass(frozen=True)
class BuiltImage:
    """An image of the local engine.

    Attributes:
        image_id: `sha256:…` of its configuration; it changes with any byte of the image.
    """

    tag: str
    image_id: str


def docker_sdk() -> Any:
    """The module `docker`.

    Raises:
        DockerSdkMissingError: It is not installed.
    """
    try:
        # By name: the project's own directory `docker` must not be taken for it by type checkers.
        return importlib.import_module("docker.client")
    except ImportError as error:
        raise DockerSdkMissingError(
            "the Docker SDK for Python is not installed",
            remedy="Run pip install 'trtforge[docker]'",
        ) from error


def open_docker(timeout_s: int = _SILENCE_S) -> Any:
    """A client of the engine in DOCKER_HOST, or of this machine's.

    Raises:
        DockerSdkMissingError: The SDK is not installed.
        DockerUnreachableError: No engine answers.
    """
    sdk = docker_sdk()
    errors = importlib.import_module("docker.errors")
    client = None
    try:
        client = sdk.DockerClient.from_env(timeout=10)
        client.ping()
        client.api.timeout = timeout_s
        return client
    except (errors.DockerException, OSError) as error:
        if client is not None:
            client.close()
        raise DockerUnreachableError(
            f"no Docker engine answers ({type(error).__name__})",
            remedy="Start Docker, or set DOCKER_HOST to an engine's address; the user must be "
            "allowed to use it (group docker). `trtforge doctor` says more",
        ) from error


def default_tag(kind: str) -> str:
    """`trtforge/<kind>:<version of trtforge>`: what compose.yaml looks for."""
    return f"trtforge/{kind}:{version('trtforge')}"


def build_image(
    client: Any,
    kind: str,
    *,
    context: Path,
    tag: str | None = None,
    build_args: Mapping[str, str] = MappingProxyType({}),
    network: str | None = None,
    pull: bool = False,
    on_progress: OnProgress = ignore,
    on_log: OnLog = lambda _line: None,
) -> BuiltImage:
    """Build one of the images.

    Args:
        kind: A key of `DOCKERFILES`.
        context: The project's sources.
        tag: None is `default_tag`.
        build_args: Over those that say version and revision.
        network: Of the steps: `host` where the bridge has no way out.
        pull: Ask the registry for a newer base image.
        on_log: Called with each line that a step prints.

    Raises:
        ImageKindError, ImageContextError: Before the engine is asked.
        ImageBuildError: With the last lines of the step that failed.
        DockerUnreachableError: The engine went away.
    """
    dockerfile = _dockerfile(kind, context)
    tag = tag or default_tag(kind)
    arguments = {"VERSION": version("trtforge"), "REVISION": _revision(context), **build_args}
    stream = _answers(
        client.api.build,
        path=str(context),
        dockerfile=str(dockerfile),
        tag=tag,
        buildargs=arguments,
        network_mode=network,
        pull=pull,
        rm=True,
        forcerm=True,
        decode=True,
    )
    layers = _Layers("fetching the base image", on_progress)
    tail: list[str] = []
    image_id = ""
    for message in stream:
        if text := str(message.get("stream", "")).strip():
            if step := _STEP.match(text):
                done, total, what = int(step[1]) - 1, int(step[2]), step[3]
                on_progress(Progress(what, done, total, "steps"))
            tail = [*tail[1 - _TAIL :], text]
            on_log(text)
        elif "error" in message:
            raise ImageBuildError(
                f"the image {kind} could not be built: {_one_line([*tail, message['error']])}",
                field="dockerfile",
                value=DOCKERFILES[kind],
                remedy="See the lines above; a base image or a package that cannot be fetched is "
                "the usual cause (--build-arg takes mirrors)",
            )
        elif isinstance(message.get("aux"), dict):
            image_id = str(message["aux"].get("ID", image_id))
        else:
            layers.hear(message)
    return BuiltImage(tag, image_id or str(client.images.get(tag).id))


def push_image(client: Any, tag: str, *, on_progress: OnProgress = ignore) -> str:
    """Push an image to the registry that its tag names.

    Returns:
        `name@sha256:…`: what to start containers from, and to set TRTFORGE_IMAGE_DIGEST to.

    Raises:
        ImagePushError: The image is not here, or the registry refused it.
        DockerUnreachableError: The engine went away.
    """
    layers = _Layers(f"pushing {tag}", on_progress)
    digest = ""
    for message in _answers(client.api.push, tag, stream=True, decode=True):
        if "error" in message:
            raise ImagePushError(
                f"the image was not pushed: {_one_line([message['error']])}",
                field="TAG",
                value=tag,
                remedy="Check the name with `docker image ls`, and log in with `docker login` to "
                "the registry it names",
            )
        if isinstance(message.get("aux"), dict):
            digest = str(message["aux"].get("Digest", digest))
        layers.hear(message)
    if not _DIGEST.fullmatch(digest):
        raise ImagePushError(
            "the registry took the image and did not say its digest",
            field="TAG",
            value=tag,
            remedy="Look it up in the registry",
        )
    return f"{_repository(tag)}@{digest}"


class _Layers:
    """Adds up the bytes of the layers that an engine moves at the same time."""

    def __init__(self, what: str, on_progress: OnProgress) -> None:
        self._what = what
        self._on_progress = on_progress
        self._layers: dict[str, tuple[int, int]] = {}

    def hear(self, message: Mapping[str, Any]) -> None:
        detail = message.get("progressDetail") or {}
        if message.get("status") not in ("Downloading", "Pushing") or "total" not in detail:
            return
        self._layers[str(message.get("id"))] = (int(detail.get("current", 0)), int(detail["total"]))
        done, total = (sum(column) for column in zip(*self._layers.values(), strict=True))
        self._on_progress(Progress(self._what, min(done, total), total, "bytes"))


def _answers(call: Callable[..., Any], *args: Any, **options: Any) -> Iterable[dict[str, Any]]:
    errors = importlib.import_module("docker.errors")
    transport = importlib.import_module("requests.exceptions")
    try:
        yield from call(*args, **options)
    except (errors.DockerException, transport.RequestException) as error:
        raise DockerUnreachableError(
            f"the Docker engine failed: {_one_line([error])}",
            remedy="Check that it runs, and that its disk is not full",
        ) from error


def _dockerfile(kind: str, context: Path) -> Path:
    name = DOCKERFILES.get(kind)
    if name is None:
        raise ImageKindError(
            "there is no such image",
            field="IMAGE",
            value=kind,
            remedy=f"Use one of {', '.join(DOCKERFILES)}",
        )
    for needed in (name, "pyproject.toml", "constraints.txt", "trtforge", ".dockerignore"):
        if not (context / needed).exists():
            raise ImageContextError(
                f"it has no {needed}: images are built from the project's sources",
                field="--context",
                value=str(context),
                remedy="Run this in a clone of the project, or give one with --context",
            )
    return Path(name)


def _revision(context: Path) -> str:
    with suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(
            ["git", "-C", str(context), "describe", "--always", "--abbrev=40", "--dirty"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return answer.stdout.strip()
    return "unknown"


def _repository(tag: str) -> str:
    """The name without its tag; a colon before a slash belongs to a port."""
    name, colon, last = tag.rpartition(":")
    return tag if not colon or "/" in last else name


def _one_line(parts: Iterable[object]) -> str:
    return " | ".join(" ".join(str(part).split()) for part in parts)
